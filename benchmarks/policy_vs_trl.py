"""One iteration of policy tuning, end to end: Starling beside TRL's RLOOTrainer and GRPOTrainer.

Both sides get the same prompts, token for token, the same untrained 5M policy and reward model, as many samples per prompt,
replies of the same lengths, a reference model, as many passes over the replies and optimiser steps, and a fresh process for every
run; runs alternate, figures are medians over rounds. An iteration is: sample, score by the reward model, log-probabilities under
policy and reference, update. TRL runs at its best settings for a CPU (versus_trl/tuning_theirs.py), every batch size of --batches
is tried in the first round and the best one stays. Starling's side is `starling.policy.train.train` as the command runs it.
Neither side's start, first iteration (`--warmup`), evaluation or saving is counted.

    tokens per CPU-s  generated tokens (of the replies, from both sides' own logs) by user and system time of the process
    read              tokens that any model read in an iteration, padding included: with gradient, and without
    steps             optimiser steps of an iteration, counted by torch's hook; a critic's count too

RLOO without a critic is compared; APA and PPO with their critic, which TRL does not have, are shown for information.

    pip install "starling-rlaif[train,bench]" -c constraints.txt
    python benchmarks/policy_vs_trl.py                   all cases, three rounds: about an hour of CPU
    python benchmarks/policy_vs_trl.py --quick --json    the first case, under ten minutes

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
from collections.abc import Sequence
from dataclasses import dataclass
from math import isclose
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.versus_trl import data, tuning

SIDES = Path(__file__).parent / "versus_trl"
TRAINERS = ("rloo", "grpo")
ALGORITHMS: dict[str, dict[str, Any]] = {
    "rloo": {"type": "rloo"},
    "p3o": {"type": "p3o"},
    "apa": {"type": "apa"},
    "ppo": {"type": "ppo"},
}


@dataclass(frozen=True)
class Case:
    """One line of the table: `ends` is the chance of the end token at every place."""

    name: str
    epochs: int
    minibatches: int
    reply: int = 96
    ends: float = tuning.NEVER


CASES = (
    Case("one step", epochs=1, minibatches=1),
    Case("2 passes of 4 steps", epochs=2, minibatches=4),
    Case("ragged", epochs=1, minibatches=1, reply=128, ends=1 / 64),
)
"""TRL's own default (one step per generation), Starling's default, and replies of geometric lengths up to 128."""
LEAST, MOST = 64, 200
"""Tokens of a prompt."""


# ── running one side once ────────────────────────────────────────────────────────────────────────────────────────────


def run_side(side: str, spec: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """A fresh process; returns the JSON object it prints last."""
    python = args.peer_python if side == "tuning_theirs" else sys.executable
    threads = {"OMP_NUM_THREADS": str(args.threads), "MKL_NUM_THREADS": str(args.threads)}
    command = [python, str(SIDES / f"{side}.py"), json.dumps(spec)]
    done = subprocess.run(command, env={**os.environ, **threads}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{side} failed with exit code {done.returncode}:\n{done.stderr[-4000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**found, "rate": found["generated"] / found["cpu_s"]}


def request(folder: Path, case: Case, args: argparse.Namespace, **changes: Any) -> dict[str, Any]:
    """What a side is told; the same keys for both."""
    spec = {
        "folder": str(folder), "seed": args.seed, "prompts": args.prompts, "samples": args.samples, "reply": case.reply,
        "epochs": case.epochs, "minibatches": case.minibatches, "warmup": args.warmup, "iterations": args.iterations,
        "kl": 0.05, "rate": 1e-6, "trainer": "rloo", "batch": 0, "algorithm": ALGORITHMS["rloo"], "trl": {},
        "policy": {"micro_tokens": args.micro_tokens},
    }  # fmt: skip
    unknown = set(changes) - set(spec)
    assert not unknown, unknown
    return {**spec, **changes}


def batches(case: Case, args: argparse.Namespace) -> list[int]:
    """TRL's batch sizes that divide an optimiser step of this case.

    Raises:
        SystemExit: none does.
    """
    step = args.prompts * args.samples // case.minibatches
    found = [batch for batch in args.batches if step % batch == 0]
    if not found:
        raise SystemExit(f"{case.name}: none of --batches {args.batches} divides an optimiser step of {step} replies")
    return found


def same_start(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Refuse to compare two sides that did not read the same prompts or did not start from the same models.

    Raises:
        SystemExit: with what differs.
    """
    if ours["digest"] != theirs["digest"]:
        raise SystemExit(f"The two sides read different prompts: {ours['digest']} and {theirs['digest']}")
    numbers = list(zip(ours["first_scores"], theirs["first_scores"], strict=True))
    if not all(isclose(a, b, rel_tol=1e-4, abs_tol=1e-4) for a, b in numbers):
        raise SystemExit(f"The two sides start from different models: rewards and losses of the first prompts {numbers}")


def same_work(case: Case, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Refuse to compare two sides that did different work: replies of other lengths, or another number of steps.

    Ragged replies are drawn by each side, so their number of tokens may differ a little.

    Raises:
        SystemExit: with what differs.
    """
    steps = case.epochs * case.minibatches
    counted = [side["work"]["optimizer_steps"] for side in (ours, theirs)]
    if counted != [steps, steps]:
        raise SystemExit(f"{case.name}: {counted} optimiser steps per iteration (Starling, TRL) where {steps} were asked for")
    if not isclose(ours["generated"], theirs["generated"], rel_tol=1e-9 if case.ends == tuning.NEVER else 0.25):
        raise SystemExit(f"{case.name}: {ours['generated']} tokens generated per iteration, TRL {theirs['generated']}")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# ── the comparison ───────────────────────────────────────────────────────────────────────────────────────────────────


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All cases; `ratios` are those of the first one."""
    cases = [case for case in CASES if case.name in args.cases]
    lines = {case.name: compare(case, args, folder / f"case{i}") for i, case in enumerate(cases)}
    return {"ratios": lines[cases[0].name]["ratios"], "cases": lines}


def compare(case: Case, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One case: each trainer of TRL with every batch size in the first round, with its best one in the others; Starling's
    compared algorithm after each trainer, the others once a round."""
    shape = data.SHAPES["5M"]
    made = tuning.Made(args.prompts, LEAST, MOST, shape.vocab, args.seed)
    tuning.write(folder, shape, tuning.make_prompts(made), ends=case.ends, seed=args.seed)
    theirs: dict[str, dict[int, list[dict[str, Any]]]] = {name: {} for name in TRAINERS}
    ours: dict[str, list[dict[str, Any]]] = {name: [] for name in args.algorithms}
    compared = args.algorithms[0]

    def mine(name: str) -> None:
        ours[name].append(run_side("tuning_ours", request(folder, case, args, algorithm=ALGORITHMS[name]), args))
        say(f"{case.name}, Starling {name}: {ours[name][-1]['rate']:.0f} tokens per CPU-s")

    for number in range(args.rounds):
        for trainer, runs in theirs.items():
            tried = [max(runs, key=lambda batch, runs=runs: runs[batch][0]["rate"])] if runs else batches(case, args)
            for batch in tried:
                spec = request(folder, case, args, trainer=trainer, batch=batch)
                runs.setdefault(batch, []).append(run_side("tuning_theirs", spec, args))
                say(f"{case.name}, TRL {trainer}, batch {batch}: {runs[batch][-1]['rate']:.0f} tokens per CPU-s")
            mine(compared)
            for runs_of_a_batch in runs.values():
                same_start(ours[compared][-1], runs_of_a_batch[-1])
                if args.algorithms[0] in ("rloo", "p3o"):
                    same_work(case, ours[compared][-1], runs_of_a_batch[-1])
        for name in args.algorithms[1:]:
            mine(name)
        say(f"{case.name}: round {number + 1} of {args.rounds} done")
    return line(ours, theirs)


def line(ours: dict[str, list[dict[str, Any]]], theirs: dict[str, dict[int, list[dict[str, Any]]]]) -> dict[str, Any]:
    """Medians and ratios of one case; a trainer of TRL stands for its best batch size, Starling for its first algorithm."""
    sides: dict[str, dict[str, Any]] = {f"Starling {name}": summary(runs) for name, runs in ours.items()}
    compared = next(iter(sides.values()))["tokens_per_cpu_s"]
    ratios = {}
    for trainer, by_batch in theirs.items():
        rates = {batch: median(run["rate"] for run in runs) for batch, runs in by_batch.items()}
        best = max(rates, key=lambda batch: rates[batch])
        tried = {str(batch): round(rate, 1) for batch, rate in rates.items()}
        sides[f"TRL {trainer}"] = {**summary(by_batch[best]), "batch": best, "by_batch": tried}
        ratios[trainer] = round(compared / rates[best], 2)
    return {"ratios": ratios, "sides": sides}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds; what was done is the last run's."""
    rates = [run["rate"] for run in runs]
    return {
        "tokens_per_cpu_s": round(median(rates), 1),
        "least": round(min(rates), 1),
        "most": round(max(rates), 1),
        "cpu_s": round(median(run["cpu_s"] for run in runs), 3),
        "wall_s": round(median(run["wall_s"] for run in runs), 3),
        "peak_mib": round(median(run["peak_mib"] for run in runs), 1),
        "generated": round(runs[-1]["generated"], 1),
        "work": runs[-1]["work"],
    }


def table(found: dict[str, Any]) -> str:
    columns = ("case", "side", "tokens per CPU-s", "Starling / TRL", "CPU-s per iteration", "generated")
    columns += ("read with gradient", "without", "steps", "peak MiB")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name, case in found["cases"].items():
        for side, s in case["sides"].items():
            ratio = case["ratios"].get(side.removeprefix("TRL "))
            work = s["work"]
            cells = [name, f"{side}, batch {s['batch']}" if "batch" in s else side]
            cells += [f"{s['tokens_per_cpu_s']:.0f} [{s['least']:.0f}, {s['most']:.0f}]"]
            cells += [f"**{ratio:.1f}**" if side.startswith("TRL ") else "", f"{s['cpu_s']:.2f}", f"{s['generated']:,.0f}"]
            cells += [f"{work[key]:,.0f}" for key in ("read_with_gradient", "read_without", "optimizer_steps")]
            cells += [f"{s['peak_mib']:.0f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────────────────


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; the defaults are the settings behind docs/results.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--quick", action="store_true", help="the first case, one round, RLOO only")
    add("--json", action="store_true", help="one JSON object instead of a table")
    add("--out", type=Path, help="folder for policy_vs_trl.json")
    add("--peer-python", default=sys.executable, help="python of the environment that holds trl")
    add("--cases", nargs="+", choices=[case.name for case in CASES], default=[case.name for case in CASES])
    add("--algorithms", nargs="+", choices=tuple(ALGORITHMS), default=["rloo", "apa", "ppo"], help="Starling's; the first counts")
    add("--rounds", type=int, default=3, help="runs of each side, in turn")
    add("--threads", type=int, default=1, help="threads of torch; waiting threads count as CPU time, so one is the cleanest")
    add("--prompts", type=int, default=16, help="prompts of an iteration")
    add("--samples", type=int, default=4, help="replies per prompt")
    add("--warmup", type=int, default=1, help="first iterations that are not counted")
    add("--iterations", type=int, default=3, help="iterations that are counted")
    add("--batches", type=int, nargs="+", default=[4, 8, 16, 32, 64], help="TRL's batch sizes to try; the best counts")
    add("--micro-tokens", type=int, default=4096, help="Starling's policy.micro_tokens: bounds memory, costs no time")
    add("--seed", type=int, default=0)
    args = parser.parse_args(words)
    if args.quick:
        args.cases, args.rounds, args.iterations, args.algorithms = [CASES[0].name], 1, 2, args.algorithms[:1]
        args.batches = [16, 64]
    return args


def machine(args: argparse.Namespace) -> dict[str, Any]:
    import torch

    return {"cores": os.cpu_count(), "threads": args.threads, "torch": torch.__version__, "load": os.getloadavg()[0]}


def main(words: Sequence[str] | None = None) -> None:
    """Run the comparison and print what it found."""
    args = arguments(words)
    with tempfile.TemporaryDirectory() as folder:
        found = {**measure(args, Path(folder)), "machine": machine(args)}
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "policy_vs_trl.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found) if args.json else table(found))


if __name__ == "__main__":
    main()
