"""Starling's side, in a process of its own: from the parquet file to the intervals, the reading counted.

    python benchmarks/versus_fastchat/ours.py '{"task": "style", "path": …, "warm": …, "rounds": 100, "seed": 0, "checked": 5}'

Prints one JSON object: CPU-seconds of the task, peak memory, and the distance of fit and rounds from their optima, which are
looked for afterwards.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np

from benchmarks.versus_fastchat import peak
from benchmarks.versus_trl.meter import cpu_seconds, memory_mib
from starling.ratings.battles import Battles
from starling.ratings.bradley_terry import ELO, bradley_terry
from starling.ratings.intervals import bootstrap, cells, sandwich
from starling.ratings.reading import read_votes
from starling.ratings.style import style_control
from starling.ratings.style_fit import make_design


def bootstrap_task(spec: dict[str, Any]) -> dict[str, Any]:
    """Bradley–Terry and its bootstrap."""
    began, since = cpu_seconds(), time.monotonic()
    battles = read_votes([Path(spec["path"])], wanted=frozenset()).battles
    read = cpu_seconds()
    fit = bradley_terry(battles)
    drawn = bootstrap(fit, battles, rounds=spec["rounds"], seed=spec["seed"])
    drawn.bounds()
    took = {"cpu_s": cpu_seconds() - began, "read_s": read - began, "wall_s": time.monotonic() - since}
    took |= {"peak_gib": memory_mib("VmHWM") / 1024}
    if not spec["checked"]:
        return took
    pair_K, score_K, count_K = cells(battles)
    low_K, high_K = np.divmod(pair_K, len(battles.models))
    log = peak.Log(len(battles.models), low_K, high_K, score_K, np.zeros((len(pair_K), 0)))
    weights = np.random.Generator(np.random.PCG64(spec["seed"])).multinomial(
        len(battles), count_K / len(battles), size=min(spec["checked"], spec["rounds"])
    )
    assert drawn.draws_RM is not None
    rounds = [
        peak.distance(ELO.per_unit * draw_M, peak.optimum(log, weight_K)[0])
        for draw_M, weight_K in zip(drawn.draws_RM, weights, strict=False)
    ]
    return took | {"fit": peak.distance(fit.rating_M, peak.optimum(log, count_K)[0]), "round": max(rounds)}


def style_task(spec: dict[str, Any]) -> dict[str, Any]:
    """FastChat's objective of style control and its bootstrap."""
    began, since = cpu_seconds(), time.monotonic()
    battles = read_votes([Path(spec["path"])], wanted=frozenset({"style"})).battles
    read = cpu_seconds()
    found = style_control(battles, ridge="fastchat", rounds=spec["rounds"], seed=spec["seed"])
    assert len(found.rating_interval_M2)
    took = {"cpu_s": cpu_seconds() - began, "read_s": read - began, "wall_s": time.monotonic() - since}
    took |= {"peak_gib": memory_mib("VmHWM") / 1024, "coefficients": [round(c, 4) for c in found.coefficient_F]}
    if not spec["checked"]:
        return took
    log = style_log(battles)
    order_N, rng = make_design(battles, log.x_NF).order_N, np.random.Generator(np.random.PCG64(spec["seed"]))
    draws_RM, rounds = found.uncertainty.draws_RM, []
    assert draws_RM is not None
    for draw_M in draws_RM[: spec["checked"]]:
        weight_N = np.empty(len(battles))
        weight_N[order_N] = np.bincount(rng.integers(0, len(battles), len(battles)), minlength=len(battles))
        rounds.append(peak.distance(ELO.per_unit * draw_M, peak.optimum(log, weight_N)[0]))
    strength_M, coefficient_F = peak.optimum(log)
    off = float(np.abs(found.coefficient_F - coefficient_F).max())
    return took | {"fit": peak.distance(found.rating_M, strength_M), "round": max(rounds), "coefficient": off}


def style_log(battles: Battles) -> peak.Log:
    """The battles with FastChat's features and penalties, written down anew."""
    assert battles.style_a_NF is not None
    assert battles.style_b_NF is not None
    a_NF, b_NF = battles.style_a_NF.astype(np.float64), battles.style_b_NF.astype(np.float64)
    x_NF = (a_NF - b_NF) / (a_NF + b_NF + 1)
    x_NF = (x_NF - x_NF.mean(0)) / x_NF.std(0)
    score_N = battles.score_a_N.astype(np.float64)
    return peak.Log(len(battles.models), battles.a_N, battles.b_N, score_N, x_NF, 0.5 / np.log(10) ** 2, 0.5)


def many_task(spec: dict[str, Any]) -> dict[str, Any]:
    """Reading, fit, sandwich and bootstrap of many battles: wall-clock seconds and peak memory."""
    since, began = time.monotonic(), cpu_seconds()
    votes = read_votes([Path(spec["path"])], wanted=frozenset())
    read = time.monotonic()
    fit = bradley_terry(votes.battles)
    sandwich(fit, votes.battles)
    bootstrap(fit, votes.battles, rounds=spec["rounds"], seed=spec["seed"]).bounds()
    return {
        "battles": len(votes.battles),
        "seconds": time.monotonic() - since,
        "read_seconds": read - since,
        "cpu_s": cpu_seconds() - began,
        "peak_gib": memory_mib("VmHWM") / 1024,
    }


TASKS = {"bootstrap": bootstrap_task, "style": style_task, "many": many_task}

if __name__ == "__main__":
    request = json.loads(sys.argv[1])
    task = TASKS[request["task"]]
    if request["warm"]:  # loading libraries is counted on neither side
        task({**request, "path": request["warm"], "rounds": 2, "checked": 0})
    print(json.dumps(task(request)))
