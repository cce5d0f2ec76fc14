"""Plans from assumptions and from files; the three commands at the terminal."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from starling import stats_planning
from starling.cli import call
from starling.errors import InputError
from starling.evaluate.pairwise import planning
from starling.evaluate.pairwise.measure import measure
from starling.evaluate.pairwise.votes import Verdict, VotesBuilder
from starling.evaluate.result_files import write_result


def test_assumed_spreads_by_hand() -> None:
    assert planning.assumed("win-rate", verdicts=1).sd == 50
    assert planning.assumed("win-rate", ties=0.36, verdicts=1).sd == pytest.approx(40)
    assert planning.assumed("win-rate", correlation=0.28).sd == pytest.approx(40)
    assert planning.assumed("accuracy", discordant=0.25).sd == pytest.approx(50)
    assert planning.assumed("points", sd=1.5).sd == 1.5
    found = planning.plan("win-rate", planning.assumed("win-rate", verdicts=1), 2)
    assert found.needed == 4908
    assert {"difference": 2, "needed": 4908} in found.by_difference
    assert found.by_size[4] == {"n": 500, "detectable": stats_planning.detectable(50, 500)}


def votes_file(folder: Path, n: int = 400) -> Path:
    """x and y in both orders: half of the prompts the same in both, so a known correlation."""
    rng = np.random.default_rng(0)
    path = folder / "votes.jsonl"
    rows = []
    for i in range(n):
        one = float(rng.random() < 0.5)
        for first, value in (("a", one), ("b", one if rng.random() < 0.5 else float(rng.random() < 0.5))):
            rows.append({"prompt_id": f"p{i}", "a": "x", "b": "y", "preference_b": value, "outcome": "ranked", "first": first})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_measured_spread_is_that_of_prompts_and_tells_the_orders_correlation(tmp_path: Path) -> None:
    path = votes_file(tmp_path)
    found = planning.measured(path)
    assert found.sd == pytest.approx(100 * stats_planning.averaged_sd(0.5, 2, 0.5), rel=0.05)
    assert "x and y" in found.source
    assert float(found.source.rsplit(" ", 1)[1]) == pytest.approx(0.5, abs=0.1)
    assert planning.measured(path, pair=("y", "x")).sd == found.sd
    with pytest.raises(InputError, match=r"x and z were not compared.*x,y"):
        planning.measured(path, pair=("x", "z"))


def test_the_interval_of_a_result_tells_the_spread(tmp_path: Path) -> None:
    """A head to head's net wins are twice a win rate's distance from one half; against a baseline they are not."""
    rng = np.random.default_rng(2)
    builder = VotesBuilder()
    for i in range(900):
        value = float(rng.random() < 0.5)
        builder.add(f"p{i}", "x", "y", [Verdict(value, "a"), Verdict(value, "b")])
    for baseline in ("", "x"):
        write_result(tmp_path / "result.json", measure(builder.build(), baseline=baseline))
        assert planning.measured(tmp_path / "result.json").sd == pytest.approx(50, rel=0.08)
        assert planning.measured(tmp_path, pair=("x", "y")).sd == pytest.approx(50, rel=0.08)


# ── the commands ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_plan_size_at_the_terminal(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert call(["evaluate", "plan-size", "--verdicts", "1"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("4,908 prompts see a difference of 2 points of win rate (power 0.8, alpha 0.05, two-sided)")
    assert call(["evaluate", "plan-size", "--measure", "points", "--difference", "0.5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["needed"] == math.ceil((1.959964 + 0.841621) ** 2 * 2.2**2 / 0.25 + 1.92)
    assert call(["evaluate", "plan-size", "--from", str(votes_file(tmp_path)), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sd"] == pytest.approx(43, abs=3)
    for wrong, problem in (
        (["--difference", "0"], "must be above 0"),
        (["--measure", "elo"], "no measure 'elo'"),
        (["--pair", "a"], "--pair wants two models"),
        (["--ties", "2"], "shares lie between 0 and 1"),
        (["--from", str(votes_file(tmp_path)), "--sd", "3"], "exclude each other"),
    ):
        assert call(["evaluate", "plan-size", *wrong]) == 2
        assert problem in capsys.readouterr().err


def test_head_to_head_at_the_terminal(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = votes_file(tmp_path)
    assert call(["evaluate", "head-to-head", "--votes", str(path), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert "% of meetings won" in said.out
    assert "share of meetings that the row's model won" in said.out
    assert (tmp_path / "out" / "result.json").is_file()
    assert call(["evaluate", "head-to-head", "--votes", str(path), "--soft", "--baseline", "x", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["benchmark"] == "head-to-head"
    assert found["settings"]["votes"] == "soft"
    for wrong, problem in (
        ([], "either --votes or a settings file"),
        (["c.toml", "--votes", str(path)], "exclude each other"),
        (["c.toml", "--soft"], "--soft cannot be used here"),
        (["--votes", str(path), "--set", "a=1"], "--set cannot be used here"),
    ):
        assert call(["evaluate", "head-to-head", *wrong]) == 2
        assert problem in capsys.readouterr().err
    assert call(["evaluate", "head-to-head", "--votes", str(path), "--baseline", "z"]) == 1
    assert "'z' is in none of the votes" in capsys.readouterr().err


def test_arena_hard_at_the_terminal(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = tmp_path / "gpt-x"
    folder.mkdir()
    for model, labels in (("m", ("B>>A", "A>B")), ("n", ("A>B", "B>A"))):
        rows: list[dict[str, Any]] = [
            {"uid": f"u{i}", "category": "hard_prompt", "judge": "gpt-x", "model": model, "baseline": "b",
             "games": [{"score": label} for label in labels]}
            for i in range(5)
        ]  # fmt: skip
        (folder / f"{model}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert call(["evaluate", "arena-hard", "--judgments", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(m["model"], m["overall"]["score"]) for m in found["models"]] == [("m", 100.0), ("b", 50.0), ("n", 0.0)]
    assert call(["evaluate", "arena-hard", "--judgments", str(folder), "--official", "--rule", "v0.1"]) == 0
    assert "Official intervals: 2.5 to 97.5 %" in capsys.readouterr().out
    for wrong, problem in (
        ([], "Give --judgments or a settings file"),
        (["c.toml", "--official"], "--official cannot be used here"),
        (["--judgments", str(folder), "--rule", "v3"], "no rule 'v3'"),
        (["--judgments", str(folder), "--strong-weight", "1.5", "--official"], "cannot count 1.5 times"),
        (["--judgments", str(folder), "--strong-weight", "0"], "cannot count 0 times"),
    ):
        assert call(["evaluate", "arena-hard", *wrong]) == 2
        assert problem in capsys.readouterr().err
