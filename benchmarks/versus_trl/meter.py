"""CPU time and memory of this process, measured the same way on both sides; standard library only.

CPU-seconds are user and system time of the process and of children it has waited for. Memory is the kernel's own account
(VmRSS, VmHWM in /proc/self/status): ru_maxrss of a fresh process would begin with its parent's peak.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def cpu_seconds() -> float:
    """User and system time so far."""
    parts = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in parts)


def memory_mib(field: str) -> float:
    """VmRSS (now) or VmHWM (peak) in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field + ":")).split()[1]) / 1024


class Meter:
    """What the optimiser steps of a training took.

    Call `begin` before the first step and `step` after each one; what happens inside `paused` counts as if it had not.
    """

    def __init__(self) -> None:
        self._cpu: list[float] = []
        self._wall: list[float] = []
        self._cpu_out = self._wall_out = 0.0
        self._before_mib = 0.0
        self._peak_mib: list[float] = []

    def begin(self) -> None:
        self._before_mib = memory_mib("VmRSS")
        self._mark()

    def step(self) -> None:
        self._mark()
        self._peak_mib.append(memory_mib("VmHWM"))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """For evaluations between two steps."""
        cpu, wall = cpu_seconds(), time.monotonic()
        yield
        self._cpu_out += cpu_seconds() - cpu
        self._wall_out += time.monotonic() - wall

    def _mark(self) -> None:
        self._cpu.append(cpu_seconds() - self._cpu_out)
        self._wall.append(time.monotonic() - self._wall_out)

    def found(self, per_step: float, first: int = 0, last: int = 0) -> dict[str, Any]:
        """What the steps after the first `first` ones took, up to and with step `last` (all if 0), and all steps one by one.

        Args:
            per_step: rankings (or their worth of pairs) in a step.
            first: steps that do not count: buffers are allocated, code is loaded.
            last: the step after which nothing counts: what follows may hold the saving of the model.
        """
        last = last or len(self._peak_mib)
        rankings = (last - first) * per_step
        return {
            "rankings": rankings,
            "cpu_s": (self._cpu[last] - self._cpu[first]) / rankings,
            "wall_s": (self._wall[last] - self._wall[first]) / rankings,
            "peak_mib": self._peak_mib[last - 1],
            "before_mib": self._before_mib,
            "cpu_s_by_step": [mark - self._cpu[0] for mark in self._cpu[1:]],
        }
