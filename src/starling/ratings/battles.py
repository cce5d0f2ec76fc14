"""Votes in memory: one row per battle, names as whole numbers, so that ten million fit and fits are table look-ups.

Shape suffixes: N battles, M models, F style features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.int32]


@dataclass(frozen=True, kw_only=True)
class Named:
    """A column of names as numbers: row n has the name `names[codes_N[n]]`."""

    names: tuple[str, ...]
    codes_N: Codes


@dataclass(frozen=True, kw_only=True)
class Battles:
    """Battles with a verdict, in the order of their file; what has no verdict is counted by whoever reads."""

    models: tuple[str, ...]
    a_N: Codes
    """Number of the first model of each battle in `models`."""
    b_N: Codes
    score_a_N: NDArray[np.float32]
    """1 = the first model won, 0 = the second did, 0.5 = a tie of any kind; soft verdicts lie between."""
    judge: Named | None = None
    """Who voted."""
    prompt: Named | None = None
    """What was asked: the cluster of intervals."""
    category: Named | None = None
    language: Named | None = None
    time_N: NDArray[np.float64] | None = None
    """Seconds since 1970."""
    style_a_NF: NDArray[np.float32] | None = None
    """Counts of the first answer: tokens, headers, lists, bold (STYLE_FEATURES)."""
    style_b_NF: NDArray[np.float32] | None = None


STYLE_FEATURES = ("length", "headers", "lists", "bold")
