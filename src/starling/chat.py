"""Messages and Nectar transcripts: the only place that knows the markers of a transcript.

Source: dataset card berkeley-nest/Nectar. Its `prompt` column is the whole conversation up to the reply,
"\\n\\nHuman: …\\n\\nAssistant: …\\n\\nHuman: …\\n\\nAssistant: " with the leading blank lines and the trailing space.
Its authors split it with the regular expression `\\n\\nHuman: |\\n\\nAssistant: ` and take the turns as alternating.

Departures: the roles are read from the markers, and turns that do not alternate are an error instead of being relabelled.
Writing refuses what could not be read back: system turns (the schema has no place for them) and turns that contain a
marker, with which a user could otherwise forge the assistant's words. A last marker without its trailing space (as in
HH-RLHF) is accepted when reading.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from starling.errors import InputError
from starling.records import Message, Messages, content_hash

_HUMAN = "\n\nHuman: "
_ASSISTANT = "\n\nAssistant: "
_MARKER = re.compile(r"\n\n(Human|Assistant): ")
_MARKERS = {"user": _HUMAN, "assistant": _ASSISTANT}


def to_transcript(messages: Sequence[Message]) -> str:
    """The Nectar prompt string of a conversation that waits for a reply.

    Raises:
        InputError: the turns are not user, assistant, …, user, or one contains a marker.
    """
    _check_turns([m.role for m in messages])
    for number, message in enumerate(messages, 1):
        if _MARKER.search(message.content):
            raise InputError(
                "A turn contains the marker of a Nectar transcript and would be read back as several turns",
                where=f"turn {number}: {message.content[:60]!r}",
                cure="drop the conversation or rewrite the marker",
            )
    return "".join(_MARKERS[m.role] + m.content for m in messages) + _ASSISTANT


def from_transcript(text: str) -> Messages:
    """The conversation of a Nectar prompt string; texts are kept to the character.

    Raises:
        InputError: it does not start with a user turn, end with the marker of the reply and alternate between them, or the
            last user turn is empty.
    """
    if text.endswith(_ASSISTANT.rstrip()):
        text += " "
    pieces = _MARKER.split(text)
    speakers, contents = pieces[1::2], pieces[2::2]
    if not speakers or pieces[0].strip() or speakers[-1] != "Assistant" or contents[-1]:
        raise InputError(
            "The text is no Nectar transcript that waits for a reply",
            where=repr(text[:60]) + " … " + repr(text[-30:]),
            cure=f"it must start with {_HUMAN!r} and end with {_ASSISTANT!r}",
        )
    roles: list[Literal["user", "assistant"]] = ["user" if s == "Human" else "assistant" for s in speakers[:-1]]
    _check_turns(list(roles))
    if not contents[-2].strip():
        raise InputError("The last user turn is empty", where=repr(text[-60:]), cure="drop the row: there is nothing to answer")
    return tuple(Message(role=role, content=content) for role, content in zip(roles, contents, strict=False))


def read_turns(text: str) -> Messages:
    """All turns of a transcript, whoever speaks last, as in HH-RLHF's `chosen` and `rejected`; a reply may be empty.

    Unlike a Nectar prompt it ends with the reply itself; texts lose the blanks at their ends.

    Raises:
        InputError: it does not start with a user turn, or the turns do not alternate.
    """
    pieces = re.split(r"\n\n(Human|Assistant):(?= |\n|$)", text)
    speakers, contents = pieces[1::2], pieces[2::2]
    if not speakers or pieces[0].strip() or any(s != ("Human", "Assistant")[i % 2] for i, s in enumerate(speakers)):
        raise InputError(
            "The text is no transcript of alternating turns", where=repr(text[:60]), cure=f"it must start with {_HUMAN!r}"
        )
    roles: list[Literal["user", "assistant"]] = ["user" if s == "Human" else "assistant" for s in speakers]
    return tuple(Message(role=role, content=content.strip()) for role, content in zip(roles, contents, strict=True))


def is_transcript(text: str) -> bool:
    """Whether the text means to be a transcript (it opens with the user's marker), well formed or not."""
    return text.startswith(_HUMAN)


def _check_turns(roles: Sequence[str]) -> None:
    wanted = ["user" if i % 2 == 0 else "assistant" for i in range(len(roles))]
    if not roles or list(roles) != wanted or roles[-1] != "user":
        raise InputError(
            "The turns of the conversation do not alternate between user and assistant, from user to user",
            where=f"turns {' '.join(roles) or 'none'}",
            cure="drop the conversation or merge its turns; a transcript has no place for system turns",
        )


def with_system(messages: Messages, system: str | None) -> Messages:
    """The conversation under a system message; one that opens with its own keeps that."""
    if not system or messages[0].role == "system":
        return messages
    return (Message(role="system", content=system), *messages)


def conversation_key(messages: Sequence[Message]) -> str:
    """16 hex digits of the first user turn, ignoring case and spacing: all later turns of a conversation share it.

    Raises:
        InputError: there is no user turn.
    """
    for message in messages:
        if message.role == "user":
            return content_hash(" ".join(message.content.casefold().split()), 16)
    raise InputError("The conversation has no user turn", where=f"{len(messages)} messages", cure="drop it")


def split_of(messages: Sequence[Message], *, validation: float, test: float) -> Literal["train", "validation", "test"]:
    """The split a conversation belongs to: a property of its first user turn alone, so no seed and no order can leak it.

    Args:
        messages: the conversation, or any later state of it.
        validation: share of conversations in [0, 1).
        test: share of conversations in [0, 1).
    """
    return split_of_key(conversation_key(messages), validation=validation, test=test)


def split_of_key(key: str, *, validation: float, test: float) -> Literal["train", "validation", "test"]:
    """The split of the conversations with this `conversation_key`."""
    uniform = int(content_hash(["split", key], 13), 16) / 16**13
    if uniform < test:
        return "test"
    return "validation" if uniform < test + validation else "train"
