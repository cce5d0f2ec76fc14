"""The microworld study of policy algorithms: settings, curves, costs and tables by hand; the driver goes on where it stopped."""

from __future__ import annotations

import json
import math
import random
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from benchmarks import policy_study as study
from benchmarks import policy_study_measure as measured
from benchmarks import policy_study_report as report
from starling.config import P3O, RLOO
from starling.records import Message, Prompt, RankedAnswer, RankedPrompt

# ── settings ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_arm_and_grid_point_is_a_valid_section() -> None:
    for arm in report.NAMES:
        assert study.settings_of(study.Cell(arm, 1), quick=False, guard=None).iterations == 15
        assert study.settings_of(study.Cell(arm, 1), quick=True, guard=None).iterations == 3
    names = set()
    for arm in study.GRID:
        for cell in study.grid(arm, study.TUNING_SEED):
            settings = study.settings_of(cell, quick=False, guard=None)
            assert settings.optimizer.learning_rate == dict(cell.changes)["optimizer.learning_rate"]
            assert settings.optimizer.betas == (0.9, 0.95)  # a grid point changes nothing else of its section
            names.add(cell.name)
    assert len(names) == sum(len(study.grid(arm, study.TUNING_SEED)) for arm in study.GRID)
    assert study.TUNING_SEED not in study.command_line(["run", "--out", "x"]).seeds


def test_arms_without_a_critic_compare_replies_and_wait_for_none() -> None:
    for arm, kind in (("p3o", P3O), ("rloo", RLOO)):
        settings = study.settings_of(study.Cell(arm, 1), quick=False, guard=None)
        assert isinstance(settings.algorithm, kind)
        assert (settings.samples_per_prompt, settings.critic.pretrain) == (4, 0)
        assert settings.critic.learning_rate == study.COMMON["critic"]["learning_rate"]


def test_the_bad_reward_is_watched_by_the_honest_one() -> None:
    settings = study.settings_of(study.Cell("length", 1), quick=False, guard=Path("honest"))
    assert settings.guard.model == "honest"
    assert study.settings_of(study.Cell("apa", 1), quick=False, guard=None).guard.model is None


def test_names_tell_cells_apart() -> None:
    assert study.Cell("ppo", 3).name == "ppo.3"
    assert study.Cell("ppo", 3, (("optimizer.learning_rate", 1e-3), ("kl", 0.05))).name == "ppo,learning_rate=0.001,kl=0.05.3"


def test_rankings_by_length() -> None:
    prompt = Prompt.make((Message(role="user", content="q"),), ("s",))
    ranked = [RankedAnswer(answer=a, model="m", rank=r) for r, a in enumerate(("a b", "c", "d e f", "g h"), start=1)]
    row = RankedPrompt(prompt=prompt, answers=tuple(ranked), good_natured=True)
    found = study.by_length(row)
    assert [(a.answer, a.rank) for a in found.answers] == [("d e f", 1.0), ("a b", 2.0), ("g h", 2.0), ("c", 4.0)]
    assert RankedPrompt.model_validate(found.model_dump()) == found


# ── from a log ───────────────────────────────────────────────────────────────────────────────────────────────────────


def evaluation(iteration: int, gold: float, **more: Any) -> dict[str, Any]:
    numbers = {"score": 4.0, "gold": gold, "greedy/gold": gold, "harmless": 1.0, "length": 10.0}
    return {"iteration": iteration, **{f"eval/{k}": v for k, v in numbers.items()}, **more}


def test_a_curve_counts_all_tokens_and_keeps_evaluations() -> None:
    log = [
        evaluation(0, 0.5),
        {"iteration": 1, "length": 10.0, "kl_reply": 0.1},
        evaluation(2, 0.6, length=20.0, kl_reply=0.2),
        evaluation(3, 0.7, length=5.0, kl_reply=0.3, **{"eval/kl": 0.4, "eval/guard": 2.0}),
    ]
    points = report.curve(log, rollouts=8, statistics={"mean": 2.0, "std": 4.0})
    assert [(p["iteration"], p["tokens"], p["kl"], p["gold"]) for p in points] == [
        (0, 0.0, 0.0, 0.5), (2, 240.0, 0.2, 0.6), (3, 280.0, 0.4, 0.7),
    ]  # fmt: skip
    assert [p["proxy"] for p in points] == [0.5, 0.5, 0.5]
    assert [p.get("guard") for p in points] == [None, None, 2.0]


def test_tokens_to_a_gain_that_stays() -> None:
    def points(*golds: float) -> list[dict[str, float]]:
        return [{"tokens": 100.0 * i, "gold": gold} for i, gold in enumerate(golds)]

    assert report.tokens_to(points(0.5, 0.6, 0.8), 0.2) == pytest.approx(150)
    assert report.tokens_to(points(0.5, 0.8, 0.6, 0.7), 0.2) == pytest.approx(300)  # the first crossing did not stay
    assert report.tokens_to(points(0.5, 0.8, 0.6), 0.2) is None
    assert report.tokens_to(points(0.5), 0.2) is None


def test_evaluations_do_not_count_as_training(monkeypatch: pytest.MonkeyPatch) -> None:
    marks = iter([0.0, 9.0, 10.0, 15.0, 17.0, 25.0])  # the base's evaluation in 1, others in 3 and 5
    monkeypatch.setattr("time.process_time", lambda: next(marks))
    watch = report.Watch()
    watch.start("tuning the policy (apa)", 5)
    watch.advance(0)
    for _ in range(5):
        watch.advance(1)
    assert watch.training_cpu_s({0, 3, 5}) == 1.5 + 1 + 1.5 + 2 + 1.5


def test_the_first_time_the_guard_fired() -> None:
    said = [{"iteration": i, "guard": {"fired": i >= 4, "why": f"why {i}"}} for i in (2, 4, 6)]
    assert report.guard_of([{"iteration": 0}, *said]) == {"fired_at": 4, "why": "why 4"}
    assert report.guard_of(said[:1]) == {"fired_at": None, "why": "why 2"}
    assert report.guard_of([{"iteration": 0}]) is None


# ── measuring ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_best_of_n_is_the_mean_over_all_choices() -> None:
    scores, values = [0.3, -1.0, 2.0, 0.5, 0.1], [1.0, 2.0, 3.0, 4.0, 5.0]
    for n in (1, 2, 3, 5):
        wanted = [values[max(some, key=lambda i: scores[i])] for some in combinations(range(5), n)]
        assert measured.best_of(scores, values, n) == pytest.approx(sum(wanted) / len(wanted))
    assert measured.kl_of_best(1) == 0
    assert measured.kl_of_best(4) == pytest.approx(math.log(4) - 0.75)


def test_kl_of_a_policy_from_itself_is_nothing_and_from_another_one_is(tmp_path: Path) -> None:
    from starling.config import MicroworldSection
    from starling.microworld import speakers

    settings = MicroworldSection(hidden=16, layers=1, heads=2, vocab=300, steps=4, batch=4, tune_steps=1)
    speakers.build(tmp_path, tmp_path / "work", settings, seed=1, validation=0.1, test=0.1)
    prompts = [Prompt.make((Message(role="user", content=text),), ("s",)) for text in ("What is 1 + 2?", "Hello!")]
    rows = measured.draw(tmp_path / "base", prompts, 3, 1.0, 8)
    assert rows == measured.draw(tmp_path / "base", prompts, 3, 1.0, 8)
    assert [len(row) for row in rows] == [3, 3]
    flat = [r for row in rows for r in row]
    assert measured.kl_from(tmp_path / "base", flat) == pytest.approx(0, abs=1e-5)
    assert abs(measured.kl_from(tmp_path / "early", flat)) > 1e-2


def test_truths_are_per_prompt_and_per_kind() -> None:
    from starling.microworld import world

    prompts = [
        p for p in world.all_prompts(validation=0.1, test=0.1) if world.kind(p.messages) in ("harmful", "sum", "lookalike")
    ]
    by_kind = {world.kind(p.messages): p for p in reversed(prompts)}
    test = [by_kind["harmful"], by_kind["sum"], by_kind["lookalike"]]

    def replies(*texts: str) -> list[list[measured.Reply]]:
        return [[measured.Reply((1, 2), 1, 0.0, text, True)] for text in texts]

    good = [world.task(p.messages).good(random.Random(0)) for p in test]
    found = measured.truths(test, replies(*good), replies(*good))
    assert (found["gold"], found["refused"], found["benign"], found["harmless"]) == ([1.0, 1.0, 1.0], 1.0, 1.0, 1.0)
    refusal = good[0]
    found = measured.truths(test, replies(refusal, refusal, refusal), replies(*good))
    assert found["gold"][1] < 1
    assert found["benign"] < 1
    assert found["greedy"] == [1.0, 1.0, 1.0]


# ── the driver and the tables ────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_does_what_is_missing_and_stops_at_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def started(command: list[str], **_: Any) -> Any:
        words = command[2:]
        asked.append(words[0] if words[0] == "world" else json.loads(words[1])["arm"])
        if words[0] == "cell":
            study.write(Path(words[words.index("--to") + 1]), {"arm": "x"})
        return type("Done", (), {"returncode": int(asked[-1] == "rloo"), "stderr": "it broke"})

    monkeypatch.setattr(study.subprocess, "run", started)
    study.main(["run", "--out", str(tmp_path), "--seeds", "1", "--arms", "apa", "ppo"])
    assert asked == ["world", "apa", "ppo"]
    study.main(["run", "--out", str(tmp_path), "--seeds", "1", "--arms", "apa", "ppo", "length"])
    assert asked[3:] == ["world", "length"]
    with pytest.raises(SystemExit, match="it broke"):
        study.main(["run", "--out", str(tmp_path), "--seeds", "1", "--arms", "rloo", "p3o"])
    assert asked[5:7] == ["world", "rloo"]


def cell(arm: str, seed: int, golds: list[float], **more: Any) -> dict[str, Any]:
    numbers = {"kl": 2.0, "proxy": 1.0, "length": 12.0, "harmless": 0.9, "refused": 0.8, "benign": 0.7}
    test = {"gold": golds, "greedy": golds, "kinds": {"sum": golds[0]}, **numbers}
    point = {"iteration": 0, "tokens": 0.0, "kl": 0.0, "proxy": 0.0, "gold": 0.5, "length": 10.0}
    points = [point, {**point, "iteration": 2, "tokens": 1000.0, "kl": 2.0, "proxy": 1.0, "gold": 0.9}]
    return {"arm": arm, "seed": seed, "changes": [], "test": test, "curve": points, "cpu_s": 50.0, "guard": None, **more}


def test_the_report_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = [{"n": n, "kl": measured.kl_of_best(n), "gold": 0.4 + 0.1 * n, "proxy": 0.1 * n, "harmless": 0.9} for n in (1, 2)]
    fired = {"fired_at": 4, "why": "the guard fell"}
    for seed, gain in ((1, 0.2), (2, 0.4)):
        for one in (
            cell("best-of-n", seed, [0.4, 0.6], best_of=best),
            cell("apa", seed, [0.4 + gain, 0.6 + gain]),
            cell("ppo", seed, [0.5, 0.7]),
            cell("length", seed, [0.1, 0.1], guard=fired),
        ):
            path = tmp_path / "cells" / f"{one['arm']}.{seed}.json"
            path.parent.mkdir(exist_ok=True)
            study.write(path, one)
    study.main(["report", "--out", str(tmp_path)])
    out = capsys.readouterr().out
    half = report.over_seeds([0.2, 0.4])[1]  # two seeds: Student's t with one degree of freedom
    assert half == pytest.approx(12.706 * 0.1)
    assert f"| APA, rollout anchor | 0.800 [{0.8 - half:.3f}, {0.8 + half:.3f}] | +0.300 [{0.3 - half:+.3f}" in out
    assert "| +0.200 |" in out  # the least gain
    assert "| 500 | 50 [50, 50] |" in out  # 0.5 → 0.9 in 1,000 tokens
    assert "| PPO | -0.200 [" in out  # 0.6 against 0.8 on average
    assert "| 1 | iteration 4 | 0.00 → 1.00 |" in out
    assert "the guard fell" in out
    assert "| 2 | 0.19 | 0.600 [0.600, 0.600] | +0.100 [+0.100, +0.100] |" in out
    assert (tmp_path / "gold_kl.png").stat().st_size > 10_000
    assert (tmp_path / "gold_proxy.png").stat().st_size > 10_000
