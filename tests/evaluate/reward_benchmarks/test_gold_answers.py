"""Graded answers: reading, the numbers, a second reward model as the truth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from starling.errors import InputError
from starling.evaluate.reward_benchmarks import gold_answers
from starling.evaluate.reward_benchmarks.items import Item, Reading, Scored

ROWS: list[dict[str, Any]] = [
    {"id": 1, "prompt": "a", "answers": [{"answer": "x", "gold": 0, "score": 0.1}, {"answer": "yy", "gold": 2.5, "score": 0.9}]},
    {"id": 2, "prompt": "b", "answers": [{"answer": "xx", "gold": 1, "score": 0.5}, {"answer": "y", "gold": 3, "score": 0.2}]},
]


def read(path: Path, rows: list[Any]) -> tuple[list[tuple[Item, tuple[float, ...] | None]], dict[str, int]]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    reading = Reading()
    return list(gold_answers.read(path, reading)), dict(reading.left_out)


def test_from_file_to_numbers(tmp_path: Path) -> None:
    items, left_out = read(tmp_path / "g.jsonl", ROWS)
    assert left_out == {}
    assert [(item.truth, scores) for item, scores in items] == [((0.0, 2.5), (0.1, 0.9)), ((1.0, 3.0), (0.5, 0.2))]
    found = gold_answers.measure([Scored(item, scores) for item, scores in items if scores], 100, 0)
    assert found["accuracy"] == 0.5
    assert found["baselines"] == {"chance": 0.5, "longest": 0.5, "shortest": 0.5, "most_distinct_words": 0.5}
    assert [row["truth"] for row in found["best_of_n"]["n"]] == pytest.approx([(1.25 + 2) / 2, (2.5 + 1) / 2])
    assert [row["oracle"] for row in found["best_of_n"]["n"]] == pytest.approx([(1.25 + 2) / 2, (2.5 + 3) / 2])


def test_rows_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    good = ROWS[0]["answers"]
    rows = [
        ROWS[0], {"id": 3, "prompt": "c", "answers": good[:1]}, {"id": 4, "prompt": "c", "answers": [*good, {"answer": "z"}]},
        {"id": 5, "prompt": "c", "answers": [{"answer": "x", "gold": 1}] * 2}, {"id": 6, "prompt": "", "answers": good},
        {"id": 7, "prompt": "c", "answers": [{"answer": 3, "gold": 1}, {"answer": "z", "gold": 2}]},
    ]  # fmt: skip
    items, left_out = read(tmp_path / "g.jsonl", rows)
    assert len(items) == 1
    assert sum(left_out.values()) == 5
    assert {"answers_missing", "all_equal", "answer_not_text", "score_not_finite"} <= set(left_out)
    with pytest.raises(InputError, match="no usable row"):
        read(tmp_path / "h.jsonl", rows[1:])
    assert gold_answers.measure([], 10, 0)["accuracy"] is None


def scored(name: str, scores: tuple[float, ...], answers: tuple[str, ...] = ("x", "y")) -> Scored:
    truth = tuple(float(k) for k in range(len(answers)))
    return Scored(Item(id=name, cluster=name, subset="", messages=(), answers=answers, truth=truth), scores)


def test_a_second_model_as_the_truth() -> None:
    proxy = [scored("1", (0.2, 0.1)), scored("2", (0.2, 0.1)), scored("3", (0.2, 0.1)), scored("4", (0.2, 0.1))]
    gold = [
        scored("2", (5.0, 7.0)),
        scored("1", (9.0, 7.0)),
        scored("3", (1.0, 2.0), ("x", "other")),
        scored("4", (1.0, 1.0)),
        scored("9", (1.0, 2.0)),
    ]
    reading = Reading()
    found = gold_answers.with_gold(proxy, gold, reading)
    assert [(one.item.id, one.item.truth, one.scores) for one in found] == [
        ("1", (9.0, 7.0), (0.2, 0.1)), ("2", (5.0, 7.0), (0.2, 0.1)),
    ]  # fmt: skip
    assert reading.left_out == {"other_answers": 1, "all_equal": 1, "no_proxy": 1}
    reading = Reading()
    assert [one.item.id for one in gold_answers.with_gold(proxy, gold[:1], reading)] == ["2"]
    assert reading.left_out["no_gold"] == 3
