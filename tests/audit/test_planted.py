"""A judge with a known bias and noise is measured back within its interval, and the intervals cover as often as they say.

The judge adds a bonus by position and Gumbel noise to answers of equal quality. Then (Luce, McFadden) the chance of being first
is the softmax of bonus / scale, and that of beating one other answer the logistic of their difference: the truth is exact.
"""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest

from starling.audit import Call, measure
from starling.audit.live import audit_judge
from starling.audit.tap import tapped
from starling.config import RankingSection
from starling.endpoint import Request, ScriptedEndpoint
from starling.journal import Journal
from starling.judge.judge import Panel
from starling.judge.rubric import read_prompt
from starling.judge.verdict import Verdict, write_reply
from starling.records import Finish, Message, ModelRef, Prompt, Response
from starling.stats import Interval

K, SCALE = 7, 0.5
BONUS = tuple(0.9 * (K - 1 - i) / (K - 1) for i in range(K))
FIRST = [math.exp(b / SCALE) / sum(math.exp(c / SCALE) for c in BONUS) for b in BONUS]
RANK = [1 + sum(1 / (1 + math.exp((b - c) / SCALE)) for j, c in enumerate(BONUS) if j != i) for i, b in enumerate(BONUS)]
SLOPE = sum((i - (K - 1) / 2) * r for i, r in enumerate(RANK)) * 12 / (K * (K * K - 1))


def order(rng: random.Random, bonus: tuple[float, ...] = BONUS) -> tuple[int, ...]:
    seen = [b - SCALE * math.log(-math.log(1 - rng.random())) for b in bonus]
    return tuple(sorted(range(len(seen)), key=lambda i: -seen[i]))


def holds(one: Interval | None, truth: float) -> bool:
    assert one is not None
    return one.low <= truth <= one.high


def test_the_truth_is_right() -> None:
    """By 20,000 draws, to two hundredths."""
    rng = random.Random(0)
    orders = [order(rng) for _ in range(20_000)]
    for i in range(K):
        assert sum(o[0] == i for o in orders) / 20_000 == pytest.approx(FIRST[i], abs=0.02)
        assert sum(o.index(i) + 1 for o in orders) / 20_000 == pytest.approx(RANK[i], abs=0.04)


def scripted(request: Request) -> str:
    material = read_prompt(request.messages)
    best = order(random.Random(request.key))
    return write_reply(Verdict(best, True, tuple((a, b, min(a, b, key=best.index)) for a, b in material.pairs)))


def panels(n: int) -> list[Panel]:
    found = []
    for i in range(n):
        prompt = Prompt.make((Message(role="user", content=f"Question {i}?"),), ("test",))
        responses = tuple(
            Response(id=f"{i}-{j}", prompt_id=prompt.id, model=f"m{j}", text=f"{j}" * (j + 1), finish=Finish.stop, call_id="")
            for j in range(K)
        )
        found.append(Panel(prompt, responses))
    return found


def test_a_live_audit_measures_the_planted_bias(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.sqlite") as journal:
        judge = ScriptedEndpoint(ModelRef(provider="scripted", name="j"), scripted, journal)
        found = audit_judge(panels(300), tapped(judge), RankingSection(judge="j"), 2, resamples=400)
    first = found.first
    assert all(holds(one, truth) for one, truth in zip(first.first_share, FIRST, strict=True))
    assert all(holds(one, truth) for one, truth in zip(first.mean_rank, RANK, strict=True))
    assert holds(first.position_slope, SLOPE)
    assert first.position_slope is not None
    assert first.position_slope.low > 0.2
    assert first.first_chi_square is not None
    assert first.first_chi_square.p < 1e-6
    # Asked again the same positions have the bonus: P(agree on a pair) = p² + (1 − p)². In another order the places are
    # independent, and answers are exchangeable: agreement by chance, τ = 0.
    p = [1 / (1 + math.exp((c - b) / SCALE)) for i, b in enumerate(BONUS) for c in BONUS[i + 1 :]]
    tau = sum(2 * (x * x + (1 - x) * (1 - x)) - 1 for x in p) / len(p)
    assert holds(found.stability.tau, tau)
    assert holds(found.reordered.tau, 0)
    assert holds(found.order_effect.tau, -tau)
    assert holds(found.reordered.top1, 1 / K)
    assert holds(found.stability.top1, sum(f * f for f in FIRST))
    for one in (first.longer_wins, found.longer_wins_close):
        assert one is not None
        assert abs(one.mean - 0.5) < one.high - one.low, "twice the half width: 1 in 10,000 by chance"
    assert found.cost.calls == 900


def test_intervals_cover_about_as_often_as_they_say() -> None:
    """200 audits of 100 rankings: shares and mean ranks at every position, and the slope. 95 % nominal."""
    shares = ranks = slopes = 0
    for seed in range(200):
        rng = random.Random(seed)
        found = measure([Call(str(i), "ranked", K, order(rng)) for i in range(100)], resamples=150, seed=seed)
        shares += sum(holds(one, truth) for one, truth in zip(found.first_share, FIRST, strict=True))
        ranks += sum(holds(one, truth) for one, truth in zip(found.mean_rank, RANK, strict=True))
        slopes += holds(found.position_slope, SLOPE)
    assert 0.93 <= shares / (200 * K) <= 0.98
    assert 0.93 <= ranks / (200 * K) <= 0.97
    assert 180 <= slopes <= 198


# ── ties in one pass ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_tied_places_share_first_places_and_ranks() -> None:
    """A = B over C, and C over A = B: first places 1/2 1/2 0 and 0 0 1; ranks 1.5 1.5 3 and 2.5 2.5 1."""
    calls = [
        Call("p", "ranked", 3, (1, 0, 2), ((0, 2, 0), (1, 2, 2)), tied=(2, 1), pair_ties=((0, 1),), lengths=(1, 2, 3)),
        Call("q", "ranked", 3, (2, 0, 1), tied=(1, 2)),
    ]
    found = measure(calls, resamples=20)
    assert [one.mean for one in found.first_share] == pytest.approx([0.25, 0.25, 0.5])
    assert [one.mean for one in found.mean_rank] == pytest.approx([2, 2, 2])
    assert found.position_slope is not None
    assert found.position_slope.mean == pytest.approx((0.75 - 0.75) / 2)
    assert found.contradiction is not None
    assert found.contradiction.mean == 1 / 2
    assert found.complete_pairs is not None
    assert found.complete_pairs.mean == 1 / 2, "a pair called equal is stated"
    assert found.consistency is None, "wins of a list with ties have no ζ"
    assert found.longer_wins is not None
    assert (found.longer_wins.mean, found.longer_wins.n) == (0, 2), "the tied pair has no better one"
    with pytest.raises(ValueError, match="places"):
        measure([Call("p", "ranked", 3, (0, 1, 2), tied=(1, 1))])


def test_calls_about_one_answer_have_no_position() -> None:
    found = measure([Call("p", "ranked", 1, (0,), good_natured=True)] * 3)
    assert (found.n, found.k, found.first_share, found.position_slope, found.complete_pairs is None) == (3, 1, (), None, False)
