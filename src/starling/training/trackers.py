"""The log in other programs: TensorBoard, Weights & Biases, trackio. Off unless the settings name them.

They get what log.jsonl gets, and speed and memory with it. Nothing leaves the machine unless the user says so in the
program's own way: W&B runs offline unless WANDB_MODE is set, trackio and TensorBoard write files.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from starling.errors import UsageError

_MODULES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "trackio": "trackio"}


class Tracker(Protocol):
    """Somebody who is shown numbers."""

    def log(self, numbers: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None: ...


def require(names: Sequence[str], where: str = "reward.trackers") -> None:
    """See that the trackers can be opened, before hours of work are done.

    Args:
        names: of the settings.
        where: the setting, for the message.

    Raises:
        UsageError: one is not installed.
    """
    for name in names:
        _module(_MODULES[name], name, where)


def open_trackers(names: Sequence[str], folder: Path, what: str, settings: Mapping[str, Any]) -> list[Tracker]:
    """Start the trackers named.

    Args:
        names: of the settings.
        folder: where they keep their files; made when missing.
        what: name of the training, e.g. "reward".
        settings: shown beside the curves.

    Raises:
        UsageError: one is not installed.
    """
    if names:
        folder.mkdir(parents=True, exist_ok=True)
    return [_OPEN[name](folder, what, settings) for name in names]


def _module(name: str, tracker: str, where: str = "") -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(
            f"The tracker {tracker} is not installed ({error})",
            where=where or "trackers",
            cure=f"pip install {tracker}, or leave it out: log.jsonl has the same numbers",
        ) from None


class _TensorBoard:
    def __init__(self, folder: Path, what: str, settings: Mapping[str, Any]) -> None:
        self._writer = _module(_MODULES["tensorboard"], "tensorboard").SummaryWriter(str(folder / "tensorboard"))
        self._writer.add_text("settings", "\n".join(f"{k} = {v}" for k, v in settings.items()))

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, folder: Path, what: str, settings: Mapping[str, Any]) -> None:
        os.environ.setdefault("WANDB_MODE", "offline")
        self._run = _module("wandb", "wandb").init(project="starling", name=what, dir=str(folder), config=dict(settings))

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    def __init__(self, folder: Path, what: str, settings: Mapping[str, Any]) -> None:
        os.environ.setdefault("TRACKIO_DIR", str(folder / "trackio"))
        self._trackio = _module("trackio", "trackio")
        self._trackio.init(project="starling", name=what, config=dict(settings))

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self._trackio.log(dict(numbers), step=step)

    def close(self) -> None:
        self._trackio.finish()


_OPEN: dict[str, Callable[[Path, str, Mapping[str, Any]], Tracker]] = {
    "tensorboard": _TensorBoard,
    "wandb": _Wandb,
    "trackio": _Trackio,
}
