"""Errors: one paragraph in three parts, the exit codes, one tree."""

from __future__ import annotations

import pytest

from starling import errors
from starling.errors import BudgetError, ConfigError, EndpointError, InputError, MissingExtra, StarlingError, UsageError


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("It broke", "It broke."),
        ("It broke.", "It broke."),
        ("Did you mean 'x'?", "Did you mean 'x'?"),
        ("It broke …", "It broke …"),
        ("two\n lines ", "two lines."),
    ],
)
def test_a_message_is_one_paragraph_in_three_parts(what: str, told: str) -> None:
    error = InputError(what, where="line 3", cure="mend it.")
    assert str(error) == f"{told} Where: line 3. What to do: mend it."
    assert (error.what, error.where, error.cure) == (what, "line 3", "mend it.")


def test_exit_codes() -> None:
    assert ConfigError("x", where="y", cure="z").exit_code == 2
    assert BudgetError("x", where="y", cure="z").exit_code == 1


def test_every_error_is_in_the_tree_drawn_in_the_docstring() -> None:
    classes = [c for c in vars(errors).values() if isinstance(c, type)]
    assert all(issubclass(c, StarlingError) for c in classes)
    assert errors.__doc__ is not None
    for cls in classes:
        assert cls.__name__ in errors.__doc__
        if cls is not StarlingError:
            assert cls.__doc__
    assert issubclass(ConfigError, UsageError)
    assert issubclass(BudgetError, EndpointError)


def test_a_missing_extra_says_what_to_install() -> None:
    assert 'pip install "starling-rlaif[train]"' in str(MissingExtra("train", "torch"))
