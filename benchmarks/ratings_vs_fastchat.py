"""Ratings from 200,000 battles of 100 models: Starling beside FastChat, in one run, one thread each.

Both sides read the same simulated battles (known strengths and effects of style, 30 % ties) from one parquet file, each in a
fresh process after a warm-up on a thousand battles; they alternate, figures are medians over the runs. FastChat's CPU-seconds
begin at its DataFrame in memory, Starling's at the file. Distances are the largest difference of a rating from the optimum, in
points, found for each fit and round by a third solver to 1e-10 (versus_fastchat/peak.py).

    bootstrap     Bradley–Terry: fit and 100 bootstrap rounds. FastChat: compute_bt, compute_bootstrap_bt
    style         FastChat's objective of style control: fit and 100 rounds. FastChat: compute_style_control,
                  compute_bootstrap_style_control
    ten_million   Starling alone, wall-clock and peak memory: reading 10,000,000 battles, fit, sandwich and 100 rounds

FastChat's code of that kind was never released: the newest package, fschat 0.2.36, has no style control and an older fit, which
takes minutes for 100 rounds (lm-sys/FastChat pull request 3523). So it comes from a checkout:

    pip install "starling-rlaif[bench-ratings]" -c constraints.txt
    git clone https://github.com/lm-sys/FastChat && git -C FastChat checkout 0e6d3e4beaab66f4d3f93db72541a4abab8af28d
    python benchmarks/ratings_vs_fastchat.py --fastchat FastChat           three rounds: about five minutes of CPU
    python benchmarks/ratings_vs_fastchat.py --fastchat FastChat --quick --json       under two

Without `--fastchat` the peer is versus_fastchat/restated.py, the same method written down anew, and the result says so.
`--peer-python PATH` runs the peer in another environment (numpy, scipy, pandas, pyarrow, tqdm). Results on stdout (Markdown, or
one JSON object with --json), progress on stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.versus_fastchat import simulated

SIDES = Path(__file__).parent / "versus_fastchat"
TASKS = ("bootstrap", "style")
MODULE = "fastchat/serve/monitor/rating_systems.py"
THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run_side(side: str, spec: dict[str, Any], python: str) -> dict[str, Any]:
    """A fresh process with one thread; returns the JSON object it prints last.

    Raises:
        SystemExit: it failed; with the end of what it said.
    """
    command = [python, str(SIDES / f"{side}.py"), json.dumps(spec)]
    done = subprocess.run(command, env={**os.environ, **THREADS}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{side} failed with exit code {done.returncode}:\n{done.stderr[-4000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def module_of(checkout: Path | None) -> str:
    """FastChat's file, in a checkout or by itself; "" for the restated peer.

    Raises:
        SystemExit: it is not there.
    """
    if checkout is None:
        return ""
    path = checkout if checkout.suffix == ".py" else checkout / MODULE
    if not path.is_file():
        raise SystemExit(f"There is no {path}: --fastchat wants a checkout of FastChat, or its rating_systems.py")
    return str(path.resolve())


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All comparisons, and the ten million."""
    module = module_of(args.fastchat)
    log, warm = folder / "battles.parquet", folder / "first.parquet"
    simulated.write(log, simulated.Made(args.battles, args.models, args.ties, args.seed))
    simulated.write(warm, simulated.Made(1000, 10, args.ties, args.seed))
    found: dict[str, Any] = {"ratios": {}, "distance": {}, "sides": {}}
    for task in args.tasks:
        spec = {"task": task, "path": str(log), "warm": str(warm), "rounds": args.rounds, "seed": args.seed, "module": module}
        ours: list[dict[str, Any]] = []
        theirs: list[dict[str, Any]] = []
        for number in range(args.repeats):
            checked = 0 if number else args.checked
            ours.append(run_side("ours", {**spec, "checked": checked}, sys.executable))
            theirs.append(run_side("theirs", {**spec, "checked": checked}, args.peer_python))
            ours.append(run_side("ours", {**spec, "checked": 0}, sys.executable))
            say(f"{task}: {theirs[-1]['cpu_s']:.2f} CPU-s, Starling {ours[-2]['cpu_s']:.3f} and {ours[-1]['cpu_s']:.3f}")
        found["ratios"][task] = round(_median(theirs, "cpu_s") / _median(ours, "cpu_s"), 1)
        found["distance"][task] = {"starling": _distances(ours[0]), "fastchat": _distances(theirs[0])}
        found["sides"][task] = {"starling": summary(ours), "fastchat": summary(theirs)}
    if args.many:
        found["ten_million"] = ten_million(args, folder)
    return {**found, "peer": "FastChat" if module else "restated", "machine": machine(args)}


def ten_million(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Starling on many battles; the file is made here, the memory is that of the process that reads it."""
    path = folder / "many.parquet"
    simulated.write(path, simulated.Made(args.many, args.models, args.ties, args.seed, style=False))
    say(f"{args.many:,} battles are written: {path.stat().st_size / 2**20:.0f} MiB")
    spec = {"task": "many", "path": str(path), "warm": "", "rounds": args.rounds, "seed": args.seed}
    found = run_side("ours", spec, sys.executable)
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in found.items()}


def _median(runs: list[dict[str, Any]], key: str) -> float:
    return float(median(run[key] for run in runs))


def _distances(run: dict[str, Any]) -> dict[str, float]:
    """Of the fit and of the worst checked round, in points; of the coefficients in log-odds."""
    return {key: float(f"{run[key]:.2g}") for key in ("fit", "round", "coefficient") if key in run}


def summary(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Medians over the runs."""
    return {key: round(_median(runs, key), 3) for key in ("cpu_s", "wall_s", "peak_gib", "read_s") if key in runs[0]}


def machine(args: argparse.Namespace) -> dict[str, Any]:
    import numpy

    return {"cores": os.cpu_count(), "threads": 1, "numpy": numpy.__version__, "load": round(os.getloadavg()[0], 2)}


def table(found: dict[str, Any]) -> str:
    peer = found["peer"]
    lines = [
        f"| what | {peer} CPU-s | Starling CPU-s | ratio | off the optimum, {peer}: fit, round | Starling |",
        "|---" * 6 + "|",
    ]
    for task, sides in found["sides"].items():
        far, near = (found["distance"][task][side] for side in ("fastchat", "starling"))
        cells = [task, f"{sides['fastchat']['cpu_s']:.2f}", f"{sides['starling']['cpu_s']:.3f}"]
        cells += [f"**{found['ratios'][task]:.1f}**", *(f"{d['fit']:.2g}, {d['round']:.2g} points" for d in (far, near))]
        lines.append(f"| {' | '.join(cells)} |")
    if "ten_million" in found:
        many = found["ten_million"]
        lines += ["", f"{many['battles']:,} battles: {many['seconds']:.1f} s (reading {many['read_seconds']:.1f}),"]
        lines[-1] += f" peak {many['peak_gib']:.2f} GiB"
    return "\n".join(lines)


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; the defaults are the settings behind docs/ratings-style.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--quick", action="store_true", help="one run of the peer, one round of each side checked")
    add("--json", action="store_true", help="one JSON object instead of a table")
    add("--out", type=Path, help="folder for ratings_vs_fastchat.json")
    add("--fastchat", type=Path, help="checkout of FastChat, or its rating_systems.py; without it the peer is restated")
    add("--peer-python", default=sys.executable, help="python of the environment that the peer runs in")
    add("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    add("--battles", type=int, default=200_000)
    add("--models", type=int, default=100)
    add("--ties", type=float, default=0.3, help="share of battles that end in a tie")
    add("--rounds", type=int, default=100, help="bootstrap rounds")
    add("--repeats", type=int, default=3, help="runs of the peer; each has a run of Starling before and one after it")
    add("--checked", type=int, default=5, help="rounds of each side whose optimum is looked for")
    add("--many", type=int, default=10_000_000, help="battles of the large log; 0 leaves it out")
    add("--seed", type=int, default=0)
    args = parser.parse_args(words)
    if args.quick:
        args.repeats, args.checked = 1, 1
    return args


def main(words: Sequence[str] | None = None) -> None:
    """Run the comparison and print what it found."""
    args = arguments(words)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(args, Path(folder))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "ratings_vs_fastchat.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found) if args.json else table(found))


if __name__ == "__main__":
    main()
