"""Talking to a model on this machine: a conversation that remembers its turns, and the program around it that reads lines.

A reply is drawn piece by piece, each piece from where the last one ended, so that it can be shown while it grows and stopped in
the middle; pieces get longer with the reply, because each of them reads everything before it again. The seed of a piece follows
from the seed given, the number of the reply and that of the piece: the same words with the same seed get the same replies.

Layer: beside the stages; `starling.cli` calls it. torch is imported when a model is loaded.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

from starling.errors import InputError, StarlingError
from starling.records import Message, Messages, Sampling, content_hash

FIRST_PIECE = 4
"""Tokens of a reply's first piece; a later one has a quarter of what there is, at most LONGEST_PIECE."""
LONGEST_PIECE = 64

HELP = """\
/reset          forget the conversation
/system TEXT    begin again with this system message; without TEXT, with none
/temperature X  0: the most likely reply, 1: as in training, more: wilder
/save FILE      add the conversation to a file, a line of JSON that `starling score` reads
/help           this
Ctrl-C stops a reply, Ctrl-D ends the program. A line that begins with a blank is no command."""


class Speaker:
    """A causal language model with its tokenizer and chat template.

    Args:
        folder: a transformers folder, or a peft adapter whose base is where it says.
        seed: of sampled replies.

    Raises:
        InputError: there is no such model in the folder.
    """

    def __init__(self, folder: Path, seed: int = 0) -> None:
        import torch

        from starling.models.encode import Encoder
        from starling.models.load import load_tokenizer, longest_input
        from starling.models.sample import Sampler

        model, tokenizer_folder = _causal(folder)
        if torch.cuda.is_available():
            model.to("cuda", torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16)
        tokenizer = load_tokenizer(tokenizer_folder)
        self.name = folder.resolve().name
        self._encoder = Encoder(tokenizer, max_length=longest_input(model, tokenizer) or 1 << 20)
        self._sampler = Sampler(model, self._encoder.end_ids, 1)
        self._seed = seed

    def reply(self, messages: Messages, sampling: Sampling, number: int) -> Iterator[str]:
        """The reply as it grows: what is new of it since the last piece.

        Args:
            messages: the conversation, a user turn last.
            sampling: temperature, top_p, max_tokens.
            number: of the reply in the conversation; another number is another draw.

        Raises:
            InputError: the chat template refuses the conversation, or the model has no room left for a reply.
        """
        prompt = self._encoder.prompt_ids(messages)
        room = min(sampling.max_tokens, self._encoder.max_length - len(prompt))
        if room < 1:
            raise InputError(
                f"The conversation has {len(prompt)} tokens, and the model holds {self._encoder.max_length}",
                where=self.name,
                cure="begin again with /reset",
            )
        ids: tuple[int, ...] = ()
        shown = ""
        finished = False
        while not finished and len(ids) < room:
            piece = min(max(FIRST_PIECE, len(ids) // 4), LONGEST_PIECE, room - len(ids))
            seed = int(content_hash(["chat", self._seed, number, len(ids)], 16), 16)
            drawn = self._sampler.generate([(*prompt, *ids)], sampling.model_copy(update={"max_tokens": piece}), [seed])[0]
            ids, finished = (*ids, *drawn.ids), drawn.finished
            text = self._encoder.decode_reply(ids)
            if not finished and len(ids) < room:
                text = text.rstrip("\ufffd")  # the first bytes of a character whose others are still to come
            if len(text) > len(shown):
                yield text[len(shown) :]
                shown = text


def _causal(folder: Path) -> tuple[Any, Path]:
    """The language model in a folder, and the folder of its tokenizer."""
    from starling.models.load import is_adapter, load_causal

    if not is_adapter(folder):
        return load_causal(folder), folder
    from peft import PeftConfig, PeftModel

    base = Path(str(PeftConfig.from_pretrained(str(folder)).base_model_name_or_path))
    if not base.is_dir() or not (folder / "adapter_model.safetensors").is_file():
        raise InputError(
            f"The adapter's base {str(base)!r} is no folder here"
            if not base.is_dir()
            else "The adapter has no adapter_model.safetensors",
            where=str(folder),
            cure="put the base model where adapter_config.json says; adapters are read in safetensors only",
        )
    merged = PeftModel.from_pretrained(load_causal(base), str(folder)).merge_and_unload()
    return merged.eval(), folder if (folder / "tokenizer_config.json").is_file() else base


class Conversation:
    """The turns said so far, and how replies are drawn.

    Args:
        speaker: the model.
        sampling: how replies are drawn.
    """

    def __init__(self, speaker: Speaker, sampling: Sampling) -> None:
        self.speaker = speaker
        self.sampling = sampling
        self.messages: Messages = ()
        self._number = 0

    def begin(self, system: str = "") -> None:
        """Forget all turns; replies are counted anew, so the same words get the same replies."""
        self.messages = (Message(role="system", content=system),) if system else ()
        self._number = 0

    def say(self, text: str) -> Generator[str, None, None]:
        """The reply to the next user turn as it grows. What was said until the iteration is given up is remembered; a turn that
        gets no word of a reply is not.

        Raises:
            InputError: see `Speaker.reply`.
        """
        asked = (*self.messages, Message(role="user", content=text))
        said = ""
        try:
            for piece in self.speaker.reply(asked, self.sampling, self._number):
                said += piece
                yield piece
        finally:
            if said:
                self.messages = (*asked, Message(role="assistant", content=said))
                self._number += 1


# ── the program ──────────────────────────────────────────────────────────────────────────────────────────────────────


def talk(
    conversations: Sequence[Conversation],
    read: Callable[[], str | None],
    show: Callable[[str], None],
    tell: Callable[[str], None],
    *,
    commands: bool,
) -> None:
    """Answer line by line until `read` gives None.

    Args:
        conversations: each answers every line; their names stand before the replies where there are several.
        read: the next line, None at the end. It may raise KeyboardInterrupt, which does nothing but drop the line.
        show: gets the replies, piece by piece.
        tell: gets what the program itself has to say.
        commands: whether a person types: lines that begin with / are commands, an error in a turn is told and does not end the
            program, and Ctrl-C stops a reply. If not, every line is a turn and everything is raised.

    Raises:
        InputError: without `commands`, see `Speaker.reply`.
    """
    while True:
        try:
            line = read()
        except KeyboardInterrupt:
            if not commands:
                raise
            tell("")
            continue
        if line is None:
            return
        if commands and line.startswith("/"):
            _obey(line, conversations, tell)
        elif line.strip():
            _answer(line.strip(), conversations, show, tell, commands)
        else:
            for one in conversations:
                one.begin(_system(one))


def _answer(
    text: str, conversations: Sequence[Conversation], show: Callable[[str], None], tell: Callable[[str], None], commands: bool
) -> None:
    for one in conversations:
        if len(conversations) > 1:
            show(f"{one.speaker.name}> ")
        reply = one.say(text)
        try:
            for piece in reply:
                show(piece)
            show("\n")
        except KeyboardInterrupt:
            if not commands:
                raise
            reply.close()
            show("\n")
            tell("(stopped)")
            return
        except StarlingError as error:
            if not commands:
                raise
            tell(str(error))


def _system(conversation: Conversation) -> str:
    first = conversation.messages[:1]
    return first[0].content if first and first[0].role == "system" else ""


def _obey(line: str, conversations: Sequence[Conversation], tell: Callable[[str], None]) -> None:
    """Do what a command says; what is wrong with it is told."""
    command, _, rest = line.strip().partition(" ")
    rest = rest.strip()
    if command == "/reset":
        for one in conversations:
            one.begin(_system(one))
        tell("(forgotten)")
    elif command == "/system":
        for one in conversations:
            one.begin(rest)
        tell("(a new conversation)")
    elif command == "/temperature":
        _heat(rest, conversations, tell)
    elif command == "/save" and rest:
        _save(Path(rest).expanduser(), conversations, tell)
    elif command == "/help":
        tell(HELP)
    else:
        wants = " wants a file" if command == "/save" else " is no command"
        tell(f"{command}{wants}; /help lists them. A line that begins with a blank is no command.")


def _heat(text: str, conversations: Sequence[Conversation], tell: Callable[[str], None]) -> None:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        tell(f"/temperature wants a number from 0 on, not {text!r}")
        return
    for one in conversations:
        one.sampling = one.sampling.model_copy(update={"temperature": value})
    tell(f"(temperature {value:g})")


def _save(file: Path, conversations: Sequence[Conversation], tell: Callable[[str], None]) -> None:
    rows = [
        {"model": one.speaker.name, "messages": [m.model_dump(mode="json") for m in one.messages]}
        for one in conversations
        if one.messages and one.messages[-1].role == "assistant"
    ]
    if not rows:
        tell("nothing has been said yet")
        return
    try:
        with file.open("a", encoding="utf-8") as out:
            out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    except OSError as error:
        tell(f"{file} cannot be written: {error.strerror or error}")
        return
    tell(f"(added to {file})")
