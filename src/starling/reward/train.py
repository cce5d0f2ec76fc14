"""Trains a reward model on rankings.

Source: Starling-RM — K answers of a prompt go through the model together, the Plackett–Luce likelihood of their ranking is
divided by K−1 and averaged over the rankings of a step (losses/ranking.py), AdamW, 5 % warm-up then constant, one epoch.

Departures: K is whatever each ranking has; micro-batches are bounded by tokens and the loss is normalised by the rankings
of the whole step, so neither their size nor the number of processes changes a result; dropout is off; encoders are welcome as
backbones; score statistics come from validation rankings, not from training ones.

    rows → tokens on disk (batches) → plan of steps → micro-batches of whole rankings → step → checkpoint (training.trainer)

`work` holds the tokens, the checkpoints and the growing log; `out` is written once, at the end, by the first process, and holds
only files that depend on data, settings and seed: the model folder and log.jsonl, one JSON object per line:

    {"step": 3, "loss": …, "pair_accuracy": …, "top1": …, "margin": …, "learning_rate": …, "grad_norm": …}
    {"step": 200, "validation": {"loss": …, "pair_accuracy": …, "top1": …, …}}

Shapes: B rankings, K answers, N rankings of validation.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator

from starling.config import RewardSection
from starling.errors import InputError
from starling.lineage import SPEED
from starling.models.encode import Encoder
from starling.models.load import STATISTICS_FILE, load_backbone_as_scalar, load_tokenizer, longest_input, save_folder
from starling.models.scalar_head import ScalarHead
from starling.models.score import Layout, choose_layout, score_groups
from starling.progress import SILENT, Progress
from starling.records import RankedPrompt, content_hash
from starling.reward.batches import EncodedRanking, TokenStore, build_store
from starling.reward.objective import Objective
from starling.training import checkpoint
from starling.training.engine import Engine, kind_of
from starling.training.loop import load_whole, make_accelerator, set_determinism
from starling.training.plan import Plan, count, deal
from starling.training.trackers import open_trackers, require
from starling.training.trained import TrainedPart, TrainedWeights
from starling.training.trainer import Rules, Trainer, best, newest


def train(
    rows_train: Iterable[RankedPrompt],
    rows_validation: Iterable[RankedPrompt],
    *,
    backbone: Path,
    out: Path,
    work: Path,
    settings: RewardSection,
    seed: int,
    progress: Progress = SILENT,
    tracking: Path | None = None,
    name: str = "reward model",
    part: bool = True,
) -> dict[str, float]:
    """Train, evaluate, save; continues from `work` if it holds a checkpoint of the same settings and data.

    Started with several processes, all call this with the same arguments and see the same `work`; the first one reads the rows,
    writes and shows progress.

    Args:
        rows_train: rankings to learn from; re-iterable, read once or twice, never all in memory.
        rows_validation: rankings of other conversations, for the log, the metrics and the score statistics; may be empty.
        backbone: transformers folder, decoder or encoder.
        out: folder for the reward model (a *ForSequenceClassification with its tokenizer, or an adapter) and log.jsonl.
        work: folder for tokens and checkpoints; the caller removes it after success.
        settings: loss, optimiser, lengths, batch.
        seed: of the new head and of the order of rankings.
        tracking, name: folder of the trackers' files (beside `out` if None), and what they and the progress call this training.
        part: several processes need each other no more afterwards; False if another training of theirs follows.

    Returns:
        Counts (rankings/train, answers/prompt_cut …) and the validation metrics of the weights saved (validation/…).

    Raises:
        InputError: the backbone cannot be used, no ranking is left to train on, or there is none to choose the best by.
        ConfigError: the settings do not go with the backbone, or with the way the processes were started.
        UsageError: a tracker is not installed.
        TrainingError: a loss or gradient is not finite (the prompts are in work/non_finite.json), or `work` holds a
            checkpoint of something else.
        KeyboardInterrupt: SIGTERM or SIGINT, after the step was finished and saved.
    """
    set_determinism(seed)
    accelerator = make_accelerator(settings.precision)
    progress = progress if accelerator.is_main_process else SILENT
    require(settings.trackers)
    load_whole(accelerator)
    model = _Model(backbone, settings, seed)
    objective = Objective(settings, seed)
    rankings, held_out = _stores(rows_train, rows_validation, model.encoder, settings, objective, work, accelerator, progress)
    # where files lie and how fast a result comes does not change the weights; what is in the files does
    chosen = settings.model_dump(mode="json", exclude={"backbone", "data", *SPEED["reward"]})
    key = content_hash([chosen, seed, rankings.digest, held_out.digest])
    resumed = newest(work, accelerator)
    if resumed is not None:
        checkpoint.load_modules(resumed, {"weights": TrainedWeights(model.head)}, key=key)
    total = count(len(rankings), settings.rankings_per_step, settings.epochs)
    engine, layout = _start(model, accelerator, sharing(rankings), settings, total)
    tokens = costs(rankings, layout, objective.answers_read)
    plan = Plan(tokens, settings.rankings_per_step, settings.epochs, seed, settings.micro_tokens, engine.ranks)
    task = _Rankings(rankings, held_out, model.encoder.pad_id, layout, objective, settings.micro_tokens)
    shown = open_trackers(settings.trackers, tracking or out.parent / "tracking", name, chosen) if engine.first else []
    trainer = Trainer(engine, task, plan, _rules(settings), work, key=key, trackers=shown)
    kind = f" · {engine.ranks} processes ({engine.kind})" if engine.ranks > 1 else ""
    progress.start(f"training the {name}{kind}", len(plan))
    state = trainer.run(progress, resumed=resumed)
    progress.finish()
    chosen_weights = best(work, state) if settings.keep == "best" else None
    validation = state.best if chosen_weights else state.evaluation
    _save(model, engine, chosen_weights, validation, out, work, key)
    if part:
        engine.part()
    return {
        "rankings/train": float(len(rankings)),
        "rankings/validation": float(len(held_out)),
        "max_length": float(model.encoder.max_length),
        "steps": float(state.steps),
        **{name: float(rankings.counts.get(name, 0)) for name in _COUNTS},
        **({"best_step": float(state.best_step)} if settings.keep == "best" else {}),
        **{f"validation/{name}": value for name, value in validation.items()},
    }


_COUNTS = (
    *(f"answers/{how}" for how in ("whole", "prompt_cut", "answer_cut", "dropped")),
    *(f"rankings/{what}" for what in ("shortened", "dropped", "uninformative", "without_confidence")),
)


class _Model:
    """Backbone, head and tokenizer as they are before training, with what is trained chosen."""

    def __init__(self, backbone: Path, settings: RewardSection, seed: int) -> None:
        self.backbone, self._settings, self._seed = backbone, settings, seed
        self.tokenizer = load_tokenizer(backbone)
        self.head: ScalarHead = load_backbone_as_scalar(backbone, seed, self.tokenizer)
        self.part = TrainedPart(self.head.model, settings.trained, seed)
        self.head.eval()  # adapters begin in training mode, and dropout would spoil the trial of the layout
        longest = longest_input(self.head.model, self.tokenizer) or settings.max_length
        self.encoder = Encoder(self.tokenizer, min(settings.max_length, longest))
        wanted = settings.gradient_checkpointing
        if wanted == "on" or (wanted == "auto" and torch.cuda.is_available()):
            model: Any = self.head.model  # transformers 5.2x gave the method another name
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})

    def again(self) -> _Model:
        """A fresh one, all weights as before training."""
        return _Model(self.backbone, self._settings, self._seed)


def _stores(
    rows_train: Iterable[RankedPrompt],
    rows_validation: Iterable[RankedPrompt],
    encoder: Encoder,
    settings: RewardSection,
    objective: Objective,
    work: Path,
    accelerator: Accelerator,
    progress: Progress,
) -> tuple[TokenStore, TokenStore]:
    """Both sides as tokens; the first process makes them, the others wait."""
    folders = [work / "tokens" / side for side in ("train", "validation")]
    if accelerator.is_main_process:
        build_store(folders[0], rows_train, encoder, settings, progress, objective.informative)
        build_store(folders[1], rows_validation, encoder, settings, progress)
    accelerator.wait_for_everyone()
    rankings, held_out = (TokenStore(folder) for folder in folders)
    if not len(rankings):
        raise InputError(
            f"No ranking is left to train on ({rankings.counts.get('rankings/read', 0)} given, {rankings.counts})",
            where="the rankings of the train split",
            cure='give rankings that are not all one tie; raise reward.max_length, or set reward.over_long to "truncate_left"',
        )
    if objective.reads_confidence and rankings.counts.get("rankings/without_confidence") == rankings.counts["rankings/read"]:
        raise InputError(
            "No ranking says how sure its judge was of any pair, so every pair would count alike",
            where="reward.loss.weights and reward.loss.soft_labels",
            cure='set weights = "none" and soft_labels = false, or train on the dataset stage of a run (imports have none)',
        )
    if not len(held_out) and (settings.keep == "best" or settings.patience is not None):
        raise InputError(
            "There are no validation rankings to tell the best weights by",
            where="reward.keep and reward.patience",
            cure='raise reward.validation_fraction, or set reward.keep to "last" and leave out reward.patience',
        )
    return rankings, held_out


def _start(
    model: _Model, accelerator: Accelerator, first: EncodedRanking, settings: RewardSection, total_steps: int
) -> tuple[Engine, Layout]:
    """The engine, and the layout after its trial: as the model will be called, but before DeepSpeed takes the gradients over."""
    pad_id, half = model.encoder.pad_id, accelerator.mixed_precision != "no"
    if kind_of(accelerator.num_processes) == "deepspeed":
        head = model.head.to(accelerator.device)
        layout = choose_layout(head, first.answers, pad_id, settings.layout)
        return Engine(head, accelerator, settings.optimizer, total_steps), layout
    engine = Engine(model.head, accelerator, settings.optimizer, total_steps)
    return engine, engine.told(choose_layout(engine.model, first.answers, pad_id, settings.layout, half))


def sharing(rankings: TokenStore) -> EncodedRanking:
    """The first ranking (of 256) whose conversations share tokens, for the trial of the layout: another would show nothing."""
    for i, shared in enumerate(rankings.shared[:256]):
        if shared < sum(len(answer.ids) for answer in rankings[i].answers):
            return rankings[i]
    return rankings[0]


def costs(rankings: TokenStore, layout: Layout, read: int | None = None) -> npt.NDArray[np.int64]:
    """Tokens of every ranking in a forward pass: shared ones once, or K rows (K − 1 for each of K) as long as the longest.

    Where only `read` of its answers are, not always the same: what they take at most (but for forks too short to merge).
    """
    sizes = rankings.sizes if read is None else np.minimum(rankings.sizes, read)
    if layout == "shared_prefix":
        return rankings.shared if read is None else np.minimum(rankings.shared, sizes * rankings.longest)
    rows = sizes if layout == "sequences" else sizes * (sizes - 1)
    return rows * rankings.longest


def _rules(settings: RewardSection) -> Rules:
    return Rules(
        checkpoint_steps=settings.checkpoint_steps,
        eval_steps=settings.eval_steps,
        log_steps=settings.log_steps,
        keep_best=settings.keep == "best",
        metric=settings.metric,
        patience=settings.patience,
    )


class _Rankings:
    """The objective over rankings, as the loop wants it."""

    metrics: tuple[str, ...] = ("pair_accuracy", "top1", "margin")  # means over rankings: those of micro-batches add up

    def __init__(
        self,
        rankings: TokenStore,
        held_out: TokenStore,
        pad_id: int,
        layout: Layout,
        objective: Objective,
        micro_tokens: int,
    ) -> None:
        self.rankings, self.held_out, self.pad_id, self.layout = rankings, held_out, pad_id, layout
        self._budget, self._objective = micro_tokens, objective
        self._normaliser, self._ordered = 1.0, 1

    def begin(self, items: Sequence[int], step: int) -> None:
        rankings = [self.rankings.order(i) for i in items]
        self._normaliser = self._objective.normaliser(rankings)
        self._ordered = max(1, sum(map(_is_ordered, rankings)))

    def loss(self, model: Any, items: Sequence[int], step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        selected = [self._objective.select(self.rankings[i], step) for i in items]
        scores_BK, _ = score_groups(model, [r.answers for r in selected], self.pad_id, self.layout)
        targets = self._objective.targets(selected, step).to(scores_BK.device)
        outputs = self._objective(scores_BK, targets, self._normaliser)
        share = sum(map(_is_ordered, selected)) / self._ordered  # the metrics are means over those
        return outputs.loss, {name: outputs.metrics[name] * share for name in self.metrics}

    def one_pass(self, model: Any) -> torch.Tensor:
        return score_groups(model, [self.rankings[0].answers[:1]], self.pad_id, self.layout)[0].sum()

    @torch.no_grad()
    def evaluate(self, model: Any, engine: Engine) -> dict[str, float]:
        """Loss and metrics over all validation rankings; mean and standard deviation of their scores."""
        if not len(self.held_out):
            return {}
        sizes = self.held_out.sizes
        scores_NK = torch.zeros(len(sizes), int(sizes.max()), device=engine.device)
        for items in deal(range(len(sizes)), costs(self.held_out, self.layout), self._budget, engine.ranks)[engine.rank]:
            if items:
                found_BK, _ = score_groups(model, [self.held_out[i].answers for i in items], self.pad_id, self.layout)
                scores_NK[torch.tensor(items, device=engine.device), : found_BK.shape[1]] = found_BK
            engine.even_out(scores_NK, lambda: self.one_pass(model))
        scores_NK = engine.total(scores_NK)  # each ranking was scored by one process, the others add 0
        whole = [self.held_out.order(i) for i in range(len(sizes))]
        targets = self._objective.targets(whole, 0).to(scores_NK.device)
        outputs = self._objective(scores_NK, targets, self._objective.normaliser(whole))
        return {"loss": float(outputs.loss), **{name: float(value) for name, value in outputs.metrics.items()}}

    def name(self, item: int) -> str:
        return self.rankings[item].prompt_id


def _is_ordered(ranking: EncodedRanking) -> bool:
    """Whether any two of its answers differ in rank."""
    return len(set(ranking.ranks)) > 1


def _save(
    model: _Model, engine: Engine, chosen: Path | None, validation: dict[str, float], out: Path, work: Path, key: str
) -> None:
    """Write the artifact's files: the weights of the checkpoint `chosen`, or the present ones. All processes call it."""
    spread = engine.kind in ("fsdp2", "deepspeed")
    tensors = engine.tensors() if spread and chosen is None else {}
    if engine.first:
        if spread:
            model = model.again()
        if tensors:
            TrainedWeights(model.head).fill(tensors)
        if chosen is not None:
            checkpoint.load_modules(chosen, {"weights": TrainedWeights(model.head)}, key=key)
        model.head.to("cpu")
        model.part.finish()
        model.tokenizer.model_max_length = model.encoder.max_length  # so that others cut where training did
        statistics = {"mean": validation["score_mean"], "std": validation["score_std"]} if validation else {}
        out.mkdir(parents=True, exist_ok=True)
        if model.part.saves_adapter:
            model.part.save_adapter(out, model.backbone)
            model.tokenizer.save_pretrained(out)
            (out / STATISTICS_FILE).write_text(json.dumps(statistics, sort_keys=True) + "\n", encoding="utf-8")
        else:
            if statistics:
                model.head.set_statistics(**statistics)
            save_folder(out, model.head, model.tokenizer)
        (out / "log.jsonl").write_bytes((work / "log.jsonl").read_bytes())
    engine.wait()
