"""Stage 1 from its sources to what it writes: prompts, the answers that came with them, and every row that is not among them.

The rows stream through once. Conversations and answers go to temporary files (`store`); in memory stay some hundred bytes for
each prompt, so that a million rows fit into 2 GiB. A prompt keeps the place of its first row: sources in the order of the
settings, rows in the order of their files.

Splits. A conversation's split is a hash of its first user turn (`chat.split_of`), but conversations whose openings are the same
but for case and marks, that were merged, or (with near-duplicates on) that open nearly alike are one group and go together, by
the hash of the group's smallest key. So neither a later turn nor a merged row straddles, in whatever order the files come.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import Field

from starling.chat import conversation_key, split_of_key
from starling.config import FilePrompts, PromptsSection
from starling.errors import InputError
from starling.progress import SILENT, Progress
from starling.prompts.contamination import Benchmarks, Overlap
from starling.prompts.duplicates import Groups, NearDuplicates, key_of, opening_of
from starling.prompts.filters import Filters
from starling.prompts.formats import Dropped, Found, read
from starling.prompts.mixing import chosen, quotas
from starling.prompts.store import Store
from starling.records import FoundAnswer, Message, Messages, Prompt, Record, content_hash, prompt_id
from starling.rows import count_rows, files_of, read_rows

if TYPE_CHECKING:
    import numpy as np

    Numbers = np.ndarray[Any, np.dtype[np.int64]]

R = TypeVar("R")

REPORT_ROWS = 256
"""Rows between two reports of progress."""


class GatheredRow(Record):
    """A row that is not among the prompts, or (`contaminated_kept`) one that is and meets a benchmark."""

    source: str = Field(description="Name of the source in the settings.")
    file: str = Field(description="Name of its file; empty for the microworld.")
    row: int = Field(description="Its number: line of a jsonl file, element, or row; from 1.")
    outcome: str = Field(description="The reason, as counted in the manifest.")
    prompt_id: str = Field(default="", description="The prompt that the row holds; empty when it holds none.")
    merged_into: str = Field(default="", description="Of duplicates: the prompt that got its sources and answers.")
    benchmark: str = Field(default="", description="Of contaminated rows: the set.")
    item: str = Field(default="", description="And the item in it: its id, else its row, and the turn.")
    words: str = Field(default="", description="The words that they share.")


class Stored(Collection[Prompt]):
    """The prompts in order, read from disk one by one, as often as wanted."""

    def __init__(self, build: Callable[[int], Prompt], numbers: Sequence[int]) -> None:
        self._build, self._numbers = build, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[Prompt]:
        return (self._build(number) for number in self._numbers)

    def __contains__(self, prompt: object) -> bool:
        return any(prompt == found for found in self)


@dataclass(frozen=True)
class Gathered:
    """What stage 1 comes to. Everything but the counts is read from temporary files when it is asked for.

    Reasons in `dropped`, by rows: not_utf8, not_json, not_an_object, not_unicode, too_many_cells (the row cannot be read),
    no_prompt, bad_messages, bad_answers, empty, no_user_turn_last, no_common_prompt, not_a_transcript (system turns, turns that
    do not alternate, a marker inside a turn: the dataset could not hold it), too_long, too_short, too_many_turns, other_language,
    contaminated, duplicate and near_duplicate (merged into an earlier one). By prompts: too_few_answers, over_take, over_total,
    over_train_limit. `noted` counts what is no drop of a prompt: answer_empty, answer_repeated, contaminated_kept,
    benchmark_row_unusable.
    """

    prompts: Collection[Prompt]
    dropped: dict[str, int]
    noted: dict[str, int]
    answers: Iterable[FoundAnswer]
    """In the order of the prompts; no text twice for one prompt."""
    rows: Iterable[GatheredRow]
    """Each dropped row, in the order in which it was dropped."""
    contaminated: Sequence[GatheredRow]
    """The prompts that were kept although they meet a benchmark."""


def gather(
    settings: PromptsSection,
    world_prompts: Sequence[Prompt],
    progress: Progress = SILENT,
    seed: int = 0,
    folder: Path | None = None,
) -> Gathered:
    """All prompts of all sources in order; equal ones merged with their sources and answers united.

    Args:
        settings: sources, filters, limits and the shares of the splits.
        world_prompts: what a source of type microworld stands for; they are what they are and pass no filter.
        progress: gets one unit per row, source by source.
        seed: chooses which prompts stay when their number is limited.
        folder: where temporary files go; the system's place for them when None.

    Raises:
        InputError: a file cannot be read at all, or not one of its rows is a usable prompt; or no prompt is left.
        MissingExtra: a language filter or near-duplicates are asked for and their library is not installed.
        ConfigError: an unknown language.
    """
    gathering = _Gathering(settings, seed, folder)
    for number, source in enumerate(settings.sources):
        if isinstance(source, FilePrompts):
            gathering.read_files(number, source, progress)
        else:
            progress.start("prompts microworld", len(world_prompts))
            for row, prompt in enumerate(world_prompts, start=1):
                gathering.take_in(_Place(number, prompt.sources[0], "", row), Found(prompt.messages, (), prompt.sources), False)
                progress.advance()
            progress.finish()
    return gathering.finished(progress)


def check(settings: PromptsSection) -> None:
    """Raise what would stop `gather` later: a file that is missing or empty, an extra that is not installed, an unknown language.

    Raises:
        InputError, MissingExtra, ConfigError: see `gather`.
    """
    Filters(settings)
    if settings.near_duplicates is not None:
        NearDuplicates(settings.near_duplicates.threshold, lambda number: ())
    if settings.decontamination is not None:
        Benchmarks(settings.decontamination)
    for source in settings.sources:
        for file in files_of(source.path) if isinstance(source, FilePrompts) else ():
            if next(iter(read_rows(file)), None) is None:
                raise InputError("The data file has no rows", where=str(file), cure="give a file with at least one row")


@dataclass(frozen=True)
class _Place:
    """Where a row stands."""

    home: int
    source: str
    file: str
    row: int


class _Gathering:
    """The state of one gathering: per prompt a few numbers in arrays, the rest on disk."""

    def __init__(self, settings: PromptsSection, seed: int, folder: Path | None) -> None:
        self._settings, self._seed = settings, seed
        self._filters = Filters(settings)
        decontamination, near = settings.decontamination, settings.near_duplicates
        self._benchmarks = Benchmarks(decontamination) if decontamination is not None else None
        self._near = NearDuplicates(near.threshold, self._messages) if near is not None else None
        self._dropped: Counter[str] = Counter()
        self._noted: Counter[str] = Counter()
        self._last_reason = ""
        self._rows = Store(folder)
        # by prompt, numbered in the order of first rows
        self._conversations = Store(folder)
        self._ids, self._homes, self._openings = array("Q"), array("H"), array("i")
        self._labels = array("i")
        """Prompt → its number in `_label_sets`: few different sets of sources are shared by many prompts."""
        self._label_sets: dict[tuple[str, ...], int] = {}
        self._label_list: list[tuple[str, ...]] = []
        self._files, self._row_numbers = array("i"), array("Q")
        self._file_list: list[tuple[str, str]] = []
        self._by_key: dict[int, int] = {}
        self._refused: dict[int, Overlap] = {}
        """Key of a dropped conversation → the benchmark item in it."""
        self._marked: dict[int, Overlap] = {}
        # by opening
        self._by_opening: dict[int, int] = {}
        self._groups, self._keys = Groups(), array("Q")
        # by answer
        self._texts = Store(folder)
        self._answered, self._digests = array("i"), array("Q")

    # ── rows in ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def read_files(self, home: int, source: FilePrompts, progress: Progress) -> None:
        """Take in the rows of a source."""
        files, usable, first = files_of(source.path), 0, ""
        for file in files:
            progress.start(f"prompts {source.name}", 0 if progress is SILENT else count_rows(file))
            reported = seen = 0
            for row in read_rows(file):
                seen = row.number
                place = _Place(home, source.name, file.name, seen)
                try:
                    if row.value is None:
                        raise Dropped(row.problem)
                    for found in read(row.value, source):
                        usable += self._filtered(place, found)
                except Dropped as reason:
                    self._drop(place, str(reason))
                first = first or f"{file}, line {row.number}: {self._last_reason}"
                if seen >= reported + REPORT_ROWS:
                    progress.advance(seen - reported, f"{len(self._ids):,} prompts")
                    reported = seen
            progress.advance(seen - reported, f"{len(self._ids):,} prompts")
            progress.finish()
        if not usable:
            raise InputError(
                "Not one row of the prompt file is a usable prompt",
                where=first or f"{files[0]}, which has no rows",
                cure="check the format of the source and the filters under [prompts]; a row of the plain format needs a "
                "`messages` list that ends with a user turn, or a `prompt` text",
            )

    def _filtered(self, place: _Place, found: Found) -> bool:
        try:
            self._filters.check(found.messages)
        except Dropped as reason:
            self._drop(place, str(reason), prompt_id(found.messages))
            return False
        self.take_in(place, found, True)
        return True

    def take_in(self, place: _Place, found: Found, outside: bool) -> None:
        """Add a prompt with its answers, or merge it into the one that it equals.

        Args:
            place: its row.
            found: the prompt; it passes the filters.
            outside: whether it is from a file, so that it may be a benchmark's item.
        """
        key = key_of(found.messages, self._settings.duplicates)
        number = self._by_key.get(key)
        if number is None:
            overlap = self._overlap(key, found.messages) if outside else None
            if overlap is not None and self._benchmarks_drop:
                self._refused.setdefault(key, overlap)
                self._drop(place, "contaminated", prompt_id(found.messages), overlap=overlap)
                return
            number = self._by_key[key] = self._new(place, found)
            if overlap is not None:
                self._marked[number] = overlap
        else:
            self._drop(place, "duplicate", prompt_id(found.messages), merged_into=self._id(number))
            self._unite(number, found.sources)
            self._groups.join(self._opening(found.messages), self._openings[number])
        for model, text in found.answers:
            self._answer(number, model, text, found.sources[0])

    @property
    def _benchmarks_drop(self) -> bool:
        return self._settings.decontamination is not None and self._settings.decontamination.action == "drop"

    def _overlap(self, key: int, messages: Messages) -> Overlap | None:
        if self._benchmarks is None:
            return None
        return self._refused.get(key) or self._benchmarks.overlap(messages)

    def _opening(self, messages: Messages) -> int:
        """The number of the conversation's opening; every one seen has one, so that also merged rows hold groups together."""
        key = opening_of(messages)
        known = self._by_opening.get(key)
        split_key = int(conversation_key(messages), 16)
        if known is None:
            known = self._by_opening[key] = self._groups.add()
            self._keys.append(split_key)
        self._keys[known] = min(self._keys[known], split_key)
        return known

    def _new(self, place: _Place, found: Found) -> int:
        number = self._conversations.append([[m.role, m.content] for m in found.messages])
        self._ids.append(int(prompt_id(found.messages), 16))
        self._homes.append(place.home)
        self._openings.append(self._opening(found.messages))
        self._labels.append(self._label_set(found.sources))
        if not self._file_list or self._file_list[-1] != (place.source, place.file):
            self._file_list.append((place.source, place.file))
        self._files.append(len(self._file_list) - 1)
        self._row_numbers.append(place.row)
        if self._near is not None and place.file:
            self._near.add(found.messages, self._openings[number], number)
        return number

    def _label_set(self, labels: tuple[str, ...]) -> int:
        number = self._label_sets.setdefault(labels, len(self._label_list))
        if number == len(self._label_list):
            self._label_list.append(labels)
        return number

    def _unite(self, number: int, labels: tuple[str, ...]) -> None:
        known = self._label_list[self._labels[number]]
        self._labels[number] = self._label_set(tuple(dict.fromkeys((*known, *labels))))

    def _answer(self, number: int, model: str, text: str, source: str) -> None:
        if not text.strip():
            self._noted["answer_empty"] += 1
            return
        self._texts.append([model, text, source])
        self._answered.append(number)
        self._digests.append(int(content_hash(text, 16), 16))

    def _drop(self, place: _Place, reason: str, id_: str = "", merged_into: str = "", overlap: Overlap | None = None) -> None:
        self._dropped[reason] += 1
        self._last_reason = reason
        self._rows.append([place.source, place.file, place.row, reason, id_, merged_into, *_cells(overlap)])

    def _drop_prompt(self, number: int, reason: str, merged_into: str = "") -> None:
        self._drop(self._place(number), reason, self._id(number), merged_into)

    # ── what was kept ────────────────────────────────────────────────────────────────────────────────────────────────

    def _id(self, number: int) -> str:
        return f"{self._ids[number]:016x}"

    def _place(self, number: int) -> _Place:
        return _Place(self._homes[number], *self._file_list[self._files[number]], self._row_numbers[number])

    def _messages(self, number: int) -> Messages:
        return tuple(Message(role=role, content=content) for role, content in self._conversations[number])

    def _split(self, number: int) -> Literal["train", "validation", "test"]:
        key = self._keys[self._groups.find(self._openings[number])]
        return split_of_key(f"{key:016x}", validation=self._settings.validation_fraction, test=self._settings.test_fraction)

    def _prompt(self, number: int) -> Prompt:
        return Prompt(
            id=self._id(number),
            messages=self._messages(number),
            sources=self._label_list[self._labels[number]],
            split=self._split(number),
        )

    # ── finish ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def finished(self, progress: Progress) -> Gathered:
        """Merge near-duplicates, drop what has too few answers, mix, split.

        Raises:
            InputError: no prompt is left.
        """
        leaders = self._merge_near(progress)
        for opening, key in enumerate(self._keys):  # the group's smallest key decides its split
            group = self._groups.find(opening)
            self._keys[group] = min(self._keys[group], key)
        order, counts = self._sort_answers(leaders)
        kept = [n for n, leader in enumerate(leaders) if n == leader]
        kept = self._limited(kept, counts)
        if not kept:
            raise InputError(
                "No prompt is left",
                where=f"prompts.sources; dropped: {dict(sorted(self._dropped.items()))}",
                cure="add a source with usable prompts, or loosen the filters",
            )
        if self._benchmarks is not None and self._benchmarks.unusable:
            self._noted["benchmark_row_unusable"] = self._benchmarks.unusable
        marked = [self._marked_row(number) for number in kept if number in self._marked]
        if marked:
            self._noted["contaminated_kept"] = len(marked)
        return Gathered(
            prompts=Stored(self._prompt, kept),
            dropped=dict(sorted(self._dropped.items())),
            noted=dict(sorted(self._noted.items())),
            answers=Reread(lambda: self._answers(kept, leaders, order)),
            rows=Reread(lambda: (_row(self._rows[i]) for i in range(len(self._rows)))),
            contaminated=marked,
        )

    def _marked_row(self, number: int) -> GatheredRow:
        place = self._place(number)
        return _row(
            [place.source, place.file, place.row, "contaminated_kept", self._id(number), "", *_cells(self._marked[number])]
        )

    def _merge_near(self, progress: Progress) -> array[int]:
        """Prompt → the prompt that it is merged into, itself when it stays."""
        leaders = array("i", range(len(self._ids)))
        if self._near is None:
            return leaders
        self._near.join_openings(self._groups)
        progress.start("near-duplicates", len(self._near))
        for number, leader in self._near.merges(progress):
            leaders[number] = leader
            self._drop_prompt(number, "near_duplicate", self._id(leader))
            self._unite(leader, self._label_list[self._labels[number]])
            self._groups.join(self._openings[number], self._openings[leader])
        progress.finish()
        return leaders

    def _sort_answers(self, leaders: array[int]) -> tuple[Numbers, Numbers]:
        """The answers in the order of their prompts, each text once, and how many each prompt has."""
        import numpy as np

        prompts = np.array(leaders, dtype=np.int32)[np.array(self._answered, dtype=np.int32)]
        digests = np.array(self._digests, dtype=np.uint64)
        order = np.lexsort((digests, prompts))  # stable: of equal texts the first found comes first
        same = (np.diff(prompts[order]) == 0) & (np.diff(digests[order]) == 0)
        first = np.sort(order[np.concatenate(([True], ~same))[: len(order)]])
        if len(first) < len(order):
            self._noted["answer_repeated"] += len(order) - len(first)
        return first[np.argsort(prompts[first], kind="stable")], np.bincount(prompts[first], minlength=len(leaders))

    def _limited(self, kept: list[int], counts: Numbers) -> list[int]:
        """Those that have enough answers and fit into the limits of source, total and train."""
        settings, sources = self._settings, self._settings.sources
        least = [max(settings.min_answers, s.min_answers if isinstance(s, FilePrompts) else 0) for s in sources]
        kept = self._without(kept, "too_few_answers", [n for n in kept if counts[n] >= least[self._homes[n]]])
        by_home: list[list[int]] = [[] for _ in sources]
        for number in kept:
            by_home[self._homes[number]].append(number)
        takes = [s.take if isinstance(s, FilePrompts) else None for s in sources]
        by_home = [self._first(mine, take, "take") for mine, take in zip(by_home, takes, strict=True)]
        kept = self._without(kept, "over_take", [n for mine in by_home for n in mine])
        if settings.total is not None:
            sizes = [len(mine) for mine in by_home]
            weights = [s.weight if isinstance(s, FilePrompts) else None for s in sources]
            given = quotas(
                sizes, [w if w is not None else max(n, 1) for w, n in zip(weights, sizes, strict=True)], settings.total
            )
            shared = [self._first(mine, n, "total") for mine, n in zip(by_home, given, strict=True)]
            kept = self._without(kept, "over_total", [n for mine in shared for n in mine])
        train = [n for n in kept if self._split(n) == "train"]
        spared = set(train) - set(self._first(train, settings.train, "train"))
        return self._without(kept, "over_train_limit", [n for n in kept if n not in spared])

    def _first(self, numbers: list[int], count: int | None, purpose: str) -> list[int]:
        if count is None or len(numbers) <= count:
            return numbers
        ids = chosen([self._id(n) for n in numbers], count, purpose, self._seed)
        return [n for n in numbers if self._id(n) in ids]

    def _without(self, before: list[int], reason: str, after: list[int]) -> list[int]:
        """`after` in the order of `before`; what is missing is dropped for this reason."""
        stay = set(after)
        for number in before:
            if number not in stay:
                self._drop_prompt(number, reason)
        return [n for n in before if n in stay]

    def _answers(self, kept: Sequence[int], leaders: array[int], order: Numbers) -> Iterator[FoundAnswer]:
        stay = set(kept)
        for place in order.tolist():
            number = leaders[self._answered[place]]
            if number in stay:
                model, text, source = self._texts[place]
                yield FoundAnswer(prompt_id=self._id(number), model=model, text=text, source=source)


class Reread(Iterable[R]):
    """An iterable that begins anew whenever it is asked for an iterator."""

    def __init__(self, begin: Callable[[], Iterator[R]]) -> None:
        self._begin = begin

    def __iter__(self) -> Iterator[R]:
        return self._begin()


def _cells(overlap: Overlap | None) -> list[str]:
    return [overlap.benchmark, overlap.item, overlap.words] if overlap is not None else ["", "", ""]


def _row(cells: Sequence[Any]) -> GatheredRow:
    return GatheredRow(**dict(zip(GatheredRow.model_fields, cells, strict=True)))
