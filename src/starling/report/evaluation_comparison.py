"""The page that puts the benchmarks of several runs side by side; what may be said is decided in starling.evaluate.comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from starling.evaluate import comparison, reading
from starling.evaluate.comparison import Contrast, Line, Table
from starling.report import evaluation_figures as drawn
from starling.report import figures
from starling.report.evaluation_page import MOST_PAIRS, MOST_ROWS, OPEN_ROWS, Pair, fill, write_text
from starling.report.figures import Figure
from starling.report.reward_page import PAGE_FILE, short_names


@dataclass(frozen=True)
class Row:
    """One model of one run."""

    line: Line
    score: str
    interval: str
    judge: str
    noise: str


@dataclass(frozen=True)
class Panel:
    """One benchmark."""

    table: Table
    anchor: str
    rows: list[Row]
    groups: int
    pairs: list[Pair]
    figures: list[Figure]
    apart: int
    """How many differences count."""


def write_page(tables: Sequence[Table], out: Path) -> Path:
    """Write page.html into the folder `out` and return its path."""
    return write_text(out / PAGE_FILE, render(tables))


def render(tables: Sequence[Table]) -> str:
    """The page as one HTML text."""
    panels = [_panel(table, f"c{number}") for number, table in enumerate(tables)]
    runs = list(dict.fromkeys(line.run for table in tables for line in table.lines))
    return fill(
        "evaluation_comparison.html",
        title=" · ".join(runs) if len(runs) <= 3 else f"{len(runs)} runs",
        panels=panels,
        tests=sum(len(table.contrasts) for table in tables),
        apart=sum(one.apart for one in panels),
        alpha=f"{reading.ALPHA:g}",
        open_rows=OPEN_ROWS,
    )


def _panel(table: Table, anchor: str) -> Panel:
    places = reading.digits(table.unit)
    rows = [
        Row(
            line,
            reading.score_text(line.found.overall.score, line.result.unit),
            reading.interval_text(line.found.overall.ci, reading.digits(line.result.unit)),
            line.result.judge.judge if line.result.judge else "–",
            reading.noise_text(line.result),
        )
        for line in table.lines
    ]
    short = short_names([line.name for line in table.lines], 26)
    return Panel(
        table=table, anchor=anchor, rows=rows, groups=1 + max((line.group for line in table.lines), default=0),
        pairs=[_pair(one, places) for one in table.contrasts[:MOST_PAIRS]], figures=_figures(table, short, anchor),
        apart=sum(one.standing != "open" for one in table.contrasts),
    )  # fmt: skip


def _pair(one: Contrast, places: int) -> Pair:
    spread = "" if one.spread is None else f" (judge alone ± {one.spread:.{places + 1}f})"
    return Pair(
        one.first, one.second, f"{one.difference:+.{places}f}{spread}", f"{one.ci[0]:+.{places}f} to {one.ci[1]:+.{places}f}",
        "paired" if one.paired else "two intervals", reading.p_text(one.p_adjusted),
        {"first": "better", "second": "worse"}.get(one.standing, "open"), comparison.said(one),
    )  # fmt: skip


def _figures(table: Table, short: Mapping[str, str], anchor: str) -> list[Figure]:
    found = []
    measured = [(line, line.found.overall.score) for line in table.lines]
    several = len({line.group for line in table.lines}) > 1
    rows = [
        (f"{short[line.name]}{f' [{line.group + 1}]' if several else ''}", score, line.found.overall.ci or (score, score))
        for line, score in measured
        if score is not None
    ][:MOST_ROWS]
    if rows:
        svg = figures.forest(
            f"{anchor}-models", f"Models on {table.title}", rows, x_label=table.unit, digits=reading.digits(table.unit)
        )
        note = "Bands are 95\u202f% intervals." + (" In brackets the group: compare within one only." if several else "")
        found.append(Figure(title="Models", svg=svg, note=note))
    best = table.lines[0].name
    against = [_from(one, best) for one in table.contrasts if best in (one.first, one.second)][:MOST_ROWS]
    if against:
        spreads = [one.spread for one in table.contrasts if best in (one.first, one.second) and one.spread]
        rows_of = [(short[name], gap, ci, counts) for name, gap, ci, counts in against]
        svg = drawn.differences(
            f"{anchor}-differences", f"Differences on {table.title}", rows_of,
            x_label=f"{short[best]} − the other, {table.unit}", spread=max(spreads) if spreads else None,
        )  # fmt: skip
        note = "Coloured where the difference counts." + (" Orange: what the judge moves by itself." if spreads else "")
        found.append(Figure(title="The first against the others", svg=svg, note=note))
    return found


def _from(one: Contrast, best: str) -> tuple[str, float, tuple[float, float], bool]:
    """A contrast seen from the best model."""
    counts = one.standing != "open"
    if one.first == best:
        return one.second, one.difference, one.ci, counts
    return one.first, -one.difference, (-one.ci[1], -one.ci[0]), counts
