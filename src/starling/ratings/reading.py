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
before the next one is, and names of which there may be millions stay in Arrow's memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
_MANY = 1 << 16
"""More names than this stay in Arrow's memory."""


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
    if categories is not None:
        wanted = wanted | {"prompt"}
    found = _Gathered(wanted)
    files = rows.files_of(paths)
    total = sum(rows.count_rows(f) for f in files) if all(f.name.endswith(".parquet") for f in files) else 0
    progress.start("read votes", total)
    for path in files:
        for columns, kind in _columns_of(path, wanted, found.outcomes):
            found.add(columns, kind)
            progress.advance(len(columns.a))
    progress.finish()
    return Votes(
        battles=found.battles(categories), outcomes=dict(found.outcomes), unknown_winners=tuple(sorted(found.unknown)[:5])
    )


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

    def __init__(self, wanted: frozenset[str]) -> None:
        self.outcomes: Counter[str] = Counter()
        self.unknown: set[str] = set()
        self._wanted = wanted
        self._names: dict[str, list[pa.Array]] = {key: [] for key in ("a", "b", *TEXTS)}
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
        for key, values in (("a", columns.a), ("b", columns.b), *((key, columns.texts.get(key)) for key in TEXTS)):
            if key in ("a", "b", *self._wanted):
                self._there |= {key} if values is not None else set()
                values = pa.array([""]).take(pa.array(np.zeros(count, np.int32))) if values is None else values.filter(mask)
                self._names[key].append(values.fill_null("").dictionary_encode())
        self._numbers["score"].append(score_N[keep_N].astype(np.float32))
        style = columns.style_NF or (None, None)
        for key, numbers, missing in (
            ("time", columns.time_N, np.full(count, np.nan)),
            ("anonymous", columns.anonymous_N, np.zeros(count, dtype=bool)),
            ("style_a", style[0], np.full((count, len(STYLE_FEATURES)), np.nan, dtype=np.float32)),
            ("style_b", style[1], np.full((count, len(STYLE_FEATURES)), np.nan, dtype=np.float32)),
        ):
            if key.removesuffix("_a").removesuffix("_b") in self._wanted:
                self._there |= {key} if numbers is not None else set()
                self._numbers[key].append(missing if numbers is None else numbers[keep_N])

    def battles(self, categories: Mapping[str, str] | None) -> Battles:
        """All of it, with one numbering of the names."""
        batches = len(self._names["a"])
        models, codes = _unified(self._names.pop("a") + self._names.pop("b"), batches)
        named: dict[str, Named | None] = {}
        for key in TEXTS:
            chunks = self._names.pop(key)
            if key in self._there:
                names, (codes_N, _) = _unified(chunks, len(chunks))
                named[key] = Named(names=names, codes_N=codes_N)
        if categories is not None:
            prompts = named.get("prompt")
            if prompts is None:
                raise InputError("The votes do not say their prompt", where="the votes given", cure="leave out the prompts' file")
            named["category"] = _categories(prompts, categories)
        numbers = {key: _joined(self._numbers.pop(key)) if key in self._there else None for key in list(self._numbers)[1:]}
        return Battles(
            models=tuple(models),
            a_N=codes[0],
            b_N=codes[1],
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
        outcomes.append(0 if share is not None else 4 if word else 3)
        if outcomes[-1] == 4 and len(unknown) < 5:
            unknown.add(word[:40])
    code_N = np.asarray(encoded.indices.to_numpy(zero_copy_only=False), dtype=np.int64)
    return np.array(shares, dtype=np.float64)[code_N], np.array(outcomes, dtype=np.int64)[code_N]


# ── names ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class _ArrowNames(Sequence[str]):
    """Millions of names where Arrow keeps them; a text is made of the one asked for."""

    def __init__(self, names: pa.Array) -> None:
        self._names = names

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[str]: ...
    def __getitem__(self, at: int | slice) -> str | Sequence[str]:
        if isinstance(at, slice):
            start, stop, step = at.indices(len(self))
            return [self[i] for i in range(start, stop, step)]
        return str(self._names[at].as_py())


def _unified(chunks: list[pa.Array], split: int) -> tuple[Sequence[str], tuple[Codes, Codes]]:
    """One numbering of all chunks' names, and the codes of the chunks before number `split` and of the others."""
    import pyarrow as pa

    if not chunks:
        return (), (np.zeros(0, np.int32), np.zeros(0, np.int32))
    joined = pa.chunked_array(chunks).unify_dictionaries()
    chunks.clear()
    dictionary = joined.chunk(0).dictionary
    names = tuple(dictionary.to_pylist()) if len(dictionary) <= _MANY else _ArrowNames(dictionary)
    codes = [np.asarray(chunk.indices.to_numpy(zero_copy_only=False), dtype=np.int32) for chunk in joined.chunks]
    return names, (_joined(codes[:split], np.int32), _joined(codes[split:], np.int32))


def _categories(prompts: Named, categories: Mapping[str, str]) -> Named:
    """Each battle's category by its prompt; "" for a prompt that the file of prompts does not have."""
    number: dict[str, int] = {}
    code_P = np.array([number.setdefault(categories.get(p, ""), len(number)) for p in prompts.names], dtype=np.int32)
    return Named(names=tuple(number), codes_N=code_P[prompts.codes_N])
