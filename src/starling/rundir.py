"""The run directory as a place: one process at a time, and how long each stage has taken over all its restarts.

    runs/tiny/
      <stage>/        one folder per finished stage, with manifest.json (starling.artifacts)
      journal.sqlite  every model call (starling.journal)
      config.json     the settings of the newest run
      summary.json    the newest evaluation in a few numbers
      .work/          checkpoints of unfinished stages, and the seconds they have taken
      .lock           present while a process works here

Several processes of one training count as one: the first of them holds the directory, the others only help (`launched`).

The lock is `flock` on .lock: the kernel releases it when the process dies, however it dies, so a file left behind by a
killed process locks nothing.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starling.errors import UsageError

JOURNAL_FILE = "journal.sqlite"
LOCK_FILE = ".lock"
WORK_FOLDER = ".work"


@dataclass(frozen=True)
class Launched:
    """Which of several processes of one training this is, e.g. Launched(rank=0, count=8)."""

    rank: int
    count: int

    @property
    def first(self) -> bool:
        """Whether it is the one that writes, and talks to people."""
        return self.rank == 0


def launched() -> Launched:
    """As torchrun or `accelerate launch` started this process; alone without them."""
    try:
        return Launched(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    except (KeyError, ValueError):
        return Launched(0, 1)


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Hold the run directory, making it when missing; on the way out remove whatever of it is still empty.

    Raises:
        UsageError: another process works here, or the directory cannot be made or written.
    """
    made = [folder for folder in (run_dir, *run_dir.parents) if not folder.exists()]
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        handle = _take(run_dir / LOCK_FILE)
    except OSError as error:
        remove_empty(made)
        raise UsageError(
            f"The run directory cannot be written: {error.strerror}",
            where=str(run_dir),
            cure="choose another one with --set run.dir=… or correct its permissions",
        ) from None
    try:
        yield
    finally:
        remove_empty([run_dir / WORK_FOLDER])
        (run_dir / LOCK_FILE).unlink(missing_ok=True)
        os.close(handle)
        remove_empty(made)


def _take(path: Path) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(handle, 32).decode("ascii", "replace").strip()
            os.close(handle)
            raise UsageError(
                f"Another starling process{f' (pid {holder})' if holder else ''} is working in this run directory",
                where=str(path.parent),
                cure="wait for it, stop it, or give this run a directory of its own with --set run.dir=…",
            ) from None
        # Between open and flock the former holder may have removed the file: then this lock is on a name that is gone.
        if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
            os.ftruncate(handle, 0)
            os.write(handle, str(os.getpid()).encode())
            return handle
        os.close(handle)


def remove_empty(folders: list[Path]) -> None:
    """Remove those folders that are there and empty, in the order given."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            continue


class Stopwatch:
    """Seconds spent on one piece of work, kept in a file, so that a killed process loses at most one second of it.

    Use as a context manager. `seconds` may be read at any time; `forget` removes the file.
    """

    def __init__(self, path: Path, every_s: float = 1.0) -> None:
        self._path = path
        self._every_s = every_s
        self._before = self._read()
        self._started = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._tick, daemon=True)

    @property
    def seconds(self) -> float:
        """Seconds so far, those of earlier processes included."""
        return self._before + time.monotonic() - self._started

    def __enter__(self) -> Stopwatch:
        self._started = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def forget(self) -> None:
        """The work is finished or was never started in earnest: nothing is to be remembered."""
        self._stop.set()
        self._thread.join()
        self._path.unlink(missing_ok=True)

    def _read(self) -> float:
        try:
            return max(0.0, float(self._path.read_text()))
        except (OSError, ValueError):
            return 0.0

    def _tick(self) -> None:
        while not self._stop.wait(self._every_s):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            draft = self._path.with_suffix(".new")
            draft.write_text(f"{self.seconds:.3f}")
            draft.replace(self._path)


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file in one step."""
    draft = path.with_suffix(".json.new")
    draft.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    draft.replace(path)
