"""`starling sample`: replies of a local model to the prompts of files or of a stream, in their order.

A row is one of

    {"prompt": "…"}                   plain text, a Nectar transcript or a list of messages
    {"messages": […]}                 a conversation that ends with a user turn
    a line that does not begin with "{"   the prompt itself; on stdin and in .txt files

each with an `id` if it has one. Every prompt gives its number of replies; a row that is none of these, that the model's template
refuses or that its positions do not hold gives one line with finish `error` and its problem, so nothing is lost, and the command
then fails at its end. A reply depends on the prompt, its number among the prompt's replies, the seed and the model only.

torch is imported when the model is loaded.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from starling.errors import InputError
from starling.progress import SILENT, Progress
from starling.records import Messages, Sampling, content_hash, prompt_id
from starling.rows import Row, files_of, line_rows, read_rows
from starling.scoring import place_of, read_messages

if TYPE_CHECKING:
    from starling.models.encode import Encoder
    from starling.models.sample import Sampler

WINDOW_BATCHES = 8
"""Rows are read, answered and written in windows of so many batches of replies: slots run empty at the end of each only."""


@dataclass(frozen=True)
class Asked:
    """A prompt that was read. Law: `problem` is empty or there are no messages."""

    id: str
    row: int
    file: str | None
    messages: Messages
    problem: str = ""


@dataclass(frozen=True)
class Reply:
    """One line of the output."""

    id: str
    row: int
    file: str | None
    sample: int
    """Its number among the replies to the prompt."""
    text: str
    finish: str
    """stop: it ended by itself; length: it was cut at max_tokens; error: there is none, `problem` says why."""
    tokens: int
    """End token included."""
    logprob: float | None
    """Sum of its tokens' log-probabilities at the temperature asked for (greedy: at 1), before top-p."""
    problem: str = ""

    def as_json(self) -> str:
        """One line; `file` and `problem` only where they say something."""
        silent = {name for name, value in (("file", self.file), ("problem", self.problem)) if not value}
        return json.dumps({k: v for k, v in asdict(self).items() if k not in silent}, ensure_ascii=False)


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def asked_in(files: Sequence[Path]) -> Iterator[Asked]:
    """The prompts of data files and folders (`rows.files_of`) and of .txt files, one prompt per line.

    Raises:
        InputError: a file cannot be read.
    """
    for given in files:
        if given.suffix == ".txt":
            if not given.is_file():
                raise InputError("The data file does not exist", where=str(given), cure="check the path")
            with given.open("rb") as lines:
                yield from asked_on(lines, str(given))
            continue
        for file in files_of([given]):
            yield from (_asked(row, str(file)) for row in read_rows(file))


def asked_on(lines: Iterable[bytes], file: str | None = None) -> Iterator[Asked]:
    """The prompts of lines, e.g. of a stream: JSON objects or plain text; blank lines are skipped and counted."""
    last = [b""]

    def remembered() -> Iterator[bytes]:
        for line in lines:
            last[0] = line
            yield line

    for row in line_rows(remembered()):
        text = last[0].removeprefix(b"\xef\xbb\xbf").strip()
        plain = row.problem in ("not_json", "not_an_object") and not text.startswith(b"{")
        yield _asked(Row(row.number, {"prompt": text.decode("utf-8")}) if plain else row, file)


def _asked(row: Row, file: str | None) -> Asked:
    value = {name: found for name, found in (row.value or {}).items() if found is not None}  # a column that other rows have
    try:
        if row.value is None:
            raise ValueError(row.problem.replace("_", " "))
        messages = read_messages(value["messages"] if "messages" in value else value["prompt"])
        if not messages or messages[-1].role != "user":
            raise ValueError("it needs a conversation that ends with a user turn")
        return Asked(str(value.get("id", prompt_id(messages))), row.number, file, messages)
    except (ValueError, KeyError, TypeError, ValidationError, InputError) as error:
        said = f"no field {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]
        return Asked(str(value.get("id", f"row {row.number}")), row.number, file, (), said)


# ── answering ────────────────────────────────────────────────────────────────────────────────────────────────────────


def load(folder: Path, batch: int) -> tuple[Sampler, Encoder]:
    """The model of a folder, ready to sample; this imports torch.

    Raises:
        InputError: the folder holds no causal model with a tokenizer.
    """
    from starling.models.encode import Encoder
    from starling.models.load import load_causal, load_tokenizer, longest_input
    from starling.models.sample import Sampler

    model = load_causal(folder)
    encoder = Encoder(load_tokenizer(folder), max_length=longest_input(model) or 0)
    return Sampler(model, encoder.end_ids, batch, decode=encoder.decode_reply), encoder


def answer(
    sampler: Sampler,
    encoder: Encoder,
    asked: Iterable[Asked],
    sampling: Sampling,
    *,
    samples: int = 1,
    seed: int = 0,
    progress: Progress = SILENT,
) -> Iterator[Reply]:
    """The replies to all prompts, in their order; one window of prompts is in memory.

    Args:
        samples: replies per prompt.
        seed: the same seed and prompt give the same replies.
        progress: advanced by one per reply, already started.
    """
    most = max(1, WINDOW_BATCHES * sampler.batch // samples)
    room = sampler.longest_prompt(sampling.max_tokens)
    stream = iter(asked)
    while window := list(islice(stream, most)):
        read = [_encoded(encoder, one, room) for one in window]
        prompts = [(one, ids) for one, (ids, _) in zip(window, read, strict=True) if ids]
        seeds = [_seed(one.messages, k, seed) for one, _ in prompts for k in range(samples)]
        drawn = iter(sampler.generate([ids for _, ids in prompts], sampling, seeds, samples, done=progress.advance))
        for one, (ids, problem) in zip(window, read, strict=True):
            if not ids:
                progress.advance(1)
                yield Reply(one.id, one.row, one.file, 0, "", "error", 0, None, problem)
                continue
            for k in range(samples):
                reply = next(drawn)
                finish = "stop" if reply.finished or reply.stopped else "length"
                text = encoder.decode_reply(reply.ids)
                yield Reply(one.id, one.row, one.file, k, text, finish, len(reply.ids), sum(reply.logprobs))


def _encoded(encoder: Encoder, one: Asked, room: int | None) -> tuple[tuple[int, ...], str]:
    """Token ids of a prompt, or none and why."""
    if one.problem:
        return (), one.problem
    try:
        ids = encoder.prompt_ids(one.messages)
    except InputError as error:
        return (), error.what
    if room is not None and len(ids) > room:
        return (), f"the prompt has {len(ids)} tokens; beside a reply of max_tokens the model has room for {max(room, 0)}"
    return ids, "" if ids else "the prompt has no tokens"


def _seed(messages: Messages, sample: int, seed: int) -> int:
    return int(content_hash(["sample", prompt_id(messages), sample, seed], 16), 16)


class Tally:
    """Counts how replies ended, and remembers the first prompt that got none."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._first: Reply | None = None

    def add(self, reply: Reply) -> None:
        """One more line."""
        self.counts[reply.finish] += 1
        if reply.finish == "error" and self._first is None:
            self._first = reply

    def check(self) -> None:
        """To be called at the end: what got no reply must not go unnoticed.

        Raises:
            InputError: prompts could not be answered; names the first of them.
        """
        if self._first is not None:
            raise InputError(
                f"{self.counts['error']:,} rows got no reply and have the finish error; of the first: {self._first.problem}",
                where=place_of(self._first.file, self._first.row),
                cure='the others are answered; mend these (a line of text, or a JSON object, e.g. {"prompt": "What is 3 + 4?"})',
            )


def run(
    folder: Path,
    asked: Iterable[Asked],
    sampling: Sampling,
    *,
    samples: int,
    seed: int,
    batch: int,
    write: Callable[[str], None],
    progress: Progress = SILENT,
) -> Counter[str]:
    """Load the model, answer all prompts, write a line for each reply; how they ended.

    Raises:
        InputError: the folder holds no model, or prompts got no reply (after all others are written).
    """
    sampler, encoder = load(folder, batch)
    tally = Tally()
    progress.start("sampling replies", 0)
    try:
        for reply in answer(sampler, encoder, asked, sampling, samples=samples, seed=seed, progress=progress):
            tally.add(reply)
            write(reply.as_json())
    finally:
        progress.finish()
    tally.check()
    return tally.counts
