"""The page of an audit: the figures of `starling audit --json` as one self-contained HTML text, in the report's style.

It reads the JSON form and nothing else, so it knows neither files nor the measurement, and equal figures give equal bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Any

from starling.judge.verdict import LETTERS
from starling.report import figures
from starling.report.page import Card, Figure, count, interval, mark, number, percent, percents


def render(found: Mapping[str, Any], shares: Mapping[str, tuple[str, float | None]], name: str) -> str:
    """The whole page.

    Args:
        found: what `Audit.as_json` gives.
        shares: its single figures → (what it says, the value of a judge without fault or None), in the order shown.
        name: what was audited; any text, it is escaped.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": number, "interval": interval, "percent": percent, "percents": percents, "count": count}
    package = resources.files("starling.report")
    template = environment.from_string((package / "audit.html").read_text(encoding="utf-8"))
    columns = (found["first_share"], found["first_share_ci"], found["mean_rank"], found["mean_rank_ci"])
    return template.render(
        name=name,
        style=(package / "page.css").read_text(encoding="utf-8"),
        lead=_lead(found),
        cards=[
            _card(found, key, said[:1].upper() + said[1:], ideal)
            for key, (said, ideal) in shares.items()
            if found[key] is not None
        ],
        figures=_figures(found),
        positions=list(zip(LETTERS, *columns, strict=False)),
        outcomes=found["outcomes"],
        reasons=found["unparsed_reasons"],
    )


def _lead(found: Mapping[str, Any]) -> str:
    if not found["n"]:
        return f"None of {count(found['calls'])} calls gave a ranking: there is nothing to measure."
    said = [f"{count(found['n'])} rankings of {found['k']} answers, out of {count(found['calls'])} calls."]
    top = max(range(found["k"]), key=lambda i: (found["first_share"][i], -i))
    share, p = found["first_share"][top], found["first_chi_square"]["p"]
    said.append(
        f"Position {LETTERS[top]} is ranked first most often: {percent(share)} instead of {percent(1 / found['k'])}"
        f" (95\u202f% interval {percents(found['first_share_ci'][top])}). First places differ between positions "
        + ("by more than chance" if p < 0.05 else "by no more than chance would have it")
        + f": p = {p:.2g}; mean ranks: p = {found['rank_chi_square']['p']:.2g}."
    )
    return " ".join(said)


def _card(found: Mapping[str, Any], key: str, title: str, ideal: float | None) -> Card:
    """A share with its interval; `worse` where the two sides of a pair are measurably not treated alike."""
    value, (low, high) = found[key], found[f"{key}_ci"]
    marks = (mark("tuned", low, value, high),)
    if ideal is None:
        return Card(title=title, value=percent(value), change=f"95\u202f% interval {percents((low, high))}", marks=marks)
    return Card(
        title=title,
        value=percent(value),
        change=f"95\u202f% interval {percents((low, high))}",
        verdict="" if ideal != 0.5 else "open" if low <= ideal <= high else "worse",
        note=f"{percent(ideal)} without fault",
        marks=(*marks, mark("chance", ideal, ideal, ideal)),
    )


def _figures(found: Mapping[str, Any]) -> list[Figure]:
    if not found["n"]:
        return []
    k, letters = found["k"], LETTERS[: found["k"]]
    firsts = figures.positions(
        "first-places", "Share of first places by position shown", found["first_share"], found["first_share_ci"], letters
    )
    ranks = figures.ranks("mean-ranks", "Mean rank by position shown", letters, found["mean_rank"], found["mean_rank_ci"], k)
    return [
        Figure(title="First places by position shown", svg=firsts, note=f"Without bias each position wins 1/{k} (dashed)."),
        Figure(title="Mean rank by position shown", svg=ranks, note=f"Without bias each position has {(k + 1) / 2:g}."),
    ]
