"""The microworld's speakers: a tokenizer, a base chat model and four further training states of it.

Everything is trained on the spot on conversations of the train split, with replies drawn by `world.draw_reply`: mostly
the systematic flaw of the kind, now and then a random blemish, else a good reply. So the base knows every right answer
and mostly prefers a wrong one: what alignment has to mend. The folders are ordinary transformers folders
(LlamaForCausalLM with a byte-level BPE tokenizer and a chat template).

    early, middle   the base after 30 % and 60 % of its training
    base            the model that is aligned later
    clean, flawed   the base tuned a little further on good, or on mostly flawed and blemished, replies
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from starling.chat import split_of
from starling.config import MicroworldSection, OptimizerSection
from starling.microworld.kinds import Task
from starling.microworld.world import draw_reply, tasks
from starling.models.encode import Encoded, Encoder, pad_right
from starling.models.load import save_folder
from starling.models.logprobs import token_logprobs
from starling.progress import Progress, Silent
from starling.training import checkpoint
from starling.training.loop import make_optimizer
from starling.training.plan import micro_batches

SPEAKERS = ("early", "middle", "base", "clean", "flawed")

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ("<pad>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
CONTEXT = 256
SPOILED = 0.12
CHECKPOINT_STEPS = 50
MICRO_TOKENS = 1024


def build(
    out: Path,
    work: Path,
    settings: MicroworldSection,
    *,
    seed: int,
    validation: float,
    test: float,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Train every speaker and save each as a folder under `out`. Resumes from `work` after a kill.

    Args:
        out: folder that receives early/, middle/, base/, clean/, flawed/.
        work: folder for checkpoints.
        settings: sizes and steps.
        seed: fixes initial weights and every example.
        validation, test: the split fractions; their conversations are never trained on.

    Returns:
        Final training losses and the number of parameters.
    """
    progress = progress or Silent()
    corpus = [t for t in tasks().values() if split_of(t.messages, validation=validation, test=test) == "train"]
    tokenizer = train_tokenizer(corpus, settings.vocab)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(_model_config(settings, tokenizer))
    progress.start("training the microworld's speakers", settings.steps + 2 * settings.tune_steps)
    trainer = _Trainer(model, tokenizer, corpus, settings, seed, progress)
    marks = {max(1, round(0.3 * settings.steps)): "early", max(1, round(0.6 * settings.steps)): "middle", settings.steps: "base"}
    trainer.run(_Phase("base", settings.steps, settings.flawed_share, SPOILED, settings.learning_rate), work, marks)
    metrics = {"loss/base": trainer.last_loss, "parameters": float(sum(p.numel() for p in model.parameters()))}
    start = {k: v.clone() for k, v in model.state_dict().items()}
    for name, flawed, spoiled in (("clean", 0.0, 0.0), ("flawed", 0.95, 0.4)):
        model.load_state_dict(start)
        trainer.run(
            _Phase(name, settings.tune_steps, flawed, spoiled, settings.learning_rate / 4), work, {settings.tune_steps: name}
        )
        metrics[f"loss/{name}"] = trainer.last_loss
    for name in SPEAKERS:
        shutil.copytree(work / "folders" / name, out / name)
    progress.finish()
    return metrics


def train_tokenizer(corpus: list[Task], vocab: int) -> Any:
    """Byte-level BPE on the world's own text, so any other text can be encoded too."""
    rng = random.Random(0)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=list(SPECIAL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(_texts(corpus, rng), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<|end|>", chat_template=CHAT_TEMPLATE, model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def _texts(corpus: list[Task], rng: random.Random) -> Iterator[str]:
    for t in corpus:
        yield from (m.content for m in t.messages)
        yield t.good(rng)
        yield t.flawed(rng)


def _model_config(settings: MicroworldSection, tokenizer: Any) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden,
        intermediate_size=7 * settings.hidden // 2,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )


@dataclass(frozen=True)
class _Phase:
    """One stretch of training: its steps, the shares of flawed and blemished replies, the peak learning rate."""

    name: str
    steps: int
    flawed: float
    spoiled: float
    rate: float


class _Trainer:
    """Next-token training on the replies only; the batch of a step is a pure function of (seed, phase, step)."""

    def __init__(
        self, model: Any, tokenizer: Any, corpus: list[Task], settings: MicroworldSection, seed: int, progress: Progress
    ) -> None:
        self.model = model
        self.encoder = Encoder(tokenizer, max_length=CONTEXT)
        self.corpus = corpus
        self.settings = settings
        self.seed = seed
        self.progress = progress
        self.prompt_ids = [self.encoder.prompt_ids(t.messages) for t in corpus]
        self.by_kind: dict[str, list[int]] = {}
        for i, t in enumerate(corpus):
            self.by_kind.setdefault(t.kind, []).append(i)
        self.last_loss = float("nan")

    def batch(self, phase: _Phase, step: int) -> list[Encoded]:
        """The examples of one step: kinds equally often, so that a large kind does not crowd out the others."""
        rng = random.Random(f"{self.seed}/{phase.name}/{step}")
        kinds = list(self.by_kind)
        rows = []
        for n in range(self.settings.batch):
            i = rng.choice(self.by_kind[kinds[n % len(kinds)]])
            reply = draw_reply(self.corpus[i], rng, flawed_share=phase.flawed, spoiled_share=phase.spoiled)
            prompt = self.prompt_ids[i]
            rows.append(Encoded(ids=(*prompt, *self.encoder.reply_ids(reply, finished=True)), prompt_length=len(prompt)))
        return rows

    def run(self, phase: _Phase, work: Path, marks: Mapping[int, str]) -> None:
        """Train one phase from the model's present weights; after the steps in `marks` the state is saved as a folder.

        Resumes from a checkpoint in `work`: a folder is always written before the checkpoint of its step.
        """
        rules = OptimizerSection(
            type="muon", learning_rate=phase.rate, betas=(0.9, 0.98), warmup_fraction=0.04, schedule="cosine"
        )
        optimizer, schedule = make_optimizer(self.model, rules, phase.steps)
        states = {"optimizer": optimizer, "schedule": schedule}
        done = 0
        newest = checkpoint.latest(work / phase.name)
        if newest is not None:
            done, extra = checkpoint.load(newest, {"model": self.model}, states)
            self.last_loss = extra["loss"]
        self.progress.advance(done)
        self.model.train()
        for step in range(done + 1, phase.steps + 1):
            self.last_loss = self._step(self.batch(phase, step), optimizer, schedule)
            if step in marks:
                draft = work / "folders" / f".{marks[step]}"
                save_folder(draft, self.model, self.encoder.tokenizer)
                shutil.rmtree(work / "folders" / marks[step], ignore_errors=True)
                draft.rename(work / "folders" / marks[step])
            if step % CHECKPOINT_STEPS == 0 or step == phase.steps:
                checkpoint.save(work / phase.name, step, {"model": self.model}, states, {"loss": self.last_loss})
            self.progress.advance(1, note=f"loss {self.last_loss:.3f}")

    def _step(self, rows: list[Encoded], optimizer: Any, schedule: Any) -> float:
        """One update. Rows of like length go together, so that little of a forward pass is padding."""
        lengths = [len(r.ids) for r in rows]
        replies = sum(n - r.prompt_length for n, r in zip(lengths, rows, strict=True))
        optimizer.zero_grad()
        total = 0.0
        for part in micro_batches(range(len(rows)), lengths, MICRO_TOKENS):
            padded = pad_right([rows[i] for i in part], self.encoder.pad_id)
            logprobs_BT, _ = token_logprobs(self.model, padded, padded.reply_mask_BT[:, 1:])
            loss = -logprobs_BT.sum() / replies
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        return total
