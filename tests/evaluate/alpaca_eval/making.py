"""Annotations and outputs for the tests of AlpacaEval, small and made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def annotation(i: int, preference: Any = 1.25, **changes: Any) -> Row:
    """The i-th row: the candidate's answer has i + 1 characters, the baseline's 10."""
    row: Row = {
        "instruction": f"instruction {i}", "output_1": "b" * 10, "generator_1": "base", "dataset": "koala",
        "output_2": "c" * (i + 1), "generator_2": "cand", "annotator": "ann", "preference": preference,
        "price_per_example": 0.01, "time_per_example": 2.0, "raw_completion": None,
    }  # fmt: skip
    return row | changes


def write(folder: Path, name: str, value: Any) -> Path:
    """A file of JSON, or of the text."""
    path = folder / name
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path
