"""A user's own copy of Arena-Hard's judge prompt: read from a file, filled in with one pair of answers.

The file is TOML or JSON: `prompt_template` with {QUESTION}, {ANSWER_A}, {ANSWER_B} (arena-hard-v2.0.yaml's), and `system_prompt`,
one text or one per category (utils/judge_utils.py's). As by the original's str.format, all three are put in at once: an answer
that contains "{ANSWER_B}" stays as it is. Departure: other fields in braces are left alone.
"""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from starling.errors import InputError
from starling.records import Message, Messages

_FIELD = re.compile(r"\{\{|\}\}|\{(QUESTION|ANSWER_A|ANSWER_B)\}")


@dataclass(frozen=True)
class JudgePrompt:
    """What the judge is sent."""

    template: str
    systems: dict[str, str]
    """By category; "" for all others."""

    def messages(self, category: str, question: str, answer_a: str, answer_b: str) -> Messages:
        """The conversation about one pair.

        Raises:
            InputError: there is no system prompt for the category.
        """
        system = self.systems.get(category, self.systems.get(""))
        if system is None:
            raise InputError(
                f"The judge prompt has no system_prompt for the category '{category}'",
                where="evaluate.arena_hard.prompt_file",
                cure="add it, or give one text as system_prompt",
            )
        values = {"QUESTION": question, "ANSWER_A": answer_a, "ANSWER_B": answer_b}
        filled = _FIELD.sub(lambda found: values[found[1]] if found[1] else found[0][0], self.template)
        return (Message(role="system", content=system), Message(role="user", content=filled))


def read_judge_prompt(path: Path) -> JudgePrompt:
    """The prompt of a file.

    Raises:
        InputError: it cannot be read, or lacks a part; says which.
    """
    cure = "give prompt_template with {QUESTION}, {ANSWER_A} and {ANSWER_B}, and system_prompt, in TOML or JSON"
    try:
        text = path.read_bytes().decode("utf-8-sig")
        data = json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise InputError(f"The judge prompt cannot be read: {error}", where=str(path), cure=cure) from None
    template, system = (data.get(n) for n in ("prompt_template", "system_prompt")) if isinstance(data, dict) else (None, None)
    systems = {"": system} if isinstance(system, str) else system
    if not isinstance(template, str) or not isinstance(systems, dict) or not all(isinstance(s, str) for s in systems.values()):
        raise InputError("The judge prompt lacks its template or its system prompt", where=str(path), cure=cure)
    missing = {"QUESTION", "ANSWER_A", "ANSWER_B"} - {m[1] for m in _FIELD.finditer(template)}
    if missing:
        raise InputError(f"The template has no place for {', '.join(sorted(missing))}", where=str(path), cure=cure)
    return JudgePrompt(template, systems)
