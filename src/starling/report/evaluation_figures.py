"""Figures of benchmarks of models: parts by model, and differences beside the judge's own noise; style as figures.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starling.report.figures import ACCENT, BASE, INK, MUTED, WARN, WIDE, canvas, finish

COLORS = (ACCENT, BASE, WARN, INK, MUTED)
"""Of the models of one figure, best first; it shows no more models than there are colours."""

Interval = tuple[float, float] | None


@dataclass(frozen=True)
class Dots:
    """One model's scores by part, None where it has none."""

    label: str
    scores: Sequence[float | None]
    intervals: Sequence[Interval]


def parts(name: str, label: str, names: Sequence[str], models: Sequence[Dots], *, x_label: str) -> str:
    """One row per part, in it a dot with its interval for each model.

    Args:
        name: unique on the page; letters and hyphens.
        label: what the figure shows, for screen readers.
        names: of the parts, from the top.
        models: at most as many as there are COLORS.
    """
    step = 0.62 / max(1, len(models))
    with canvas(WIDE, 0.8 + len(names) * max(0.3, 0.12 + 0.13 * len(models))) as (figure, axes):
        for m, one in enumerate(models):
            known = [(i, s, ci) for i, (s, ci) in enumerate(zip(one.scores, one.intervals, strict=True)) if s is not None]
            at = [i + (m - (len(models) - 1) / 2) * step for i, _, _ in known]
            for y, (_, _, ci) in zip(at, known, strict=True):
                if ci is not None:
                    axes.hlines(y, *ci, color=COLORS[m], linewidth=2.6, alpha=0.35)
            axes.plot([s for _, s, _ in known], at, "o", color=COLORS[m], markersize=4.6, label=one.label)
        _rows(axes, names)
        axes.set_xlabel(x_label)
        if len(models) > 1:
            columns = 3 if sum(len(one.label) for one in models) < 40 else 2
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns, handletextpad=0.2, borderaxespad=0.1)
        return finish(figure, name, label)


def differences(
    name: str, label: str, rows: Sequence[tuple[str, float, tuple[float, float], bool]], *, x_label: str, spread: float | None
) -> str:
    """Differences with intervals around 0; those that count are coloured, and a band shows what the judge moves by itself.

    Args:
        rows: (label, difference, interval, whether it counts), from the top.
        spread: half the band's width, None where the judge was asked once.
    """
    with canvas(WIDE, 0.75 + 0.3 * len(rows)) as (figure, axes):
        if spread:
            axes.axvspan(-spread, spread, color=WARN, alpha=0.16, linewidth=0)
        axes.axvline(0, color=MUTED, linewidth=0.9, dashes=(3, 3))
        for y, (_, value, ci, counts) in enumerate(rows):
            color = ACCENT if counts else BASE
            axes.hlines(y, *ci, color=color, linewidth=4, alpha=0.35)
            axes.plot([value], [y], "o", color=color, markersize=5.5)
        _rows(axes, [said for said, _, _, _ in rows])
        axes.set_xlabel(x_label)
        return finish(figure, name, label)


def _rows(axes: Any, names: Sequence[str]) -> None:
    """Names on the left, first on top, and vertical grid lines only."""
    axes.set_yticks(range(len(names)), list(names))
    axes.tick_params(axis="y", labelcolor=INK)
    axes.set_ylim(len(names) - 0.45, -0.55)
    axes.locator_params(axis="x", nbins=6)
    axes.margins(x=0.06)
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
