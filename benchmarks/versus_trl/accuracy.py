"""CPU-seconds of training until unseen pairs are ordered well enough: K-wise against all pairs, on the same planted rule.

Both sides get the same rankings, base model, head and unseen rankings. Each side's rate and batch are tuned on one seed (the
least CPU to the mark, over the whole grid) and then fixed; the figures are of other seeds. What the evaluations cost is left
out on both sides: TRL's meter pauses while a callback scores; Starling's training is run twice, once with evaluations
(its log says after which step the mark is passed) and once without (what the steps cost). The two runs have the same weights bit
for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import median
from typing import Any

Run = Callable[[str, dict[str, Any]], dict[str, Any]]
"""One process of a side ("ours", "theirs") with these changes to the request."""


@dataclass(frozen=True)
class Task:
    """What is learnt and when it counts as learnt."""

    model: str = "1M"
    prompt: int = 200
    response: int = 150
    rankings: int = 100
    unseen: int = 100
    mark: float = 0.83
    epochs: int = 1
    looks: int = 20  # evaluations per epoch


@dataclass(frozen=True)
class Setting:
    """What is tuned. `batch`: pairs per optimiser step for TRL, rankings per optimiser step for Starling."""

    rate: float
    batch: int


def settings(rates: Sequence[float], batches: Sequence[int]) -> list[Setting]:
    return [Setting(rate, batch) for batch, rate in product(batches, rates)]


def ours(task: Task, setting: Setting, run: Run) -> dict[str, Any]:
    """Two runs of Starling: when the mark is passed, and what the steps up to there cost."""
    steps = -(-task.rankings // setting.batch) * task.epochs
    common = {"rate": setting.rate, "per_step": setting.batch, "epochs": task.epochs, "warmup": 0}
    seen = run("ours", {**common, "every": max(1, steps // task.epochs // task.looks)})
    timed = run("ours", common)
    return reached(seen["accuracy"], timed["cpu_s_by_step"], task.mark, setting.batch)


def theirs(task: Task, setting: Setting, run: Run, pairs_per_ranking: int, micro: int) -> dict[str, Any]:
    """One run of TRL, ended when it passes the mark."""
    steps = -(-task.rankings * pairs_per_ranking // setting.batch) * task.epochs
    changes = {
        "rate": setting.rate, "batch": min(micro, setting.batch), "accumulate": max(1, setting.batch // micro),
        "epochs": task.epochs, "warmup": 0, "warmup_steps": round(0.05 * steps), "mark": task.mark,
        "every": max(1, steps // task.epochs // task.looks),
    }  # fmt: skip
    found = run("theirs", changes)
    return reached(found["accuracy"], found["cpu_s_by_step"], task.mark, setting.batch / pairs_per_ranking)


def reached(accuracy: Sequence[Sequence[float]], cpu_s_by_step: Sequence[float], mark: float, per_step: float) -> dict[str, Any]:
    """The first step whose accuracy is at least the mark, and the CPU-seconds up to it; None where it is never passed.

    Args:
        accuracy: (step, accuracy on unseen rankings) of every evaluation, steps from 1.
        cpu_s_by_step: CPU-seconds from the start of training to the end of each step.
        mark: share of unseen pairs in the right order.
        per_step: rankings (or their worth of pairs) per step.
    """
    step = next((int(step) for step, share in accuracy if share >= mark), None)
    return {
        "cpu_s": None if step is None else cpu_s_by_step[step - 1],
        "rankings": None if step is None else step * per_step,
        "all_cpu_s": cpu_s_by_step[-1],
        "best": max(share for _, share in accuracy),
        "accuracy": [[int(step), round(share, 4)] for step, share in accuracy],
    }


def best(found: dict[Setting, dict[str, Any]]) -> Setting:
    """The least CPU to the mark; among those that never pass it, the highest accuracy.

    Raises:
        SystemExit: none passes it: there is nothing to compare.
    """
    passed = {setting: f["cpu_s"] for setting, f in found.items() if f["cpu_s"] is not None}
    if not passed:
        tried = "; ".join(f"rate {s.rate:g}, batch {s.batch}: {f['best']:.3f}" for s, f in found.items())
        raise SystemExit(f"No setting passes the mark: {tried}. Lower --mark, or give more rankings or epochs")
    return min(passed, key=lambda setting: passed[setting])


def ratio(ours: dict[str, Any], theirs: dict[str, Any]) -> float | None:
    """Theirs over ours; None unless both passed the mark."""
    if ours["cpu_s"] is None or theirs["cpu_s"] is None:
        return None
    return float(theirs["cpu_s"] / ours["cpu_s"])


def table(lines: Sequence[dict[str, Any]]) -> str:
    """One line per seed, and the median of the ratios."""
    rows = ["| seed | TRL CPU-s | rankings' worth | Starling CPU-s | rankings | TRL / Starling |", "|---|---|---|---|---|---|"]
    for x in lines:
        a, b = x["trl"], x["starling"]
        cells = [_cell(a, "cpu_s"), _cell(a, "rankings"), _cell(b, "cpu_s"), _cell(b, "rankings")]
        rows.append(f"| {x['seed']} | " + " | ".join(cells) + f" | {'–' if x['ratio'] is None else format(x['ratio'], '.1f')} |")
    ratios = [x["ratio"] for x in lines if x["ratio"] is not None]
    return "\n".join([*rows, "", f"Median ratio {median(ratios):.1f} of {len(ratios)} seeds" if ratios else "No ratio"])


def _cell(found: dict[str, Any], key: str) -> str:
    """A number, or how far it came."""
    return f"{found[key]:.1f}" if found[key] is not None else f"not reached (best {found['best']:.3f})"
