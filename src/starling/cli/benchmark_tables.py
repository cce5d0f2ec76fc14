"""A benchmark's result at the terminal: every command that has one prints it here, always with the judge's noise under it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from starling.cli.common import print_table

if TYPE_CHECKING:
    from starling.evaluate.comparison import Table
    from starling.evaluate.results import Difference, Part, Result

WIDE = 4
"""Models up to which parts are shown with their intervals."""
MOST_PARTS = 12
"""Models in the table of parts: the best."""
MOST_DIFFERENCES = 30
"""Rows of the table of differences: beyond that, those of the best model."""


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
        if (left := len(result.differences) - len(_shown(result))) > 0:
            print(f"… and {left:,} further differences: --json or the page")
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
    models = result.models[:MOST_PARTS]
    for name in dict.fromkeys(name for m in models for name in m.parts):
        yield {"part": name, **{m.model: _part_cell(m.parts.get(name), result) for m in models}}


def _part_cell(part: Part | None, result: Result) -> str:
    from starling.evaluate import reading

    if part is None:
        return ""
    bounds = reading.interval_text(part.ci, reading.digits(result.unit)) if len(result.models) <= WIDE else ""
    return reading.score_text(part.score, result.unit) + (f" ({bounds})" if bounds else "")


def _shown(result: Result) -> Sequence[Difference]:
    """All differences, or those of the best model where they are many."""
    if len(result.differences) <= MOST_DIFFERENCES:
        return result.differences
    best = result.models[0].model
    return [one for one in result.differences if best in (one.first, one.second)][:MOST_DIFFERENCES]


def _difference_rows(result: Result) -> Iterator[dict[str, Any]]:
    from starling.evaluate import reading

    places = reading.digits(result.unit)
    for one in _shown(result):
        yield {
            "first": one.first,
            "second": one.second,
            "first − second": f"{one.difference:+.{places}f}",
            "95 % interval": f"{one.ci[0]:+.{places}f} to {one.ci[1]:+.{places}f}",
            "p": reading.p_text(one.p),
            "p adjusted": reading.p_text(one.p_adjusted),
            "": reading.verdict_text(one, result),
        }


# ── several runs ─────────────────────────────────────────────────────────────────────────────────────────────────────


def print_comparison(tables: Sequence[Table]) -> None:
    """Models of several runs by benchmark, each with its judge's noise, and every difference with what follows from it."""
    from starling.evaluate import comparison, reading

    for number, table in enumerate(tables):
        way = "higher is better" if table.higher_is_better else "lower is better"
        print(f"{chr(10) if number else ''}{table.title}: {table.unit}, {way}\n")
        print_table(_line_rows(table))
        if table.contrasts:
            places = reading.digits(table.unit)
            print()
            print_table(
                {
                    "first": c.first,
                    "second": c.second,
                    "first − second": f"{c.difference:+.{places}f}",
                    "95 % interval": f"{c.ci[0]:+.{places}f} to {c.ci[1]:+.{places}f}",
                    "judge alone": "" if c.spread is None else f"± {c.spread:.{places + 1}f}",
                    "from": "paired" if c.paired else "two intervals",
                    "p adjusted": reading.p_text(c.p_adjusted),
                    "": comparison.said(c),
                }
                for c in table.contrasts
            )
        for note in table.notes:
            print(f"note: {note}")
    tests = sum(len(table.contrasts) for table in tables)
    print(
        f"\n{tests:,} differences, p adjusted for all of them (Holm); one counts at p < {reading.ALPHA:g} and above the "
        "judge's spread"
    )


def _line_rows(table: Table) -> Iterator[dict[str, Any]]:
    from starling.evaluate import reading

    several = len({line.group for line in table.lines}) > 1
    for line in table.lines:
        overall = line.found.overall
        yield {
            "model": line.found.model,
            "run": line.run,
            **({"group": line.group + 1} if several else {}),
            "score": reading.score_text(overall.score, line.result.unit),
            "95 % interval": reading.interval_text(overall.ci, reading.digits(line.result.unit)),
            "n": overall.n,
            "prompts": overall.clusters,
            "judge": line.result.judge.judge if line.result.judge else "–",
            "its noise and bias": reading.noise_text(line.result),
        }
