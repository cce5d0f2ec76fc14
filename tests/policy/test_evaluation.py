"""Evaluations of a tuning: what they hold, the weights that the rule keeps, the guard that stops, checks, trackers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from starling.errors import InputError, TrainingError
from starling.models.load import load_causal
from starling.policy import train as tuning
from starling.policy.evaluation import fixed_prompts
from starling.policy.metrics import SPEED_METRICS
from starling.policy.rewards import RewardModel
from starling.policy.rollout import Rollout
from tests.policy.small import PROMPTS, lines, settings, tune

Make = Callable[..., Path]
RUN = tuning.Evaluation.run


def test_validation_prompts_are_spread_and_always_the_same() -> None:
    assert fixed_prompts(PROMPTS, 4) == PROMPTS[::2]
    assert fixed_prompts(PROMPTS, 3) == [PROMPTS[0], PROMPTS[2], PROMPTS[4]]
    assert fixed_prompts(PROMPTS, 99) == PROMPTS


def test_an_evaluation_of_the_same_weights_is_the_same(backbone: Make, reward_folder: Path, tmp_path: Path) -> None:
    """The critic's own iterations leave the policy alone: so does the random stream of its evaluations."""
    rules = settings(iterations=2, eval_every=1, critic={"pretrain": 2}, guard={"model": str(reward_folder), "best_of": 3})
    tune(backbone("llama"), reward_folder, tmp_path, "out", rules)
    base, *later = lines(tmp_path / "out")
    numbers = {k: v for k, v in base.items() if k.startswith("eval/")}
    assert {"eval/score", "eval/guard", "eval/kl", "eval/length", "eval/greedy/gold", "eval/refusals", "eval/score_se"} <= set(
        numbers
    )
    for row in later:
        assert {k: v for k, v in row.items() if k in numbers} == numbers
    assert numbers["eval/guard"] == numbers["eval/score"]  # the same model
    assert numbers["eval/kl"] == pytest.approx(0.0, abs=1e-5)
    curve = json.loads((tmp_path / "out" / "best_of_n.json").read_text())
    assert (curve["prompts"], curve["replies"]) == (4, 3)
    assert {"score", "guard", "gold"} <= set(curve["curve"][0])


class Planned:
    """Scores of the evaluations' replies as a test wants them; rollouts score 0."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, proxy: Sequence[float], guard: Sequence[float]) -> None:
        self.asked: dict[str, int] = {}
        self.plan = {"proxy": proxy, "guard": guard}
        def score(model: Any, rollouts: Sequence[Rollout], *given: Any) -> Any:
            who = "guard" if model.name.endswith("guarding") else "proxy"
            at = self.asked.get("evaluation", 0)
            noise = np.arange(len(rollouts)) * 1e-6
            return noise if not self.asked.get("inside") else self.plan[who][at] + noise

        def run(evaluation: Any, *given: Any) -> dict[str, float]:
            self.asked["inside"] = 1
            found = RUN(evaluation, *given)
            self.asked = {"evaluation": self.asked.get("evaluation", 0) + 1}
            return found

        monkeypatch.setattr(RewardModel, "score", score)
        monkeypatch.setattr(tuning.Evaluation, "run", run)


@pytest.fixture
def guard_folder(reward_folder: Path, tmp_path: Path) -> str:
    folder = tmp_path / "guarding"
    folder.symlink_to(reward_folder)
    return str(folder)


def test_the_weights_that_the_rule_chose_become_the_artifact(
    backbone: Make, reward_folder: Path, tmp_path: Path, guard_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    common: dict[str, Any] = {
        "iterations": 5, "eval_every": 1, "checkpoint_every": 2, "critic": {"pretrain": 1, "learning_rate": 1e-2},
        "guard": {"model": guard_folder, "best_of": 0},
    }  # fmt: skip
    rule = settings(**common, selection={"keep": "rule", "longest": 9.0})
    Planned(monkeypatch, [0, 1, 2, 3, 4, 5], [0, 0, 1, 3, 2, 2])
    metrics = tune(backbone("llama"), reward_folder, tmp_path, "chosen", rule)
    assert metrics["guard"] == pytest.approx(3.0, abs=1e-4)
    choice = json.loads((tmp_path / "chosen" / "selection.json").read_text())
    assert (choice["iteration"], choice["outcome"]) == (3, "chosen")
    weights: dict[int, dict[str, torch.Tensor]] = {}
    real = tuning._Tuning._evaluate

    def watched(self: Any, row: dict[str, Any]) -> None:
        weights[row["iteration"]] = {k: v.clone() for k, v in self.learner.models.policy.state_dict().items()}
        real(self, row)

    monkeypatch.setattr(tuning._Tuning, "_evaluate", watched)
    Planned(monkeypatch, [0, 1, 2, 3, 4, 5], [0, 0, 1, 3, 2, 2])
    tune(backbone("llama"), reward_folder, tmp_path, "last", settings(**common))
    kept, last = (load_causal(tmp_path / name).state_dict() for name in ("chosen", "last"))
    assert all(torch.equal(kept[name], weights[3][name]) for name in kept)
    assert all(torch.equal(last[name], weights[5][name]) for name in last)
    assert any(not torch.equal(kept[name], last[name]) for name in kept)

    # killed after a better evaluation than that of the newest checkpoint, it goes on to the same choice
    monkeypatch.setattr(tuning._Tuning, "_evaluate", real)
    learn = tuning._Tuning._learn

    def dies(self: Any, rollouts: Any, rewards_B: Any, iteration: int) -> dict[str, float]:
        if iteration == 4:
            raise RuntimeError("killed")
        return learn(self, rollouts, rewards_B, iteration)

    monkeypatch.setattr(tuning._Tuning, "_learn", dies)
    planned = Planned(monkeypatch, [0, 1, 2, 3, 4, 5], [0, 0, 1, 3, 2, 2])
    with pytest.raises(RuntimeError, match="killed"):
        tune(backbone("llama"), reward_folder, tmp_path, "again", rule)
    monkeypatch.setattr(tuning._Tuning, "_learn", learn)
    planned.asked = {"evaluation": 3}  # the checkpoint is that of iteration 2
    tune(backbone("llama"), reward_folder, tmp_path, "again", rule)
    for file in ("model.safetensors", "log.jsonl", "selection.json"):
        assert (tmp_path / "chosen" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
    (tmp_path / "again-work" / "best" / "step-00000003" / "weights.safetensors").write_bytes(b"gone")
    with pytest.raises(TrainingError, match="iteration 3, which the rule keeps, cannot be read"):
        tune(backbone("llama"), reward_folder, tmp_path, "again", rule)


def test_choosing_an_iteration_of_the_critic_alone_gives_the_base(
    backbone: Make, reward_folder: Path, tmp_path: Path, guard_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Planned(monkeypatch, [0, 1, 2, 3], [0, 5, 1, 1])
    rules = settings(
        iterations=3, eval_every=1, guard={"model": guard_folder, "best_of": 0}, selection={"keep": "rule", "longest": 9.0}
    )
    tune(backbone("llama"), reward_folder, tmp_path, "out", rules)
    before, after = load_causal(backbone("llama")).state_dict(), load_causal(tmp_path / "out").state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_guard_stops_a_tuning_that_only_pleases_the_reward_model(
    backbone: Make, reward_folder: Path, tmp_path: Path, guard_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = {"model": guard_folder, "best_of": 0, "patience": 2}
    for action, iterations in (("stop", 3), ("flag", 4)):
        Planned(monkeypatch, [0, 1, 2, 3, 4], [3, 3, 0, -1, -2])
        rules = settings(eval_every=1, guard=guard | {"action": action})
        metrics = tune(backbone("llama"), reward_folder, tmp_path, action, rules)
        assert metrics["iterations"] == iterations
        rows = lines(tmp_path / action)
        assert [row["guard"]["fired"] for row in rows[1:4]] == [False, False, True]
        assert "the guard's fell" in rows[3]["guard"]["why"]
        assert len(rows) == iterations + 1


def test_checks_of_the_users_own_are_asked(backbone: Make, reward_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "checks.jsonl"
    asked = [{"role": "user", "content": "name three animals"}]
    file.write_text("".join(json.dumps({"messages": asked, "expect": p}) + "\n" for p in ("", "no such text", ".*")))
    rules = settings(iterations=1, eval_every=1, selection={"checks": str(file)})
    tune(backbone("llama"), reward_folder, tmp_path, "out", rules)
    assert [row["eval/check"] for row in lines(tmp_path / "out")] == [pytest.approx(2 / 3)] * 2
    long = [{"role": "user", "content": "animals " * 200}]
    file.write_text(json.dumps({"messages": long, "expect": "a"}) + "\n")
    with pytest.raises(InputError, match="check leaves no room"):
        tune(backbone("llama"), reward_folder, tmp_path, "long", rules)


def test_several_reward_models_are_combined(backbone: Make, reward_folder: Path, tmp_path: Path) -> None:
    rules = settings(iterations=1, shaping={"models": [str(reward_folder)], "combine": "minimum", "unfinished": 10.0})
    tune(backbone("llama"), reward_folder, tmp_path, "two", rules)
    tune(backbone("llama"), reward_folder, tmp_path, "one", settings(iterations=1))
    two, one = lines(tmp_path / "two")[1], lines(tmp_path / "one")[1]
    assert two["reward"] == pytest.approx(one["reward"])  # the same model twice
    assert two["score/1"] == two["score"] == pytest.approx(one["score"])
    assert two["shaping/disagreement"] == pytest.approx(0.0, abs=1e-6)


def test_speed_and_trackers(backbone: Make, reward_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[int, dict[str, float]]] = []

    class Shown:
        def log(self, numbers: dict[str, float], step: int) -> None:
            shown.append((step, dict(numbers)))

        def close(self) -> None:
            shown.append((-1, {}))

    monkeypatch.setattr(tuning, "open_trackers", lambda names, folder, what, chosen: [Shown()])
    tune(backbone("llama"), reward_folder, tmp_path, "out", settings(iterations=2))
    assert [step for step, _ in shown] == [0, 1, 2, -1]
    assert {"reward", "policy_loss", "eval/score", "update_seconds"} <= set(shown[2][1])
    speed = [json.loads(line) for line in (tmp_path / "out-work" / "speed.jsonl").read_text().splitlines()]
    assert [row.pop("iteration") for row in speed] == [1, 2]
    assert set(speed[0]) == set(SPEED_METRICS)
    assert speed[0]["sampling_seconds"] > 0
    assert speed[0]["evaluation_seconds"] == 0 < speed[1]["evaluation_seconds"]
