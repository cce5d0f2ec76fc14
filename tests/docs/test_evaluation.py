"""docs/evaluation.md: valid settings, every benchmark in its table, and the judge's lines as they are printed."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from starling.cli.evaluate import evaluate_app
from starling.config import Config
from starling.evaluate import reading
from starling.evaluate.registry import BENCHMARKS, configured
from tests.evaluate.made_results import bench, model

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "evaluation.md").read_text(encoding="utf-8")


def test_the_example_is_valid_and_asks_for_one_benchmark() -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", PAGE, flags=re.DOTALL)
    config = Config.model_validate(tomllib.loads(block))
    assert [one.word for one in configured(config)] == ["mt-bench"]


def test_the_table_lists_every_benchmark_with_its_section() -> None:
    listed = dict(re.findall(r"^\| `([a-z-]+)` \| `\[evaluate\.(\w+)\]` \|", PAGE, flags=re.MULTILINE))
    assert listed == {one.word: one.section for one in BENCHMARKS.values()}


def test_the_lines_under_a_table_are_those_that_are_printed() -> None:
    printed = [name for name, _ in reading.judge_facts(bench(model("a", 7.0)))][1:]
    explained = re.findall(
        r"^\| ([a-z ]+) \|", PAGE.split("Under every table")[1].split("A benchmark that")[0], flags=re.MULTILINE
    )
    assert explained[1:] == printed


@pytest.mark.parametrize("word", ["run", "page", "compare"])
def test_the_commands_exist(word: str) -> None:
    assert word in {command.name for command in evaluate_app.registered_commands}
