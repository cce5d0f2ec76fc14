"""Checks by patterns: what passes, what the file may hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from starling.config import SelectionSection
from starling.errors import InputError
from starling.policy.checks import Check, checks_of, measure_checks, read_checks

HELLO = {"messages": [{"role": "user", "content": "Say hello in capitals."}], "expect": "HELLO", "forbid": "[a-z]"}


def written(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def check(**patterns: Any) -> Check:
    return Check.model_validate({"messages": HELLO["messages"], **patterns})


@pytest.mark.parametrize(
    ("text", "passes"),
    [("HELLO!", True), ("HELLO, you", False), ("hello", False), ("", False), ("WHY, HELLO", True)],
)
def test_every_expected_pattern_is_found_and_no_forbidden_one(text: str, passes: bool) -> None:
    assert check(expect="HELLO", forbid="[a-z]").passes(text) is passes


def test_lists_of_patterns() -> None:
    both = check(expect=["cat", "(?i)dog"], forbid=["cow", "hen"])
    assert both.passes("a cat and a Dog")
    assert not both.passes("a cat")
    assert not both.passes("a cat, a dog, a hen")
    assert check(forbid="x").passes("")


def test_the_share_that_passes() -> None:
    checks = [check(expect="a")] * 4
    assert measure_checks(["a", "a", "a", "b"], checks) == {"check": 0.75, "check_se": pytest.approx(0.25)}  # √(3/16·4/3) / 2
    assert measure_checks(["b"], checks[:1]) == {"check": 0.0}
    assert measure_checks([], []) == {}
    with pytest.raises(ValueError, match="zip"):
        measure_checks(["a"], checks)


def test_a_file_of_them(tmp_path: Path) -> None:
    path = written(tmp_path / "checks.jsonl", HELLO, {"messages": HELLO["messages"], "forbid": ["x", "y"]})
    found = checks_of(SelectionSection(checks=path))
    assert [(c.expect, c.forbid) for c in found] == [(("HELLO",), ("[a-z]",)), ((), ("x", "y"))]
    assert found[0].prompt.messages[-1].content == "Say hello in capitals."
    assert checks_of(SelectionSection()) == []


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"messages": HELLO["messages"]}, "a check needs expect or forbid"),
        (HELLO | {"expect": "("}, r"expect\.0: '\(' is no regular expression"),
        (HELLO | {"messages": []}, "a prompt must end with a user turn"),
        (HELLO | {"messages": [{"role": "assistant", "content": "x"}]}, "a prompt must end with a user turn"),
        (HELLO | {"want": "x"}, "want: Extra inputs"),
        ({"expect": "x"}, "messages: Field required"),
        ([], "not_an_object"),
    ],
)
def test_a_row_that_is_no_check_is_named(row: Any, says: str, tmp_path: Path) -> None:
    path = written(tmp_path / "checks.jsonl", HELLO, row)
    with pytest.raises(InputError, match=rf"{says}.*checks\.jsonl, row 2"):
        read_checks(path)


def test_a_file_without_checks_or_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no checks in the file"):
        read_checks(written(tmp_path / "empty.jsonl"))
    with pytest.raises(InputError, match="does not exist"):
        read_checks(tmp_path / "none.jsonl")
