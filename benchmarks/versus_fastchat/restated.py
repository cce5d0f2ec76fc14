"""The peer where no checkout of FastChat is at hand: what its rating_systems.py does, written down anew from its description.

The same optimiser with the same limits (scipy's L-BFGS-B from 0, at most 100 steps, gradient below 1e-6), the same objectives,
the same draws in the same order. Only `--fastchat` measures FastChat itself; docs/ratings-style.md tells how both came out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.special import expit

BASE = np.log(10)
SHARES = {"model_a": 1.0, "model_b": 0.0}


def encoded(battles: Any) -> tuple[Any, Any, list[str]]:
    """Models as numbers [N, 2], the first one's share [N], the models' names."""
    codes, names = pd.factorize(pd.concat([battles["model_a"], battles["model_b"]]))
    return codes.reshape(2, -1).T, battles["winner"].map(SHARES).fillna(0.5).to_numpy(), list(names)


def preprocess_for_bt(battles: Any) -> tuple[Any, Any, list[str], Any]:
    """The distinct (pair, share) with their numbers."""
    pairs, shares, names = encoded(battles)
    cells, counts = np.unique(np.column_stack([pairs, 2 * shares]).astype(np.int32), axis=0, return_counts=True)
    return cells[:, :2], cells[:, 2] / 2, names, counts.astype(np.float64)


def preprocess_for_style(battles: Any) -> tuple[Any, Any, Any, list[str]]:
    """The battles with standardised features."""
    pairs, shares, names = encoded(battles)
    columns = []
    for side in "ab":
        fields = (f"sum_assistant_{side}_tokens", f"header_count_{side}", f"list_count_{side}", f"bold_count_{side}")
        columns.append([battles["conv_metadata"].map(lambda row, f=f: total(row[f])).to_numpy() for f in fields])
    a, b = np.array(columns, dtype=np.float64)
    x = (a - b) / (a + b + 1)
    return pairs, ((x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)).T, shares, names


def total(value: Any) -> int:
    """A count, or the sum of counts by kind."""
    return value if isinstance(value, int) else sum(value.values())


def minimum(pairs: Any, x: Any, shares: Any, weights: Any, models: int, penalty: float) -> Any:
    """Ratings in log10 units, then coefficients: where 100 steps of L-BFGS get."""

    def objective(theta: Any) -> tuple[float, Any]:
        rating, coefficient = theta[:models], theta[models:]
        chance = expit(BASE * (rating[pairs[:, 0]] - rating[pairs[:, 1]]) + x @ coefficient)
        value = -((np.log(chance) * shares + np.log(1 - chance) * (1 - shares)) * weights).sum()
        error = weights * (shares - chance)
        slope = penalty * theta
        np.add.at(slope, pairs, -BASE * error[:, None] * np.array([1.0, -1.0]))
        slope[models:] -= x.T @ error
        return value + penalty / 2 * theta @ theta, slope

    start, options = np.zeros(models + x.shape[1]), {"maxiter": 100, "gtol": 1e-6}
    return minimize(objective, start, jac=True, method="L-BFGS-B", options=options).x


def compute_bt(battles: Any) -> Any:
    """Ratings by model."""
    pairs, shares, names, counts = preprocess_for_bt(battles)
    theta = minimum(pairs, np.zeros((len(pairs), 0)), shares, counts, len(names), 0.0)
    return pd.Series(400 * theta + 1000, index=names)


def compute_bootstrap_bt(battles: Any, num_round: int, num_cpu: int) -> Any:
    """Ratings by round and model."""
    pairs, shares, names, counts = preprocess_for_bt(battles)
    drawn = np.random.default_rng(seed=0).multinomial(len(battles), counts / counts.sum(), size=num_round)
    none = np.zeros((len(pairs), 0))
    rounds = [minimum(pairs, none, shares, weights / len(battles), len(names), 0.0) for weights in drawn]
    return pd.DataFrame(400 * np.array(rounds) + 1000, columns=names)


def compute_style_control(battles: Any) -> tuple[Any, Any]:
    """Ratings by model, and coefficients."""
    pairs, x, shares, names = preprocess_for_style(battles)
    theta = minimum(pairs, x, shares, 1.0, len(names), 0.5)
    return pd.Series(400 * theta[: len(names)] + 1000, index=names), theta[len(names) :]


def compute_bootstrap_style_control(battles: Any, num_round: int, num_cpu: int) -> tuple[Any, Any]:
    """Ratings by round and model, and coefficients by round."""
    pairs, x, shares, names = preprocess_for_style(battles)
    drawn = np.random.randint(low=0, high=len(pairs), size=(num_round, len(pairs)))
    found = np.array([minimum(pairs[rows], x[rows], shares[rows], 1.0, len(names), 0.5) for rows in drawn])
    return pd.DataFrame(400 * found[:, : len(names)] + 1000, columns=names), found[:, len(names) :]
