"""What a process that tunes a policy really did, counted the same way on both sides; needs torch only.

Tokens are counted where every model reads them, at its embedding table, padding included: with gradient (the update) and without
(sampling, log-probabilities, rewards, reference). Optimiser steps are counted by torch's own hook. Neither costs anything that
could be measured.
"""

from __future__ import annotations

from typing import Any


class Counter:
    """Counts from the moment it is made; `mark` at the end of every iteration."""

    def __init__(self) -> None:
        import torch
        from torch.optim.optimizer import register_optimizer_step_post_hook

        self.now = {"optimizer_steps": 0, "read_with_gradient": 0, "read_without": 0}
        self._marks: list[dict[str, int]] = []
        register_optimizer_step_post_hook(self._stepped)
        embedding = torch.nn.functional.embedding

        def counted(ids: Any, *args: Any, **kwargs: Any) -> Any:
            name = "read_with_gradient" if torch.is_grad_enabled() else "read_without"
            self.now[name] += ids.numel()
            return embedding(ids, *args, **kwargs)

        torch.nn.functional.embedding = counted

    def _stepped(self, *_: Any) -> None:
        self.now["optimizer_steps"] += 1

    def mark(self) -> None:
        """An iteration begins (the first call) or ends (all others)."""
        self._marks.append(dict(self.now))

    def found(self, first: int, last: int) -> dict[str, float]:
        """Means per iteration over the iterations after the first `first` ones, up to and with number `last`."""
        a, b = self._marks[first], self._marks[last]
        return {name: (b[name] - a[name]) / (last - first) for name in a}
