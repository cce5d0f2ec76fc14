"""Prompts that contain what a benchmark asks: word n-grams, with the whole item where it is shorter.

Source: GPT-3 (arXiv 2005.14165, appendix C) calls a text contaminated that shares 13 words in a row with a benchmark, ignoring
case, spaces and punctuation. Items shorter than that would never match, and most of TruthfulQA's 817 questions are; about 800 of
them stand in Nectar. Hence of an item of fewer than n words all words must be there in a row, and an item of fewer than 5 words
must be a whole turn ("Name a fruit" inside a longer text says nothing). GPT-3 takes shorter n (8 and up) for benchmarks of short
items instead. Departure: no n-gram is forgiven for being frequent; every match is reported with its words, to be looked at.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from starling.config import BenchmarkSet, DecontaminationSection
from starling.errors import InputError
from starling.prompts.formats import Dropped, user_texts
from starling.records import Messages
from starling.rows import files_of, read_rows

ANCHOR = 3
"""Words by which a place in a text is looked up; only where they begin an n-gram is the rest compared."""
WHOLE_TURN = 5
"""Items of fewer words match whole turns only."""
_WORD = re.compile(r"[^\W_\u3040-\u30ff\u3400-\u9fff]+|[\u3040-\u30ff\u3400-\u9fff]")


def words_of(text: str) -> list[str]:
    """Words in lower case without punctuation; each Chinese or Japanese character counts as one."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


@dataclass(frozen=True)
class Overlap:
    """Where a prompt meets a benchmark, e.g. Overlap("mt_bench", "81 turn 2", "rewrite your previous response …")."""

    benchmark: str
    item: str
    words: str


class Benchmarks:
    """The items of all sets, ready to be looked for.

    Raises:
        InputError: a file cannot be read, or not one of its rows has a text.
    """

    def __init__(self, settings: DecontaminationSection) -> None:
        self._ngram = settings.ngram
        self._turns: dict[str, tuple[str, str]] = {}
        self._grams: dict[str, tuple[str, str]] = {}
        self._lengths: dict[str, tuple[int, ...]] = {}
        self.unusable = 0
        """Rows of the sets that hold no text."""
        for benchmark in settings.sets:
            self._add(benchmark)

    def _add(self, benchmark: BenchmarkSet) -> None:
        for file in files_of(benchmark.path):
            found = False
            for row in read_rows(file):
                try:
                    if row.value is None:
                        raise Dropped(row.problem)
                    texts = user_texts(row.value, benchmark.column)
                except Dropped:
                    self.unusable += 1
                    continue
                name = row.value.get("question_id", row.value.get("id"))
                for part, text in texts:
                    item = f"{name if isinstance(name, str | int) else f'row {row.number}'} {part}".strip()
                    found |= self._add_text(words_of(text), (benchmark.name, item))
            if not found:
                raise InputError(
                    "Not one row of the benchmark's file has a text to look for",
                    where=f"{file} of the set '{benchmark.name}'" + (f", column {benchmark.column}" if benchmark.column else ""),
                    cure="name the column of its questions with `column`",
                )

    def _add_text(self, words: Sequence[str], item: tuple[str, str]) -> bool:
        if 0 < len(words) < WHOLE_TURN:
            self._turns.setdefault(" ".join(words), item)
        length = min(self._ngram, len(words))
        for start in range(len(words) - length + 1) if length >= WHOLE_TURN else ():
            self._grams.setdefault(" ".join(words[start : start + length]), item)
            anchor = " ".join(words[start : start + ANCHOR])
            known = self._lengths.get(anchor, ())
            if length not in known:
                self._lengths[anchor] = tuple(sorted((*known, length), reverse=True))
        return bool(words)

    def overlap(self, messages: Messages) -> Overlap | None:
        """The first place where a turn of the conversation, whoever speaks, meets an item. So with a conversation all that
        goes on from it is found."""
        for message in messages:
            words = words_of(message.content)
            if len(words) < WHOLE_TURN:
                item = self._turns.get(" ".join(words))
                if item is not None:
                    return Overlap(*item, " ".join(words))
            for start in range(len(words) - WHOLE_TURN + 1):
                for length in self._lengths.get(" ".join(words[start : start + ANCHOR]), ()):
                    gram = " ".join(words[start : start + length])
                    item = self._grams.get(gram)
                    if item is not None:
                        return Overlap(*item, gram)
        return None
