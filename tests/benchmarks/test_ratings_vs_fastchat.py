"""The comparison of ratings with FastChat: what is simulated, the third solver, both sides, ratios. Needs no FastChat."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks import ratings_vs_fastchat as versus
from benchmarks.versus_fastchat import ours, peak, restated, simulated, theirs
from starling.ratings.bradley_terry import bradley_terry
from starling.ratings.reading import read_votes
from starling.ratings.style import style_control

MADE = simulated.Made(battles=3000, models=6, seed=1)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "battles.parquet"
    simulated.write(path, MADE)
    return path


def test_what_is_simulated(log: Path, tmp_path: Path) -> None:
    votes = read_votes([log])
    assert votes.outcomes == {"rated": 3000}
    battles = votes.battles
    assert np.mean(battles.score_a_N == 0.5) == pytest.approx(0.3, abs=0.03)
    met = dict(zip(battles.models, np.bincount(np.r_[battles.a_N, battles.b_N]), strict=True))
    assert met["model-000"] > 20 * met["model-005"] > 0
    simulated.write(tmp_path / "again.parquet", MADE)
    assert pq.read_table(tmp_path / "again.parquet").equals(pq.read_table(log))
    simulated.write(tmp_path / "plain.parquet", simulated.Made(50, 3, style=False))
    assert pq.read_schema(tmp_path / "plain.parquet").names == ["model_a", "model_b", "winner"]


def test_the_simulated_effects_are_in_the_votes(tmp_path: Path) -> None:
    made = simulated.Made(battles=60_000, models=6, ties=0.0, seed=2)
    simulated.write(tmp_path / "log.parquet", made)
    found = style_control(read_votes([tmp_path / "log.parquet"]).battles)
    assert found.coefficient_F == pytest.approx(simulated.EFFECTS, abs=0.03)
    truth = dict(zip((f"model-{i:03d}" for i in range(6)), simulated.strengths(made), strict=True))
    assert found.strength_M == pytest.approx([truth[m] for m in found.models], abs=0.15)


def test_the_third_solver_finds_the_optima(log: Path) -> None:
    battles = read_votes([log]).battles
    plain = peak.Log(6, battles.a_N, battles.b_N, battles.score_a_N.astype(float), np.zeros((3000, 0)))
    assert peak.distance(bradley_terry(battles).rating_M, peak.optimum(plain)[0]) < 1e-6
    found = style_control(battles, ridge="fastchat")
    strength_M, coefficient_F = peak.optimum(ours.style_log(battles))
    assert peak.distance(found.rating_M, strength_M) < 1e-6
    assert found.coefficient_F == pytest.approx(coefficient_F, abs=1e-9)
    twice = peak.optimum(plain, np.r_[np.full(1500, 2.0), np.zeros(1500)])[0]
    half = peak.Log(6, battles.a_N[:1500], battles.b_N[:1500], plain.score_N[:1500], np.zeros((1500, 0)))
    assert twice == pytest.approx(peak.optimum(half)[0], abs=1e-8)


def test_distance_is_between_ratings_around_their_means() -> None:
    assert peak.distance(np.array([1010.0, 990.0]), np.array([0.0, 0.0])) == pytest.approx(10)
    assert peak.distance(np.array([1500.0, 1500.0]), np.array([0.0, 0.0])) == 0


@pytest.mark.parametrize("task", versus.TASKS)
def test_both_sides_solve_the_same_problem(log: Path, task: str) -> None:
    spec = {"task": task, "path": str(log), "rounds": 3, "seed": 3, "checked": 3}
    mine, peer = ours.TASKS[task](spec), theirs.measure(restated, spec)
    assert mine["fit"] < 1e-5
    assert mine["round"] < 1e-2
    assert 1e-9 < peer["fit"] < 5  # where L-BFGS stops
    assert 1e-9 < peer["round"] < 20
    assert min(mine["cpu_s"], peer["cpu_s"], mine["peak_gib"], peer["peak_gib"]) > 0
    assert ("coefficient" in mine) == ("coefficient" in peer) == (task == "style")
    assert "fit" not in ours.TASKS[task]({**spec, "checked": 0})


def test_many_battles(log: Path) -> None:
    found = ours.TASKS["many"]({"path": str(log), "rounds": 2, "seed": 0})
    assert found["battles"] == 3000
    assert found["seconds"] >= found["read_seconds"] > 0
    assert found["peak_gib"] > 0


def test_the_peers_module_is_loaded_from_a_checkout(tmp_path: Path) -> None:
    path = tmp_path / versus.MODULE
    path.parent.mkdir(parents=True)
    path.write_text("MARK = 7\n")
    assert versus.module_of(tmp_path) == versus.module_of(path) == str(path)
    assert theirs.load(str(path)).MARK == 7
    del sys.modules["rating_systems"]
    assert theirs.load("") is restated
    assert versus.module_of(None) == ""
    with pytest.raises(SystemExit, match="--fastchat wants a checkout"):
        versus.module_of(tmp_path / "nothing")


def test_ratios_are_medians_of_their_runs_over_ours(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    cpu = {"ours": iter([0.5, 0.1, 0.4, 0.2] * 2), "theirs": iter([30.0, 60.0] * 2)}
    asked: list[tuple[str, dict[str, Any]]] = []

    def run(side: str, spec: dict[str, Any], python: str) -> dict[str, Any]:
        asked.append((side, spec))
        if spec["task"] == "many":
            return {"battles": 70, "seconds": 2.5, "read_seconds": 1.25, "cpu_s": 2.0, "peak_gib": 0.5}
        return {"cpu_s": next(cpu[side]), "wall_s": 1.0, "peak_gib": 0.1, "fit": 0.123456, "round": 0.5}

    monkeypatch.setattr(versus, "run_side", run)
    versus.main(["--json", "--battles", "40", "--models", "3", "--repeats", "2", "--many", "70"])
    found = json.loads(capsys.readouterr().out)
    assert found["ratios"] == {"bootstrap": 150.0, "style": 150.0}
    assert found["distance"]["style"]["starling"] == {"fit": 0.12, "round": 0.5}
    assert found["ten_million"] == {"battles": 70, "seconds": 2.5, "read_seconds": 1.25, "cpu_s": 2.0, "peak_gib": 0.5}
    assert found["peer"] == "restated"
    assert [side for side, _ in asked] == ["ours", "theirs", "ours"] * 4 + ["ours"]
    assert [spec["checked"] for _, spec in asked[:6]] == [5, 5, 0, 0, 0, 0]
    lines = versus.table(found).splitlines()
    assert lines[2].split(" | ")[:4] == ["| bootstrap", "45.00", "0.300", "**150.0**"]
    assert lines[-1] == "70 battles: 2.5 s (reading 1.2), peak 0.50 GiB"


def test_quick_repeats_less_and_measures_the_same() -> None:
    quick, whole = versus.arguments(["--quick"]), versus.arguments([])
    assert (quick.repeats, whole.repeats) == (1, 3)
    assert (quick.rounds, quick.battles, quick.many) == (whole.rounds, whole.battles, whole.many) == (100, 200_000, 10_000_000)


def test_a_side_that_fails_is_told() -> None:
    with pytest.raises(SystemExit, match=r"ours failed with exit code 1"):
        versus.run_side("ours", {"task": "no such task"}, sys.executable)
