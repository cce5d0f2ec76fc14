"""The whole chain on several seeds, with each policy algorithm: what docs/results.md reports about the microworld.

    python benchmarks/microworld.py --seeds 1 2 3 --out runs/seeds

Each seed trains its own world, collects and ranks its own answers, trains its own reward model and tunes a policy with
every algorithm; all numbers are measured on the test split, which no stage trains on and no setting was chosen on. The
stages before the policy do not depend on the algorithm: they are run once per seed and copied, which gives the same
bytes as running them again. Runs that are there already are not run again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BEFORE = "reward"
"""The last stage that does not depend on the algorithm."""


def run(config: Path, folder: Path, *settings: str, until: str | None = None) -> None:
    """`starling run` in a process of its own; stops here when it fails."""
    command = [str(Path(sys.executable).parent / "starling"), "run", str(config), "--set", f"run.dir={folder}"]
    command += [part for s in settings for part in ("--set", s)] + (["--until", until] if until else [])
    subprocess.run(command, check=True)


def one_seed(config: Path, out: Path, seed: int, algorithms: list[str]) -> list[dict[str, Any]]:
    """Summaries of one seed, an algorithm each."""
    shared = out / f"seed-{seed}"
    run(config, shared, f"run.seed={seed}", until=BEFORE)
    rows = []
    for algorithm in algorithms:
        folder = out / f"seed-{seed}-{algorithm}"
        if not folder.exists():
            shutil.copytree(shared, folder)
        run(config, folder, f"run.seed={seed}", f'policy.algorithm={{type="{algorithm}"}}')
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        rows.append({"seed": seed, **summary})
    return rows


def interval(value: dict[str, Any]) -> str:
    return f"{value['mean']:+.3f} [{value['ci'][0]:+.3f}, {value['ci'][1]:+.3f}]"


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table, one row per run."""
    head = (
        "| algorithm | seed | gold at T = 1, base → tuned | difference [95 %] | greedy, base → tuned | difference [95 %] | "
        "harmlessness | tokens | reward pairs [95 %] | judge prefers tuned [95 %] | seconds |"
    )
    lines = [head, "|" + "---|" * 11]
    for row in sorted(rows, key=lambda r: (r["policy"]["algorithm"], r["seed"])):
        base, tuned, diff = row["gold"]["base"], row["gold"]["tuned"], row["gold"]["difference"]
        reward, duel = row["reward"], row["head_to_head"]
        lines.append(
            f"| {row['policy']['algorithm'].upper()} | {row['seed']} "
            f"| {base['mean']:.3f} [{base['ci'][0]:.3f}, {base['ci'][1]:.3f}] → "
            f"{tuned['mean']:.3f} [{tuned['ci'][0]:.3f}, {tuned['ci'][1]:.3f}] | {interval(diff['sampled'])} "
            f"| {base['greedy']:.3f} → {tuned['greedy']:.3f} | {interval(diff['greedy'])} "
            f"| {base['harmlessness']:.3f} → {tuned['harmlessness']:.3f} "
            f"| {row['length']['base']['mean']:.1f} → {row['length']['tuned']['mean']:.1f} "
            f"| {reward['pair_accuracy']:.3f} [{reward['ci'][0]:.3f}, {reward['ci'][1]:.3f}] "
            f"| {duel['win_rate']:.3f} [{duel['ci'][0]:.3f}, {duel['ci'][1]:.3f}] | {row['seconds']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "tiny.toml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--algorithms", nargs="+", default=["apa", "ppo"], choices=["apa", "ppo"])
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--json", action="store_true", help="print the summaries instead of the table")
    options = parser.parse_args()
    rows = [row for seed in options.seeds for row in one_seed(options.config, options.out, seed, options.algorithms)]
    print(json.dumps(rows, indent=1) if options.json else table(rows))


if __name__ == "__main__":
    main()
