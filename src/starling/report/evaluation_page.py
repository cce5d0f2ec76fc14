"""The page of benchmarks of models: the results of one run as one self-contained HTML text.

It reads nothing but Results (starling.evaluate.results), so it knows no benchmark; which difference counts is decided in
starling.evaluate.reading, as at the terminal. No table stands without its judge's noise, bias and cost beside it, and what was
not measured is said to be so. What a model or a user wrote is escaped by the template; equal results give equal bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from starling.evaluate import reading
from starling.evaluate.results import Difference, JudgeFacts, ModelResult, Part, Result
from starling.report import evaluation_figures as drawn
from starling.report import figures
from starling.report.figures import Figure
from starling.report.page import count, typeset
from starling.report.reward_page import PAGE_FILE, short_names

MOST_ROWS = 30
"""Models or differences in one figure; the tables have all of them."""
MOST_PAIRS = 500
"""Differences in the page's table: 200 models have 19,900."""
OPEN_ROWS = 12
"""Rows of a table of details up to which it is open from the start."""


@dataclass(frozen=True)
class Fact:
    """One card of the judge's block."""

    title: str
    value: str
    change: str = ""
    verdict: str = ""
    """better, worse or open, where there is a judgment about it."""
    note: str = ""


@dataclass(frozen=True)
class Row:
    """One model's line of the table."""

    model: str
    score: str
    interval: str
    n: int
    prompts: int
    more: list[str]
    outcomes: Mapping[str, int]


@dataclass(frozen=True)
class Pair:
    """One paired difference, in words."""

    first: str
    second: str
    difference: str
    interval: str
    p: str
    adjusted: str
    css: str
    said: str


@dataclass(frozen=True)
class Panel:
    """What the page shows of one benchmark."""

    result: Result
    anchor: str
    finding: str
    css: str
    rows: list[Row]
    further: list[str]
    """Names of the benchmark's own further figures, in the order of `Row.more`."""
    pairs: list[Pair]
    part_names: list[str]
    parts: list[tuple[str, list[str]]]
    """(part, cell by model)."""
    figures: list[Figure]
    judge: list[Fact]
    noise: str
    settings: list[tuple[str, str]]


def write_page(results: Sequence[Result], out: Path, *, title: str) -> Path:
    """Write page.html about the benchmarks of one run into the folder `out`, whole or not at all, and return its path."""
    return write_text(out / PAGE_FILE, render(results, title=title))


def write_text(path: Path, text: str) -> Path:
    """Write a page atomically; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".tmp")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
    return path


def render(results: Sequence[Result], *, title: str) -> str:
    """The page as one HTML text."""
    panels = [panel(result, f"b{number}") for number, result in enumerate(results)]
    return fill("evaluation.html", title=title, panels=panels, standings=standings(panels), open_rows=OPEN_ROWS)


def fill(name: str, **values: Any) -> str:
    """One of the package's templates with the page's style and filters."""
    from jinja2 import DictLoader, Environment, StrictUndefined

    package = resources.files("starling.report")
    names = ("evaluation.html", "evaluation_parts.html", "evaluation_comparison.html")
    loader = DictLoader({one: (package / one).read_text(encoding="utf-8") for one in names})
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"count": count, "typeset": typeset}
    return environment.get_template(name).render(
        style=(package / "page.css").read_text(encoding="utf-8"), failures=reading.FAILURES, **values
    )  # fmt: skip


# ── one benchmark ────────────────────────────────────────────────────────────────────────────────────────────────────


def panel(result: Result, anchor: str) -> Panel:
    """Everything that the page says about one result."""
    places = reading.digits(result.unit)
    further = list(dict.fromkeys(name for m in result.models for name in m.more))
    names = list(dict.fromkeys(name for m in result.models for name in m.parts))
    finding, css = reading.finding(result)
    return Panel(
        result=result,
        anchor=anchor,
        finding=finding,
        css=css,
        rows=[
            Row(
                m.model, reading.score_text(m.overall.score, result.unit), reading.interval_text(m.overall.ci, places),
                m.overall.n, m.overall.clusters, [_plain(m.more.get(name)) for name in further], m.outcomes,
            )
            for m in result.models
        ],
        further=further,
        pairs=[_pair(one, result) for one in result.differences[:MOST_PAIRS]],
        part_names=names,
        parts=[(name, [_part(m.parts.get(name), result) for m in result.models]) for name in names],
        figures=_figures(result, names, anchor),
        judge=judge_facts(result),
        noise=reading.noise_text(result),
        settings=_flat(result.settings),
    )  # fmt: skip


def _plain(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4g}"


def _part(part: Part | None, result: Result) -> str:
    if part is None:
        return ""
    bounds = reading.interval_text(part.ci, reading.digits(result.unit))
    return reading.score_text(part.score, result.unit) + (f" ({bounds})" if bounds else "")


def _pair(one: Difference, result: Result) -> Pair:
    places = reading.digits(result.unit)
    standing, _ = reading.standing_of(one, result)
    return Pair(
        one.first, one.second, f"{one.difference:+.{places}f}", f"{one.ci[0]:+.{places}f} to {one.ci[1]:+.{places}f}",
        reading.p_text(one.p), reading.p_text(one.p_adjusted), {"first": "better", "second": "worse"}.get(standing, "open"),
        reading.verdict_text(one, result),
    )  # fmt: skip


def standings(panels: Sequence[Panel]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Model → (score, interval) on each benchmark, of the models that stand in several; a dash where one was not asked."""
    names = [row.model for one in panels for row in one.rows]
    models = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    found = []
    for model in models:
        cells = [next(((r.score, r.interval) for r in one.rows if r.model == model), ("–", "")) for one in panels]
        found.append((model, cells))
    return found


def _flat(settings: Mapping[str, Any], at: str = "") -> list[tuple[str, str]]:
    """Settings as dotted names with their values as text."""
    found = []
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            found += _flat(value, f"{at}{name}.")
        else:
            found.append((f"{at}{name}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)))
    return found


# ── the judge ────────────────────────────────────────────────────────────────────────────────────────────────────────


def judge_facts(result: Result) -> list[Fact]:
    """The judge's noise, bias and cost as cards; what was not measured has its card, too."""
    judge = result.judge
    if judge is None:
        return []
    return [_position(judge), _spread(judge, result.unit), _unparsed(judge), _people(judge), _cost(judge)]


def _position(judge: JudgeFacts) -> Fact:
    title = "Favours the answer shown first"
    if judge.position_gap is None:
        return Fact(title, "–", note="not measured: one answer at a time, or in one order only")
    ci = judge.position_gap_ci
    verdict = "" if ci is None else "open" if ci[0] <= 0 <= ci[1] else "worse"
    change = "" if ci is None else f"95 % interval {100 * ci[0]:+.1f} to {100 * ci[1]:+.1f}"
    return Fact(
        title, f"{100 * judge.position_gap:+.1f} points", change, verdict,
        "verdicts for the first minus for the second; 0 without bias",
    )  # fmt: skip


def _spread(judge: JudgeFacts, unit: str) -> Fact:
    title = "Moves when asked again"
    if judge.repeat_spread is None:
        return Fact(title, "–", note="asked once: how far the table would move is not known")
    value = f"± {judge.repeat_spread:.{reading.digits(unit) + 1}f}"
    return Fact(title, value, note=f"{unit}; standard deviation over {judge.repeats} rounds; a smaller difference is noise")


def _unparsed(judge: JudgeFacts) -> Fact:
    share = judge.unparsed_share
    value = "–" if share is None else f"{100 * share:.1f} %"
    return Fact("Calls without a verdict", value, note=reading.outcomes_text(judge.outcomes))


def _people(judge: JudgeFacts) -> Fact:
    title = "Agrees with people"
    if judge.human_agreement is None:
        return Fact(title, "–", note="no votes of people on these answers")
    ci = judge.human_agreement_ci
    change = "" if ci is None else f"95 % interval {100 * ci[0]:.1f} to {100 * ci[1]:.1f} %"
    return Fact(title, f"{100 * judge.human_agreement:.1f} %", change, note=f"of {judge.human_votes:,} votes")


def _cost(judge: JudgeFacts) -> Fact:
    value = f"{judge.calls:,} calls" if judge.dollars is None else f"${judge.dollars:,.2f}"
    said = [] if judge.dollars is None else [f"{judge.calls:,} calls"]
    said.append(f"{judge.prompt_tokens:,} + {judge.completion_tokens:,} tokens")
    if judge.estimated:
        said.append(f"of {judge.estimated:,} calls estimated")
    if judge.seconds is not None:
        said.append(f"{reading.duration(judge.seconds)} of waiting, summed")
    if judge.dollars is None:
        said.append("dollars not known")
    return Fact("Cost", value, note=", ".join(said))


# ── figures ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _figures(result: Result, names: Sequence[str], anchor: str) -> list[Figure]:
    short = short_names([m.model for m in result.models])
    return [
        *_models_figure(result, short, anchor),
        *_parts_figure(result, names, short, anchor),
        *_pairs_figure(result, short, anchor),
    ]


def _models_figure(result: Result, short: Mapping[str, str], anchor: str) -> list[Figure]:
    rows = [
        (short[m.model], m.overall.score, m.overall.ci or (m.overall.score, m.overall.score))
        for m in result.models[:MOST_ROWS]
        if m.overall.score is not None
    ]
    if not rows:
        return []
    svg = figures.forest(
        f"{anchor}-models", f"Models on {result.title}", rows, x_label=result.unit, digits=reading.digits(result.unit)
    )
    left = len(result.models) - MOST_ROWS
    return [Figure(title="Models", svg=svg, note="Bands are 95\u202f% intervals." + (f" {left} more in the table." * (left > 0)))]


def _parts_figure(result: Result, names: Sequence[str], short: Mapping[str, str], anchor: str) -> list[Figure]:
    models = [m for m in result.models if any(p.score is not None for p in m.parts.values())][: len(drawn.COLORS)]
    shown = [name for name in names if any((part := m.parts.get(name)) and part.score is not None for m in models)][:MOST_ROWS]
    if not models or len(shown) < 2:
        return []
    svg = drawn.parts(
        f"{anchor}-parts",
        f"Parts of {result.title}",
        [_cut(n) for n in shown],
        [_dots(m, shown, short) for m in models],
        x_label=result.unit,
    )
    hidden = len(result.models) - len(models)
    return [Figure(title="Parts", svg=svg, note=f"The best {len(models)} models." if hidden > 0 else "")]


def _cut(name: str, longest: int = 24) -> str:
    return name.replace("_", " ") if len(name) <= longest else f"{name[: longest - 1].replace('_', ' ').rstrip()}…"


def _dots(model: ModelResult, names: Sequence[str], short: Mapping[str, str]) -> drawn.Dots:
    found = [model.parts.get(name) for name in names]
    return drawn.Dots(short[model.model], [p.score if p else None for p in found], [p.ci if p else None for p in found])


def _pairs_figure(result: Result, short: Mapping[str, str], anchor: str) -> list[Figure]:
    """Each pair where there are three at most, else the best model against each other one."""
    if not result.differences:
        return []
    spread = result.judge.repeat_spread if result.judge else None
    best = result.models[0].model
    few = len(result.differences) <= 3
    rows = []
    for d in result.differences if few else [d for d in result.differences if best in (d.first, d.second)]:
        counts = reading.standing_of(d, result)[0] != "open"
        if few:
            rows.append((f"{short[d.first]} − {short[d.second]}", d.difference, d.ci, counts))
        elif d.first == best:
            rows.append((short[d.second], d.difference, d.ci, counts))
        else:
            rows.append((short[d.first], -d.difference, (-d.ci[1], -d.ci[0]), counts))
    svg = drawn.differences(
        f"{anchor}-differences", f"Paired differences on {result.title}", rows[:MOST_ROWS],
        x_label=result.unit if few else f"{short[best]} − the other, {result.unit}", spread=spread,
    )  # fmt: skip
    note = "Coloured where the difference counts." + (" Orange: what the judge moves when it is asked again." if spread else "")
    return [Figure(title="Differences" if few else "The best against the others", svg=svg, note=note)]
