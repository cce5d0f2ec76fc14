"""TRL's RewardTrainer on the rankings of a folder, in a process of its own: all pairs of each ranking, already tokenised.

Settings at their best for a CPU: fp32 (the default bf16 is slower there), no gradient checkpointing, no evaluation, no saving,
no logging, no loader workers, fused AdamW. The filter on length is off, so no pair is dropped. The pairs of a step are summed by
gradient accumulation, so that a step takes as many rankings' worth of pairs as Starling's, and costs as few optimiser steps.

    python benchmarks/versus_trl/theirs.py '{"folder": …, "batch": 3, "per_step": 2, …}'     prints one JSON object

Imports nothing of Starling: any environment with trl 1.16 runs it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
os.environ.update(
    HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false", TRANSFORMERS_VERBOSITY="error"
)

from benchmarks.versus_trl.meter import Meter

Ids = list[list[list[int]]]
SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear"}


def main(request: str) -> None:
    """Train as asked, print what it took."""
    spec = json.loads(request)
    folder = Path(spec["folder"])
    rankings, unseen = read_ids(folder / "train.ids.jsonl"), read_ids(folder / "unseen.ids.jsonl")
    meter = Meter()
    watch = {"accuracy": [], "first_scores": None}  # type: dict[str, Any]
    trainer = make_trainer(spec, folder, pairs(rankings), meter, unseen, watch)
    watch["first_scores"] = scores(trainer.model, rankings[0])
    trainer.train()
    per_ranking = len(trainer.train_dataset) / len(rankings)
    found = meter.found(spec["batch"] * spec["accumulate"] / per_ranking, spec["warmup"], spec["stop"])
    print(json.dumps({**found, **watch, "digest": digest(rankings), "pairs_per_ranking": per_ranking}))


def pairs(rankings: Ids) -> dict[str, list[list[int]]]:
    """Every pair of every ranking, the better answer as chosen."""
    both = [pair for ranking in rankings for pair in combinations(ranking, 2)]
    return {"chosen_ids": [better for better, _ in both], "rejected_ids": [worse for _, worse in both]}


def read_ids(path: Path) -> Ids:
    return [json.loads(line) for line in path.read_text().splitlines()]


def digest(rankings: Ids) -> str:
    """As in data.py, of what this process read."""
    return hashlib.sha256(json.dumps(rankings, separators=(",", ":")).encode()).hexdigest()[:16]


def make_trainer(spec: dict[str, Any], folder: Path, columns: Any, meter: Meter, unseen: Ids, watch: dict[str, Any]) -> Any:
    """The trainer of a user who knows this machine; `watch` gains the accuracies."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
    from transformers.utils import logging
    from trl import RewardConfig, RewardTrainer

    logging.disable_progress_bar()

    class Watch(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            meter.begin()

        def on_step_end(self, _: Any, state: Any, control: Any, model: Any = None, **__: Any) -> None:
            meter.step()
            if spec["every"] and state.global_step % spec["every"] == 0:
                with meter.paused():
                    watch["accuracy"].append([state.global_step, pair_accuracy(model, unseen)])
                control.should_training_stop = watch["accuracy"][-1][1] >= spec["mark"]

    settings = RewardConfig(
        output_dir=str(folder / "trl"), use_cpu=not torch.cuda.is_available(), bf16=False, gradient_checkpointing=False,
        per_device_train_batch_size=spec["batch"], num_train_epochs=spec["epochs"],
        max_steps=spec["stop"] or -1, max_length=None,
        gradient_accumulation_steps=spec["accumulate"],
        learning_rate=spec["rate"], lr_scheduler_type=SCHEDULES[spec["schedule"]], warmup_steps=spec["warmup_steps"],
        weight_decay=0.0, max_grad_norm=1.0, optim="adamw_torch_fused", seed=spec["seed"], eval_strategy="no", save_strategy="no",
        logging_strategy="no", report_to="none", disable_tqdm=True, dataloader_num_workers=0, dataloader_pin_memory=False,
        train_sampling_strategy="sequential" if spec["in_order"] else "random",
    )  # fmt: skip
    model = AutoModelForSequenceClassification.from_pretrained(folder / "start", num_labels=1, dtype=torch.float32)
    return RewardTrainer(
        model=model, args=settings, train_dataset=Dataset.from_dict(columns), callbacks=[Watch()],
        processing_class=AutoTokenizer.from_pretrained(folder / "start"),
    )  # fmt: skip


def scores(model: Any, answers: list[list[int]]) -> list[float]:
    """Rewards of some conversations, padded on the right."""
    import torch

    width = max(map(len, answers))
    ids = torch.tensor([a + [model.config.pad_token_id] * (width - len(a)) for a in answers])
    mask = torch.tensor([[1] * len(a) + [0] * (width - len(a)) for a in answers])
    training = model.training
    with torch.no_grad():
        found = model.eval()(input_ids=ids, attention_mask=mask).logits[:, 0].tolist()
    model.train(training)
    return found


def pair_accuracy(model: Any, rankings: Ids) -> float:
    """Share of pairs in the right order, ties one half, mean over rankings."""
    per_ranking = []
    for ranking in rankings:
        wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in combinations(scores(model, ranking), 2)]
        per_ranking.append(sum(wins) / len(wins))
    return sum(per_ranking) / len(per_ranking)


if __name__ == "__main__":
    main(sys.argv[1])
