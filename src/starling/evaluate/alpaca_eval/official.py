"""The official protocol: a user's copy of an official prompt, the hashed single order, and the official readings of the reply.

    version 2   alpaca_eval_clf.txt: one token, its five likeliest alternatives; preference = 2 − p(m) / (p(m) + p(M))
    version 1   alpaca_eval.txt: a Python list of both models with their ranks

Source: alpaca_eval 0.6.6, `completion_parsers`, `utils.make_prompts` and `utils.prompt_to_chatml`; the swap of the two answers is
`files.shown_first`. Departures: the official code fills the texts in one after the other and then cuts the whole into turns, so
an answer that says {output_2} or <|im_start|> changes the prompt; here the prompt is cut first and filled in once. A reply that
cannot be read is a named outcome (officially the row vanishes from the mean).
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from starling.endpoint import Reply
from starling.errors import InputError
from starling.evaluate.alpaca_eval.files import shown_first
from starling.judge.calls import failure_of
from starling.records import Message, Messages, Outcome, Sampling

START, END = "<|im_start|>", "<|im_end|>"
FIELDS = ("instruction", "output_1", "output_2")
SAMPLING = {2: Sampling(temperature=1.0, max_tokens=1, top_logprobs=5), 1: Sampling(temperature=0.0, max_tokens=100)}
"""How the official annotators ask, by version (weighted_alpaca_eval_gpt4_turbo, alpaca_eval_gpt4)."""
LONGEST_RANKING = 10_000
"""Characters beyond which a reply is no ranking of two models, whatever it is."""
_FIELD = re.compile(r"\{(instruction|output_1|output_2)\}")
_Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Template:
    """A prompt with places for the instruction and both answers."""

    turns: tuple[tuple[_Role, str], ...]

    def fill(self, texts: Mapping[str, str]) -> Messages:
        """The turns with the texts in their places; what stands in a text is never looked at."""
        return tuple(
            Message(role=role, content=_FIELD.sub(lambda found: texts[found.group(1)], content).strip())
            for role, content in self.turns
        )


def read_template(path: Path) -> Template:
    """An official prompt file: turns between <|im_start|>role and <|im_end|>, with {instruction}, {output_1} and {output_2}.

    Raises:
        InputError: unreadable, not made of such turns, or a place is missing or comes twice.
    """
    try:
        text = path.read_text("utf-8-sig").strip()
    except (OSError, ValueError) as error:
        raise InputError(f"The prompt file cannot be read: {error}", where=str(path), cure="give a UTF-8 text file") from None
    turns = []
    for part in text.split(START)[1:]:
        role, _, rest = part.partition("\n")
        content, mark, _ = rest.partition(END)
        if role.strip() not in ("system", "user", "assistant") or not mark:
            raise InputError(
                f"A turn of the prompt is none: it begins {part[:40]!r}",
                where=str(path),
                cure=f"write each turn as {START}system or user, a line break, the text, {END}",
            )
        turns.append((cast(_Role, role.strip()), content.strip()))
    if not text.startswith(START) or not turns or turns[-1][0] != "user":
        raise InputError(
            f"The prompt does not begin with {START} or does not end with a user's turn",
            where=str(path),
            cure="give an official prompt for chat models, e.g. alpaca_eval_clf.txt",
        )
    found = [name for _, content in turns for name in _FIELD.findall(content)]
    for name in FIELDS:
        if found.count(name) != 1:
            raise InputError(
                f"The prompt has {{{name}}} {found.count(name)} times",
                where=str(path),
                cure="each of the three places comes once",
            )
    return Template(tuple(turns))


def ask(template: Template, instruction: str, baseline: str, candidate: str) -> Messages:
    """The question about two answers, in the official order for this instruction."""
    first, second = (candidate, baseline) if shown_first(instruction) else (baseline, candidate)
    return template.fill({"instruction": instruction, "output_1": first, "output_2": second})


@dataclass(frozen=True)
class Read:
    """What a reply says. Law: `preference` is None ⇔ the outcome is not ranked."""

    preference: float | None
    """1 = the baseline's answer is better, 2 = the candidate's, whichever was shown first."""
    outcome: Outcome
    raw: Any
    """The reply as the official file keeps it."""


def read(reply: Reply, instruction: str, version: int) -> Read:
    """The preference in a reply to `ask`."""
    likely = [{"token": token, "logprob": value} for token, value in reply.first_token]
    raw = {"logprobs": {"content": [{"top_logprobs": likely}]}, "text": reply.text} if version == 2 else reply.text
    if failed := failure_of(reply):
        return Read(None, failed[0], reply.error or raw)
    found = token_preference(dict(reply.first_token)) if version == 2 else ranked_first(reply.text)
    if found is None:
        return Read(None, Outcome.unparsed, raw)
    return Read(3 - found if shown_first(instruction) else found, Outcome.ranked, raw)


def token_preference(logprobs: Mapping[str, float]) -> float | None:
    """1 … 2 for the second answer, from the first token's log-probabilities; None when neither name is among them.

    >>> round(token_preference({"m": math.log(0.2), "M": math.log(0.6), "The": math.log(0.1)}), 6)
    1.75
    """
    known = {name: logprobs[name] for name in ("m", "M") if name in logprobs}
    if not known:
        return None
    highest = max(known.values())
    chances = {name: math.exp(value - highest) for name, value in known.items()}
    return 2 - chances.get("m", 0.0) / sum(chances.values())


def ranked_first(text: str) -> int | None:
    """The rank of model_1, 1 or 2, which is the number of the better answer; None when the text is no such ranking.

    >>> ranked_first("[{'model': 'model_1', 'rank': 2}, {'model': 'model_2', 'rank': 1}]")
    2
    """
    if len(text) > LONGEST_RANKING:
        return None
    try:
        rows = ast.literal_eval(text.strip())
        rank = next(row["rank"] for row in rows if row["model"] == "model_1")
    except (ValueError, SyntaxError, TypeError, KeyError, IndexError, StopIteration, RecursionError, MemoryError):
        return None
    return rank if rank in (1, 2) and isinstance(rank, int) and not isinstance(rank, bool) else None
