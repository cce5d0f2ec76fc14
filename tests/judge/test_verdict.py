"""Grammars of the judge's replies: hand-read replies, a table of malformed ones, fuzzing, and 775 real replies."""

from __future__ import annotations

import gzip
import json
import os
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starling.judge.verdict import FORMS, LETTERS, Failure, Grammar, Verdict, parse, places, write_reply

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


@pytest.mark.parametrize("grammar", Grammar)
@pytest.mark.parametrize(
    "reply",
    [
        "A vs B -> A; C vs G -> G\nG > C > A > B > E > D > F",  # reasons over pairs first
        "1 vs 2 -> 1; 3 vs 7 -> 7\n[7] > [3] > [1] > [2] > [5] > [4] > [6]",
        "I'm sorry, but I can't rank these responses.",
        "Good natured: yes\n('G', 'C'): G\nRanking: ['G', 'C', 'A'",  # cut off
        "#### Output for Text 1\nRating: 5\nRationale: good\n\nmore\n#### Output for Text 2\nRating: 4",
        "Good natured: yes\nRanking: ['A', 'B', 'C', 'D', 'E', 'F']",  # six of seven
        "Good natured: yes\nScore: high",
        "Good natured: yes\nScore: 11",
    ],
)
def test_what_other_parsers_silently_repair_is_a_failure(grammar: Grammar, reply: str) -> None:
    """rank_llm 0.25.7 and distilabel 1.5.3 make a ranking or ratings of each of these shapes."""
    fewest, most = FORMS[grammar].sizes if grammar in FORMS else (2, 12)
    assert isinstance(parse(reply, min(max(7, fewest), most), grammar), Failure)


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


@given(text=texts, data=st.data(), grammar=st.sampled_from(list(Grammar)))
def test_parse_never_raises_and_never_returns_a_non_permutation(text: str, data: st.DataObject, grammar: Grammar) -> None:
    k = data.draw(st.integers(*FORMS[grammar].sizes))
    found = parse(text, k, grammar)
    if isinstance(found, Verdict):
        check(found, k, grammar)


def check(found: Verdict, k: int, grammar: Grammar) -> None:
    """What holds for every verdict of a grammar, however it was said."""
    form = FORMS[grammar]
    assert sorted(found.ranking) == list(range(k))
    assert all(winner in (a, b) and a != b for a, b, winner in found.pairs)
    assert not found.tied or (form.ties and sum(found.tied) == k and len(found.tied) < k and min(found.tied) > 0)
    assert form.ties or not found.ties
    assert (found.score is not None) == form.score
    assert found.score is None or 1 <= found.score <= 10
    if grammar is not Grammar.nectar_public:
        stated = [frozenset(pair[:2]) for pair in (*found.pairs, *found.ties)]
        assert len(stated) == len(set(stated)) == (k * (k - 1) // 2 if form.pairs else 0)
        assert (found.good_natured is None) == form.letter


OURS = [grammar for grammar in Grammar if grammar is not Grammar.nectar_public]


@st.composite
def verdicts(draw: st.DrawFn, grammar: Grammar = Grammar.starling_1) -> Verdict:
    form = FORMS[grammar]
    k = draw(st.integers(*form.sizes))
    ranking = tuple(draw(st.permutations(range(k))))
    ends = draw(st.lists(st.booleans(), min_size=k - 1, max_size=k - 1)) if form.ties else [True] * (k - 1)
    sizes, size = [], 1
    for end in ends:
        sizes, size = ([*sizes, size], 1) if end else (sizes, size + 1)
    tied = (*sizes, size) if not all(ends) else ()
    chosen, ties = [], []
    for a, b in draw(st.permutations(list(combinations(range(k), 2)))) if form.pairs else []:
        first, second = (b, a) if draw(st.booleans()) else (a, b)
        if tied if k == 2 else form.ties and draw(st.booleans()):
            ties.append((first, second))
        else:
            chosen.append((first, second, draw(st.sampled_from([a, b])) if k > 2 else ranking[0]))
    if k == 2 and form.pairs and not form.ranking and tied:
        ranking = ties[0]  # the order within a place is that in which it was written
    score = draw(st.integers(1, 10)) if form.score else None
    good = None if form.letter else draw(st.booleans())
    return Verdict(ranking, good, tuple(chosen), tuple(ties), tied, score)


@pytest.mark.parametrize("grammar", OURS)
@given(data=st.data())
def test_what_is_written_is_read_back(grammar: Grammar, data: st.DataObject) -> None:
    verdict = data.draw(verdicts(grammar))
    assert parse(write_reply(verdict, grammar), len(verdict.ranking), grammar) == verdict
    check(verdict, len(verdict.ranking), grammar)


@pytest.mark.parametrize("grammar", OURS)
@given(data=st.data())
def test_no_grammar_reads_the_replies_of_another(grammar: Grammar, data: st.DataObject) -> None:
    """Read in the wrong grammar a reply is a failure; only a pair without a tie reads the same with or without ties allowed."""
    verdict = data.draw(verdicts(grammar))
    k = len(verdict.ranking)
    for other in OURS:
        if other is not grammar and FORMS[other].sizes[0] <= k <= FORMS[other].sizes[1]:
            found = parse(write_reply(verdict, grammar), k, other)
            assert isinstance(found, Failure) or found == verdict
            assert isinstance(found, Failure) or (grammar, other) in {
                (Grammar.pair_1, Grammar.pair_1_ties),
                (Grammar.pair_1_ties, Grammar.pair_1),
            }


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


# ── the other grammars ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("grammar", "k", "reply", "expected"),
    [
        (Grammar.rank_1, 3, "Good natured: no\nRanking: ['C', 'A', 'B']", Verdict((2, 0, 1), False)),
        (Grammar.pair_1, 2, "Good natured: yes\n('B', 'A'): A", Verdict((0, 1), True, ((1, 0, 0),))),
        (Grammar.pair_1, 2, "Good natured: yes\n('A', 'B'): B", Verdict((1, 0), True, ((0, 1, 1),))),
        (Grammar.pair_1_ties, 2, "Good natured: yes\n('B', 'A'): tie", Verdict((1, 0), True, ties=((1, 0),), tied=(2,))),
        (Grammar.score_1, 1, "Good natured: yes\nScore: 10", Verdict((0,), True, score=10)),
        (Grammar.score_1, 1, "\nGood natured:no\n\n Score:1 ", Verdict((0,), False, score=1)),
        (Grammar.rank_1_ties, 4, "Good natured:no\nRanking: 'C'>'A' = 'D'>'B'", Verdict((2, 0, 3, 1), False, tied=(1, 2, 1))),
        (Grammar.rank_1_ties, 3, "Good natured: yes\nRanking:'C'='A'='B'", Verdict((2, 0, 1), True, tied=(3,))),
        (Grammar.rank_1_ties, 3, "Good natured: yes\nRanking: 'C' > 'A' > 'B'", Verdict((2, 0, 1), True)),
        (
            Grammar.starling_1_ties,
            3,
            "Good natured: yes\n('A', 'B'): tie\n('C', 'A'): C\n('B', 'C'): tie\nRanking: 'C' > 'B' = 'A'",
            Verdict((2, 1, 0), True, ((2, 0, 2),), ((0, 1), (1, 2)), (1, 2)),
        ),
        (
            Grammar.starling_1_ties,
            2,
            "Good natured: yes\n('A', 'B'): tie\nRanking: 'A' = 'B'",
            Verdict((0, 1), True, (), ((0, 1),), (2,)),
        ),
    ],
)  # fmt: skip
def test_replies_of_every_grammar_read_by_hand(grammar: Grammar, k: int, reply: str, expected: Verdict) -> None:
    assert parse(reply, k, grammar) == expected


TIED = "Good natured: yes\n('A', 'B'): tie\n('C', 'A'): C\n('B', 'C'): C\n"


@pytest.mark.parametrize(
    ("grammar", "k", "reply", "reason"),
    [
        (Grammar.rank_1, 3, "Ranking: ['C', 'A', 'B']", "no good-natured line"),
        (Grammar.rank_1, 3, "Good natured: yes", "no ranking line"),
        (Grammar.rank_1, 3, GOOD, "line outside the grammar"),
        (Grammar.rank_1, 3, "Good natured: yes\nRanking: 'A' > 'B' > 'C'", "no ranking line"),
        (Grammar.rank_1, 3, "Good natured: yes\nRanking: ['A', 'B']", "ranking is no permutation"),
        (Grammar.rank_1, 3, "Good natured: yes\nRanking: ['A', 'B', 'C']\nThat is all.", "line outside the grammar"),
        (Grammar.pair_1, 2, "Good natured: yes", "pairs missing"),
        (Grammar.pair_1, 2, "Good natured: yes\nA", "line outside the grammar"),
        (Grammar.pair_1, 2, "Good natured: yes\n('A', 'B'): tie", "line outside the grammar"),
        (Grammar.pair_1, 2, "Good natured: yes\n('A', 'C'): A", "no such pair"),
        (Grammar.pair_1, 2, "Good natured: yes\n('A', 'B'): C", "winner is not in its pair"),
        (Grammar.pair_1, 2, "Good natured: yes\n('A', 'B'): A\n('B', 'A'): A", "pair named twice"),
        (Grammar.pair_1, 2, "Good natured: yes\n('A', 'B'): A\nRanking: ['A', 'B']", "line outside the grammar"),
        (Grammar.pair_1_ties, 2, "Good natured: yes\n('A', 'B'): Tie", "line outside the grammar"),
        (Grammar.pair_1_ties, 2, "Good natured: yes\n('A', 'A'): tie", "no such pair"),
        (Grammar.score_1, 1, "Score: 7", "no good-natured line"),
        (Grammar.score_1, 1, "Good natured: yes", "no score"),
        *(
            (Grammar.score_1, 1, f"Good natured: yes\nScore: {said}", "no score")
            for said in ("0", "11", "07", "-3", "7.5", "7/10", "7 of 10", "seven", "'7'", "\uff17", "\u0667", "1e1", "[7]", "")
        ),
        (Grammar.score_1, 1, "Good natured: yes\nScore: 7\nScore: 8", "line outside the grammar"),
        (Grammar.score_1, 1, "Good natured: yes\nA good answer.\nScore: 7", "line outside the grammar"),
        (Grammar.starling_1_ties, 3, TIED + "Ranking: ['C', 'A', 'B']", "no ranking line"),
        (Grammar.starling_1_ties, 3, TIED + "Ranking: ['C'], ['A', 'B']", "no ranking line"),
        (Grammar.starling_1_ties, 3, TIED + "Ranking: C > A = B", "no ranking line"),
        (Grammar.starling_1_ties, 3, TIED + "Ranking: 'C' > 'A' =", "no ranking line"),
        (Grammar.starling_1_ties, 3, TIED + "Ranking: 'C' >> 'A' = 'B'", "no ranking line"),
        (Grammar.starling_1_ties, 3, TIED + "Ranking: 'B' = 'A' < 'C'", "no ranking line"),
        (Grammar.starling_1_ties, 3, TIED + "Ranking: 'C' > 'A' = 'A'", "ranking is no permutation"),
        (Grammar.starling_1_ties, 3, TIED + "Ranking: 'C' > 'A'", "ranking is no permutation"),
        (Grammar.starling_1_ties, 3, TIED + "Ranking: 'C' > 'A' = 'D'", "ranking is no permutation"),
        (Grammar.starling_1_ties, 3, TIED.replace("('C', 'A'): C\n", "") + "Ranking: 'C' > 'A' = 'B'", "pairs missing"),
        (Grammar.starling_1_ties, 3, TIED + "('B', 'A'): A\nRanking: 'C' > 'A' = 'B'", "pair named twice"),
        *(
            (Grammar.starling_1_ties, 2, f"Good natured: yes\n('A', 'B'): {said}", "ranking contradicts the only pair")
            for said in ("tie\nRanking: 'A' > 'B'", "A\nRanking: 'A' = 'B'", "A\nRanking: 'B' > 'A'")
        ),
    ],
)  # fmt: skip
def test_malformed_replies_of_every_grammar(grammar: Grammar, k: int, reply: str, reason: str) -> None:
    found = parse(reply, k, grammar)
    assert isinstance(found, Failure), found
    assert found.reason == reason


@pytest.mark.parametrize(
    ("grammar", "k"), [(Grammar.pair_1, 1), (Grammar.pair_1, 3), (Grammar.score_1, 2), (Grammar.score_1, 0), (Grammar.rank_1, 13)]
)
def test_each_grammar_speaks_about_so_many_answers(grammar: Grammar, k: int) -> None:
    with pytest.raises(ValueError, match="k must be"):
        parse("Good natured: yes", k, grammar)


def test_a_ranking_cut_into_its_places() -> None:
    assert places((2, 0, 1), (1, 2)) == [(2,), (0, 1)]
    assert places((2, 0, 1), ()) == [(2,), (0,), (1,)]
    assert places("ab", (2,)) == ["ab"]


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
