"""The fuzzing of benchmarks/fuzz_verdict.py at a small scale, and that it would find what it looks for."""

from __future__ import annotations

import pytest

from benchmarks import fuzz_verdict
from starling.judge.verdict import Grammar, Verdict


@pytest.mark.parametrize("grammar", list(Grammar))
def test_no_input_breaks_the_parser_or_passes_for_a_ranking(grammar: Grammar) -> None:
    found, _ = fuzz_verdict.fuzz(2_500, seed=1, grammar=grammar)
    assert found.total() == 2_500
    # Both ways are gone often enough for the check to mean something.
    assert found["ranked"] > 250
    assert found.total() - found["ranked"] > 500
    assert len(found) >= 4


def test_a_parser_that_repairs_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A repeated letter let through, the mistake of the original parser."""
    monkeypatch.setattr(fuzz_verdict, "parse", lambda text, k, grammar: Verdict((0,) * k, None, ()))
    with pytest.raises(AssertionError):
        fuzz_verdict.fuzz(10, seed=1, grammar=Grammar.nectar_public)


def test_inputs_are_the_same_for_the_same_seed() -> None:
    first, again, other = (list(fuzz_verdict.inputs(200, seed, Grammar.starling_1)) for seed in (3, 3, 4))
    assert first == again != other
