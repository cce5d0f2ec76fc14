"""An audit as tables and sentences for people. It reads the measured values and measures nothing."""

from __future__ import annotations

from typing import Any

from starling.audit.measure import SHARES, Audit
from starling.judge.verdict import LETTERS
from starling.stats import Interval


def position_rows(found: Audit) -> list[dict[str, Any]]:
    """The table by position: one row per position shown."""
    return [
        {
            "shown": LETTERS[i],
            "first": f"{first.mean:.3f}",
            "95 % of first": _span(first, 3),
            "mean rank": f"{rank.mean:.2f}",
            "95 % of rank": _span(rank, 2),
        }
        for i, (first, rank) in enumerate(zip(found.first_share, found.mean_rank, strict=True))
    ]


def share_rows(found: Audit) -> list[dict[str, Any]]:
    """The table of single figures: those that there is something to say about."""
    listed = [(said, ideal, getattr(found, name)) for name, (said, ideal) in SHARES.items()]
    return [
        {
            "share": said,
            "value": f"{one.mean:.3f}",
            "95 %": _span(one, 3),
            "of": str(one.n),
            "without fault": "" if ideal is None else f"{ideal:g}",
        }
        for said, ideal, one in listed
        if one is not None
    ]


def _span(one: Interval, digits: int) -> str:
    return f"{one.low:.{digits}f} to {one.high:.{digits}f}"


def lines(found: Audit) -> list[str]:
    """What no table holds: how many calls ended how, what was left out, and the tests."""
    said = [f"{found.calls} calls: " + ", ".join(f"{name} {count}" for name, count in found.outcomes.items())]
    if found.unparsed_reasons:
        said.append("unparsed: " + ", ".join(f"{reason} {count}" for reason, count in found.unparsed_reasons.items()))
    if len(found.sizes) > 1:
        others = ", ".join(f"{count} of {size}" for size, count in found.sizes.items() if size != found.k)
        said.append(f"figures are over rankings of {found.k} answers; left out: {others}")
    if found.first_chi_square is not None and found.rank_chi_square is not None:
        for what, test in (("first places", found.first_chi_square), ("mean ranks", found.rank_chi_square)):
            said.append(f"{what} equal over positions? chi-square {test.statistic:.1f}, {test.dof} degrees, p = {test.p:.2g}")
    if found.position_slope is not None:
        said.append(f"ranks lost per place further down: {found.position_slope.mean:.3f} ({_span(found.position_slope, 3)})")
    return said
