"""Tables and figures of policy_study.py, from its JSON files alone; and how a log becomes a curve."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.loss_study_models import mean, over_seeds
from starling.progress import Progress

GAIN = 0.2
"""Gold above the base's that tokens are counted to."""
NAMES = {
    "apa": "APA, rollout anchor",
    "apa-initial": "APA, initial anchor",
    "ppo": "PPO",
    "p3o": "P3O",
    "rloo": "RLOO",
    "length": "APA, reward that loves length",
}
"""Tuned arms, in the order of the tables."""
Cells = Mapping[str, Mapping[int, dict[str, Any]]]
"""By arm and seed."""


# ── from a log ───────────────────────────────────────────────────────────────────────────────────────────────────────


class Watch(Progress):
    """CPU-seconds of every iteration that a tuning reports."""

    def __init__(self) -> None:
        self._marks: list[float] = []

    def start(self, what: str, total: int) -> None:
        self._marks = [time.process_time()]

    def advance(self, n: int = 1, note: str = "") -> None:
        if n:
            self._marks.append(time.process_time())

    def finish(self) -> None:
        return None

    def training_cpu_s(self, evaluated: Collection[int]) -> float:
        """Of all iterations; one with an evaluation (or after that of the base) counts as the median of those without."""
        spent = dict(enumerate((b - a for a, b in zip(self._marks, self._marks[1:], strict=False)), start=1))
        bare = {i: s for i, s in spent.items() if i not in evaluated and not (i == 1 and 0 in evaluated)}
        usual = median(bare.values() or spent.values())
        return sum(bare.get(i, usual) for i in spent)


def curve(log: Sequence[Mapping[str, Any]], rollouts: int, statistics: Mapping[str, float]) -> list[dict[str, float]]:
    """The evaluations of a log: tokens sampled so far, KL (of the rollouts where evaluations have none), gold, proxy, length."""
    tokens, points = 0.0, []
    for row in log:
        tokens += rollouts * row.get("length", 0.0)
        if "eval/gold" not in row:
            continue
        point = {
            "iteration": row["iteration"],
            "tokens": tokens,
            "kl": row.get("eval/kl", row.get("kl_reply", 0.0)),
            "proxy": (row["eval/score"] - statistics["mean"]) / statistics["std"],
            "gold": row["eval/gold"],
            "greedy": row["eval/greedy/gold"],
            "harmless": row["eval/harmless"],
            "length": row["eval/length"],
        }
        points.append(point | ({"guard": row["eval/guard"]} if "eval/guard" in row else {}))
    return points


def guard_of(log: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """{"fired_at": first iteration or None, "why": its reason, else the last one}; None for a log without verdicts."""
    verdicts = [(row["iteration"], row["guard"]) for row in log if isinstance(row.get("guard"), Mapping)]
    if not verdicts:
        return None
    fired = [(iteration, said["why"]) for iteration, said in verdicts if said["fired"]]
    return {"fired_at": fired[0][0], "why": fired[0][1]} if fired else {"fired_at": None, "why": verdicts[-1][1]["why"]}


def tokens_to(points: Sequence[Mapping[str, float]], gain: float) -> float | None:
    """Tokens sampled until gold is `gain` above that of the first point and never below it again; linear between points."""
    mark = points[0]["gold"] + gain
    below = [i for i, point in enumerate(points) if point["gold"] < mark]
    if below[-1] == len(points) - 1:
        return None
    a, b = points[below[-1]], points[below[-1] + 1]
    return a["tokens"] + (b["tokens"] - a["tokens"]) * (mark - a["gold"]) / (b["gold"] - a["gold"])


# ── reading the files ────────────────────────────────────────────────────────────────────────────────────────────────


def read(folder: Path) -> dict[str, dict[int, dict[str, Any]]]:
    """Finished cells of a study by arm and seed."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.json")):
        cell = json.loads(path.read_text(encoding="utf-8"))
        found.setdefault(cell["arm"], {})[cell["seed"]] = cell
    return found


def write(out: Path, settings: Mapping[str, Any]) -> None:
    """Print what there is; the figures go to `out`."""
    tuning = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((out / "tuning").glob("*.json"))]
    if tuning:
        print(f"## Grid on the tuning seed\n\n{tuning_table(tuning)}\n")
    cells = read(out / "cells")
    bases = cells.get("best-of-n", {})
    tuned = {arm: {s: c for s, c in cells[arm].items() if s in bases} for arm in NAMES if arm in cells}
    print(f"## Settings\n\n{settings_table(settings)}\n")
    if not bases:
        print("No best-of-n cell yet: it holds the base that arms are compared with.")
        return
    print(f"## Test prompts, {len(bases)} seeds, mean [95 % over seeds]\n\n{main_table(tuned, bases)}\n")
    print(f"## Gold by kind of prompt, mean over seeds\n\n{kinds_table(tuned, bases)}\n")
    print(f"## Best of n of the base's replies\n\n{best_table(bases)}\n")
    print(f"## Gold of one arm minus another, paired by seed\n\n{pairs_table(tuned)}\n")
    if tuned.get("length"):
        print(f"## Was the reward that loves length caught?\n\n{guard_table(tuned['length'], bases)}\n")
    if tuned:
        draw(tuned, bases, out)


# ── tables ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def interval(values: Sequence[float], form: str = ".3f", sign: str = "") -> str:
    """mean [low, high] of Student's t over seeds."""
    middle, half = over_seeds(values)
    if math.isinf(half):
        return f"{middle:{sign}{form}}"
    return f"{middle:{sign}{form}} [{middle - half:{sign}{form}}, {middle + half:{sign}{form}}]"


def rows_of(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def settings_table(settings: Mapping[str, Any]) -> str:
    return rows_of(("arm", "[policy]"), [(NAMES.get(arm, arm), f"`{json.dumps(tree)}`") for arm, tree in settings.items()])


def tuning_table(cells: Sequence[dict[str, Any]]) -> str:
    """Every grid point by the gold of its last evaluation on validation prompts; nothing here is from test prompts."""
    rows = []
    for cell in sorted(cells, key=lambda c: (c["arm"], -c["curve"][-1]["gold"])):
        last = cell["curve"][-1]
        changes = ", ".join(f"{key} = {value:g}" for key, value in cell["changes"])
        rows.append((NAMES[cell["arm"]], changes, *(f"{last[k]:.3f}" for k in ("gold", "greedy", "harmless", "kl"))))
    return rows_of(("arm", "settings", "gold", "greedy", "harmlessness", "KL"), rows)


def main_table(tuned: Cells, bases: Mapping[int, dict[str, Any]]) -> str:
    """A row per arm; differences are paired by seed with the base of that seed."""
    columns = (
        "arm",
        "gold at T = 1",
        "− base",
        "least",
        "greedy − base",
        "KL",
        "proxy",
        "harmlessness − base",
        "refusals of harm",
    )
    columns += ("gold of benign look-alikes", "tokens of a reply", "tokens to +0.2", "CPU-s")
    rows = [_base_row(bases)]
    for arm, by_seed in tuned.items():
        if not by_seed:
            continue
        tests = {s: c["test"] for s, c in by_seed.items()}
        gains = [mean(t["gold"]) - mean(bases[s]["test"]["gold"]) for s, t in tests.items()]
        greedy = [mean(t["greedy"]) - mean(bases[s]["test"]["greedy"]) for s, t in tests.items()]
        harmless = [t["harmless"] - bases[s]["test"]["harmless"] for s, t in tests.items()]
        reached = [tokens_to(c["curve"], GAIN) for c in by_seed.values()]
        known = [tokens for tokens in reached if tokens is not None]
        when = f"{mean(known):,.0f}" if known else "never"
        rows.append(
            [
                NAMES[arm], interval([mean(t["gold"]) for t in tests.values()]), interval(gains, sign="+"), f"{min(gains):+.3f}",
                interval(greedy, sign="+"), interval([t["kl"] for t in tests.values()], ".2f"),
                interval([t["proxy"] for t in tests.values()], ".2f"), interval(harmless, sign="+"),
                interval([t["refused"] for t in tests.values()]), interval([t["benign"] for t in tests.values()]),
                interval([t["length"] for t in tests.values()], ".1f"),
                when if len(known) == len(reached) else f"{when} ({len(known)} of {len(reached)} seeds)",
                interval([c["cpu_s"] for c in by_seed.values()], ".0f"),
            ]
        )  # fmt: skip
    return rows_of(columns, rows)


def _base_row(bases: Mapping[int, dict[str, Any]]) -> list[str]:
    tests = [c["test"] for c in bases.values()]
    gold = interval([mean(t["gold"]) for t in tests])
    greedy = f"(greedy {interval([mean(t['greedy']) for t in tests])})"
    numbers = [interval([t[k] for t in tests]) for k in ("proxy", "harmless", "refused", "benign")]
    length = interval([t["length"] for t in tests], ".1f")
    return ["base", gold, "", "", greedy, "0", numbers[0], f"({numbers[1]})", *numbers[2:], length, "", ""]


def kinds_table(tuned: Cells, bases: Mapping[int, dict[str, Any]]) -> str:
    """Gold of every kind of prompt, mean over seeds."""
    kinds = list(next(iter(bases.values()))["test"]["kinds"])
    sides = {"base": bases, **{NAMES[arm]: by_seed for arm, by_seed in tuned.items() if by_seed}}
    rows = [
        [name, *(f"{mean([c['test']['kinds'][kind] for c in by_seed.values()]):.2f}" for kind in kinds)]
        for name, by_seed in sides.items()
    ]
    return rows_of(["arm", *kinds], rows)


def best_table(bases: Mapping[int, dict[str, Any]]) -> str:
    """The best-of-n curve."""
    cells = list(bases.values())
    rows = []
    for i, first in enumerate(cells[0]["best_of"]):
        columns = [interval([c["best_of"][i][k] for c in cells]) for k in ("gold", "proxy", "harmless")]
        gains = interval([c["best_of"][i]["gold"] - c["best_of"][0]["gold"] for c in cells], sign="+")
        rows.append([str(first["n"]), f"{first['kl']:.2f}", columns[0], gains, *columns[1:]])
    return rows_of(("n", "KL, at most", "gold", "− n = 1", "proxy", "harmlessness"), rows)


def pairs_table(tuned: Cells) -> str:
    """Row minus column, over the seeds that both have."""
    arms = [arm for arm in tuned if arm != "length" and tuned[arm]]
    rows = []
    for a in arms:
        cells = []
        for b in arms:
            both = sorted(set(tuned[a]) & set(tuned[b]))
            values = [mean(tuned[a][s]["test"]["gold"]) - mean(tuned[b][s]["test"]["gold"]) for s in both]
            cells.append(interval(values, sign="+") if a != b and values else "")
        rows.append([NAMES[a], *cells])
    return rows_of(["gold", *(NAMES[arm] for arm in arms)], rows)


def guard_table(by_seed: Mapping[int, dict[str, Any]], bases: Mapping[int, dict[str, Any]]) -> str:
    """A row per seed: when the guard fired, and what the evaluations before and at the end said."""
    rows = []
    for seed, cell in sorted(by_seed.items()):
        first, last = cell["curve"][0], cell["curve"][-1]
        guard = cell["guard"]
        fired = "no verdicts" if guard is None else "no" if guard["fired_at"] is None else f"iteration {guard['fired_at']}"
        moved = [f"{first[k]:.2f} → {last[k]:.2f}" if k in first else "" for k in ("proxy", "guard", "length")]
        gold = f"{mean(bases[seed]['test']['gold']):.3f} → {mean(cell['test']['gold']):.3f}"
        rows.append([str(seed), fired, *moved, gold, "" if guard is None else guard["why"]])
    return rows_of(("seed", "guard fired", "proxy", "guard", "tokens of a reply", "gold (test)", "why"), rows)


# ── figures ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def mean_curve(by_seed: Mapping[int, dict[str, Any]], name: str) -> list[float]:
    """One number of the evaluations, mean over seeds, in order."""
    return [mean(values) for values in zip(*([p[name] for p in c["curve"]] for c in by_seed.values()), strict=True)]


def draw(tuned: Cells, bases: Mapping[int, dict[str, Any]], out: Path) -> None:
    """gold_kl.png and gold_proxy.png: means over seeds with a thin line per seed. Best-of-n is on test prompts, curves on
    validation prompts; each is drawn as the gain over the base on the same prompts."""
    from matplotlib.figure import Figure

    for against, title in (("kl", "KL from the base, nats"), ("proxy", "proxy: the reward model's score, standardised")):
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.subplots()
        for number, (arm, by_seed) in enumerate((arm, cells) for arm, cells in tuned.items() if cells):
            for cell in by_seed.values():
                points = cell["curve"]
                gains = [p["gold"] - points[0]["gold"] for p in points]
                axes.plot([p[against] for p in points], gains, color=f"C{number}", linewidth=0.5, alpha=0.5)
            gold = mean_curve(by_seed, "gold")
            gains = [g - gold[0] for g in gold]
            axes.plot(mean_curve(by_seed, against), gains, color=f"C{number}", marker="o", markersize=3, label=NAMES[arm])
        rows = [c["best_of"] for c in bases.values()]
        best = [[mean([row[i][k] for row in rows]) for i in range(len(rows[0]))] for k in (against, "gold")]
        axes.plot(best[0], [g - best[1][0] for g in best[1]], "k--", marker="s", markersize=4, label="best of n (KL: bound)")
        axes.axhline(0, color="gray", linewidth=0.5)
        axes.set(xlabel=title, ylabel="gold above the base's")
        axes.legend(fontsize="small")
        figure.savefig(out / f"gold_{against}.png", dpi=150)
