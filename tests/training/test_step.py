"""A step's micro-batches: shares that add up, and memory that runs out in the middle."""

from __future__ import annotations

import logging
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from starling.config import OptimizerSection
from starling.errors import TrainingError
from starling.training.engine import Engine
from starling.training.interrupt import Interrupt
from starling.training.logbook import Logbook
from starling.training.loop import make_accelerator
from starling.training.step import OutOfMemory, accumulate, agreed


class Steps:
    """The weight w of w·x, x the item; memory for items up to `most`."""

    def __init__(self, most: int = 99) -> None:
        self.module = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.ones_(self.module.weight)
        self.engine = Engine(self.module, make_accelerator(), OptimizerSection(learning_rate=0.1, warmup_fraction=0.0), 4)
        self.most = most
        self.agreed: list[tuple[int, bool]] = []

    def loss_of(self, items: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        if len(items) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        loss = self.engine.model(torch.tensor([[float(i)] for i in items])).sum()
        return loss, torch.tensor([float(len(items))])

    def take(self, batches: Sequence[Sequence[int]], stop: bool = False) -> torch.Tensor:
        def agree(given: Sequence[Sequence[int]], losses: list[torch.Tensor], full: bool) -> None:
            self.agreed.append((len(losses), full))
            agreed(self.engine, losses, full, stop)

        return accumulate(self.engine, batches, self.loss_of, lambda: self.loss_of([0])[0], 2, agree)


def test_shares_add_up_however_the_step_is_cut() -> None:
    whole, cut = Steps(), Steps()
    assert whole.take([[1, 2, 3]]).tolist() == cut.take([[3], [1, 2], []]).tolist() == [6.0, 3.0]
    assert torch.equal(whole.module.weight.grad, cut.module.weight.grad)  # type: ignore[arg-type]
    assert whole.module.weight.grad is not None
    assert whole.module.weight.grad.item() == 6.0
    assert cut.agreed == [(3, False)]  # once, with the losses of all


@pytest.mark.parametrize("batches", [[[1], [2, 3, 4], [5]], [[2, 3, 4], [1]], [[1], [2, 3, 4]]])
def test_memory_that_runs_out_leaves_nothing_behind(batches: list[list[int]]) -> None:
    steps = Steps(most=2)
    with pytest.raises(OutOfMemory, match="micro_tokens"):
        steps.take(batches)
    assert steps.module.weight.grad is None
    assert steps.agreed[-1][1]
    assert steps.take([[1], [2, 3], [4], [5]]).tolist() == [15.0, 5.0]


def test_memory_that_runs_out_in_the_last_backward_pass_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps()

    def full(loss: torch.Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(steps.engine, "backward", full)
    with pytest.raises(OutOfMemory):
        steps.take([[1, 2]])


def test_where_weights_are_spread_it_cannot_be_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(most=1)
    monkeypatch.setattr(Engine, "spread", True)
    with pytest.raises(TrainingError, match="several processes share") as caught:
        steps.take([[1, 2]])
    assert not isinstance(caught.value, OutOfMemory)


def test_agreement_knows_what_is_wrong() -> None:
    engine = Steps().engine
    good, bad = torch.tensor(1.0), torch.tensor(float("inf"))
    assert agreed(engine, [good], False, False) == (False, False, False)
    assert agreed(engine, [good, bad], False, True) == (False, True, True)
    assert agreed(engine, [], False, False) == (False, False, False)
    with pytest.raises(OutOfMemory):
        agreed(engine, [bad], True, False)


def test_a_log_goes_on_where_the_checkpoint_says(tmp_path: Path) -> None:
    with Logbook(tmp_path, True, 0) as log:
        log.write({"n": 1})
        at = log.saved()
        log.write({"n": 2})
        assert log.rows() == [{"n": 1}, {"n": 2}]
    with Logbook(tmp_path, True, at) as log:
        log.write({"n": 3})
        assert log.rows() == [{"n": 1}, {"n": 3}]
    with pytest.raises(TrainingError, match="Lines of the log are gone"):
        Logbook(tmp_path, True, 10_000)
    with Logbook(tmp_path, False, 10_000) as log:  # another process writes nothing, and asks for nothing
        log.write({"n": 4})
        assert (log.saved(), log.rows()) == (0, [])
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2


def test_a_signal_is_heard_later_and_a_second_ctrl_c_at_once(caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    before = signal.getsignal(signal.SIGTERM)
    with Interrupt() as interrupt:
        assert not interrupt.asked
        signal.raise_signal(signal.SIGTERM)
        assert interrupt.asked
    assert signal.getsignal(signal.SIGTERM) is before
    with Interrupt() as interrupt:
        signal.raise_signal(signal.SIGINT)
        assert interrupt.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
