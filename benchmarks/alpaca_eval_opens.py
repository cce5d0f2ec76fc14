"""AlpacaEval beside alpaca_eval 0.6.6: files written here open there and give the same figures, and what a figure costs.

    opens     a scripted run writes model_outputs.json, annotations.json and leaderboard.csv; the official tool recomputes its
              leaderboard from them (`evaluate(is_recompute_metrics_only=True)`, `metrics.get_winrate`): every number is compared
    prompts   its two prompt files, filled by it and by us, are the same turns
    costs     CPU-ms per model of the official metric and of ours (alone, and with intervals and position gap), on official
              annotations where STARLING_DATA has them, else on the scripted ones

The official code fetches two inputs of its length control from a hub; here it reads the files that ours reads: with STARLING_DATA
the recovered ones, else made-up ones, which is as good for comparing two computations.

    pip install "starling-rlaif[bench-evaluate]" -c constraints.txt
    python benchmarks/alpaca_eval_opens.py
    python benchmarks/alpaca_eval_opens.py --peer-python PATH     the official tool lives in another environment

Exit code 1 when a win rate differs by more than 1e-9, a length-controlled one by more than 0.16 points, or a prompt at all.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

DATA = Path(os.environ.get("STARLING_DATA", "../shared/data")) / "alpaca_eval_ref"
INPUTS = {"df_gamed.csv": "df_gamed.reconstructed.csv", "instruction_difficulty.csv": "instruction_difficulty.recovered.csv"}
SCRIPTED = ("scripted-a", "scripted-b")
ROWS = 805
EXAMPLES = [
    {"instruction": "Why?", "output_1": "Because.", "output_2": 'He said "so".\n\n- one\n- two'},
    {"instruction": "{json: 1}\n", "output_1": " leading and trailing ", "output_2": "\\1 \\n {x} ü"},
]
PLAIN = ("win_rate", "standard_error", "n_wins", "n_wins_base", "n_draws", "n_total", "discrete_win_rate")
CONTROLLED = ("length_controlled_winrate", "lc_standard_error")


# ── what both read ───────────────────────────────────────────────────────────────────────────────────────────────────


def prepare(folder: Path) -> None:
    """The inputs of the length control under their official names."""
    for official, ours in INPUTS.items():
        if DATA.is_dir():
            (folder / official).write_bytes((DATA / ours).read_bytes())
    if DATA.is_dir():
        return
    rng = random.Random("inputs")
    difficulty = [rng.gauss(0, 1.5) for _ in range(ROWS)]
    with (folder / "instruction_difficulty.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("index", "instruction_difficulty"), *enumerate(difficulty)])
    names = ("preference", "index", "std_delta_len", "instruction_difficulty", "not_gamed_baseline", "model")
    with (folder / "df_gamed.csv").open("w", newline="") as file:
        rows = [(rng.random(), i, rng.gauss(0, 1), difficulty[i], False, m) for m in ("verbose", "concise") for i in range(ROWS)]
        csv.writer(file).writerows([names, *rows])


def scripted_run(folder: Path) -> None:
    """Files of a live run with made-up models and judge."""
    from starling.config import AlpacaEvalSection
    from starling.endpoint import Reply, Request, ScriptedEndpoint
    from starling.evaluate.alpaca_eval import run
    from starling.evaluate.results import Job
    from starling.journal import Journal
    from starling.progress import SILENT
    from starling.records import Finish, ModelRef

    instructions = [{"dataset": "koala", "instruction": f"Question {i}: why?"} for i in range(ROWS)]
    baseline = [
        row | {"output": "b" * random.Random(i).randint(1, 900), "generator": "base"} for i, row in enumerate(instructions)
    ]
    (folder / "instructions.json").write_text(json.dumps(instructions))
    (folder / "base.json").write_text(json.dumps(baseline))

    def judge(request: Request) -> Reply:
        share = random.Random(request.key).betavariate(0.4, 0.6)
        tokens = (("A", math.log(share + 1e-9)), ("B", math.log(1 - share + 1e-9)))
        return Reply("A", Finish.length, request.key, first_token=tokens)

    def speaker(name: str) -> Callable[[Request], str]:
        return lambda request: "c" * random.Random(f"{name}{request.key}").randint(1, 900)

    settings = AlpacaEvalSection(
        instructions=folder / "instructions.json", baseline=folder / "base.json", soft=True, difficulty_by="row",
        difficulty=folder / "instruction_difficulty.csv", gamed=folder / "df_gamed.csv",
    )  # fmt: skip
    with Journal(folder / "journal.sqlite") as journal:
        models = {n: ScriptedEndpoint(ModelRef(provider="scripted", name=n), speaker(n), journal) for n in SCRIPTED}
        arbiter = ScriptedEndpoint(ModelRef(provider="scripted", name="judge"), judge, journal)
        run(settings, Job(models=models, systems={}, judge=arbiter, folder=folder, progress=SILENT))


def annotated(folder: Path) -> dict[str, Path]:
    """Annotations by model: the scripted ones and, where they are, official ones."""
    found = {model: folder / model / "annotations.json" for model in SCRIPTED}
    return found | {path.parents[1].name: path for path in sorted(DATA.glob("results/*/*/annotations.json.gz"))}


# ── the two sides ────────────────────────────────────────────────────────────────────────────────────────────────────


def ours(folder: Path) -> dict[str, Any]:
    """Figures and CPU-s of each model's annotations."""
    import numpy as np

    from starling.evaluate.alpaca_eval import files
    from starling.evaluate.alpaca_eval.from_files import Files, inputs_of
    from starling.evaluate.alpaca_eval.length_control import LengthControlled, length_controlled
    from starling.evaluate.alpaca_eval.measure import Inputs, measure

    given = Files(annotations=(), difficulty=folder / "instruction_difficulty.csv", gamed=folder / "df_gamed.csv")
    inputs = inputs_of(given, Inputs())
    found = {}
    for model, path in annotated(folder).items():
        start = time.process_time()
        (judged,) = files.read_annotations(path)
        read = time.process_time()
        assert inputs.difficulty is not None
        delta = (judged.baseline_length - judged.length).astype(np.float64)
        alone = length_controlled(judged.preference, delta, inputs.difficulty[judged.position], inputs.gamed)
        fitted = time.process_time()
        line = measure(judged, inputs)
        measured = time.process_time()
        assert isinstance(alone, LengthControlled)
        assert alone.win_rate == line.lc_win_rate
        seconds = {"read": read - start, "metric": fitted - read, "all": measured - fitted}
        found[model] = line.leaderboard_row() | {"cpu": seconds, "glm_preference": alone.predicted.tolist()}
    return found


def theirs(folder: Path) -> dict[str, Any]:
    """The same by alpaca_eval; and its recomputed leaderboard of the scripted run. Runs in the peer's environment."""
    import logging

    start = time.process_time()
    import pandas as pd
    from alpaca_eval import evaluate, metrics
    from alpaca_eval.metrics import glm_winrate

    imported = time.process_time() - start
    logging.disable(logging.CRITICAL)
    glm_winrate.hf_hub_download = lambda *, filename, **_: str(folder / filename)
    found: dict[str, Any] = {}
    for model, path in annotated(folder).items():
        start = time.process_time()
        rows = pd.read_json(path)
        read = time.process_time()
        row = metrics.get_length_controlled_winrate(rows, save_weights_dir=None)
        seconds = {"read": read - start, "metric": time.process_time() - read}
        plain = metrics.get_winrate(rows)
        assert all(plain[name] == row[name] for name in plain)
        found[model] = {name: float(value) for name, value in row.items()} | {
            "cpu": seconds, "glm_preference": rows["glm_preference"].tolist(),
        }  # fmt: skip
    for model in SCRIPTED:
        board, _ = evaluate(
            model_outputs=str(folder / model / "model_outputs.json"), reference_outputs=str(folder / "base.json"),
            precomputed_leaderboard=str(folder / "leaderboard.csv"), annotators_config=".", output_path=str(folder / model),
            is_recompute_metrics_only=True, is_return_instead_of_print=True, is_cache_leaderboard=False,
            fn_metric="get_length_controlled_winrate", metric_kwargs={"save_weights_dir": None},
            sort_by="length_controlled_winrate",
        )  # fmt: skip
        found[model]["leaderboard"] = {k: v for k, v in board.loc[model].to_dict().items() if isinstance(v, int | float)}
    return {"models": found, "import": imported, "prompts": their_prompts()}


def their_prompts() -> dict[str, Any]:
    """By prompt file the turns of each example, as alpaca_eval makes them; the answers already in the order shown."""
    import alpaca_eval
    import pandas as pd
    from alpaca_eval import utils

    found = {}
    for name in ("alpaca_eval_clf_gpt4_turbo/alpaca_eval_clf.txt", "alpaca_eval_gpt4/alpaca_eval.txt"):
        path = Path(alpaca_eval.__file__).parent / "evaluators_configs" / name
        texts, _ = utils.make_prompts(pd.DataFrame(EXAMPLES), path.read_text())
        found[str(path)] = [[[turn["role"], turn["content"]] for turn in utils.prompt_to_chatml(text)] for text in texts]
    return found


def same_prompts(theirs: dict[str, Any]) -> bool:
    """Whether ours are the same turns."""
    from starling.evaluate.alpaca_eval import official

    return all(
        [[turn.role, turn.content] for turn in official.read_template(Path(path)).fill(example)] == turns
        for path, of_examples in theirs.items()
        for example, turns in zip(EXAMPLES, of_examples, strict=True)
    )


# ── the comparison ───────────────────────────────────────────────────────────────────────────────────────────────────


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", default=sys.executable, help="the interpreter that has alpaca_eval")
    parser.add_argument("--peer", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer is not None:
        (args.peer / "theirs.json").write_text(json.dumps(theirs(args.peer)))
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        scripted_run(folder)
        mine = ours(folder)
        command = [args.peer_python, str(Path(__file__).resolve()), "--peer", str(folder)]
        environment = {
            **os.environ,
            "STARLING_DATA": str(DATA.parent.resolve()),
            "IS_ALPACA_EVAL_2": "True",
            "HF_HUB_OFFLINE": "1",
        }
        done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, cwd=folder)
        if done.returncode:
            print(done.stderr[-3000:], file=sys.stderr)
            return 1
        peer = json.loads((folder / "theirs.json").read_text())
    return report(mine, peer)


def report(mine: dict[str, Any], peer: dict[str, Any]) -> int:
    """The table; 1 where something differs by more than it may."""
    worst = {"plain": 0.0, "controlled": 0.0}
    print(f"{'model':34}{'win rate':>10}{'LC':>8}{'ΔLC':>9}   CPU-ms official / ours: metric, ours with intervals, reading")
    for model, row in mine.items():
        other = peer["models"][model]
        boards = [other, *([other["leaderboard"]] if "leaderboard" in other else [])]
        for board in boards:
            worst["plain"] = max(worst["plain"], *(abs(board[name] - row[name]) for name in PLAIN))
            worst["controlled"] = max(worst["controlled"], *(abs(board[name] - row[name]) for name in CONTROLLED))
        gap = row["length_controlled_winrate"] - other["length_controlled_winrate"]
        cpu, theirs_cpu = row["cpu"], other["cpu"]
        print(
            f"{model:34}{row['win_rate']:10.4f}{row['length_controlled_winrate']:8.3f}{gap:+9.4f}   "
            f"{1e3 * theirs_cpu['metric']:6.0f} / {1e3 * cpu['metric']:.0f}, {1e3 * cpu['all']:.0f}, "
            f"{1e3 * theirs_cpu['read']:.0f} / {1e3 * cpu['read']:.0f}"
        )
    print(f"\nlargest difference: win rates and counts {worst['plain']:.1e}, length-controlled {worst['controlled']:.4f} points")
    same = same_prompts(peer["prompts"])
    print(f"prompts: {'the same' if same else 'NOT the same'}; the official tool's import: {peer['import']:.1f} CPU-s")
    return int(worst["plain"] > 1e-9 or worst["controlled"] > 0.16 or not same)


if __name__ == "__main__":
    raise SystemExit(main())
