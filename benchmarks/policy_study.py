"""Policy algorithms in the microworld, where the truth is known: does tuning help, how far, at what cost, who notices when not?

Per seed, once: a world, its pool's answers, the judge's rankings and the reward model (`starling run configs/tiny.toml --until
reward`), and a second reward model that loves length: trained alike, on the same rankings put in order of length, so that it is
as real a folder as the first. Then every arm (ARMS) tunes the seed's base by `starling.policy.train.train`, as the command
does. What is reported is measured on the world's test prompts, which nothing is trained or chosen on, with four samples per
prompt and greedily; base and tuned policies draw with the same seeds.

    gold         the truth about a reply, in [0, 1]; the training never sees it
    proxy        the reward model's score, standardised by its record
    KL           of a whole reply from the base, in nats, on replies of the tuned policy
    to +0.2      tokens sampled until gold on validation prompts is 0.2 above the base's, and stays there
    CPU-s        of the training: iterations × the median of those without an evaluation
    best-of-n    the best of n of the base's replies by the reward model; no training. KL: log n − (n − 1)/n

Each (arm, seed) is one JSON file, written when it is done: runs go on where they were stopped, and several may work at a time.
Settings of each arm are those of the grid with the best gold on validation prompts of the tuning seed, which is none of the five.

    python benchmarks/policy_study.py run --out DIR --workers 2           five seeds, all arms, one thread each
    python benchmarks/policy_study.py tune --out DIR --arms ppo rloo      the grid (GRID) on the tuning seed
    python benchmarks/policy_study.py report --out DIR                    tables on stdout, DIR/gold_kl.png, DIR/gold_proxy.png
    python benchmarks/policy_study.py run --quick --out DIR               the driver itself, tiny, two minutes
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import policy_study_measure as measured
from benchmarks import policy_study_report as report

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "tiny.toml"
TUNING_SEED = 100
NEVER = 1 << 20

COMMON: dict[str, Any] = {
    "iterations": 15,
    "rollouts": 256,
    "epochs": 2,
    "minibatches": 4,
    "sampling": {"max_tokens": 48},
    "optimizer": {"learning_rate": 3e-4, "betas": [0.9, 0.95], "warmup_fraction": 0.0, "schedule": "linear"},
    "critic": {"learning_rate": 1e-3},
    "kl": 0.05,
    "eval_every": 2,
    "eval_prompts": 212,
    "checkpoint_every": NEVER,
    "guard": {"best_of": 0},  # best of n is an arm of its own
}
"""`[policy]` of every arm: configs/tiny.toml, with more evaluations, over half of the world's validation prompts."""
WITHOUT_CRITIC: dict[str, Any] = {"samples_per_prompt": 4, "critic": {"pretrain": 0}}
ARMS: dict[str, dict[str, Any]] = {
    "apa": {"algorithm": {"type": "apa", "anchor": "rollout", "lam": 1.0}},
    "apa-initial": {
        "algorithm": {"type": "apa", "anchor": "initial", "lam": 0.3},
        "kl": 0.0,
        "optimizer": {"learning_rate": 1e-3},
    },
    "ppo": {"algorithm": {"type": "ppo"}},
    "p3o": {"algorithm": {"type": "p3o"}, **WITHOUT_CRITIC},
    "rloo": {"algorithm": {"type": "rloo"}, **WITHOUT_CRITIC},
    "best-of-n": {},
    "length": {"algorithm": {"type": "apa", "anchor": "rollout", "lam": 1.0}},
}
"""What an arm changes; all settings in one place. `length` is apa on the reward model that loves length, with the honest one as
guard."""
GRID: dict[str, dict[str, list[Any]]] = {
    "apa": {"optimizer.learning_rate": [1e-4, 3e-4, 1e-3], "kl": [0.02, 0.05]},
    "apa-initial": {"optimizer.learning_rate": [1e-4, 3e-4, 1e-3], "algorithm.lam": [0.3, 1.0]},
    "ppo": {"optimizer.learning_rate": [1e-4, 3e-4, 1e-3], "kl": [0.02, 0.05]},
    "p3o": {"optimizer.learning_rate": [1e-4, 3e-4, 1e-3], "kl": [0.02, 0.05]},
    "rloo": {"optimizer.learning_rate": [1e-4, 3e-4, 1e-3], "kl": [0.02, 0.05]},
}
QUICK_WORLD = (
    "microworld.steps=30", "microworld.tune_steps=4", "microworld.batch=32", "prompts.train=120", "reward.epochs=1",
)  # fmt: skip
QUICK: dict[str, Any] = {"iterations": 3, "rollouts": 32, "eval_prompts": 24, "sampling": {"max_tokens": 16}}


@dataclass(frozen=True)
class Cell:
    """One tuned policy of the study; `changes` are those of a grid point, empty for the settings in ARMS."""

    arm: str
    seed: int
    changes: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        return ",".join([self.arm, *(f"{key.split('.')[-1]}={value:g}" for key, value in self.changes)]) + f".{self.seed}"


# ── settings ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def settings_of(cell: Cell, quick: bool, guard: Path | None) -> Any:
    """The `[policy]` section of a cell: COMMON, the arm's own, the grid point's."""
    from starling.config import PolicySection

    tree = merged(COMMON, ARMS[cell.arm], QUICK if quick else {}, {"guard": {"model": str(guard)}} if guard else {})
    for key, value in cell.changes:
        tree = merged(tree, nested(key, value))
    return PolicySection.model_validate(tree)


def merged(*trees: Mapping[str, Any]) -> dict[str, Any]:
    """Later trees win, section by section."""
    found: dict[str, Any] = {}
    for tree in trees:
        for key, value in tree.items():
            both = isinstance(value, Mapping) and isinstance(found.get(key), Mapping)
            found[key] = merged(found[key], value) if both else value
    return found


def nested(key: str, value: Any) -> dict[str, Any]:
    """a.b → {"a": {"b": value}}."""
    first, _, rest = key.partition(".")
    return {first: nested(rest, value) if rest else value}


def grid(arm: str, seed: int) -> list[Cell]:
    """Every point of an arm's grid."""
    keys = list(GRID[arm])
    return [Cell(arm, seed, tuple(zip(keys, values, strict=True))) for values in itertools.product(*GRID[arm].values())]


# ── what a seed's arms share ─────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class World:
    """A seed's artifacts."""

    folder: Path

    @property
    def base(self) -> Path:
        return self.folder / "world" / "base"

    @property
    def reward(self) -> Path:
        return self.folder / "reward"

    @property
    def loves_length(self) -> Path:
        return self.folder.parent / f"{self.folder.name}-length"

    def prompts(self, split: str) -> list[Any]:
        from starling.artifacts import read_records
        from starling.records import Prompt

        return [p for p in read_records(self.folder / "prompts" / "prompts.parquet", Prompt) if p.split == split]


def make_world(out: Path, seed: int, quick: bool) -> World:
    """The chain up to the reward model, and the reward model that loves length; what is there is not made again."""
    world = World(out / f"seed-{seed}")
    changes = (f"run.dir={world.folder}", f"run.seed={seed}", "run.threads=1", *(QUICK_WORLD if quick else ()))
    command = [sys.executable, "-m", "starling", "run", str(CONFIG), "--until", "reward"]
    subprocess.run(command + [part for change in changes for part in ("--set", change)], check=True)
    if not (world.loves_length / "log.jsonl").exists():
        train_length_reward(world, changes, seed)
    return world


def train_length_reward(world: World, changes: tuple[str, ...], seed: int) -> None:
    """As the pipeline trains the reward model, on the same answers in order of length."""
    from starling.config import load_config
    from starling.nectar import read_nectar
    from starling.reward.train import train
    from starling.training.loop import set_determinism

    def rows(split: str) -> list[Any]:
        return [by_length(row) for row in read_nectar(world.folder / "dataset" / f"{split}.parquet")]

    set_determinism(seed, 1)
    train(
        rows("train"),
        rows("validation"),
        backbone=world.base,
        out=world.loves_length,
        work=world.folder / "length-work",
        settings=load_config(CONFIG, changes).reward,
        seed=seed,
    )


def by_length(row: Any) -> Any:
    """The same answers, the longest first (in words; equal lengths tie); the judge's view of pairs goes."""
    lengths = [len(a.answer.split()) for a in row.answers]
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    answers = [row.answers[i].model_copy(update={"rank": 1.0 + sum(n > lengths[i] for n in lengths)}) for i in order]
    return row.model_copy(update={"answers": tuple(answers), "pairs": (), "verdicts": (), "contested": None})


# ── one cell ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def run_cell(cell: Cell, out: Path, quick: bool) -> dict[str, Any]:
    """Tune (or, for best-of-n, only sample) and measure."""
    from starling.training.loop import set_determinism

    world = World(out / f"seed-{cell.seed}")
    set_determinism(cell.seed, 1)
    test = world.prompts("test")[:: 20 if quick else 1]
    if cell.arm == "best-of-n":
        return {
            **vars(cell),
            **measured.best_of_n(world.base, world.reward, world.loves_length, test, COMMON["sampling"]["max_tokens"]),
        }
    bad = cell.arm == "length"
    reward = world.loves_length if bad else world.reward
    settings = settings_of(cell, quick, world.reward if bad else None)
    tuned = out / "policies" / cell.name
    found = tune(world, reward, tuned, settings, cell.seed)
    return {
        **vars(cell),
        **found,
        "settings": settings.model_dump(mode="json"),
        "test": measured.measure(tuned, world.base, reward, test, settings.sampling.max_tokens),
    }


def tune(world: World, reward: Path, out: Path, settings: Any, seed: int) -> dict[str, Any]:
    """The stage's own function; returns its evaluations, its cost and the guard's verdict."""
    from starling.policy.train import train

    watch = report.Watch()
    began = time.monotonic()
    train(
        world.prompts("train"),
        world.prompts("validation"),
        base=world.base,
        reward=reward,
        out=out,
        work=out.with_name(out.name + "-work"),
        settings=settings,
        seed=seed,
        progress=watch,
        monitor=measured.truth,
    )
    log = [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    statistics = measured.recorded(reward)
    return {
        "curve": report.curve(log, settings.rollouts, statistics),
        "cpu_s": watch.training_cpu_s({row["iteration"] for row in log if "eval/gold" in row}),
        "wall_s": time.monotonic() - began,
        "guard": report.guard_of(log),
    }


# ── many cells ───────────────────────────────────────────────────────────────────────────────────────────────────────


def run_all(cells: Sequence[Cell], options: argparse.Namespace, folder: Path) -> None:
    """What is missing, each cell in a process of its own with one thread, `--workers` at a time; seeds' worlds first."""
    seeds = dict.fromkeys(cell.seed for cell in cells)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

    def start(*words: str) -> None:
        quick = ["--quick"] if options.quick else []
        command = [sys.executable, str(Path(__file__).resolve()), *words, "--out", str(options.out), *quick]
        done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(words)} failed:\n{done.stderr[-4000:]}")

    def one(cell: Cell) -> None:
        path = folder / f"{cell.name}.json"
        if path.exists():
            return
        began = time.monotonic()
        start("cell", json.dumps({"arm": cell.arm, "seed": cell.seed, "changes": cell.changes}), "--to", str(path))
        print(f"{cell.name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)

    def world_of(seed: int) -> None:
        start("world", str(seed))

    folder.mkdir(parents=True, exist_ok=True)
    each(world_of, list(seeds), options.workers)
    each(one, cells, options.workers)


def each(work: Callable[[Any], None], items: Sequence[Any], workers: int) -> None:
    """All items, `workers` at a time; the first failure is raised when those that run are done, and no further one begins."""
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def write(path: Path, value: Any) -> None:
    """In one step: a file that is there is whole."""
    draft = path.with_suffix(".new")
    draft.write_text(json.dumps(value) + "\n", encoding="utf-8")
    draft.rename(path)


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────────────────


def command_line(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, help: str) -> argparse.ArgumentParser:
        found = commands.add_parser(name, help=help)
        found.add_argument("--out", type=Path, required=True)
        found.add_argument("--quick", action="store_true", help="tiny worlds and tunings: only to test this program")
        return found

    run = command("run", "worlds and arms of every seed")
    run.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    run.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=list(ARMS))
    tuning = command("tune", "the grid on the tuning seed")
    tuning.add_argument("--arms", nargs="+", choices=tuple(GRID), default=list(GRID))
    for one in (run, tuning):
        one.add_argument("--workers", type=int, default=1, help="processes at a time, one thread each")
    command("report", "tables and figures from the files in OUT")
    command("world", "one seed's world (called by run)").add_argument("seed", type=int)
    cell = command("cell", "one cell (called by run)")
    cell.add_argument("cell", type=json.loads)
    cell.add_argument("--to", type=Path, required=True)
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    options = command_line(words)
    if options.command == "run":
        cells = [Cell(arm, seed) for seed in options.seeds for arm in options.arms]
        run_all(cells, options, options.out / "cells")
    elif options.command == "tune":
        run_all([c for arm in options.arms for c in grid(arm, TUNING_SEED)], options, options.out / "tuning")
    elif options.command == "world":
        make_world(options.out, options.seed, options.quick)
    elif options.command == "cell":
        asked = options.cell
        cell = Cell(asked["arm"], asked["seed"], tuple((key, value) for key, value in asked["changes"]))
        write(options.to, run_cell(cell, options.out, options.quick))
    else:
        report.write(options.out, settings={arm: merged(COMMON, changes) for arm, changes in ARMS.items()})


if __name__ == "__main__":
    main()
