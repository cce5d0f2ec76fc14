"""The table of a head to head: values worked by hand, laws, and a simulated judge whose bias is known."""

from __future__ import annotations

import numpy as np
import pytest

from starling import stats_comparisons
from starling.errors import InputError
from starling.evaluate.pairwise.measure import measure, meetings
from starling.evaluate.pairwise.votes import Verdict, Votes, VotesBuilder
from starling.evaluate.results import ModelResult, Result


def votes_of(rows: list[tuple[str, str, str, float | None, float | None]], turn: bool = False) -> Votes:
    """(prompt, a, b, preference for b when a was first, when b was first)."""
    builder = VotesBuilder()
    for prompt, a, b, one, two in rows:

        def verdict(value: float | None, first: str) -> Verdict:
            return Verdict(value, first, "ranked" if value is not None else "unparsed")  # type: ignore[arg-type]

        if turn:
            flipped = (None if v is None else 1 - v for v in (one, two))
            one_, two_ = flipped
            builder.add(prompt, b, a, [verdict(one_, "b"), verdict(two_, "a")])
        else:
            builder.add(prompt, a, b, [verdict(one, "a"), verdict(two, "b")])
    return builder.build()


def line(result: Result, model: str) -> ModelResult:
    return next(m for m in result.models if m.model == model)


HAND = [
    ("p1", "x", "y", 1.0, 1.0),  # y wins
    ("p2", "x", "y", 0.0, 1.0),  # the first shown wins both times: a tie, lean +2
    ("p3", "x", "y", 0.0, 0.0),  # x wins
    ("p4", "x", "y", 1.0, 1.0),  # y wins
    ("p5", "x", "y", 1.0, None),  # no verdict
    ("p6", "x", "y", 0.5, 1.0),  # a tie and a win: a tie, lean +1
]


def test_hard_votes_by_hand() -> None:
    found = measure(votes_of(HAND), resamples=200)
    y, x = line(found, "y"), line(found, "x")
    assert y.overall.score == pytest.approx(100 * (2 + 2 * 0.5) / 5)  # 2 wins, 2 ties of 5
    assert x.overall.score == pytest.approx(40)
    assert (y.more["won"], y.more["tied"], y.more["lost"]) == (2, 2, 1)
    assert y.outcomes == {"ranked": 5, "unparsed": 1}
    assert (y.overall.n, y.overall.clusters) == (5, 5)
    assert y.more["order_disagreement"] == pytest.approx(2 / 5)
    assert found.judge is not None
    assert found.judge.position_gap == pytest.approx(3 / 10)  # leans 0, 2, 0, 0, 1 over ten verdicts
    assert found.judge.outcomes == {"ranked": 11, "unparsed": 1}
    assert found.judge.unparsed_share == pytest.approx(1 / 12)
    (difference,) = found.differences
    assert (difference.first, difference.second) == ("x", "y")
    assert difference.difference == pytest.approx(-20)
    assert difference.p == pytest.approx(1.0)  # +1 against −1 −1: sums of three signs are at least 1 in size
    assert found.models[0].model == "y"


def test_soft_votes_by_hand() -> None:
    rows = [("p1", "x", "y", 0.9, 0.7), ("p2", "x", "y", 0.2, 0.6)]
    found = measure(votes_of(rows), soft=True, resamples=200)
    assert line(found, "y").overall.score == pytest.approx(100 * (0.8 + 0.4) / 2)
    assert found.judge is not None
    # towards the first: 1 − 1.8, 2·.7 − 1, 1 − .4, 2·.6 − 1 = −.8, .4, .6, .2
    assert found.judge.position_gap == pytest.approx(0.4 / 4)


def test_swapping_a_and_b_flips_everything_else_stays() -> None:
    rng = np.random.default_rng(3)
    rows = [(f"p{i}", "x", "y", float(rng.choice([0, 0.5, 1])), float(rng.choice([0, 1, 1]))) for i in range(60)]
    plain, turned = measure(votes_of(rows)), measure(votes_of(rows, turn=True))
    assert plain == turned
    renamed = measure(votes_of([(p, "y", "x", one, two) for p, _, _, one, two in rows]))
    x, y = line(plain, "x").overall, line(renamed, "y").overall
    assert x.score == pytest.approx(y.score)
    d, e = plain.differences[0], renamed.differences[0]
    assert d.difference == pytest.approx(-e.difference)
    assert d.p == pytest.approx(e.p)
    first, second = line(plain, "x").parts["against y"], line(plain, "y").parts["against x"]
    assert first.score == pytest.approx(100 - (second.score or 0))
    assert first.ci is not None
    assert second.ci is not None
    assert first.ci == pytest.approx((100 - second.ci[1], 100 - second.ci[0]))


def test_identical_models_are_even_and_p_is_one() -> None:
    found = measure(votes_of([(f"p{i}", "x", "y", 0.5, 0.5) for i in range(20)]))
    assert [m.overall.score for m in found.models] == [50, 50]
    assert found.models[0].overall.ci == (50, 50)
    assert found.differences[0].p == 1.0
    assert found.differences[0].p_adjusted == 1.0


def test_against_a_baseline_differences_are_paired_by_prompt() -> None:
    # u and v each meet the baseline; u wins where v loses on p1 … p6, both win elsewhere.
    rows: list[tuple[str, str, str, float | None, float | None]] = []
    for i in range(20):
        rows += [(f"p{i}", "base", "u", 1.0, 1.0), (f"p{i}", "base", "v", 0.0 if i < 6 else 1.0, 0.0 if i < 6 else 1.0)]
    found = measure(votes_of(rows), baseline="base")
    assert line(found, "base").overall.score == 50
    assert line(found, "u").overall.score == 100
    assert line(found, "v").overall.score == pytest.approx(70)
    by_pair = {(d.first, d.second): d for d in found.differences}
    assert by_pair["u", "v"].difference == pytest.approx(30)
    assert by_pair["u", "v"].p == pytest.approx(2 / 2**6)  # the six prompts that differ all point one way
    assert by_pair["v", "base"].difference == pytest.approx(20)
    assert by_pair["u", "base"].p == pytest.approx(2 / 2**20)
    p = [d.p for d in found.differences]
    assert [d.p_adjusted for d in found.differences] == pytest.approx(stats_comparisons.holm(p))
    with pytest.raises(InputError, match="'w' is in none of the votes"):
        measure(votes_of(rows), baseline="w")


def test_intervals_resample_prompts_not_votes() -> None:
    """Ten copies of each verdict tell nothing new: the interval does not shrink."""
    rng = np.random.default_rng(1)
    rows = [(f"p{i}", "x", "y", v, v) for i, v in enumerate(rng.choice([0.0, 1.0], size=50))]
    once, tenfold = measure(votes_of(rows)), measure(votes_of(rows * 10))
    a, b = line(once, "x").overall, line(tenfold, "x").overall
    assert a.score == pytest.approx(b.score)
    assert a.ci == pytest.approx(b.ci)
    assert (a.n, b.n, b.clusters) == (50, 500, 50)
    assert once.differences[0].p == pytest.approx(tenfold.differences[0].p)


def test_a_simulated_judges_bias_is_found() -> None:
    """A judge who goes by position three times in ten: expected gap .3, and orders disagree whenever he does."""
    rng = np.random.default_rng(5)
    builder = VotesBuilder()
    for i in range(4000):
        truth, lazy = float(rng.random() < 0.6), rng.random() < 0.3
        builder.add(f"p{i}", "x", "y", [Verdict(0.0 if lazy else truth, "a"), Verdict(1.0 if lazy else truth, "b")])
    found = measure(builder.build(), resamples=300)
    assert found.judge is not None
    assert found.judge.position_gap_ci is not None
    assert found.judge.position_gap == pytest.approx(0.3, abs=0.02)
    assert found.judge.position_gap_ci[0] < 0.3 < found.judge.position_gap_ci[1]
    assert line(found, "y").more["order_disagreement"] == pytest.approx(0.3, abs=0.02)
    assert line(found, "y").overall.score == pytest.approx(100 * (0.7 * 0.6 + 0.15), abs=2)


def test_repeats_give_the_spread_of_the_score() -> None:
    builder = VotesBuilder()
    for i in range(10):
        for repeat, wins in ((0, 6), (1, 8)):
            value = 1.0 if i < wins else 0.0
            builder.add(f"p{i}", "x", "y", [Verdict(value, "a"), Verdict(value, "b")], repeat=repeat)
    found = measure(builder.build())
    assert found.judge is not None
    assert found.judge.repeats == 2
    assert found.judge.repeat_spread == pytest.approx(np.std([60, 80], ddof=1))
    assert line(found, "y").overall.score == 70


def test_people_lengths_and_ratings() -> None:
    rows: list[tuple[str, str, str, float | None, float | None]] = []
    for i in range(12):
        rows += [(f"p{i}", "x", "y", float(i < 9), float(i < 9)), (f"p{i}", "y", "z", float(i < 9), float(i < 9)),
                 (f"p{i}", "x", "z", float(i < 10), float(i < 10))]  # fmt: skip
    people = VotesBuilder()
    for i in range(12):
        people.add(f"p{i}", "y", "x", [Verdict(0.0, "")], by="human")  # people always prefer y; the judge does nine times
    people.add("p0", "x", "w", [Verdict(0.0, "")], by="human")
    texts = {"x": {f"p{i}": "short" for i in range(12)}, "y": {f"p{i}": "rather long" for i in range(12)}}
    found = measure(votes_of(rows), people=people.build(), texts=texts)
    assert found.judge is not None
    assert found.judge.human_agreement == pytest.approx(9 / 12)
    assert found.judge.human_votes == 12
    assert line(found, "x").more["avg_length"] == 5
    assert any(note.startswith("The longer answer scores 75.0 %") and "12 meetings" in note for note in found.notes)
    ratings = [line(found, m).more["rating"] for m in "xyz"]
    assert all(r is not None for r in ratings)
    assert ratings == sorted(ratings)  # type: ignore[type-var]
    assert sum(r or 0 for r in ratings) == pytest.approx(3000)


def test_models_without_a_common_scale_have_no_rating() -> None:
    rows: list[tuple[str, str, str, float | None, float | None]] = [("p", "a", "b", 1.0, 1.0), ("q", "c", "d", 1.0, 0.0)]
    found = measure(votes_of(rows))
    assert all("rating" not in m.more for m in found.models)
    assert line(found, "b").overall.ci is None, "one prompt tells no spread"
    assert len(found.differences) == 2


def test_without_any_verdict_there_is_no_score() -> None:
    found = measure(votes_of([("p", "x", "y", None, 1.0)]))
    assert [m.overall.score for m in found.models] == [None, None]
    assert found.differences == ()
    assert meetings(votes_of([("p", "x", "y", None, 1.0)]), soft=True).outcome_M.tolist() == [1]


def test_answers_of_equal_length_say_nothing_about_length() -> None:
    texts = {model: {"p1": "same", "p3": "same"} for model in "xy"}
    assert not any("answer" in note for note in measure(votes_of(HAND), texts=texts).notes)
    assert any("None of the votes" in note for note in measure(votes_of(HAND), texts={"x": {"q": "text"}}).notes)
