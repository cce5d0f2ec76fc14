"""Which ranking loss trains the best reward model: parts (b) and (c) of `loss_study.py`, which holds the commands.

(b) microworld: every seed has its own world, pool answers and judge's rankings (`starling run --until dataset`); truth is the
    gold score, which no ranking shows.
(c) nectar_like: real rankings; truth is the ranking itself, on instructions that were not trained on (`nectar_like.py`).

Each loss trains the same model with `starling.reward.train`, in two regimes:

    data      the same rankings, the same passes and steps for every loss
    compute   the same number of answers through the model: a loss that reads 2 of 7 answers sees 3.5 times the rankings

The learning rate of each (loss, regime) is the one of the same grid with the best pair accuracy on validation prompts, averaged
over the tuning seeds. Every trained model is one JSON file, written when it is done: runs go on where they were stopped.
Differences from Plackett–Luce are paired within the seed (same world or subset, same test prompts).
"""

from __future__ import annotations

import argparse
import json
import math
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs" / "tiny.toml"
K = 7

LOSSES: dict[str, dict[str, str]] = {
    "plackett_luce": {"type": "plackett_luce"},
    "all_pairs": {"type": "bradley_terry", "pairs": "all"},
    "adjacent": {"type": "bradley_terry", "pairs": "adjacent"},
    "best_vs_worst": {"type": "bradley_terry", "pairs": "best_vs_worst"},
    "random_pair": {"type": "bradley_terry", "pairs": "random"},
}
"""`reward.loss` of the settings."""
READS_A_PAIR = ("best_vs_worst", "random_pair")
"""Losses that read two answers of a ranking; the others read all, so for them the two regimes are one run."""
NAMES = {
    "plackett_luce": "Plackett–Luce",
    "all_pairs": "all pairs",
    "adjacent": "adjacent pairs",
    "best_vs_worst": "best vs worst",
    "random_pair": "random pair",
}
MEASURES = {"pairs": "pair accuracy", "top1": "top-1", "best": "gold of the chosen of 7"}
T_975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""Student's t by degrees of freedom."""


@dataclass(frozen=True)
class Cell:
    """One trained model of the study."""

    loss: str
    regime: str
    rate: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.loss}.{self.regime}.{self.rate:g}.{self.seed}"

    @property
    def times(self) -> float:
        """Rankings seen, as a multiple of the base."""
        return K / 2 if self.regime == "compute" else 1.0


def contenders(losses: Sequence[str]) -> list[tuple[str, str]]:
    """(loss, regime) of every row of the table."""
    return [(loss, regime) for loss in losses for regime in (("data", "compute") if loss in READS_A_PAIR else ("data",))]


def add_commands(commands: Any) -> None:
    """`microworld`, `nectar` and `table`."""
    import nectar_like

    world = commands.add_parser("microworld", help="(b) gold accuracy in the microworld")
    world.add_argument("--rankings", type=int, default=480, help="per seed; 3.5 times as many for a pair loss at equal compute")
    world.add_argument("--epochs", type=int, default=2)
    nectar = commands.add_parser("nectar", help="(c) real rankings, encoder and decoder")
    nectar.add_argument("data", type=Path)
    nectar.add_argument("--kinds", nargs="+", choices=("encoder", "decoder"), default=["encoder", "decoder"])
    nectar.add_argument("--backbones", type=Path, help="folder of encoder/ and decoder/, made there if missing; OUT/backbones")
    nectar.add_argument("--rankings", type=int, default=320)
    nectar.add_argument("--epochs", type=int, default=1)
    nectar.add_argument("--per-instruction", type=int, default=2, help="test and validation rankings judged per instruction")
    nectar_like.add_model(nectar)
    for command, rates, per_step in ((world, [5e-4, 1e-3, 2e-3], 16), (nectar, [5e-4, 1e-3, 2e-3], 8)):
        command.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
        command.add_argument("--tuning-seeds", type=int, nargs="+", default=[1])
        command.add_argument("--rates", type=float, nargs="+", default=rates)
        command.add_argument("--losses", nargs="+", choices=list(LOSSES), default=[*LOSSES])
        command.add_argument("--per-step", type=int, default=per_step, help="rankings per optimiser step")
        command.add_argument("--out", type=Path, required=True)
    shown = commands.add_parser("table", help="tables of (b) and (c) and their picture, from the files in OUT")
    shown.add_argument("--out", type=Path, required=True)
    world.set_defaults(run=run_microworld)
    nectar.set_defaults(run=run_nectar)
    shown.set_defaults(run=run_table)


# ── what a part is, and its runs ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Group:
    """The answers to one held-out prompt: what is scored, and the truth about it."""

    cluster: str
    conversations: tuple[Any, ...]
    truths: tuple[float, ...]


@dataclass(frozen=True)
class Data:
    """What one seed trains on and is judged by."""

    backbone: Path
    rankings: Sequence[Any]
    """In the order in which a larger budget takes them."""
    validation: Sequence[Group]
    test: Sequence[Group]


def run_cells(folder: Path, options: argparse.Namespace, data_of: Callable[[int], Data], max_length: int) -> None:
    """Train what is missing: the grid on the tuning seeds, then the chosen rate on the others."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items() if k not in ("run", "out", "seeds", "losses")
    }
    (folder / "settings.json").write_text(json.dumps(settings, indent=1) + "\n")
    rows = contenders(options.losses)
    cells = [Cell(*row, rate, seed) for seed in options.tuning_seeds for row in rows for rate in options.rates]
    for seed in (None, *options.seeds):
        if seed is not None:
            rates = chosen_rates(read_cells(folder), options.tuning_seeds)
            cells = [Cell(*row, rates[row], seed) for row in rows]
        missing = [cell for cell in cells if not (folder / f"{cell.name}.json").exists()]
        for cell in missing:
            found = run_cell(cell, data_of(cell.seed), options, max_length)
            path = folder / f"{cell.name}.json"
            path.with_suffix(".new").write_text(json.dumps(found) + "\n")
            path.with_suffix(".new").rename(path)
            print(f"{cell.name}: test pairs {mean(found['test']['pairs']):.4f}, {found['cpu_seconds']:.0f} CPU-s", flush=True)


def run_cell(cell: Cell, data: Data, options: argparse.Namespace, max_length: int) -> dict[str, Any]:
    """Train one model and judge it."""
    from starling.config import RewardSection
    from starling.reward.train import train

    rows = data.rankings[: round(options.rankings * cell.times)]
    settings = RewardSection.model_validate(
        {
            "backbone": "given",
            "loss": LOSSES[cell.loss],
            "optimizer": {"learning_rate": cell.rate, "betas": (0.9, 0.98), "warmup_fraction": 0.1, "schedule": "cosine"},
            "epochs": options.epochs,
            "rankings_per_step": options.per_step,
            "max_length": max_length,
            "checkpoint_steps": 10**6,
        }
    )
    began = time.process_time()
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "out"
        train(rows, rows[:16], backbone=data.backbone, out=out, work=Path(temporary) / "work", settings=settings, seed=cell.seed)
        spent = time.process_time() - began
        tuning = cell.seed in options.tuning_seeds
        judged = {"validation": judge(out, data.validation) if tuning else {}, "test": judge(out, data.test)}
    read = (2 if cell.loss in READS_A_PAIR else K) * len(rows) * options.epochs
    return {**vars(cell), "rankings": len(rows), "answers_read": read, "cpu_seconds": spent, **judged}


def judge(folder: Path, groups: Sequence[Group]) -> dict[str, list[Any]]:
    """Per group: its cluster, pair accuracy (pairs that differ in truth; ties ½), top-1, and the truth of the chosen answer.

    Groups whose answers are all equally good are left out: any order is right there.
    """
    from starling.models.scorer import score_conversations

    groups = [g for g in groups if len(set(g.truths)) > 1]
    rewards = iter(score_conversations(folder, [c for g in groups for c in g.conversations]))
    found: dict[str, list[Any]] = {"cluster": [g.cluster for g in groups], "pairs": [], "top1": [], "best": []}
    for group in groups:
        scores = [next(rewards) for _ in group.truths]
        order = [
            1.0 if (scores[i] - scores[j]) * (a - b) > 0 else 0.5 if scores[i] == scores[j] else 0.0
            for i, a in enumerate(group.truths) for j, b in enumerate(group.truths[:i]) if a != b
        ]  # fmt: skip
        chosen = [truth for truth, score in zip(group.truths, scores, strict=True) if score == max(scores)]
        found["pairs"].append(mean(order))
        found["top1"].append(mean([truth == max(group.truths) for truth in chosen]))
        found["best"].append(mean(chosen))
    return found


# ── (b) microworld ───────────────────────────────────────────────────────────────────────────────────────────────────


def run_microworld(options: argparse.Namespace) -> None:
    """A world per seed, then its cells."""
    folder = options.out / "microworld"
    known: dict[int, Data] = {}

    def data_of(seed: int) -> Data:
        if seed not in known:
            known.clear()
            known[seed] = world_data(folder / f"seed-{seed}", seed)
        return known[seed]

    run_cells(folder / "cells", options, data_of, max_length=256)


def world_data(folder: Path, seed: int) -> Data:
    """The stages up to the dataset, the pool's answers to validation and test prompts, and their gold scores."""
    from starling.artifacts import read_records
    from starling.config import load_config
    from starling.endpoint import Request
    from starling.microworld import world
    from starling.nectar import read_nectar
    from starling.records import Finish, Prompt
    from starling.serving import Endpoints

    changes = [f"run.dir={folder}", f"run.seed={seed}"]
    command = [str(Path(sys.executable).parent / "starling"), "run", str(CONFIG), "--until", "dataset"]
    subprocess.run(command + [part for change in changes for part in ("--set", change)], check=True)
    prompts = read_records(folder / "prompts" / "prompts.parquet", Prompt)
    asked = {split: [p for p in prompts if p.split == split] for split in ("validation", "test")}
    answers: dict[str, list[tuple[str, bool]]] = {p.id: [] for group in asked.values() for p in group}
    with Endpoints(load_config(CONFIG, tuple(changes))) as endpoints:
        for endpoint in endpoints.pool().values():
            flat = [p for group in asked.values() for p in group]
            requests = [Request(model=endpoint.model, messages=p.messages, purpose="respond") for p in flat]
            for prompt, reply in zip(flat, endpoint.complete_all(requests), strict=True):
                answers[prompt.id].append((reply.text, reply.finish is Finish.stop))

    def group(prompt: Prompt) -> Group:
        given = answers[prompt.id]
        truths = tuple(world.gold(prompt.messages, text, finished).score for text, finished in given)
        return Group(prompt.id, tuple((prompt.messages, text, finished) for text, finished in given), truths)

    rows = [row for row in read_nectar(folder / "dataset" / "train.parquet") if not row.tied]
    rankings = random.Random(seed).sample(rows, len(rows))
    return Data(folder / "world" / "base", rankings, [group(p) for p in asked["validation"]], [group(p) for p in asked["test"]])


# ── (c) nectar_like ──────────────────────────────────────────────────────────────────────────────────────────────────


def run_nectar(options: argparse.Namespace) -> None:
    """Disjoint subsets of the training rankings, one per seed; one backbone per kind, pretrained on training answers."""
    import nectar_like
    import torch

    from starling.chat import conversation_key

    torch.set_num_threads(1)
    if options.bf16_products:
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    splits = nectar_like.read_splits(options.data)
    shuffled = nectar_like.some_of(splits["train"], 0)

    def groups(rows: Sequence[Any]) -> list[Group]:
        taken: dict[str, int] = {}
        found = []
        for row in nectar_like.some_of(rows, 0):
            key = conversation_key(row.prompt.messages)
            taken[key] = taken.get(key, 0) + 1
            if taken[key] <= options.per_instruction:
                conversations = tuple((row.prompt.messages, a.answer, True) for a in row.answers)
                found.append(Group(key, conversations, tuple(-a.rank for a in row.answers)))
        return found

    held_out = {split: groups(splits[split]) for split in ("validation", "test")}
    for kind in options.kinds:
        backbone = (options.backbones or options.out / "backbones") / kind
        nectar_like.build_backbone(argparse.Namespace(**{**vars(options), "kind": kind}), splits["train"], backbone)

        def data_of(seed: int, backbone: Path = backbone) -> Data:
            start = (seed - 1) * options.rankings % len(shuffled)
            return Data(backbone, shuffled[start:] + shuffled[:start], held_out["validation"], held_out["test"])

        run_cells(options.out / f"nectar-{kind}", options, data_of, options.max_length)


# ── tables ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def read_cells(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.*.json"))]


def chosen_rates(cells: Sequence[dict[str, Any]], tuning_seeds: Sequence[int]) -> dict[tuple[str, str], float]:
    """For every (loss, regime) the rate with the best validation pair accuracy, mean over the tuning seeds."""
    scores: dict[tuple[str, str], dict[float, list[float]]] = {}
    for cell in cells:
        if cell["seed"] in tuning_seeds:
            by_rate = scores.setdefault((cell["loss"], cell["regime"]), {})
            by_rate.setdefault(cell["rate"], []).append(mean(cell["validation"]["pairs"]))
    return {row: max(by_rate, key=lambda rate: mean(by_rate[rate])) for row, by_rate in scores.items()}


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def over_seeds(values: Sequence[float]) -> tuple[float, float]:
    """(mean, half-width of the 95 % interval by Student's t)."""
    middle = mean(values)
    if len(values) < 2:
        return middle, math.inf
    deviation = math.sqrt(sum((v - middle) ** 2 for v in values) / (len(values) - 1))
    return middle, T_975[len(values) - 1] * deviation / math.sqrt(len(values))


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    loss: str
    regime: str
    rate: float
    cells: list[dict[str, Any]]
    """By seed."""

    def values(self, measure: str) -> list[float]:
        return [mean(cell["test"][measure]) for cell in self.cells]


def rows_of(folder: Path) -> list[Row]:
    """The chosen cells of every (loss, regime), by seed; the seeds that all rows have."""
    cells = read_cells(folder)
    rates = chosen_rates(cells, json.loads((folder / "settings.json").read_text())["tuning_seeds"])
    found = {
        row: {c["seed"]: c for c in cells if (c["loss"], c["regime"], c["rate"]) == (*row, rate)} for row, rate in rates.items()
    }
    seeds = sorted(found[("plackett_luce", "data")])
    order = [row for row in contenders(list(LOSSES)) if set(seeds) <= set(found.get(row, ()))]
    return [Row(*row, rates[row], [found[row][seed] for seed in seeds]) for row in order]


def run_table(options: argparse.Namespace) -> None:
    """Print a Markdown table per part, draw OUT/loss_study.png."""
    parts = {"microworld": options.out / "microworld" / "cells"}
    parts |= {f"nectar_like, {kind}": options.out / f"nectar-{kind}" for kind in ("encoder", "decoder")}
    tables = {title: rows_of(folder) for title, folder in parts.items() if (folder / "settings.json").exists()}
    for title, rows in tables.items():
        print(f"\n{title}: {len(rows[0].cells)} seeds\n\n{table(rows, gold='best' if title == 'microworld' else None)}")
    draw(tables, options.out / "loss_study.png")


def table(rows: Sequence[Row], gold: str | None) -> str:
    """Means over seeds; differences from Plackett–Luce, paired by seed, with Student's t over the seeds and, beside it, a
    bootstrap over prompts of the difference averaged over seeds."""
    measures = ["pairs", "top1", *([gold] if gold else [])]
    head = ["loss", "regime", "rate", "rankings", "answers read", "CPU-s", *(MEASURES[m] for m in measures)]
    head += ["pairs − Plackett–Luce [t over seeds] [over prompts]", "top-1 − Plackett–Luce [t over seeds]"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    reference = rows[0]
    for row in rows:
        first = row.cells[0]
        cells = [NAMES[row.loss], "both" if row.loss not in READS_A_PAIR else f"equal {row.regime}", f"{row.rate:g}"]
        cells += [f"{first['rankings']:,}", f"{first['answers_read']:,}", f"{mean([c['cpu_seconds'] for c in row.cells]):.0f}"]
        cells += [f"{mean(row.values(m)):.3f}" for m in measures]
        if row is reference:
            cells += ["", ""]
        else:
            low, high = over_prompts(row, reference)
            cells += [f"{difference(row, reference, 'pairs')} [{low:+.3f}, {high:+.3f}]", difference(row, reference, "top1")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def difference(row: Row, reference: Row, measure: str) -> str:
    middle, half = over_seeds([a - b for a, b in zip(row.values(measure), reference.values(measure), strict=True)])
    return f"{middle:+.3f} [{middle - half:+.3f}, {middle + half:+.3f}]"


def over_prompts(row: Row, reference: Row) -> tuple[float, float]:
    """Interval of the mean difference in pair accuracy that resamples clusters: the same prompt of every seed together."""
    from starling.stats import paired_difference

    mine, theirs, clusters = [], [], []
    for a, b in zip(row.cells, reference.cells, strict=True):
        mine += a["test"]["pairs"]
        theirs += b["test"]["pairs"]
        clusters += a["test"]["cluster"]
    found = paired_difference(mine, theirs, clusters, resamples=2000, seed=0)
    return found.low, found.high


def draw(tables: dict[str, list[Row]], path: Path) -> None:
    """Paired differences in pair accuracy with their intervals, a panel per part."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(tables), 3), layout="constrained")
    panels = figure.subplots(1, len(tables), squeeze=False)[0]
    for axes, (title, rows) in zip(panels, tables.items(), strict=True):
        labels = [NAMES[r.loss] + ("" if r.loss not in READS_A_PAIR else f", equal {r.regime}") for r in rows[1:]]
        for place, row in enumerate(rows[1:]):
            each = [a - b for a, b in zip(row.values("pairs"), rows[0].values("pairs"), strict=True)]
            middle, half = over_seeds(each)
            axes.errorbar(middle, place, xerr=half, marker="o", color="C0", capsize=3)
            axes.plot(each, [place] * len(each), ".", color="gray", alpha=0.6)
        axes.axvline(0, color="black", linewidth=1)
        axes.set(title=title, xlabel="pair accuracy − Plackett–Luce's", yticks=range(len(labels)), yticklabels=labels)
        axes.locator_params(axis="x", nbins=5)
        axes.invert_yaxis()
    figure.savefig(path, dpi=150)
