"""How many prompts a comparison needs, from an assumed spread or from what an earlier comparison shows; see `stats_planning`.

Measured from

    votes        the two models that met most (or are named): spread of one prompt's score, correlation of the two orders
    result.json  any benchmark's: the widest of its differences, whose interval's half width is 1.96 σ / √prompts
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from pathlib import Path
from typing import Any, Literal

import numpy as np

from starling import stats_planning as planning
from starling.errors import InputError
from starling.evaluate.pairwise.votes import Votes, read_votes
from starling.evaluate.result_files import read_result
from starling.evaluate.results import Difference, Result

Measure = Literal["win-rate", "points", "accuracy"]
UNITS: dict[Measure, str] = {"win-rate": "points of win rate", "points": "points", "accuracy": "points of accuracy"}
DIFFERENCES: dict[Measure, tuple[float, ...]] = {
    "win-rate": (1, 2, 3, 5, 10), "points": (0.1, 0.2, 0.3, 0.5, 1), "accuracy": (0.5, 1, 2, 3, 5)
}  # fmt: skip
"""What the second table asks for."""
POINTS_SD = 2.2
"""Spread of the difference of two models' mean grades (of 10) on an MT-Bench question, where nothing is known: measured on
GPT-4's grades of mistral-orpo and mistral-orpo-trl (docs/head-to-head.md)."""
DISCORDANT = 0.2
"""Share of items on which only one of two models is right, where nothing is known."""
ORDER_CORRELATION = 0.5
"""Of a judge's verdicts in the two orders of a pair, where nothing is known."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a size can see and what a difference needs, in points of `unit`."""

    measure: Measure
    unit: str
    sd: float
    """Of one prompt's difference, verdicts averaged as asked."""
    source: str
    alpha: float
    power: float
    difference: float
    needed: int
    """Prompts that see `difference`."""
    by_size: Sequence[Mapping[str, float]]
    """Rows {n, detectable}."""
    by_difference: Sequence[Mapping[str, float]]
    """Rows {difference, needed}."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Spread:
    """The spread of one prompt's difference in the measure's points, and where it is from."""

    sd: float
    source: str


def plan(
    measure: Measure, spread: Spread, difference: float, *, alpha: float = planning.ALPHA, power: float = planning.POWER
) -> Plan:
    """The plan of a paired, two-sided comparison.

    Raises:
        ValueError: see `stats_planning.needed`.
    """
    return Plan(
        measure=measure, unit=UNITS[measure], sd=spread.sd, source=spread.source, alpha=alpha, power=power, difference=difference,
        needed=planning.needed(spread.sd, difference, alpha=alpha, power=power),
        by_size=planning.table(spread.sd, alpha=alpha, power=power),
        by_difference=[
            {"difference": d, "needed": planning.needed(spread.sd, d, alpha=alpha, power=power)}
            for d in sorted({*DIFFERENCES[measure], difference})
        ],
    )  # fmt: skip


# ── assumed ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def assumed(
    measure: Measure,
    *,
    sd: float | None = None,
    ties: float = 0.0,
    discordant: float = DISCORDANT,
    verdicts: int = 2,
    correlation: float = ORDER_CORRELATION,
) -> Spread:
    """A spread from assumptions.

    Args:
        sd: of one verdict's score in points (win rate: 50 for a verdict without ties); None for the measure's usual one.
        ties: win rate: share of single verdicts that are ties.
        discordant: accuracy: share of items on which only one of the two is right.
        verdicts: win rate: verdicts per prompt that are averaged (both orders: 2).
        correlation: win rate: between two verdicts on one prompt.

    Raises:
        ValueError: shares or correlations that cannot be.
    """
    if measure == "accuracy":
        one = 100 * planning.accuracy_sd(discordant) if sd is None else sd
        return Spread(sd=one, source=f"{discordant:.0%} of items decided differently" if sd is None else "given")
    if measure == "points":
        return Spread(sd=POINTS_SD if sd is None else sd, source="two models on MT-Bench" if sd is None else "given")
    one = 100 * planning.win_rate_sd(ties) if sd is None else sd
    source = f"{ties:.0%} ties" if sd is None else f"one verdict: {sd:g}"
    if verdicts > 1:
        source += f", {verdicts} verdicts per prompt that correlate by {correlation:g}"
    return Spread(sd=planning.averaged_sd(one, verdicts, correlation), source=source)


# ── measured ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def measured(path: Path, *, pair: tuple[str, str] | None = None) -> Spread:
    """The spread that an earlier comparison shows: of a result.json or a file of votes.

    Args:
        pair: the two models to look at; None for those with the most (votes) or the widest (result) comparison.

    Raises:
        InputError: the file cannot be read, or does not have the pair with at least three prompts.
    """
    if path.is_dir() or path.name == "result.json":
        return _of_result(read_result(path), pair, path)
    return _of_votes(read_votes([path]), pair, path)


def _of_result(result: Result, pair: tuple[str, str] | None, path: Path) -> Spread:
    clusters = {m.model: m.overall.clusters for m in result.models}

    def spread(one: Difference) -> float:
        prompts = min((clusters[n] for n in (one.first, one.second) if clusters.get(n)), default=0)
        return (one.ci[1] - one.ci[0]) / 2 / 1.959964 * sqrt(prompts)

    wanted = [d for d in result.differences if pair is None or {d.first, d.second} == set(pair)]
    if not wanted:
        raise _no_pair(pair, path, [f"{d.first},{d.second}" for d in result.differences])
    one = max(wanted, key=spread)
    # A head to head without a baseline shows wins minus losses, which is twice a win rate's distance from one half.
    net = result.benchmark == "head-to-head" and not result.settings.get("baseline")
    return Spread(sd=spread(one) / (2 if net else 1), source=f"{one.first} and {one.second} in {path} ({result.unit})")


def _of_votes(votes: Votes, pair: tuple[str, str] | None, path: Path) -> Spread:
    models = len(votes.models)
    key = votes.a_N.astype(np.int64) * models + votes.b_N
    if pair is None:
        chosen = int(np.bincount(key).argmax())
    else:
        numbers = sorted(votes.models.index(name) for name in pair if name in votes.models)
        chosen = numbers[0] * models + numbers[1] if len(numbers) == 2 else -1
    rows = (key == chosen) & ~np.isnan(votes.preference_b_N)
    prompts, member = np.unique(votes.prompt_N[rows], return_inverse=True)
    if len(prompts) < 3:
        raise _no_pair(pair, path, [f"{votes.models[k // models]},{votes.models[k % models]}" for k in np.unique(key)])
    preference, first = votes.preference_b_N[rows], votes.first_N[rows]
    means = np.bincount(member, preference) / np.bincount(member)
    source = f"{votes.models[chosen // models]} and {votes.models[chosen % models]} in {path}, {len(prompts):,} prompts"
    one, two = (_by_prompt(member, preference, first == side, len(prompts)) for side in (1, 2))
    both = ~np.isnan(one) & ~np.isnan(two)
    if (found := planning.correlation(one[both], two[both])) is not None:
        source += f", orders correlate by {found:.2f}"
    return Spread(sd=100 * float(means.std(ddof=1)), source=source)


def _by_prompt(member: np.ndarray, preference: np.ndarray, rows: np.ndarray, prompts: int) -> np.ndarray:  # type: ignore[type-arg]
    """Mean preference per prompt over these rows; NaN where there are none."""
    counts = np.bincount(member[rows], minlength=prompts)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.bincount(member[rows], preference[rows], minlength=prompts) / counts)


def _no_pair(pair: tuple[str, str] | None, path: Path, known: Sequence[str]) -> InputError:
    return InputError(
        f"{' and '.join(pair) if pair else 'No two models'} were not compared on at least three prompts",
        where=str(path),
        cure=f"name one of these pairs: {'; '.join(known[:6])}" if known else "give a file with a comparison of two models",
    )
