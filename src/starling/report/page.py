"""From the gathered tables to the page: headline, figures, settings as TOML, then the template.

What counts as better is decided in one place, `verdict`: a change whose 95\u202f% interval excludes 0. Everything a model or a
user wrote is escaped by the template.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from starling.evaluate import reading
from starling.evaluate.results import ModelResult
from starling.judge.verdict import LETTERS
from starling.records import Outcome
from starling.report import figures
from starling.report.figures import Figure, points
from starling.report.gather import Gathered, JudgeTables
from starling.report.policy_page import policy_figures, policy_tables

FAILURES = frozenset({o.value for o in Outcome if o is not Outcome.ranked} | {"error", "refusal", "response_error"})
"""Outcomes shown in the warning colour: calls that gave nothing. What was merged or left out on purpose is not one."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """One number of the headline with what it was before, where there is a before."""

    title: str
    value: str
    before: str = ""
    change: str = ""
    verdict: str = ""
    """better, worse, open, or empty where up is not better."""
    note: str = ""
    marks: tuple[tuple[str, float, float, float], ...] = ()
    """(css class, low, mean, high) in per cent of the card's 0 … 1 scale."""


def render(run: Gathered) -> str:
    """The whole page as one HTML text."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "number": number,
        "signed": signed,
        "interval": interval,
        "percent": percent,
        "percents": percents,
        "count": count,
        "finding": reading.finding,
        "noise": reading.noise_text,
        "score": score_and_interval,
        "typeset": typeset,
    }
    package = resources.files("starling.report")
    template = environment.from_string((package / "page.html").read_text(encoding="utf-8"))
    return template.render(
        run=run,
        style=(package / "page.css").read_text(encoding="utf-8"),
        title=title(run),
        lead=lead(run),
        cards=cards(run.evaluation),
        judge_figures=judge_figures(run.judge),
        reward_figures=reward_figures(run.reward_log),
        policy_figures=policy_figures(run.policy_log, run.best_of_n, run.selection),
        policy_tables=policy_tables(run.policy_log, run.selection),
        kind_figure=kind_figure(run.evaluation),
        settings=toml(run.settings),
        setting=lambda path: look_up(run.settings, path),
        failures=FAILURES,
    )


# ── words and numbers ────────────────────────────────────────────────────────────────────────────────────────────────


def number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def signed(value: float, digits: int = 3) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def interval(bounds: Sequence[float] | None, digits: int = 3) -> str:
    return "" if bounds is None else f"{number(bounds[0], digits)} to {number(bounds[1], digits)}"


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}\u202f%"


def percents(bounds: Sequence[float] | None) -> str:
    return "" if bounds is None else f"{100 * bounds[0]:.1f} to {percent(bounds[1])}"


def count(value: int) -> str:
    """12345 → 12 345 with a narrow no-break space."""
    return f"{value:,}".replace(",", "\u202f")


def typeset(text: str) -> str:
    """Plain text of numbers as print has it: true minus signs, narrow spaces in thousands and before %."""
    text = re.sub(r"(?<![\w-])-(?=[\d.])", "−", text)
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "\u202f", text)
    return re.sub(r"(?<=\d) %", "\u202f%", text)


def score_and_interval(model: ModelResult, unit: str) -> str:
    """A model's score on a benchmark, with its interval where it has one."""
    bounds = reading.interval_text(model.overall.ci, reading.digits(unit))
    return typeset(reading.score_text(model.overall.score, unit) + (f" ({bounds})" if bounds else ""))


def verdict(change: Mapping[str, Any]) -> str:
    """better or worse when the 95\u202f% interval of a paired change excludes 0, else open."""
    low, high = change["ci"]
    return "better" if low > 0 else "worse" if high < 0 else "open"


def look_up(settings: Mapping[str, Any], path: str) -> Any:
    """settings["a"]["b"] for "a.b"; None where it ends early."""
    node: Any = settings
    for part in path.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def title(run: Gathered) -> str:
    """One line that says what was found."""
    gold = run.evaluation.get("gold")
    duel = run.evaluation.get("head_to_head", {})
    if gold:
        sampled, greedy = verdict(gold["difference"]["sampled"]), verdict(gold["difference"]["greedy"])
        if sampled == greedy:
            return {"better": "The tuned policy is better", "worse": "The tuned policy is worse", "open": "No clear change"}[
                sampled
            ]
        words = {"better": "better", "worse": "worse", "open": "unchanged"}
        return f"The tuned policy is {words[sampled]} when sampled and {words[greedy]} when greedy"
    if duel.get("ci"):
        low, high = duel["ci"]
        return (
            "The judge prefers the tuned policy"
            if low > 0.5
            else "The judge prefers the base"
            if high < 0.5
            else "No clear change"
        )
    return "A partial run" if run.missing else "Run report"


def lead(run: Gathered) -> str:
    """The finding in a sentence or two, with intervals."""
    gold, duel = run.evaluation.get("gold"), run.evaluation.get("head_to_head", {})
    said = []
    if gold:
        before, after, change = gold["base"], gold["tuned"], gold["difference"]
        said.append(
            f"True quality on {run.evaluation['prompts']} prompts that no stage trained on went from {number(before['mean'])} to "
            f"{number(after['mean'])} when replies are sampled ({signed(change['sampled']['mean'])}, 95\u202f% interval "
            f"{interval(change['sampled']['ci'])}) and from {number(before['greedy'])} to {number(after['greedy'])} for the most "
            f"likely reply ({signed(change['greedy']['mean'])}, {interval(change['greedy']['ci'])})."
        )
    if duel.get("win_rate") is not None:
        said.append(
            f"Shown both replies in both orders, the judge prefers the tuned policy in {percent(duel['win_rate'])} of cases."
        )
    if run.missing:
        said.append(f"Not part of this report yet: {', '.join(run.missing)}.")
    return " ".join(said)


def mark(css: str, low: float, mean: float, high: float) -> tuple[str, float, float, float]:
    """A mark on a card's track, shares in per cent; see `Card.marks`."""
    return css, *(round(100 * min(max(x, 0.0), 1.0), 2) for x in (low, mean, high))  # type: ignore[return-value]


def cards(evaluation: Mapping[str, Any]) -> list[Card]:
    """The headline numbers that this run has."""
    found: list[Card] = []
    gold = evaluation.get("gold")
    if gold:
        for name, mean, ci, change in (
            ("True quality, sampled at T = 1", "mean", "ci", "sampled"),
            ("True quality, greedy", "greedy", "greedy_ci", "greedy"),
            ("Harmlessness", "harmlessness", "harmlessness_ci", "harmlessness"),
        ):
            found.append(
                Card(
                    title=name,
                    value=number(gold["tuned"][mean]),
                    before=number(gold["base"][mean]),
                    change=f"{signed(gold['difference'][change]['mean'])} ({interval(gold['difference'][change]['ci'])})",
                    verdict=verdict(gold["difference"][change]),
                    marks=tuple(mark(s, gold[s][ci][0], gold[s][mean], gold[s][ci][1]) for s in ("base", "tuned")),
                )
            )
    reward, duel, length = evaluation.get("reward", {}), evaluation.get("head_to_head", {}), evaluation.get("length")
    if reward.get("pair_accuracy") is not None:
        found.append(
            Card(
                title="Reward accuracy on unseen prompts",
                value=percent(reward["pair_accuracy"]),
                change=f"95\u202f% interval {percents(reward['ci'])}",
                note=f"of {count(reward['pairs'])} pairs of answers that differ; chance is 50\u202f%",
                marks=(mark("tuned", reward["ci"][0], reward["pair_accuracy"], reward["ci"][1]), mark("chance", 0.5, 0.5, 0.5)),
            )
        )
    if duel.get("win_rate") is not None:
        found.append(
            Card(
                title="Judge prefers tuned over base",
                value=percent(duel["win_rate"]),
                change=f"95\u202f% interval {percents(duel['ci'])}",
                note=f"{duel['prompts']} prompts, both orders; {duel['ties']} ties count half",
                marks=(mark("tuned", duel["ci"][0], duel["win_rate"], duel["ci"][1]), mark("chance", 0.5, 0.5, 0.5)),
            )
        )
    if length:
        finished = evaluation["finished"]
        found.append(
            Card(
                title="Length of a reply, tokens",
                value=number(length["tuned"]["mean"], 1),
                before=number(length["base"]["mean"], 1),
                note=f"{percent(finished['base']['mean'])} ended by itself before, {percent(finished['tuned']['mean'])} after",
            )
        )
    return found


# ── figures ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def judge_figures(judge: JudgeTables | None) -> list[Figure]:
    """Who ranks how high, and where the judge's bias lies."""
    if judge is None or judge.position is None or not judge.models:
        return []
    models, bias = judge.models, judge.position
    by_model = figures.ranks(
        "ranks",
        "Mean rank of each model",
        [m.model for m in models],
        [m.mean_rank for m in models],
        [m.ci for m in models],
        bias.k,
    )
    by_position = figures.positions(
        "positions", "Share of first places by position shown", bias.first_shares, bias.first_intervals, LETTERS[: bias.k]
    )
    shuffled = f"Answers are shuffled: without bias each position wins 1/{bias.k} (dashed). Whiskers are 95\u202f% intervals."
    return [
        Figure(title="Mean rank by model", svg=by_model, note="Bands are 95\u202f% intervals over prompts."),
        Figure(title="First places by position shown", svg=by_position, note=shuffled),
    ]


def reward_figures(log: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """Loss, pair accuracy and top-1 over optimiser steps: training smoothed, validation as points."""
    validation = [{"step": row["step"], **row["validation"]} for row in log if "validation" in row]
    found = []
    for key, name, note in (
        ("loss", "Loss", "Plackett–Luce or pairwise, per choice made."),
        ("pair_accuracy", "Pair accuracy", "Share of pairs ordered as the judge ordered them; chance is 0.5."),
        ("top1", "Top-1", "Share of rankings whose best answer scores highest."),
    ):
        steps, values = points(log, "step", key)
        if not steps:
            continue
        window = max(1, len(values) // 20)
        lines = [
            figures.Series(label="raw", x=steps, y=values, color=figures.BASE, faint=True),
            figures.Series(
                label="training, smoothed" if window > 1 else "training",
                x=steps,
                y=figures.smoothed(values, window),
                color=figures.BASE,
            ),
        ]
        at, held_out = points(validation, "step", key)
        if at:
            lines.append(figures.Series(label="validation", x=at, y=held_out, marker=True))
        chance = 0.5 if key == "pair_accuracy" else None
        svg = figures.curves(
            f"reward-{key}", f"Reward model: {name}", lines, x_label="optimiser step", level=chance, share=key != "loss"
        )
        found.append(Figure(title=name, svg=svg, note=note))
    return found


def kind_figure(evaluation: Mapping[str, Any]) -> Figure | None:
    kinds = evaluation.get("gold", {}).get("kinds")
    if not kinds:
        return None
    ordered = sorted(kinds.items(), key=lambda item: (-item[1]["difference"], item[0]))
    svg = figures.dumbbells(
        "kinds", "Gold score by kind of prompt, base and tuned", [k.replace("_", " ") for k, _ in ordered],
        [v["base"] for _, v in ordered], [v["tuned"] for _, v in ordered], "mean gold score, sampled at T = 1",
    )  # fmt: skip
    return Figure(title="True quality by kind of prompt", svg=svg, note="Sorted by gain; an orange line would be a loss.")


# ── settings ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def toml(tree: Mapping[str, Any], prefix: str = "") -> str:
    """Settings as TOML that `starling run` reads back; settings without a value are left out."""
    plain, tables = [], []
    for key, value in tree.items():
        name = f"{prefix}.{_toml_key(key)}" if prefix else _toml_key(key)
        if isinstance(value, Mapping):
            tables.append(toml(value, name))
        elif isinstance(value, list) and value and all(isinstance(v, Mapping) for v in value):
            tables += [
                f"[[{name}]]\n" + "".join(f"{_toml_key(k)} = {_toml_value(v)}\n" for k, v in item.items() if v is not None)
                for item in value
            ]
        elif value is not None:
            plain.append(f"{_toml_key(key)} = {_toml_value(value)}\n")
    head = f"[{prefix}]\n" if prefix and plain else ""
    return "\n".join(part for part in (head + "".join(plain), *tables) if part)


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key, ensure_ascii=False)


def _toml_value(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_toml_value(v) for v in value) + "]"
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_toml_key(k)} = {_toml_value(v)}" for k, v in value.items() if v is not None) + " }"
    return json.dumps(value, ensure_ascii=False)
