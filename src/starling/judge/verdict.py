"""From a judge's reply to a verdict, or to a named failure: the only door, and it never repairs, guesses or evaluates.

One grammar per kind of question, each a version of its own. A reply to our own rubrics consists of exactly these lines, nothing
before, between or after them (blank lines and spaces at the ends of a line do not count), with the letters A … of the K answers
shown:

    Good natured: yes            (or: no)                                                        all but the last
    ('A', 'C'): A                one line per pair, any order, each unordered pair once          starling-1, starling-pair-1
    Ranking: ['C', 'A', 'B']     every letter once, best first                                   starling-1, starling-rank-1
    Score: 7                     a whole number from 1 to 10                                     starling-score-1
    B                            nothing but the letter of the better of two                     starling-letter-1

The winner of a pair is one of the two; at K = 2 the ranking must agree with the one pair. Where ties are allowed the grammar is
another one (`starling-1-ties` and so on): a pair's line may end in `tie`, and the ranking is written `Ranking: 'C' > 'A' = 'B'`.
That is not a bracketed list with brackets inside, because a judge who forgets about ties and writes a plain list would then have
said that all answers are equal, and nobody could tell.

The single letter is for soft verdicts: how sure the judge is stands in the log-probabilities of its first token (`preference`),
as in AlpacaEval 2 (weighted_alpaca_eval_gpt4_turbo). Departure: spellings of one letter are added up, as a tokenizer has several.

`Grammar.nectar_public` reads the replies of gpt-4-0613 that the authors of Nectar released with their ablations (github
efrick2002/Starling @ 097e427). Prose is allowed there, so the rule is about the ranking alone: the bracketed lists of
quoted letters in the reply ([[…]] or […]) must all say the same permutation; without any bracketed list, the same holds
for unbracketed lines such as `Final Rankings: B, A, C`.

Departures from the original parser: it took the last list it could find through `eval`, and accepted repeated letters
and short lists as rankings. Here a ranking is a permutation of what was shown, or the reply is a `Failure`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import exp
from typing import TypeVar

_T = TypeVar("_T")

LETTERS = "ABCDEFGHIJKL"
"""Names of the answers shown, by position; so K is at most 12."""

BEST_SCORE = 10
"""Scores are whole numbers from 1 to this (the scale of Nectar's pointwise ablation)."""

Pair = tuple[int, int, int]
"""(first, second, winner) as positions shown; the winner is one of the two."""


class Grammar(StrEnum):
    """Version of the language a reply is read in; part of the rubric's hash."""

    starling_1 = "starling-1"
    starling_1_ties = "starling-1-ties"
    rank_1 = "starling-rank-1"
    rank_1_ties = "starling-rank-1-ties"
    pair_1 = "starling-pair-1"
    pair_1_ties = "starling-pair-1-ties"
    score_1 = "starling-score-1"
    letter_1 = "starling-letter-1"
    nectar_public = "nectar-public"


@dataclass(frozen=True)
class Form:
    """Which lines a grammar has after the good-natured one, and about how many answers it can speak."""

    pairs: bool
    ranking: bool
    score: bool = False
    ties: bool = False
    sizes: tuple[int, int] = (2, len(LETTERS))
    """Fewest and most answers."""
    letter: bool = False
    """The reply is one letter, and nothing is said about the request."""


FORMS = {
    Grammar.starling_1: Form(pairs=True, ranking=True),
    Grammar.starling_1_ties: Form(pairs=True, ranking=True, ties=True),
    Grammar.rank_1: Form(pairs=False, ranking=True),
    Grammar.rank_1_ties: Form(pairs=False, ranking=True, ties=True),
    Grammar.pair_1: Form(pairs=True, ranking=False, sizes=(2, 2)),
    Grammar.pair_1_ties: Form(pairs=True, ranking=False, ties=True, sizes=(2, 2)),
    Grammar.score_1: Form(pairs=False, ranking=False, score=True, sizes=(1, 1)),
    Grammar.letter_1: Form(pairs=False, ranking=False, sizes=(2, 2), letter=True),
    Grammar.nectar_public: Form(pairs=True, ranking=True),
}


@dataclass(frozen=True)
class Verdict:
    """What a judge said about K answers, all as positions shown (0 = A).

    `ranking` is always a permutation of them: of a pair it is winner and loser, of a single scored answer (0,).

    Example: Verdict(ranking=(1, 0), good_natured=True, pairs=((0, 1, 1),)).
    """

    ranking: tuple[int, ...]
    good_natured: bool | None
    pairs: tuple[Pair, ...] = ()
    ties: tuple[tuple[int, int], ...] = ()
    """Pairs that were called equal; they are not among `pairs`."""
    tied: tuple[int, ...] = ()
    """When the ranking has ties: the sizes of its places, best first, e.g. (1, 2). Empty otherwise."""
    score: int | None = None


@dataclass(frozen=True)
class Failure:
    """Why a reply is no verdict: `reason` is one of a fixed set and can be counted, `detail` says where."""

    reason: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


def parse(text: str, k: int, grammar: Grammar = Grammar.starling_1) -> Verdict | Failure:
    """Read a judge's reply about `k` answers. Never raises on any text; never returns a non-permutation.

    Raises:
        ValueError: the grammar cannot speak about `k` answers, which is the caller's mistake and not the reply's.
    """
    form = FORMS[grammar]
    if not form.sizes[0] <= k <= form.sizes[1]:
        raise ValueError(f"k must be {form.sizes[0]}…{form.sizes[1]} in the grammar {grammar}, not {k}")
    lines = [(number, line.strip(" \t\r")) for number, line in enumerate(text.split("\n"), start=1)]
    lines = [(number, line) for number, line in lines if line]
    if not lines:
        return Failure("empty reply")
    if form.letter:
        return _parse_letter(lines, k)
    return _parse_public(lines, k) if grammar is Grammar.nectar_public else _parse_starling(lines, k, form)


NO_LOGPROBS = Failure("no log-probabilities")
"""What asking again does not cure: the server gave none."""


def preference(first_token: Sequence[tuple[str, float]]) -> float | Failure:
    """How likely the judge was to answer B rather than A: p(B) / (p(A) + p(B)) by the log-probabilities of its first token.

    All spellings of a letter count: with a space or another mark of a word's beginning before it, and in lower case. A letter
    that is not among the tokens given counts 0, as in AlpacaEval.

    Example: (("A", log .6), (" B", log .2), ("b", log .1), ("The", log .1)) gives 1/3.
    """
    if not first_token:
        return NO_LOGPROBS
    chances = [sum(exp(logprob) for token, logprob in first_token if _letter_of(token) == letter) for letter in "AB"]
    if not sum(chances):
        return Failure("neither letter among the likeliest tokens", ", ".join(repr(token) for token, _ in first_token[:3]))
    return min(1.0, chances[1] / sum(chances))


def write_reply(verdict: Verdict, grammar: Grammar = Grammar.starling_1) -> str:
    """The reply that says `verdict` in one of our own grammars: the inverse of `parse`. `good_natured` must be known."""
    form = FORMS[grammar]
    if form.letter:
        return LETTERS[verdict.ranking[0]]
    if verdict.good_natured is None:
        raise ValueError("our grammars have no way to leave the good-natured question open")
    lines = [f"Good natured: {'yes' if verdict.good_natured else 'no'}"]
    if form.pairs:
        lines += [f"{pair_text(a, b)}: {LETTERS[winner]}" for a, b, winner in verdict.pairs]
        lines += [f"{pair_text(a, b)}: tie" for a, b in verdict.ties]
    if form.score:
        lines.append(f"Score: {verdict.score}")
    if form.ranking:
        quoted = [[f"'{LETTERS[i]}'" for i in place] for place in places(verdict.ranking, verdict.tied)]
        strict = ", ".join(letter for place in quoted for letter in place)
        lines.append("Ranking: " + (" > ".join(map(" = ".join, quoted)) if form.ties else f"[{strict}]"))
    return "\n".join(lines)


def places(ranking: Sequence[_T], tied: Sequence[int]) -> list[Sequence[_T]]:
    """The ranking cut into its places, best first: ((2, 0, 1), (1, 2)) gives [(2,), (0, 1)]; singles when `tied` is empty."""
    found, start = [], 0
    for size in tied or [1] * len(ranking):
        found.append(ranking[start : start + size])
        start += size
    return found


def pair_text(a: int, b: int) -> str:
    """How a pair of positions is written everywhere: ('A', 'C')."""
    return f"('{LETTERS[a]}', '{LETTERS[b]}')"


_WORD_START = " \t\n▁Ġ"
"""What tokenizers put before a word's first letter: white space, or SentencePiece's and GPT-2's marks for it."""


def _letter_of(token: str) -> str:
    """The letter that a token spells, in upper case; some other text where it spells none."""
    return token.lstrip(_WORD_START).rstrip().upper()


# ── our own grammars ─────────────────────────────────────────────────────────────────────────────────────────────────

_GOOD = re.compile(r"Good natured:[ \t]*(yes|no)")
_PAIR = re.compile(r"\([ \t]*'([A-Z])'[ \t]*,[ \t]*'([A-Z])'[ \t]*\)[ \t]*:[ \t]*([A-Z]|tie)")
_RANKING = re.compile(r"Ranking:[ \t]*\[[ \t]*('[A-Z]'(?:[ \t]*,[ \t]*'[A-Z]')*)[ \t]*\]")
_TIED_RANKING = re.compile(r"Ranking:[ \t]*('[A-Z]'(?:[ \t]*[>=][ \t]*'[A-Z]')*)")
_SCORE = re.compile(r"Score:[ \t]*([1-9]|10)")


def _parse_starling(lines: Sequence[tuple[int, str]], k: int, form: Form) -> Verdict | Failure:
    good = _GOOD.fullmatch(lines[0][1])
    if good is None:
        return Failure("no good-natured line", f"line {lines[0][0]} should be 'Good natured: yes' or 'Good natured: no'")
    rest, good_natured = lines[1:], good[1] == "yes"
    if form.score:
        return _parse_score(rest, good_natured)
    if form.ranking and not rest:
        return Failure("no ranking line")
    if not form.pairs and len(rest) > 1:
        return Failure("line outside the grammar", f"line {rest[0][0]}")
    stated = _read_pairs(rest[:-1] if form.ranking else rest, k, form)
    if isinstance(stated, Failure):
        return stated
    pairs, ties = stated
    ranked = _read_ranking(rest[-1], k, form) if form.ranking else None
    if isinstance(ranked, Failure):
        return ranked
    missing = k * (k - 1) // 2 - len(pairs) - len(ties) if form.pairs else 0
    if missing:
        return Failure("pairs missing", f"{missing} of {k * (k - 1) // 2}")
    if ranked is None:  # a single pair, and nothing else
        ranked = (ties[0], (2,)) if ties else ((pairs[0][2], sum(pairs[0][:2]) - pairs[0][2]), ())
    ranking, tied = ranked
    if k == 2 and form.pairs and (bool(tied) != bool(ties) or (pairs and pairs[0][2] != ranking[0])):
        return Failure("ranking contradicts the only pair")
    return Verdict(ranking, good_natured, pairs, ties, tied)


def _parse_letter(lines: Sequence[tuple[int, str]], k: int) -> Verdict | Failure:
    if len(lines) > 1:
        return Failure("line outside the grammar", f"line {lines[1][0]}")
    better = LETTERS[:k].find(lines[0][1]) if len(lines[0][1]) == 1 else -1
    if better < 0:
        return Failure("no letter", f"the reply should be {' or '.join(LETTERS[:k])} and nothing else")
    return Verdict((better, 1 - better), None)


def _parse_score(lines: Sequence[tuple[int, str]], good_natured: bool) -> Verdict | Failure:
    if len(lines) > 1:
        return Failure("line outside the grammar", f"line {lines[1][0]}")
    score = _SCORE.fullmatch(lines[0][1]) if lines else None
    if score is None:
        return Failure("no score", f"the second line should be 'Score: ' and a whole number from 1 to {BEST_SCORE}")
    return Verdict((0,), good_natured, score=int(score[1]))


def _read_pairs(
    lines: Sequence[tuple[int, str]], k: int, form: Form
) -> tuple[tuple[Pair, ...], tuple[tuple[int, int], ...]] | Failure:
    """Each line one pair verdict of known letters, no pair twice; the decided ones and the ties."""
    pairs: list[Pair] = []
    ties: list[tuple[int, int]] = []
    seen: set[tuple[int, int]] = set()
    for number, line in lines:
        match = _PAIR.fullmatch(line)
        if match is None or (match[3] == "tie" and not form.ties):
            return Failure("line outside the grammar", f"line {number}")
        a, b, winner = (LETTERS.find(letter) for letter in match.groups())
        if not (0 <= a < k and 0 <= b < k) or a == b:
            return Failure("no such pair", f"line {number}")
        if match[3] != "tie" and winner not in (a, b):
            return Failure("winner is not in its pair", f"line {number}")
        pair = (a, b) if a < b else (b, a)
        if pair in seen:
            return Failure("pair named twice", f"line {number}")
        seen.add(pair)
        if match[3] == "tie":
            ties.append((a, b))
        else:
            pairs.append((a, b, winner))
    return tuple(pairs), tuple(ties)


def _read_ranking(line: tuple[int, str], k: int, form: Form) -> tuple[tuple[int, ...], tuple[int, ...]] | Failure:
    """The ranking and, when answers share a place, the sizes of the places."""
    match = (_TIED_RANKING if form.ties else _RANKING).fullmatch(line[1])
    if match is None:
        return Failure("no ranking line", f"line {line[0]}, the last one, is no ranking")
    ranking = _permutation(re.findall("[A-Z]", match[1]), k)
    if isinstance(ranking, Failure):
        return ranking
    sizes = tuple(place.count("'") // 2 for place in match[1].split(">"))
    return ranking, sizes if len(sizes) < k and form.ties else ()


def _permutation(letters: Sequence[str], k: int) -> tuple[int, ...] | Failure:
    """Positions of `letters` when they are the first `k` letters, each once."""
    if sorted(letters) == list(LETTERS[:k]):
        return tuple(LETTERS.index(letter) for letter in letters)
    return Failure("ranking is no permutation", f"{','.join(letters[: 2 * len(LETTERS)])} of {LETTERS[0]}…{LETTERS[k - 1]}")


# ── grammar nectar-public ────────────────────────────────────────────────────────────────────────────────────────────

_PUBLIC_GOOD = re.compile(r"(?:This is )?(a not |not a |not |a )?good[- ]natured\b")
_PUBLIC_BRACKETS = re.compile(r"\[[ \t]*('[A-Z]'(?:[ \t]*,[ \t]*'[A-Z]')*)[ \t]*\]")
_PUBLIC_BARE = re.compile(r"(?:[A-Za-z ]*[Rr]anking[A-Za-z ]*:[ \t]*)([A-Z](?:,[ \t]*[A-Z])+)\.?")
_PUBLIC_PAIR = re.compile(
    r"(?:- |[0-9]+\. )?(?:\('([A-Z])', '([A-Z])'\)|(?:Model )?([A-Z]) vs (?:Model )?([A-Z])): (?:Model )?([A-Z])(?:$| wins\b.*)"
)


def _parse_public(lines: Sequence[tuple[int, str]], k: int) -> Verdict | Failure:
    lists = [found for _, line in lines for found in _PUBLIC_BRACKETS.findall(line)]
    if not lists:
        lists = [match[1] for _, line in lines if (match := _PUBLIC_BARE.fullmatch(line))]
    if not lists:
        return Failure("no ranking line")
    rankings = [_permutation(re.findall("[A-Z]", found), k) for found in lists]
    for ranking in rankings:
        if isinstance(ranking, Failure):
            return ranking
    if len(set(rankings)) > 1:
        return Failure("rankings contradict each other", f"{len(rankings)} lists")
    good = _PUBLIC_GOOD.match(lines[0][1])
    good_natured = None if good is None else "not" not in (good[1] or "")
    assert not isinstance(rankings[0], Failure)
    return Verdict(rankings[0], good_natured, _public_pairs(lines, k))


def _public_pairs(lines: Sequence[tuple[int, str]], k: int) -> tuple[Pair, ...]:
    """The pair verdicts that are stated plainly; ties and arguments without a plain winner are left unread."""
    pairs: list[Pair] = []
    for _, line in lines:
        match = _PUBLIC_PAIR.fullmatch(line)
        if match is None:
            continue
        a, b, winner = (LETTERS.find(letter) for letter in match.groups() if letter)
        if 0 <= a < k and 0 <= b < k and a != b and winner in (a, b):
            pairs.append((a, b, winner))
    return tuple(pairs)
