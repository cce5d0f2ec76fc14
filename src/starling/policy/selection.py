"""Which checkpoint becomes the artifact, by a rule that was written down before.

Source: how Starling's authors chose theirs, as told in the reviews of their paper: watch verbosity, throw out what loses more
than 0.05 of a check (IFEval) against the model before tuning, then take what people or a judge prefer. Here: among the evaluated
iterations those whose mean length and check stay within bounds, of these the one with the largest `policy.selection.by`; of
equal ones the earliest.

The base (iteration 0) is in the table as the reference and is not a candidate: a tuning that did not pay shows in the table, and
is not turned into a copy of the base. When no iteration passes, the outcome is `none_passes`, and the last weights are kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from starling.config import SelectionSection
from starling.errors import ConfigError

SELECTION_FILE = "selection.json"
"""In the policy artifact: a Choice as JSON."""
LENGTH = "eval/length"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One evaluation in the table, e.g. iteration 10, passes False, reasons ("length 1.62 times the base's, at most 1.5",)."""

    iteration: int
    by: float | None
    length_ratio: float | None
    """Mean length relative to the base's."""
    check: float | None
    check_change: float | None
    """The check relative to the base's."""
    passes: bool
    reasons: tuple[str, ...] = ()
    """Why it does not pass."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The iteration whose weights become the artifact, and how it came about."""

    iteration: int
    outcome: Literal["last", "chosen", "none_passes"]
    """last: the settings keep the last; none_passes: the last is kept because no evaluation passes."""
    why: str
    rule: str
    """The rule in words, as it was set before the tuning."""
    table: tuple[Candidate, ...]
    """All evaluations, the base first."""

    def record(self) -> dict[str, Any]:
        """As JSON values, for SELECTION_FILE."""
        return asdict(self)


def require(base: Mapping[str, Any], settings: SelectionSection) -> None:
    """Refuse a rule that no evaluation can meet; to be asked after the base's evaluation, before anything is trained.

    Args:
        base: the base's evaluation.

    Raises:
        ConfigError: with keep = "rule": it has no number that `by` or `check` names.
    """
    for setting in ("by", "check") if settings.keep == "rule" else ():
        name = getattr(settings, setting)
        if name is not None and _number(base, name) is None:
            known = sorted(key for key in base if key.startswith("eval/") and _number(base, key) is not None)
            hint = "; eval/guard comes with policy.guard.model or reward.guard_fraction" if name == "eval/guard" else ""
            raise ConfigError(
                f"The evaluations of this tuning have no number called {name}",
                where=f"policy.selection.{setting}",
                cure=f"name one of {', '.join(known)}{hint}",
            )


def choose(rows: Sequence[Mapping[str, Any]], settings: SelectionSection, untrained: int = 0) -> Choice:
    """The choice among the evaluations of a log.

    Args:
        rows: the log's rows in order; those with eval/length are the evaluations, that of iteration 0 is the base.
        settings: `policy.selection`.
        untrained: last iteration in which only the critic learned; up to it the policy is the base, and no candidate.

    Raises:
        ValueError: no evaluation, or none of the base.
    """
    evaluated = [row for row in rows if LENGTH in row]
    if not evaluated or evaluated[0]["iteration"] != 0:
        raise ValueError("the first evaluation must be that of the base, iteration 0")
    table = tuple(_candidate(row, evaluated[0], settings, untrained) for row in evaluated)
    last = table[-1].iteration
    rule = said(settings)
    passing = [c for c in table[1:] if c.passes and c.by is not None]
    if settings.keep == "last":
        return Choice(iteration=last, outcome="last", why="The settings keep the last weights.", rule=rule, table=table)
    if not passing:
        why = f"None of {len(table) - 1} evaluations passes; the last weights, of iteration {last}, are kept."
        return Choice(iteration=last, outcome="none_passes", why=why, rule=rule, table=table)
    best = max(passing, key=lambda c: c.by)  # type: ignore[arg-type,return-value]  # of equal ones the first
    why = f"Iteration {best.iteration} has the largest {settings.by}, {best.by:.4g}, of the {len(passing)} that pass."
    return Choice(iteration=best.iteration, outcome="chosen", why=why, rule=rule, table=table)


def said(settings: SelectionSection) -> str:
    """The rule in words."""
    if settings.keep == "last":
        return "Keep the last weights."
    check = f", {settings.check} at most {settings.most_regression:g} below the base's" if settings.check else ""
    return f"Mean length at most {settings.longest:g} times the base's{check}; of these the largest {settings.by}."


def _candidate(row: Mapping[str, Any], base: Mapping[str, Any], settings: SelectionSection, untrained: int) -> Candidate:
    length, base_length = _number(row, LENGTH), _number(base, LENGTH)
    ratio = length / base_length if length is not None and base_length else None
    check = _number(row, settings.check) if settings.check else None
    base_check = _number(base, settings.check) if settings.check else None
    change = check - base_check if check is not None and base_check is not None else None
    by = _number(row, settings.by)
    reasons = ["the policy is still the base"] if 0 < row["iteration"] <= untrained else []
    if ratio is None:
        reasons.append("its length relative to the base's is not known")
    elif ratio > settings.longest:
        reasons.append(f"replies are {ratio:.2f} times as long as the base's, more than {settings.longest:g}")
    if settings.check and change is None:
        reasons.append(f"{settings.check} relative to the base's is not known")
    elif change is not None and -change > settings.most_regression + 1e-12:  # 0.75 − 0.70 is more than 0.05 in floats
        reasons.append(f"{settings.check} fell by {-change:.3g}, more than {settings.most_regression:g}")
    if by is None:
        reasons.append(f"it has no {settings.by}")
    return Candidate(
        iteration=int(row["iteration"]),
        by=by,
        length_ratio=ratio,
        check=check,
        check_change=change,
        passes=not reasons,
        reasons=tuple(reasons),
    )


def _number(row: Mapping[str, Any], name: str) -> float | None:
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
