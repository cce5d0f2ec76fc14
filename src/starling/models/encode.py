"""Conversations → token ids: the only tokenising door of Starling.

A tokenizer with a chat template is used through its template; one without reads the Nectar transcript
("\\n\\nHuman: …\\n\\nAssistant: …") followed by its end token. What closes a reply is found by rendering a sentinel reply,
never guessed from token ids, and every mask comes from lengths (the original, and most of its peers, look for the first
pad id: wrong as soon as a text contains it or pad = eos).

Two views of one conversation:

    conversation(messages, text)     ids of the *whole rendered text*, tokenised in one go: what a reward model reads.
                                     tokenizer(encoder.render(messages, text)) gives the same ids, so the reward is the
                                     one that pipeline("text-classification") reports for that text.
    prompt_ids(messages) + reply_ids(text)   what a language model is trained on and continues. The two can differ where
                                     a token would span the boundary ("Assistant: " + "Hello" → " Hello").

Departures from the original: exactly one BOS (its training text had two); left truncation keeps the special tokens at
the front (BOS, CLS) and cuts the prompt before the answer, and it is counted.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any, Literal

import numpy as np
import torch

from starling.chat import to_transcript
from starling.errors import InputError
from starling.records import Message, Messages

OverLong = Literal["drop", "truncate_left", "raise"]
Fit = Literal["whole", "prompt_cut", "answer_cut", "dropped"]

_SENTINEL = "starlingreplygoeshere"


@dataclass(frozen=True)
class Encoded:
    """One conversation, e.g. Encoded(ids=(1, 17, 4, 9, 2), prompt_length=3): the reply is ids[3:], its end included."""

    ids: tuple[int, ...]
    prompt_length: int


@dataclass(frozen=True)
class Padded:
    """Rows padded on the right; producer `pad_right`, consumers `ScalarHead` and the losses."""

    ids_BT: torch.Tensor  # int64
    mask_BT: torch.Tensor  # bool; True means the position holds a token of the row
    reply_mask_BT: torch.Tensor  # bool; True means the token belongs to the reply (its end token included)
    last_B: torch.Tensor  # int64; index of each row's last token

    def to(self, device: torch.device | str) -> Padded:
        """The same rows on another device."""
        return Padded(*(t.to(device, non_blocking=True) for t in (self.ids_BT, self.mask_BT, self.reply_mask_BT, self.last_B)))

    def rows(self, index: torch.Tensor) -> Padded:
        """Some of the rows, cut to the longest of them."""
        width = int(self.last_B[index].max()) + 1
        return Padded(
            self.ids_BT[index, :width], self.mask_BT[index, :width], self.reply_mask_BT[index, :width], self.last_B[index]
        )


def pad_right(rows: Sequence[Encoded], pad_id: int) -> Padded:
    """Pad rows to the longest one; masks come from lengths, so `pad_id` may be any valid id, also one used in the text."""
    lengths_B = torch.tensor([len(r.ids) for r in rows])
    starts_B = torch.tensor([r.prompt_length for r in rows])
    width = int(lengths_B.max())
    position_T = torch.arange(width)
    mask_BT = position_T < lengths_B[:, None]
    ids_BT = torch.full((len(rows), width), pad_id, dtype=torch.int64)
    every = np.fromiter(chain.from_iterable(r.ids for r in rows), dtype=np.int64, count=int(lengths_B.sum()))
    ids_BT.masked_scatter_(mask_BT, torch.from_numpy(every))
    return Padded(ids_BT, mask_BT, mask_BT & (position_T >= starts_B[:, None]), lengths_B - 1)


class Encoder:
    """Tokenises prompts, replies and conversations with one tokenizer.

    Args:
        tokenizer: a fast transformers tokenizer.
        max_length: longest conversation in tokens; only `fit` looks at it.

    Raises:
        InputError: the tokenizer is a slow one, has no end token, or its template loses the reply.
    """

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self._where = str(getattr(tokenizer, "name_or_path", "") or "tokenizer")
        if not getattr(tokenizer, "is_fast", False):
            raise InputError("The tokenizer is not a fast one", where=self._where, cure="convert it to a tokenizer.json")
        self._front, self._back = self._added_specials()
        self._frame = lru_cache(maxsize=4096)(self._render_frame)
        self._end = self._find_end()
        eos = tokenizer.eos_token_id
        self.end_ids: tuple[int, ...] = (self._end[-1], *([eos] if eos is not None and eos != self._end[-1] else []))
        """Token ids that finish a reply; the first one is what the template itself puts there."""
        self.pad_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.end_ids[0]
        """An id for padding: the tokenizer's own, else the end token (harmless: masks come from lengths)."""

    # ── text ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def render(self, messages: Messages, text: str, finished: bool = True) -> str:
        """The conversation as one text, to be tokenised *with* the tokenizer's special tokens (no double BOS)."""
        before, after = self._frame(messages)
        return before + text + (after if finished else "")

    def _render_frame(self, messages: Messages) -> tuple[str, str]:
        """What stands before and after the reply to `messages`, the BOS text removed if the tokenizer adds it itself."""
        if self.tokenizer.chat_template is None:
            eos = self.tokenizer.eos_token
            ends_itself = self.tokenizer.eos_token_id in self._back or self.tokenizer.sep_token_id in self._back
            return to_transcript(messages), "" if eos is None or ends_itself else eos
        whole = self._template((*messages, Message(role="assistant", content=_SENTINEL)), generation=False)
        if whole.count(_SENTINEL) != 1:
            raise InputError(
                "The chat template does not render the reply exactly once", where=self._where, cure="use another chat template"
            )
        before, after = whole.split(_SENTINEL)
        return self._without_bos(before), after

    def _template(self, messages: Messages, *, generation: bool) -> str:
        turns = [{"role": m.role, "content": m.content} for m in messages]
        try:
            return str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generation))
        except Exception as error:  # jinja raises its own and whatever the template's raise_exception says
            raise InputError(
                f"The chat template refuses the conversation: {error}",
                where=f"{self._where}, roles {[m.role for m in messages]}",
                cure="use a template that accepts these roles, or drop system messages from the prompts",
            ) from error

    def _without_bos(self, text: str) -> str:
        bos = self.tokenizer.bos_token
        return text.removeprefix(bos) if bos and self.tokenizer.bos_token_id in self._front else text

    # ── ids ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    def prompt_ids(self, messages: Messages) -> tuple[int, ...]:
        """Ids a language model continues with a reply: the template's generation prompt, one BOS if the model has one."""
        if self.tokenizer.chat_template is None:
            text = to_transcript(messages)
        else:
            text = self._without_bos(self._template(messages, generation=True))
        return (*self._front, *self._ids(text))

    def reply_ids(self, text: str, finished: bool) -> tuple[int, ...]:
        """Ids of a reply, closed by the end of turn if it is finished. Special tokens written in `text` stay plain text."""
        ids = tuple(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
        return (*ids, *self._end) if finished else ids

    def decode_reply(self, ids: Sequence[int]) -> str:
        """The text of a sampled reply: what comes before its end token, special tokens left out."""
        ends = [i for i, token in enumerate(ids) if token in self.end_ids]
        kept = list(ids[: ends[0]] if ends else ids)
        return str(self.tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def completion(self, messages: Messages, text: str, finished: bool = True) -> Encoded:
        """prompt_ids + reply_ids: what a language model is trained on."""
        prompt = self.prompt_ids(messages)
        return Encoded((*prompt, *self.reply_ids(text, finished)), len(prompt))

    def conversation(self, messages: Messages, text: str, finished: bool = True) -> Encoded:
        """The rendered conversation tokenised in one go, not yet cut to max_length: what a reward model reads."""
        return self.conversations([(messages, text, finished)])[0]

    def conversations(self, items: Sequence[tuple[Messages, str, bool]]) -> list[Encoded]:
        """`conversation` for many (messages, text, finished), tokenised in one batch."""
        if not items:
            return []
        texts = [self.render(*item) for item in items]
        batch = self.tokenizer(texts, return_offsets_mapping=True, verbose=False)
        rows = []
        for (messages, _, _), ids, offsets in zip(items, batch["input_ids"], batch["offset_mapping"], strict=True):
            boundary, front = len(self._frame(messages)[0]), len(self._front)
            in_prompt = front
            while in_prompt < len(ids) - len(self._back) and offsets[in_prompt][1] <= boundary:
                in_prompt += 1
            rows.append(Encoded(tuple(ids), in_prompt))
        return rows

    def rendered(self, text: str) -> Encoded:
        """A conversation that somebody has rendered already, tokenised as it is; no BOS is doubled."""
        ids = tuple(self.tokenizer(self._without_bos(text), verbose=False)["input_ids"])
        return Encoded(ids, len(ids))

    def closed(self, text: str) -> str:
        """A rendered conversation with its reply finished: pads and ends around it give way to the template's end."""
        pad, eos = self.tokenizer.pad_token, self.tokenizer.eos_token
        after = self._frame((Message(role="user", content="a"),))[1]
        while pad and text.startswith(pad):
            text = text.removeprefix(pad)
        ends = [end for end in (pad, eos, after, after.rstrip()) if end]
        while any(text.endswith(end) for end in ends):
            text = next(text.removesuffix(end) for end in ends if text.endswith(end))
        return text + after

    def fit(self, encoded: Encoded, over_long: OverLong) -> tuple[Encoded | None, Fit]:
        """Bring a conversation to max_length and say what that took.

        `truncate_left` removes tokens from the left of the prompt, special tokens at the front excepted; only when the
        reply alone is too long is the reply cut, from the left too (as the original does).

        Raises:
            InputError: it is too long and over_long is "raise".
        """
        surplus = len(encoded.ids) - self.max_length
        if surplus <= 0:
            return encoded, "whole"
        if over_long == "drop":
            return None, "dropped"
        if over_long == "raise":
            raise InputError(
                f"A conversation has {len(encoded.ids)} tokens, more than max_length = {self.max_length}",
                where=f"text beginning {self.tokenizer.decode(encoded.ids[:24])!r}",
                cure='raise max_length, or set over_long to "truncate_left" or "drop"',
            )
        front = min(len(self._front), encoded.prompt_length, self.max_length - 1)
        ids = encoded.ids[:front] + encoded.ids[front + surplus :]
        start = max(encoded.prompt_length - surplus, front)
        return Encoded(ids, start), "prompt_cut" if encoded.prompt_length - surplus >= front else "answer_cut"

    # ── what the tokenizer does by itself ────────────────────────────────────────────────────────────────────────────

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _added_specials(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Special ids that the tokenizer puts before and after any text, e.g. ((CLS,), (SEP,)) or ((BOS,), ())."""
        bare, full = self._ids("a"), tuple(self.tokenizer("a")["input_ids"])
        for start in range(len(full) - len(bare) + 1):
            if full[start : start + len(bare)] == bare:
                return full[:start], full[start + len(bare) :]
        raise InputError("The tokenizer changes a text when it adds special tokens", where=self._where, cure="use another one")

    def _find_end(self) -> tuple[int, ...]:
        """Ids of the end of a reply: the template's suffix up to its first special token, else the end token."""
        after = self._ids(self._frame((Message(role="user", content="a"),))[1])
        special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.added_tokens_decoder)
        for i, token in enumerate(after):
            if token in special:
                return after[: i + 1]
        end = self.tokenizer.eos_token_id if self.tokenizer.eos_token_id is not None else self.tokenizer.sep_token_id
        if end is None:
            raise InputError("The tokenizer has no end token", where=self._where, cure="set eos_token in tokenizer_config.json")
        return (int(end),)
