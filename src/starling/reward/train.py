"""Trains a reward model on rankings.

Source: Starling-RM — K answers of a prompt go through the model together, the Plackett–Luce likelihood of their ranking is
divided by K−1 and averaged over the rankings of a step (losses/ranking.py), AdamW, 5 % warm-up then constant, one epoch.

Departures: K is whatever each ranking has; micro-batches are bounded by tokens and the loss is normalised by the rankings
of the whole step, so their size changes nothing; dropout is off; encoders are welcome as backbones; score statistics come
from validation rankings, not from training ones.

    rows → encode (each of the K conversations) → plan of steps → micro-batches of whole rankings → step → checkpoint

`work` holds the checkpoints and the growing log; `out` is written once, at the end, and holds only files that depend on
data, settings and seed: the model folder and log.jsonl, one JSON object per line:

    {"step": 3, "loss": …, "pair_accuracy": …, "top1": …, "margin": …, "learning_rate": …, "grad_norm": …}
    {"step": 200, "validation": {"loss": …, "pair_accuracy": …, "top1": …, …}}

Shapes: B rankings, K answers.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from starling.config import RewardSection
from starling.errors import InputError, TrainingError
from starling.losses.masked import LossOutputs
from starling.models.encode import Encoder
from starling.models.load import load_backbone_as_scalar, load_tokenizer, longest_input, save_folder
from starling.models.scalar_head import ScalarHead
from starling.models.score import score_groups
from starling.progress import SILENT, Progress
from starling.records import RankedPrompt, content_hash
from starling.reward.batches import EncodedRanking, encode_rankings
from starling.reward.objective import Objective
from starling.training import checkpoint, plan
from starling.training.loop import apply_step, make_accelerator, make_optimizer, set_determinism

LOGGED = ("pair_accuracy", "top1", "margin")  # means over rankings: those of micro-batches add up


def train(
    rows_train: Sequence[RankedPrompt],
    rows_validation: Sequence[RankedPrompt],
    *,
    backbone: Path,
    out: Path,
    work: Path,
    settings: RewardSection,
    seed: int,
    progress: Progress = SILENT,
) -> dict[str, float]:
    """Train, evaluate, save; continues from `work` if it holds a checkpoint of the same settings and data.

    Args:
        rows_train: rankings to learn from.
        rows_validation: rankings of other conversations, for the log, the metrics and the score statistics; may be empty.
        backbone: transformers folder, decoder or encoder.
        out: folder for the reward model (a *ForSequenceClassification with its tokenizer) and log.jsonl.
        work: folder for checkpoints; the caller removes it after success.
        settings: loss, optimiser, lengths, batch.
        seed: of the new head and of the order of rankings.

    Returns:
        Counts (rankings/train, answers/prompt_cut …) and the last validation metrics (validation/pair_accuracy …).

    Raises:
        InputError: the backbone cannot be used, or no ranking is left to train on.
        TrainingError: a loss or gradient is not finite (the prompts are in work/non_finite.json), or `work` holds a
            checkpoint of something else.
    """
    set_determinism(seed)
    tokenizer = load_tokenizer(backbone)
    head = load_backbone_as_scalar(backbone, seed, tokenizer)
    max_length = min(settings.max_length, longest_input(head.model) or settings.max_length)
    encoder = Encoder(tokenizer, max_length)
    counts: Counter[str] = Counter()
    rankings = encode_rankings(rows_train, encoder, settings, counts)
    held_out = encode_rankings(rows_validation, encoder, settings, Counter())
    objective = Objective(settings, seed)
    uninformative = sum(not objective.informative(r) for r in rankings)
    rankings = [r for r in rankings if objective.informative(r)]
    if not rankings:
        raise InputError(
            f"No ranking is left to train on ({len(rows_train)} given, {dict(counts)})",
            where="the rankings of the train split",
            cure='raise reward.max_length, or set reward.over_long to "truncate_left"',
        )
    trainer = _Trainer(head, rankings, held_out, encoder.pad_id, work, settings, seed)
    trainer.run(progress)
    if trainer.statistics is not None:
        head.set_statistics(*trainer.statistics)
    out.mkdir(parents=True, exist_ok=True)
    save_folder(out, head.to("cpu"), tokenizer)
    (out / "log.jsonl").write_bytes((work / "log.jsonl").read_bytes())
    return {
        "rankings/train": float(len(rankings)),
        "rankings/uninformative": float(uninformative),
        "rankings/validation": float(len(held_out)),
        "max_length": float(max_length),
        "steps": float(len(trainer.plan)),
        **{f"answers/{name}": float(counts[name]) for name in ("whole", "prompt_cut", "answer_cut", "dropped")},
        **{f"validation/{name}": value for name, value in trainer.validation.items()},
    }


class _Trainer:
    """The loop: everything that changes is in the checkpoint, everything else follows from the arguments."""

    def __init__(
        self,
        head: ScalarHead,
        rankings: Sequence[EncodedRanking],
        held_out: Sequence[EncodedRanking],
        pad_id: int,
        work: Path,
        settings: RewardSection,
        seed: int,
    ) -> None:
        self.accelerator = make_accelerator()
        self.head: Any = self.accelerator.prepare(head)
        self.rankings = rankings
        self.held_out = held_out
        self.pad_id = pad_id
        self.settings = settings
        self.work = work
        self.objective = Objective(settings, seed)
        self.plan = plan.steps(len(rankings), settings.rankings_per_step, settings.epochs, seed)
        self.optimizer, self.scheduler = make_optimizer(head, settings.optimizer, len(self.plan))
        # where the files lie does not change the weights; what is in them does
        chosen = settings.model_dump(mode="json", exclude={"backbone", "data"})
        self.key = content_hash([chosen, seed, _digest(rankings), _digest(held_out)])
        self.validation: dict[str, float] = {}
        self.statistics: tuple[float, float] | None = None

    def run(self, progress: Progress) -> None:
        """All steps that are not done yet."""
        progress.start("training the reward model", len(self.plan))
        done = self._resume()
        progress.advance(done)
        with (self.work / "log.jsonl").open("ab") as log:
            for step in range(done + 1, len(self.plan) + 1):
                row = self._step(step)
                _write(log, row)
                progress.advance(1, f"loss {row['loss']:.3f} · pairs {row['pair_accuracy']:.3f}")
                if step % self.settings.checkpoint_steps == 0 or step == len(self.plan):
                    self._evaluate()
                    if self.validation:
                        _write(log, {"step": step, "validation": self.validation})
                    log.flush()
                    os.fsync(log.fileno())
                    self._save(step, log.tell())
        progress.finish()

    def _step(self, step: int) -> dict[str, Any]:
        """One optimiser step; returns its line of the log."""
        chosen = self.plan[step - 1]
        whole = [self.rankings[i] for i in chosen]
        lengths = [r.longest for r in self.rankings]
        sizes = [len(r.answers) for r in self.rankings]
        rate = self.scheduler.get_last_lr()[0]
        micro = plan.micro_batches(chosen, lengths, self.settings.micro_tokens, sizes)
        totals = dict.fromkeys(("loss", *LOGGED), 0.0)
        for batch in micro:
            outputs = self._outputs([self.rankings[i] for i in batch], step, self.objective.normaliser(whole))
            loss = float(outputs.loss.detach())
            if not math.isfinite(loss):
                self._refuse(step, batch, f"The loss is {loss}")
            self.accelerator.backward(outputs.loss)
            totals["loss"] += loss
            for name in LOGGED:
                totals[name] += float(outputs.metrics[name]) * len(batch) / len(chosen)
        try:
            norm = apply_step(
                self.accelerator, self.head.parameters(), self.optimizer, self.scheduler, self.settings.optimizer.max_grad_norm
            )
        except TrainingError as error:
            self._refuse(step, chosen, error.what)
        return {"step": step, **totals, "learning_rate": rate, "grad_norm": norm}

    def _outputs(self, rankings: Sequence[EncodedRanking], step: int, normaliser: float) -> LossOutputs:
        selected = [self.objective.select(ranking, step) for ranking in rankings]
        scores_BK, _ = score_groups(self.head, [r.answers for r in selected], self.pad_id)
        return self.objective(scores_BK, self.objective.targets(selected, step).to(scores_BK.device), normaliser)

    def _refuse(self, step: int, batch: Sequence[int], what: str) -> None:
        """Say which prompts it happened on, and stop."""
        path = self.work / "non_finite.json"
        path.write_text(json.dumps({"step": step, "prompt_ids": [self.rankings[i].prompt_id for i in batch]}, indent=1))
        raise TrainingError(
            what, where=f"step {step}; its prompts are in {path}", cure="lower the learning rate; look at those prompts"
        )

    @torch.no_grad()
    def _evaluate(self) -> None:
        """Loss and metrics over all validation rankings; mean and standard deviation of their scores."""
        if not self.held_out:
            return
        lengths, sizes = [r.longest for r in self.held_out], [len(r.answers) for r in self.held_out]
        scored: list[torch.Tensor] = []
        order: list[int] = []
        for batch in plan.micro_batches(range(len(self.held_out)), lengths, self.settings.micro_tokens, sizes):
            scored.append(score_groups(self.head, [self.held_out[i].answers for i in batch], self.pad_id)[0])
            order += batch
        width = max(scores_BK.shape[1] for scores_BK in scored)
        scores_BK = torch.cat([_widened(s, width) for s in scored])
        whole = [self.held_out[i] for i in order]
        targets = self.objective.targets(whole, 0).to(scores_BK.device)
        outputs = self.objective(scores_BK, targets, self.objective.normaliser(whole))
        self.validation = {"loss": float(outputs.loss), **{name: float(value) for name, value in outputs.metrics.items()}}
        self.statistics = self.validation["score_mean"], self.validation["score_std"]

    # ── checkpoints ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _parts(self) -> tuple[dict[str, torch.nn.Module], dict[str, checkpoint.Stateful]]:
        return {"head": self.accelerator.unwrap_model(self.head)}, {"optimizer": self.optimizer, "scheduler": self.scheduler}

    def _save(self, step: int, log_bytes: int) -> None:
        modules, states = self._parts()
        extra = {"log_bytes": log_bytes, "validation": self.validation, "statistics": self.statistics}
        checkpoint.save(self.work / "checkpoints", step, modules, states, extra, key=self.key)

    def _resume(self) -> int:
        """Steps done; the log is cut back to what it was then."""
        self.work.mkdir(parents=True, exist_ok=True)
        newest = checkpoint.latest(self.work / "checkpoints")
        step = 0
        extra: dict[str, Any] = {"log_bytes": 0, "validation": {}, "statistics": None}
        if newest is not None:
            modules, states = self._parts()
            step, extra = checkpoint.load(newest, modules, states, key=self.key)
        with (self.work / "log.jsonl").open("ab") as log:
            log.truncate(extra["log_bytes"])
        self.validation = extra["validation"]
        if extra["statistics"] is not None:
            mean, std = extra["statistics"]
            self.statistics = mean, std
        return step


def _digest(rankings: Sequence[EncodedRanking]) -> str:
    """SHA-256 of all token ids with their boundaries."""
    digest = hashlib.sha256()
    for ranking in rankings:
        digest.update(np.array([len(a.ids) for a in ranking.answers]).tobytes() + b"|")
        for answer in ranking.answers:
            digest.update(np.array(answer.ids, dtype=np.int64).tobytes())
    return digest.hexdigest()


def _widened(values_BK: torch.Tensor, width: int) -> torch.Tensor:
    """Zeros appended to `width` slots."""
    return torch.nn.functional.pad(values_BK, (0, width - values_BK.shape[1]))


def _write(log: BinaryIO, row: dict[str, Any]) -> None:
    log.write(json.dumps(row).encode() + b"\n")
