"""Grammars of the judge's replies: hand-read replies, a table of malformed ones, fuzzing, and 775 real replies."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starling.judge.verdict import LETTERS, Failure, Grammar, Verdict, parse, write_reply

DATA = Path(os.environ.get("STARLING_DATA", "../shared/data")) / "nectar_judge"

GOOD = """Good natured: yes
('A', 'C'): A
('C', 'B'): C
('B', 'A'): A
Ranking: ['A', 'C', 'B']"""


def test_a_good_reply_is_read_in_the_order_written() -> None:
    # A=0, B=1, C=2; pairs as (first, second, winner)
    assert parse(GOOD, 3) == Verdict(ranking=(0, 2, 1), good_natured=True, pairs=((0, 2, 0), (2, 1, 2), (1, 0, 0)))


def test_not_good_natured_and_harmless_spacing() -> None:
    reply = "\n Good natured: no\r\n\n( 'B','A' ) : B \n\nRanking:['B' , 'A']\n\n"
    assert parse(reply, 2) == Verdict(ranking=(1, 0), good_natured=False, pairs=((1, 0, 1),))


def test_pair_verdicts_may_contradict_the_ranking_when_there_are_several() -> None:
    # A judge's cycles and slips are its own: they are data for the consistency report, not broken grammar.
    verdict = parse(GOOD.replace("('B', 'A'): A", "('B', 'A'): B"), 3)
    assert isinstance(verdict, Verdict)
    assert verdict.pairs[2] == (1, 0, 1)


def _changed(old: str, new: str) -> str:
    assert GOOD.count(old) == 1
    return GOOD.replace(old, new)


LAST = "Ranking: ['A', 'C', 'B']"
MALFORMED = {
    "empty": "",
    "blank": " \n\t\n",
    "refusal": "I'm sorry, but I can't help with that.",
    "ranking only": LAST,
    "no good-natured line": GOOD.split("\n", 1)[1],
    "good natured maybe": _changed("yes", "maybe"),
    "good natured Yes": _changed("yes", "Yes"),
    "good natured with a reason": _changed("yes", "yes, it is harmless"),
    "good natured after prose": _changed("Good natured", "Verdict: Good natured"),
    "good natured twice": "Good natured: yes\n" + GOOD,
    "good natured last": GOOD.split("\n", 1)[1] + "\nGood natured: yes",
    "sentence of the original": _changed("Good natured: yes", "This is a good natured conversation."),
    "only the good-natured line": "Good natured: yes",
    "no ranking": GOOD.rsplit("\n", 1)[0],
    "no pairs": "Good natured: yes\n" + LAST,
    "one pair missing": _changed("('B', 'A'): A\n", ""),
    "pair twice": _changed("('B', 'A'): A", "('A', 'C'): A"),
    "pair twice, flipped": _changed("('B', 'A'): A", "('C', 'A'): A"),
    "pair too many": _changed("('B', 'A'): A", "('B', 'A'): A\n('A', 'B'): A"),
    "pair with itself": _changed("('B', 'A'): A", "('B', 'B'): B"),
    "pair of a stranger": _changed("('B', 'A'): A", "('B', 'D'): B"),
    "winner outside its pair": _changed("('B', 'A'): A", "('B', 'A'): C"),
    "winner a stranger": _changed("('B', 'A'): A", "('B', 'A'): D"),
    "tie": _changed("('B', 'A'): A", "('B', 'A'): tie"),
    "both win": _changed("('B', 'A'): A", "('B', 'A'): A, B"),
    "winner missing": _changed("('B', 'A'): A", "('B', 'A'):"),
    "winner explained": _changed("('B', 'A'): A", "('B', 'A'): A wins. It is clearer."),
    "winner quoted": _changed("('B', 'A'): A", "('B', 'A'): 'A'"),
    "winner in lower case": _changed("('B', 'A'): A", "('B', 'A'): a"),
    "pairs numbered": _changed("('B', 'A'): A", "3. ('B', 'A'): A"),
    "pair unquoted": _changed("('B', 'A'): A", "(B, A): A"),
    "pair as versus": _changed("('B', 'A'): A", "B vs A: A"),
    "typographic quotes": _changed("('B', 'A'): A", "(\u2018B\u2019, \u2018A\u2019): A"),
    "two pairs on a line": _changed("A\n('C'", "A ('C'"),
    "letter repeated in the ranking": _changed(LAST, "Ranking: ['A', 'A', 'B']"),
    "ranking too short": _changed(LAST, "Ranking: ['A', 'C']"),
    "ranking too long": _changed(LAST, "Ranking: ['A', 'C', 'B', 'A']"),
    "stranger in the ranking": _changed(LAST, "Ranking: ['A', 'C', 'D']"),
    "stranger added to the ranking": _changed(LAST, "Ranking: ['A', 'C', 'B', 'D']"),
    "empty ranking": _changed(LAST, "Ranking: []"),
    "ranking unquoted": _changed(LAST, "Ranking: [A, C, B]"),
    "ranking bare": _changed(LAST, "Ranking: A, C, B"),
    "ranking in double brackets": _changed(LAST, "Ranking: [['A', 'C', 'B']]"),
    "ranking as comparison": _changed(LAST, "Ranking: A > C > B"),
    "ranking with a tie": _changed(LAST, "Ranking: ['A', ['C', 'B']]"),
    "ranking of numbers": _changed(LAST, "Ranking: [1, 3, 2]"),
    "ranking with equal sign": _changed(LAST, "Ranking: ['A' = 'C', 'B']"),
    "ranking cut off": _changed(LAST, "Ranking: ['A', 'C'"),
    "ranking called final": _changed(LAST, "Final " + LAST),
    "ranking twice": GOOD + "\n" + LAST,
    "two different rankings": GOOD + "\nRanking: ['B', 'C', 'A']",
    "two rankings on a line": _changed(LAST, LAST + " " + LAST),
    "ranking before the pairs": "Good natured: yes\n" + LAST + "\n" + "\n".join(GOOD.split("\n")[1:-1]),
    "prose first": "Let me think about this.\n" + GOOD,
    "prose last": GOOD + "\nI hope this helps!",
    "prose between": _changed("('C', 'B'): C", "C is better than B.\n('C', 'B'): C"),
    "prose on the ranking's line": _changed(LAST, LAST + " because A is best"),
    "code fence": f"```\n{GOOD}\n```",
    "markdown list": GOOD.replace("\n(", "\n- ("),
    "bold": _changed(LAST, f"**{LAST}**"),
    "json": json.dumps({"good_natured": True, "ranking": ["A", "C", "B"]}),
    "python that would run": _changed(LAST, "Ranking: [__import__('os').getcwd(), 'A', 'C', 'B']"),
    "whole reply twice": GOOD + "\n" + GOOD,
    "reply on one line": GOOD.replace("\n", " "),
    "another line separator": GOOD.replace("\n", "\u2028"),
    "zero width space": _changed("'A', 'C', 'B'", "'A', '\u200bC', 'B'"),
    "full width letter": _changed("['A'", "['\uff21'"),
    "null byte": GOOD + "\x00",
    "quoted as a reply": "\n".join("> " + line for line in GOOD.split("\n")),
    "answered for K = 2": "Good natured: yes\n('A', 'B'): A\nRanking: ['A', 'B']",
    "template echoed": "Good natured: yes or no\n('A', 'B'): A or B\nRanking: [...]",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_replies_are_failures_with_a_reason(name: str) -> None:
    failure = parse(MALFORMED[name], 3)
    assert isinstance(failure, Failure), failure
    assert failure.reason
    assert str(failure).startswith(failure.reason)


def test_the_table_is_long_enough_and_its_base_is_good() -> None:
    assert len(MALFORMED) >= 40
    assert isinstance(parse(GOOD, 3), Verdict)


def test_a_two_way_reply_that_contradicts_itself_is_a_failure() -> None:
    assert parse("Good natured: yes\n('A', 'B'): B\nRanking: ['A', 'B']", 2) == Failure("ranking contradicts the only pair")


@pytest.mark.parametrize("k", [-1, 0, 1, 13])
def test_k_out_of_range_is_the_callers_mistake(k: int) -> None:
    with pytest.raises(ValueError, match="k must be 2"):
        parse(GOOD, k)


# ── fuzzing ──────────────────────────────────────────────────────────────────────────────────────────────────────────

pieces = st.sampled_from(
    ["Good natured: ", "yes", "no", "\n", "('A', 'B')", "('A', 'C'): A", ": ", "A", "B", "C", "Ranking: ", "['A', 'B', 'C']",
     "['B', 'A']", "[[", "]]", "'", ", ", "Final Ranking: ", "C, B, A", "This is a good natured conversation."]
)  # fmt: skip
texts = st.one_of(
    st.text(), st.lists(pieces).map("".join), st.lists(st.one_of(pieces, st.characters()), max_size=40).map("".join)
)


@given(text=texts, k=st.integers(2, 12), grammar=st.sampled_from(list(Grammar)))
def test_parse_never_raises_and_never_returns_a_non_permutation(text: str, k: int, grammar: Grammar) -> None:
    found = parse(text, k, grammar)
    if isinstance(found, Verdict):
        assert sorted(found.ranking) == list(range(k))
        assert all(winner in (a, b) and a != b for a, b, winner in found.pairs)


@st.composite
def verdicts(draw: st.DrawFn) -> Verdict:
    k = draw(st.integers(2, 12))
    ranking = tuple(draw(st.permutations(range(k))))
    pairs = [(a, b) for a in range(k) for b in range(a + 1, k)]
    chosen = []
    for a, b in draw(st.permutations(pairs)):
        winner = draw(st.sampled_from([a, b])) if k > 2 else ranking[0]
        chosen.append((b, a, winner) if draw(st.booleans()) else (a, b, winner))
    return Verdict(ranking, draw(st.booleans()), tuple(chosen))


@given(verdict=verdicts())
def test_what_is_written_is_read_back(verdict: Verdict) -> None:
    assert parse(write_reply(verdict), len(verdict.ranking)) == verdict


@given(verdict=verdicts(), data=st.data())
def test_a_reply_with_a_line_taken_out_or_put_in_is_no_verdict(verdict: Verdict, data: st.DataObject) -> None:
    lines = write_reply(verdict).split("\n")
    at = data.draw(st.integers(0, len(lines) - 1))
    k = len(verdict.ranking)
    assert isinstance(parse("\n".join(lines[:at] + lines[at + 1 :]), k), Failure)
    extra = data.draw(st.text(st.characters(exclude_characters="\n\r\t "), min_size=1))
    assert isinstance(parse("\n".join([*lines[:at], extra, *lines[at:]]), k), Failure)


@given(verdict=verdicts(), data=st.data())
def test_a_changed_character_never_yields_another_complete_verdict_of_the_wrong_size(
    verdict: Verdict, data: st.DataObject
) -> None:
    text = write_reply(verdict)
    at = data.draw(st.integers(0, len(text) - 1))
    k = len(verdict.ranking)
    found = parse(text[:at] + data.draw(st.sampled_from([*LETTERS, "'", "[", "\n", "x", ""])) + text[at + 1 :], k)
    if isinstance(found, Verdict):
        assert sorted(found.ranking) == list(range(k))
        assert len({frozenset(p[:2]) for p in found.pairs}) == k * (k - 1) // 2


# ── the public replies ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (
            "This is a good natured conversation.\n\n('A', 'B'): B\n\nFinal Ranking: ['B', 'A']",
            Verdict((1, 0), True, ((0, 1, 1),)),
        ),
        ("This is a not good natured conversation. \n\n[['B', 'A']]", Verdict((1, 0), False, ())),
        ("This is not a good natured conversation. The ranking is: [['A' ,'B']].", Verdict((0, 1), False, ())),
        ("good natured\n[['B', 'A']]", Verdict((1, 0), True, ())),
        (
            "1. ('A', 'B'): A wins. B is short.\n- Model B vs Model A: Tie\nFinal Rankings: A, B.",
            Verdict((0, 1), None, ((0, 1, 0),)),
        ),
        ("[['B', 'A']]\n\nModel B is better than Model A.", Verdict((1, 0), None, ())),
        ("Ranking: ['B', 'A']\nAgain: [['B', 'A']]", Verdict((1, 0), None, ())),
    ],
)
def test_public_replies_read_by_hand(reply: str, expected: Verdict) -> None:
    assert parse(reply, 2, Grammar.nectar_public) == expected


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "[['A', 'A', 'B']]",
        "[['A', 'B']]",
        "[['A', 'B', 'D']]",
        "[['A', 'B', 'C', 'D']]",
        "[A, B, C]",
        "['A', 'B', 'C'] or rather ['B', 'A', 'C']",
        "['A', 'B'] are better than C. Final ranking: ['A', 'B', 'C']",
        "Final ranking: A, B",
        "Ranking: A, B, C\nRanking: C, B, A",
        "A is better than B and B is better than C.",
        "I cannot rank these.",
        "[[__import__('os').system('true')]]",
    ],
)
def test_public_replies_without_one_ranking_are_failures(reply: str) -> None:
    assert isinstance(parse(reply, 3, Grammar.nectar_public), Failure)


@pytest.mark.parametrize("name", ["no_pairwise", "pairwise_no_given_order", "pairwise_not_random", "baseline_no_tiebreak"])
def test_real_replies_give_the_published_rankings(name: str) -> None:
    path = DATA / f"{name}.jsonl.gz"
    if not path.exists():
        pytest.skip(f"the public judge replies are not at {path}; set STARLING_DATA")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    assert len(rows) > 180
    for row in rows:
        verdict = parse(row["rating_text"], row["k"], Grammar.nectar_public)
        assert isinstance(verdict, Verdict), verdict
        assert list(verdict.ranking) == row["ranking_order"]
        assert verdict.good_natured is not None
    if name != "no_pairwise":  # most replies then state all 21 pairs; some argue or call ties, which are no verdicts
        complete = sum(len(parse(r["rating_text"], 7, Grammar.nectar_public).pairs) == 21 for r in rows)  # type: ignore[union-attr]
        assert complete / len(rows) > 0.7
