"""Weights handed over through a folder: a transformers folder per version, there whole or not at all.

    WEIGHTS/version-00000012-5f0c9b1d2e3a4b67/   config.json, model.safetensors or shards with an index

Low-rank adapters are merged into the copy that is written, not in the model: the servers need no LoRA of their own, whose ranks
and modules they limit and which makes sampling slower, and one way of updating serves everything that is trained. The price is
the whole model's bytes per iteration (7B in bf16: 13.5 GB). Spread weights (FSDP2) are gathered tensor by tensor; every
process takes part and the first one keeps them.

A folder is filled under a hidden name and renamed; those of earlier versions are removed once every server has the new one.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from starling.errors import ConfigError, EndpointError
from starling.models.load import save_weights

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_NAME = re.compile(r"\.?version-\d{8}-[0-9a-f]{16}")


def folder_of(weights: Path, version: int, identity: str) -> Path:
    """Where a version's weights lie; `identity` tells apart runs that share the folder."""
    return weights / f"version-{version:08d}-{identity}"


@torch.no_grad()
def whole_weights(policy: nn.Module, dtype: str, *, keep: bool) -> dict[str, torch.Tensor]:
    """The policy's weights as its class names them, on the CPU, tied ones once, adapters merged in.

    Args:
        policy: a transformers model, with adapters in place or without, its weights spread over processes or not.
        dtype: "bf16", "fp16" or "fp32".
        keep: False on processes that only help to gather; they get {}.

    Raises:
        ConfigError: DeepSpeed ZeRO-3 holds the weights.
    """
    if any(hasattr(parameter, "ds_id") for parameter in policy.parameters()):
        raise ConfigError(
            "DeepSpeed ZeRO-3 spreads the policy's weights, and they are not gathered for inference servers",
            where="policy.engine",
            cure="start with FSDP2 (configs/accelerate/fsdp2.yaml), or with ZeRO-1 or 2",
        )
    found: dict[str, torch.Tensor] = {}
    deltas = dict(_deltas(policy))
    tied = {n for n, _ in policy.named_parameters(remove_duplicate=False)} - {n for n, _ in policy.named_parameters()}
    for name, tensor in policy.state_dict().items():
        if ".lora_" in name or name in tied or not isinstance(tensor, torch.Tensor):
            continue
        whole = _gathered(tensor)
        if name in deltas:
            whole = whole.float() + _gathered(deltas[name]).float()
        if keep:
            kept = whole.to(DTYPES[dtype]) if whole.is_floating_point() else whole
            found[name.replace(".base_layer.", ".")] = kept.detach().cpu().contiguous()
    return found


def hand_over(folder: Path, policy: Any, tensors: dict[str, torch.Tensor]) -> None:
    """Write the weights and the policy's config to `folder`, atomically; what was there before under that name goes.

    Raises:
        EndpointError: the folder cannot be written.
    """
    draft = folder.with_name(f".{folder.name}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        save_weights(draft, policy, tensors)
        for path in (*draft.iterdir(), draft):
            _sync(path)
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)
        _sync(folder.parent)
    except OSError as error:
        raise EndpointError(
            f"The new weights cannot be written for the inference servers: {error}",
            where=str(folder),
            cure="give policy.engine.weights a folder with room for two copies of the model, which this user may write",
        ) from error


def remove_others(folder: Path) -> None:
    """Remove the other versions beside `folder`, and unfinished ones; whatever else lies there stays."""
    for other in folder.parent.iterdir():
        if other != folder and _NAME.fullmatch(other.name) and other.is_dir():
            shutil.rmtree(other, ignore_errors=True)


def check_folder(weights: Path) -> None:
    """Raises ConfigError when `weights` is there and is no folder."""
    if weights.exists() and not weights.is_dir():
        raise ConfigError(
            "The place where new weights are handed over is no folder",
            where=f"policy.engine.weights = {str(weights)!r}",
            cure="name a folder, or one that is not there yet",
        )


# ── inside ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _deltas(policy: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Name of the weight that each adapter changes, and what it adds to it; peft's layers, told by what they have."""
    for name, module in policy.named_modules():
        if hasattr(module, "base_layer") and hasattr(module, "get_delta_weight") and not getattr(module, "merged", False):
            for adapter in module.active_adapters:
                if adapter in module.lora_A or adapter in module.lora_embedding_A:
                    yield f"{name}.base_layer.weight", module.get_delta_weight(adapter)


def _gathered(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a tensor; a collective operation when it is spread (a DTensor)."""
    full = getattr(tensor, "full_tensor", None)
    return tensor if full is None else full()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
