"""TRL's RLOOTrainer or GRPOTrainer on the prompts of a folder, in a process of its own.

Settings at their best for a CPU: fp32 and no gradient checkpointing (their defaults, bf16 and checkpointing, are slower there),
no evaluation, saving, logging or loader workers, fused AdamW. beta > 0, so that a reference model is held and read as Starling
does (RLOO's default is 0.05; GRPO's is 0). The reward model is given as they advise, as the path of a sequence classifier.
One iteration is one generation of all prompts × samples; `batch` is their per_device_train_batch_size, and gradient
accumulation makes as many optimiser steps of it as Starling makes.

    python benchmarks/versus_trl/tuning_theirs.py '{"folder": …, "trainer": "rloo", "batch": 16, …}'     prints one JSON object

Imports nothing of Starling: any environment with trl 1.16 runs it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
os.environ.update(
    HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false", TRANSFORMERS_VERBOSITY="error"
)

from benchmarks.versus_trl.counting import Counter
from benchmarks.versus_trl.meter import Meter

REPLY = "w1 w2 w3"
"""As in tuning.py."""


def main(request: str) -> None:
    """Tune as asked, print what it took."""
    spec = json.loads(request)
    folder = Path(spec["folder"])
    prompts = [json.loads(line) for line in (folder / "messages.jsonl").read_text().splitlines()]
    lengths: list[float] = []
    meter, counter = Meter(), Counter()
    trainer = make_trainer(spec, folder, prompts, meter, counter, lengths)
    checked = checks(trainer, folder, prompts)
    trainer.train()
    first, last = spec["warmup"], spec["warmup"] + spec["iterations"]
    generated = sum(lengths[first:last]) / (last - first) * spec["prompts"] * spec["samples"]
    print(json.dumps({**meter.found(1, first, last), "generated": generated, "work": counter.found(first, last), **checked}))


def shares(spec: dict[str, Any]) -> dict[str, int]:
    """Their names for the same work: all replies of an iteration in `epochs` passes of `minibatches` optimiser steps.

    Raises:
        ValueError: the batch does not divide an optimiser step.
    """
    replies = spec["prompts"] * spec["samples"]
    accumulate, rest = divmod(replies, spec["batch"] * spec["minibatches"])
    if rest or not accumulate:
        raise ValueError(f"batches of {spec['batch']} do not make {spec['minibatches']} steps of {replies} replies")
    return {
        "per_device_train_batch_size": spec["batch"],
        "gradient_accumulation_steps": accumulate,
        "steps_per_generation": replies // spec["batch"],
        "num_iterations": spec["epochs"],
        "max_steps": spec["epochs"] * spec["minibatches"] * (spec["warmup"] + spec["iterations"]),
    }


def make_trainer(
    spec: dict[str, Any], folder: Path, prompts: list[Any], meter: Meter, counter: Counter, lengths: list[float]
) -> Any:
    """The trainer of a user who knows this machine; `lengths` gains the mean reply length of every iteration."""
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from transformers.utils import logging
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    logging.disable_progress_bar()
    per_iteration = spec["epochs"] * spec["minibatches"]

    class Watch(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            meter.begin()
            counter.mark()

        def on_step_end(self, _: Any, state: Any, control: Any, **__: Any) -> None:
            if state.global_step % per_iteration == 0:
                meter.step()
                counter.mark()
                lengths.append(trainer._metrics["train"]["completions/mean_length"][-1])

    config, cls = (RLOOConfig, RLOOTrainer) if spec["trainer"] == "rloo" else (GRPOConfig, GRPOTrainer)
    settings = config(
        output_dir=str(folder / "trl"), use_cpu=not torch.cuda.is_available(), bf16=False, gradient_checkpointing=False,
        **shares(spec), num_generations=spec["samples"], max_completion_length=spec["reply"], beta=spec["kl"],
        temperature=1.0, learning_rate=spec["rate"], lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=1.0,
        adam_beta2=0.95, optim="adamw_torch_fused", seed=spec["seed"], eval_strategy="no", save_strategy="no",
        logging_strategy="no", report_to="none", disable_tqdm=True, dataloader_num_workers=0, dataloader_pin_memory=False,
        model_init_kwargs={"dtype": "float32"}, **spec["trl"],
    )  # fmt: skip
    trainer = cls(
        model=str(folder / "base"), reward_funcs=str(folder / "reward"), args=settings, train_dataset=Dataset.from_list(prompts),
        processing_class=AutoTokenizer.from_pretrained(folder / "base", padding_side="left"), callbacks=[Watch()],
    )  # fmt: skip
    return trainer


def checks(trainer: Any, folder: Path, prompts: list[Any]) -> dict[str, Any]:
    """As in tuning_ours.py, with the trainer's own tokenizer and models."""
    import torch
    from transformers import AutoTokenizer

    tokenizer, reward_tokenizer = trainer.processing_class, AutoTokenizer.from_pretrained(folder / "reward")
    ids = [
        [tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=True)["input_ids"]]
        for row in prompts
    ]
    found = []
    with torch.no_grad():
        chats = [[*row["prompt"], {"role": "assistant", "content": REPLY}] for row in prompts[:2]]
        texts = [torch.tensor([reward_tokenizer.apply_chat_template(c, return_dict=True)["input_ids"]]) for c in chats]
        found += [float(trainer.reward_funcs[0](input_ids=t).logits[0, 0]) for t in texts]
        found += [float(trainer.ref_model(input_ids=t, labels=t).loss) for t in texts]
    return {"digest": digest(ids), "first_scores": found}


def digest(rows: Any) -> str:
    """As in data.py, of what this process read."""
    return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()[:16]


if __name__ == "__main__":
    main(sys.argv[1])
