"""Questions whose answers a pattern can tell right from wrong, asked at every evaluation: what a tuning must not unlearn.

Source: the idea of IFEval (Zhou et al. 2023, arXiv 2311.07911), by which Starling's authors threw checkpoints out: instructions
whose keeping a program can verify. Here the verifying is by regular expressions, so that a file of a user's own is enough:

    {"messages": [{"role": "user", "content": "Say hello in capitals."}], "expect": "HELLO", "forbid": "[a-z]"}

A reply passes when every pattern of `expect` is found in it and none of `forbid` (each one pattern or a list, Python's `re`, case
matters unless the pattern says (?i)). The share that passes is `eval/check` in the log (`policy.selection.check`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from starling.config import SelectionSection
from starling.errors import InputError
from starling.policy.guard import standard_error
from starling.records import Messages, Prompt, Record
from starling.rows import read_rows


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"{text!r} is no regular expression: {error}") from None
    return text


Pattern = Annotated[str, BeforeValidator(_pattern)]
Patterns = Annotated[tuple[Pattern, ...], BeforeValidator(lambda given: (given,) if isinstance(given, str) else given)]


class Check(Record):
    """One question and what its answer must and must not hold."""

    messages: Messages = Field(description="The conversation; it ends with a user turn.")
    expect: Patterns = Field(default=(), description="Every one of these patterns must be found in the reply.")
    forbid: Patterns = Field(default=(), description="None of these may be found.")

    @model_validator(mode="after")
    def _asks_something(self) -> Check:
        if not self.expect and not self.forbid:
            raise ValueError("a check needs expect or forbid")
        Prompt.make(self.messages, ("check",))  # it must end with a user turn
        return self

    @property
    def prompt(self) -> Prompt:
        """What the policy is asked."""
        return Prompt.make(self.messages, ("check",))

    def passes(self, text: str) -> bool:
        """Whether a reply is right."""
        return all(re.search(p, text) for p in self.expect) and not any(re.search(p, text) for p in self.forbid)


def checks_of(settings: SelectionSection) -> list[Check]:
    """The checks of `policy.selection.checks`; none when it is not set."""
    return read_checks(settings.checks) if settings.checks is not None else []


def read_checks(path: Path) -> list[Check]:
    """All checks of a file with one per row.

    Raises:
        InputError: the file cannot be read, is empty, or a row is no check; with its number.
    """
    found = []
    for row in read_rows(path):
        if row.value is None:
            raise _refused(path, row.number, row.problem)
        try:
            found.append(Check.model_validate(row.value))
        except ValidationError as error:
            first: Any = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            said = first["msg"].removeprefix("Value error, ")
            raise _refused(path, row.number, f"{field}: {said}" if field else said) from None
    if not found:
        raise InputError("There are no checks in the file", where=str(path), cure="write one per line, or unset the setting")
    return found


def _refused(path: Path, number: int, why: str) -> InputError:
    return InputError(
        f"A row is no check: {why}",
        where=f"{path}, row {number}",
        cure="give messages that end with a user turn, and expect or forbid with regular expressions",
    )


def measure_checks(texts: Sequence[str], checks: Sequence[Check]) -> dict[str, float]:
    """The share of checks that replies pass.

    Args:
        texts: one reply per check, in order. Greedy ones move least from one evaluation to the next.
        checks: the checks.

    Returns:
        check, and check_se (over checks) where there are two or more; nothing without checks.
    """
    passed = [float(check.passes(text)) for text, check in zip(texts, checks, strict=True)]
    if not passed:
        return {}
    error = standard_error(passed, range(len(passed)))
    return {"check": sum(passed) / len(passed), **({"check_se": error} if error is not None else {})}
