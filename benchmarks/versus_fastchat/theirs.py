"""FastChat's side, in a process of its own: its `rating_systems.py` on a DataFrame in memory, one worker process.

    python benchmarks/versus_fastchat/theirs.py '{"task": "style", "path": …, "warm": …, "module": …, …}'

`module` is the file rating_systems.py of a checkout, or "" for `restated.py`. Needs numpy, scipy, pandas, pyarrow and tqdm;
nothing of Starling. Prints one JSON object: CPU-seconds of fit and bootstrap with their preparation (not of making the
DataFrame), workers included, and the distance of fit and rounds from their optima, which are looked for afterwards.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import pandas as pd

from benchmarks.versus_fastchat import peak
from benchmarks.versus_trl.meter import cpu_seconds, memory_mib


def load(path: str) -> Any:
    """The module to measure."""
    if not path:
        from benchmarks.versus_fastchat import restated

        return restated
    spec = importlib.util.spec_from_file_location("rating_systems", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["rating_systems"] = module  # its workers find its functions by this name
    spec.loader.exec_module(module)
    return module


def measure(module: Any, spec: dict[str, Any]) -> dict[str, Any]:
    """One task."""
    columns = ["model_a", "model_b", "winner"] + (["conv_metadata"] if spec["task"] == "style" else [])
    battles = pd.read_parquet(spec["path"], columns=columns)
    np.random.seed(spec["seed"])
    began, since = cpu_seconds(), time.monotonic()
    if spec["task"] == "style":
        fitted, coefficients = module.compute_style_control(battles)
        drawn, _ = module.compute_bootstrap_style_control(battles, num_round=spec["rounds"], num_cpu=1)
    else:
        fitted = module.compute_bt(battles)
        drawn = module.compute_bootstrap_bt(battles, num_round=spec["rounds"], num_cpu=1)
        coefficients = np.zeros(0)
    drawn.quantile(0.025), drawn.quantile(0.975)
    took = {"cpu_s": cpu_seconds() - began, "wall_s": time.monotonic() - since, "peak_gib": memory_mib("VmHWM") / 1024}
    if not spec["checked"]:
        return took
    log, models, weights = (style_rounds if spec["task"] == "style" else plain_rounds)(module, battles, spec)
    rounds = [
        peak.distance(rating_M, peak.optimum(log, weight_N)[0])
        for rating_M, weight_N in zip(drawn[models].to_numpy(), weights[1:], strict=False)
    ]
    strength_M, coefficient_F = peak.optimum(log, weights[0])
    found = {"fit": peak.distance(fitted[models].to_numpy(), strength_M), "round": max(rounds)}
    if len(coefficients):
        found["coefficient"] = float(np.abs(coefficients - coefficient_F).max())
    return took | found


def plain_rounds(module: Any, battles: Any, spec: dict[str, Any]) -> tuple[peak.Log, list[str], list[Any]]:
    """The distinct battles, the models, and how often each battle counts in the fit and in the first rounds: drawn again, by
    FastChat's own generator and seed."""
    pairs, scores, models, counts = module.preprocess_for_bt(battles)
    drawn = np.random.default_rng(seed=0).multinomial(n=len(battles), pvals=counts / counts.sum(), size=spec["rounds"])
    log = peak.Log(len(models), pairs[:, 0], pairs[:, 1], scores, np.zeros((len(pairs), 0)))
    return log, models, [counts, *drawn[: spec["checked"]].astype(np.float64)]


def style_rounds(module: Any, battles: Any, spec: dict[str, Any]) -> tuple[peak.Log, list[str], list[Any]]:
    """The same with features and penalties: FastChat draws rows by numpy's global generator, seeded before the task."""
    pairs, x_NF, scores, models = module.preprocess_for_style(battles)
    np.random.seed(spec["seed"])
    drawn = np.random.randint(low=0, high=len(pairs), size=(spec["rounds"], len(pairs)))[: spec["checked"]]
    log = peak.Log(len(models), pairs[:, 0], pairs[:, 1], scores, x_NF, 0.5 / np.log(10) ** 2, 0.5)
    return log, models, [np.ones(len(pairs)), *(np.bincount(rows, minlength=len(pairs)).astype(np.float64) for rows in drawn)]


if __name__ == "__main__":
    request = json.loads(sys.argv[1])
    measured = load(request["module"])
    measure(measured, {**request, "path": request["warm"], "rounds": 2, "checked": 0})  # loading libraries is not counted
    print(json.dumps(measure(measured, request)))
