"""The list of benchmarks: words, sections, code, and the results that a run has finished."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from starling import lineage
from starling.artifacts import new_artifact
from starling.config import EvaluateSection
from starling.config.benchmarks import JudgedSection
from starling.errors import InputError, UsageError
from starling.evaluate.registry import BENCHMARKS, benchmark, finished
from starling.evaluate.result_files import write_result
from tests.evaluate.made_results import bench, model


def test_every_section_is_a_benchmark_and_every_benchmark_has_one() -> None:
    sections = {name for name, info in EvaluateSection.model_fields.items() if "Section" in str(info.annotation)}
    assert sections == {one.section for one in BENCHMARKS.values()}
    for one in BENCHMARKS.values():
        assert one.word == one.section.replace("_", "-")
        assert find_spec(one.module) is not None
        assert callable(one.run())


def test_a_section_of_a_benchmark_is_no_part_of_the_chain_s_evaluation() -> None:
    assert lineage.SPEED["evaluate"] == {one.section for one in BENCHMARKS.values()}


def test_absent_sections_are_not_run() -> None:
    assert all(getattr(EvaluateSection(), one.section) is None for one in BENCHMARKS.values())
    assert JudgedSection().models == ()


def test_an_unknown_word_is_told_the_known_ones() -> None:
    with pytest.raises(UsageError, match="mt-bench, alpaca-eval, arena-hard, head-to-head, safety"):
        benchmark("mmlu")


def test_finished_results_come_in_the_registry_s_order(tmp_path: Path) -> None:
    from dataclasses import replace

    one = bench(model("a", 7.0))
    for word in ("safety", "mt-bench"):
        with new_artifact(tmp_path / "benchmarks", word, key="k", inputs={}, config={}) as draft:
            write_result(draft.path / "result.json", replace(one, benchmark=word))
    (tmp_path / "benchmarks" / "arena-hard").mkdir()
    assert [r.benchmark for r in finished(tmp_path)] == ["mt-bench", "safety"]
    assert finished(tmp_path / "other") == []
    with new_artifact(tmp_path / "benchmarks", "mt-bench", key="k", inputs={}, config={}) as draft:
        (draft.path / "result.json").write_text("{}")
    with pytest.raises(InputError, match=r"result\.json"):
        finished(tmp_path)
