"""The second reward model's rankings: other conversations, the same ones each time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from starling.chat import split_of
from starling.errors import InputError
from starling.records import Message, Prompt, RankedAnswer, RankedPrompt
from starling.reward.guard import guard_seed, side_of, split

Make = Callable[..., Any]


def ranking(*turns: str) -> RankedPrompt:
    roles = ["user", "assistant"] * len(turns)
    messages = tuple(Message(role=r, content=t) for r, t in zip(roles, turns, strict=False))  # type: ignore[arg-type]
    answers = tuple(RankedAnswer(answer=a, model="m", rank=float(i + 1)) for i, a in enumerate("ab"))
    return RankedPrompt(prompt=Prompt.make(messages, ("test",)), answers=answers, good_natured=True)


def test_the_sides_are_disjoint_and_complete_in_order(make_rankings: Make) -> None:
    rows = make_rankings(200)
    main, guard = split(rows, 0.3)
    assert sorted([*main, *guard], key=rows.index) == rows
    assert [r for r in rows if r in list(main)] == list(main)
    assert not {r.prompt.id for r in main} & {r.prompt.id for r in guard}
    assert (len(main), len(guard)) == (len(list(main)), len(list(guard)))
    assert 35 <= len(guard) <= 85  # 60 ± 4 standard deviations
    assert list(main) == list(main), "they can be read again"
    assert rows[0] in (main if side_of(rows[0].prompt.messages, 0.3) == "main" else guard)


def test_all_turns_of_a_conversation_are_on_one_side() -> None:
    for i in range(50):
        first = ranking(f"hello {i}")
        later = ranking(f"  Hello   {i}", "yes?", "and now")
        assert side_of(first.prompt.messages, 0.5) == side_of(later.prompt.messages, 0.5)


def test_a_larger_share_keeps_what_a_smaller_one_had(make_rankings: Make) -> None:
    rows = make_rankings(100)
    small, large = (list(split(rows, share)[1]) for share in (0.2, 0.5))
    assert all(row in large for row in small)
    assert len(small) < len(large)


def test_it_has_nothing_to_do_with_the_split_into_train_and_validation(make_rankings: Make) -> None:
    """One hash for both would give the guard the conversations next to those held out, or none of them."""
    rows = [r for r in make_rankings(400) if split_of(r.prompt.messages, validation=0.5, test=0.0) == "train"]
    share = sum(side_of(r.prompt.messages, 0.5) == "guard" for r in rows) / len(rows)
    assert 0.35 < share < 0.65


@pytest.mark.parametrize(
    ("count", "fraction", "whose"), [(3, 1e-9, "its guard"), (3, 1 - 1e-9, "the reward model"), (0, 0.5, "the reward model")]
)
def test_a_side_without_rankings_is_refused(count: int, fraction: float, whose: str, make_rankings: Make) -> None:
    with pytest.raises(InputError, match=rf"left for {whose}.*reward\.guard_fraction"):
        split(make_rankings(count), fraction)


def test_the_second_seed_is_another_one_and_the_same_each_time() -> None:
    assert guard_seed(1) == 2762145531
    assert guard_seed(1) != guard_seed(2)
