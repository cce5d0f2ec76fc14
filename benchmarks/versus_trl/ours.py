"""Starling's own `train` on the rankings of a folder, in a process of its own; time is read where it reports progress.

    python benchmarks/versus_trl/ours.py '{"folder": …, "per_step": 2, …}'     prints one JSON object

With `floor` in the request, the machine's speed at the model's products is measured afterwards, in the same process.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.versus_trl import data, floor
from benchmarks.versus_trl.meter import Meter
from starling.config import OptimizerSection, RewardSection
from starling.progress import Progress

WHOLE = 2**20
"""Longer than any text and more than all steps: nothing is cut, nothing is saved before the end."""


class Watch(Progress):
    """Marks the meter at every step that `train` reports."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._training = False

    def start(self, what: str, total: int) -> None:
        self._training = what.startswith("training the reward model")
        if self._training:
            self._meter.begin()

    def advance(self, n: int = 1, note: str = "") -> None:
        if self._training and n:
            self._meter.step()

    def finish(self) -> None:
        return None


def main(request: str) -> None:
    """Train as asked, print what it took."""
    from starling.reward.train import train

    spec = json.loads(request)
    folder = Path(spec["folder"])
    rows = data.read_records(folder / "train.jsonl")
    work = folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    meter = Meter()
    train(
        rows,
        data.read_records(folder / "unseen.jsonl") if spec["every"] else [],
        backbone=folder / "backbone",
        out=folder / "ours",
        work=work,
        settings=settings(spec),
        seed=spec["seed"],
        progress=Watch(meter),
    )
    log = [json.loads(line) for line in (folder / "ours" / "log.jsonl").read_text().splitlines()]
    accuracy = [[line["step"], line["validation"]["pair_accuracy"]] for line in log if "validation" in line]
    found = meter.found(spec["per_step"], spec["warmup"], spec["stop"])
    found |= {"accuracy": accuracy, **checks(folder, rows)}
    if spec["floor"]:
        found["floor"] = measured_floor(folder, rows, spec)
    print(json.dumps(found))


def settings(spec: dict[str, Any]) -> RewardSection:
    """The `[reward]` section of this run; what the request does not name is Starling's default."""
    chosen = {
        "optimizer": OptimizerSection(
            type=spec["optimizer"],
            learning_rate=spec["rate"],
            warmup_fraction=spec["warmup_fraction"],
            schedule=spec["schedule"],
        ),
        "epochs": spec["epochs"],
        "rankings_per_step": spec["per_step"],
        "micro_tokens": spec["micro_tokens"],
        "max_length": WHOLE,
        "checkpoint_steps": WHOLE,
        "eval_steps": spec["every"] or WHOLE,
        **spec.get("reward", {}),
    }
    return RewardSection.model_validate(chosen)


def checks(folder: Path, rows: list[Any]) -> dict[str, Any]:
    """What the harness compares with the other side: token ids, and scores of the first ranking before any step."""
    import torch

    from starling.models.encode import Encoded
    from starling.models.load import load_scalar, load_tokenizer
    from starling.models.score import score_rows

    ids = data.token_ids(load_tokenizer(folder / "start"), rows)
    head = load_scalar(folder / "start")
    with torch.no_grad():
        first = score_rows(head, [Encoded(tuple(a), 0) for a in ids[0]], 0).tolist()
    return {"digest": data.digest(ids), "first_scores": first}


def measured_floor(folder: Path, rows: list[Any], spec: dict[str, Any]) -> dict[str, float]:
    """CPU-seconds per ranking that the products alone would take here, over the rankings that were measured."""
    from starling.models.load import load_scalar, load_tokenizer
    from starling.training import plan

    model = load_scalar(folder / "start").model
    linears = floor.linears_of(model)
    works = [floor.work_of_ids(ranking) for ranking in data.token_ids(load_tokenizer(folder / "start"), rows)]
    steps = plan.steps(len(rows), spec["per_step"], spec["epochs"], spec["seed"])[spec["warmup"] : spec["stop"] or None]
    measured = [works[i] for step in steps for i in step]
    tokens = sum(w.tokens for w in measured) / len(measured)
    config = model.config
    total = sum(floor.flops(w, linears, config.hidden_size, config.num_hidden_layers) for w in measured) / len(measured)
    rate = floor.matmul_rate(linears, round(tokens))
    return {"tokens": tokens, "gflop": total / 1e9, "gflop_per_cpu_s": rate / 1e9, "cpu_s": total / rate}


if __name__ == "__main__":
    main(sys.argv[1])
