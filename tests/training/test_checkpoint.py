"""Resume is bitwise, saving is atomic, damage falls back, foreign checkpoints are refused."""

import json
import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from starling.config import OptimizerSection
from starling.errors import TrainingError
from starling.training import checkpoint
from starling.training.loop import apply_step, make_accelerator, make_optimizer, set_determinism


class Tied(torch.nn.Module):
    """A small network with dropout, a norm, a buffer and tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(20, 8)
        self.body = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.3))
        self.head = torch.nn.Linear(8, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids_B: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.embed(ids_B)))


class Run:
    """Training whose batches come from all three global generators, so that a lost state would show."""

    def __init__(self, folder: Path, total: int = 12) -> None:
        set_determinism(5, threads=1)
        self.folder = folder
        self.model = Tied().train()
        settings = OptimizerSection(learning_rate=0.01, weight_decay=0.1, warmup_fraction=0.3, schedule="cosine")
        self.optimizer, self.scheduler = make_optimizer(self.model.parameters(), settings, total)
        self.accelerator = make_accelerator()
        self.losses: list[float] = []

    def parts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"model": self.model}, {"optimizer": self.optimizer, "scheduler": self.scheduler}

    def go(self, steps: int) -> None:
        for _ in range(steps):
            ids_B = torch.tensor([random.randrange(20), int(np.random.randint(20)), int(torch.randint(20, ()))] * 3)
            loss = torch.nn.functional.cross_entropy(self.model(ids_B), ids_B.roll(1))
            self.accelerator.backward(loss)
            apply_step(self.accelerator, self.model.parameters(), self.optimizer, self.scheduler, 1.0)
            self.losses.append(loss.item())

    def save(self, step: int, **options: Any) -> Path:
        return checkpoint.save(self.folder, step, *self.parts(), {"losses": self.losses}, **options)

    def load(self, **options: Any) -> int:
        newest = checkpoint.latest(self.folder)
        assert newest is not None
        step, extra = checkpoint.load(newest, *self.parts(), **options)
        self.losses = extra["losses"]
        return step


def same_weights(a: Run, b: Run) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True))


def test_six_and_six_steps_are_twelve_bit_for_bit(tmp_path: Path) -> None:
    straight = Run(tmp_path / "a")
    straight.go(12)
    first = Run(tmp_path / "b")
    first.go(6)
    first.save(6)
    second = Run(tmp_path / "b")
    torch.rand(7), random.random(), np.random.random()  # the new process has drawn something else meanwhile
    assert second.load() == 6
    second.go(6)
    assert same_weights(straight, second)
    assert straight.losses == second.losses
    assert straight.scheduler.get_last_lr() == second.scheduler.get_last_lr()
    assert second.model.head.weight is second.model.embed.weight


def test_two_newest_are_kept_and_drafts_are_cleared(tmp_path: Path) -> None:
    run = Run(tmp_path)
    (tmp_path / ".draft-00000009").mkdir()  # left by a kill
    for step in (1, 2, 10):
        run.save(step)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000002", "step-00000010"]
    assert checkpoint.latest(tmp_path) == tmp_path / "step-00000010"
    assert checkpoint.latest(tmp_path / "nowhere") is None


def test_those_named_are_kept_and_no_others(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for step in (1, 2, 3, 9):  # 9: of a training that was killed and went back to 2
        run.save(step, keep=range(20))
    run.save(4, keep=[2])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000002", "step-00000004"]
    (tmp_path / "step-00000002" / "meta.json").write_text("{")
    assert checkpoint.extras(tmp_path) == [{"losses": []}]
    assert checkpoint.extras(tmp_path / "nowhere") == []


@pytest.mark.parametrize("victim", ["model.safetensors", "state.pt", "meta.json"])
@pytest.mark.parametrize("how", ["cut", "changed", "gone"])
def test_a_damaged_newest_falls_back_with_a_warning(
    victim: str, how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(tmp_path)
    run.go(1)
    run.save(1)
    run.go(1)
    file = run.save(2) / victim
    data = bytearray(file.read_bytes())
    if how == "gone":
        file.unlink()
    else:
        data[len(data) // 2] ^= 0xFF
        file.write_bytes(data[: len(data) // 2] if how == "cut" else data)
    if (victim, how) == ("meta.json", "changed"):
        file.write_text(json.dumps({"step": 2}))
    with caplog.at_level(logging.WARNING):
        assert checkpoint.latest(tmp_path) == tmp_path / "step-00000001"
    assert "step-00000002 is damaged" in caplog.text
    fresh = Run(tmp_path)
    assert fresh.load() == 1
    fresh.go(1)
    fresh.save(2)  # takes the place of the damaged one
    assert checkpoint.latest(tmp_path) == tmp_path / "step-00000002"
    assert same_weights(run, fresh)


def test_foreign_checkpoints_are_refused(tmp_path: Path) -> None:
    run = Run(tmp_path)
    path = run.save(3, key="settings A")
    modules, states = run.parts()
    with pytest.raises(TrainingError, match="other settings"):
        checkpoint.load(path, modules, states, key="settings B")
    with pytest.raises(TrainingError, match="wanted"):
        checkpoint.load(path, {"critic": run.model}, states, key="settings A")
    with pytest.raises(TrainingError, match="wanted"):
        checkpoint.load(path, modules, {"optimizer": run.optimizer}, key="settings A")
    with pytest.raises(TrainingError, match="does not fit the model"):
        checkpoint.load(path, {"model": torch.nn.Linear(2, 2)}, states, key="settings A")


def test_state_is_read_without_pickle(tmp_path: Path) -> None:
    state = torch.load(Run(tmp_path).save(1) / "state.pt", weights_only=True)
    assert set(state) == {"states", "random"}
