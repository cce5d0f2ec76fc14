"""Rows of benchmark files into items: fields that are checked, conversations, and what is done with a row that is no item.

Three kinds of rows. A *good* row is an item. A row that the benchmark does not ask about (a tie, two equal answers) is `LeftOut`
and counted by its reason. A *broken* row (a missing field, an unknown winner) is `Broken`: in a published benchmark that is an
error, for a figure over what is left of the file would be another benchmark's; in a user's own preference file it is counted
like the rows left out, and an error only when nothing usable remains. An id that comes twice is an error everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from starling.chat import conversation_key, from_transcript, is_transcript, read_turns
from starling.errors import InputError
from starling.evaluate.reward_benchmarks.items import Item, Reading
from starling.records import Message, Messages
from starling.rows import Row, read_rows

ReadItem = tuple[Item, tuple[float, ...] | None]
RowFields = dict[str, Any]


class LeftOut(Exception):
    """The row is in order, but there is nothing to ask; the reason is the name it is counted under."""


class Broken(Exception):
    """The row is not what the benchmark's file has: `reason` names it in counts, the text in messages."""

    def __init__(self, reason: str, said: str) -> None:
        super().__init__(said)
        self.reason = reason


def items_of(
    path: Path,
    reading: Reading,
    parse: Callable[[RowFields, str], ReadItem],
    *,
    strict: bool,
    rows: Iterable[Row] | None = None,
) -> Iterator[ReadItem]:
    """The items of a file's rows.

    Args:
        parse: (fields, the row's number as text) → the item and its scores; raises LeftOut or Broken.
        strict: a broken row is an error; otherwise it is counted in `reading`.
        rows: the rows, where they are not simply those of the file.

    Raises:
        InputError: the file cannot be read, a row is broken and that is an error, an id comes twice, or there is no item.
    """
    seen: set[str] = set()
    first, found = "", False
    for row in read_rows(path) if rows is None else rows:
        try:
            if row.value is None:
                raise Broken(row.problem, f"the row cannot be read ({row.problem})")
            item, scores = parse(row.value, str(row.number))
        except LeftOut as reason:
            reading.left_out[str(reason)] += 1
            continue
        except Broken as broken:
            first = first or f"row {row.number}: {broken}"
            if strict:
                raise InputError(
                    f"A row of the benchmark is broken: {broken}",
                    where=f"{path}, row {row.number}",
                    cure="`starling evaluate reward --list` says what each benchmark's file holds; mend the row or the name",
                ) from None
            reading.left_out[broken.reason] += 1
            continue
        if item.id in seen:
            raise InputError(
                f"The id {item.id!r} comes twice",
                where=f"{path}, row {row.number}",
                cure="give every row an id of its own; a row that is there twice would count twice",
            )
        seen.add(item.id)
        found = True
        yield item, scores
    if not found:
        counts = ", ".join(f"{n} {reason}" for reason, n in sorted(reading.left_out.items()))
        raise InputError(
            f"There is no usable row in the file{f' ({counts})' if counts else ''}",
            where=f"{path}{f', {first}' if first else ''}",
            cure="`starling evaluate reward --list` says what each benchmark's file holds",
        )


def text(row: RowFields, *names: str) -> str:
    """The text in the first of these fields that the row has.

    Raises:
        Broken: there is none, or it is no text.
    """
    for name in names:
        if row.get(name) is not None:
            if not isinstance(row[name], str):
                raise Broken(f"{name}_not_text", f"the field '{name}' is {type(row[name]).__name__}, not text")
            return str(row[name])
    raise Broken(f"{names[0]}_missing", f"there is no field '{names[0]}'")


def identity(row: RowFields, number: str, *names: str) -> str:
    """The row's id from the first of these fields that it has; without one, the row's number."""
    found = next((row[name] for name in names if row.get(name) is not None), number)
    return str(found)


def numbers(row: RowFields, names: Sequence[str]) -> tuple[float, ...] | None:
    """The scores in these fields; None where the row has none of them.

    Raises:
        Broken: one is missing while others are there, or is no finite number.
    """
    if all(row.get(name) is None for name in names):
        return None
    return tuple(finite(row.get(name), name) for name in names)


def finite(value: Any, name: str) -> float:
    """`value` as a finite number.

    Raises:
        Broken: it is none; NaN and infinity are no scores.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise Broken("score_not_finite", f"'{name}' is {value!r}, not a finite number")
    return float(value)


def conversation(value: Any) -> Messages:
    """A prompt that is plain text (one user turn), a Nectar transcript, or a list of {role, content} that ends with a user turn.

    Raises:
        Broken: it is none of them.
    """
    if isinstance(value, str) and value.strip():
        try:
            return from_transcript(value) if is_transcript(value) else (Message(role="user", content=value),)
        except InputError as error:
            raise Broken("prompt_not_a_transcript", error.what) from None
    messages = turns(value)
    if not messages or messages[-1].role != "user":
        raise Broken("prompt_without_user_turn", "the prompt does not end with a user turn")
    return messages


def answers_of(row: RowFields, fields: str) -> list[dict[str, Any]]:
    """The two or more {answer, …} of a row; `fields` names what else they should have.

    Raises:
        Broken: there are none, or one without text.
    """
    answers = row.get("answers")
    if not isinstance(answers, list) or len(answers) < 2 or not all(isinstance(a, dict) for a in answers):
        raise Broken("answers_missing", f"there is no list 'answers' of two or more {{answer, {fields}}}")
    if not all(isinstance(a.get("answer"), str) for a in answers):
        raise Broken("answer_not_text", "an answer is no text")
    return answers


def scores_of(answers: list[dict[str, Any]]) -> tuple[float, ...] | None:
    """The answers' `score`, None where no answer has one.

    Raises:
        Broken: one is missing or not finite.
    """
    given = [a.get("score") for a in answers]
    return None if all(s is None for s in given) else tuple(finite(s, "score") for s in given)


def turns(value: Any) -> Messages:
    """A whole conversation: a list of {role, content}, or a transcript with "Human:" and "Assistant:" turns.

    Raises:
        Broken: it is neither.
    """
    try:
        if isinstance(value, str):
            return read_turns(value)
        if isinstance(value, list):
            return tuple(Message(role=m["role"], content=m["content"]) for m in value)
    except (InputError, ValidationError, KeyError, TypeError) as error:
        said = error.what if isinstance(error, InputError) else "a turn is no {role, content} of user, assistant or system"
        raise Broken("turns_not_readable", said) from None
    raise Broken("prompt_missing", "there is no prompt")


def cluster_of(messages: Messages) -> str:
    """What items of one conversation share: its first user turn, ignoring case and spacing.

    Raises:
        Broken: there is no user turn.
    """
    try:
        return conversation_key(messages)
    except InputError as error:
        raise Broken("prompt_without_user_turn", error.what) from None
