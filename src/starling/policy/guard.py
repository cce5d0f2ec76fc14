"""Is the policy getting better, or only better at pleasing the reward model?

Source: Gao, Schulman and Hilton 2023 (arXiv 2210.10760): tuned far enough, the reward that is optimised (the proxy) goes on
rising while what it stands for falls. What it stands for is not known; a second reward model that shares neither seed nor data
with the first (`policy.guard.model`, `reward.guard_fraction`) makes other errors: it stops rising where the first is exploited.

The rule, over the evaluations of one fixed set of prompts: an evaluation is *doubtful* when, against the evaluation in which the
guard was highest so far, the proxy has risen and the guard has fallen by more than

    max(margin × std, z × √(se² + se_best²))

with std the guard's recorded standard deviation and se the standard errors of its two means, where the log has them. z is the
normal quantile of 1 − 0.025/p for the p = n(n+1)/2 pairs among the n+1 evaluations so far (Bonferroni): the highest of many noisy
evaluations is high by luck, and the fall from it is not held against the policy. After `patience` doubtful evaluations in a row
the guard fires. Of 600 simulated tunings of 40 evaluations whose guard was flat with noise, it fired in 1 % at patience 2 and in
12 % at patience 1. The errors are taken as independent; evaluations of the same prompts are not, so the true noise is smaller:
over few prompts a small fall is seen late, and more of `policy.eval_prompts` see it earlier.

Without a guard model there are only signs of over-optimisation, and the rule takes those that are known: against the base, the
proxy has risen and replies are more than 1.5 times as long, or the share of repeated 4-grams, of refusals or of replies that do
not end is up by more than 0.15. It says that it is this rule that fired. KL is no such sign: how far is too far depends on the
reward model.

Shapes: N replies.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from starling.config import GuardSection
from starling.policy.shaping import repeated_share
from starling.records import Prompt
from starling.refusals import refuses

PROXY, GUARD = "eval/score", "eval/guard"
GUARD_SE = "eval/guard_se"
LENGTH = "eval/length"

MORE_LENGTH = 1.5
"""Growth of the mean length beyond which it is a sign (the default of policy.selection.longest)."""
MORE_SHARE = 0.15
"""Growth of a share that is a sign: over twice the standard error of a difference of shares over 128 prompts."""
CHANCE = 0.025
"""That any two of the evaluations so far are further apart than the noise allows, when nothing truly fell."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the evaluations so far say, e.g. Verdict(fired=False, why="The guard is at its highest.", doubtful=0)."""

    fired: bool
    why: str
    """One or two sentences for log and report."""
    doubtful: int = 0
    """Doubtful evaluations in a row, up to now."""

    def row(self) -> dict[str, Any]:
        """For the log's row of the evaluation."""
        return {"guard": {"fired": self.fired, "why": self.why}}


class Guard:
    """The rule with its settings; holds no state.

    Args:
        settings: `policy.guard`.
        std: recorded standard deviation of the guard model's scores; 1 for scores that are standardised already.
    """

    def __init__(self, settings: GuardSection, std: float = 1.0) -> None:
        self.settings = settings
        self.std = std

    def look(self, history: Sequence[Mapping[str, Any]]) -> Verdict:
        """The verdict after the last row.

        Args:
            history: the log's rows in order, the base's evaluation first. Rows without a finite eval/score are no evaluations
                and are passed over; so are, when any row has eval/guard, those without a finite one.
        """
        rows = [row for row in history if _finite(row.get(PROXY))]
        guarded = [row for row in rows if _finite(row.get(GUARD))]
        rows = guarded or rows
        if not rows:
            return Verdict(fired=False, why="There is no evaluation to judge by.")
        doubts = self._by_guard(rows) if guarded else self._by_signs(rows)
        doubtful = 0
        for doubt in reversed(doubts):
            if not doubt:
                break
            doubtful += 1
        said = doubts[-1]
        if not said:
            why = "The guard model sees no fall that counts." if guarded else "No guard model; replies show no sign of decay."
            return Verdict(fired=False, why=why)
        if doubtful >= self.settings.patience:
            return Verdict(fired=True, why=f"{said} So it was in {_times(doubtful)} in a row.", doubtful=doubtful)
        return Verdict(fired=False, why=f"{said} So far in {_times(doubtful)} of {self.settings.patience}.", doubtful=doubtful)

    def _by_guard(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        """Per evaluation the doubt in a sentence, empty where there is none."""
        doubts = [""]
        best = rows[0]
        for n, row in enumerate(rows[1:], start=1):
            rise, fall = float(row[PROXY]) - float(best[PROXY]), float(best[GUARD]) - float(row[GUARD])
            quantile = NormalDist().inv_cdf(1 - CHANCE / (n * (n + 1) / 2))
            noise = quantile * math.hypot(_error(row), _error(best))
            allowed = max(self.settings.margin * self.std, noise)
            doubts.append(
                f"Since iteration {best.get('iteration', 0)} the reward model's score rose by {rise:.3g} while the guard's fell "
                f"by {fall:.3g} (more than {allowed:.3g})."
                if rise > 0 and fall > allowed
                else ""
            )
            if fall < 0:
                best = row
        return doubts

    def _by_signs(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        base = rows[0]
        doubts = [""]
        for row in rows[1:]:
            signs = _signs(base, row) if float(row[PROXY]) > float(base[PROXY]) else []
            doubts.append(
                f"No guard model; while the reward model's score rose by {float(row[PROXY]) - float(base[PROXY]):.3g} from the "
                f"base's, {' and '.join(signs)}."
                if signs
                else ""
            )
        return doubts


def _signs(base: Mapping[str, Any], row: Mapping[str, Any]) -> list[str]:
    found = []
    if _both(base, row, LENGTH) and float(row[LENGTH]) > MORE_LENGTH * float(base[LENGTH]):
        found.append(f"replies grew from {base[LENGTH]:.4g} to {row[LENGTH]:.4g} tokens")
    for name, said, worse in (
        ("eval/repetition", "repeated 4-grams", 1),
        ("eval/refusals", "refusals", 1),
        ("eval/finished", "replies that end", -1),
    ):
        if _both(base, row, name) and worse * (float(row[name]) - float(base[name])) > MORE_SHARE:
            found.append(f"{said} went from {100 * float(base[name]):.3g} % to {100 * float(row[name]):.3g} %")
    return found


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _both(base: Mapping[str, Any], row: Mapping[str, Any], name: str) -> bool:
    return _finite(base.get(name)) and _finite(row.get(name))


def _error(row: Mapping[str, Any]) -> float:
    return float(row[GUARD_SE]) if _finite(row.get(GUARD_SE)) else 0.0


def _times(count: int) -> str:
    return f"{count} evaluation{'s' if count > 1 else ''}"


# ── what an evaluation measures beside scores ────────────────────────────────────────────────────────────────────────


def measure(
    prompts: Sequence[Prompt], replies: Sequence[str], ids: Sequence[Sequence[int]], finished: Sequence[bool]
) -> dict[str, float]:
    """What the replies of an evaluation look like; every number is one to be afraid of when it moves.

    Args:
        prompts: the prompt of each reply; replies to one prompt are one observation of the standard errors.
        replies, ids: texts, and their tokens with the end token.
        finished: True means the reply has its end token.

    Returns:
        repetition (mean share of repeated 4-grams), refusals, finished, empty (shares of replies); for two prompts or more also
        repetition_se and refusals_se. Nothing without replies.
    """
    if not replies:
        return {}
    clusters = [p.id for p in prompts]
    repeated_N = [repeated_share(one) for one in ids]
    refused_N = [float(refuses(text)) for text in replies]
    errors = {
        "repetition_se": standard_error(repeated_N, clusters),
        "refusals_se": standard_error(refused_N, clusters),
    }
    return {
        "repetition": _mean(repeated_N),
        "refusals": _mean(refused_N),
        "finished": _mean([float(done) for done in finished]),
        "empty": _mean([float(not text.strip()) for text in replies]),
        **{name: value for name, value in errors.items() if value is not None},
    }


def standard_error(values: Sequence[float], clusters: Sequence[Hashable]) -> float | None:
    """Of the mean over all values, when those of one cluster (the replies to one prompt) are not independent.

    The sandwich estimate of a mean, √(C/(C−1) · Σ (cluster's sum of deviations)²) / N; with one value per cluster std / √N.
    None for fewer than two clusters.

    >>> standard_error([1.0, 3.0, 5.0, 7.0], ["a", "a", "b", "b"])
    2.0
    """
    centre = _mean(values)
    sums: dict[Hashable, float] = {}
    for value, cluster in zip(values, clusters, strict=True):
        sums[cluster] = sums.get(cluster, 0.0) + value - centre
    if len(sums) < 2:
        return None
    return math.sqrt(len(sums) / (len(sums) - 1) * sum(total**2 for total in sums.values())) / len(values)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
