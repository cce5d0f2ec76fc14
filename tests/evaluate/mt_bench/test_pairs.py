"""Win rates from comparisons, by hand, and the gap between the two places."""

from __future__ import annotations

from math import sqrt
from pathlib import Path
from typing import Any

import pytest

from starling.evaluate.mt_bench import files, pairs
from starling.evaluate.mt_bench.files import Pair
from tests.evaluate.mt_bench import making
from tests.evaluate.mt_bench.making import pair, write


def read(tmp_path: Path, listed: list[dict[str, Any]]) -> list[Pair]:
    return files.read_judgments([write(tmp_path / "p.jsonl", listed)]).pairs


def rows() -> list[dict[str, Any]]:
    return [
        pair(81, 1, "model_1", "model_1"),  # m wins
        pair(81, 2, "model_1", "model_2"),  # the order decides: tie
        pair(101, 1, "model_2", "model_2"),  # n wins
        pair(101, 2, "error", "model_1", g1_judgment="hm"),
        pair(141, 1, "model_1", "model_1", ("n", "k")),
        pair(141, 1, "model_2", "model_2", ("m", "k")),
        pair(81, 1, "tie", "tie", ("m", "k")),
    ]


def test_all_pairs_by_hand(tmp_path: Path) -> None:
    found = pairs.measure(read(tmp_path, rows()), resamples=300, seed=0)
    by_name = {m.model: m for m in found.models}
    # m: 100, 50, 0 against n; 0, 50 against k.  n: 0, 50, 100; 100 against k.  k: 0 against n; 100, 50 against m.
    assert by_name["m"].overall.score == pytest.approx(40)
    assert by_name["n"].overall.score == pytest.approx(250 / 4)
    assert by_name["k"].overall.score == pytest.approx(50)
    assert [m.model for m in found.models] == ["n", "k", "m"]
    for m in found.models:
        assert m.more["win_rate_adjusted"] == pytest.approx(m.overall.score / 100)
    assert (by_name["m"].more["win"], by_name["m"].more["loss"], by_name["m"].more["tie"]) == (1, 2, 2)
    assert by_name["m"].more["win_rate"] == pytest.approx(0.2)
    assert by_name["m"].parts["turn_1"].score == pytest.approx((100 + 0 + 0 + 50) / 4)
    assert dict(by_name["m"].outcomes) == {"ranked": 5, "unparsed": 1}
    gaps = {(d.first, d.second): d.difference for d in found.differences}
    assert gaps == {("n", "k"): 100, ("n", "m"): 0, ("k", "m"): 50}  # from their own comparisons: 100 = always
    assert dict(found.outcomes) == {"ranked": 13, "unparsed": 1}


def test_against_a_baseline(tmp_path: Path) -> None:
    found = pairs.measure(read(tmp_path, rows()), baseline="k", resamples=300, seed=0)
    assert {m.model: m.overall.score for m in found.models} == {"n": 100, "m": 25}
    (one,) = found.differences  # both against k, where both met it: question 141 turn 1
    assert (one.first, one.second, one.difference) == ("n", "m", 100)


def test_repeats_are_averaged_by_us_and_counted_by_fastchat(tmp_path: Path) -> None:
    listed = [
        pair(81, 1, "model_1", "model_1"),
        pair(81, 1, "model_2", "model_2"),
        pair(81, 1, "model_1", "model_1"),
        pair(101, 1, "model_2", "model_2"),
    ]
    ours = pairs.measure(read(tmp_path, listed), resamples=100, seed=0)
    theirs = pairs.measure(read(tmp_path, listed), official=True, resamples=100, seed=0)
    score = {m.model: m.overall.score for m in ours.models}
    assert score["m"] == pytest.approx((200 / 3 + 0) / 2)
    assert {m.model: m.overall.score for m in theirs.models}["m"] == pytest.approx(50)
    m = next(m for m in ours.models if m.model == "m")
    assert (m.more["win_rate_adjusted"], ours.repeats) == (0.5, 3)
    variance = ((100 / 3) ** 2 * 2 + (200 / 3) ** 2) / 2
    assert m.more["repeat_spread"] == pytest.approx(sqrt(variance / 2))


def test_missing_comparisons_are_counted_against_those_met(tmp_path: Path) -> None:
    asked = files.read_questions(write(tmp_path / "question.jsonl", making.questions()))
    found = pairs.measure(
        read(tmp_path, [pair(81, 1, "tie", "tie"), pair(81, 2, "error", "error", g1_judgment="$ERROR$")]),
        questions=asked,
        resamples=100,
        seed=0,
    )
    assert [dict(m.outcomes) for m in found.models] == [{"missing": 4, "provider_error": 1, "ranked": 1}] * 2
    assert found.models[0].parts["writing"].score == 50
    assert found.models[0].parts["stem"].score is None


@pytest.mark.parametrize(
    ("games", "gap"),
    [
        ([("model_1", "model_2")], 1.0),  # always the first
        ([("model_2", "model_1")], -1.0),
        ([("model_1", "model_1"), ("tie", "tie")], 0.0),
        ([("model_1", "tie")], 0.5),
        ([("model_1", "model_2"), ("error", "model_1")], 1.0),  # without both verdicts it does not count
    ],
)
def test_position_gap(tmp_path: Path, games: list[tuple[str, str]], gap: float) -> None:
    listed = [pair(81 + i, 1, *game) for i, game in enumerate(games)]
    found = pairs.position_gap(read(tmp_path, listed), resamples=100, seed=0)
    assert found is not None
    assert found.mean == gap


def test_swapping_the_sides_changes_no_score_and_not_the_gap(tmp_path: Path) -> None:
    turned = {"model_1": "model_2", "model_2": "model_1"}
    swapped = [
        row | {"model_1": row["model_2"], "model_2": row["model_1"], "g1_winner": turned.get(row["g2_winner"], row["g2_winner"]),
               "g2_winner": turned.get(row["g1_winner"], row["g1_winner"]), "g1_judgment": "hm", "g2_judgment": "hm"}
        for row in rows()
    ]  # fmt: skip
    a, b = (read(tmp_path, listed) for listed in (rows(), swapped))
    one, other = (pairs.measure(x, resamples=100, seed=0) for x in (a, b))
    assert {m.model: m.overall.score for m in one.models} == {m.model: m.overall.score for m in other.models}
    gaps = [pairs.position_gap(x, resamples=100, seed=0) for x in (a, b)]
    assert gaps[0] == gaps[1]
