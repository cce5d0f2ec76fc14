"""Battles in memory: what is no battle, and parts of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from starling.ratings.battles import Named, of_scores


def test_parts_keep_their_columns_and_only_the_models_that_take_part() -> None:
    battles = of_scores([("x", "y", 1.0), ("y", "z", 0.5), ("z", "w", 0.0)])
    judge = Named(names=("j", "k"), codes_N=np.array([0, 1, 1], np.int32))
    times = np.array([1.0, 2.0, 3.0])
    kept = replace(battles, judge=judge, time_N=times).kept(np.array([False, True, True]))
    assert kept.models == ("y", "z", "w")
    assert (kept.a_N.tolist(), kept.b_N.tolist(), kept.score_a_N.tolist()) == ([0, 1], [1, 2], [0.5, 0])
    assert kept.judge is not None
    assert kept.judge.codes_N.tolist() == [1, 1]
    assert kept.time_N is not None
    assert kept.time_N.tolist() == [2, 3]
    assert len(kept) == 2
    assert len(kept.kept(np.zeros(2, dtype=bool))) == 0


def test_what_is_no_battle() -> None:
    battles = of_scores([("x", "y", 1.0), ("y", "x", 0.5)])
    for wrong, complaint in (
        ({"b_N": np.zeros(1, np.int32)}, "differ in length"),
        ({"b_N": battles.a_N}, "cannot meet itself"),
        ({"b_N": np.array([2, 0], np.int32)}, "a model that is not there"),
        ({"a_N": np.array([-1, 1], np.int32)}, "a model that is not there"),
        ({"score_a_N": np.array([1, 1.5], np.float32)}, "between 0 and 1"),
        ({"score_a_N": np.array([1, np.nan], np.float32)}, "between 0 and 1"),
    ):
        with pytest.raises(ValueError, match=complaint):
            replace(battles, **wrong)  # type: ignore[arg-type]
