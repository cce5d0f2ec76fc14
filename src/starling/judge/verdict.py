"""From a judge's reply to a verdict, or to a named failure: the only door, and it never repairs, guesses or evaluates.

Two grammars, each a version of its own:

`Grammar.starling_1`, for replies to our own rubric. Exactly these lines, nothing before, between or after them (blank
lines and spaces at the ends of a line do not count), letters A … of the K answers shown, each unordered pair once:

    Good natured: yes            (or: no)
    ('A', 'C'): A                one line for each of the K(K-1)/2 pairs, any order; the winner is one of the two
    Ranking: ['C', 'A', 'B']     every letter once, best first; at K = 2 it must agree with the one pair

`Grammar.nectar_public`, for the replies of gpt-4-0613 that the authors of Nectar released with their ablations (github
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

LETTERS = "ABCDEFGHIJKL"
"""Names of the answers shown, by position; so K is at most 12."""

Pair = tuple[int, int, int]
"""(first, second, winner) as positions shown; the winner is one of the two."""


class Grammar(StrEnum):
    """Version of the language a reply is read in; part of the rubric's hash."""

    starling_1 = "starling-1"
    nectar_public = "nectar-public"


@dataclass(frozen=True)
class Verdict:
    """What a judge said about K answers, all as positions shown (0 = A).

    Example: Verdict(ranking=(1, 0), good_natured=True, pairs=((0, 1, 1),)).
    """

    ranking: tuple[int, ...]
    good_natured: bool | None
    pairs: tuple[Pair, ...]


@dataclass(frozen=True)
class Failure:
    """Why a reply is no verdict: `reason` is one of a fixed set and can be counted, `detail` says where."""

    reason: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


def parse(text: str, k: int, grammar: Grammar = Grammar.starling_1) -> Verdict | Failure:
    """Read a judge's reply about `k` answers (2 … 12). Never raises on any text; never returns a non-permutation.

    Raises:
        ValueError: `k` itself is out of range, which is the caller's mistake and not the reply's.
    """
    if not 2 <= k <= len(LETTERS):
        raise ValueError(f"k must be 2…{len(LETTERS)}, not {k}")
    lines = [(number, line.strip(" \t\r")) for number, line in enumerate(text.split("\n"), start=1)]
    lines = [(number, line) for number, line in lines if line]
    if not lines:
        return Failure("empty reply")
    return _parse_starling(lines, k) if grammar is Grammar.starling_1 else _parse_public(lines, k)


def write_reply(verdict: Verdict) -> str:
    """The reply that says `verdict` in grammar starling-1: the inverse of `parse`. `good_natured` must be known."""
    if verdict.good_natured is None:
        raise ValueError("grammar starling-1 has no way to leave the good-natured question open")
    pairs = [f"{pair_text(a, b)}: {LETTERS[winner]}" for a, b, winner in verdict.pairs]
    ranking = ", ".join(f"'{LETTERS[i]}'" for i in verdict.ranking)
    return "\n".join([f"Good natured: {'yes' if verdict.good_natured else 'no'}", *pairs, f"Ranking: [{ranking}]"])


def pair_text(a: int, b: int) -> str:
    """How a pair of positions is written everywhere: ('A', 'C')."""
    return f"('{LETTERS[a]}', '{LETTERS[b]}')"


# ── grammar starling-1 ───────────────────────────────────────────────────────────────────────────────────────────────

_GOOD = re.compile(r"Good natured:[ \t]*(yes|no)")
_PAIR = re.compile(r"\([ \t]*'([A-Z])'[ \t]*,[ \t]*'([A-Z])'[ \t]*\)[ \t]*:[ \t]*([A-Z])")
_RANKING = re.compile(r"Ranking:[ \t]*\[[ \t]*('[A-Z]'(?:[ \t]*,[ \t]*'[A-Z]')*)[ \t]*\]")


def _parse_starling(lines: Sequence[tuple[int, str]], k: int) -> Verdict | Failure:
    good = _GOOD.fullmatch(lines[0][1])
    if good is None:
        return Failure("no good-natured line", f"line {lines[0][0]} should be 'Good natured: yes' or 'Good natured: no'")
    if len(lines) == 1:
        return Failure("no ranking line")
    pairs = _read_pairs(lines[1:-1], k)
    if isinstance(pairs, Failure):
        return pairs
    last = _RANKING.fullmatch(lines[-1][1])
    if last is None:
        return Failure("no ranking line", f"line {lines[-1][0]}, the last one, is no ranking")
    ranking = _permutation(re.findall("[A-Z]", last[1]), k)
    if isinstance(ranking, Failure):
        return ranking
    missing = k * (k - 1) // 2 - len(pairs)
    if missing:
        return Failure("pairs missing", f"{missing} of {k * (k - 1) // 2}")
    if k == 2 and pairs[0][2] != ranking[0]:
        return Failure("ranking contradicts the only pair")
    return Verdict(ranking, good[1] == "yes", pairs)


def _read_pairs(lines: Sequence[tuple[int, str]], k: int) -> tuple[Pair, ...] | Failure:
    """Each line one pair verdict of known letters, no pair twice."""
    pairs: list[Pair] = []
    seen: set[tuple[int, int]] = set()
    for number, line in lines:
        match = _PAIR.fullmatch(line)
        if match is None:
            return Failure("line outside the grammar", f"line {number}")
        first, second, best = match.groups()
        a, b, winner = LETTERS.find(first), LETTERS.find(second), LETTERS.find(best)
        if not (0 <= a < k and 0 <= b < k) or a == b:
            return Failure("no such pair", f"line {number}")
        if winner not in (a, b):
            return Failure("winner is not in its pair", f"line {number}")
        pair = (a, b) if a < b else (b, a)
        if pair in seen:
            return Failure("pair named twice", f"line {number}")
        seen.add(pair)
        pairs.append((a, b, winner))
    return tuple(pairs)


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
