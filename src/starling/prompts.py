"""Stage 1: gather prompts from all sources, drop what cannot be used by name and count, merge duplicates, split.

Source: Nectar merged five prompt sets and united the sources of equal prompts. Departures: duplicates are exact (same
turns to the character; the original compared alphanumerics only), the split is by conversation so that later turns never
cross it, and whatever is dropped is counted by reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from starling.chat import from_transcript, is_transcript, split_of, to_transcript
from starling.config import FilePrompts, PromptsSection
from starling.errors import InputError
from starling.progress import SILENT, Progress
from starling.records import Message, Messages, Prompt, content_hash
from starling.rows import Row, read_rows


@dataclass(frozen=True)
class Gathered:
    """The prompts in the order of their sources, and how many rows are not among them, by reason.

    Reasons: not_utf8, not_json, not_an_object, not_unicode, no_prompt (neither `messages` nor `prompt`), bad_messages,
    empty, no_user_turn_last, too_long (more than `max_chars`), not_a_transcript (system turns, turns that do not alternate, a
    marker inside a turn: the dataset could not hold it), duplicate (merged into an earlier one), over_train_limit.
    """

    prompts: tuple[Prompt, ...]
    dropped: dict[str, int]


class _Dropped(Exception):
    """A row is no usable prompt; never leaves this module."""


def gather(settings: PromptsSection, world_prompts: Sequence[Prompt], progress: Progress = SILENT, seed: int = 0) -> Gathered:
    """All prompts of all sources in order; equal ones merged with their sources united.

    Args:
        settings: sources, limits and the shares of the splits.
        world_prompts: what a source of type microworld stands for.
        progress: gets one unit per source.
        seed: chooses which train prompts stay when `settings.train` limits them.

    Raises:
        InputError: a file cannot be read at all, or not one of its rows is a usable prompt; or no prompt is left.
    """
    dropped: Counter[str] = Counter()
    messages_by_id: dict[str, Messages] = {}
    sources: dict[str, list[str]] = {}
    progress.start("prompts", len(settings.sources))
    for source in settings.sources:
        found = _file_prompts(source, settings, dropped) if isinstance(source, FilePrompts) else iter(world_prompts)
        for prompt in found:
            if prompt.id in messages_by_id:
                dropped["duplicate"] += 1
            messages_by_id.setdefault(prompt.id, prompt.messages)
            known = sources.setdefault(prompt.id, [])
            known.extend(name for name in prompt.sources if name not in known)
        progress.advance()
    progress.finish()
    shares = {"validation": settings.validation_fraction, "test": settings.test_fraction}
    prompts = [
        Prompt(id=id_, messages=messages, sources=tuple(sources[id_]), split=split_of(messages, **shares))
        for id_, messages in messages_by_id.items()
    ]
    if not prompts:
        raise InputError("No prompt is left", where="prompts.sources", cure="add a source with usable prompts")
    kept = _limit_train(prompts, settings.train, seed)
    if len(kept) < len(prompts):
        dropped["over_train_limit"] = len(prompts) - len(kept)
    return Gathered(tuple(kept), dict(sorted(dropped.items())))


def _limit_train(prompts: Sequence[Prompt], limit: int | None, seed: int) -> list[Prompt]:
    """Keep `limit` train prompts, the first in an order that only seed and content decide; the others stay as they are."""
    train = [p for p in prompts if p.split == "train"]
    if limit is None or len(train) <= limit:
        return list(prompts)
    keep = {p.id for p in sorted(train, key=lambda p: content_hash(["train", seed, p.id]))[:limit]}
    return [p for p in prompts if p.split != "train" or p.id in keep]


def _file_prompts(source: FilePrompts, settings: PromptsSection, dropped: Counter[str]) -> Iterator[Prompt]:
    """The usable prompts of one file; the others are counted in `dropped`."""
    usable = 0
    first: tuple[int, str] | None = None
    for row in read_rows(source.path):
        try:
            prompt = _prompt(row, source.name, settings.max_chars)
        except _Dropped as reason:
            dropped[str(reason)] += 1
            first = first or (row.number, str(reason))
            continue
        usable += 1
        yield prompt
    if not usable:
        where = f"{source.path}, line {first[0]}: {first[1]}" if first else f"{source.path}, which has no rows"
        raise InputError(
            "Not one row of the prompt file is a usable prompt",
            where=where,
            cure="each row needs a `messages` list that ends with a user turn, or a `prompt` text",
        )


def _prompt(row: Row, source: str, max_chars: int) -> Prompt:
    if row.value is None:
        raise _Dropped(row.problem)
    messages = _messages(row.value)
    if messages and messages[-1].role != "user":
        raise _Dropped("no_user_turn_last")
    if not messages or not messages[-1].content.strip():
        raise _Dropped("empty")
    if sum(len(m.content) for m in messages) > max_chars:
        raise _Dropped("too_long")
    try:
        to_transcript(messages)  # what the dataset could not hold is not worth paying answers and a judge for
    except InputError:
        raise _Dropped("not_a_transcript") from None
    return Prompt.make(messages, (source,))


def _messages(value: Mapping[str, Any]) -> Messages:
    """From a `messages` list, else a `prompt` that is a Nectar transcript (it opens with a marker) or one plain user turn."""
    listed, text = value.get("messages"), value.get("prompt")
    if listed is not None:
        if not isinstance(listed, list):
            raise _Dropped("bad_messages")
        try:
            return tuple(_message(m) for m in listed)
        except (ValidationError, TypeError, AttributeError):
            raise _Dropped("bad_messages") from None
    if not isinstance(text, str):
        raise _Dropped("no_prompt")
    if not is_transcript(text):
        return (Message(role="user", content=text),)
    try:
        return from_transcript(text)
    except InputError:
        raise _Dropped("not_a_transcript") from None


def _message(value: Any) -> Message:
    """Role and content; further fields may only be empty (parquet fills absent ones with null)."""
    return Message.model_validate({key: field for key, field in value.items() if field is not None}, strict=True)
