"""The loop that every training goes through: steps of a plan, log, evaluations, early stop, checkpoints, signals.

What is trained and on what is a `Task`; how it is spread over processes is an `Engine`; which items go into which step is a
`Plan`. Everything that changes is in the checkpoint, everything else follows from the arguments, so a training that was killed
ends in the same weights and the same log, bit for bit, on the same machine and number of processes.

`folder` holds, while a training goes on:

    checkpoints/     training.checkpoint; the newest two
    best/            the weights of the best evaluation, where they are wanted: of this moment, and of each checkpoint
    log.jsonl        one line per `log_steps` steps, one per evaluation; depends on data, settings and seed only
    speed.jsonl      seconds, tokens per second and memory of the same steps; differs from run to run
    non_finite.json  the items of a step that was refused

SIGTERM and SIGINT finish the step, save a checkpoint and then interrupt; the second one interrupts at once.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from starling.errors import TrainingError
from starling.progress import SILENT, Progress
from starling.records import content_hash
from starling.training import checkpoint
from starling.training.engine import Engine
from starling.training.interrupt import Interrupt
from starling.training.logbook import Logbook, memory_mib
from starling.training.plan import Plan
from starling.training.step import Batches, accumulate, agreed, among_others, refuse
from starling.training.trackers import Tracker


class Task(Protocol):
    """What is trained."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the numbers that `loss` reports beside the loss."""

    def begin(self, items: Sequence[int], step: int) -> None:
        """A step begins whose items, over all processes, are these."""

    def loss(self, model: Any, items: Sequence[int], step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Of a micro-batch: its share of the step's loss, and its share of the step's mean of each metric."""

    def one_pass(self, model: Any) -> torch.Tensor:
        """Some number that depends on every trained weight, by one short forward pass."""

    def evaluate(self, model: Any, engine: Engine) -> dict[str, float]:
        """Numbers on data that is not trained on, the same on all processes; empty when there is none."""

    def name(self, item: int) -> str:
        """How a person finds an item, e.g. the id of a prompt."""


@dataclass(frozen=True)
class Rules:
    """When things happen; in steps."""

    checkpoint_steps: int
    eval_steps: int
    log_steps: int = 1
    keep_best: bool = False
    metric: str = "loss"
    """Of the evaluation; the smaller the better for loss, the greater for all others."""
    patience: int | None = None


@dataclass
class State:
    """What a checkpoint holds beside weights, optimiser and schedule."""

    log_bytes: int = 0
    rows: list[list[float]] = field(default_factory=list)
    """Numbers of the steps since the last line of the log."""
    evaluation: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    best_step: int = 0
    without_better: int = 0
    """Evaluations in a row that were not better than the best."""
    stopped: bool = False
    steps: int = 0
    """Steps done."""


class Trainer:
    """Goes through the plan.

    Args:
        engine: holds the module and its optimiser.
        task, plan, rules: what, in which order, when.
        folder: of the work in progress, seen by all processes.
        trackers: are shown the log; used by the first process only.
    """

    def __init__(
        self, engine: Engine, task: Task, plan: Plan, rules: Rules, folder: Path, *, key: str, trackers: Sequence[Tracker] = ()
    ) -> None:
        self.engine, self.task, self.plan, self.rules = engine, task, plan, rules
        self.folder = folder
        self.key = key
        self.trackers = trackers if engine.first else ()
        self.state = State()
        self._pending: list[torch.Tensor] = []
        self._interrupt = Interrupt()
        self._stop = False
        """Whether any process was asked to."""
        self._began = time.monotonic()
        self._tokens = 0

    def run(self, progress: Progress = SILENT, *, resumed: Path | None = None) -> State:
        """All steps that are not done yet.

        Args:
            progress: used by the first process only.
            resumed: the checkpoint whose weights the engine's module was filled with.

        Raises:
            TrainingError: a loss or gradient is not finite, or another process has ended.
            KeyboardInterrupt: a signal asked to stop; a checkpoint was saved first.
        """
        progress = progress if self.engine.first else SILENT
        done = self._resume(resumed)
        with Logbook(self.folder, self.engine.first, self.state.log_bytes, self.trackers) as log, self._interrupt:
            self.engine.wait()
            self._began = time.monotonic()
            progress.advance(done)
            for step in range(done + 1, len(self.plan) + 1):
                if self.state.stopped:
                    break
                note = self._go(step, log)
                progress.advance(1, note)
        return self.state

    def _go(self, step: int, log: Logbook) -> str:
        """One step and whatever is due after it; returns a note for the progress."""
        last = step == len(self.plan)
        note = ""
        with among_others(self.engine, f"step {step}"):
            self._step(step)
            self.state.steps = step
            if step % self.rules.log_steps == 0 or last:
                note = self._write_rows(step, log)
            if step % self.rules.eval_steps == 0 or last:
                self._evaluate(step, log)
            if self._stop or step % self.rules.checkpoint_steps == 0 or last or self.state.stopped:
                self._save(step, log)
        if self._stop:
            raise KeyboardInterrupt
        return note

    # ── a step ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _step(self, step: int) -> None:
        engine, names = self.engine, self.task.metrics
        batches = self.plan.batches(step)[engine.rank]
        engine.module.train()
        # of adapters' dropout; nothing else draws
        torch.manual_seed(int(content_hash([self.plan.seed, step, engine.rank], 15), 16))
        self.task.begin(self.plan.items(step), step)

        def loss_of(items: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
            loss, metrics = self.task.loss(engine.model, items, step)
            return loss, torch.stack([metrics[name] for name in names])

        def agree(batches: Batches, losses: list[torch.Tensor], full: bool) -> None:
            self._agree(step, batches, losses, full)

        sums = accumulate(engine, batches, loss_of, lambda: self.task.one_pass(engine.model), 1 + len(names), agree)
        try:
            norm, rate = engine.update()
        except TrainingError as error:
            self._refuse(step, [i for batch in batches for i in batch], error.what)
        self._tokens += int(sum(self.plan.costs[i] for i in self.plan.items(step)))
        once = torch.tensor([rate, norm], device=sums.device, dtype=torch.float64) / engine.ranks  # the same on all
        self._pending.append(torch.cat([sums.double(), once]))

    def _agree(self, step: int, batches: Batches, losses: list[torch.Tensor], full: bool = False) -> None:
        """Before anything is updated: is any loss not finite, has any process been asked to stop?"""
        _, bad, self._stop = agreed(self.engine, losses, full, self._interrupt.asked)
        if bad:
            where = [i for i, loss in enumerate(losses) if not bool(loss.isfinite())]
            values = self.engine.gathered([float(losses[i]) for i in where])
            self._refuse(step, [item for i in where for item in batches[i]], f"The loss is {values[0]}")

    def _refuse(self, step: int, items: Sequence[int], what: str) -> NoReturn:
        """Say which items it happened on, and stop; all processes together."""
        refuse(self.engine, self.folder, [self.task.name(i) for i in items], what, f"step {step}", {"step": step})

    # ── what is told ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _reduce(self) -> None:
        """Add up over processes what the steps since the last time said; step by step, so that it does not matter when."""
        if self._pending:
            self.state.rows += self.engine.total(torch.stack(self._pending)).tolist()
            self._pending.clear()

    def _write_rows(self, step: int, log: Logbook) -> str:
        self._reduce()
        names = ("loss", *self.task.metrics, "learning_rate", "grad_norm")
        rows = self.state.rows
        means = {name: sum(row[i] for row in rows) / len(rows) for i, name in enumerate(names)}
        self.state.rows = []
        log.write({"step": step, **means})
        seconds = max(time.monotonic() - self._began, 1e-9)
        speed = {
            "seconds": seconds, "tokens_per_second": self._tokens / seconds, "memory_mib": memory_mib(self.engine.device)
        }  # fmt: skip
        self._began, self._tokens = time.monotonic(), 0
        log.speed({"step": step, **speed})
        log.show(means | speed, step)
        shown = [f"{name} {means[name]:.3f}" for name in ("loss", *self.task.metrics[:1])]
        return " · ".join([*shown, f"{speed['tokens_per_second']:,.0f} tokens/s"])

    def _evaluate(self, step: int, log: Logbook) -> None:
        """Numbers on validation, whether they are the best so far, and whether it is time to stop."""
        self.engine.module.eval()
        found = self.engine.told(self.task.evaluate(self.engine.model, self.engine))
        if not found:
            return
        state, metric = self.state, self.rules.metric
        state.evaluation = found
        log.write({"step": step, "validation": found})
        log.show({f"validation/{name}": value for name, value in found.items()}, step)
        sign = -1.0 if metric == "loss" else 1.0
        if not state.best or sign * found[metric] > sign * state.best[metric]:
            state.best, state.best_step, state.without_better = found, step, 0
            if self.rules.keep_best:
                weights, first = {"weights": self.engine}, self.engine.first
                # a kill takes the training back to a checkpoint, and to what was the best then
                needed = [int(e["best_step"]) for e in checkpoint.extras(self.folder / "checkpoints")] if first else []
                checkpoint.save(self.folder / "best", step, weights, {}, {}, key=self.key, write=first, keep=needed)
                self.engine.wait()
        else:
            state.without_better += 1
        state.stopped = self.rules.patience is not None and state.without_better >= self.rules.patience

    # ── checkpoints ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _save(self, step: int, log: Logbook) -> None:
        self._reduce()
        self.state.log_bytes = log.saved()
        folder, engine = self.folder / "checkpoints", self.engine
        extra = asdict(self.state)
        checkpoint.save(folder, step, {"weights": engine}, engine.states, extra, key=self.key, write=engine.first)
        engine.wait()  # nobody goes on, or ends, before it is there

    def _resume(self, path: Path | None) -> int:
        """Steps done."""
        if path is None:
            return 0
        step, extra = checkpoint.load_modules(path, {}, key=self.key)
        checkpoint.load_states(path, self.engine.states)
        self.state = State(**extra)
        return step


def newest(folder: Path, accelerator: Accelerator) -> Path | None:
    """The checkpoint to go on from; the first process checks the files, and says it to the others."""
    found = checkpoint.latest(folder / "checkpoints") if accelerator.is_main_process else None
    return found if accelerator.num_processes == 1 else broadcast_object_list([found])[0]  # type: ignore[no-any-return]


def best(folder: Path, state: State) -> Path:
    """Where the weights of the best evaluation are.

    Raises:
        TrainingError: they are gone or damaged.
    """
    path = folder / "best" / f"step-{state.best_step:08d}"
    if checkpoint.problem(path) is not None:
        raise TrainingError(
            f"The weights of the best evaluation, after step {state.best_step}, cannot be read: {checkpoint.problem(path)}",
            where=str(path),
            cure='set reward.keep to "last", or delete the folder of checkpoints to start this training anew',
        )
    return path
