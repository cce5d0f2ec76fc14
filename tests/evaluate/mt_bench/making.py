"""Small files in FastChat's formats, for the tests of MT-Bench."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

CATEGORIES = {81: "writing", 101: "reasoning", 141: "stem"}


def write(path: Path, rows: Iterable[dict[str, Any] | str]) -> Path:
    """jsonl; a text stands there as it is."""
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.name.endswith(".gz") else text.encode())
    return path


def question(number: int, category: str = "", turns: int = 2, **more: Any) -> dict[str, Any]:
    said = [f"question {number}, turn {turn}?" for turn in range(1, turns + 1)]
    return {"question_id": number, "category": category or CATEGORIES[number], "turns": said, **more}


def questions() -> list[dict[str, Any]]:
    return [question(number) for number in CATEGORIES]


def answer(number: int, model: str, *turns: str) -> dict[str, Any]:
    return {
        "question_id": number,
        "answer_id": "x",
        "model_id": model,
        "choices": [{"index": 0, "turns": list(turns)}],
        "tstamp": 1.0,
    }


def single(number: Any, turn: Any, score: Any, model: str = "m", **more: Any) -> dict[str, Any]:
    row = {
        "question_id": number, "model": model, "judge": ["gpt-4", "single-v1"], "user_prompt": f"{model} {number} {turn}",
        "judgment": f"Rating: [[{score}]]", "score": score, "turn": turn, "tstamp": float(next(_CLOCK)),
    }  # fmt: skip
    return row | more


def pair(number: int, turn: int, g1: str, g2: str, models: tuple[str, str] = ("m", "n"), **more: Any) -> dict[str, Any]:
    row = {
        "question_id": number, "model_1": models[0], "model_2": models[1], "g1_winner": g1, "g2_winner": g2,
        "judge": ["gpt-4", "pair-v2"], "g1_user_prompt": "p1", "g1_judgment": "j1", "g2_user_prompt": "p2", "g2_judgment": "j2",
        "turn": turn, "tstamp": float(next(_CLOCK)),
    }  # fmt: skip
    return row | more


_CLOCK = iter(range(10**6))
