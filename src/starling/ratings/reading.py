"""Votes from files into `Battles`: streamed, names as numbers at once, every row that is no battle under a named outcome.

What a row becomes:

    rated             a battle
    no_model          a model's name is missing
    same_model        a model against itself
    no_verdict        the winner is missing
    unknown_winner    a word for the winner that the kind of file does not have
    bad_score         a soft verdict that is no number from 0 to 1
    error             a pair judgment of which one order has no verdict (FastChat drops it)
    not_json, …       what `starling.rows` calls a row that cannot be read
    unparsed, …       a comparison without a winner, by its own outcome

Ten million battles are read in bounded memory: the columns that nobody wants are not read, a batch of rows is turned into codes
before the next one is, and of names that are too many to keep, such as a log's ids of conversations, only a hash of 64 bits is
kept: two of ten million names coincide with a chance of 3 in a million.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from starling import rows
from starling.errors import InputError
from starling.progress import SILENT, Progress
from starling.ratings.battles import STYLE_FEATURES, Battles, Codes, Named
from starling.ratings.votes import KINDS, OPTIONAL, TEXTS, Columns, Kind, fields_read, kind_of, of_batch, of_rows

if TYPE_CHECKING:
    import pyarrow as pa

BATCH = 1 << 15
"""Rows turned into codes at once."""
MOST_NAMES = 1 << 20
"""Names of a column that are kept while a file is read, counted batch by batch; beyond, their hashes are."""


@dataclass(frozen=True, kw_only=True)
class Votes:
    """The battles of some files, and what became of every row. Law: the outcomes add up to the rows."""

    battles: Battles
    outcomes: Mapping[str, int]
    unknown_winners: tuple[str, ...] = ()
    """Examples of words that were no winner."""

    @property
    def rows(self) -> int:
        """Rows of the files."""
        return sum(self.outcomes.values())


def read_votes(
    paths: Sequence[Path],
    *,
    wanted: frozenset[str] = OPTIONAL,
    categories: Mapping[str, str] | None = None,
    progress: Progress = SILENT,
) -> Votes:
    """The battles of files, one after the other.

    Args:
        paths: files, folders or globs, of the kinds of `starling.ratings.votes`, as jsonl, json, csv (each also .gz) or parquet.
        wanted: which of OPTIONAL are read. A column that no file has is None in the battles.
        categories: category by prompt, as `read_categories` returns it; goes before the files' own.

    Raises:
        InputError: a file that is missing, damaged, or of no known kind.
    """
    import pyarrow as pa

    found = _Gathered(wanted, categories)
    files = rows.files_of(paths)
    total = sum(rows.count_rows(f) for f in files) if all(f.name.endswith(".parquet") for f in files) else 0
    progress.start("read votes", total)
    for path in files:
        for columns, kind in _columns_of(path, found.wanted, found.outcomes):
            found.add(columns, kind)
            progress.advance(len(columns.a))
    progress.finish()
    battles = found.battles()
    pa.default_memory_pool().release_unused()
    return Votes(battles=battles, outcomes=dict(found.outcomes), unknown_winners=tuple(sorted(found.unknown)[:5]))


def read_categories(path: Path) -> dict[str, str]:
    """The category of each prompt, from a file of prompts: FastChat's question.jsonl {question_id, category}, or {id, type}.

    Raises:
        InputError: no row has both.
    """
    found: dict[str, str] = {}
    for row in rows.read_rows(path):
        value = row.value or {}
        prompt = next((value[k] for k in ("question_id", "prompt_id", "id") if value.get(k) is not None), None)
        category = next((value[k] for k in ("category", "type") if value.get(k) is not None), None)
        if prompt is not None and category is not None:
            found[str(prompt)] = str(category)
    if not found:
        raise InputError(
            "No prompt of the file has a category", where=str(path), cure="give rows of {question_id, category} or {id, type}"
        )
    return found


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _columns_of(path: Path, wanted: frozenset[str], outcomes: Counter[str]) -> Iterator[tuple[Columns, Kind]]:
    if path.name.lower().endswith(".parquet"):
        yield from _of_parquet(path, wanted)
        return
    kind: Kind | None = None
    read: list[dict[str, Any]] = []
    for row in rows.read_rows(path):
        if row.value is None:
            outcomes[row.problem] += 1
            continue
        kind = kind or _known(kind_of(row.value), row.value, path)
        read.append(row.value)
        if len(read) == BATCH:
            yield of_rows(read, kind, wanted), kind
            read = []
    if kind is not None and read:
        yield of_rows(read, kind, wanted), kind


def _of_parquet(path: Path, wanted: frozenset[str]) -> Iterator[tuple[Columns, Kind]]:
    names = rows.parquet_names(path)
    kind = _known(kind_of(names), names, path)
    fields = fields_read(kind, wanted)
    for batch in rows.parquet_batches(path, BATCH, [n for n in names if n in fields]):
        yield of_batch(batch, kind, wanted), kind


def _known(kind: Kind | None, names: Sequence[str] | Mapping[str, Any], path: Path) -> Kind:
    if kind is None:
        known = "; ".join(f"{k.a}, {k.b}, {k.winner}" for k in KINDS)
        raise InputError(
            f"The file holds no votes of a known kind: its fields are {', '.join(list(names)[:12])}",
            where=str(path),
            cure=f"give rows with one of: {known}",
        )
    return kind


# ── rows into codes ──────────────────────────────────────────────────────────────────────────────────────────────────


class _Gathered:
    """What was read so far: codes per batch, with each batch's names."""

    def __init__(self, wanted: frozenset[str], categories: Mapping[str, str] | None) -> None:
        self.outcomes: Counter[str] = Counter()
        self.unknown: set[str] = set()
        self._categories = categories
        self.wanted = wanted if categories is None else wanted | {"prompt", "category"}
        self._models: tuple[list[pa.Array], list[pa.Array]] = ([], [])
        self._texts = {key: _Names() for key in TEXTS if key in self.wanted}
        self._there: set[str] = set()
        self._numbers: dict[str, list[NDArray[Any]]] = {key: [] for key in ("score", "time", "anonymous", "style_a", "style_b")}

    def add(self, columns: Columns, kind: Kind) -> None:
        """One batch: outcomes counted, battles kept."""
        import pyarrow as pa

        score_N, outcome_N, names = _verdicts(columns, kind, self.unknown)
        for code, count in enumerate(np.bincount(outcome_N, minlength=len(names)).tolist()):
            if count:
                self.outcomes[names[code]] += count
        keep_N = outcome_N == 0
        mask, count = pa.array(keep_N), int(keep_N.sum())
        for chunks, models in zip(self._models, (columns.a, columns.b), strict=True):
            chunks.append(models.filter(mask).dictionary_encode())
        if self._categories is not None and "prompt" in columns.texts:
            columns.texts["category"] = _category(columns.texts["prompt"], self._categories)
        for key, column in self._texts.items():
            values = columns.texts.get(key)
            self._there |= {key} if values is not None else set()
            values = pa.nulls(count, pa.string()) if values is None else values.filter(mask)
            column.add(values.fill_null("").dictionary_encode())
        self._numbers["score"].append(score_N[keep_N].astype(np.float32))
        style = columns.style_NF or (None, None)
        for key, numbers, missing in (
            ("time", columns.time_N, np.full(count, np.nan)),
            ("anonymous", columns.anonymous_N, np.zeros(count, dtype=bool)),
            ("style_a", style[0], np.full((count, len(STYLE_FEATURES)), np.nan, dtype=np.float32)),
            ("style_b", style[1], np.full((count, len(STYLE_FEATURES)), np.nan, dtype=np.float32)),
        ):
            if key.removesuffix("_a").removesuffix("_b") in self.wanted:
                self._there |= {key} if numbers is not None else set()
                self._numbers[key].append(missing if numbers is None else numbers[keep_N])

    def battles(self) -> Battles:
        """All of it, with one numbering of the names."""
        models, (a_N, b_N) = _unified(self._models)
        named = {key: column.named() for key, column in self._texts.items() if key in self._there}
        if self._categories is not None and "prompt" not in named and len(a_N):
            raise InputError("The votes do not say their prompt", where="the votes given", cure="leave out the prompts' file")
        numbers = {key: _joined(self._numbers.pop(key)) if key in self._there else None for key in list(self._numbers)[1:]}
        return Battles(
            models=models,
            a_N=a_N,
            b_N=b_N,
            score_a_N=_joined(self._numbers.pop("score"), np.float32),
            time_N=numbers["time"],
            anonymous_N=numbers["anonymous"],
            style_a_NF=numbers["style_a"],
            style_b_NF=numbers["style_b"],
            **named,
        ).without_idle_models()


def _joined(chunks: list[NDArray[Any]], dtype: Any = None) -> NDArray[Any]:
    return np.concatenate(chunks) if chunks else np.zeros(0, dtype=dtype)


def _verdicts(columns: Columns, kind: Kind, unknown: set[str]) -> tuple[NDArray[np.float64], NDArray[np.int64], list[str]]:
    """Per row the first model's share (NaN where there is none), its outcome as a number, and the outcomes' names; 0 = rated."""
    import pyarrow.compute as pc

    names = ["rated", "no_model", "same_model", "no_verdict", "unknown_winner", "bad_score", "error"]
    score_N, outcome_N = _words(columns.winner, kind, unknown)
    if columns.second is not None:
        other_N, other_outcome_N = _words(columns.second, kind, unknown)
        score_N = np.where(score_N == other_N, score_N, 0.5)
        outcome_N = np.where((outcome_N != 0) | (other_outcome_N != 0), names.index("error"), 0)
    if columns.outcome is not None:
        encoded = columns.outcome.fill_null("no_verdict").dictionary_encode()
        own = encoded.dictionary.to_pylist()
        code_N = np.asarray(encoded.indices.to_numpy(zero_copy_only=False), dtype=np.int64)
        outcome_N = np.where(outcome_N == names.index("no_verdict"), code_N + len(names), outcome_N)
        names += own
    soft_N = ~np.isnan(columns.score_N)
    good_N = soft_N & (columns.score_N >= 0) & (columns.score_N <= 1)
    score_N = np.where(good_N, columns.score_N, score_N)
    outcome_N = np.where(good_N, 0, np.where(soft_N, names.index("bad_score"), outcome_N))
    same_N = np.asarray(pc.fill_null(pc.equal(columns.a, columns.b), False))
    absent_N = np.asarray(pc.equal(columns.a.fill_null(""), "")) | np.asarray(pc.equal(columns.b.fill_null(""), ""))
    outcome_N = np.where(absent_N, names.index("no_model"), np.where(same_N, names.index("same_model"), outcome_N))
    return score_N, outcome_N.astype(np.int64), names


def _words(words: pa.Array, kind: Kind, unknown: set[str]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """What the winner's words mean: the share of a, and 0, 3 (no_verdict) or 4 (unknown_winner)."""
    encoded = words.fill_null("").dictionary_encode()
    shares, outcomes = [], []
    for word in encoded.dictionary.to_pylist():
        share = 0.5 if word.lower().startswith("tie") else kind.verdicts.get(word)
        shares.append(float("nan") if share is None else share)
        outcomes.append(0 if share is not None else 3 if word in kind.missing else 4)
        if outcomes[-1] == 4 and len(unknown) < 5:
            unknown.add(word[:40])
    code_N = np.asarray(encoded.indices.to_numpy(zero_copy_only=False), dtype=np.int64)
    return np.array(shares, dtype=np.float64)[code_N], np.array(outcomes, dtype=np.int64)[code_N]


# ── names ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Names:
    """One column of names, batch by batch."""

    def __init__(self) -> None:
        self._chunks: list[pa.Array] = []
        self._hashes: list[NDArray[np.uint64]] = []
        self._kept = 0

    def add(self, chunk: pa.Array) -> None:
        """The names of a batch, dictionary-encoded."""
        self._chunks.append(chunk)
        self._kept += len(chunk.dictionary)
        if self._kept > MOST_NAMES:
            self._hashes += [_hashed(kept) for kept in self._chunks]
            self._chunks.clear()

    def named(self) -> Named:
        """The whole column."""
        if not self._hashes:
            names, (codes_N,) = _unified((self._chunks,))
            return Named(names=names, codes_N=codes_N)
        hashes, number_N = np.unique(np.concatenate(self._hashes), return_inverse=True)
        self._hashes.clear()
        return Named(names=_Hashes(hashes), codes_N=number_N.astype(np.int32))


def _hashed(chunk: pa.Array) -> NDArray[np.uint64]:
    """64 bits for each name; 0 for the empty one."""
    names = chunk.dictionary.to_pylist()
    digests = [blake2b(n.encode("utf-8", "surrogatepass"), digest_size=8).digest() if n else bytes(8) for n in names]
    hashes = np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)
    return np.asarray(hashes[chunk.indices.to_numpy(zero_copy_only=False)])


class _Hashes(Sequence[str]):
    """Names of which only hashes are known, as hexadecimal digits."""

    def __init__(self, hashes: NDArray[np.uint64]) -> None:
        self._hashes = hashes

    def __len__(self) -> int:
        return len(self._hashes)

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[str]: ...
    def __getitem__(self, at: int | slice) -> str | Sequence[str]:
        if isinstance(at, slice):
            return _Hashes(self._hashes[at])
        value = int(self._hashes[at])
        return f"{value:016x}" if value else ""


def _unified(columns: Sequence[list[pa.Array]]) -> tuple[tuple[str, ...], list[Codes]]:
    """One numbering of the names of some columns of chunks, and each column's codes. Empties the lists."""
    import pyarrow as pa

    ends = np.cumsum([0, *(len(chunks) for chunks in columns)])
    if not ends[-1]:
        return (), [np.zeros(0, np.int32) for _ in columns]
    joined = pa.chunked_array([chunk for chunks in columns for chunk in chunks]).unify_dictionaries()
    for chunks in columns:
        chunks.clear()
    codes = [np.asarray(chunk.indices.to_numpy(zero_copy_only=False), dtype=np.int32) for chunk in joined.chunks]
    names = tuple(joined.chunk(0).dictionary.to_pylist())
    return names, [_joined(codes[start:stop], np.int32) for start, stop in pairwise(ends.tolist())]


def _category(prompts: pa.Array, categories: Mapping[str, str]) -> pa.Array:
    """Each row's category by its prompt; null for a prompt that the file of prompts does not have."""
    import pyarrow as pa

    encoded = prompts.fill_null("").dictionary_encode()
    return pa.array([categories.get(p) for p in encoded.dictionary.to_pylist()], pa.string()).take(encoded.indices)
