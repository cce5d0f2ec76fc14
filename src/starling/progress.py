"""Progress of long work: a rate, the time left and a short note, on stderr.

Whoever knows the total calls `start` and `finish`; whoever does the work is handed the object and only calls
`advance`. On a terminal that is a rich progress bar; elsewhere (logs, CI) one plain line every few seconds. rich is
imported when the first bar is drawn, so that the command starts quickly.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as RichBar
    from rich.progress import TaskID


class Progress(Protocol):
    """What a stage reports to. One piece of work at a time; starting another one finishes the first."""

    def start(self, what: str, total: int) -> None:
        """Begin `total` units of the work named `what`, e.g. ("respond", 14000); 0 when nobody knows how many."""

    def advance(self, n: int = 1, note: str = "") -> None:
        """`n` more units are done; `note` (e.g. "3 failed") replaces the last note unless it is empty."""

    def finish(self) -> None:
        """The work is over, complete or not. Calling it twice is harmless."""


class Silent(Progress):
    """Reports nothing."""

    def start(self, what: str, total: int) -> None:
        return None

    def advance(self, n: int = 1, note: str = "") -> None:
        return None

    def finish(self) -> None:
        return None


SILENT = Silent()


class RichProgress(Progress):
    """A bar on a terminal, else a plain line every `every_s` seconds and one at the end.

    Args:
        stream: where to write; stderr when None.
        every_s: seconds between plain lines.
    """

    def __init__(self, stream: TextIO | None = None, every_s: float = 5.0) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._every_s = every_s
        self._bar: RichBar | None = None
        self._task: TaskID | None = None
        self._what = ""
        self._total = 0
        self._done = 0
        self._note = ""
        self._started = 0.0
        self._printed = 0.0

    def start(self, what: str, total: int) -> None:
        self.finish()
        self._what, self._total, self._done, self._note = what, total, 0, ""
        self._started = self._printed = time.monotonic()
        if self._stream.isatty():
            self._bar = _make_bar(self._stream)
            self._task = self._bar.add_task(what, total=total or None, rate="", note="")
            self._bar.start()

    def advance(self, n: int = 1, note: str = "") -> None:
        if not self._what:
            return
        self._done += n
        self._note = note or self._note
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=n, note=self._note, rate=self._rate())
        elif time.monotonic() - self._printed >= self._every_s:
            self._printed = time.monotonic()
            self._line(f"{self._left()} left")

    def finish(self) -> None:
        if not self._what:
            return
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._task = None
        elif self._total or self._done:  # nothing to do is no news
            self._line(f"in {_seconds(time.monotonic() - self._started)}")
        self._what = ""

    def _rate(self) -> str:
        return f"{_short(self._done / max(time.monotonic() - self._started, 1e-6))}/s"

    def _left(self) -> str:
        if not self._done or not self._total:
            return "?"
        return _seconds((time.monotonic() - self._started) / self._done * max(self._total - self._done, 0))

    def _line(self, end: str) -> None:
        of = f"/{self._total:,} ({100 * self._done / self._total:.0f} %)" if self._total else ""
        parts = [f"{self._what}: {self._done:,}{of}", self._rate(), end, self._note]
        print(" · ".join(p for p in parts if p), file=self._stream, flush=True)


def _make_bar(stream: TextIO) -> RichBar:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichBar

    return RichBar(
        TextColumn("[bold]{task.description:<12}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:>9}", style="cyan"),
        TimeElapsedColumn(),
        TextColumn("left", style="dim"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", style="dim", markup=False),
        console=Console(file=stream),
        refresh_per_second=5,
    )


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def _seconds(seconds: float) -> str:
    """Seconds as a person would say them: 8 s, 3:05 min, 2:04 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60}:{whole % 60:02d} min" if whole < 3600 else f"{whole // 3600}:{whole % 3600 // 60:02d} h"
