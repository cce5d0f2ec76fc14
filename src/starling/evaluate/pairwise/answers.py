"""Answers of models from the files of other tools, matched by prompt; and the prompts themselves.

    AlpacaEval    {instruction, output, generator}                     model_outputs.json
    Arena-Hard    {uid, model, messages: [{role, content}, {role, content: {answer}}]}, and v0.1's {question_id, choices, …}
    FastChat      {question_id, model_id, choices: [{turns}]}          its prompts stand in a question file
    plain         `messages` that end with the assistant, or `prompt` (or `instruction`, `messages`) and `response` (or `output`,
                  `answer`, `completion`, `text`)

A prompt is known by the id that its messages have everywhere in Starling, so answers from different tools meet; where a file only
has numbers, a question file ({question_id or uid, turns or prompt}) says what they stand for, and without one the number is the
name. Departures: of several turns only the first counts (the second answers a history that two models do not share), of several
choices the first; a prompt's second answer in one file is left out under a name, as is everything that is no answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from starling.chat import from_transcript, is_transcript
from starling.errors import InputError
from starling.records import Message, Messages, prompt_id
from starling.rows import read_rows

Value = Mapping[str, Any]
_IDS = ("uid", "question_id", "prompt_id", "id")
_PROMPTS = ("prompt", "instruction", "question")
_TEXTS = ("response", "output", "answer", "completion", "text")
_NAMES = ("model", "model_id", "generator")


@dataclass
class Prompts:
    """The prompts known so far: by their ids the messages, and by other names (uids, question numbers) the ids."""

    messages: dict[str, Messages] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)

    def add(self, messages: Messages, *names: str) -> str:
        """Note a prompt; returns its id."""
        found = prompt_id(messages)
        self.messages.setdefault(found, messages)
        for name in names:
            self.aliases.setdefault(name, found)
        return found


@dataclass(frozen=True)
class Answers:
    """One model's answers by prompt, and what was left out of its file by reason."""

    label: str
    texts: Mapping[str, str]
    left_out: Mapping[str, int]


def read_prompts(path: Path, *, split: str = "", prompts: Prompts | None = None) -> Prompts:
    """The prompts of a file, in its order: questions of FastChat or Arena-Hard, AlpacaEval's instructions, or `messages`.

    Args:
        split: of a file that says which split its prompts belong to, only that one.
        prompts: to be added to.

    Raises:
        InputError: the file cannot be read, a row is no prompt (names it), or there is none.
    """
    found = prompts or Prompts()
    for row in read_rows(path):
        if row.value is not None and split and row.value.get("split", split) != split:
            continue
        messages = None if row.value is None else _prompt_of(row.value)
        if messages is None:
            raise InputError(
                f"A row is no prompt{f' ({row.problem})' if row.problem else ''}",
                where=f"{path}:{row.number}",
                cure="give rows with messages that end with a user turn, a prompt, an instruction or turns",
            )
        found.add(messages, *_ids(row.value or {}))
    if not found.messages:
        raise InputError("There is no prompt in the file", where=str(path), cure="check the file and the split asked for")
    return found


def read_answers(label: str, path: Path, prompts: Prompts) -> Answers:
    """A model's answers.

    Args:
        label: what the model is called here. A file with answers of several models must have some of this name.
        prompts: filled with the prompts that the file names.

    Raises:
        InputError: the file cannot be read, holds no answer, or answers of several models and none of the label's.
    """
    rows: list[tuple[Value, str]] = []
    left_out: Counter[str] = Counter()
    for row in read_rows(path):
        if row.value is None:
            left_out[row.problem] += 1
        else:
            rows.append((row.value, next((str(row.value[n]) for n in _NAMES if isinstance(row.value.get(n), str)), "")))
    names = {name for _, name in rows}
    if len(names) > 1 and label not in names:
        raise InputError(
            f"The file holds answers of {len(names)} models, and none is called '{label}'",
            where=str(path),
            cure=f"use one of their names: {', '.join(sorted(names)[:6])}",
        )
    texts: dict[str, str] = {}
    for value, name in rows:
        if len(names) > 1 and name != label:
            continue
        found = _answer_of(value, prompts)
        if isinstance(found, str):
            left_out[found] += 1
        elif found[0] in texts:
            left_out["repeated"] += 1
        else:
            texts[found[0]] = found[1]
    if not texts:
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in sorted(left_out.items())) or "no rows"
        raise InputError(
            f"The file holds no answer ({reasons})",
            where=str(path),
            cure="give model_outputs.json, an answer file of FastChat or Arena-Hard, or rows with prompt and response",
        )
    return Answers(label, texts, dict(sorted(left_out.items())))


def named_files(given: Iterable[str], option: str) -> dict[str, Path]:
    """LABEL=FILE options as a mapping.

    Raises:
        InputError: one has no label, or a label comes twice.
    """
    found: dict[str, Path] = {}
    for one in given:
        label, equals, path = one.partition("=")
        if not equals or not label or not path or label in found:
            problem = f"The label '{label}' comes twice" if label in found else f"'{one}' has no label"
            raise InputError(problem, where=option, cure=f"write {option} LABEL=FILE, each label once")
        found[label] = Path(path)
    return found


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _ids(value: Value) -> Iterator[str]:
    return (str(value[name]) for name in _IDS if isinstance(value.get(name), int | str) and value[name] != "")


def _prompt_of(value: Value) -> Messages | None:
    """The conversation that waits for an answer; an assistant's turn at its end is the answer and no part of it."""
    listed = value.get("messages")
    if isinstance(listed, list):
        return _messages(listed[:-1] if listed and _role(listed[-1]) == "assistant" else listed)
    turns = value.get("turns")
    if isinstance(turns, list) and turns:
        first = turns[0].get("content") if isinstance(turns[0], Mapping) else turns[0]
        return _messages([{"role": "user", "content": first}])
    text = next((value[n] for n in _PROMPTS if isinstance(value.get(n), str)), None)
    if text is None:
        return None
    if is_transcript(text):
        try:
            return from_transcript(text)
        except InputError:
            return None
    return _messages([{"role": "user", "content": text}])


def _role(turn: Any) -> str:
    return str(turn.get("role", "")) if isinstance(turn, Mapping) else ""


def _messages(turns: Sequence[Any]) -> Messages | None:
    try:
        found = tuple(Message.model_validate({"role": _role(t), "content": t.get("content")}) for t in turns)
    except (ValidationError, AttributeError):
        return None
    return found if found and found[-1].role == "user" and found[-1].content.strip() else None


def _answer_of(value: Value, prompts: Prompts) -> tuple[str, str] | str:
    """The prompt's name and the answer; or why there is none: no_answer, empty, no_prompt."""
    text = _text_of(value)
    if text is None:
        return "no_answer"
    if not text.strip():
        return "empty"
    ids = list(_ids(value))
    messages = _prompt_of(value)
    if messages is not None:
        return prompts.add(messages, *ids), text
    if not ids:
        return "no_prompt"
    return prompts.aliases.get(ids[0], ids[0]), text


def _text_of(value: Value) -> str | None:
    listed, choices = value.get("messages"), value.get("choices")
    found: Any = None
    if isinstance(listed, list) and listed and _role(listed[-1]) == "assistant":
        found = listed[-1].get("content")
    elif isinstance(choices, list) and choices and isinstance(choices[0], Mapping):
        turns = choices[0].get("turns")
        found = turns[0] if isinstance(turns, list) and turns else None
    else:
        found = next((value[n] for n in _TEXTS if isinstance(value.get(n), str)), None)
    if isinstance(found, Mapping):  # Arena-Hard: {answer}, v0.1's {content}
        found = found.get("answer", found.get("content"))
    return found if isinstance(found, str) else None
