"""The reference curve of a tuning, by hand."""

from __future__ import annotations

import json
from math import log, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from starling.config import GuardSection
from starling.errors import TrainingError
from starling.policy.best_of_n import BEST_OF_N_FILE, reference_curve, write_reference

SCORES = [[1.0, 2.0, 3.0], [6.0, 4.0, 5.0]]
GUARD = [[3.0, 2.0, 1.0], [0.0, 0.0, 6.0]]


def test_by_hand() -> None:
    rows = reference_curve(SCORES, {"guard": GUARD})
    assert [row["n"] for row in rows] == [1, 2, 3]
    assert [row["kl"] for row in rows] == pytest.approx([0.0, log(2) - 1 / 2, log(3) - 2 / 3])
    # expected maximum of 2 of 3: (2 + 3 + 3) / 3 and (6 + 6 + 5) / 3
    assert [row["score"] for row in rows] == pytest.approx([3.5, (8 / 3 + 17 / 3) / 2, 4.5])
    # the guard of that pick: (2 + 1 + 1) / 3 and (0 + 0 + 6) / 3
    assert [row["guard"] for row in rows] == pytest.approx([2.0, (4 / 3 + 6 / 3) / 2, 0.5])
    assert rows[2]["score_se"] == pytest.approx(sqrt(((3 - 4.5) ** 2 + (6 - 4.5) ** 2) / 1) / sqrt(2))


def test_one_pick_is_the_mean_whatever_scores_it() -> None:
    table = np.random.default_rng(0).normal(size=(5, 8))
    assert reference_curve(-table, {"gold": table})[0]["gold"] == pytest.approx(table.mean())


def test_many_replies_are_shown_at_few_n() -> None:
    table = np.random.default_rng(0).normal(size=(2, 40))
    assert [row["n"] for row in reference_curve(table, {})] == [*range(1, 17), 32, 40]


def test_a_single_prompt_has_no_error() -> None:
    assert reference_curve([[1.0, 2.0]], {})[1] == {"n": 2, "kl": pytest.approx(log(2) - 0.5), "score": 2.0, "score_se": 0.0}


def test_tables_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ValueError, match="guard has the shape"):
        reference_curve(SCORES, {"guard": [[1.0]]})
    for empty in ([], [[]], [1.0]):
        with pytest.raises(ValueError, match="filled table"):
            reference_curve(empty, {})
    with pytest.raises(TrainingError, match="The gold of a reply of the base is nan"):
        reference_curve([[1.0]], {"gold": [[float("nan")]]})


def test_it_is_drawn_as_often_as_the_settings_say_and_written(tmp_path: Path) -> None:
    asked = []

    def draw(n: int) -> Any:
        asked.append(n)
        return [row[:n] for row in SCORES], {"guard": [row[:n] for row in GUARD]}

    rows = write_reference(tmp_path / "new", GuardSection(best_of=2), draw)
    assert asked == [2]
    assert json.loads((tmp_path / "new" / BEST_OF_N_FILE).read_text("utf-8")) == {"prompts": 2, "replies": 2, "curve": rows}
    assert write_reference(tmp_path / "off", GuardSection(best_of=0), draw) == []
    assert asked == [2]
    assert not (tmp_path / "off").exists()
    assert write_reference(tmp_path / "none", GuardSection(best_of=2), lambda n: ([], {})) == []
