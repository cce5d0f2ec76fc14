"""The page of reward benchmarks: the results of one or more reward models as one self-contained HTML text.

It reads plain results, those that `starling evaluate reward` writes, so it knows neither files of scores nor the measures.
A result is a dict: `benchmark`, `accuracy`, `ci`, `n`, `parts` and `baselines` (name → number, or a dict with `accuracy`, `ci`,
`n`), `left_out` (reason → count); and where measured `clusters`, `cut`, `missing`, `subsets` (as parts, finer), `part_baselines`
(scorer → part → accuracy), `over_baseline`, `top1`, `adjacent`, `kendall_tau`, `auroc`, `length`, `correlation`, `calibration`,
`best_of_n`, as the modules that measure them give them. What a model or a user wrote is escaped by the template; equal results
give equal bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from starling.report import figures
from starling.report.figures import Figure
from starling.report.page import count, interval, number, percent, percents, signed

Result = Mapping[str, Any]
PAGE_FILE = "page.html"
COLORS = (figures.ACCENT, figures.WARN, figures.BASE, figures.INK, figures.MUTED)
"""Of the models in a figure of several, in turn."""


@dataclass(frozen=True)
class Line:
    """One row of a table of shares: a benchmark, a part of one, or a baseline."""

    name: str
    value: float | None
    ci: Sequence[float] | None
    n: int | None


@dataclass(frozen=True)
class Panel:
    """What the page shows of one benchmark of one model."""

    name: str
    anchor: str
    line: Line
    parts: list[Line]
    baselines: list[Line]
    verdict: str
    """better, worse or open against the best baseline; empty without one, and with too few clusters to say."""
    figures: list[Figure]
    facts: list[str]
    left_out: Mapping[str, int]
    missing: list[str]
    clusters: int | None


def write_page(results: Sequence[Result], out: Path, *, model: str = "Reward model") -> Path:
    """Write page.html about one model into the folder `out` and return its path."""
    return _write(out, render({model: results}))


def write_comparison(models: Mapping[str, Sequence[Result]], comparison: Mapping[str, Any], out: Path) -> Path:
    """The same for several models.

    Args:
        models: name → its results.
        comparison: what `evaluate.reward_benchmarks.compare.compare` found.
    """
    return _write(out, render(models, comparison))


def _write(out: Path, text: str) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    path = out / PAGE_FILE
    path.write_text(text, encoding="utf-8")
    return path


def render(models: Mapping[str, Sequence[Result]], comparison: Mapping[str, Any] | None = None) -> str:
    """The whole page: one model in full, or several side by side and each in full below."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "number": number, "interval": interval, "percent": percent, "percents": percents, "count": count, "points": points,
        "p_value": p_value, "signed": signed,
    }  # fmt: skip
    package = resources.files("starling.report")
    template = environment.from_string((package / "reward.html").read_text(encoding="utf-8"))
    shown = [(name, [_panel(r, f"m{m}-b{b}") for b, r in enumerate(results)]) for m, (name, results) in enumerate(models.items())]
    return template.render(
        style=(package / "page.css").read_text(encoding="utf-8"),
        title=next(iter(models)) if len(models) == 1 else f"{len(models)} reward models",
        lead=_lead(shown, comparison),
        models=shown,
        short=short_names(list(models)),
        overviews={name: _overview(panels, f"m{m}") for m, (name, panels) in enumerate(shown)},
        comparison=comparison,
        side_by_side=_side_by_side(models, comparison) if comparison else [],
    )


# ── words ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def points(value: float | None) -> str:
    """A difference of shares in percentage points, e.g. +2.3."""
    return "–" if value is None else signed(100 * value, 1)


def short_names(names: Sequence[str], longest: int = 20) -> dict[str, str]:
    """Names that fit into a figure: the last part of a path, cut in the middle; with a number where two would be the same.

    >>> short_names(["org/a", "runs/of/the/longest-name-there-is"])
    {'org/a': 'a', 'runs/of/the/longest-name-there-is': 'longest-na…-there-is'}
    """
    found: dict[str, str] = {}
    for name in names:
        short = name.rstrip("/").rsplit("/", 1)[-1]
        short = short if len(short) <= longest else f"{short[: longest // 2]}…{short[1 - longest // 2 :]}"
        taken = [other for other in found.values() if other == short or other.startswith(f"{short} #")]
        found[name] = f"{short} #{len(taken) + 1}" if taken else short
    return found


def p_value(p: float) -> str:
    return "< 0.0001" if p < 0.0001 else f"{p:.2g}" if p < 0.01 else f"{p:.3f}"


def _lead(shown: Sequence[tuple[str, Sequence[Panel]]], comparison: Mapping[str, Any] | None) -> str:
    """The finding in a sentence or two."""
    if comparison is not None:
        apart = sum(row["different"] for row in comparison["pairs"])
        return (
            f"Of {count(comparison['tests'])} paired comparisons {count(apart)} {'is' if apart == 1 else 'are'} different at "
            f"α = {comparison['alpha']:g} after Holm’s adjustment. Models that share a letter cannot be told apart by this data."
        )
    panels = shown[0][1] if shown else []
    judged = [p for p in panels if p.verdict]
    if not judged:
        return ""
    better, worse = (sum(p.verdict == verdict for p in judged) for verdict in ("better", "worse"))
    said = f"Against the best trivial scorer the model is better on {better} of {len(judged)} benchmark{'s' * (len(judged) > 1)}"
    said += f", worse on {worse}" if worse else ""
    return said + (f" and not clearly different on {len(judged) - better - worse}." if better + worse < len(judged) else ".")


def _lines(found: Any) -> list[Line]:
    """name → number or dict, as rows."""
    lines = []
    for name, value in (found or {}).items():
        if isinstance(value, Mapping):
            lines.append(Line(str(name), _share(value), value.get("ci"), value.get("n")))
        elif value is None or isinstance(value, int | float):
            lines.append(Line(str(name), value, None, None))
    return lines


def _share(value: Mapping[str, Any]) -> float | None:
    found = value.get("accuracy", value.get("value"))
    return found if isinstance(found, int | float) else None


def _verdict(line: Line, baselines: Sequence[Line], paired: Mapping[str, Any] | None = None) -> str:
    """Against the best baseline: by the paired difference where the result has one, else by where the baseline lies."""
    if paired and paired.get("ci"):
        return "better" if paired["ci"][0] > 0 else "worse" if paired["ci"][1] < 0 else "open"
    bars = [b.value for b in baselines if b.value is not None]
    if line.value is None or line.ci is None or not bars:
        return ""
    return "better" if line.ci[0] > max(bars) else "worse" if line.ci[1] < max(bars) else "open"


# ── one benchmark ────────────────────────────────────────────────────────────────────────────────────────────────────


def _panel(result: Result, anchor: str) -> Panel:
    line = Line(str(result["benchmark"]), result.get("accuracy"), result.get("ci"), result.get("n"))
    parts, baselines = _lines(result.get("parts")), _lines(result.get("baselines"))
    subsets = _lines(result.get("subsets"))
    drawn = [*_parts_figure(parts, _bars_of_parts(result), anchor), *_calibration_figure(result.get("calibration"), anchor)]
    drawn += [*_growth_figure(result.get("best_of_n"), anchor), *_length_figures(result.get("length"), anchor)]
    return Panel(
        name=line.name.replace("_", " "), anchor=anchor, line=line, parts=parts + subsets, baselines=baselines,
        verdict="" if _few(result) else _verdict(line, baselines, result.get("over_baseline")),
        figures=drawn, facts=_facts(result), left_out=result.get("left_out") or {},
        missing=list(result.get("missing") or ()), clusters=result.get("clusters"),
    )  # fmt: skip


def _few(result: Result) -> bool:
    """Too few clusters for the intervals, by the result's own word."""
    return bool((result.get("interval") or {}).get("few_clusters"))


def _facts(result: Result) -> list[str]:
    """Length, calibration and best-of-n in sentences."""
    said = ["So few clusters make intervals too narrow: nothing is concluded from them here."] if _few(result) else []
    if result.get("cut"):
        said.append(f"{count(result['cut'])} answers stand in conversations too long for the model, which were cut on the left.")
    if result.get("with_prior_sets") is not None:
        bounds = _in(result.get("with_prior_sets_ci"))
        said.append(f"With the four prior sets at half weight: {percent(result['with_prior_sets'])}{bounds}.")
    named = (
        ("top1", "accuracy", "Best answer first"),
        ("adjacent", "accuracy", "neighbours in order"),
        ("auroc", "auroc", "AUROC"),
    )
    ranks = [(said_, result[key], field) for key, field, said_ in named if result.get(key)]
    if ranks:
        shown = "; ".join(f"{name} {percent(of[field])}{_in(of['ci'])}" for name, of, field in ranks)
        tau = result.get("kendall_tau") or {}
        said.append(shown + (f"; Kendall’s τ {number(tau['tau'], 2)}{_in(tau['ci'], False)}." if tau else "."))
    length, correlation = result.get("length") or {}, result.get("correlation") or {}
    if length.get("model_longer") is not None:
        said.append(
            f"Of pairs that differ in length the truth prefers the longer in {percent(length['truth_longer'])}, the model in "
            f"{percent(length['model_longer'])}: {points(length['excess'])} points (95\u202f% interval "
            f"{_points(length['excess_ci'])})."
        )
        said.append(
            f"Right where the longer answer is better: {percent(length['accuracy_longer_right'])}; where the shorter is: "
            f"{percent(length['accuracy_shorter_right'])}; on {count(length['matched_n'])} pairs of about equal length: "
            f"{percent(length['matched'])}{_in(length['matched_ci'])}."
        )
    if correlation.get("reward_tau") is not None:
        said.append(
            f"Within prompts Kendall’s τ with length is {number(correlation['reward_tau'], 2)} for the reward and "
            f"{number(correlation['truth_tau'], 2)} for the truth (difference {interval(correlation['excess_tau_ci'], 2)})."
        )
    calibration = result.get("calibration")
    if calibration:
        said.append(_calibration_fact(calibration))
    rows = (result.get("best_of_n") or {}).get("n") or []
    if rows and rows[-1].get("share") is not None:
        last = rows[-1]
        said.append(
            f"Best of {last['n']} by the reward takes {percent(last['share'])}{_in(last['share_ci'])} of what a perfect choice "
            f"would gain over a random one; the policy it stands for is at most {number(last['kl'], 2)} nats from its base."
        )
    return said


def _calibration_fact(found: Mapping[str, Any]) -> str:
    raw, fitted = found["raw"], found["fitted"]
    said = (
        f"Calibration error {number(raw['ece'])}{_in(raw['ece_ci'], False)} over {raw['bins']} bins of equal mass "
        f"(a calibrated model would show {number(raw['ece_noise'][0])}), Brier score "
        f"{number(raw['brier'])} (equal chances: {number(found['baseline']['brier'])}), log loss {number(raw['log_loss'])} "
        f"({number(found['baseline']['log_loss'])})."
    )
    if fitted is None:
        return said + " No temperature is best: the scores do no better than chance, or never err."
    halves = " and ".join(number(t, 2) for t in found["temperature_halves"])
    return said + (
        f" At the other half’s best temperature ({halves}): error {number(fitted['ece'])}, Brier {number(fitted['brier'])}, "
        f"log loss {number(fitted['log_loss'])}."
    )


def _in(bounds: Sequence[float] | None, share: bool = True) -> str:
    return "" if bounds is None else f" ({percents(bounds) if share else interval(bounds)})"


def _points(bounds: Sequence[float] | None) -> str:
    return "–" if bounds is None else f"{points(bounds[0])} to {points(bounds[1])}"


# ── figures ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _rows(lines: Sequence[Line], bars: Mapping[str, Sequence[float]] | None = None) -> list[figures.Row]:
    return [
        figures.Row(
            label=line.name.replace("_", " "), value=line.value, ci=None if line.ci is None else (line.ci[0], line.ci[1]),
            bars=tuple((bars or {}).get(line.name, ())),
        )
        for line in lines
        if line.value is not None
    ]  # fmt: skip


def _overview(panels: Sequence[Panel], anchor: str) -> list[Figure]:
    """All benchmarks of a model beside their baselines."""
    bars = {p.line.name: [b.value for b in p.baselines if b.value is not None] for p in panels}
    rows = _rows([p.line for p in panels], bars)
    if not rows:
        return []
    svg = figures.against(f"{anchor}-overview", "Accuracy by benchmark", rows, x_label="accuracy")
    note = (
        "Bands are 95\u202f% intervals. Orange ticks: trivial scorers; only what lies right of all of them has learned something."
    )
    return [Figure(title="Accuracy beside trivial scorers", svg=svg, note=note)]


def _parts_figure(parts: Sequence[Line], bars: Mapping[str, Sequence[float]], anchor: str) -> list[Figure]:
    rows = _rows(parts, bars)
    if len(rows) < 2:
        return []
    svg = figures.against(f"{anchor}-parts", "Accuracy by part", rows, x_label="accuracy")
    return [Figure(title="Parts", svg=svg, note="Orange ticks: trivial scorers." if any(bars.values()) else "")]


def _bars_of_parts(result: Result) -> dict[str, list[float]]:
    """Part → what trivial scorers reach on it, where a baseline says."""
    found: dict[str, list[float]] = {}
    for parts in (result.get("part_baselines") or {}).values():
        for line in _lines(parts):
            if line.value is not None:
                found.setdefault(line.name, []).append(line.value)
    return found


def _calibration_figure(found: Mapping[str, Any] | None, anchor: str) -> list[Figure]:
    if not found:
        return []
    series = [("as scored", figures.ACCENT, _reliability(found["raw"]))]
    if found["fitted"] is not None:  # without intervals: they are about the same, and two of them hide each other
        series.insert(0, ("temperature fitted", figures.BASE, [(x, y, None) for x, y, _ in _reliability(found["fitted"])]))
    low = min(row["low"] for _, one in (("", found["raw"]), ("", found["fitted"] or found["raw"])) for row in one["table"])
    svg = figures.reliability(f"{anchor}-reliability", "Reliability", series, low)
    note = "Bins of equal mass; dashed: calibrated. Below it the model is surer than right."
    return [Figure(title="Is it as often right as it is sure?", svg=svg, note=note)]


def _reliability(measured: Mapping[str, Any]) -> list[tuple[float, float, Sequence[float] | None]]:
    return [(row["confidence"], row["right"], row["ci"]) for row in measured["table"] if row["right"] is not None]


def _growth_figure(found: Mapping[str, Any] | None, anchor: str) -> list[Figure]:
    rows = (found or {}).get("n") or []
    if len(rows) < 2:
        return []
    ns = [row["n"] for row in rows]
    lines = [
        (figures.Series(label="oracle", x=ns, y=[row["oracle"] for row in rows], color=figures.BASE), []),
        (
            figures.Series(label="reward model", x=ns, y=[row["truth"] for row in rows], marker=True),
            [row["ci"] for row in rows],
        ),
    ]
    svg = figures.growth(
        f"{anchor}-best-of-n", "True quality of the best of n", lines, x_label="n", y_label="truth", level=rows[0]["random"]
    )
    assert found is not None
    note = f"{count(found['prompts'])} prompts; expected over all subsets of n. Dashed: a random answer."
    return [Figure(title="Best of n", svg=svg, note=note)]


def _length_figures(found: Mapping[str, Any] | None, anchor: str) -> list[Figure]:
    classes = [row for row in (found or {}).get("by_gap") or [] if row["model_longer"] is not None]
    if not classes:
        return []
    rows = [(_gap(row), row["truth_longer"], row["model_longer"]) for row in classes]
    svg = figures.preferences(
        f"{anchor}-length",
        "Preference for the longer answer",
        rows,
        names=("truth", "model"),
        x_label="share preferring the longer",
    )
    return [
        Figure(title="Longer answers", svg=svg, note="By how many times longer; a model without a length bias follows the truth.")
    ]


def _gap(row: Mapping[str, Any]) -> str:
    return f"over {row['from']:g}×" if row["to"] is None else f"{row['from']:g} to {row['to']:g}×"


# ── several models ───────────────────────────────────────────────────────────────────────────────────────────────────


def _side_by_side(models: Mapping[str, Sequence[Result]], comparison: Mapping[str, Any]) -> list[Figure]:
    """Models within each benchmark, and their best-of-n curves."""
    found, short = [], short_names(list(models))
    by = {name: {str(r["benchmark"]): r for r in results} for name, results in models.items()}
    for b, (benchmark, standing) in enumerate(comparison["benchmarks"].items()):
        lines = []
        for name in standing["order"]:
            result = by.get(name, {}).get(benchmark)
            if result is not None:
                label = f"{short[name]} ({standing['letters'][name]})"
                lines.append(Line(label, result.get("accuracy"), result.get("ci"), result.get("n")))
        rows = _rows(lines)
        if rows:
            svg = figures.against(f"c{b}", f"Models on {benchmark}", rows, x_label="accuracy")
            found.append(Figure(title=benchmark.replace("_", " "), svg=svg))
    benchmarks = list(dict.fromkeys(b for results in by.values() for b in results))
    for b, benchmark in enumerate(benchmarks):
        lines_of = []
        for m, (name, results) in enumerate(by.items()):
            rows_of = ((results.get(benchmark) or {}).get("best_of_n") or {}).get("n") or []
            if len(rows_of) > 1:
                line = figures.Series(
                    label=short[name],
                    x=[r["n"] for r in rows_of],
                    y=[r["truth"] for r in rows_of],
                    color=COLORS[m % len(COLORS)],
                    marker=True,
                )
                lines_of.append((line, [r["ci"] for r in rows_of]))
        if len(lines_of) > 1:
            svg = figures.growth(f"cn{b}", f"Best of n on {benchmark}", lines_of, x_label="n", y_label="truth")
            found.append(Figure(title=f"Best of n, {benchmark.replace('_', ' ')}", svg=svg))
    return found
