"""Every way of asking the same judge about the same answers, compared in one table: bias, accuracy, stability, cost.

Each mode gets a live audit of its own (three passes, `starling.audit.live`) over the same panels. What compares across modes:

- the order's effect on the final ranking, as τ under another order minus τ of a repetition: 0 where the order does nothing;
- bias inside a call, as ranks lost per place further down and the chi-square of first places, where a call shows more than one
  answer. A mode that asks about two at a time has two places, so its slope is that of two places;
- pairs and best answers right, where the truth is known (the microworld);
- calls, tokens and dollars of one ranking.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from starling.audit.consistency import as_json
from starling.audit.live import JudgeAudit, audit_judge
from starling.audit.measure import RESAMPLES
from starling.audit.tap import tapped
from starling.config import RankingMode, RankingSection
from starling.endpoint import Endpoint
from starling.errors import UsageError
from starling.judge.judge import Panel
from starling.metering import Cost, Latency, Price
from starling.progress import SILENT, Progress
from starling.stats import Interval

MODES: tuple[RankingMode, ...] = get_args(RankingMode)


@dataclass(frozen=True, kw_only=True)
class ModeRow:
    """One mode's line. Figures are None where the mode or the data have nothing to measure them by."""

    mode: str
    ranked: int
    """Prompts ranked in the first pass, of all in the sample."""
    prompts: int
    position_slope: Interval | None
    first_p: float | None
    """Chance of first places as uneven as these, if places did not matter."""
    first_named_win: Interval | None
    """Share of pair verdicts for the answer named or shown first."""
    contradiction: Interval | None
    """Share of pair verdicts that the final ranking turns round."""
    stability: Interval | None
    """Mean τ of a repetition."""
    order_effect: Interval | None
    """What another order takes from it."""
    pair_accuracy: Interval | None
    top1_accuracy: Interval | None
    cost: Cost
    """Of three passes."""

    def as_json(self) -> dict[str, Any]:
        found = as_json(self)
        del found["cost"]
        return {**found, **self.cost.per(3 * self.prompts)}


def chosen(names: Sequence[str]) -> tuple[str, ...]:
    """The modes meant; all when none is named.

    Raises:
        UsageError: there is no such mode.
    """
    unknown = [name for name in names if name not in MODES]
    if unknown:
        raise UsageError(f"There is no mode '{unknown[0]}'", where="--modes", cure=f"use some of {', '.join(MODES)}")
    return tuple(names) or tuple(MODES)


def compare(
    panels: Sequence[Panel],
    judge: Endpoint,
    settings: RankingSection,
    seed: int,
    modes: Sequence[str],
    *,
    price: Price | None = None,
    latency: Latency | None = None,
    dry: bool = False,
    resamples: int = RESAMPLES,
    progress: Progress = SILENT,
) -> list[ModeRow]:
    """One row per mode, in the order named; see the module for what is compared."""
    rows = []
    for mode in modes:
        tap = tapped(judge, price=price, dry=dry)
        using = settings.model_copy(update={"mode": mode})
        found = audit_judge(panels, tap, using, seed, latency=latency, resamples=resamples, progress=progress, label=f"{mode}: ")
        rows.append(_row(mode, found))
    return rows


def _row(mode: str, found: JudgeAudit) -> ModeRow:
    first = found.first
    return ModeRow(
        mode=mode,
        ranked=found.ranked,
        prompts=found.prompts,
        position_slope=first.position_slope,
        first_p=None if first.first_chi_square is None else first.first_chi_square.p,
        first_named_win=first.first_named_win,
        contradiction=found.verdicts_contradicted,
        stability=found.stability.tau,
        order_effect=found.order_effect.tau,
        pair_accuracy=None if found.accuracy is None else found.accuracy.pairs,
        top1_accuracy=None if found.accuracy is None else found.accuracy.top1,
        cost=found.cost,
    )


def as_table(rows: Sequence[ModeRow], judge: str) -> dict[str, Any]:
    """The table as JSON, with the sentence that says how to read it."""
    prompts = rows[0].prompts if rows else 0
    return {
        "judge": judge,
        "prompts": prompts,
        "modes": [row.as_json() for row in rows],
        "modes_about": f"{prompts} prompts, three passes each. Ranks a place: lost per place further down inside a call. First "
        "wins: verdicts for the answer shown or named first. Order on τ: what another order takes beyond asking again. Calls, "
        "tokens and dollars are for one ranking.",
    }
