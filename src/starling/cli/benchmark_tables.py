"""A benchmark's result at the terminal: every command that has one prints it here, always with the judge's noise under it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from starling.cli.common import print_table

if TYPE_CHECKING:
    from starling.evaluate.results import Part, Result

WIDE = 4
"""Models up to which parts are shown with their intervals."""


def print_result(result: Result) -> None:
    """The table of models, its parts, the paired differences, and what the judge is worth."""
    from starling.evaluate import reading

    way = "higher is better" if result.higher_is_better else "lower is better"
    print(f"{result.title}: {result.unit}, {way}\n")
    print_table(_model_rows(result))
    if any(m.parts for m in result.models):
        print()
        print_table(_part_rows(result))
    if result.differences:
        print()
        print_table(_difference_rows(result))
    print()
    facts = reading.judge_facts(result)
    width = max(len(name) for name, _ in facts)
    for name, said in facts:
        print(f"{name.ljust(width)}  {said}")
    for note in result.notes:
        print(f"note: {note}")


def _model_rows(result: Result) -> list[dict[str, Any]]:
    from starling.evaluate import reading

    places = reading.digits(result.unit)
    further = list(dict.fromkeys(name for m in result.models for name in m.more))
    various = any(set(m.outcomes) - {"ranked"} for m in result.models)
    return [
        {
            "model": m.model,
            "score": reading.score_text(m.overall.score, result.unit),
            "95 % interval": reading.interval_text(m.overall.ci, places),
            "n": m.overall.n,
            "prompts": m.overall.clusters,
            **{name.replace("_", " "): _plain(m.more.get(name)) for name in further},
            **({"outcomes": reading.outcomes_text(m.outcomes)} if various else {}),
        }
        for m in result.models
    ]


def _plain(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4g}"


def _part_rows(result: Result) -> Iterator[dict[str, Any]]:
    names = list(dict.fromkeys(name for m in result.models for name in m.parts))
    for name in names:
        yield {"part": name, **{m.model: _part_cell(m.parts.get(name), result) for m in result.models}}


def _part_cell(part: Part | None, result: Result) -> str:
    from starling.evaluate import reading

    if part is None:
        return ""
    bounds = reading.interval_text(part.ci, reading.digits(result.unit)) if len(result.models) <= WIDE else ""
    return reading.score_text(part.score, result.unit) + (f" ({bounds})" if bounds else "")


def _difference_rows(result: Result) -> Iterator[dict[str, Any]]:
    from starling.evaluate import reading

    places = reading.digits(result.unit)
    for one in result.differences:
        yield {
            "first": one.first,
            "second": one.second,
            "first − second": f"{one.difference:+.{places}f}",
            "95 % interval": f"{one.ci[0]:+.{places}f} to {one.ci[1]:+.{places}f}",
            "p": reading.p_text(one.p),
            "p adjusted": reading.p_text(one.p_adjusted),
            "": reading.verdict_text(one, result),
        }
