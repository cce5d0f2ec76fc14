"""Rows with shared beginnings: planned by hand, and every conversation reads back from any row."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from starling.models.encode import Encoded
from starling.models.tree import FORK_TOKENS, Forest, Segment, dense_mask, gathered, pack, places, tree_tokens

Ids = tuple[int, ...]


def read_back(forest: Forest, n: int) -> list[int]:
    """Conversation n, from its last token up to the root."""
    last = int(forest.last_N[n])
    leaf = next(s for s, segment in enumerate(forest.segments) if segment.start <= last < segment.stop)
    assert last == forest.segments[leaf].stop - 1, "a conversation ends where a segment ends"
    index = [i for s in forest.path(leaf) for i in range(forest.segments[s].start, forest.segments[s].stop)]
    assert forest.position_1T[0][index].tolist() == list(range(len(index)))
    return forest.ids_1T[0][index].tolist()  # type: ignore[no-any-return]


def test_a_prompt_and_two_answers() -> None:
    forest = pack([[(1, 2, 3), (1, 2, 4, 5)]], fork_tokens=1)
    assert forest.ids_1T.tolist() == [[1, 2, 3, 4, 5]]
    assert forest.position_1T.tolist() == [[0, 1, 2, 2, 3]]
    assert forest.last_N.tolist() == [2, 4]
    assert forest.segments == (Segment(0, 2, 5, -1, 0), Segment(2, 3, 3, 0, 2), Segment(3, 5, 5, 0, 2))
    assert dense_mask(forest).int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 0, 1, 0],
        [1, 1, 0, 1, 1],
    ]
    assert dense_mask(forest, window=2).int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 1, 0, 1, 0],
        [0, 0, 0, 1, 1],
    ]


def test_answers_that_begin_alike_end_inside_each_other_or_are_equal() -> None:
    group = [(1, 2, 3, 4), (9,), (1, 2), (1, 2, 3, 5), (1, 2, 3, 4), (1, 2, 3)]
    forest = pack([group, [(1, 2)]], fork_tokens=1)
    assert forest.ids_1T.tolist() == [[1, 2, 3, 4, 5, 9, 1, 2]]  # the second group shares nothing with the first
    assert forest.last_N.tolist() == [3, 5, 1, 4, 3, 2, 7]
    assert [s.parent for s in forest.segments] == [-1, 0, 1, 1, -1, -1]
    assert [s.end for s in forest.segments] == [5, 5, 4, 5, 6, 8]
    assert tree_tokens(group, fork_tokens=1) == 6
    assert forest.longest == 4


def test_places_of_every_token_worked_by_hand() -> None:
    group = [(1, 2, 3, 4), (9,), (1, 2), (1, 2, 3, 5), (1, 2, 3, 4)]
    forest = pack([group, [(1, 2)]], fork_tokens=1)
    assert forest.ids_1T.tolist() == [[1, 2, 3, 4, 5, 9, 1, 2]]
    assert [where.tolist() for where in places(forest)] == [[0, 1, 2, 3], [5], [0, 1], [0, 1, 2, 4], [0, 1, 2, 3], [6, 7]]


def test_a_stretch_is_merged_only_where_that_saves_enough() -> None:
    prompt = tuple(range(100, 120))
    pair, triple = [(*prompt, 1, 2, 3), (*prompt, 1, 2, 4)], [(*prompt, 5, 6, n) for n in range(3)]
    forest = pack([[*pair, *triple]], fork_tokens=3)
    # two tokens shared by two answers save 2, shared by three they save 4, the prompt saves 20 per further answer
    assert forest.ids_1T[0].tolist() == [*prompt, 1, 2, 3, 1, 2, 4, 5, 6, 0, 1, 2]
    assert [read_back(forest, n) for n in range(5)] == [list(c) for c in (*pair, *triple)]
    assert len(pack([[(1, 2), (1, 3)]], fork_tokens=2).segments) == 2
    alone = [(*range(FORK_TOKENS - 1), 50), (*range(FORK_TOKENS - 1), 51)]
    assert tree_tokens(alone) == 2 * FORK_TOKENS
    assert tree_tokens([(0, *a) for a in alone]) == FORK_TOKENS + 2
    # an answer that ends on a stretch too short to merge gets a segment of its own
    assert pack([[(1, 2), (1, 2, 3)]], fork_tokens=3).ids_1T.tolist() == [[1, 2, 1, 2, 3]]


def test_a_ranking_costs_its_prompt_once() -> None:
    prompt = tuple(range(500))
    answers = [Encoded((*prompt, *[1000 + k] * 300), 500) for k in range(7)]
    assert tree_tokens([a.ids for a in answers]) == 500 + 7 * 300  # trainers that repeat the prompt in all pairs: 33,600


ids = st.lists(st.integers(0, 2), min_size=1, max_size=9).map(tuple)
groups = st.lists(st.lists(ids, min_size=1, max_size=8), min_size=1, max_size=4)


@given(groups, st.integers(1, 12))
def test_every_conversation_reads_back(given: Sequence[Sequence[Ids]], fork_tokens: int) -> None:
    forest = pack(given, fork_tokens)
    flat = [c for group in given for c in group]
    assert [read_back(forest, n) for n in range(len(flat))] == [list(c) for c in flat]
    assert forest.tokens == sum(tree_tokens(group, fork_tokens) for group in given)
    distinct = sum(len({c[: i + 1] for c in group for i in range(len(c))}) for group in given)
    whole = sum(len(c) for group in given for c in set(group))
    assert distinct <= forest.tokens <= whole
    if fork_tokens == 1:
        assert forest.tokens == distinct
    for s, segment in enumerate(forest.segments):  # preorder: descendants follow, and nothing else lies in between
        assert segment.start == (forest.segments[s - 1].stop if s else 0)
        below = [t for t in range(len(forest.segments)) if s in forest.path(t)]
        assert below == list(range(s, s + len(below)))
        assert segment.end == forest.segments[below[-1]].stop
        assert segment.position == (0 if segment.parent < 0 else position_after(forest.segments[segment.parent]))
    for where, ids in zip(places(forest), (ids for group in given for ids in group), strict=True):
        assert forest.ids_1T[0, where].tolist() == list(ids)
        assert forest.position_1T[0, where].tolist() == list(range(len(ids)))


def position_after(segment: Segment) -> int:
    return segment.position + segment.stop - segment.start


@given(groups)
def test_gathered_keys_are_the_dense_mask(given: Sequence[Sequence[Ids]]) -> None:
    forest = pack(given, 1)
    plan = gathered(forest)
    allowed_TT = torch.zeros(forest.tokens, forest.tokens, dtype=torch.bool)
    for s, segment in enumerate(forest.segments):
        keys = plan.key_index[plan.key_offsets[s] : plan.key_offsets[s + 1]]
        queries = range(int(plan.query_offsets[s]), int(plan.query_offsets[s + 1]))
        assert list(queries) == list(range(segment.start, segment.stop))
        for i, query in enumerate(queries):  # aligned at the ends
            allowed_TT[query, keys[: len(keys) - len(queries) + i + 1]] = True
    assert torch.equal(allowed_TT, dense_mask(forest))
    assert plan.most_keys == forest.longest


def test_order_and_duplicates_change_nothing_but_the_map() -> None:
    group = [(1, 2, 3, 4), (1, 2), (5, 6), (1, 2, 3, 5)]
    one, other = pack([group], 1), pack([[group[2], group[3], group[0], group[2], group[1]]], 1)
    assert one.segments == other.segments
    assert torch.equal(one.ids_1T, other.ids_1T)
    assert other.last_N.tolist() == one.last_N[[2, 3, 0, 2, 1]].tolist()


def test_nothing_and_empty_conversations_are_refused() -> None:
    for bad in ([], [[]], [[(1, 2), ()]]):
        with pytest.raises(ValueError, match="at least one conversation"):
            pack(bad)
