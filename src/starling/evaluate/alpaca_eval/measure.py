"""What AlpacaEval's annotations of a model come to: its win rates, their intervals, and how far the judge's order mattered.

Source: `alpaca_eval.metrics.get_winrate` 0.6.6. Departures: intervals beside standard errors (percentile bootstrap, clustered by
instruction, the same resamples for every figure); the position gap, which the official single order hides:

    position gap = mean preference for the candidate where it was shown first − where it was shown second,     −1 … 1

which is also the share of verdicts for the answer shown first minus the share for the second, both orders counting alike. In
official files each instruction has one order only, so the gap compares different instructions; in ours both orders of each.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from starling import stats
from starling.errors import InputError, UsageError
from starling.evaluate.alpaca_eval.files import Judged, Outputs
from starling.evaluate.alpaca_eval.length_control import (
    Floats,
    Gamed,
    Impossible,
    LengthControlled,
    against,
    length_controlled,
)

Control = Literal["auto", "full", "noreg", "minimal", "none"]
CIPair = tuple[float, float]
_CUSTOM = (
    "these are not the official instructions, so no difficulty of theirs is known: the length control is the minimal one, "
    "without that term"
)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What the measures are told beside the annotations."""

    baseline: Outputs | None = None
    """The baseline's answers: the instruction set in order."""
    difficulty: Floats | None = None
    gamed: Gamed | None = None
    difficulty_by: Literal["row", "instruction"] = "row"
    """row: as the official code, which is misaligned where an earlier row is missing. instruction: right."""
    control: Control = "auto"
    c: float | None = None
    resamples: int = 2000
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class WinRate:
    """The official figures of `get_winrate`; None where there are too few rows."""

    win_rate: float | None
    standard_error: float | None
    discrete_win_rate: float | None
    n_wins: int
    n_wins_base: int
    n_draws: int
    n_total: int


def win_rate(preference: Floats) -> WinRate:
    """Of preferences 0 … 1 for the candidate, those without one left out.

    >>> found = win_rate(np.array([1.0, 0.5, 0.25, np.nan]))
    >>> round(found.win_rate, 2), found.discrete_win_rate, found.n_wins, found.n_wins_base, found.n_draws, found.n_total
    (58.33, 50.0, 1, 1, 1, 3)
    """
    known = preference[~np.isnan(preference)]
    n, wins, losses = len(known), int((known > 0.5).sum()), int((known < 0.5).sum())
    draws = n - wins - losses
    return WinRate(
        win_rate=100 * float(known.mean()) if n else None,
        standard_error=100 * float(np.std(known, ddof=1)) / math.sqrt(n) if n > 1 else None,
        discrete_win_rate=100 * (wins + draws / 2) / n if n else None,
        n_wins=wins,
        n_wins_base=losses,
        n_draws=draws,
        n_total=n,
    )


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One model's line."""

    model: str
    baseline: str
    annotator: str
    plain: WinRate
    clusters: int
    """Different instructions with a preference."""
    avg_length: int | None
    win_rate_ci: CIPair | None
    controlled: LengthControlled | None
    weights: Mapping[str, float]
    """Of the length control; 0 for the baseline itself, none without one."""
    lc_win_rate: float | None
    """50 for the baseline itself, by definition."""
    lc_standard_error: float | None
    lc_ci: CIPair | None
    lc_reason: str
    """Why there is no length-controlled win rate; empty when there is one."""
    position_gap: float | None
    position_gap_ci: CIPair | None
    outcomes: Mapping[str, int]
    notes: tuple[str, ...]
    scores: Mapping[str, tuple[float, float]]
    """Instruction → its mean preference and its part of the length-controlled rate, both in %: what two models are compared by.
    The second is NaN without length control."""
    orders: Mapping[str, tuple[float, float, float, float]]
    """Instruction → sum and number of the preferences where the model was shown first, and where second."""

    def as_json(self) -> dict[str, Any]:
        """As `--json` prints it; rates in %."""
        found = self.controlled
        return {
            "model": self.model, "baseline": self.baseline, "annotator": self.annotator,
            "win_rate": self.plain.win_rate, "win_rate_ci": self.win_rate_ci, "standard_error": self.plain.standard_error,
            "discrete_win_rate": self.plain.discrete_win_rate, "n_wins": self.plain.n_wins, "n_wins_base": self.plain.n_wins_base,
            "n_draws": self.plain.n_draws, "n_total": self.plain.n_total, "n": self.plain.n_total, "clusters": self.clusters,
            "avg_length": self.avg_length,
            "lc_win_rate": self.lc_win_rate, "lc_ci": self.lc_ci, "lc_standard_error": self.lc_standard_error,
            "lc_reason": self.lc_reason or None, "lc_variant": found.variant if found else None,
            "lc_c": found.c if found else None, "lc_weights": dict(self.weights) or None,
            "position_gap": self.position_gap, "position_gap_ci": self.position_gap_ci,
            "outcomes": dict(self.outcomes), "notes": list(self.notes),
        }  # fmt: skip

    def leaderboard_row(self, mode: str = "community") -> dict[str, Any]:
        """As in the official leaderboard.csv."""
        plain = {name: getattr(self.plain, name) for name in WinRate.__dataclass_fields__}
        lc = {"length_controlled_winrate": self.lc_win_rate, "lc_standard_error": self.lc_standard_error}
        return plain | lc | {"mode": mode, "avg_length": self.avg_length}


def measure(judged: Judged, inputs: Inputs, outputs: Outputs | None = None) -> Measured:
    """One model's line from its annotations.

    Args:
        judged: the annotations.
        inputs: the baseline's answers, the inputs of the length control, and how.
        outputs: the model's answers; what was not annotated of them is counted, and their mean length is the official one.

    Raises:
        InputError: the answers in the annotations are not those of the files.
        UsageError: difficulties by instruction without knowing the order of the instructions.
    """
    outcomes, notes = Counter(judged.outcomes), list[str]()
    _check_texts(judged, outputs, inputs.baseline, outcomes, notes)
    known = ~np.isnan(judged.preference)
    plain = win_rate(judged.preference)
    itself = _is_baseline(judged, inputs.baseline)
    found = None if itself else _controlled(judged, inputs, notes)
    controlled = found if isinstance(found, LengthControlled) else None
    if itself:
        notes.append("this is the baseline itself: 50 % at any length, by definition")
    cluster_N, texts = _clusters(judged)
    if len(texts) < len(judged.instruction):
        notes.append(
            f"{len(judged.instruction) - len(texts)} rows have an instruction that stands in another row too: all count, as "
            "officially; for the intervals each instruction is one"
        )
    gap = _gap_values(judged)
    columns = [(100 * judged.preference, known), (gap[0], ~np.isnan(gap[0])), (gap[1], ~np.isnan(gap[1]))]
    influence = np.full(len(known), np.nan)
    if controlled is not None:
        influence[known] = controlled.influence
        columns.append((influence, known))
    means, draws = _resampled(columns, cluster_N, len(texts), inputs)
    two_sided = means[1] is not None and means[2] is not None
    length = outputs.avg_length if outputs is not None else int(judged.length.mean())
    return Measured(
        model=judged.model,
        baseline=judged.baseline or (inputs.baseline.generator if inputs.baseline else ""),
        annotator=judged.annotator,
        plain=plain,
        clusters=len({cluster for cluster, there in zip(cluster_N, known, strict=True) if there}),
        avg_length=length,
        win_rate_ci=interval(draws[0]) if plain.n_total else None,
        controlled=controlled,
        weights={"length": 0.0, "difficulty": 0.0, "model": 0.0} if itself else controlled.weights if controlled else {},
        lc_win_rate=50.0 if itself else controlled.win_rate if controlled else None,
        lc_standard_error=0.0 if itself else controlled.standard_error if controlled else None,
        lc_ci=None if controlled is None else interval(draws[3]),
        lc_reason="" if itself or not isinstance(found, Impossible) else found.reason,
        position_gap=(means[1] or 0.0) - (means[2] or 0.0) if two_sided else None,
        position_gap_ci=interval(draws[1] - draws[2]) if two_sided else None,
        outcomes=dict(outcomes),
        notes=tuple(notes),
        scores=_by_instruction(texts, cluster_N, known, judged.preference, influence),
        orders=_orders(texts, cluster_N, gap),
    )


def of_baseline(found: Measured, others: Sequence[Measured], name: str, difficulty: Floats) -> Measured:
    """The same line with the length-controlled rate over another of the models, by both their weights; without an interval.

    Raises:
        UsageError: that model has no weights here, or was fitted without difficulties.
    """
    weights = [one.weights for one in others if one.model == name]
    if not weights or "difficulty" not in weights[0]:
        raise UsageError(
            f"There are no weights of '{name}' that know the instructions' difficulties",
            where="--against",
            cure="give its annotations too, with --difficulty and --gamed",
        )
    if "difficulty" not in found.weights:
        return replace(found, lc_win_rate=None, lc_standard_error=None, lc_ci=None)
    return replace(
        found,
        lc_win_rate=against(found.weights, weights[0], difficulty),
        lc_standard_error=None,
        lc_ci=None,
        notes=(*found.notes, f"lc_win_rate is against {name}, predicted from both models' weights over {found.baseline}"),
    )


# ── length control ───────────────────────────────────────────────────────────────────────────────────────────────────


def _is_baseline(judged: Judged, baseline: Outputs | None) -> bool:
    """By its name, or because it draws everywhere with answers exactly as long."""
    name = judged.baseline or (baseline.generator if baseline else "")
    draws = bool((judged.preference == 0.5).all() and (judged.length == judged.baseline_length).all())
    return draws or (judged.model == name != "")


def _controlled(judged: Judged, inputs: Inputs, notes: list[str]) -> LengthControlled | Impossible:
    """The fit that the settings and the files allow."""
    variant = inputs.control
    if variant == "none":
        return Impossible("the length control is switched off")
    if variant == "auto":
        official = judged.official if judged.official is not None else inputs.difficulty is not None
        variant = "full" if official else "minimal"
        if not official:
            notes.append(_CUSTOM)
    delta = (judged.baseline_length - judged.length).astype(np.float64)
    if variant == "minimal":
        return length_controlled(judged.preference, delta, None, None, c=inputs.c)
    if inputs.difficulty is None:
        return Impossible("the instructions' difficulties are not given: --difficulty FILE, or --lc minimal to do without")
    if variant == "full" and inputs.gamed is None:
        return Impossible("the gamed baseline's rows are not given: --gamed FILE, or --lc noreg to do without")
    place = _places(judged, inputs, notes)
    beyond = (place < 0) | (place >= len(inputs.difficulty))
    if beyond.any():
        return Impossible(f"{int(beyond.sum())} of {len(place)} rows have no difficulty among the {len(inputs.difficulty)} given")
    difficulty = inputs.difficulty[place]
    return length_controlled(judged.preference, delta, difficulty, inputs.gamed if variant == "full" else None, c=inputs.c)


def _places(judged: Judged, inputs: Inputs, notes: list[str]) -> NDArray[np.int64]:
    """Where each row's difficulty stands; -1 for nowhere."""
    right: NDArray[np.int64] | None = judged.instruction_id
    if right is None and inputs.baseline is not None:
        index = inputs.baseline.index
        right = np.array([index.get(text, -1) for text in judged.instruction], dtype=np.int64)
    if inputs.difficulty_by == "row":
        if right is not None and (wrong := int((right != judged.position).sum())):
            notes.append(
                f"{wrong} of {len(right)} rows have another instruction's difficulty: it is looked up by row, as officially, and "
                "a row before them is missing; --difficulty-by instruction looks it up rightly"
            )
        return judged.position
    if right is None:
        raise UsageError(
            "Difficulties by instruction need the order of the instructions",
            where="--difficulty-by instruction",
            cure="give the official baseline's outputs with --baseline",
        )
    return right


# ── checks ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _check_texts(
    judged: Judged, outputs: Outputs | None, baseline: Outputs | None, outcomes: Counter[str], notes: list[str]
) -> None:
    """What was annotated must be what the files say was answered; what was not annotated is counted."""
    annotated = set(judged.instruction)
    for side, given, name in ((1, outputs, "the model's outputs"), (0, baseline, "the baseline's outputs")):
        if given is None or not judged.digests:
            continue
        rows = zip(judged.instruction, judged.digests, strict=True)
        wrong = sum(pair[side] not in given.digests.get(text, ()) for text, pair in rows)
        if wrong == len(judged.instruction):
            raise InputError(
                f"None of the {wrong} annotated answers of '{judged.model if side else judged.baseline}' stands among {name}",
                where=f"{judged.path} and {given.path}",
                cure="give the files of one and the same run",
            )
        if wrong:
            outcomes["answer_differs" if side else "baseline_differs"] = wrong
            notes.append(f"{wrong} annotated answers are not those in {given.path.name}: the annotations count")
        if given.unreadable:
            notes.append(f"{given.unreadable} rows of {given.path.name} have no instruction or no output")
    if expected := outputs or baseline:
        compact = judged.instruction_id is not None  # its instructions are numbers
        missing = sum((str(i) if compact else row.instruction) not in annotated for i, row in enumerate(expected.rows))
        if missing:
            outcomes["not_annotated"] = missing
            notes.append(f"{missing} of {len(expected.rows)} instructions of {expected.path.name} were not annotated")


# ── resampling ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _clusters(judged: Judged) -> tuple[NDArray[np.int64], list[str]]:
    """Number of each row's instruction, and the instructions."""
    number: dict[str, int] = {}
    members = [number.setdefault(text, len(number)) for text in judged.instruction]
    return np.array(members, dtype=np.int64), list(number)


def _gap_values(judged: Judged) -> tuple[Floats, Floats]:
    """The candidate's preference where it was shown first and where second; NaN elsewhere."""
    if judged.both_orders is not None:
        return judged.both_orders
    there = judged.preference
    return np.where(judged.shown_first, there, np.nan), np.where(judged.shown_first, np.nan, there)


def _resampled(
    columns: Sequence[tuple[Floats, NDArray[np.bool_]]], cluster_N: NDArray[np.int64], clusters: int, inputs: Inputs
) -> tuple[list[float | None], list[Floats]]:
    """Mean of each column over its rows, and those of resamples of the clusters; a resample without any of its rows is NaN."""
    sums, counts = [], []
    for values, there in columns:
        sums.append(np.bincount(cluster_N[there], values[there], minlength=clusters))
        counts.append(np.bincount(cluster_N[there], minlength=clusters))
    table_CX = np.stack([*sums, *counts], 1).astype(np.float64)
    totals_RX = np.concatenate([times @ table_CX for times in stats.times_drawn(clusters, inputs.resamples, inputs.seed)])
    means: list[float | None] = [float(values[there].mean()) if there.any() else None for values, there in columns]
    with np.errstate(invalid="ignore"):
        draws = [totals_RX[:, i] / totals_RX[:, len(columns) + i] for i in range(len(columns))]
    return means, draws


def interval(draws: Floats) -> CIPair:
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return float(low), float(high)


def _by_instruction(
    texts: Sequence[str], cluster_N: NDArray[np.int64], known: NDArray[np.bool_], preference: Floats, influence: Floats
) -> dict[str, tuple[float, float]]:
    count_C = np.bincount(cluster_N[known], minlength=len(texts))
    sums = [np.bincount(cluster_N[known], values[known], minlength=len(texts)) for values in (100 * preference, influence)]
    return {text: (sums[0][i] / count_C[i], sums[1][i] / count_C[i]) for i, text in enumerate(texts) if count_C[i]}


def _orders(
    texts: Sequence[str], cluster_N: NDArray[np.int64], gap: tuple[Floats, Floats]
) -> dict[str, tuple[float, float, float, float]]:
    columns = []
    for values in gap:
        there = ~np.isnan(values)
        columns += [np.bincount(cluster_N[there], values[there], len(texts)), np.bincount(cluster_N[there], minlength=len(texts))]
    return {text: (float(a), float(b), float(c), float(d)) for text, a, b, c, d in zip(texts, *columns, strict=True)}
