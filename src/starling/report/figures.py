"""Figures as inline SVG that follow the page: its fonts, and its colours in light and in dark.

matplotlib draws with placeholder colours; `finish` turns them into the page's CSS variables, drops dates and random ids,
and prefixes ids with the figure's name, since one page holds many figures. The same numbers give the same text.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any

INK, MUTED, LINE, BASE, ACCENT, WARN, PAPER = "#010101", "#020202", "#030303", "#040404", "#050505", "#060606", "#070707"
_VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line", BASE: "base", ACCENT: "accent", WARN: "warn", PAPER: "paper"}

NARROW, WIDE = 3.9, 4.6
"""Inches at 72 points each: no wider than a phone, so that text keeps its size on one."""

_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "starling",
    "font.size": 9.5,
    "font.family": "DejaVu Sans",
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.7,
    "lines.solid_capstyle": "round",
    "path.simplify": False,
}


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line of a chart; points where y is missing are simply not given."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    color: str = ACCENT
    faint: bool = False
    """Raw values behind a smoothed line."""
    marker: bool = False


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure with its title and what to look for."""

    title: str
    svg: str
    note: str = ""


def points(log: Sequence[Mapping[str, Any]], x: str, y: str) -> tuple[list[float], list[float]]:
    """Both columns of the rows of a log that have them."""
    rows = [(float(row[x]), float(row[y])) for row in log if x in row and isinstance(row.get(y), int | float)]
    return [a for a, _ in rows], [b for _, b in rows]


@contextmanager
def canvas(width: float, height: float, rows: int = 1) -> Iterator[tuple[Any, Any]]:
    """A figure and its axes (an array of them for several rows, which share x) in the report's style; matplotlib's global
    settings stay untouched."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas

    with matplotlib.rc_context(_STYLE):
        figure = Canvas(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        yield figure, figure.subplots(rows, sharex=True)


def finish(figure: Any, name: str, label: str) -> str:
    """The figure as an <svg> element for the page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--sans)", text)
    for placeholder, variable in _VARIABLES.items():
        text = text.replace(placeholder, f"var(--{variable})")
    width, height = re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)[0]
    head = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}" xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    return re.sub(r"\n\s*", "\n", head + text[text.index(">") + 1 :])


# ── charts ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def curves(
    name: str, label: str, series: Sequence[Series], *, x_label: str, level: float | None = None, share: bool = False
) -> str:
    """Lines over steps or iterations.

    Args:
        name: unique on the page; letters and hyphens.
        label: what the figure shows, for screen readers.
        level: a dashed horizontal line, e.g. where chance lies.
        share: the y axis is a share: 0 … 1, shown from where the data lie.
    """
    with canvas(NARROW, 2.35) as (figure, axes):
        for one in series:
            axes.plot(
                one.x, one.y, color=one.color, label=None if one.faint else one.label, linewidth=0.8 if one.faint else 1.7,
                alpha=0.35 if one.faint else 1.0, marker="o" if one.marker or len(one.x) == 1 else None, markersize=3.2,
            )  # fmt: skip
        if level is not None:
            axes.axhline(level, color=MUTED, linewidth=0.9, dashes=(3, 3))
        if share:
            low, high = axes.get_ylim()
            axes.set_ylim(max(low, -0.02), min(high, 1.02))
        axes.set_xlabel(x_label)
        axes.locator_params(axis="y", nbins=5)
        axes.locator_params(axis="x", nbins=6, integer=True)
        axes.margins(x=0.02)
        if sum(not one.faint for one in series) > 1:
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, handlelength=1.4, borderaxespad=0.1)
        return finish(figure, name, label)


def frontier(
    name: str,
    label: str,
    tuned: Sequence[tuple[float, float, float]],
    iterations: Sequence[int],
    reference: Sequence[tuple[float, float, float]],
    marks: Mapping[int, str],
) -> str:
    """A score against KL from the base, on a square-root axis as in Gao et al. 2023, where best-of-n is nearly straight.

    Args:
        tuned: (KL, score, standard error) of the evaluations in their order, joined by a line.
        iterations: theirs; the last is written beside its point.
        reference: the same of the best of n, with a band; may be empty.
        marks: iteration → what happened there.
    """
    with canvas(NARROW, 2.9) as (figure, axes):
        if reference:
            x, y = [p[0] for p in reference], [p[1] for p in reference]
            axes.fill_between(
                x, [p[1] - Z * p[2] for p in reference], [p[1] + Z * p[2] for p in reference], color=BASE, alpha=0.2, linewidth=0
            )
            axes.plot(x, y, "-", color=BASE, label="best of n")
        x, y = [p[0] for p in tuned], [p[1] for p in tuned]
        axes.vlines(x, [p[1] - Z * p[2] for p in tuned], [p[1] + Z * p[2] for p in tuned], color=ACCENT, linewidth=3, alpha=0.25)
        axes.plot(x, y, "o-", color=ACCENT, label="tuning", markersize=3.4, linewidth=1.1)
        largest = max([*x, *(p[0] for p in reference)])
        beside: Any = {"textcoords": "offset points", "color": INK, "fontsize": 8.5}
        axes.annotate(f"{iterations[-1]}", (x[-1], y[-1]), xytext=(6, -3), **beside)
        for at, said in marks.items():
            if at in iterations:
                here = iterations.index(at)
                bad = said == FIRED
                axes.plot(x[here], y[here], "o", color=WARN if bad else ACCENT, markersize=7)
                # left of where the curve goes on, so that neither the line nor the last number runs through the words
                side, away = ("left", 7) if x[here] < largest / 16 else ("right", -7)
                axes.annotate(said, (x[here], y[here]), xytext=(away, -3) if bad else (-away / 2, 7), ha=side, **beside)
        ticks = _root_ticks(largest)
        axes.set_xscale("function", functions=(_root, _square))
        axes.set_xlim(0, 1.25 * largest or 1.0)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.locator_params(axis="y", nbins=5)
        axes.margins(y=0.14)
        axes.set_xlabel("KL from the base, nats per reply")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, handlelength=1.4, borderaxespad=0.1)
        return finish(figure, name, label)


FIRED = "guard fired"
"""A mark of `frontier` in the warning colour."""
Z = 1.96
"""Half a 95 % interval in standard errors."""


def _root(x: Any) -> Any:
    import numpy as np

    return np.sqrt(np.maximum(x, 0.0))


def _square(x: Any) -> Any:
    return x**2


def _root_ticks(largest: float) -> list[float]:
    """Round numbers that stand about evenly on a square-root axis from 0 to `largest`.

    >>> _root_ticks(20.0)
    [0.0, 1.0, 5.0, 10.0, 20.0]
    """
    if largest <= 0:
        return [0.0]
    unit = 10.0 ** math.floor(math.log10(largest))
    lead = next(one for one in (5.0, 2.0, 1.0) if one * unit <= largest)
    shares = {1.0: (0.1, 0.2, 0.5, 1.0), 2.0: (0.05, 0.25, 0.5, 1.0), 5.0: (0.04, 0.2, 0.4, 1.0)}[lead]
    return [0.0, *(float(f"{lead * unit * share:.6g}") for share in shares)]


def stacked(
    name: str,
    label: str,
    panels: Sequence[tuple[Series, Sequence[float | None]]],
    *,
    x_label: str,
    mark: float | None = None,
) -> str:
    """Lines one above the other over one x axis, each on its own scale.

    Args:
        panels: a line with the standard errors of its points (None where not known), from the top.
        mark: an x that is marked in all of them.
    """
    with canvas(NARROW, 1.3 * len(panels) + 0.3, len(panels)) as (figure, rows):
        for axes, (one, errors) in zip(rows, panels, strict=True):
            axes.plot(one.x, one.y, color=one.color, marker="o" if one.marker else None, markersize=3.2)
            known = [(x, y, e) for x, y, e in zip(one.x, one.y, errors, strict=True) if e is not None]
            axes.fill_between(
                [x for x, _, _ in known], [y - Z * e for _, y, e in known], [y + Z * e for _, y, e in known],
                color=one.color, alpha=0.18, linewidth=0,
            )  # fmt: skip
            if mark is not None:
                axes.axvline(mark, color=WARN, linewidth=1.1, dashes=(4, 3))
            axes.locator_params(axis="y", nbins=4)
            axes.set_ylabel(one.label)
        rows[-1].locator_params(axis="x", nbins=6, integer=True)
        rows[-1].set_xlabel(x_label)
        return finish(figure, name, label)


def ranks(
    name: str, label: str, labels: Sequence[str], means: Sequence[float], intervals: Sequence[tuple[float, float]], best: int
) -> str:
    """Mean ranks with intervals, one row per model, best on top; the axis runs from 1 to the number of answers."""
    with canvas(WIDE, 0.55 + 0.3 * len(labels)) as (figure, axes):
        rows = range(len(labels))
        axes.hlines(rows, [low for low, _ in intervals], [high for _, high in intervals], color=ACCENT, linewidth=4, alpha=0.3)
        axes.plot(means, rows, "o", color=ACCENT, markersize=6)
        for row, mean in zip(rows, means, strict=True):
            axes.annotate(
                f"{mean:.2f}", (mean, row), xytext=(0, 6), textcoords="offset points", ha="center", color=INK, fontsize=8.5
            )
        axes.set_yticks(list(rows), labels)
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_ylim(len(labels) - 0.5, -0.7)
        axes.set_xlim(0.8, best + 0.2)
        axes.set_xticks(range(1, best + 1))
        axes.grid(axis="x")
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(f"mean rank (1 = best of {best})")
        return finish(figure, name, label)


def positions(
    name: str, label: str, shares: Sequence[float], intervals: Sequence[tuple[float, float]], letters: Sequence[str]
) -> str:
    """Share of first places by the position shown, with intervals and the unbiased level."""
    with canvas(WIDE, 2.6) as (figure, axes):
        x = range(len(shares))
        axes.bar(x, shares, color=ACCENT, alpha=0.8, width=0.62)
        below = [max(0.0, s - low) for s, (low, _) in zip(shares, intervals, strict=True)]
        above = [max(0.0, high - s) for s, (_, high) in zip(shares, intervals, strict=True)]
        axes.errorbar(x, shares, yerr=[below, above], fmt="none", ecolor=INK, elinewidth=1.1, capsize=2.5)
        axes.axhline(1 / len(shares), color=WARN, linewidth=1.1, dashes=(4, 3))
        axes.set_xticks(list(x), letters)
        axes.set_xlabel("position in which the judge saw the answer")
        axes.set_ylim(bottom=0)
        axes.locator_params(axis="y", nbins=5)
        return finish(figure, name, label)


def forest(
    name: str,
    label: str,
    rows: Sequence[tuple[str, float, tuple[float, float]]],
    *,
    x_label: str,
    level: float | None = None,
    digits: int = 2,
) -> str:
    """Values with intervals, one row each, first on top; `level` is a dashed line at the value without fault."""
    with canvas(WIDE, 0.75 + 0.32 * len(rows)) as (figure, axes):
        at = range(len(rows))
        lows, highs = [low for _, _, (low, _) in rows], [high for _, _, (_, high) in rows]
        axes.hlines(at, lows, highs, color=ACCENT, linewidth=4, alpha=0.3)
        axes.plot([value for _, value, _ in rows], at, "o", color=ACCENT, markersize=6)
        for row, (_, value, _) in enumerate(rows):
            at_point = {"xytext": (0, 6), "textcoords": "offset points", "ha": "center", "color": INK, "fontsize": 8.5}
            axes.annotate(f"{round(value, digits) + 0.0:.{digits}f}", (value, row), **at_point)  # + 0.0: no "-0.00"
        if level is not None:
            axes.axvline(level, color=WARN, linewidth=1.1, dashes=(4, 3))
        axes.set_yticks(list(at), [said for said, _, _ in rows])
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_ylim(len(rows) - 0.5, -0.75)
        axes.locator_params(axis="x", nbins=5)
        axes.margins(x=0.09)
        axes.grid(axis="x")
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(x_label)
        return finish(figure, name, label)


def dumbbells(name: str, label: str, labels: Sequence[str], base: Sequence[float], tuned: Sequence[float], x_label: str) -> str:
    """Before and after on a 0 … 1 scale, one row per kind, biggest gain on top."""
    with canvas(WIDE, 0.75 + 0.29 * len(labels)) as (figure, axes):
        rows = list(range(len(labels)))
        colors = [ACCENT if after >= before else WARN for before, after in zip(base, tuned, strict=True)]
        axes.hlines(rows, base, tuned, color=colors, linewidth=2.4, alpha=0.45)
        axes.plot(base, rows, "o", color=BASE, markersize=6, label="base")
        axes.plot(tuned, rows, "o", color=ACCENT, markersize=6, label="tuned")
        axes.set_yticks(rows, labels)
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.set_xlim(-0.03, 1.03)
        axes.grid(axis="x")
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(x_label)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, handletextpad=0.2, borderaxespad=0.1)
        return finish(figure, name, label)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of `against`: a value with its interval and what trivial scorers reach."""

    label: str
    value: float
    ci: tuple[float, float] | None
    bars: tuple[float, ...] = ()


def against(name: str, label: str, rows: Sequence[Row], *, x_label: str) -> str:
    """Values with intervals, first on top, and beside each a tick per trivial baseline."""
    with canvas(WIDE, 0.75 + 0.34 * len(rows)) as (figure, axes):
        at = list(range(len(rows)))
        for y, row in zip(at, rows, strict=True):
            axes.plot(row.bars, [y] * len(row.bars), "|", color=WARN, markersize=9, markeredgewidth=1.3)
            if row.ci is not None:
                axes.hlines(y, *row.ci, color=ACCENT, linewidth=4, alpha=0.3)
            axes.annotate(
                f"{100 * row.value:.1f}", (row.value, y), xytext=(0, 6), textcoords="offset points", ha="center", color=INK,
                fontsize=8.5,
            )  # fmt: skip
        axes.plot([row.value for row in rows], at, "o", color=ACCENT, markersize=6)
        axes.set_yticks(at, [row.label for row in rows])
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_ylim(len(rows) - 0.5, -0.75)
        axes.margins(x=0.07)
        axes.locator_params(axis="x", nbins=6)
        axes.grid(axis="x")
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(x_label)
        return finish(figure, name, label)


def reliability(
    name: str, label: str, series: Sequence[tuple[str, str, Sequence[tuple[float, float, Sequence[float] | None]]]], low: float
) -> str:
    """Share right over stated confidence, with the diagonal of a calibrated model.

    Args:
        series: (label, colour, points (confidence, share right, interval or None)); later ones are drawn on top.
        low: the least possible confidence, where the axis begins.
    """
    with canvas(NARROW, 2.9) as (figure, axes):
        axes.plot([low, 1], [low, 1], color=MUTED, linewidth=0.9, dashes=(3, 3))
        for said, color, points in series:
            for x, _, ci in points:
                if ci is not None:
                    axes.vlines(x, *ci, color=color, linewidth=3, alpha=0.3)
            axes.plot(
                [x for x, _, _ in points], [y for _, y, _ in points], "o-", color=color, label=said, markersize=4, linewidth=1
            )
        axes.set_xlabel("stated confidence")
        axes.set_ylabel("share right")
        axes.margins(0.03)
        axes.locator_params(nbins=6)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, handlelength=1.4, borderaxespad=0.1)
        return finish(figure, name, label)


def growth(
    name: str,
    label: str,
    series: Sequence[tuple[Series, Sequence[Sequence[float] | None]]],
    *,
    x_label: str,
    y_label: str,
    level: float | None = None,
) -> str:
    """Lines over n on a logarithmic axis, each with a band where it has intervals; `level` is a dashed line."""
    with canvas(NARROW, 2.9) as (figure, axes):
        for one, bands in series:
            axes.plot(one.x, one.y, "o-" if one.marker else "-", color=one.color, label=one.label, markersize=3.4)
            known = [(x, band) for x, band in zip(one.x, bands, strict=False) if band is not None]
            if known:
                axes.fill_between(
                    [x for x, _ in known],
                    [b[0] for _, b in known],
                    [b[1] for _, b in known],
                    color=one.color,
                    alpha=0.18,
                    linewidth=0,
                )
        if level is not None:
            axes.axhline(level, color=MUTED, linewidth=0.9, dashes=(3, 3))
        ticks = [x for x in series[0][0].x if int(x).bit_count() == 1 or x == series[0][0].x[-1]]
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
        axes.minorticks_off()
        axes.locator_params(axis="y", nbins=5)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        columns = 3 if sum(len(one.label) for one, _ in series) < 40 else 2
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns, handlelength=1.4, borderaxespad=0.1)
        return finish(figure, name, label)


def preferences(name: str, label: str, rows: Sequence[tuple[str, float, float]], *, names: tuple[str, str], x_label: str) -> str:
    """Two shares per row on a 0 … 1 scale, joined by a line."""
    with canvas(NARROW, 0.85 + 0.33 * len(rows)) as (figure, axes):
        at = list(range(len(rows)))
        axes.hlines(at, [a for _, a, _ in rows], [b for _, _, b in rows], color=ACCENT, linewidth=2.4, alpha=0.45)
        axes.plot([a for _, a, _ in rows], at, "o", color=BASE, markersize=6, label=names[0])
        axes.plot([b for _, _, b in rows], at, "o", color=ACCENT, markersize=6, label=names[1])
        axes.axvline(0.5, color=MUTED, linewidth=0.9, dashes=(3, 3))
        axes.set_yticks(at, [said for said, _, _ in rows])
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(-0.03, 1.03)
        axes.grid(axis="x")
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(x_label)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, handletextpad=0.2, borderaxespad=0.1)
        return finish(figure, name, label)


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """Mean over the last `window` values (fewer at the start)."""
    return [sum(values[max(0, i - window + 1) : i + 1]) / min(i + 1, window) for i in range(len(values))]
