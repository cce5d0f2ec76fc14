"""SIGTERM and SIGINT as a wish that is heard at the next good moment, instead of a blow in the middle of a step."""

from __future__ import annotations

import signal
import threading
from typing import Any


class Interrupt:
    """Inside the context signals are remembered in `asked`; after a first Ctrl-C a second one interrupts at once.

    Outside the main thread, where signals do not arrive, nothing is changed.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()

    def _remember(self, number: int, frame: Any) -> None:
        self.asked = True
        if number == signal.SIGINT:  # a second Ctrl-C is meant
            self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
