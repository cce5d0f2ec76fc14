"""result.json: what is written is read back, and nothing else is taken for a result."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from starling.errors import InputError
from starling.evaluate import result_files
from starling.evaluate.result_files import RESULT_FILE, as_json, read_result, write_result
from starling.evaluate.results import Difference, JudgeFacts, ModelResult, Part, Result


def full() -> Result:
    """A result with every field set to something other than its default."""
    part = Part(score=7.25, ci=(6.9, 7.6), n=160, clusters=80)
    return Result(
        benchmark="mt-bench",
        title="MT-Bench",
        unit="points of 10",
        higher_is_better=True,
        models=(
            ModelResult(
                model="tuned ☆",
                overall=part,
                parts={"turn 1": part, "math": Part(score=None, ci=None, n=0, clusters=10)},
                outcomes={"ranked": 158, "unparsed": 2},
                more={"avg_length": 812.5, "nothing": None},
            ),
            ModelResult(model="base", overall=Part(score=6, ci=(5.5, 6.5), n=160, clusters=80)),
        ),
        differences=(Difference(first="tuned ☆", second="base", difference=1.25, ci=(0.5, 2.0), p=0.001, p_adjusted=0.001),),
        judge=JudgeFacts(
            judge="gpt-4", calls=320, outcomes={"ranked": 318, "unparsed": 2}, unparsed_share=2 / 320, position_gap=-0.04,
            position_gap_ci=(-0.1, 0.02), repeat_spread=0.08, repeats=3, human_agreement=0.66, human_agreement_ci=(0.6, 0.7),
            human_votes=500, prompt_tokens=320_000, completion_tokens=80_000, estimated=3, dollars=4.25, seconds=512.5,
        ),
        notes=("Two references are corrected.",),
        settings={"protocol": "starling", "repeats": 3, "models": ["tuned ☆", "base"]},
    )  # fmt: skip


def test_every_field_comes_back(tmp_path: Path) -> None:
    write_result(tmp_path / RESULT_FILE, full())
    assert read_result(tmp_path / RESULT_FILE) == full()
    assert read_result(tmp_path) == full(), "the folder will do"
    left_at_default = [
        f.name
        for one in (full(), full().models[0], full().judge)
        for f in dataclasses.fields(one)
        if f.default == getattr(one, f.name)
    ]
    assert left_at_default == ["higher_is_better"], "this test must set every field"


def test_the_smallest_result_comes_back(tmp_path: Path) -> None:
    one = ModelResult(model="m", overall=Part(score=None, ci=None, n=0, clusters=0))
    smallest = Result(benchmark="safety", title="Safety", unit="% of answers", higher_is_better=False, models=(one,))
    write_result(tmp_path / "r.json", smallest)
    assert read_result(tmp_path / "r.json") == smallest


def test_same_result_same_bytes_and_no_draft_left(tmp_path: Path) -> None:
    write_result(tmp_path / "a.json", full())
    write_result(tmp_path / "b.json", full())
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "b.json"]


def test_numpy_and_paths_become_plain(tmp_path: Path) -> None:
    part = Part(score=np.float32(0.5), ci=(np.float64(0.25), np.float64(0.75)), n=np.int64(4), clusters=4)  # type: ignore[arg-type]
    mixed = dataclasses.replace(
        full(), models=(ModelResult(model="m", overall=part),), differences=(), settings={"file": tmp_path}
    )
    write_result(tmp_path / "r.json", mixed)
    back = read_result(tmp_path / "r.json")
    assert back.models[0].overall == Part(score=0.5, ci=(0.25, 0.75), n=4, clusters=4)
    assert back.settings == {"file": str(tmp_path)}


def _of_one(result: Result, overall: Part) -> Result:
    return dataclasses.replace(result, models=(ModelResult(model="m", overall=overall),), differences=())


@pytest.mark.parametrize(
    "spoil",
    [
        lambda r: dataclasses.replace(r, models=(*r.models, r.models[0])),
        lambda r: dataclasses.replace(r, differences=(dataclasses.replace(r.differences[0], second="nobody"),)),
        lambda r: dataclasses.replace(r, differences=(dataclasses.replace(r.differences[0], p=1.5),)),
        lambda r: _of_one(r, Part(score=math.nan, ci=None, n=1, clusters=1)),
        lambda r: _of_one(r, Part(score=None, ci=(0, 1), n=0, clusters=0)),
        lambda r: _of_one(r, Part(score=1, ci=(2, 1), n=1, clusters=1)),
        lambda r: _of_one(r, Part(score=1, ci=None, n=-1, clusters=1)),
        lambda r: dataclasses.replace(r, judge=dataclasses.replace(r.judge, unparsed_share=1.01)),
        lambda r: dataclasses.replace(r, benchmark=""),
    ],
)
def test_a_contradiction_is_not_written(tmp_path: Path, spoil: Callable[[Result], Result]) -> None:
    write_result(tmp_path / "r.json", full())
    before = (tmp_path / "r.json").read_bytes()
    with pytest.raises(ValueError, match=r"the result of .* ?has|not JSON compliant"):
        write_result(tmp_path / "r.json", spoil(full()))
    assert (tmp_path / "r.json").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


def _set(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(tree: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        node: Any = tree
        for name in parents:
            node = node[int(name)] if name.isdigit() else node[name]
        if value is ...:
            del node[last]
        else:
            node[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_set(result_files.VERSION_KEY, ...), "no field 'starling_result'"),
        (_set(result_files.VERSION_KEY, 2), "its version is 2"),
        (_set(result_files.VERSION_KEY, True), "its version is True"),
        (_set("unit", ...), "unit"),
        (_set("models.0.overall", ...), "models.0.overall"),
        (_set("models.0.overall.score", "7.25"), "models.0.overall.score"),
        (_set("models.0.overall.n", 1.5), "models.0.overall.n"),
        (_set("models.0.overall.ci", [1.0]), "models.0.overall.ci"),
        (_set("models.0.overall.ci", [2.0, 1.0]), "ends before it begins"),
        (_set("models.0.overall.n", -1), "negative count"),
        (_set("models.0.parts.math.cy", 1), "models.0.parts.math.cy"),
        (_set("models.0.outcomes.ranked", -3), "negative count"),
        (_set("models.1.model", "tuned ☆"), "twice"),
        (_set("judge.humans", 3), "judge.humans"),
        (_set("judge.outcomes.ranked", None), "judge.outcomes.ranked"),
        (_set("surplus", 1), "surplus"),
        (_set("differences.0.first", "other"), "not both in its table"),
        (_set("higher_is_better", 1), "higher_is_better"),
    ],
)
def test_a_damaged_file_is_refused_by_field(tmp_path: Path, change: Callable[[dict[str, Any]], None], said: str) -> None:
    tree = json.loads(json.dumps(as_json(full())))
    change(tree)
    file = tmp_path / "r.json"
    file.write_text(json.dumps(tree), encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_result(file)
    assert said in str(caught.value)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b'{"model": "x", "results": []}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"starling_result": 1, "unit": NaN}',
    ],
)
def test_foreign_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "r.json").write_bytes(content)
    with pytest.raises(InputError, match="What to do"):
        read_result(tmp_path / "r.json")


def test_a_missing_file_and_an_empty_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(InputError, match="no result of a benchmark here"):
            read_result(path)
