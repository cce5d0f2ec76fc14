"""Fuzzing the parser of verdicts: a million malformed replies per grammar, and not one exception or false ranking.

Inputs are valid replies of every grammar, changed a few times at random (characters, lines, letters, splices, repetitions, odd
Unicode), and for a tenth plain noise over the grammars' own alphabet. For each input and a random K: `parse` must return, and
what it returns must be a `Failure` or a `Verdict` whose ranking is a permutation of 0 … K-1 and whose pairs are pairs of it;
in our own grammars the verdict written down and read again must be itself. The draw is seeded: a finding can be repeated.

    python benchmarks/fuzz_verdict.py                    1,000,000 inputs for each grammar
    python benchmarks/fuzz_verdict.py --count 10000 --seed 7
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import combinations

from starling.judge.verdict import BEST_SCORE, FORMS, LETTERS, Failure, Grammar, Verdict, parse, write_reply

ODD = [
    "", " ", "\t", "\n", "\r", "\x00", "\u2028", "\u200b", "\ufeff", "\ud800", "\uff21", "İ", "ß", "'", '"', "’", "[", "]",
    "(", ")", "[[", "]]", ",", ":", ">", "=", "A", "B", "L", "M", "Z", "a", "0", "1", "10", "None", "yes", "no", "tie", "🙂",
    "Ranking: ", "Good natured: ", "Final Rankings: ", "\\", "{", "}", "%s", "__import__('os')", "é", "\x1b[0m", "```",
]  # fmt: skip
NOISE = "ABCDEFGHIJKLMZ'[](),: \n>=yesnoRankingGood natured0123456789"


def valid(draw: random.Random, k: int, grammar: Grammar) -> str:
    """A reply about K answers that `grammar` takes; one in ten is of another one, and then K may be another one, too."""
    if draw.random() < 0.1:
        grammar = draw.choice(list(Grammar))
        k = size(draw, grammar)
    form, order = FORMS[grammar], draw.sample(range(k), k)
    pairs = [(a, b) if draw.random() < 0.5 else (b, a) for a, b in draw.sample(list(combinations(range(k), 2)), k * (k - 1) // 2)]
    if grammar is Grammar.nectar_public:
        return _public(draw, order, pairs)
    if k == 2 and form.pairs and form.ranking:
        pairs = [(order[0], order[1])]  # the winner comes first below, so that the ranking agrees
    equal = [p for p in pairs if form.ties and (k > 2 or not form.ranking) and draw.random() < 0.2]
    won = [(a, b, a if k == 2 else draw.choice((a, b))) for a, b in pairs if (a, b) not in equal]
    tied = (2, *[1] * (k - 2)) if form.ranking and form.ties and k > 2 and draw.random() < 0.5 else ()
    score = draw.randint(1, BEST_SCORE) if form.score else None
    return write_reply(Verdict(tuple(order), draw.random() < 0.8, tuple(won), tuple(equal), tied, score), grammar)


def _public(draw: random.Random, order: list[int], pairs: list[tuple[int, int]]) -> str:
    """A reply of the kind that the authors of Nectar released."""
    quoted, bare = ", ".join(f"'{LETTERS[i]}'" for i in order), ", ".join(LETTERS[i] for i in order)
    said = "\n".join(f"({LETTERS[a]!r}, {LETTERS[b]!r}): {LETTERS[draw.choice((a, b))]}" for a, b in pairs)
    good = draw.choice(["This is a good natured conversation.", "This is not a good natured conversation.", "good-natured"])
    last = draw.choice((f"[[{quoted}]]", f"Final Rankings: {bare}", f"Final ranking: [{quoted}]\n[{quoted}]"))
    return f"{good}\n{said}\n{last}"


def size(draw: random.Random, grammar: Grammar) -> int:
    """A K that the grammar can speak about."""
    return draw.randint(*FORMS[grammar].sizes)


def _characters(text: str, draw: random.Random) -> str:
    at = draw.randrange(len(text) + 1)
    return text[:at] + draw.choice(ODD) + text[at + draw.randrange(3) :]


def _cut(text: str, draw: random.Random) -> str:
    a, b = sorted((draw.randrange(len(text) + 1), draw.randrange(len(text) + 1)))
    return draw.choice((text[a:b], text[:a] + text[b:], text[:b]))


def _lines(text: str, draw: random.Random) -> str:
    lines = text.split("\n")
    one = draw.choice(lines)
    if draw.random() < 0.6:
        lines.insert(draw.randrange(len(lines) + 1), one)
    if draw.random() < 0.6:
        lines.remove(one)
    if draw.random() < 0.3:
        draw.shuffle(lines)
    return draw.choice(("\n", "\n", "\r\n", "\n\n", " ")).join(lines)


def _letters(text: str, draw: random.Random) -> str:
    places = [i for i, c in enumerate(text) if c in LETTERS]
    if not places:
        return text + draw.choice(LETTERS)
    at = draw.choice(places)
    return text[:at] + draw.choice(LETTERS + "MZa1") + text[at + 1 :]


def _swap(text: str, draw: random.Random) -> str:
    a, b = draw.choice(ODD), draw.choice(ODD)
    return text.replace(a, b, draw.randrange(1, 4)) if a else text + b


def _repeat(text: str, draw: random.Random) -> str:
    a = draw.randrange(len(text) + 1)
    return text[:a] + text[a : a + draw.randrange(1, 30)] * draw.choice((2, 3, 3, 200)) + text[a:]


def _splice(text: str, draw: random.Random) -> str:
    grammar = draw.choice(list(Grammar))
    other = valid(draw, size(draw, grammar), grammar)
    return text[: draw.randrange(len(text) + 1)] + other[draw.randrange(len(other)) :]


CHANGES: tuple[Callable[[str, random.Random], str], ...] = (
    _characters, _characters, _cut, _lines, _lines, _letters, _letters, _letters, _swap, _repeat, _splice,
)  # fmt: skip


def inputs(count: int, seed: int, grammar: Grammar) -> Iterator[tuple[str, int]]:
    """So many (text, K) around the replies of `grammar`, the same for the same seed."""
    draw = random.Random(seed)
    for _ in range(count):
        k = size(draw, grammar)
        if draw.random() < 0.1:
            yield "".join(draw.choices(NOISE, k=draw.randrange(120))), k
            continue
        text = valid(draw, k, grammar)
        for _ in range(draw.choice((0, 1, 1, 1, 2, 3, 6))):
            text = draw.choice(CHANGES)(text, draw)
        yield text, size(draw, grammar) if draw.random() < 0.1 else k


def check(text: str, k: int, grammar: Grammar) -> str:
    """Parse one input; what came out, by name.

    Raises:
        AssertionError: something that is no permutation passed for a ranking, or a verdict does not survive being written.
    """
    verdict = parse(text, k, grammar)
    if isinstance(verdict, Failure):
        return verdict.reason
    form, about = FORMS[grammar], (grammar, k, text)
    assert sorted(verdict.ranking) == list(range(k)), about
    assert not verdict.tied or (sum(verdict.tied) == k and min(verdict.tied) >= 1 and form.ties), about
    assert (verdict.score in range(1, BEST_SCORE + 1)) if form.score else verdict.score is None, about
    for a, b, winner in [*verdict.pairs, *((a, b, a) for a, b in verdict.ties)]:
        assert a != b, about
        assert winner in (a, b), about
        assert {a, b} <= set(range(k)), about
    if grammar is not Grammar.nectar_public:
        assert parse(write_reply(verdict, grammar), k, grammar) == verdict, about
    return "ranked"


def fuzz(count: int, seed: int, grammar: Grammar) -> tuple[Counter[str], float]:
    """How often each result came out of `count` inputs, and the longest time that one of them took, in seconds."""
    found: Counter[str] = Counter()
    longest = 0.0
    for number, (text, k) in enumerate(inputs(count, seed, grammar)):
        began = time.perf_counter()
        try:
            found[check(text, k, grammar)] += 1
        except Exception as error:
            error.add_note(f"input {number} of seed {seed}, K = {k}, grammar {grammar}: {text!r}")
            raise
        longest = max(longest, time.perf_counter() - began)
    return found, longest


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1_000_000, help="inputs for each grammar")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for grammar in Grammar:
        began = time.perf_counter()
        found, longest = fuzz(args.count, args.seed, grammar)
        print(f"{grammar}: {sum(found.values())} inputs, {time.perf_counter() - began:.0f} s, slowest {longest * 1000:.1f} ms")
        for reason, number in found.most_common():
            print(f"  {number:9} {reason}")
        print(json.dumps({"grammar": str(grammar), "inputs": sum(found.values()), "found": found}))


if __name__ == "__main__":
    main()
