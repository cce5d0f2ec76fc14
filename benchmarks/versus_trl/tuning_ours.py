"""Starling's own policy training on the prompts of a folder, in a process of its own; time is read where it reports progress.

python benchmarks/versus_trl/tuning_ours.py '{"folder": …, "iterations": 4, …}'     prints one JSON object
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.versus_trl import data, tuning
from benchmarks.versus_trl.counting import Counter
from benchmarks.versus_trl.meter import Meter
from starling.config import PolicySection
from starling.progress import Progress

NEVER = 2**20
"""More than all iterations: nothing is evaluated or saved before the end."""


class Watch(Progress):
    """Marks meter and counter at every iteration that `train` reports."""

    def __init__(self, meter: Meter, counter: Counter) -> None:
        self._meter = meter
        self._counter = counter
        self._tuning = False

    def start(self, what: str, total: int) -> None:
        self._tuning = what.startswith("tuning the policy")
        if self._tuning:
            self._meter.begin()
            self._counter.mark()

    def advance(self, n: int = 1, note: str = "") -> None:
        if self._tuning and n:
            self._meter.step()
            self._counter.mark()

    def finish(self) -> None:
        return None


def main(request: str) -> None:
    """Tune as asked, print what it took."""
    spec = json.loads(request)
    folder = Path(spec["folder"])
    meter, counter = Meter(), Counter()
    log = tune(spec, folder, Watch(meter, counter))
    first, last = spec["warmup"], spec["warmup"] + spec["iterations"]
    rows = [row for row in log if row["iteration"] in range(first + 1, last + 1)]
    found = meter.found(1, first, last)
    generated = sum(row["length"] for row in rows) / len(rows) * spec["prompts"] * spec["samples"]
    print(json.dumps({**found, "generated": generated, "work": counter.found(first, last), **checks(folder)}))


def tune(spec: dict[str, Any], folder: Path, progress: Progress) -> list[dict[str, Any]]:
    """What `starling train-policy` calls, for one iteration more than is measured (the last one saves); returns its log."""
    from starling.policy.train import train

    work = folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    train(
        tuning.read_prompts(folder),
        [],
        base=folder / "base",
        reward=folder / "reward",
        out=folder / "ours",
        work=work,
        settings=settings(spec),
        seed=spec["seed"],
        progress=progress,
    )
    return [json.loads(line) for line in (folder / "ours" / "log.jsonl").read_text().splitlines()]


def settings(spec: dict[str, Any]) -> PolicySection:
    """The `[policy]` section of this run; what the request does not name is Starling's default.

    No reply of fixed length ever finishes: it keeps its score instead of the reward of an unfinished one, as in TRL.
    """
    optimizer = {"learning_rate": spec["rate"], "weight_decay": 0.0, "warmup_fraction": 0.0, "schedule": "constant"}
    return PolicySection.model_validate(
        {
            "base": "given",
            "algorithm": spec["algorithm"],
            "iterations": spec["warmup"] + spec["iterations"] + 1,
            "rollouts": spec["prompts"] * spec["samples"],
            "samples_per_prompt": spec["samples"],
            "epochs": spec["epochs"],
            "minibatches": spec["minibatches"],
            "sampling": {"max_tokens": spec["reply"]},
            "optimizer": optimizer,
            "critic": {"pretrain": 0},
            "shaping": {"unfinished": 10.0, "shift": 0.0},
            "kl": spec["kl"],
            "eval_every": NEVER,
            "checkpoint_every": NEVER,
            **spec["policy"],
        }
    )


def checks(folder: Path) -> dict[str, Any]:
    """What the harness compares with the other side: the prompts' token ids, and both models' numbers on a few replies."""
    import torch

    from starling.models.encode import Encoder
    from starling.models.load import load_causal, load_scalar, load_tokenizer
    from starling.models.score import score_rows

    prompts = tuning.read_prompts(folder)
    encoder = Encoder(load_tokenizer(folder / "base"), max_length=NEVER)
    texts = encoder.conversations([(p.messages, tuning.REPLY, True) for p in prompts[:2]])
    policy = load_causal(folder / "base")
    with torch.no_grad():
        scores = score_rows(load_scalar(folder / "reward"), texts, encoder.pad_id).tolist()
        losses = [float(policy(input_ids=(ids := torch.tensor([t.ids])), labels=ids).loss) for t in texts]
    return {"digest": data.digest([[list(encoder.prompt_ids(p.messages))] for p in prompts]), "first_scores": scores + losses}


if __name__ == "__main__":
    main(sys.argv[1])
