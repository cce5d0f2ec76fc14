"""Checkpoints from which training goes on bit for bit as if it had never stopped.

    DIR/step-00000012/NAME.safetensors   weights of each module
    DIR/step-00000012/state.pt           optimisers, schedulers, random generators; read with weights_only=True
    DIR/step-00000012/meta.json          step, key, extra, names and SHA-256 of the other files; written last

A checkpoint is filled in a hidden folder, synced and renamed, and only then are older ones removed: a kill at any moment
leaves at least the previous one. One whose hashes do not fit is skipped with a warning and the one before it is used.

With several processes every one calls `save`, because gathering sharded weights takes them all, and the first one writes: the
files hold whole tensors, so neither the number of processes nor the way they shard matters to whoever reads them. That costs
the first process memory for the whole state (12 bytes per trained weight with AdamW); the alternative, torch's sharded
checkpoints, keeps its index in a pickle.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.torch import load_file, load_model, save_file, save_model

from starling.errors import TrainingError

log = logging.getLogger(__name__)

KEPT = 2
"""Checkpoints left after a save: the newest and, should it turn out damaged, the one before."""


class Stateful(Protocol):
    """An optimiser, a scheduler: anything whose state is tensors, numbers and containers of them."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


class Gathered(Protocol):
    """Named tensors that may be spread over processes."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """Whole tensors on the CPU by name. Every process calls it; what others than the first get is not used."""


class Filled(Protocol):
    """Something that takes over named tensors."""

    def fill(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Raises ValueError when names or shapes differ."""


def save(
    directory: Path,
    step: int,
    modules: Mapping[str, torch.nn.Module | Gathered],
    states: Mapping[str, Stateful],
    extra: Mapping[str, Any],
    *,
    key: str = "",
    write: bool = True,
    keep: Collection[int] | None = None,
) -> Path:
    """Write a checkpoint after `step` steps, atomically; of the others the newest stays, or those of `keep`.

    Args:
        directory: folder of the checkpoints, made if missing.
        step: steps done.
        modules: models by name.
        states: optimisers and schedulers by name.
        extra: whatever else the loop needs; must survive JSON.
        key: what the checkpoint belongs to (settings, data); `load` refuses another.
        write: False on the processes that only help to gather.
        keep: steps whose checkpoints stay beside this one, all others go; if None, the newest two stay.
    """
    final = directory / f"step-{step:08d}"
    gathered = {name: part.tensors() for name, part in modules.items() if not isinstance(part, torch.nn.Module)}
    state = {"states": {n: s.state_dict() for n, s in states.items()}, "random": _random_state()}
    if not write:
        return final
    directory.mkdir(parents=True, exist_ok=True)
    draft = directory / f".draft-{step:08d}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    for name, module in modules.items():
        if isinstance(module, torch.nn.Module):
            save_model(module, str(draft / f"{name}.safetensors"))
        else:
            save_file(gathered[name], str(draft / f"{name}.safetensors"))
    torch.save(state, draft / "state.pt")
    files = sorted(p.name for p in draft.iterdir())
    for name in files:
        _sync(draft / name)
    meta = {
        "step": step,
        "key": key,
        "extra": dict(extra),
        "modules": sorted(modules),
        "states": sorted(states),
        "sha256": {name: _sha256(draft / name) for name in files},
    }
    (draft / "meta.json").write_text(json.dumps(meta, sort_keys=True), encoding="utf-8")
    _sync(draft / "meta.json")
    _sync(draft)
    if final.exists():  # a damaged one of the same step, reached again
        old = directory / f".old-{step:08d}"
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
    draft.rename(final)
    _sync(directory)
    _tidy(directory, None if keep is None else {step, *keep})
    return final


def latest(directory: Path) -> Path | None:
    """The newest checkpoint whose files are whole, None if there is none; damaged ones are named in a warning."""
    for path in reversed(_all(directory)):
        damage = problem(path)
        if damage is None:
            return path
        log.warning("checkpoint %s is damaged (%s); falling back to the one before", path, damage)
    return None


def problem(path: Path) -> str | None:
    """What is wrong with a checkpoint's files, None if nothing is."""
    try:
        meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
        for name, digest in meta["sha256"].items():
            if _sha256(path / name) != digest:
                return f"{name} was altered"
    except (OSError, ValueError, KeyError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def extras(directory: Path) -> list[dict[str, Any]]:
    """What `save` was given as `extra` for each checkpoint that is there, oldest first; unreadable ones left out."""
    found = []
    for path in _all(directory):
        try:
            found.append(dict(json.loads((path / "meta.json").read_text(encoding="utf-8"))["extra"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # `latest` says so when it matters
    return found


_CURE = "delete the folder of checkpoints to start this training anew"


def load(
    path: Path, modules: Mapping[str, torch.nn.Module | Filled], states: Mapping[str, Stateful], *, key: str = ""
) -> tuple[int, dict[str, Any]]:
    """Fill modules, optimisers, schedulers and the random generators from a checkpoint; returns (step, extra).

    Raises:
        TrainingError: it belongs to other settings or its parts are not the ones asked for.
    """
    meta = _meta(path, key)
    if meta["modules"] != sorted(modules) or meta["states"] != sorted(states):
        raise TrainingError(
            f"The checkpoint holds {meta['modules']} and {meta['states']}, wanted {sorted(modules)} and {sorted(states)}",
            where=str(path),
            cure=_CURE,
        )
    load_modules(path, modules, key=key)
    load_states(path, states)
    return int(meta["step"]), dict(meta["extra"])


def load_modules(path: Path, modules: Mapping[str, torch.nn.Module | Filled], *, key: str = "") -> tuple[int, dict[str, Any]]:
    """Only the weights of some modules, before they are spread over processes; returns (step, extra).

    Raises:
        TrainingError: the checkpoint belongs to other settings, or does not fit.
    """
    meta = _meta(path, key)
    try:
        for name, module in modules.items():
            file = str(path / f"{name}.safetensors")
            if isinstance(module, torch.nn.Module):
                load_model(module, file, strict=True)
            else:
                module.fill(load_file(file))
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        raise TrainingError(f"The checkpoint does not fit the model: {str(error)[:300]}", where=str(path), cure=_CURE) from error
    return int(meta["step"]), dict(meta["extra"])


def load_states(path: Path, states: Mapping[str, Stateful]) -> None:
    """Optimisers, schedulers and the random generators.

    Raises:
        TrainingError: a state does not fit.
    """
    saved = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
    try:
        for name, state in states.items():
            state.load_state_dict(saved["states"][name])
    except (RuntimeError, ValueError, KeyError) as error:
        raise TrainingError(f"The checkpoint does not fit the model: {str(error)[:300]}", where=str(path), cure=_CURE) from error
    _set_random_state(saved["random"])


# ── inside ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _meta(path: Path, key: str) -> dict[str, Any]:
    meta: dict[str, Any] = json.loads((path / "meta.json").read_text(encoding="utf-8"))
    if meta["key"] != key:
        raise TrainingError("The checkpoint belongs to other settings or data", where=str(path), cure=_CURE)
    return meta


def _all(directory: Path) -> list[Path]:
    return sorted(directory.glob("step-*")) if directory.is_dir() else []


def _tidy(directory: Path, keep: Collection[int] | None) -> None:
    found = _all(directory)
    for path in found[:-KEPT] if keep is None else [p for p in found if int(p.name.removeprefix("step-")) not in keep]:
        shutil.rmtree(path, ignore_errors=True)
    for pattern in (".draft-*", ".old-*"):
        for path in directory.glob(pattern):
            shutil.rmtree(path, ignore_errors=True)


def _random_state() -> dict[str, Any]:
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (str(name), [int(k) for k in keys], int(position), int(has_gauss), float(cached)),  # type: ignore[union-attr]
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
