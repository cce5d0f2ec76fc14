"""`starling score`: rewards for rows of files or of a stream, in their order, in memory that does not grow with them.

A row is one of

    {"messages": […, the assistant's reply]}   or   {"messages": […], "response": "…"}
    {"prompt": "…", "response": "…"}           a prompt is plain text, a Nectar transcript or a list of messages
    {"prompt": "…", "answers": […]}            a Nectar row; an answer is a text or {"answer": "…", …}
    {"chosen": …, "rejected": …}               texts (replies to "prompt", or transcripts as in HH-RLHF) or lists of messages

each with an `id` if it has one. Every reply gives one `Score`; a row that is none of these, or that the model's template
refuses, gives one with the outcome `unreadable` and its problem, so nothing is lost and nothing is a number that is none.
The command then still fails, at its end, so that such rows do not go unnoticed; `--strict` fails at the first of them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import ValidationError

from starling.chat import from_transcript, is_transcript, read_turns
from starling.errors import InputError, UsageError
from starling.progress import SILENT, Progress
from starling.records import Message, Messages, Score, content_hash, prompt_id
from starling.rows import Row, count_rows, files_of, read_rows

if TYPE_CHECKING:
    from starling.models.encode import Encoded

WINDOW_CHARACTERS = 1 << 24
"""Rows are read, scored and written in windows of about so many characters, and of so many rows as the model wants."""

Reply = tuple[Messages, str]


class Model(Protocol):
    """What scores; `models.scorer.Scorer` is one."""

    @property
    def rows_at_once(self) -> int: ...

    def encode(self, conversations: Sequence[Reply]) -> list[Encoded]: ...

    def score(self, rows: Sequence[Encoded], done: Callable[[int], None] = ...) -> list[float]: ...


@dataclass(frozen=True)
class Item:
    """A row's replies with their conversations. Law: `problem` is empty or there are no replies."""

    id: str
    row: int
    file: str | None
    replies: tuple[Reply, ...]
    several: bool
    """True means that the row's form allows for more than one reply."""
    problem: str = ""


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def read_item(row: Row, file: str | None = None) -> Item:
    """The replies in a row; what is wrong with it is the item's problem, never an exception."""
    value = {name: found for name, found in (row.value or {}).items() if found is not None}  # a column that other rows have
    try:
        if row.value is None:
            raise ValueError(row.problem.replace("_", " "))
        replies, several = _replies(value)
        for messages, _ in replies:
            if not messages or messages[-1].role != "user":
                raise ValueError("it needs a conversation that ends with a user turn, and a reply")
        id_ = value.get("id")
        return Item(_hash(replies, several) if id_ is None else str(id_), row.number, file, tuple(replies), several)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, ValidationError, InputError) as error:
        said = f"no field {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]
        return Item(str(value.get("id", f"row {row.number}")), row.number, file, (), False, said)


def _replies(row: dict[str, Any]) -> tuple[list[Reply], bool]:
    if "chosen" in row or "rejected" in row:
        return [_reply(row.get("prompt"), row[side]) for side in ("chosen", "rejected")], True
    if "answers" in row:
        messages = read_messages(row["prompt"])
        texts = [answer["answer"] if isinstance(answer, dict) else answer for answer in row["answers"]]
        if not texts:
            raise ValueError("it has no answers")
        return [(messages, _text(text)) for text in texts], True
    prompt = row["messages"] if "messages" in row else row["prompt"]
    return [_reply(prompt, row["response"]) if "response" in row else _reply(None, read_messages(prompt))], False


def _reply(prompt: Any, reply: Any) -> Reply:
    """A reply that is a text (after `prompt`, or a whole transcript if there is none) or a list of messages."""
    before = () if prompt is None else read_messages(prompt)
    if isinstance(reply, str) and prompt is not None:
        return before, reply
    messages = before + (read_turns(reply) if isinstance(reply, str) else read_messages(reply))
    if not messages or messages[-1].role != "assistant":
        raise ValueError("it needs a conversation that ends with a user turn, and a reply")
    return messages[:-1], messages[-1].content


def read_messages(value: Any) -> Messages:
    """A conversation from plain text, a Nectar transcript or a list of messages."""
    if isinstance(value, str):
        return from_transcript(value) if is_transcript(value) else (Message(role="user", content=value),)
    if not isinstance(value, list | tuple):
        raise ValueError(f"a conversation is a text or a list of messages, not {type(value).__name__}")
    return tuple(m if isinstance(m, Message) else Message.model_validate(_plain(m)) for m in value)


def _plain(message: Any) -> Any:
    """Role and content of a message; other fields (names, dates) say nothing to a reward model."""
    return {k: message[k] for k in ("role", "content")} if isinstance(message, dict) else message


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"an answer is a text, not {type(value).__name__}")
    return value


def _hash(replies: Sequence[Reply], several: bool) -> str:
    messages, text = replies[0]
    if several:
        return prompt_id(messages)
    return content_hash([[m.role, m.content] for m in messages] + [["assistant", text]], 16)


# ── scoring ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def score_items(
    model: Model,
    items: Iterable[Item],
    *,
    strict: bool = False,
    progress: Progress = SILENT,
    window: int | None = None,
) -> Iterator[Score]:
    """The scores of all replies of all items, in their order; one window of items is in memory.

    Args:
        model: a `Scorer`.
        items: from `read_item`.
        strict: stop at the first item that cannot be read.
        progress: advanced by one per item, already started.
        window: most items at a time; if None, what the model wants.

    Raises:
        InputError: with `strict`, an item cannot be read; what came before its window is scored.
    """
    for some in _windows(items, window or model.rows_at_once):
        problems = [_refused(item) for item in some if item.problem]
        if strict and problems:
            raise problems[0]
        encoded, refusals = _encoded(model, some)
        if strict and refusals:
            raise _refused(next(item for i, item in enumerate(some) if i in refusals), min(refusals.items())[1])
        order = [(i, k) for i, rows in enumerate(encoded) for k, row in enumerate(rows) if row is not None]
        counted = _Counted(progress, [sum(row is not None for row in rows) for rows in encoded])
        rewards = model.score([row for rows in encoded for row in rows if row is not None], counted)
        counted.rest()
        found = dict(zip(order, rewards, strict=True))
        for i, item in enumerate(some):
            yield from _scores(item, refusals.get(i, item.problem), [found.get((i, k)) for k in range(len(item.replies))])


def _windows(items: Iterable[Item], most: int) -> Iterator[list[Item]]:
    window: list[Item] = []
    characters = 0
    for item in items:
        window.append(item)
        characters += sum(len(text) + sum(len(m.content) for m in messages) for messages, text in item.replies)
        if len(window) >= most or characters >= WINDOW_CHARACTERS:
            yield window
            window, characters = [], 0
    if window:
        yield window


def _encoded(model: Model, items: Sequence[Item]) -> tuple[list[list[Encoded | None]], dict[int, str]]:
    """Token ids of every reply that is not blank, and what the template said to the items that it refuses."""
    wanted = [[reply for reply in item.replies if reply[1].strip()] for item in items]
    refusals: dict[int, str] = {}
    try:
        together = iter(model.encode([reply for replies in wanted for reply in replies]))
        found = [[next(together) for _ in replies] for replies in wanted]
    except InputError:  # one of them is refused: find which
        found = []
        for i, replies in enumerate(wanted):
            try:
                found.append(model.encode(replies))
            except InputError as error:
                refusals[i] = error.what
                found.append([])
    filled: list[list[Encoded | None]] = []
    for i, item in enumerate(items):
        rows = iter(found[i])
        filled.append([next(rows) if text.strip() and i not in refusals else None for _, text in item.replies])
    return filled, refusals


class _Counted:
    """Tells the progress how many items are done, from how many replies are."""

    def __init__(self, progress: Progress, replies: Sequence[int]) -> None:
        self._progress = progress
        self._items = len(replies)
        self._replies = max(sum(replies), 1)
        self._done = self._told = 0

    def __call__(self, more: int) -> None:
        self._done += more
        self._tell(self._items * self._done // self._replies)

    def rest(self) -> None:
        """All of them are done, those without a reply to score too."""
        self._tell(self._items)

    def _tell(self, items: int) -> None:
        if items > self._told:
            self._progress.advance(items - self._told)
            self._told = items


def _scores(item: Item, problem: str, rewards: Sequence[float | None]) -> Iterator[Score]:
    about: dict[str, Any] = {"id": item.id, "row": item.row, "file": item.file}
    if problem:
        yield Score(**about, reward=None, outcome="unreadable", problem=problem)
        return
    for k, ((_, text), reward) in enumerate(zip(item.replies, rewards, strict=True)):
        answer = k if item.several else None
        if not text.strip():
            yield Score(**about, answer=answer, reward=None, outcome="empty")
        elif reward is None or not math.isfinite(reward):
            yield Score(**about, answer=answer, reward=None, outcome="not_finite")
        else:
            yield Score(**about, answer=answer, reward=reward, outcome="scored")


def _refused(item: Item, problem: str = "") -> InputError:
    return InputError(
        f"The row holds no conversation to score: {problem or item.problem}",
        where=place_of(item.file, item.row),
        cure='give one JSON object per line, e.g. {"prompt": "What is 3 + 4?", "response": "7"}',
    )


def place_of(file: str | None, row: int) -> str:
    """Where a row is, in words."""
    return f"line {row} of the input" if file is None else f"{file}, row {row}"


# ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def as_json(score: Score) -> str:
    """One line; `file`, `answer` and `problem` only where they say something."""
    silent = {name for name in ("file", "answer", "problem") if getattr(score, name) is None}
    return score.model_dump_json(exclude=silent)


class Tally:
    """Counts the outcomes of the scores that pass, and remembers the first row that could not be read."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._first: Score | None = None

    def add(self, score: Score) -> None:
        """One more score."""
        self.counts[score.outcome] += 1
        if score.outcome == "unreadable" and self._first is None:
            self._first = score

    def check(self) -> None:
        """To be called at the end: nothing was lost, but what could not be read must not go unnoticed.

        Raises:
            InputError: rows could not be read; names the first of them.
        """
        if self._first is not None:
            raise InputError(
                f"{self.counts['unreadable']:,} rows hold no conversation to score and have the outcome unreadable; of the "
                f"first: {self._first.problem}",
                where=place_of(self._first.file, self._first.row),
                cure='the others are scored; mend these (one JSON object per line, e.g. {"prompt": "3 + 4?", "response": "7"})',
            )


def write_scores(path: Path, scores: Callable[[int], Iterable[Score]], key: str, tally: Tally) -> None:
    """Write scores to a .jsonl or .parquet file, which appears when it is whole. A killed run goes on where it was.

    Until then they are in PATH.part, as jsonl, and PATH.part.key says which input and model they belong to. The same input,
    model and machine give the same bytes.

    Args:
        path: of the file.
        scores: called with the number of rows that are done already, gives the scores of all rows after them.
        key: of input and model; a part with another key is thrown away.
        tally: gets every score, also those of an earlier run.

    Raises:
        InputError: the name is neither.
    """
    if path.suffix not in (".jsonl", ".parquet"):
        raise InputError("Scores are written as .jsonl or .parquet", where=str(path), cure="name such a file")
    part, note = path.with_name(path.name + ".part"), path.with_name(path.name + ".part.key")
    if not (part.is_file() and note.is_file() and note.read_text("utf-8") == key):
        part.write_bytes(b"")
        note.write_text(key, "utf-8")
    done = _whole_rows(part, tally)
    with part.open("a", encoding="utf-8", buffering=1) as file:  # by lines: a kill costs the window that is being scored
        for score in scores(done):
            tally.add(score)
            file.write(as_json(score) + "\n")
    if path.suffix == ".parquet":
        draft = path.with_name(path.name + ".draft")
        _write_parquet(draft, part)
        draft.replace(path)
        part.unlink()
    else:
        part.replace(path)
    note.unlink()


def _whole_rows(part: Path, tally: Tally) -> int:
    """How many rows are in a part for certain; what comes after them is cut off: the last row may lack replies."""
    rows, end, at = 0, 0, 0
    last: tuple[str | None, int] | None = None
    held: list[Score] = []
    with part.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            score = Score.model_validate_json(line)
            if (score.file, score.row) != last:
                for one in held:
                    tally.add(one)
                rows, end, held = rows + (last is not None), at, []
                last = (score.file, score.row)
            held.append(score)
            at += len(line)
    with part.open("r+b") as file:
        file.truncate(end)
    return rows


def _write_parquet(path: Path, part: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [
            ("id", pa.string()), ("reward", pa.float64()), ("outcome", pa.string()), ("row", pa.int64()),
            ("answer", pa.int32()), ("file", pa.string()), ("problem", pa.string()),
        ]
    )  # fmt: skip
    with pq.ParquetWriter(path, schema) as writer, part.open("rb") as lines:
        while batch := [Score.model_validate_json(line).model_dump() for line in islice(lines, 1 << 16)]:
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────────────────


def score_files(
    model: Callable[[], Model], files: Sequence[Path], out: Path, key: Any, *, strict: bool = False, progress: Progress = SILENT
) -> Counter[str]:
    """Score the rows of files into one file; returns how many replies had which outcome.

    Args:
        model: loads the model; not called when a part of an earlier run has all of them.
        files: data files, folders or globs of them, in this order.
        out: a .jsonl or .parquet file.
        key: names the model and how it is used; with the files it decides whether a part of an earlier run is continued.
        strict: stop at the first row that cannot be read.
        progress: started and finished here.

    Raises:
        UsageError: `out` is one of the files.
        InputError: a file cannot be read, or a row cannot (after all others are scored, if not `strict`).
    """
    paths = files_of(list(files))
    if out.resolve() in [path.resolve() for path in paths]:
        raise UsageError("The output is one of the files to read", where=str(out), cure="name another --out")
    stamps = [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in paths]
    progress.start("scoring rows", sum(count_rows(path) for path in paths))

    def scores(done: int) -> Iterator[Score]:
        progress.advance(done)
        items = islice((read_item(row, str(path)) for path in paths for row in read_rows(path)), done, None)
        first = next(items, None)
        if first is not None:
            yield from score_items(model(), chain([first], items), strict=strict, progress=progress)

    tally = Tally()
    try:
        write_scores(out, scores, content_hash([key, stamps]), tally)
    finally:
        progress.finish()
    tally.check()
    return tally.counts


def folder_key(folder: Path) -> list[list[Any]]:
    """Names, sizes and times of a model's files: another model, or the same one trained anew, has another key."""
    return [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in sorted(folder.iterdir()) if p.is_file()]
