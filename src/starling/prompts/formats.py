"""From a row of somebody's file to prompts and the answers that came with them.

Formats and their sources (dataset cards and files of the sets that Nectar was made from):

    plain          `messages` that end with a user turn, or a `prompt`: a Nectar transcript or one plain user turn
    nectar         berkeley-nest/Nectar: `prompt` transcript, `answers` [{answer, model, rank}], `source`
    hh-rlhf        Anthropic/hh-rlhf: transcripts `chosen` and `rejected`; what they share is the prompt, each adds an answer
    lmsys-chat     lmsys/lmsys-chat-1m: `conversation` [{role, content}], `model`, `language`
    sharegpt       `conversations` (or `items`) [{from: human | gpt | system, value}]; the variants {user | role, text | content}
    ultrafeedback  openbmb/UltraFeedback: `instruction`, `completions` [{model, response}], `source` (the sub-source)
    evol-instruct  WizardLM and Alpaca: `instruction`, perhaps `input`, `output`; the V2 set is in ShareGPT's form
    flan           `inputs` and `targets`, or `question` and `answer` (also `response`)
    llama-instruct togethercomputer/llama-instruct: `text` with [INST] … [/INST]

Departures from Nectar's notebook: whatever is no prompt leaves under a name, empty answers are counted, and in HH-RLHF the
prompt is what both transcripts really share (the notebook took the text before the last answer of each).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from starling.chat import from_transcript, is_transcript, read_turns
from starling.config import FilePrompts
from starling.errors import InputError
from starling.records import Message, Messages

Role = Literal["system", "user", "assistant"]
Value = Mapping[str, Any]


class Dropped(Exception):
    """A row, or one of its prompts, cannot be used; the reason's name. Never leaves this package."""


@dataclass(frozen=True)
class Found:
    """A prompt as a row holds it, unchecked, with its answers as (model, text) and the labels of where it comes from."""

    messages: Messages
    answers: tuple[tuple[str, str], ...]
    sources: tuple[str, ...]


def read(value: Value, source: FilePrompts) -> Iterator[Found]:
    """The prompts of a row: one, or several when every user turn of a conversation counts.

    Raises:
        Dropped: the row has no prompt in this format: no_prompt, bad_messages, empty, no_user_turn_last, not_a_transcript,
            bad_answers, other_language, no_common_prompt (chosen and rejected open differently).
    """
    if source.language is not None and value.get("language") != source.language:
        raise Dropped("other_language")
    name = recognise(value) if source.format == "auto" else source.format
    return iter(_READERS[name](value, source))


def recognise(value: Value) -> str:
    """The format that the columns of a row speak for; `plain` when none does."""
    if isinstance(value.get("chosen"), str) and isinstance(value.get("rejected"), str):
        return "hh-rlhf"
    if value.get("messages") is None:
        text = value.get("text")
        for name, columns in _COLUMNS:
            if all(value.get(column) is not None for column in columns):
                return name
        if isinstance(text, str) and "[INST]" in text:
            return "llama-instruct"
    return "plain"


_COLUMNS = (
    ("ultrafeedback", ("instruction", "completions")),
    ("nectar", ("prompt", "answers")),
    ("lmsys-chat", ("conversation",)),
    ("sharegpt", ("conversations",)),
    ("sharegpt", ("items",)),
    ("plain", ("prompt",)),
    ("evol-instruct", ("instruction",)),
    ("flan", ("inputs",)),
    ("flan", ("question",)),
)


# ── conversations ────────────────────────────────────────────────────────────────────────────────────────────────────


def _conversation(turns: Messages, model: str, source: FilePrompts) -> list[Found]:
    """The user turns that the settings ask for, each with all before it; the assistant turn that follows is its answer."""
    places = [i for i, turn in enumerate(turns) if turn.role == "user"]
    if not places:
        raise Dropped("empty")
    chosen = {"first": places[:1], "last": places[-1:], "every": places}[source.turns]
    found = []
    for place in chosen:
        after = turns[place + 1 : place + 2]
        answers = tuple((model, turn.content) for turn in after if turn.role == "assistant")
        found.append(Found(turns[: place + 1], answers, (source.name,)))
    return found


_ROLES: dict[str, Role] = {
    "system": "system", "human": "user", "user": "user", "prompter": "user", "assistant": "assistant", "gpt": "assistant",
    "chatgpt": "assistant", "bing": "assistant", "bard": "assistant", "model": "assistant",
}  # fmt: skip


def _turns(listed: Any) -> Messages:
    """ShareGPT's turns and their variants."""
    if not isinstance(listed, Sequence) or isinstance(listed, str):
        raise Dropped("bad_messages")
    turns = []
    for turn in listed:
        if not isinstance(turn, Mapping):
            raise Dropped("bad_messages")
        speaker = next((turn[k] for k in ("from", "role", "user") if turn.get(k) is not None), None)
        text = next((turn[k] for k in ("value", "content", "text") if turn.get(k) is not None), None)
        role = _ROLES.get(speaker) if isinstance(speaker, str) else None
        if role is None or not isinstance(text, str):
            raise Dropped("bad_messages")
        turns.append(Message(role=role, content=text))
    return tuple(turns)


def _sharegpt(value: Value, source: FilePrompts) -> list[Found]:
    listed = next((value[k] for k in ("conversations", "items", "conversation") if value.get(k) is not None), None)
    if listed is None:
        raise Dropped("no_prompt")
    return _conversation(_turns(listed), _model(value, source), source)


def _llama_instruct(value: Value, source: FilePrompts) -> list[Found]:
    text = value.get("text")
    if not isinstance(text, str) or "[INST]" not in text:
        raise Dropped("no_prompt")
    opening, *exchanges = re.sub(r"</?s>", "", text).split("[INST]")
    if opening.strip() or "<<SYS>>" in text:
        raise Dropped("not_a_transcript")
    turns: list[Message] = []
    for exchange in exchanges:
        asked, _, answered = exchange.partition("[/INST]")
        turns += [Message(role="user", content=asked.strip()), Message(role="assistant", content=answered.strip())]
    return _conversation(tuple(turns), _model(value, source, "llama-2-70b-chat"), source)


# ── one prompt a row ─────────────────────────────────────────────────────────────────────────────────────────────────


def _plain(value: Value, source: FilePrompts) -> list[Found]:
    messages = _messages(value)
    if messages and messages[-1].role != "user":
        raise Dropped("no_user_turn_last")
    if not messages:
        raise Dropped("empty")
    return _conversation(messages, _model(value, source), source)


def _messages(value: Value) -> Messages:
    """From a `messages` list, else a `prompt` that is a Nectar transcript (it opens with a marker) or one plain user turn."""
    listed = value.get("messages")
    if listed is None:
        return _prompt(value.get("prompt"))
    if not isinstance(listed, list):
        raise Dropped("bad_messages")
    try:
        return tuple(_message(m) for m in listed)
    except (ValidationError, TypeError, AttributeError):
        raise Dropped("bad_messages") from None


def _message(value: Any) -> Message:
    """Role and content; further fields may only be empty (parquet fills absent ones with null)."""
    return Message.model_validate({key: field for key, field in value.items() if field is not None}, strict=True)


def _prompt(text: Any) -> Messages:
    if not isinstance(text, str):
        raise Dropped("no_prompt")
    if not is_transcript(text):
        return (Message(role="user", content=text),)
    try:
        return from_transcript(text)
    except InputError:
        raise Dropped("not_a_transcript") from None


def _nectar(value: Value, source: FilePrompts) -> list[Found]:
    listed, labels = value.get("answers"), value.get("source")
    answers = _answers(listed, "answer", source)
    named = [label for label in labels if isinstance(label, str) and label] if isinstance(labels, list) else []
    return [Found(_prompt(value.get("prompt")), answers, tuple(dict.fromkeys(named)) or (source.name,))]


def _ultrafeedback(value: Value, source: FilePrompts) -> list[Found]:
    label = value.get("source")
    answers = _answers(value.get("completions"), "response", source)
    return [Found(_one_turn(value.get("instruction")), answers, (label if isinstance(label, str) and label else source.name,))]


def _hh_rlhf(value: Value, source: FilePrompts) -> list[Found]:
    try:
        chosen, rejected = (read_turns(value[column]) for column in ("chosen", "rejected"))
    except (InputError, KeyError, TypeError):
        raise Dropped("not_a_transcript") from None
    same = 0
    while same < min(len(chosen), len(rejected)) and chosen[same] == rejected[same]:
        same += 1
    prompt = chosen[: max(i for i in range(same + 1) if i == 0 or chosen[i - 1].role == "user")]
    if not prompt:
        raise Dropped("no_common_prompt")
    model = _model(value, source, "anthropic")
    answers = tuple((model, turns[len(prompt)].content) for turns in (chosen, rejected) if len(turns) > len(prompt))
    return [Found(prompt, answers, (source.name,))]


def _pairs(*columns: tuple[str, str]) -> Callable[[Value, FilePrompts], list[Found]]:
    """The reader of rows with a question in one column and its answer in another; `input` is what the question is about."""

    def reader(value: Value, source: FilePrompts) -> list[Found]:
        for asked, answered in columns:
            if isinstance(value.get(asked), str):
                text, about, answer = value[asked], value.get("input"), value.get(answered)
                if isinstance(about, str) and about.strip():
                    text = f"{text}\n\n{about}"
                answers = ((_model(value, source), answer),) if isinstance(answer, str) else ()
                return [Found(_one_turn(text), answers, (source.name,))]
        raise Dropped("no_prompt")

    return reader


def _evol_instruct(value: Value, source: FilePrompts) -> list[Found]:
    if value.get("conversations") is not None:
        return _sharegpt(value, source)
    return _pairs(("instruction", "output"))(value, source)


def _flan(value: Value, source: FilePrompts) -> list[Found]:
    answered = next((c for c in ("answer", "response") if isinstance(value.get(c), str)), "answer")
    return _pairs(("inputs", "targets"), ("question", answered))(value, source)


def _one_turn(text: Any) -> Messages:
    if not isinstance(text, str):
        raise Dropped("no_prompt")
    return (Message(role="user", content=text),)


def _answers(listed: Any, text: str, source: FilePrompts) -> tuple[tuple[str, str], ...]:
    """The (model, text) of [{model, <text>}]; a list without answers is one too."""
    if not isinstance(listed, list) or not all(isinstance(a, Mapping) and isinstance(a.get(text), str) for a in listed):
        raise Dropped("bad_answers")
    return tuple((_model(a, source), a[text]) for a in listed)


def _model(value: Value, source: FilePrompts, usual: str = "unknown") -> str:
    named = value.get("model")
    return named if isinstance(named, str) and named.strip() else source.model or usual


_READERS: dict[str, Callable[[Value, FilePrompts], list[Found]]] = {
    "plain": _plain,
    "nectar": _nectar,
    "hh-rlhf": _hh_rlhf,
    "lmsys-chat": _sharegpt,
    "sharegpt": _sharegpt,
    "ultrafeedback": _ultrafeedback,
    "evol-instruct": _evol_instruct,
    "flan": _flan,
    "llama-instruct": _llama_instruct,
}


def user_texts(value: Value, column: str | None) -> list[tuple[str, str]]:
    """What a benchmark's row asks, as (part, text): the given column, else whatever a prompt can be read from.

    The part tells the texts of one row apart ("turn 2"); it is empty where there is only one.

    Raises:
        Dropped: there is no text.
    """
    for name in (column,) if column is not None else ("turns", "instruction", "question", "Question"):
        listed = value.get(name)
        texts = [listed] if isinstance(listed, str) else listed
        if isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts):
            break
    else:
        if column is not None:
            raise Dropped("no_prompt")
        found = next(read(value, FilePrompts.model_construct(name="", format="auto", turns="last", language=None, model=None)))
        texts = [m.content for m in found.messages if m.role == "user"]
    return [(f"turn {i}" if len(texts) > 1 else "", text) for i, text in enumerate(texts, start=1)]
