"""Which engine the environment asks for: what `accelerate launch` makes of the shipped files, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

from starling.config import OptimizerSection
from starling.errors import ConfigError
from starling.training import checkpoint
from starling.training.engine import Engine, kind_of
from starling.training.loop import make_accelerator
from starling.training.trained import TrainedWeights

CONFIGS = Path(__file__).parents[2] / "configs" / "accelerate"
SETTINGS = OptimizerSection(learning_rate=0.1, warmup_fraction=0.0)


def environment(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What `accelerate launch --config_file …` gives to each process."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    given = ["--config_file", str(CONFIGS / name), "-m", "starling", "train-reward", "x.toml"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(given))
    assert args.num_processes == 8
    args.deepspeed_fields_from_accelerate_config = ""  # the launcher sets it on its way
    return dict(prepare_deepspeed_cmd_env(args)[1] if args.use_deepspeed else prepare_multi_gpu_env(args))


@pytest.mark.parametrize(
    ("name", "kind", "stage"),
    [
        ("ddp.yaml", "ddp", None),
        ("fsdp2.yaml", "fsdp2", None),
        ("deepspeed_zero1.yaml", "deepspeed", "1"),
        ("deepspeed_zero3.yaml", "deepspeed", "3"),
    ],
)
def test_the_shipped_files_mean_what_they_say(name: str, kind: str, stage: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    made = environment(name, monkeypatch)
    for variable in ("ACCELERATE_USE_FSDP", "FSDP_VERSION", "FSDP_OFFLOAD_PARAMS", "ACCELERATE_USE_DEEPSPEED"):
        monkeypatch.delenv(variable, raising=False)
        if variable in made:
            monkeypatch.setenv(variable, made[variable])
    assert kind_of(8) == kind
    assert made.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == stage
    assert load_config_from_file(str(CONFIGS / name)).mixed_precision == "no"  # reward.precision decides
    header = (CONFIGS / name).read_text(encoding="utf-8")
    assert header.startswith("#")
    assert f"accelerate launch --config_file configs/accelerate/{name} -m starling train-reward CONFIG" in header


def test_there_are_no_other_files() -> None:
    assert sorted(p.name for p in CONFIGS.iterdir()) == ["ddp.yaml", "deepspeed_zero1.yaml", "deepspeed_zero3.yaml", "fsdp2.yaml"]


@pytest.mark.parametrize(
    ("variables", "what"),
    [({"FSDP_VERSION": "1"}, "FSDP version 1"), ({"FSDP_OFFLOAD_PARAMS": "true"}, "in host memory")],
)
def test_what_is_not_supported_is_refused(variables: dict[str, str], what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ACCELERATE_USE_FSDP": "true", **variables}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=what):
        kind_of(2)
    assert kind_of(1) == "single"


class TestUpdate:
    def engine(self, **changes: Any) -> tuple[torch.nn.Linear, Engine]:
        module = torch.nn.Linear(2, 2, bias=False)
        torch.nn.init.zeros_(module.weight)
        return module, Engine(module, make_accelerator(), SETTINGS.model_copy(update=changes), 4)

    def test_the_gradient_is_clipped_and_cleared(self) -> None:
        module, engine = self.engine(max_grad_norm=2.0)
        clipped: list[torch.Tensor] = []
        engine.optimizer.register_step_pre_hook(lambda *_: clipped.append(module.weight.grad.clone()))  # type: ignore[union-attr]
        module.weight.grad = torch.full((2, 2), 5.0)
        assert engine.update() == (pytest.approx(10.0), pytest.approx(0.1))
        torch.testing.assert_close(clipped[0], torch.full((2, 2), 1.0))  # norm 10 to 2
        torch.testing.assert_close(module.weight.detach(), torch.full((2, 2), -0.1))  # Adam's first step
        assert module.weight.grad is None

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_one_that_is_not_finite_changes_nothing(self, bad: float) -> None:
        module, engine = self.engine()
        module.weight.grad = torch.tensor([[1.0, bad], [0.0, 0.0]])
        with pytest.raises(Exception, match="not finite"):
            engine.update()
        assert torch.equal(module.weight.detach(), torch.zeros(2, 2))
        assert engine.scheduler.last_epoch == 0

    def test_muon_is_refused_where_matrices_are_spread(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
        monkeypatch.setattr("starling.training.engine.kind_of", lambda ranks: "fsdp2")
        with pytest.raises(ConfigError, match="Muon needs whole matrices"):
            self.engine(type="muon")


class Two(torch.nn.Module):
    """A policy and a critic of one weight matrix and one bias each, all zero."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = torch.nn.Sequential(torch.nn.Linear(2, 1))  # a layer, as Muon knows them: a number in its name
        self.critic = torch.nn.Linear(2, 1)
        for parameter in self.parameters():
            torch.nn.init.zeros_(parameter)


class TestParts:
    """A critic with a rate, a schedule and a clipping of its own beside a policy."""

    def engine(self, kind: str = "adamw", apart: bool = True) -> tuple[Two, Engine]:
        module = Two()
        policy = OptimizerSection(type=kind, learning_rate=0.1, warmup_fraction=0.0, schedule="linear", max_grad_norm=1.0)  # type: ignore[arg-type]
        critic = OptimizerSection(learning_rate=0.01, warmup_fraction=0.0, max_grad_norm=1.0)
        return module, Engine(module, make_accelerator(), policy, 4, {"critic": (critic, 4)} if apart else None)

    def fill(self, module: Two, policy: float, critic: float) -> None:
        for part, value in ((module.policy, policy), (module.critic, critic)):
            for parameter in part.parameters():
                parameter.grad = torch.full_like(parameter, value)

    def test_each_has_its_rate_and_its_norm(self) -> None:
        module, engine = self.engine()
        self.fill(module, 3.0, 1.0)
        assert engine.update() == (pytest.approx(3 * 3**0.5), pytest.approx(0.1))
        assert engine.norms == {"": pytest.approx(3 * 3**0.5), "critic": pytest.approx(3**0.5)}
        assert engine.rates == {"": pytest.approx(0.1), "critic": pytest.approx(0.01)}
        # Adam's first step is the rate, whatever the gradient
        assert module.policy[0].weight[0, 0].item() == pytest.approx(-0.1)
        assert module.critic.weight[0, 0].item() == pytest.approx(-0.01)
        self.fill(module, 1.0, 1.0)
        engine.update()
        assert engine.rates == {"": pytest.approx(0.075), "critic": pytest.approx(0.01)}  # linear, and constant

    def test_each_is_clipped_by_itself(self) -> None:
        module, engine = self.engine()
        clipped: list[float] = []
        engine.optimizer.register_step_pre_hook(
            lambda *_: clipped.extend([module.policy[0].bias.grad.item(), module.critic.bias.grad.item()])  # type: ignore[union-attr]
        )
        self.fill(module, 3.0, 0.1)
        engine.update()
        assert clipped == [pytest.approx(1 / 3**0.5), pytest.approx(0.1)]  # norm 3√3 to 1; norm 0.1√3 as it is

    def test_a_part_can_stay_as_it_is(self) -> None:
        module, engine = self.engine()
        self.fill(module, 3.0, 1.0)
        engine.update(without=[""])
        assert module.policy[0].weight.abs().sum().item() == 0.0
        assert module.critic.weight[0, 0].item() == pytest.approx(-0.01)
        assert engine.norms == {"critic": pytest.approx(3**0.5)}
        self.fill(module, 3.0, 1.0)
        engine.update()
        assert module.policy[0].weight[0, 0].item() == pytest.approx(-0.075)  # a first step: nothing of the one left out remains

    def test_what_is_frozen_is_no_part(self) -> None:
        module = Two()
        module.policy.requires_grad_(False)
        engine = Engine(module, make_accelerator(), SETTINGS, 4)
        self.fill(module, 0.0, 1.0)
        engine.update()
        assert list(engine.norms) == [""]
        assert set(engine.tensors()) == {"critic.weight", "critic.bias"}

    @pytest.mark.parametrize("kind", ["adamw", "muon"])
    def test_its_state_goes_on_bit_for_bit(self, kind: str, tmp_path: Path) -> None:
        def steps(engine: Engine, module: Two, numbers: range) -> None:
            for n in numbers:
                self.fill(module, 1.0 + n, 0.5 * n)
                engine.update()

        module, engine = self.engine(kind)
        steps(engine, module, range(4))
        first, its = self.engine(kind)
        steps(its, first, range(2))
        path = checkpoint.save(tmp_path, 2, {"weights": its}, its.states, {})
        again, going_on = self.engine(kind)
        checkpoint.load(path, {"weights": TrainedWeights(again)}, going_on.states)
        steps(going_on, again, range(2, 4))
        for name, value in module.state_dict().items():
            assert torch.equal(value, again.state_dict()[name]), name

    def test_alone_it_is_as_without_parts(self) -> None:
        module, engine = self.engine(apart=False)
        other, plain = self.engine(apart=False)
        self.fill(module, 3.0, 3.0)
        self.fill(other, 3.0, 3.0)
        assert engine.update() == plain.update()
        assert list(engine.norms) == [""]

    def test_weights_are_copied_into_a_whole_module(self) -> None:
        module, engine = self.engine()
        torch.nn.init.ones_(module.policy[0].weight)
        target = torch.nn.Linear(2, 1)
        engine.copy_into(target, "policy.0.")
        assert torch.equal(target.weight, module.policy[0].weight)
        assert torch.equal(target.bias, module.policy[0].bias)
