"""The optimum that both sides look for, by another road: plain Newton steps with `np.add.at`, until a step is below 1e-10.

Nothing of Starling or FastChat is used; natural-log units. numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

POINTS = 400 / np.log(10)
"""Points of rating in a natural unit."""
SETTLED = 1e-10


@dataclass(frozen=True)
class Log:
    """Battles as numbers: models by number, the first one's share of each, features of the first against the second (or none)."""

    models: int
    a_N: Any
    b_N: Any
    score_N: Any
    x_NF: Any
    on_strengths: float = 0.0
    """λ of the penalty ½ λ θ²."""
    on_coefficients: float = 0.0


def optimum(log: Log, weight_N: Any = None) -> tuple[Any, Any]:
    """Strengths [M], summing to 0, and coefficients [F] of the largest penalised likelihood.

    Raises:
        ArithmeticError: a hundred steps did not reach it.
    """
    models, features = log.models, log.x_NF.shape[1]
    weight_N = np.ones(len(log.a_N)) if weight_N is None else weight_N
    theta_P = np.zeros(models + features)
    penalty_P = np.r_[np.full(models, log.on_strengths), np.full(features, log.on_coefficients)]
    for _ in range(100):
        logit_N = theta_P[log.a_N] - theta_P[log.b_N] + log.x_NF @ theta_P[models:]
        chance_N = 1 / (1 + np.exp(-logit_N))
        error_N, spread_N = weight_N * (log.score_N - chance_N), weight_N * chance_N * (1 - chance_N)
        gradient_P, curvature_PP = -penalty_P * theta_P, np.diag(penalty_P)
        curvature_PP[:models, :models] += 1.0  # the direction in which all strengths move together
        for one_N, sign in ((log.a_N, 1), (log.b_N, -1)):
            np.add.at(gradient_P, one_N, sign * error_N)
            for other_N, other_sign in ((log.a_N, 1), (log.b_N, -1)):
                np.add.at(curvature_PP, (one_N, other_N), sign * other_sign * spread_N)
            for f in range(features):
                np.add.at(curvature_PP, (one_N, models + f), sign * spread_N * log.x_NF[:, f])
        gradient_P[models:] += log.x_NF.T @ error_N
        curvature_PP[models:, :models] = curvature_PP[:models, models:].T
        curvature_PP[models:, models:] += (log.x_NF * spread_N[:, None]).T @ log.x_NF
        step_P = np.linalg.solve(curvature_PP, gradient_P)
        largest = np.abs(step_P).max()
        theta_P += step_P / max(1.0, largest)
        if largest <= SETTLED:
            theta_P[:models] -= theta_P[:models].mean()
            return theta_P[:models], theta_P[models:]
    raise ArithmeticError("a hundred Newton steps did not reach the optimum")


def distance(rating_M: Any, strength_M: Any) -> float:
    """The largest difference of ratings from the optimum, in points, both around their means."""
    return float(np.abs(rating_M - np.mean(rating_M) - POINTS * strength_M).max())
