"""Every algorithm raises a reward that is easy to raise: the share of a reply's tokens with an even number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from starling.policy.rewards import RewardModel
from starling.policy.rollout import Rollout
from tests.policy.small import lines, settings, tune


def even(self: Any, rollouts: Sequence[Rollout], *given: Any) -> Any:
    return np.array([sum(token % 2 == 0 for token in r.ids) / len(r.ids) for r in rollouts])


ALGORITHMS: dict[str, dict[str, Any]] = {
    "apa": {"algorithm": {"type": "apa", "lam": 0.1}},
    "apa initial": {"algorithm": {"type": "apa", "anchor": "initial", "lam": 0.1, "whiten": True}},
    "ppo": {"algorithm": {"type": "ppo"}},
    "p3o": {"algorithm": {"type": "p3o"}},
    "rloo": {"algorithm": {"type": "rloo", "whiten": True}},
}


@pytest.mark.parametrize(
    ("name", "samples"),
    [(name, samples) for name in ALGORITHMS for samples in (1, 4) if samples > 1 or name not in ("p3o", "rloo")],
)
def test_the_reward_rises(
    name: str, samples: int, backbone: Callable[..., Path], reward_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RewardModel, "score", even)
    rules = settings(
        **ALGORITHMS[name], iterations=8, rollouts=64, samples_per_prompt=samples, sampling={"max_tokens": 8}, epochs=2,
        optimizer={"learning_rate": 5e-3, "warmup_fraction": 0}, critic={"pretrain": 1, "learning_rate": 3e-3}, kl=0.0,
        shaping={"scale": "none", "unfinished": 10.0, "shift": 0.0}, eval_every=8, checkpoint_every=8, sample_batch=64,
        guard={"best_of": 0},
    )  # fmt: skip
    tune(backbone("llama"), reward_folder, tmp_path, "out", rules)
    rows = lines(tmp_path / "out")
    first, last = rows[1]["reward"], rows[-1]["reward"]
    assert 0.3 < first < 0.7
    assert last > first + 0.1
    assert rows[-1]["kl_reply"] > 0.1  # the price of it
