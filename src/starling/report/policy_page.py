"""The policy's part of the report: curves, reward against KL, the guard, and how the checkpoint was selected.

All from the stage's own files: log.jsonl (one row per iteration; an evaluation's numbers are named eval/…, its verdict of the
guard stands under `guard`), selection.json and best_of_n.json. What a run does not have is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starling.report import figures
from starling.report.figures import Figure, Series, points

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One panel of the policy's log: which keys to draw under which name."""

    title: str
    note: str
    keys: tuple[tuple[str, str], ...]
    share: bool = False


CURVES = (
    Curve(
        title="Gold score on validation prompts", note="True quality; the training never sees it.", share=True,
        keys=(("eval/gold", "sampled"), ("eval/greedy/gold", "greedy")),
    ),
    Curve(
        title="Reward model's score", note="Raw score of rollouts and of validation replies.",
        keys=(("score", "rollouts"), ("eval/score", "validation")),
    ),
    Curve(
        title="KL from the base", note="Nats per reply, estimated on rollouts and on validation replies.",
        keys=(("kl_reply", "rollouts"), ("eval/kl", "validation")),
    ),
    Curve(
        title="Length", note="Tokens per reply, end token included.",
        keys=(("length", "rollouts"), ("eval/length", "validation")),
    ),
    Curve(
        title="Finished", note="Share of replies that ended by themselves.", share=True,
        keys=(("finished", "rollouts"), ("eval/finished", "validation")),
    ),
    Curve(title="Value loss", note="The critic's error on returns.", keys=(("value_loss", "critic"),)),
)  # fmt: skip
COLORS = {
    "rollouts": figures.BASE,
    "critic": figures.BASE,
    "validation": figures.ACCENT,
    "sampled": figures.ACCENT,
    "greedy": figures.WARN,
}

SCORES = (
    ("score", "Reward model's score", "What is optimised."),
    ("guard", "Guard's score", "A second reward model that the tuning never sees."),
    ("gold", "Gold score", "True quality, known in the microworld only."),
)
"""Numbers of an evaluation that say how good its replies are: name in the log (under eval/), title, note."""

COLUMNS = (
    ("score", "reward model", 2),
    ("guard", "guard", 2),
    ("gold", "gold", 3),
    ("check", "check", 3),
    ("win_rate", "win rate", 3),
    ("kl", "KL, nats", 2),
    ("length", "tokens", 1),
    ("repetition", "repetition", None),
    ("refusals", "refusals", None),
    ("finished", "finished", None),
)
"""Of the table of evaluations: name in the log (under eval/), head, digits (None: in per cent)."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One evaluation in the table."""

    iteration: int
    cells: tuple[tuple[float | None, float | None, int | None], ...]
    """(value, its standard error, digits or None for per cent)."""
    fired: bool
    chosen: bool


@dataclass(frozen=True, kw_only=True)
class PolicyTables:
    """What the template shows besides figures."""

    heads: tuple[str, ...]
    lines: tuple[Line, ...]
    has_errors: bool
    guard: str
    """What the guard said at last, and when it fired; empty where the log has no verdict."""
    fired: bool


def policy_figures(log: Sequence[Row], reference: Row, selection: Row) -> list[Figure]:
    """Reward against KL, the guard, then curves over iterations, as far as the log has them.

    Args:
        log: rows of log.jsonl.
        reference: best_of_n.json, may be empty.
        selection: selection.json, may be empty.
    """
    return [*_frontiers(log, reference, selection), *_guard_figure(log), *_curves(log)]


def policy_tables(log: Sequence[Row], selection: Row) -> PolicyTables | None:
    """The table of evaluations and the guard's words; None without an evaluation."""
    rows = _evaluations(log)
    if not rows:
        return None
    columns = [c for c in COLUMNS if any(_value(row, c[0]) is not None for row in rows)]
    chosen = selection.get("iteration")
    lines = tuple(
        Line(
            iteration=int(row["iteration"]),
            cells=tuple((_value(row, name), _value(row, f"{name}_se"), digits) for name, _, digits in columns),
            fired=_fired(row),
            chosen=row["iteration"] == chosen,
        )
        for row in rows
    )
    first = next((line.iteration for line in lines if line.fired), None)
    verdicts = [row["guard"]["why"] for row in rows if _verdict(row)]
    words = ""
    if verdicts:
        last = verdicts[-1]
        words = f"It never fired. {last}" if first is None else f"It fired at iteration {first}. {_why(rows, first)}"
        if first is not None and last != _why(rows, first):
            words += f" At the last evaluation: {last[0].lower()}{last[1:]}"
    return PolicyTables(
        heads=tuple(head for _, head, _ in columns),
        lines=lines,
        has_errors=any(error is not None for line in lines for _, error, _ in line.cells),
        guard=words,
        fired=first is not None,
    )


# ── figures ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _frontiers(log: Sequence[Row], reference: Row, selection: Row) -> list[Figure]:
    """One panel per score: where the tuning went, and where best-of-n sampling would have gone with the same base."""
    rows = [row for row in _evaluations(log) if _kl(row) is not None]
    curve = reference.get("curve", ())
    fired = next((row["iteration"] for row in rows if _fired(row)), None)
    found = []
    for name, title, note in SCORES:
        mine = [row for row in rows if _value(row, name) is not None]
        if len(mine) < 2:
            continue
        best = [(float(r["kl"]), float(r[name]), float(r.get(f"{name}_se", 0.0))) for r in curve if name in r]
        marks = {fired: figures.FIRED} if fired is not None else {}
        if selection.get("outcome") == "chosen":
            marks[selection["iteration"]] = "selected"
        svg = figures.frontier(
            f"frontier-{name}",
            f"Policy: {title} against KL from the base",
            [(max(0.0, _kl(row) or 0.0), float(row[f"eval/{name}"]), _value(row, f"{name}_se") or 0.0) for row in mine],
            [int(row["iteration"]) for row in mine],
            best,
            marks,
        )
        said = f" Grey: the best of 1 to {reference.get('replies')} replies of the base." if best else ""
        found.append(Figure(title=f"{title} against KL", svg=svg, note=f"{note}{said}"))
    return found


def _guard_figure(log: Sequence[Row]) -> list[Figure]:
    rows = [row for row in _evaluations(log) if _value(row, "guard") is not None and _value(row, "score") is not None]
    if len(rows) < 2:
        return []
    panels = []
    for name, label, color in (("score", "reward model", figures.BASE), ("guard", "guard", figures.ACCENT)):
        x, y = points(rows, "iteration", f"eval/{name}")
        panels.append((Series(label=label, x=x, y=y, color=color, marker=True), [_value(row, f"{name}_se") for row in rows]))
    fired = next((float(row["iteration"]) for row in rows if _fired(row)), None)
    svg = figures.stacked("policy-guard", "Reward model and guard over iterations", panels, x_label="iteration", mark=fired)
    note = "Bands are 95\u202f% intervals." if any(error is not None for _, errors in panels for error in errors) else ""
    fell = "" if fired is None else " The orange line is where the guard fired."
    return [Figure(title="Is it better, or only liked better?", svg=svg, note=f"{note}{fell}".strip())]


def _curves(log: Sequence[Row]) -> list[Figure]:
    found = []
    for curve in CURVES:
        lines = []
        for key, label in curve.keys:
            x, y = points(log, "iteration", key)
            if x:
                lines.append(Series(label=label, x=x, y=y, color=COLORS[label], marker=key.startswith("eval")))
        if lines:
            name = "policy-" + curve.keys[0][0].replace("/", "-").replace("_", "-")
            svg = figures.curves(name, f"Policy: {curve.title}", lines, x_label="iteration", share=curve.share)
            found.append(Figure(title=curve.title, svg=svg, note=curve.note))
    return found


# ── the log ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _evaluations(log: Sequence[Row]) -> list[Row]:
    return [row for row in log if "iteration" in row and any(key.startswith("eval/") for key in row)]


def _value(row: Row, name: str) -> float | None:
    """A finite number of an evaluation."""
    value = row.get(f"eval/{name}")
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if number else None  # type: ignore[arg-type]


def _kl(row: Row) -> float | None:
    """The KL of an evaluation; the base's from itself is 0."""
    return 0.0 if row["iteration"] == 0 else _value(row, "kl")


def _verdict(row: Row) -> bool:
    return isinstance(row.get("guard"), Mapping)


def _fired(row: Row) -> bool:
    return _verdict(row) and bool(row["guard"]["fired"])


def _why(rows: Sequence[Row], iteration: int) -> str:
    return next(str(row["guard"]["why"]) for row in rows if row["iteration"] == iteration)
