"""Head to head: both orders, ties only by disagreement, failures counted, position gap by hand."""

from __future__ import annotations

import pytest

from starling.evaluate import head_to_head
from starling.records import Comparison, Outcome


def verdict(winner: str | None, outcome: Outcome = Outcome.ranked) -> Comparison:
    return Comparison.model_validate(
        {"prompt_id": "p", "a": "base", "b": "tuned", "winner": winner, "by": "judge", "outcome": outcome}
    )


@pytest.mark.parametrize(("first", "second", "score"), [("b", "b", 1.0), ("a", "a", 0.0), ("a", "b", 0.5), ("b", "a", 0.5)])
def test_score_of_both_orders(first: str, second: str, score: float) -> None:
    assert head_to_head.tuned_score(verdict(first), verdict(second)) == score


def test_a_missing_verdict_is_no_tie() -> None:
    broken = verdict(None, Outcome.unparsed)
    assert head_to_head.tuned_score(verdict("b"), broken) is None
    found = head_to_head.measure([(verdict("b"), broken), (verdict("b"), verdict("b"))], identical=0, resamples=100, seed=0)
    assert found["win_rate"] == 1.0
    assert found["without_verdict"] == 1
    assert found["outcomes"] == {"ranked": 3, "unparsed": 1}


def test_win_rate_and_position_gap_by_hand() -> None:
    verdicts = [
        (verdict("b"), verdict("b")),  # won
        (verdict("a"), verdict("b")),  # the first shown wins both times: a tie, gap +1
        (verdict("a"), verdict("a")),  # lost
        (verdict("b"), verdict("b")),  # won
    ]
    found = head_to_head.measure(verdicts, identical=1, resamples=300, seed=0)
    assert (found["wins"], found["ties"], found["losses"], found["identical"]) == (2, 2, 1, 1)
    assert found["win_rate"] == pytest.approx((2 + 0.5 * 2) / 5)
    assert found["position_gap"] == pytest.approx(2 / 8)  # one prompt sums to +2, the others to 0, over 8 verdicts
    assert found["prompts"] == 5


def test_without_any_verdict_there_is_no_rate() -> None:
    found = head_to_head.measure([(verdict(None, Outcome.refused), verdict("a"))], identical=0, resamples=100, seed=0)
    assert found["win_rate"] is None
    assert found["position_gap"] is None
