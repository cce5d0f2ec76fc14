"""Duplicates: keys by hand; near-duplicates against the comparison of all pairs."""

from __future__ import annotations

import random
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starling.errors import MissingExtra
from starling.prompts.duplicates import (
    PERMUTATIONS,
    RECALL,
    Groups,
    NearDuplicates,
    Rule,
    jaccard,
    key_of,
    opening_of,
    rows_per_band,
    shingles,
    words,
)
from starling.records import Message, Messages


def talk(*texts: str) -> Messages:
    return tuple(Message(role="assistant" if i % 2 else "user", content=t) for i, t in enumerate(texts))


# ── the same ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Why is that?", "why is that"),
        ("  She said:\n“Hello,  World…”\t", "she said hello world"),
        ("What is 5!", "what is 5!"),
        ("is a != b, or a == b?", "is a != b or a == b"),
        ("x = 1.5; y = 15", "x = 1.5 y = 15"),
        ("don't", "don't"),
        ("¿Qué?", "qué"),
        ("cafe\u0301", "café"),
        ("STRASSE straße", "strasse strasse"),
        ("?!", "?!"),
        (" ?  ! ", "? !"),
        ("", ""),
    ],
)
def test_words_by_hand(text: str, expected: str) -> None:
    assert words(text) == expected


@given(st.text())
def test_words_of_words_are_the_same(text: str) -> None:
    assert words(words(text)) == words(text)
    assert words(f"  {text}\n") == words(text)


@pytest.mark.parametrize("rule", ["words", "letters", "characters"])
def test_where_a_turn_ends_counts_under_every_rule(rule: Rule) -> None:
    conversations = [talk("a b c"), talk("a", "b", "c"), talk("a b", "", "c")]
    assert len({key_of(c, rule) for c in conversations}) == 3


def test_an_opening_is_shared_by_all_later_turns() -> None:
    assert opening_of(talk("Why?")) == opening_of(talk("why", "b", "c")) != opening_of(talk("who"))


@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=30))
def test_groups_are_connected_components(edges: list[tuple[int, int]]) -> None:
    import numpy as np

    groups, component = Groups(), {i: {i} for i in range(20)}
    for _ in range(20):
        groups.add()
    for a, b in edges:
        groups.join(a, b)
        union = component[a] | component[b]
        for member in union:
            component[member] = union
    assert [groups.find(i) for i in range(20)] == [min(component[i]) for i in range(20)]
    assert groups.find_all(np.arange(20, dtype=np.int32)).tolist() == [min(component[i]) for i in range(20)]


# ── nearly the same ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_shingles_and_jaccard_by_hand() -> None:
    assert shingles("abcdefg") == {"abcde", "bcdef", "cdefg"}
    assert shingles("ab") == {"ab"}
    assert shingles("") == {""}
    assert jaccard(shingles("abcdefg"), shingles("abcdefx")) == 2 / 4
    assert jaccard({"a"}, {"b"}) == 0
    assert jaccard({"a"}, {"a"}) == 1


def test_bands_by_hand() -> None:
    # 18 bands of 7: 1 − (1 − 0.8^7)^18 = 0.986; 16 of 8: 0.947, which is too little.
    assert rows_per_band(0.8) == 7
    assert all(rows_per_band(t / 100) <= rows_per_band((t + 1) / 100) for t in range(50, 99))
    for threshold in (0.5, 0.7, 0.9, 0.99):
        r = rows_per_band(threshold)
        assert 1 - (1 - threshold**r) ** (PERMUTATIONS // r) >= RECALL


def find(conversations: list[Messages], threshold: float = 0.8) -> tuple[dict[int, int], list[int]]:
    """What each merged conversation is merged into, and the group of every opening."""
    near, groups, openings = NearDuplicates(threshold, conversations.__getitem__), Groups(), dict[int, int]()
    for number, messages in enumerate(conversations):
        key = opening_of(messages)
        if key not in openings:
            openings[key] = groups.add()
        near.add(messages, openings[key], number)
    near.join_openings(groups)
    return dict(near.merges()), [groups.find(openings[opening_of(m)]) for m in conversations]


def greedy(conversations: list[Messages], threshold: float) -> dict[int, int]:
    """The same by comparing all with all: every turn alike, and the same digits in it."""

    def alike(a: Messages, b: Messages) -> bool:
        def digits(m: Message) -> list[str]:
            return "".join(c if c.isdigit() else " " for c in m.content).split()

        return len(a) == len(b) and all(
            jaccard(shingles(words(x.content)), shingles(words(y.content))) >= threshold and digits(x) == digits(y)
            for x, y in zip(a, b, strict=True)
        )

    merged: dict[int, int] = {}
    for i, one in enumerate(conversations):
        first = next((j for j in range(i) if j not in merged and alike(conversations[j], one)), None)
        if first is not None:
            merged[i] = first
    return merged


def made(count: int, seed: int) -> list[Messages]:
    """Conversations of which many are versions of others: words changed, added or turned, turns appended."""
    rng = random.Random(seed)
    lexicon = ["".join(rng.choices("abcdefghijklmnopqrst", k=rng.randint(2, 8))) for _ in range(300)] + ["7", "12"]
    found: list[Messages] = []
    for _ in range(count):
        if found and rng.random() < 0.6:
            texts = [m.content.split() for m in rng.choice(found)]
            for _ in range(rng.randint(1, 3)):
                text = rng.choice(texts)
                text[rng.randrange(len(text))] = rng.choice(lexicon)
            if rng.random() < 0.2:
                texts += [rng.choices(lexicon, k=3), rng.choices(lexicon, k=12)]
        else:
            texts = [rng.choices(lexicon, k=rng.randint(10, 40))]
        found.append(talk(*(" ".join(t) for t in texts)))
    return found


@pytest.mark.parametrize("threshold", [0.6, 0.8])
def test_merges_are_those_of_comparing_all_with_all(threshold: float) -> None:
    conversations = made(300, seed=round(threshold * 10))
    expected, (found, _) = greedy(conversations, threshold), find(conversations, threshold)
    assert len(expected) > 40
    # LSH may miss a few, and a missed one stays as a leader that may take in others; chance adds none.
    assert sum(found.get(i) == leader for i, leader in expected.items()) >= 0.95 * len(expected)
    for i, leader in found.items():
        assert leader < i
        assert leader not in found
        assert greedy([conversations[leader], conversations[i]], threshold) == {1: 0}


def test_openings_that_are_alike_share_a_group_also_through_others() -> None:
    conversations = made(300, seed=3)
    _, groups = find(conversations)
    opening = [shingles(words(c[0].content)) for c in conversations]
    pairs = [(i, j) for i, j in combinations(range(300), 2) if jaccard(opening[i], opening[j]) >= 0.8]
    together = sum(groups[i] == groups[j] for i, j in pairs)
    assert len(pairs) > 100
    assert together >= 0.98 * len(pairs)
    linked = Groups()
    for _ in conversations:
        linked.add()
    for i, j in pairs:
        linked.join(i, j)
    for i, j in combinations(range(300), 2):
        assert groups[i] != groups[j] or linked.find(i) == linked.find(j), "nothing is joined without a chain of likeness"


LINE = "please write a long and friendly letter to the landlord about the broken heating in the kitchen"


@pytest.mark.parametrize(
    ("one", "other", "merged"),
    [
        (talk(LINE), talk(LINE + " now"), True),
        (talk(LINE + " 3 times"), talk(LINE + " 4 times"), False),
        (talk(LINE, "Sure.", "And now as a poem"), talk(LINE), False),
        (talk(LINE, "Sure.", "And now as a poem"), talk(LINE, "Sure.", "Shorter"), False),
        (talk(LINE, LINE, LINE), talk(LINE + " now", LINE + " now", LINE + " now"), True),
        (talk(LINE), talk(LINE), True),
    ],
)
def test_pairs_by_hand(one: Messages, other: Messages, merged: bool) -> None:
    assert find([one, other])[0] == ({1: 0} if merged else {})


def test_a_merged_one_takes_nothing_in() -> None:
    # b is like a and c like b, but c is not like a: b goes to a, and c stays.
    a, b, c = talk(LINE), talk(LINE + " very soon"), talk(LINE + " very soon and in verse please")
    assert (find([a, b])[0], find([b, c])[0], find([a, c])[0]) == ({1: 0}, {1: 0}, {})
    merged, groups = find([a, b, c])
    assert merged == {1: 0}
    assert groups == [0, 0, 0]


def test_many_copies_of_one_text_go_to_the_first() -> None:
    conversations = [talk(f"{LINE} {'x' * i}") for i in range(1, 9)] + [talk("something else altogether, and short")]
    merged, groups = find(conversations)
    assert set(merged.values()) == {0}
    assert len(merged) >= 6
    assert len(set(groups)) == 2


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"starling-rlaif\[prompts\]"):
        NearDuplicates(0.8, lambda number: ())
