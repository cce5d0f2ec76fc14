"""Best-of-n sampling: the reference that a tuned policy is compared with.

Drawing n replies from the base and taking the one that the reward model likes best needs no training and is hard to beat at equal
KL (Gao, Schulman and Hilton 2023, arXiv 2210.10760); a tuning that stays below this curve in guard or gold score was not worth
its trouble. One draw of N replies per prompt gives the whole curve, k = 1 … N (`starling.stats_best_of_n`).

Shapes: P prompts, N replies to each.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from starling.config import GuardSection
from starling.errors import TrainingError
from starling.stats_best_of_n import Floats, expected_values, kl_bound, sizes

BEST_OF_N_FILE = "best_of_n.json"
"""In the policy artifact: {"prompts": P, "replies": N, "curve": rows of `reference_curve`}."""

Draw = Callable[[int], tuple[ArrayLike, Mapping[str, ArrayLike]]]
"""N → the reward model's scores [P, N] of N replies of the base to each evaluation prompt, and other scores of the same ones."""


def write_reference(folder: Path, settings: GuardSection, draw: Draw) -> list[dict[str, Any]]:
    """Draw `policy.guard.best_of` replies per prompt and write the curve; nothing is drawn or written when it is 0.

    The policy of iteration 0 is the base, so this is best done beside its evaluation.

    Returns:
        The rows of `reference_curve`; none when it is switched off or there are no prompts.
    """
    if not settings.best_of:
        return []
    scores, others = draw(settings.best_of)
    scores_PN = np.asarray(scores, dtype=np.float64)
    if not scores_PN.size:
        return []
    rows = reference_curve(scores_PN, others)
    found = {"prompts": len(scores_PN), "replies": scores_PN.shape[1], "curve": rows}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / BEST_OF_N_FILE).write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return rows


def reference_curve(scores_PN: ArrayLike, others: Mapping[str, ArrayLike]) -> list[dict[str, Any]]:
    """What the best of k by the reward model's score is worth, by that score and by others.

    Args:
        scores_PN: the reward model's scores, one row per prompt.
        others: name → other scores of the same replies, e.g. guard, gold; what they say of the reply that the first one picks.

    Returns:
        A row for each k of `stats_best_of_n.sizes`: n, kl (bound, nats), score and the other names (means over prompts of the
        unbiased estimates), each with its standard error over prompts as NAME_se (0 for one prompt).

    Raises:
        ValueError: shapes that differ, or no prompt.
        TrainingError: a score is not finite.
    """
    scores = np.asarray(scores_PN, dtype=np.float64)
    if scores.ndim != 2 or not scores.size:
        raise ValueError(f"scores of prompts and replies must be a filled table, not of shape {scores.shape}")
    ns = sizes(scores.shape[1])
    columns: dict[str, Floats] = {}
    for name, table in {"score": scores, **others}.items():
        values = np.asarray(table, dtype=np.float64)
        if values.shape != scores.shape:
            raise ValueError(f"{name} has the shape {values.shape}, the scores {scores.shape}")
        if not np.isfinite(values).all():
            raise TrainingError(
                f"The {name} of a reply of the base is {values[~np.isfinite(values)][0]}",
                where="best-of-n curve",
                cure="score that model's validation answers with `starling score`; it has to give finite numbers",
            )
        expected_PK = np.stack([expected_values(one, other, ns) for one, other in zip(scores, values, strict=True)])
        columns[name] = expected_PK.mean(axis=0)
        columns[f"{name}_se"] = _errors(expected_PK)
    return [{"n": n, "kl": kl_bound(n)} | {name: float(c[i]) for name, c in columns.items()} for i, n in enumerate(ns)]


def _errors(values_PK: Floats) -> Floats:
    prompts = len(values_PK)
    return np.asarray(values_PK.std(axis=0, ddof=1) / sqrt(prompts)) if prompts > 1 else np.zeros(values_PK.shape[1])
