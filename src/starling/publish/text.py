"""Pieces of a card: front matter, tables, numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any


def front_matter(values: Mapping[str, Any]) -> str:
    """YAML front matter of a card; empty values are left out."""
    lines = [
        f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in values.items() if value not in ("", None, [], {})
    ]
    return "\n".join(["---", *lines, "---", ""])


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; bars and line breaks in cells are escaped. Columns of numbers stand to the right."""
    cells = [[_cell(c).replace("|", "\\|").replace("\n", " ") for c in row] for row in rows]
    numeric = [bool(rows) and all(isinstance(row[i], int | float) for row in rows) for i in range(len(head))]
    lines = [head, ["---:" if right else "---" for right in numeric], *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int | float) else str(value)


def share(part: float, whole: float) -> str:
    """A share in per cent, e.g. "12.5 %"."""
    return f"{100 * part / whole:.1f} %" if whole else ""


def settings_table(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Settings as (dotted name, value) rows."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows += settings_table(value, f"{prefix}{key}.")
        else:
            rows.append((f"`{prefix}{key}`", f"`{json.dumps(value, ensure_ascii=False)}`"))
    return rows


def number(value: float | None, digits: int = 3) -> str:
    return "not measured" if value is None else f"{value:.{digits}f}"


def with_interval(value: float | None, bounds: Sequence[float] | None) -> str:
    return number(value) if bounds is None else f"{number(value)} ({bounds[0]:.3f} to {bounds[1]:.3f})"
