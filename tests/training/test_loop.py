"""Learning-rate schedules by hand, weight decay groups, clipping, refusal of non-finite gradients."""

import pytest
import torch

from starling.config import OptimizerSection
from starling.errors import TrainingError
from starling.training.loop import apply_step, make_accelerator, make_optimizer, schedule_factor, set_determinism


def factors(schedule: str, warmup: float, total: int) -> list[float]:
    settings = OptimizerSection(learning_rate=1.0, schedule=schedule, warmup_fraction=warmup)  # type: ignore[arg-type]
    return [schedule_factor(step, settings, total) for step in range(total)]


def test_schedules_by_hand() -> None:
    assert factors("constant", 0.4, 5) == [0.5, 1.0, 1.0, 1.0, 1.0]
    assert factors("linear", 0.25, 4) == pytest.approx([1.0, 1.0, 2 / 3, 1 / 3])
    assert factors("cosine", 0.0, 4) == pytest.approx([1.0, 0.8535534, 0.5, 0.1464466])
    assert factors("constant", 1.0, 4) == [0.25, 0.5, 0.75, 1.0]
    assert factors("cosine", 0.05, 1) == [1.0]


def test_optimizer_follows_the_schedule_and_decays_matrices_only() -> None:
    model = torch.nn.Linear(3, 2)
    settings = OptimizerSection(learning_rate=0.5, schedule="linear", warmup_fraction=0.0, weight_decay=0.1, betas=(0.8, 0.9))
    optimizer, scheduler = make_optimizer(model.parameters(), settings, 2)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    scheduler.step()
    torch.testing.assert_close(model.weight, before["weight"] * (1 - 0.5 * 0.1))
    torch.testing.assert_close(model.bias, before["bias"])
    assert scheduler.get_last_lr() == [0.25, 0.25]
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.9)


def test_gradient_is_clipped_and_cleared() -> None:
    weight = torch.nn.Parameter(torch.zeros(2, 2))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    weight.grad = torch.full((2, 2), 5.0)
    assert apply_step(make_accelerator(), [weight], optimizer, scheduler, 2.0) == pytest.approx(10.0)
    torch.testing.assert_close(weight.detach(), torch.full((2, 2), -1.0))
    assert weight.grad is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_gradient_changes_nothing(bad: float) -> None:
    weight = torch.nn.Parameter(torch.zeros(2, 2))
    optimizer, scheduler = make_optimizer([weight], OptimizerSection(learning_rate=1.0), 3)
    weight.grad = torch.tensor([[1.0, bad], [0.0, 0.0]])
    with pytest.raises(TrainingError, match="not finite"):
        apply_step(make_accelerator(), [weight], optimizer, scheduler, 1.0)
    assert torch.equal(weight.detach(), torch.zeros(2, 2))


def test_determinism_seeds_all_generators() -> None:
    import random

    import numpy as np

    def draw() -> tuple[float, float, float]:
        set_determinism(3)
        return random.random(), float(np.random.random()), float(torch.rand(()))

    assert draw() == draw()
