"""Style of an answer in numbers: its length, headers, list items and bold passages.

The counts are those of FastChat's battle logs (`conv_metadata`, made by its `add_markdown_info`): over all the model's turns,
code blocks left out of the markdown counts. The length there is tokens of OpenAI's tokenizer. Here it is estimated at four
characters each, as everywhere in Starling; style features compare two answers, so that the unit falls out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_CODE = re.compile(r"```[^`]*```")
_HEADER = re.compile(r"^#{1,6}\s", re.MULTILINE)
_ITEM = re.compile(r"^\s*(?:\d+\.|[-*+])\s", re.MULTILINE)
_BOLD = re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__")

Counts = tuple[float, float, float, float]
"""Length, headers, lists, bold: the order of STYLE_FEATURES."""
UNKNOWN: Counts = (float("nan"),) * 4


def count(answer: str) -> Counts:
    """The counts of one answer's text.

    >>> count("# Fruit\\n- **apples**\\n- pears\\n")
    (7.25, 1.0, 2.0, 1.0)
    """
    plain = _CODE.sub("", answer)
    return len(answer) / 4, *(float(len(pattern.findall(plain))) for pattern in (_HEADER, _ITEM, _BOLD))  # type: ignore[return-value]


def of_conversation(turns: Any) -> Counts:
    """The counts of the assistant's turns of [{role, content}, …]; UNKNOWN where there are none."""
    if not isinstance(turns, list | tuple):
        return UNKNOWN
    answers = [_text(turn.get("content")) for turn in turns if isinstance(turn, Mapping) and turn.get("role") == "assistant"]
    return count("\n".join(answers)) if answers else UNKNOWN


def _text(content: Any) -> str:
    """A turn's text; of a turn with images, [text, images], its text."""
    if isinstance(content, list | tuple):
        content = content[0] if content else ""
    return content if isinstance(content, str) else ""


def of_metadata(found: Any, side: str) -> Counts:
    """The counts in FastChat's `conv_metadata` for the side "a" or "b"; UNKNOWN where one is missing."""
    if not isinstance(found, Mapping):
        return UNKNOWN
    values = [_total(found.get(name)) for name in metadata_names(side)]
    return UNKNOWN if None in values else tuple(values)  # type: ignore[return-value]


def metadata_names(side: str) -> tuple[str, str, str, str]:
    """The fields of `conv_metadata` in the order of STYLE_FEATURES."""
    return f"sum_assistant_{side}_tokens", f"header_count_{side}", f"list_count_{side}", f"bold_count_{side}"


def _total(value: Any) -> float | None:
    """A count, or the sum of counts by kind, {"h1": 2, "h2": 5}."""
    if isinstance(value, Mapping):
        parts = [_total(part) for part in value.values() if part is not None]
        return None if None in parts else sum(part for part in parts if part is not None)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
