"""Where the state before each token of a reply lies, worked by hand and against a walk through every reply."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from starling.models.encode import Encoded, Padded
from starling.models.replies import Replies, ReplyLayout, cost, group_cost, lay_out
from starling.models.tree import Forest

LAYOUTS: tuple[ReplyLayout, ...] = ("sequences", "shared_prefix")


def test_sequences_worked_by_hand() -> None:
    laid = lay_out([Encoded((1, 2, 5), 2), Encoded((1, 2, 6, 7), 2)], 0)
    assert isinstance(laid.rows, Padded)
    assert laid.rows.ids_BT.tolist() == [[1, 2, 0], [1, 2, 6]]
    assert laid.before_N.tolist() == [1, 4, 5]
    assert laid.taken_N.tolist() == [5, 6, 7]
    assert laid.mask_BR.tolist() == [[True, False], [True, True]]
    assert laid.tokens == 3
    assert laid.spread(torch.tensor([1.5, 2.5, 3.5])).tolist() == [[1.5, 0.0], [2.5, 3.5]]


def test_a_shared_prompt_worked_by_hand() -> None:
    prompt = tuple(range(10, 20))
    replies = [Encoded((*prompt, 5, 6), 10), Encoded((8, 9, 7), 2), Encoded((*prompt, 4, 6, 3), 10), Encoded((*prompt, 5, 6), 10)]
    laid = lay_out(replies, 0, "shared_prefix")
    assert isinstance(laid.rows, Forest)
    # the prompt, then its replies without their last tokens in the order of their ids; then the other prompt
    assert laid.rows.ids_1T.tolist() == [[*prompt, 4, 6, 5, 8, 9]]
    assert laid.before_N.tolist() == [9, 12, 14, 9, 10, 11, 9, 12]
    assert laid.taken_N.tolist() == [5, 6, 7, 4, 6, 3, 5, 6]
    assert laid.mask_BR.sum(1).tolist() == [2, 1, 3, 2]


def test_replies_that_begin_alike_are_merged_inside() -> None:
    begun = tuple(range(30, 40))
    replies = [Encoded((1, *begun, 5, 9), 1), Encoded((1, *begun, 6, 9), 1), Encoded((1, *begun, 7), 1)]
    laid = lay_out(replies, 0, "shared_prefix")
    assert laid.rows.ids_1T.shape == (1, 13)
    assert laid.before_N.tolist() == [*range(11), 11, *range(11), 12, *range(11)]  # 10 and 11 both stand at the fork's last token


def prefixes(laid: Replies) -> list[tuple[int, ...]]:
    """For every reply token, the tokens that the state before it has seen, found in the rows."""
    if isinstance(laid.rows, Padded):
        width = laid.rows.ids_BT.shape[1]
        return [tuple(laid.rows.ids_BT[at // width, : at % width + 1].tolist()) for at in laid.before_N.tolist()]
    forest, ids = laid.rows, laid.rows.ids_1T[0].tolist()
    found = []
    for at in laid.before_N.tolist():
        segment = next(i for i, s in enumerate(forest.segments) if s.start <= at < s.stop)
        path = [forest.segments[i] for i in forest.path(segment)]
        found.append(tuple(t for s in path[:-1] for t in ids[s.start : s.stop]) + tuple(ids[path[-1].start : at + 1]))
    return found


@st.composite
def batches(draw: st.DrawFn) -> list[Encoded]:
    """Few tokens, so that prompts and replies often begin alike, repeat, or lie inside each other."""
    words = st.lists(st.integers(1, 2), min_size=1, max_size=14).map(tuple)
    prompts = draw(st.lists(words, min_size=1, max_size=3))
    return [Encoded(p + draw(words), len(p)) for p in draw(st.lists(st.sampled_from(prompts), min_size=1, max_size=7))]


@settings(max_examples=150, deadline=None)
@given(batches())
def test_every_state_has_seen_exactly_what_stands_before_its_token(replies: list[Encoded]) -> None:
    expected = [r.ids[:end] for r in replies for end in range(r.prompt_length, len(r.ids))]
    taken = [token for r in replies for token in r.ids[r.prompt_length :]]
    for layout in LAYOUTS:
        laid = lay_out(replies, 0, layout)
        assert prefixes(laid) == expected
        assert laid.taken_N.tolist() == taken
        assert laid.mask_BR.tolist() == [
            [j < len(r.ids) - r.prompt_length for j in range(laid.mask_BR.shape[1])] for r in replies
        ]


@settings(max_examples=100, deadline=None)
@given(batches())
def test_cost_is_the_size_of_the_rows(replies: list[Encoded]) -> None:
    padded, forest = lay_out(replies, 0).rows, lay_out(replies, 0, "shared_prefix").rows
    assert isinstance(padded, Padded)
    assert isinstance(forest, Forest)
    assert cost(replies, "sequences") == padded.ids_BT.numel()
    assert cost(replies, "shared_prefix") == forest.tokens
    groups: dict[tuple[int, ...], list[Encoded]] = {}
    for reply in replies:
        groups.setdefault(reply.ids[: reply.prompt_length], []).append(reply)
    assert sum(group_cost(group, "shared_prefix") for group in groups.values()) == forest.tokens
    assert sum(group_cost(group, "sequences") for group in groups.values()) == int(padded.mask_BT.sum())


def test_four_replies_to_a_prompt_of_200_cost_half() -> None:
    draw = random.Random(0)
    prompt = tuple(draw.randrange(1000) for _ in range(200))
    group = [Encoded(prompt + tuple(draw.randrange(1000) for _ in range(101)), 200) for _ in range(4)]
    assert group_cost(group, "shared_prefix") == 600
    assert group_cost(group) == 1200


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("replies", [[], [Encoded((1, 2), 2)], [Encoded((1, 2), 0)], [Encoded((1, 2, 3), 1), Encoded((), 0)]])
def test_what_is_no_reply_is_refused(replies: list[Encoded], layout: ReplyLayout) -> None:
    with pytest.raises(ValueError, match="at least one token"):
        lay_out(replies, 0, layout)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_moving_keeps_everything(layout: ReplyLayout) -> None:
    laid = lay_out([Encoded((1, 2, 5), 2), Encoded((1, 2, 6, 7), 2)], 0, layout)
    moved = laid.to("meta")
    assert moved.before_N.device.type == moved.taken_N.device.type == moved.mask_BR.device.type == "meta"
    assert type(moved.rows) is type(laid.rows)
    assert laid.to("cpu").before_N.tolist() == laid.before_N.tolist()
