"""Which conversations are the same, and which nearly.

The same: equal keys. Nectar's key is letters and digits of the conversation in lower case, for which "3 + 4" and "3 - 4" are one;
the default here keeps signs and word borders (setting `prompts.duplicates`). Departure: where one turn ends and the next begins
counts in every key.

Nearly the same: as many turns, the same numbers in the same places, and in every turn a Jaccard similarity of the 5-character
shingles of at least the threshold. Candidates are found by MinHash with banding (Leskovec et al., Mining of Massive Datasets,
ch. 3; sketches by the library rensa), so a pair at the threshold is missed with a probability of at most 5 %; every candidate is
then compared exactly, so no pair is merged by chance. The index holds about 300 bytes a text; rensa's own takes four times that.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from starling.errors import MissingExtra
from starling.progress import SILENT, Progress
from starling.records import Messages, content_hash

if TYPE_CHECKING:
    import numpy as np

    Numbers = np.ndarray[Any, np.dtype[np.int32]]

Rule = Literal["characters", "words", "letters"]

SHINGLE = 5
"""Characters."""
PERMUTATIONS = 128
SEED = 1
"""Of the permutations. Fixed: what is a duplicate does not depend on the run."""
RECALL = 0.95
SLACK = 0.1
"""How far below the threshold the similarity that the sketches estimate may lie: three standard errors at 0.8 and 128 values."""

_OPENING, _CLOSING = frozenset("\"'“‘¿¡"), frozenset(".,;:?!…\"'”’")
_MARKS = re.compile(r"""^["'“‘¿¡]+|(?:(?<!\d)!|[.,;:?…"'”’])+$""")
_NUMBER = re.compile(r"\d+")


# ── the same ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@lru_cache(maxsize=16)
def words(text: str) -> str:
    """The text in lower case without the marks that open or end words, one blank between words; if that leaves nothing, as it
    is. `It's 5!` → `it's 5!`, `Why?` → `why`, `a != b` stays."""
    found = unicodedata.normalize("NFC", text.casefold()).split()
    bare = [_MARKS.sub("", w) if w[-1] in _CLOSING or w[0] in _OPENING else w for w in found]
    return " ".join(filter(None, bare)) or " ".join(found)


def _letters(text: str) -> str:
    return "".join(c for c in text.casefold() if c.isalnum()) or " ".join(text.split())


def key_of(messages: Messages, rule: Rule) -> int:
    """64 bits that are equal for conversations that are the same under the rule."""
    if rule == "characters":
        return _number([[m.role, m.content] for m in messages])
    same = words if rule == "words" else _letters
    return _number([same(m.content) for m in messages])


def opening_of(messages: Messages) -> int:
    """64 bits of the words of the first turn: what all states of a conversation share."""
    return _number(words(messages[0].content))


def _number(value: Any) -> int:
    return int(content_hash(value, 16), 16)


class Groups:
    """Numbers 0, 1, … joined into groups (union-find); the smallest of a group stands for it."""

    def __init__(self) -> None:
        self._parents = array("i")

    def add(self) -> int:
        self._parents.append(len(self._parents))
        return len(self._parents) - 1

    def __len__(self) -> int:
        return len(self._parents)

    def find(self, number: int) -> int:
        parents = self._parents
        while parents[number] != number:
            parents[number] = parents[parents[number]]
            number = parents[number]
        return number

    def join(self, a: int, b: int) -> None:
        first, second = sorted((self.find(a), self.find(b)))
        self._parents[second] = first

    def find_all(self, numbers: Numbers) -> Numbers:
        """`find` of many at once."""
        import numpy as np

        parents = np.frombuffer(self._parents, dtype=np.int32)
        roots = parents[numbers]
        while not np.array_equal(roots, above := parents[roots]):
            roots = above
        return roots


# ── nearly the same ──────────────────────────────────────────────────────────────────────────────────────────────────


def shingles(text: str) -> set[str]:
    """All runs of 5 characters; a shorter text is its own only one."""
    return {text[i : i + SHINGLE] for i in range(max(1, len(text) - SHINGLE + 1))}


def jaccard(a: set[str], b: set[str]) -> float:
    """Size of what they share by size of their union."""
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared)


def rows_per_band(threshold: float) -> int:
    """The most rows a band can have while a pair at the threshold shares at least one band with probability RECALL.

    1 − (1 − s^r)^(128 // r) is that probability for similarity s and r rows.
    """
    fitting = [r for r in range(1, PERMUTATIONS + 1) if 1 - (1 - threshold**r) ** (PERMUTATIONS // r) >= RECALL]
    return max(fitting, default=1)


class NearDuplicates:
    """Finds near-duplicates among numbered conversations.

    Args:
        threshold: least Jaccard similarity.
        read: gives conversation `number` back.

    Raises:
        MissingExtra: rensa is not installed.
    """

    def __init__(self, threshold: float, read: Callable[[int], Messages]) -> None:
        self._threshold, self._read = threshold, read
        self._index = _Index(threshold)
        self._numbers, self._texts = array("i"), array("i")
        """By place in the order of `add`: number, and text in the index; a single turn shares that of its opening."""
        self._opening_texts, self._first = array("i"), array("i")
        """Opening → its text, and the first conversation with it; -1 of openings that only merged rows have."""
        self._lone = bytearray()
        """Text → whether it is an opening's and stands for a conversation of one turn too."""
        self._content = lru_cache(maxsize=64)(self._content_of)

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, messages: Messages, opening: int, number: int) -> None:
        """One conversation with the number of its opening and its own, which is larger than those before."""
        while len(self._first) <= opening:
            self._first.append(-1)
            self._opening_texts.append(-1)
        if self._first[opening] < 0:
            self._first[opening] = number
            self._opening_texts[opening] = self._add_text(words(messages[0].content))
        text = self._opening_texts[opening]
        if len(messages) > 1 or self._lone[text]:
            text = self._add_text("\n".join(words(m.content) for m in messages))
        self._lone[text] = 1
        self._texts.append(text)
        self._numbers.append(number)

    def _add_text(self, text: str) -> int:
        self._lone.append(0)
        return self._index.add(text)

    def join_openings(self, groups: Groups) -> None:
        """Join openings that are nearly the same, whatever their numbers say; also through others between them."""
        import numpy as np

        self._index.close()
        texts = np.array(self._opening_texts, dtype=np.int32)
        of_text = np.full(len(self._index), -1, dtype=np.int32)
        for opening, text in enumerate(self._opening_texts):
            if text >= 0:
                of_text[text] = opening
        for text in self._index.crowded():
            opening = int(of_text[text])
            if opening < 0:
                continue
            tried: set[int] = set()
            for bucket in self._index.buckets(text):
                others = of_text[bucket]
                others = others[(others >= 0) & (others < opening)]
                others = others[groups.find_all(others) != groups.find(opening)]
                others = others[self._index.likely(text, texts[others])] if len(others) else others
                while len(others := others[groups.find_all(others) != groups.find(opening)]):
                    other, others = int(others[-1]), others[:-1]
                    if other not in tried and self._open_alike(opening, other):
                        groups.join(opening, other)
                    tried.add(other)

    def _open_alike(self, a: int, b: int) -> bool:
        (one, *_), (other, *_) = self._content(self._first[a]), self._content(self._first[b])
        return jaccard(one[0], other[0]) >= self._threshold

    def merges(self, progress: Progress = SILENT) -> Iterator[tuple[int, int]]:
        """(conversation, the earlier one it is merged into): the first one that stays and is nearly the same."""
        import numpy as np

        self._index.close()
        of_text = np.full(len(self._index), -1, dtype=np.int32)  # place of those that stay
        texts, crowded = np.array(self._texts, dtype=np.int32), set(self._index.crowded())
        for place, text in enumerate(self._texts):
            progress.advance()
            if text not in crowded:
                continue
            number = self._numbers[place]
            near = [of_text[bucket] for bucket in self._index.buckets(text)]
            places = np.unique(np.concatenate([others[others >= 0] for others in near]))
            for other in places[self._index.likely(text, texts[places])].tolist():
                if self._alike(number, self._numbers[other]):
                    yield number, self._numbers[other]
                    break
            else:
                of_text[text] = place

    def _alike(self, a: int, b: int) -> bool:
        one, other = self._content(a), self._content(b)
        return len(one) == len(other) and all(
            numbers == others and jaccard(these, those) >= self._threshold
            for (these, numbers), (those, others) in zip(one, other, strict=True)
        )

    def _content_of(self, number: int) -> list[tuple[set[str], list[str]]]:
        """Shingles and numbers of every turn."""
        texts = [words(m.content) for m in self._read(number)]
        return [(shingles(text), _NUMBER.findall(text)) for text in texts]


class _Index:
    """MinHash sketches in buckets: two texts share a bucket when one of their bands is equal.

    Of a sketch the bands' 64-bit hashes are kept, to be sorted into buckets, and one byte of each of its 128 values, to estimate
    similarity with.
    """

    def __init__(self, threshold: float) -> None:
        import importlib.util

        if importlib.util.find_spec("rensa") is None:
            raise MissingExtra("prompts", "rensa")
        import numpy as np

        self._rows = rows_per_band(threshold)
        self._count = PERMUTATIONS // self._rows
        self._least = threshold - SLACK
        factors = [int(content_hash(["band", i], 16), 16) | 1 for i in range(self._rows)]
        self._factors = np.array(factors, dtype=np.uint64)
        self._bands, self._bytes = bytearray(), bytearray()
        self._closed = False

    def __len__(self) -> int:
        return len(self._bytes) // PERMUTATIONS

    def add(self, text: str) -> int:
        import numpy as np
        from rensa import RMinHash

        sketch = RMinHash(PERMUTATIONS, SEED)
        sketch.update([text[i : i + SHINGLE] for i in range(max(1, len(text) - SHINGLE + 1))])
        values = np.array(sketch.digest(), dtype=np.uint64)
        bands = values[: self._count * self._rows].reshape(self._count, self._rows)
        self._bands += (bands * self._factors).sum(axis=1, dtype=np.uint64).tobytes()
        self._bytes += values.astype(np.uint8).tobytes()
        return len(self) - 1

    def close(self) -> None:
        """Sort the texts into buckets. Those that are alone in their bucket, by far most, take no place."""
        import numpy as np

        if self._closed:
            return
        self._closed = True
        bands = np.frombuffer(self._bands, dtype=np.uint64).reshape(-1, self._count)
        members, starts, ends, placed = [], [], [], 0
        for band in range(self._count):
            order = np.argsort(bands[:, band], kind="stable").astype(np.int32)
            keys = bands[order, band]
            borders = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1], [True]))) if len(keys) else np.zeros(1, int)
            sizes = np.diff(borders)
            crowded = np.repeat(sizes > 1, sizes)
            sizes = sizes[sizes > 1]
            first = placed + np.cumsum(sizes) - sizes
            members.append(order[crowded])
            starts.append(np.repeat(first, sizes).astype(np.int64))
            ends.append(np.repeat(first + sizes, sizes).astype(np.int64))
            placed += int(sizes.sum())
        self._members = np.concatenate(members)
        by_text = np.argsort(self._members, kind="stable")
        self._starts, self._ends = np.concatenate(starts)[by_text], np.concatenate(ends)[by_text]
        self._offsets = np.searchsorted(self._members[by_text], np.arange(len(self) + 1))
        self._bands = bytearray()

    def crowded(self) -> list[int]:
        """The texts that share a bucket, in order."""
        import numpy as np

        return [int(text) for text in np.unique(self._members)]

    def buckets(self, text: int) -> Iterator[Numbers]:
        """The texts in each of its buckets, itself included, in order."""
        for place in range(self._offsets[text], self._offsets[text + 1]):
            yield self._members[self._starts[place] : self._ends[place]]

    def likely(self, text: int, others: Numbers) -> Any:
        """True means that the sketches let the other text be a near-duplicate of `text`. One byte of two different values agrees
        once in 256."""
        import numpy as np

        sketches = np.frombuffer(self._bytes, dtype=np.uint8).reshape(-1, PERMUTATIONS)
        equal = np.count_nonzero(sketches[others] == sketches[text], axis=1) / PERMUTATIONS
        return (equal - 1 / 256) / (1 - 1 / 256) >= self._least
