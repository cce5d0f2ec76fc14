"""AlpacaEval's length-controlled win rate: a logistic model of the preferences, asked what it predicts at equal lengths.

Source: Dubois, Galambosi, Liang, Hashimoto 2024 (arXiv 2404.04475) and `alpaca_eval.metrics.glm_winrate` 0.6.6. Per model, with y
the preference for it in 0 … 1 and dl the baseline's length minus its own, in characters:

    logit P(y = 1) = w_length · tanh(dl / sd(dl)) + w_difficulty · d + w_model          (no intercept; sd with n − 1)

fitted by min ‖w‖₁ + C Σ s · (log loss), liblinear's objective. d is a number per instruction that came from one joint fit over
many models; the "gamed" rows, the baseline told to be verbose and to be concise (weight 0.1 each, no w_model), hold w_length in
place. C is chosen among ten values from 1e-4 to 1e4 by five-fold cross-validation. The result is the mean of
σ(w_difficulty · d + w_model).

Departures: our own solver (proximal Newton, exact to 1e-9; liblinear stops earlier, which moves the result by up to 0.015
points); one pass fits all five folds and, with them, all data; a result that does not exist is a reason in words (officially
NaN). Beside the official standard error, which only measures how much the instructions' predictions differ, every row gets its
influence on the result (infinitesimal jackknife; Efron 1982), so that honest, clustered intervals cost one bootstrap of a mean.

Shapes: N rows (the gamed ones first), J weights, K fits at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Variant = Literal["full", "noreg", "minimal"]
"""full: as published (length_controlled_v1). noreg: without the gamed rows. minimal: also without the difficulty; the one that is
possible on other instructions."""

GRID = tuple(10 ** (-4 + 8 * i / 9) for i in range(10))
"""scikit-learn's default grid of LogisticRegressionCV."""
FOLDS = 5
GAMED_WEIGHT = 0.1
"""λ = 0.2 over the two gamed models."""
NAMES = {"length": "np.tanh(std_delta_len)", "difficulty": "instruction_difficulty", "model": "not_gamed_baseline.astype(float)"}
"""Our names of the weights, and the columns of the official weights' files."""
_TOLERANCE = 1e-9
_MOST_STEPS = 200


@dataclass(frozen=True, eq=False)
class Gamed:
    """The rows of the baseline's gamed versions: preference 0 … 1, dl / sd(dl), difficulty."""

    preference: Floats
    std_delta_len: Floats
    difficulty: Floats


@dataclass(frozen=True, kw_only=True, eq=False)
class LengthControlled:
    """What the model of one candidate says."""

    win_rate: float
    """%, at equal lengths."""
    standard_error: float
    """%, the official one: the spread of the predictions over the instructions, as if the weights were known."""
    weights: Mapping[str, float]
    """length, difficulty (absent in the minimal variant), model."""
    c: float
    variant: Variant
    predicted: Floats
    """σ of each row, 0 … 1, in the order of the rows: the official glm_preference."""
    influence: Floats
    """For each row with a preference: win_rate + what that row adds to it, %. Their mean is `win_rate`; a bootstrap of that mean
    is the first-order bootstrap of the whole fit at this C, with the gamed rows and the difficulties taken as given."""


@dataclass(frozen=True)
class Impossible:
    """Why there is no length-controlled win rate, in words."""

    reason: str


def length_controlled(
    preference: Floats,
    delta_len: Floats,
    difficulty: Floats | None,
    gamed: Gamed | None,
    *,
    c: float | None = None,
) -> LengthControlled | Impossible:
    """The length-controlled win rate of one model.

    Args:
        preference: of each row, 0 … 1 for the candidate; NaN where the judge gave none: such a row counts in sd(dl) and in the
            mean of the predictions, as officially, and is not fitted.
        delta_len: the baseline's length minus the candidate's, characters.
        difficulty: of each row's instruction; None for the minimal variant.
        gamed: None for the variants without regularisation to the baseline.
        c: strength of the fit; None: cross-validated.
    """
    known = ~np.isnan(preference)
    if known.sum() < 2:
        return Impossible(f"{known.sum()} rows have a preference, at least two are needed")
    if np.ptp(preference[known]) < 1e-12:
        return Impossible(f"all preferences are {1 + preference[known][0]:g}: there is nothing to fit")
    sd = float(np.std(delta_len, ddof=1))
    if not sd > 0:
        return Impossible(
            "all answers differ in length from the baseline's by the same number of characters: nothing to control for"
        )
    columns = [np.tanh(delta_len / sd), np.ones(len(preference))]
    if difficulty is not None:
        columns.insert(1, difficulty)
    x_NJ, y_N, s_N = np.stack(columns, 1)[known], preference[known], np.ones(known.sum())
    if gamed is not None:
        beside = [np.tanh(gamed.std_delta_len), gamed.difficulty, np.zeros(len(gamed.preference))]
        x_NJ = np.concatenate([np.stack(beside, 1), x_NJ])
        y_N = np.concatenate([gamed.preference, y_N])
        s_N = np.concatenate([np.full(len(gamed.preference), GAMED_WEIGHT), s_N])
    if c is None and len(y_N) < FOLDS:
        return Impossible(f"{len(y_N)} rows cannot be cross-validated in {FOLDS} folds")
    weights_J, chosen = (fit(x_NJ, y_N, s_N[:, None], c)[0], c) if c is not None else cross_validated(x_NJ, y_N, s_N)
    test_MJ = np.stack([np.zeros(len(preference)), *columns[1:]], 1)
    predicted = _sigmoid(test_MJ @ weights_J)
    fitted = slice(len(y_N) - int(known.sum()), None)
    names = ("length", "difficulty", "model") if difficulty is not None else ("length", "model")
    return LengthControlled(
        win_rate=100 * float(predicted.mean()),
        standard_error=100 * float(np.std(predicted, ddof=1)) / float(np.sqrt(len(predicted))),
        weights={name: float(w) for name, w in zip(names, weights_J, strict=True)},
        c=chosen,
        variant="minimal" if difficulty is None else "noreg" if gamed is None else "full",
        predicted=predicted,
        influence=100 * _influence(x_NJ, y_N, s_N, weights_J, test_MJ, predicted, known, fitted),
    )


def against(weights: Mapping[str, float], other: Mapping[str, float], difficulty: Floats) -> float:
    """Win rate, %, over another baseline than the one that the answers were compared with: both models' weights stand for them.

    Args:
        weights, other: of two models that were compared with the same baseline; a baseline's own are all 0.
        difficulty: of every instruction of the set.
    """
    gap = {name: weights[name] - other[name] for name in ("difficulty", "model")}
    return 100 * float(_sigmoid(gap["model"] + gap["difficulty"] * difficulty).mean())


# ── fitting ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def cross_validated(x_NJ: Floats, y_N: Floats, s_N: Floats) -> tuple[Floats, float]:
    """Weights at the C whose held-out weighted log loss, averaged over the folds, is smallest; the smaller C of equal ones.

    The folds are those that scikit-learn's GroupKFold makes of groups of equal size: every fifth row.
    """
    fold_N = np.arange(len(y_N)) % FOLDS
    held_NF = fold_N[:, None] == np.arange(FOLDS)
    train_NK = s_N[:, None] * np.concatenate([~held_NF, np.ones((len(y_N), 1))], 1)
    weights_KJ = np.zeros((FOLDS + 1, x_NJ.shape[1]))
    best, found, chosen = np.inf, weights_KJ[-1], GRID[0]
    for c in GRID:
        weights_KJ = fit(x_NJ, y_N, train_NK, c, weights_KJ)
        eta_NF = x_NJ @ weights_KJ[:FOLDS].T
        loss_F = (held_NF * s_N[:, None] * _loss(eta_NF, y_N[:, None])).sum(0) / held_NF.sum(0)
        if float(loss_F.mean()) < best:
            best, found, chosen = float(loss_F.mean()), weights_KJ[-1], c
    return found, chosen


def fit(x_NJ: Floats, y_N: Floats, weight_NK: Floats, c: float, start_KJ: Floats | None = None) -> Floats:
    """Weights [K, J] that minimise ‖w‖₁ + c Σ weight · log loss, for K weightings of the rows at once.

    Proximal Newton: each step minimises the quadratic model of the loss plus the penalty, then halves its length until the
    objective falls enough (Lee, Sun and Saunders 2014).
    """
    w_KJ = np.zeros((weight_NK.shape[1], x_NJ.shape[1])) if start_KJ is None else start_KJ.copy()
    pairs = np.triu_indices(x_NJ.shape[1])
    products_NP = x_NJ[:, pairs[0]] * x_NJ[:, pairs[1]]
    eta_NK = x_NJ @ w_KJ.T
    value_K = _objective(w_KJ, eta_NK, y_N, weight_NK, c)
    for _ in range(_MOST_STEPS):
        p_NK = _sigmoid(eta_NK)
        gradient_KJ = c * (weight_NK * (p_NK - y_N[:, None])).T @ x_NJ
        curvature_KP = c * (weight_NK * p_NK * (1 - p_NK)).T @ products_NP
        hessian_KJJ = np.empty((len(w_KJ), x_NJ.shape[1], x_NJ.shape[1]))
        hessian_KJJ[:, pairs[0], pairs[1]] = hessian_KJJ[:, pairs[1], pairs[0]] = curvature_KP
        step_KJ = _quadratic(w_KJ, gradient_KJ, hessian_KJJ) - w_KJ
        if np.abs(step_KJ).max() <= _TOLERANCE:
            break
        promised_K = (gradient_KJ * step_KJ).sum(1) + np.abs(w_KJ + step_KJ).sum(1) - np.abs(w_KJ).sum(1)
        scale_K = np.ones(len(w_KJ))
        while True:
            trial_KJ = w_KJ + scale_K[:, None] * step_KJ
            trial_NK = x_NJ @ trial_KJ.T
            trial_K = _objective(trial_KJ, trial_NK, y_N, weight_NK, c)
            worse_K = trial_K > value_K + 1e-4 * scale_K * promised_K + 1e-13 * np.abs(value_K)
            if not worse_K.any() or scale_K.min() < 1e-9:
                break
            scale_K = np.where(worse_K, scale_K / 2, scale_K)
        w_KJ, eta_NK, value_K = trial_KJ, trial_NK, trial_K
    return w_KJ


def _quadratic(w_KJ: Floats, gradient_KJ: Floats, hessian_KJJ: Floats) -> Floats:
    """The minimum over z of gradient · (z − w) + ½ (z − w) H (z − w) + ‖z‖₁, exactly.

    With at most three weights there are at most 27 patterns of signs (−, 0, +). Each gives one linear system; the minimum is the
    best of the solutions that have the signs they were solved for. Nothing iterates, so nearly collinear columns cost nothing.
    """
    size = w_KJ.shape[1]
    sign_SJ = np.array(list(product((-1.0, 0.0, 1.0), repeat=size)))
    active_SJ = sign_SJ != 0
    scale_K = np.einsum("kjj->k", hessian_KJJ) + 1e-300
    ridge_KJJ = hessian_KJJ + 1e-13 * scale_K[:, None, None] * np.eye(size)
    target_KJ = np.einsum("kij,kj->ki", ridge_KJJ, w_KJ) - gradient_KJ
    both_SJJ = active_SJ[:, :, None] & active_SJ[:, None, :]
    system_SKJJ = np.where(both_SJJ[:, None], ridge_KJJ, np.eye(size) * scale_K[:, None, None])
    right_SKJ = np.where(active_SJ[:, None], target_KJ - sign_SJ[:, None], 0.0)
    z_SKJ = np.linalg.solve(system_SKJJ, right_SKJ[..., None])[..., 0]
    fits_SK = (z_SKJ * sign_SJ[:, None] >= 0).all(2)
    step_SKJ = z_SKJ - w_KJ
    value_SK = (gradient_KJ * step_SKJ).sum(2) + 0.5 * np.einsum("ski,kij,skj->sk", step_SKJ, ridge_KJJ, step_SKJ)
    value_SK += np.abs(z_SKJ).sum(2)
    best_K = np.where(fits_SK, value_SK, np.inf).argmin(0)
    found: Floats = z_SKJ[best_K, np.arange(len(w_KJ))]
    return found


def _influence(
    x_NJ: Floats,
    y_N: Floats,
    s_N: Floats,
    weights_J: Floats,
    test_MJ: Floats,
    predicted: Floats,
    known: NDArray[np.bool_],
    fitted: slice,
) -> Floats:
    """For each row with a preference, mean prediction + the derivative of that mean by the row's weight, times the number of
    rows. Weights that the penalty holds at 0 do not move; of the others only the loss has a curvature. A row adds to the mean in
    two ways: its own prediction is averaged in, and its preference moves the weights.
    """
    mean = float(predicted.mean())
    found: Floats = predicted[known] - float(predicted[known].mean()) + mean
    active = weights_J != 0
    if not active.any():
        return found
    x_NA = x_NJ[:, active]
    p_N = _sigmoid(x_NJ @ weights_J)
    hessian_AA = (x_NA * (s_N * p_N * (1 - p_N))[:, None]).T @ x_NA
    toward_A = (test_MJ[:, active] * (predicted * (1 - predicted))[:, None]).mean(0)
    moves_N = (s_N * (y_N - p_N)) * (x_NA @ np.linalg.lstsq(hessian_AA, toward_A, rcond=None)[0])
    own = moves_N[fitted]
    found += len(own) * (own - own.mean())
    return found


def _objective(w_KJ: Floats, eta_NK: Floats, y_N: Floats, weight_NK: Floats, c: float) -> Floats:
    value_K: Floats = np.abs(w_KJ).sum(1) + c * np.einsum("nk,nk->k", weight_NK, _loss(eta_NK, y_N[:, None]))
    return value_K


def _loss(eta: Floats, y: Floats) -> Floats:
    """Log loss of soft labels, from log-odds: log(1 + e^eta) − y · eta, without overflow."""
    found: Floats = np.maximum(eta, 0) + np.log1p(np.exp(-np.abs(eta))) - y * eta
    return found


def _sigmoid(eta: Floats) -> Floats:
    found: Floats = 0.5 * (1 + np.tanh(0.5 * eta))
    return found
