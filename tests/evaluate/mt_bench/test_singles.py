"""The score from grades: values worked by hand under both rules, and what must not change them."""

from __future__ import annotations

import random
from math import sqrt
from pathlib import Path
from typing import Any

import pytest

from starling.evaluate.mt_bench import cells, files, singles
from starling.evaluate.mt_bench.files import Question, Single
from tests.evaluate.mt_bench import making
from tests.evaluate.mt_bench.making import single, write


def rows() -> list[dict[str, Any]]:
    return [
        single(81, 1, 10), single(81, 1, 6),  # the same text twice: 8 and a variance of 8
        single(81, 2, 4),
        single(101, 1, -1, judgment="no idea"),
        single(101, 2, 12),  # off the scale
        single(141, 1, 9),
        single(81, 1, 5, "n"), single(81, 2, 4, "n"), single(141, 1, 3, "n"),
    ]  # fmt: skip


@pytest.fixture
def asked(tmp_path: Path) -> dict[int, Question]:
    return files.read_questions(write(tmp_path / "question.jsonl", making.questions()))


def read(tmp_path: Path, listed: list[dict[str, Any]]) -> list[Single]:
    return files.read_judgments([write(tmp_path / "j.jsonl", listed)]).singles


def test_our_rule_by_hand(tmp_path: Path, asked: dict[int, Question]) -> None:
    found = singles.measure(read(tmp_path, rows()), questions=asked, resamples=500, seed=0)
    m, n = found.models
    assert (m.model, n.model) == ("m", "n")
    assert m.overall.score == pytest.approx((8 + 4 + 9) / 3)
    assert (m.overall.n, m.overall.clusters) == (4, 2)
    assert m.parts["turn_1"].score == pytest.approx((8 + 9) / 2)
    assert m.parts["turn_2"].score == 4
    assert [m.parts[c].score for c in ("writing", "reasoning", "stem")] == [6, None, 9]
    assert (m.parts["writing"].ci, m.parts["reasoning"].n) == (None, 0)  # one question has no interval
    assert dict(m.outcomes) == {"ranked": 4, "unparsed": 1, "out_of_range": 1, "missing": 1}
    assert dict(n.outcomes) == {"ranked": 3, "missing": 3}
    assert m.more["score_official"] == pytest.approx((10 + 6 + 4 + 12 + 9) / 5)
    assert (m.more["turn_1_official"], m.more["turn_2_official"], m.more["rows_official"]) == (25 / 3, 8, 5)
    assert m.more["repeat_spread"] == pytest.approx(sqrt(8 / 3))
    assert (n.more["repeat_spread"], found.spread, found.repeats) == (None, pytest.approx(sqrt(8 / 3)), 2)
    assert dict(found.outcomes) == {"ranked": 7, "unparsed": 1, "out_of_range": 1}
    assert any(note.startswith("m: not in the score: 1 missing, 1 out_of_range, 1 unparsed") for note in found.notes)


def test_the_official_rule_by_hand(tmp_path: Path, asked: dict[int, Question]) -> None:
    found = singles.measure(read(tmp_path, rows()), questions=asked, official=True, resamples=500, seed=0)
    m = found.models[0]
    assert m.overall.score == pytest.approx(8.2)
    assert (m.overall.n, m.overall.clusters) == (5, 3)
    assert m.parts["turn_2"].score == 8
    assert m.more["score_ours"] == pytest.approx(7)
    assert found.notes[0].startswith("The score is FastChat's")


def test_differences_are_paired_on_what_both_have(tmp_path: Path, asked: dict[int, Question]) -> None:
    (one,) = singles.measure(read(tmp_path, rows()), questions=asked, resamples=500, seed=0).differences
    assert (one.first, one.second) == ("m", "n")
    assert one.difference == pytest.approx(((8 - 5) + (4 - 4) + (9 - 3)) / 3)
    assert one.ci[0] == pytest.approx(1.5)
    assert one.ci[1] == pytest.approx(6)  # two questions: their means 1.5 and 6, and 3 of both
    assert (one.p, one.p_adjusted) == (0.5, 0.5)  # two questions, both positive: 2 of 4 signs are as extreme


def test_grades_of_different_texts_are_no_repeats(tmp_path: Path) -> None:
    listed = [single(81, 1, 10, user_prompt="old answer"), single(81, 1, 4, user_prompt="new answer"), single(81, 2, 5)]
    found = singles.measure(read(tmp_path, listed), resamples=100, seed=0)
    assert (found.spread, found.repeats, found.models[0].more["repeat_spread"]) == (None, 1, None)
    assert found.models[0].overall.score == pytest.approx(6)
    assert any(note.startswith("m: 1 of 2 questions and turns have grades of different answers") for note in found.notes)


def test_copies_and_other_answers_count_but_do_not_score(tmp_path: Path) -> None:
    row = single(81, 1, 10)
    answers = {"m": {81: files.Answer(question=81, model="m", turns=("right", "right"))}}
    listed = [row, row, single(81, 1, 2, user_prompt="wrong"), single(81, 2, 6, user_prompt="right")]
    path = write(tmp_path / "j.jsonl", [{**listed[0], "user_prompt": "right"}] * 2 + listed[2:])
    found = singles.measure(files.read_judgments([path], None, answers).singles, resamples=100, seed=0)
    (m,) = found.models
    assert dict(m.outcomes) == {"ranked": 2, "copied": 1, "other_answer": 1}
    assert (m.overall.score, m.more["score_official"]) == (8, (10 + 10 + 2 + 6) / 4)


def test_a_model_without_a_grade_has_no_score_and_stands_last(tmp_path: Path) -> None:
    found = singles.measure(
        read(tmp_path, [single(81, 1, -1, "none"), single(81, 1, 1)]), further={"silent": {"no_answer": 2}}, resamples=100, seed=0
    )
    assert [(m.model, m.overall.score) for m in found.models] == [("m", 1), ("none", None), ("silent", None)]
    assert dict(found.models[2].outcomes) == {"no_answer": 2}
    assert found.differences == ()


def test_the_order_of_the_rows_changes_nothing_but_repeats_of_the_table(tmp_path: Path, asked: dict[int, Question]) -> None:
    listed = rows()
    first = singles.measure(read(tmp_path, listed), questions=asked, resamples=300, seed=1)
    random.Random(3).shuffle(listed)
    second = singles.measure(read(tmp_path, listed), questions=asked, resamples=300, seed=1)
    assert first.models == second.models
    assert first.differences == second.differences


def test_judging_everything_once_more_alike_changes_our_score_nowhere(tmp_path: Path) -> None:
    once = [single(q, t, score) for q, t, score in ((81, 1, 9), (81, 2, 3), (101, 1, 5), (101, 2, -1))]
    more = [*once, *(single(81, 1, 9) for _ in range(7))]
    a, b = (singles.measure(read(tmp_path, listed), resamples=200, seed=0).models[0] for listed in (once, more))
    assert (a.overall.score, a.overall.ci) == (b.overall.score, b.overall.ci)
    assert a.more["score_official"] == pytest.approx(17 / 3)
    assert b.more["score_official"] == pytest.approx((9 * 8 + 3 + 5) / 10)  # FastChat's moves


def test_the_spread_is_what_judging_again_would_show() -> None:
    """Cells with noise of variance 4 around their own means: over 4,000 tables the mean of 25 cells has a deviation of 2 / 5."""
    rng = random.Random(0)
    many = {(q, 1): [rng.gauss(q, 2) for _ in range(400)] for q in range(25)}
    assert cells.spread(many) == pytest.approx(2 / 5, rel=0.03)
    assert cells.spread({(1, 1): [5.0], (2, 1): [7.0]}) is None


def test_intervals_resample_questions_not_turns() -> None:
    """Both turns of a question alike: the interval is that of 50 questions, √2 wider than that of 100 values."""
    rng = random.Random(1)
    values = [rng.gauss(5, 1) for _ in range(50)]
    both = cells.part({(q, t): [v] for q, v in enumerate(values) for t in (1, 2)}, by_row=False, resamples=2000, seed=0)
    single_ = cells.part({(q, 1): [v] for q, v in enumerate(values)}, by_row=False, resamples=2000, seed=0)
    assert (both.n, both.clusters, single_.clusters) == (100, 50, 50)
    assert both.ci == pytest.approx(single_.ci)


@pytest.mark.parametrize(
    ("score", "outcome"),
    [
        (1, "ranked"),
        (10, "ranked"),
        (7.5, "ranked"),
        (0, "out_of_range"),
        (0.9, "out_of_range"),
        (10.5, "out_of_range"),
        (-2, "out_of_range"),
    ],
)
def test_the_scale_ends_at_1_and_10(tmp_path: Path, score: float, outcome: str) -> None:
    assert [singles.outcome_of(row) for row in read(tmp_path, [single(81, 1, score)])] == [outcome]
