"""Rankings of others for training: split by conversation, read again as often as wanted, never all in memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from starling import imported
from starling.chat import split_of
from starling.nectar import to_nectar
from starling.records import RankedPrompt


@pytest.fixture
def file(tmp_path: Path, make_rankings: Callable[..., list[RankedPrompt]]) -> Path:
    rows: list[dict[str, Any]] = [to_nectar(row) for row in make_rankings(60)]
    rows += [{**rows[0], "answers": rows[1]["answers"]}, {**rows[2], "answers": rows[2]["answers"][:1], "num_responses": 1}]
    path = tmp_path / "rankings.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("folder", [False, True])
def test_both_sides(folder: bool, file: Path, tmp_path: Path) -> None:
    if folder:
        imported.import_file(file, tmp_path / "imported")
    train, held_out, outcomes = imported.load(tmp_path / "imported" if folder else file, 0.2)
    assert outcomes == {"rejected/fewer_than_2_answers": 1}
    for side, name in ((train, "train"), (held_out, "validation")):
        found = list(side)
        assert list(side) == found  # as often as wanted
        assert len(side) == len(found) > 0
        assert {split_of(row.prompt.messages, validation=0.2, test=0.0) for row in found} == {name}
        assert found[0] in side
    assert len(train) + len(held_out) == 61
    assert outcomes == {"rejected/fewer_than_2_answers": 1}  # reading again does not count again
    both = [row.prompt.id for side in (train, held_out) for row in side]
    assert len(set(both)) == 60  # the two rankings of one conversation are on one side
    assert not {row.prompt.id for row in train} & {row.prompt.id for row in held_out}
