"""Arena-Hard's own show_result.py and `starling evaluate arena-hard` on the same files, side by side.

    git clone https://github.com/lmarena/arena-hard-auto
    python benchmarks/arena_hard_official.py arena-hard-auto

The files are simulated and written by Starling (500 questions, three models against one baseline, a judge with a taste for
length, 1 % of the games without a label), so this also shows that our files open in the original. The original resamples without
a seed: its scores move by some tenths of a point from run to run. It needs pandas, torch and tqdm; style control takes a minute.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from starling.cli.common import print_table
from starling.evaluate.pairwise.arena_hard_files import Question, answer_row, judgment_row, write_rows

BASELINE, JUDGE, BENCH = "o3-mini-2025-01-31", "gpt-4.1", Path("data/arena-hard-v2.0")
MODELS = {"long-model": (0.6, 0.2), "short-model": (-0.5, 0.3), "even-model": (0.0, -0.2)}
"""Name → shift of the log length, quality."""


def simulate(folder: Path, seed: int) -> None:
    """Write questions, answers and judgments."""
    rng = np.random.default_rng(seed)
    questions = [Question(f"u{i:04d}", "hard_prompt", "coding" if i % 2 else "math", f"Question {i}?") for i in range(500)]
    write_rows(
        folder / BENCH / "question.jsonl",
        ({"uid": q.uid, "category": q.category, "subcategory": q.subcategory, "prompt": q.prompt} for q in questions),
    )
    texts: dict[str, dict[str, str]] = {}
    for model, shift in [(BASELINE, 0.0), *((name, shift) for name, (shift, _) in MODELS.items())]:
        marks = ["# h\n" * rng.integers(0, 4) + "- l\n" * rng.integers(0, 8) + "**b** " * rng.integers(0, 8) for _ in questions]
        texts[model] = {
            q.uid: mark + "x y " * int(200 * math.exp(rng.normal(shift, 0.6))) for q, mark in zip(questions, marks, strict=True)
        }
        write_rows(
            folder / BENCH / "model_answer" / f"{model}.jsonl", (answer_row(q, model, texts[model][q.uid]) for q in questions)
        )
    for model, (_, quality) in MODELS.items():
        rows = []
        for q in questions:
            ours, theirs = len(texts[model][q.uid]), len(texts[BASELINE][q.uid])
            games = [game(quality + 2 * (ours - theirs) / (ours + theirs), first, rng) for first in (False, True)]
            rows.append(judgment_row(q, JUDGE, model, BASELINE, games))
        write_rows(folder / BENCH / "model_judgment" / JUDGE / f"{model}.jsonl", rows)


def game(better: float, model_first: bool, rng: np.random.Generator) -> dict[str, Any]:
    """A noisy verdict on a model that is so much better."""
    seen = better + rng.logistic() * 0.8
    label: str | None = "A=B"
    if abs(seen) > 0.1:
        sign = ">>" if abs(seen) > 1.6 else ">"
        label = f"A{sign}B" if (seen > 0) == model_first else f"B{sign}A"
    if rng.random() < 0.01:
        label = None
    return {"score": label, "judgment": {"answer": ""}, "prompt": []}


def official(folder: Path, *options: str) -> tuple[dict[str, tuple[float, str]], float]:
    """What show_result.py prints: model → score and interval; and its seconds."""
    start = time.perf_counter()
    command = [sys.executable, "show_result.py", "-j", JUDGE, *options]
    said = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout
    lines = re.findall(r"^\d+\s+(\S+)\s+([\d.]+)\s+\((.*?)\)", said, flags=re.MULTILINE)
    return {model: (float(score), ci) for model, score, ci in lines}, time.perf_counter() - start


def ours(folder: Path) -> tuple[dict[str, Any], float]:
    start = time.perf_counter()
    answers = [f"--answers={m}={BENCH / 'model_answer' / m}.jsonl" for m in (BASELINE, *MODELS)]
    command = [sys.executable, "-m", "starling", "evaluate", "arena-hard", "--json", "--style", *answers]
    command += ["--judgments", str(BENCH / "model_judgment" / JUDGE), "--questions", str(BENCH / "question.jsonl")]
    found = json.loads(subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout)
    return {m["model"]: m for m in found["models"]}, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clone", type=Path, help="a clone of lmarena/arena-hard-auto")
    parser.add_argument("--seed", type=int, default=11)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("show_result.py", "utils"):
            source = given.clone / part
            (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / part)
        simulate(folder, given.seed)
        plain, plain_s = official(folder)
        style, style_s = official(folder, "-f", "length", "markdown")
        found, ours_s = ours(folder)
    print(f"show_result.py {plain_s:.1f} s, with style control {style_s:.1f} s; starling, both, {ours_s:.1f} s\n")
    print_table(
        {
            "model": model,
            "official": f"{plain[model][0]:.1f} ({plain[model][1]})",
            "ours": f"{found[model]['overall']['score']:.1f}",
            "official interval by us": f"{more['official_low']:.1f} to {more['official_high']:.1f}",
            "style, official": f"{style[model][0]:.1f} ({style[model][1]})",
            "the same by us": f"{more['style_controlled_official']:.1f}",
            "style equal": f"{more['style_controlled']:.1f}",
        }
        for model in MODELS
        for more in (found[model]["more"],)
    )


if __name__ == "__main__":
    main()
