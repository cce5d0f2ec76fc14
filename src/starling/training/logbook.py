"""What a training says while it goes on: a log that can be cut back to a checkpoint, its speed, and trackers.

    log.jsonl    depends on data, settings and seed only: the same bytes from every run, killed or not
    speed.jsonl  seconds, tokens per second, memory; differs from run to run

Written by the first process only; the others hold an object that writes nothing.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from starling.errors import TrainingError
from starling.training.trackers import Tracker

LOG_FILE, SPEED_FILE = "log.jsonl", "speed.jsonl"


class Logbook:
    """Use as a context manager.

    Args:
        folder: of the work in progress; must be there.
        first: whether this process writes.
        at: bytes of the log that the checkpoint was saved with; what was written after it is cut off.
        trackers: are shown the numbers; closed at the end, whatever ends the training.

    Raises:
        TrainingError: the log is shorter than the checkpoint says.
    """

    def __init__(self, folder: Path, first: bool, at: int, trackers: Sequence[Tracker] = ()) -> None:
        self.folder, self._first = folder, first
        self._trackers = trackers if first else ()
        self._log = (folder / LOG_FILE if first else Path(os.devnull)).open("ab")
        if first:
            if self._log.tell() < at:
                self._log.close()
                raise TrainingError(
                    "Lines of the log are gone that the checkpoint was saved with",
                    where=str(folder / LOG_FILE),
                    cure="restore the file, or delete the folder of checkpoints to start this training anew",
                )
            self._log.truncate(at)
            self._log.seek(0, os.SEEK_END)

    def __enter__(self) -> Logbook:
        return self

    def __exit__(self, *exception: object) -> None:
        self._log.close()
        for tracker in self._trackers:  # what they hold back would be lost with an interruption
            tracker.close()

    def write(self, row: Mapping[str, Any]) -> None:
        """A line of the log."""
        self._log.write(json.dumps(row).encode() + b"\n")

    def speed(self, row: Mapping[str, Any]) -> None:
        """A line of the speed file."""
        if self._first:
            with (self.folder / SPEED_FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def show(self, numbers: Mapping[str, float], step: int) -> None:
        """To the trackers."""
        for tracker in self._trackers:
            tracker.log(numbers, step)

    def saved(self) -> int:
        """Bytes of the log, which are on the disk when this returns; 0 where nothing is written."""
        if not self._first:
            return 0
        self._log.flush()
        os.fsync(self._log.fileno())
        return self._log.tell()

    def rows(self) -> list[dict[str, Any]]:
        """All lines so far; none where nothing is written."""
        if not self._first:
            return []
        self._log.flush()
        return [json.loads(line) for line in (self.folder / LOG_FILE).read_text(encoding="utf-8").splitlines()]


def memory_mib(device: torch.device) -> float:
    """Most memory in use so far: the device's, or this process's."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device)) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 1024)
