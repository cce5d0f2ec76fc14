"""docs/mt-bench.md says what the code does."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from starling import cli
from starling.evaluate.mt_bench import files, official, singles
from starling.evaluate.mt_bench.judged import NO_ANSWER
from starling.records import Outcome

PAGE = (Path(__file__).parents[3] / "docs" / "mt-bench.md").read_text(encoding="utf-8")
DATA = Path(os.environ.get("STARLING_DATA", "../shared/data")) / "mt_bench"


def test_every_outcome_is_explained_and_no_other() -> None:
    table = PAGE.split("| outcome | meaning |")[1].split("\n\n")[0]
    named = {word for cell in re.findall(r"^\| ([^|]+) \|", table, flags=re.MULTILINE) for word in re.findall(r"`(\w+)`", cell)}
    ours = {singles.OTHER_ANSWER, singles.COPIED, singles.OUT_OF_RANGE, singles.MISSING, NO_ANSWER}
    assert named == {o.value for o in Outcome} | ours


def test_every_problem_of_a_row_is_named() -> None:
    source = Path(files.__file__).read_text(encoding="utf-8").split("def _problem")[1].split("\ndef ")[0]
    problems = set(re.findall(r'"([a-z]+(?:_[a-z]+)+)" if|return "([a-z_]+)"|else "([a-z_]+)"', source))
    words = {word for found in problems for word in found if word}
    assert len(words) >= 7
    assert words <= set(re.findall(r"`(\w+)`", PAGE))


def test_the_wrong_references_are_listed() -> None:
    listed = PAGE.split("questions 104")[1].split("`corrections`")[0]
    assert {104, *map(int, re.findall(r"\b1\d\d\b", listed))} == official.WRONG_REFERENCES


def test_the_output_shown_is_what_the_command_prints(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    if not DATA.exists():
        pytest.skip(f"the public data is not at {DATA}; set STARLING_DATA")
    shown = re.search(r"```text\n\$ starling (.*?)\n(.*?)```", PAGE, flags=re.DOTALL)
    assert shown is not None
    monkeypatch.chdir(DATA)
    assert cli.call(shown[1].split()) == 0
    assert capsys.readouterr().out == shown[2]
