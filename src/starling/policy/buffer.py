"""Sampled and scored replies on disk, so that a run that is killed in an update does not sample them again.

    DIR/rollouts-00000007-3f2a….safetensors    iteration 7; the name ends in the SHA-256 of the file (its first half)

A file is written under another name, synced and renamed; one whose hash does not fit its name, or whose prompts are others, is as
good as none: the replies are drawn again, and are the same. Files stay until a checkpoint makes them needless, so a run goes
on from a checkpoint of some iterations ago without sampling either.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from starling.models.encode import Encoder
from starling.policy.rollout import Rollout, rollout
from starling.records import Prompt, Sampling, content_hash

log = logging.getLogger(__name__)

_DIGITS = 32


def save(folder: Path, iteration: int, rollouts: Sequence[Rollout], scores_MB: npt.NDArray[np.float64]) -> Path:
    """Write one iteration's replies and scores, atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f".rollouts-{iteration:08d}.draft"
    tensors = {
        "ids": torch.tensor([token for r in rollouts for token in r.ids], dtype=torch.int64),
        "logprobs": torch.tensor([value for r in rollouts for value in r.logprobs], dtype=torch.float64),
        "lengths": torch.tensor([len(r.ids) for r in rollouts], dtype=torch.int64),
        "finished": torch.tensor([r.finished for r in rollouts], dtype=torch.bool),
        "scores": torch.from_numpy(np.ascontiguousarray(scores_MB, dtype=np.float64)),
    }
    save_file(tensors, draft, metadata={"prompts": _key([r.prompt for r in rollouts])})
    with draft.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:_DIGITS]
        os.fsync(file.fileno())
    path = folder / f"rollouts-{iteration:08d}-{digest}.safetensors"
    draft.replace(path)
    return path


def load(
    folder: Path, iteration: int, prompts: Sequence[Prompt], encoder: Encoder, sampling: Sampling, samples: int
) -> tuple[list[Rollout], npt.NDArray[np.float64]] | None:
    """What `save` was given for the iteration with these prompts, `samples` replies each; None if there is none that is whole."""
    repeated = [p for p in prompts for _ in range(samples)]
    for path in sorted(folder.glob(f"rollouts-{iteration:08d}-*.safetensors")):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:_DIGITS]
        if not path.stem.endswith(digest):
            log.warning("the saved replies in %s are damaged; they are sampled again", path)
            continue
        try:
            with safe_open(path, "pt") as file:
                if (file.metadata() or {}).get("prompts") != _key(repeated):
                    continue
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            log.warning("the saved replies in %s cannot be read (%s); they are sampled again", path, error)
            continue
        return _rollouts(found, repeated, encoder, sampling), found["scores"].numpy()
    return None


def drop(folder: Path, until: int) -> None:
    """Remove the files of iterations up to `until`, and drafts of any."""
    for path in folder.glob("rollouts-*.safetensors"):
        if int(path.stem.split("-")[1]) <= until:
            path.unlink(missing_ok=True)
    for path in folder.glob(".rollouts-*.draft"):
        path.unlink(missing_ok=True)


def _rollouts(found: dict[str, torch.Tensor], prompts: Sequence[Prompt], encoder: Encoder, sampling: Sampling) -> list[Rollout]:
    lengths = found["lengths"].tolist()
    ids, logprobs = (found[name].split(lengths) for name in ("ids", "logprobs"))
    before = {p.id: encoder.prompt_ids(p.messages) for p in prompts}
    return [
        rollout(encoder, p, before[p.id], ids[i].tolist(), logprobs[i].tolist(), bool(found["finished"][i]), sampling.stop)
        for i, p in enumerate(prompts)
    ]


def _key(prompts: Sequence[Prompt]) -> str:
    return content_hash([p.id for p in prompts])
