"""The style of both answers of a battle, from FastChat's `conv_metadata`, or counted in the conversations where it is absent.

The metadata holds counts over all the model's turns: tokens of OpenAI's tokenizer, and headers, list items and bold passages by
kind, which are added up. What is counted here: `style_counts`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starling.ratings.style_counts import counts

Counts = tuple[float, float, float, float]
"""Length, headers, lists, bold: the order of STYLE_FEATURES."""
UNKNOWN: Counts = (float("nan"),) * 4


def of_conversation(turns: Any) -> Counts:
    """The counts of the assistant's turns of [{role, content}, …]; UNKNOWN where there are none."""
    if not isinstance(turns, list | tuple):
        return UNKNOWN
    answers = [_text(turn.get("content")) for turn in turns if isinstance(turn, Mapping) and turn.get("role") == "assistant"]
    if not answers:
        return UNKNOWN
    length, headers, lists, bold = counts("\n".join(answers))
    return float(length), float(headers), float(lists), float(bold)


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
