"""Training a reward model: Starling beside TRL's RewardTrainer, and beside the least that the arithmetic allows.

Both sides get the same rankings of K = 7 answers, token for token, the same untrained model with the same head, as many optimiser
steps per ranking, and a fresh process for every run; runs alternate, figures are medians over rounds. TRL trains on all 21
pairs of each ranking, tokenised beforehand, at its best settings for a CPU (versus_trl/theirs.py). Starling's side is
`starling.reward.train.train` as the command runs it, with checkpoints and log; time is read where it reports progress. Neither
side's start, tokenising, first step (`--warmup`) or saving (after the last step) is counted.

    CPU-s            user and system time of the process, per ranking
    peak MiB         largest resident set at the end of the steps; "steps alone": less what was resident before the first step
    floor            CPU-s of the matrix products of a ranking's different tokens alone, at the speed measured in the same
                     process (versus_trl/floor.py)

    pip install "starling-rlaif[train,bench]" -c constraints.txt
    python benchmarks/reward_vs_trl.py                               the three cases, three rounds: about an hour of CPU
    python benchmarks/reward_vs_trl.py --quick --json                two cases at 5M, under ten minutes
    python benchmarks/reward_vs_trl.py --part layouts                Starling's three layouts beside each other
    python benchmarks/reward_vs_trl.py --part curve --out DIR        cost against K and prompt length, DIR/reward_curve.png
    python benchmarks/reward_vs_trl.py --part accuracy --seeds 1 2 3 CPU-s until unseen pairs are ordered well enough

`--peer-python PATH` runs TRL in another environment; nothing of Starling needs to be installed there. Results on stdout
(Markdown, or one JSON object with --json), progress on stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isclose
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.versus_trl import accuracy, curve, data

SIDES = Path(__file__).parent / "versus_trl"
PAIRS = 21
"""Of seven answers."""
LAYOUTS = ("shared_prefix", "sequences", "all_pairs")


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    model: str
    prompt: int
    response: int
    answers: int = 7

    @property
    def name(self) -> str:
        """200/150, with the model's size unless it is the smallest."""
        lengths = f"{self.prompt}/{self.response}"
        return lengths if self.model == "5M" else f"{self.model} {lengths}"


CASES = (Case("5M", 200, 150), Case("5M", 600, 200), Case("30M", 200, 150))


# ── running one side once ────────────────────────────────────────────────────────────────────────────────────────────


def run_side(side: str, spec: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """A fresh process; returns the JSON object it prints last."""
    python = args.peer_python if side == "theirs" else sys.executable
    threads = {"OMP_NUM_THREADS": str(args.threads), "MKL_NUM_THREADS": str(args.threads)}
    command = [python, str(SIDES / f"{side}.py"), json.dumps(spec)]
    done = subprocess.run(command, env={**os.environ, **threads}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{side} failed with exit code {done.returncode}:\n{done.stderr[-4000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def request(folder: Path, args: argparse.Namespace, **changes: Any) -> dict[str, Any]:
    """What a side is told; the same keys for both."""
    spec = {
        "folder": str(folder), "seed": args.seed, "epochs": 1, "per_step": args.per_step, "warmup": args.warmup,
        "micro_tokens": args.micro_tokens, "batch": 3, "accumulate": 1, "rate": 1e-5, "warmup_fraction": 0.05,
        "warmup_steps": 0, "in_order": args.in_order, "every": 0, "mark": 1.0, "stop": 0, "floor": False, "reward": {},
        "schedule": args.schedule, "optimizer": args.ours_optimizer,
    }  # fmt: skip
    unknown = set(changes) - set(spec)
    assert not unknown, unknown
    return {**spec, **changes}


def accumulation(pairs_per_ranking: int, per_step: int, batch: int) -> int:
    """Batches per optimiser step of the peer, so that a step has `per_step` rankings' worth of pairs."""
    return max(1, round(pairs_per_ranking * per_step / batch))


def same_start(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Refuse to compare two sides that did not read the same tokens or did not start from the same model.

    Raises:
        SystemExit: with what differs.
    """
    if ours["digest"] != theirs["digest"]:
        raise SystemExit(f"The two sides read different token ids: {ours['digest']} and {theirs['digest']}")
    scores = list(zip(ours["first_scores"], theirs["first_scores"], strict=True))
    if not all(isclose(a, b, rel_tol=1e-4, abs_tol=1e-4) for a, b in scores):
        raise SystemExit(f"The two sides start from different models: scores of the first ranking {scores}")


def make(folder: Path, case: Case, args: argparse.Namespace) -> Path:
    """Data and models of a case: rankings for the steps that count, those before, and one after which Starling saves."""
    shape = data.SHAPES[case.model]
    rankings = args.per_step * (args.warmup + args.steps + 1)
    rows = data.make_rankings(data.Made(rankings, case.answers, case.prompt, case.response, shape.vocab, args.seed))
    return data.write(folder, shape, rows, args.seed)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# ── CPU per ranking and memory ───────────────────────────────────────────────────────────────────────────────────────


def part_cost(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All cases."""
    cases = [case for case in CASES if case.model in args.models]
    lines = {case.name: cost(case, args, folder / f"cost{i}") for i, case in enumerate(cases)}
    return {
        "ratios": {name: line["ratio"] for name, line in lines.items()},
        "memory_ratios": {name: line["memory_ratio"] for name, line in lines.items()},
        "cases": lines,
    }


def cost(case: Case, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One case: TRL with every batch size in the first round, with the best one in the others; Starling after each run of TRL."""
    make(folder, case, args)
    theirs: dict[int, list[dict[str, Any]]] = {}
    ours = []
    stop = args.warmup + args.steps
    for number in range(args.rounds):
        best = min(theirs, key=lambda batch: theirs[batch][0]["cpu_s"], default=None)
        for batch in args.batches if best is None else [best]:
            spec = request(folder, args, batch=batch, accumulate=accumulation(PAIRS, args.per_step, batch), stop=stop)
            theirs.setdefault(batch, []).append(run_side("theirs", spec, args))
            ours.append(run_side("ours", request(folder, args, floor=True, stop=stop), args))
            same_start(ours[-1], theirs[batch][-1])
            both = f"TRL with batch {batch} {theirs[batch][-1]['cpu_s']:.2f}, Starling {ours[-1]['cpu_s']:.3f}"
            say(f"{case.name}, round {number + 1}, CPU-s per ranking: {both}")
    return cost_line(ours, theirs)


def cost_line(ours: list[dict[str, Any]], theirs: dict[int, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians and ratios of one case; TRL stands for its best batch size."""
    by_batch = {batch: median(run["cpu_s"] for run in runs) for batch, runs in theirs.items()}
    best = min(by_batch, key=lambda batch: by_batch[batch])
    sides = {"trl": summary(theirs[best]), "starling": summary(ours)}
    peaks = sides["starling"]["peak_mib"] / sides["trl"]["peak_mib"]
    alone = sides["starling"]["steps_alone_mib"] / sides["trl"]["steps_alone_mib"]
    floors = [run["cpu_s"] / run["floor"]["cpu_s"] for run in ours]
    return {
        "ratio": round(sides["trl"]["cpu_s"] / sides["starling"]["cpu_s"], 2),
        "memory_ratio": round(peaks, 3),
        "memory_ratio_steps_alone": round(alone, 3),
        "times_floor": round(median(floors), 2),
        "trl_batch": best,
        "trl_cpu_s_by_batch": {str(batch): round(value, 3) for batch, value in by_batch.items()},
        **sides,
    }


def summary(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Medians over the rounds."""
    per_ranking = [run["cpu_s"] for run in runs]
    return {
        "cpu_s": round(median(per_ranking), 4),
        "cpu_s_least": round(min(per_ranking), 4),
        "cpu_s_most": round(max(per_ranking), 4),
        "wall_s": round(median(run["wall_s"] for run in runs), 4),
        "peak_mib": round(median(run["peak_mib"] for run in runs), 1),
        "steps_alone_mib": round(median(run["peak_mib"] - run["before_mib"] for run in runs), 1),
    }


def cost_table(found: dict[str, Any]) -> str:
    head = "| case | TRL CPU-s (batch) | Starling CPU-s | TRL / Starling | peak MiB | of TRL's | steps alone | × floor |"
    lines = [head, "|---|---|---|---|---|---|---|---|"]
    for name, line in found["cases"].items():
        a, b = line["trl"], line["starling"]
        lines.append(
            f"| {name} | {a['cpu_s']:.2f} ({line['trl_batch']}) | {b['cpu_s']:.3f} | **{line['ratio']:.1f}** | "
            f"{a['peak_mib']:.0f} → {b['peak_mib']:.0f} | {line['memory_ratio']:.2f} | "
            f"{line['memory_ratio_steps_alone']:.2f} | {line['times_floor']:.2f} |"
        )
    return "\n".join(lines)


# ── Starling's own layouts ───────────────────────────────────────────────────────────────────────────────────────────


def part_layouts(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """CPU and memory of every layout of Starling, each case."""
    found: dict[str, Any] = {}
    for i, case in enumerate(case for case in CASES if case.model in args.models):
        made = make(folder / f"layouts{i}", case, args)
        runs: dict[str, list[dict[str, Any]]] = {layout: [] for layout in LAYOUTS}
        for _ in range(args.rounds):
            for layout in LAYOUTS:
                runs[layout].append(
                    run_side("ours", request(made, args, reward={"layout": layout}, stop=args.warmup + args.steps), args)
                )
                say(f"{case.name}, {layout}: {runs[layout][-1]['cpu_s']:.2f} CPU-s per ranking")
        found[case.name] = {layout: summary(runs[layout]) for layout in LAYOUTS}
    return {"layouts": found}


def layouts_table(found: dict[str, Any]) -> str:
    lines = ["| case | layout | CPU-s per ranking | × shared prefix | peak MiB | steps alone |", "|---|---|---|---|---|---|"]
    for name, by_layout in found["layouts"].items():
        least = by_layout["shared_prefix"]["cpu_s"]
        for layout, s in by_layout.items():
            lines.append(
                f"| {name} | {layout} | {s['cpu_s']:.3f} | {s['cpu_s'] / least:.2f} | {s['peak_mib']:.0f} | "
                f"{s['steps_alone_mib']:.0f} |"
            )
    return "\n".join(lines)


# ── cost against K and prompt length ─────────────────────────────────────────────────────────────────────────────────


def part_curve(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Every point of the two sweeps; the figure goes to --out."""

    def run(model: str, point: dict[str, int]) -> dict[str, Any]:
        case = Case(model, **point)
        made = make(folder / "curve", case, args)
        found = run_side("ours", request(made, args, floor=True, stop=args.warmup + args.steps), args)
        say(f"{case.name}, K = {case.answers}: {found['cpu_s'] / found['floor']['cpu_s']:.2f} × the floor")
        return found

    lines = curve.measure([m for m in args.models if m != "1M"], args.rounds, run)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        curve.figure(lines, args.out / "reward_curve.png")
    return {"curve": lines}


# ── time to an accuracy ──────────────────────────────────────────────────────────────────────────────────────────────


def part_accuracy(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Tune on --tune-seed where a grid is given, then every seed with the best setting of each side."""
    task = accuracy.Task(args.task_model, args.prompt, args.response, args.rankings, args.unseen, args.mark, args.epochs)

    def sides(seed: int) -> dict[str, Callable[[accuracy.Setting], dict[str, Any]]]:
        made = make_task(folder / f"seed{seed}", task, seed)

        def run(side: str, changes: dict[str, Any]) -> dict[str, Any]:
            return run_side(side, request(made, args, **{"seed": seed, **changes}), args)

        return {
            "starling": lambda setting: accuracy.ours(task, setting, run),
            "trl": lambda setting: accuracy.theirs(task, setting, run, PAIRS, args.micro),
        }

    grids = {
        "starling": accuracy.settings(args.ours_rates, args.ours_batches),
        "trl": accuracy.settings(args.theirs_rates, args.theirs_batches),
    }
    chosen, tuning = {}, {}
    for side, grid in grids.items():
        tried = {setting: sides(args.tune_seed)[side](setting) for setting in grid} if len(grid) > 1 else {}
        for setting, found in tried.items():
            say(f"{side} {setting}: {found['cpu_s']} CPU-s to the mark, best {found['best']:.3f}")
        chosen[side] = accuracy.best(tried) if tried else grid[0]
        tuning[side] = [{**vars(setting), **found} for setting, found in tried.items()]
    lines = []
    for seed in args.seeds:
        found = {side: run(chosen[side]) for side, run in sides(seed).items()}
        lines.append({"seed": seed, **found, "ratio": accuracy.ratio(found["starling"], found["trl"])})
        say(accuracy.table(lines[-1:]).splitlines()[2])
    named = {"task": vars(task), "optimizer": args.ours_optimizer}
    return {**named, "chosen": {side: vars(s) for side, s in chosen.items()}, "tuning": tuning, "seeds": lines}


def make_task(folder: Path, task: accuracy.Task, seed: int) -> Path:
    """Rankings by the planted rule to learn from, and others by the same rule that nobody learns from."""
    shape = data.SHAPES[task.model]
    made = data.Made(task.rankings, 7, task.prompt, task.response, shape.vocab, seed, data.Rule.topics)
    unseen = data.make_rankings(replace(made, rankings=task.unseen, part="unseen"))
    return data.write(folder, shape, data.make_rankings(made), seed, unseen)


def accuracy_table(found: dict[str, Any]) -> str:
    how = "; ".join(f"{side}: rate {s['rate']:g}, batch {s['batch']}" for side, s in found["chosen"].items())
    return f"{accuracy.table(found['seeds'])}\n\nMark {found['task']['mark']}. {how}; Starling's optimiser: {found['optimizer']}"


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────────────────

PARTS: dict[str, tuple[Callable[[argparse.Namespace, Path], dict[str, Any]], Callable[[dict[str, Any]], str]]] = {
    "cost": (part_cost, cost_table),
    "layouts": (part_layouts, layouts_table),
    "curve": (part_curve, lambda found: curve.table(found["curve"])),
    "accuracy": (part_accuracy, accuracy_table),
}


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; the defaults are the settings behind docs/results.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--part", choices=tuple(PARTS), default="cost")
    add("--quick", action="store_true", help="the two cases at 5M, few rankings, one round")
    add("--json", action="store_true", help="one JSON object instead of a table")
    add("--out", type=Path, help="folder for PART.json and the figure")
    add("--peer-python", default=sys.executable, help="python of the environment that holds trl")
    add("--models", nargs="+", choices=tuple(data.SHAPES), default=["5M", "30M"])
    add("--rounds", type=int, default=3, help="runs of each side, in turn")
    add("--threads", type=int, default=1, help="threads of torch; waiting threads count as CPU time, so one is the cleanest")
    add("--per-step", type=int, default=2, help="rankings per optimiser step, both sides")
    add("--warmup", type=int, default=1, help="first steps that are not counted")
    add("--steps", type=int, default=3, help="steps that are counted")
    add("--batches", type=int, nargs="+", default=[2, 3, 4], help="TRL's batch sizes to try, in pairs; the best counts")
    add("--in-order", action="store_true", help="TRL reads the pairs ranking by ranking instead of shuffled: less padding")
    add("--micro-tokens", type=int, default=2048, help="Starling's reward.micro_tokens")
    add("--seed", type=int, default=0)
    task = parser.add_argument_group("--part accuracy")
    add = task.add_argument
    add("--seeds", type=int, nargs="+", default=[1, 2, 3])
    add("--tune-seed", type=int, default=0, help="where a side has more than one setting below, the best on this seed is taken")
    add("--ours-rates", type=float, nargs="+", default=[1e-3])
    add(
        "--ours-optimizer",
        choices=("adamw", "muon"),
        default="adamw",
        help="Starling's; the peer's trainer has AdamW and its kin only",
    )
    add("--ours-batches", type=int, nargs="+", default=[1], help="rankings per optimiser step")
    add("--theirs-rates", type=float, nargs="+", default=[5e-4])
    add("--theirs-batches", type=int, nargs="+", default=[4], help="pairs per optimiser step")
    add("--micro", type=int, default=4, help="most pairs per forward pass of TRL; larger steps accumulate")
    add("--task-model", choices=tuple(data.SHAPES), default="1M")
    add("--prompt", type=int, default=200)
    add("--response", type=int, default=150)
    add("--rankings", type=int, default=100)
    add("--unseen", type=int, default=100)
    add("--mark", type=float, default=0.83)
    add("--epochs", type=int, default=1)
    add("--schedule", choices=("constant", "linear"), default="linear", help="of both sides, after 5 %% of warm-up")
    args = parser.parse_args(words)
    if args.quick:
        args.models, args.rounds, args.per_step, args.steps = ["5M"], 1, 1, 2
    return args


def machine(args: argparse.Namespace) -> dict[str, Any]:
    import torch

    return {"cores": os.cpu_count(), "threads": args.threads, "torch": torch.__version__, "load": os.getloadavg()[0]}


def main(words: Sequence[str] | None = None) -> None:
    """Run a part and print what it found."""
    args = arguments(words)
    run, table = PARTS[args.part]
    with tempfile.TemporaryDirectory() as folder:
        found = {**run(args, Path(folder)), "machine": machine(args)}
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / f"{args.part}.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found) if args.json else table(found))


if __name__ == "__main__":
    main()
