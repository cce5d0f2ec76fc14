"""What this machine offers to Starling: interpreter, installed parts and their versions, cores, memory, accelerators."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from typing import Any

PARTS: dict[str, tuple[str, ...]] = {
    "everything": ("aiohttp", "jinja2", "matplotlib", "numpy", "pyarrow", "pydantic", "rich", "typer"),
    "train": ("torch", "transformers", "accelerate", "safetensors", "tokenizers", "peft"),
}
"""Distributions by the part of Starling that needs them; `train` is also an extra of that name."""


def describe() -> list[dict[str, Any]]:
    """Rows of {"what", "state", "found", "needed for"}; state is ok, missing or absent (fine without)."""
    from starling import __version__

    rows = [
        _row("starling", "ok", __version__, "everything"),
        _row("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}", "everything"),
        _row("cores", "ok", str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()), "speed"),
    ]
    for part, names in PARTS.items():
        for name in names:
            try:
                rows.append(_row(name, "ok", importlib.metadata.version(name), part))
            except importlib.metadata.PackageNotFoundError:
                rows.append(_row(name, "missing", f'pip install "starling-rlaif[{part}]"' if part == "train" else "", part))
    rows.append(_accelerator())
    return rows


def _row(what: str, state: str, found: str, needed: str) -> dict[str, Any]:
    return {"what": what, "state": state, "found": found, "needed for": needed}


def _accelerator() -> dict[str, Any]:
    if importlib.util.find_spec("torch") is None:
        return _row("accelerator", "absent", "unknown without torch", "speed")
    import torch

    if not torch.cuda.is_available():
        return _row("accelerator", "absent", f"none; torch uses {torch.get_num_threads()} CPU threads", "speed")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return _row("accelerator", "ok", ", ".join(names), "speed")
