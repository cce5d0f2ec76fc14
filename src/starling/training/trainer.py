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

import json
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from starling.errors import TrainingError
from starling.progress import SILENT, Progress
from starling.records import content_hash
from starling.training import checkpoint
from starling.training.engine import Engine
from starling.training.plan import Plan
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
        self._interrupted = False
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
        self._began = time.monotonic()
        progress.advance(done)
        try:
            with self._interruptible(), self._log() as log:
                for step in range(done + 1, len(self.plan) + 1):
                    if self.state.stopped:
                        break
                    note = self._go(step, log)
                    progress.advance(1, note)
        finally:  # what they hold back would be lost with an interruption
            for tracker in self.trackers:
                tracker.close()
        return self.state

    def _go(self, step: int, log: BinaryIO) -> str:
        """One step and whatever is due after it; returns a note for the progress."""
        last = step == len(self.plan)
        note = ""
        try:
            self._step(step)
            self.state.steps = step
            if step % self.rules.log_steps == 0 or last:
                note = self._write_rows(step, log)
            if step % self.rules.eval_steps == 0 or last:
                self._evaluate(step, log)
            if self._interrupted or step % self.rules.checkpoint_steps == 0 or last or self.state.stopped:
                self._save(step, log)
        except RuntimeError as error:
            if self.engine.ranks > 1 and _is_lost(error):
                raise TrainingError(
                    f"Another process of this training has ended: {str(error).splitlines()[0][:200]}",
                    where=f"process {self.engine.rank} of {self.engine.ranks}, step {step}",
                    cure="see what the other one said; the same command goes on from the last checkpoint",
                ) from error
            raise
        if self._interrupted:
            raise KeyboardInterrupt
        return note

    # ── a step ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _step(self, step: int) -> None:
        engine = self.engine
        batches = self.plan.batches(step)[engine.rank]
        engine.module.train()
        # of adapters' dropout; nothing else draws
        torch.manual_seed(int(content_hash([self.plan.seed, step, engine.rank], 15), 16))
        self.task.begin(self.plan.items(step), step)
        losses: list[torch.Tensor] = []
        sums = torch.zeros(1 + len(self.task.metrics), device=engine.device)
        for i, items in enumerate(batches):
            last = i == len(batches) - 1
            with engine.micro_batch(last):
                if items:
                    loss, metrics = self.task.loss(engine.model, items, step)
                    sums += torch.stack([loss.detach(), *(metrics[name] for name in self.task.metrics)])
                else:  # others have more to do, and need this process for it
                    loss = 0.0 * self.task.one_pass(engine.model)
                losses.append(loss.detach())
                loss = engine.even_out(loss, lambda: self.task.one_pass(engine.model))
                if last:
                    self._agree(step, batches, losses)
                engine.backward(loss)
        try:
            norm, rate = engine.update()
        except TrainingError as error:
            self._refuse(step, [i for batch in batches for i in batch], error.what)
        self._tokens += int(sum(self.plan.costs[i] for i in self.plan.items(step)))
        once = torch.tensor([rate, norm], device=sums.device, dtype=torch.float64) / engine.ranks  # the same on all
        self._pending.append(torch.cat([sums.double(), once]))

    def _agree(self, step: int, batches: Sequence[Sequence[int]], losses: list[torch.Tensor]) -> None:
        """Before anything is updated: is any loss not finite, has any process been asked to stop?"""
        bad = ~torch.stack(losses).isfinite()
        said = self.engine.largest(torch.stack([bad.any(), torch.tensor(self._interrupted, device=bad.device)]).int()).tolist()
        self._interrupted = bool(said[1])
        if said[0]:
            where = bad.nonzero().flatten().tolist()
            values = self.engine.gathered([float(losses[i]) for i in where])
            self._refuse(step, [item for i in where for item in batches[i]], f"The loss is {values[0]}")

    def _refuse(self, step: int, items: Sequence[int], what: str) -> NoReturn:
        """Say which items it happened on, and stop; all processes together."""
        names = self.engine.gathered([self.task.name(i) for i in items])
        path = self.folder / "non_finite.json"
        if self.engine.first:
            path.write_text(json.dumps({"step": step, "prompt_ids": names}, indent=1), encoding="utf-8")
        raise TrainingError(
            what, where=f"step {step}; its prompts are in {path}", cure="lower the learning rate; look at those prompts"
        )

    # ── what is told ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _reduce(self) -> None:
        """Add up over processes what the steps since the last time said; step by step, so that it does not matter when."""
        if self._pending:
            self.state.rows += self.engine.total(torch.stack(self._pending)).tolist()
            self._pending.clear()

    def _write_rows(self, step: int, log: BinaryIO) -> str:
        self._reduce()
        names = ("loss", *self.task.metrics, "learning_rate", "grad_norm")
        rows = self.state.rows
        means = {name: sum(row[i] for row in rows) / len(rows) for i, name in enumerate(names)}
        self.state.rows = []
        _write(log, {"step": step, **means})
        seconds = max(time.monotonic() - self._began, 1e-9)
        speed = {
            "seconds": seconds, "tokens_per_second": self._tokens / seconds, "memory_mib": _memory_mib(self.engine.device)
        }  # fmt: skip
        self._began, self._tokens = time.monotonic(), 0
        if self.engine.first:
            with (self.folder / "speed.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **speed}) + "\n")
        for tracker in self.trackers:
            tracker.log(means | speed, step)
        shown = [f"{name} {means[name]:.3f}" for name in ("loss", *self.task.metrics[:1])]
        return " · ".join([*shown, f"{speed['tokens_per_second']:,.0f} tokens/s"])

    def _evaluate(self, step: int, log: BinaryIO) -> None:
        """Numbers on validation, whether they are the best so far, and whether it is time to stop."""
        self.engine.module.eval()
        found = self.engine.told(self.task.evaluate(self.engine.model, self.engine))
        if not found:
            return
        state, metric = self.state, self.rules.metric
        state.evaluation = found
        _write(log, {"step": step, "validation": found})
        for tracker in self.trackers:
            tracker.log({f"validation/{name}": value for name, value in found.items()}, step)
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

    def _save(self, step: int, log: BinaryIO) -> None:
        self._reduce()
        if self.engine.first:
            log.flush()
            os.fsync(log.fileno())
            self.state.log_bytes = log.tell()
        folder, engine = self.folder / "checkpoints", self.engine
        extra = asdict(self.state)
        checkpoint.save(folder, step, {"weights": engine}, engine.states, extra, key=self.key, write=engine.first)
        engine.wait()  # nobody goes on, or ends, before it is there

    def _resume(self, path: Path | None) -> int:
        """Steps done; the log is cut back to what it was then."""
        step = 0
        if path is not None:
            step, extra = checkpoint.load_modules(path, {}, key=self.key)
            checkpoint.load_states(path, self.engine.states)
            self.state = State(**extra)
        if self.engine.first:
            with (self.folder / "log.jsonl").open("ab") as log:
                if log.tell() < self.state.log_bytes:
                    raise TrainingError(
                        "Lines of the log are gone that the checkpoint was saved with",
                        where=str(self.folder / "log.jsonl"),
                        cure="restore the file, or delete the folder of checkpoints to start this training anew",
                    )
                log.truncate(self.state.log_bytes)
        self.engine.wait()
        return step

    def _log(self) -> BinaryIO:
        return (self.folder / "log.jsonl").open("ab") if self.engine.first else open(os.devnull, "ab")

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Signals are remembered until the end of the step; the handlers of before are there again after the first one."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before: dict[int, Any] = {}

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)
            before.clear()

        def remember(number: int, frame: Any) -> None:
            self._interrupted = True
            if number == signal.SIGINT:  # a second Ctrl-C is meant
                restore()

        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                before[number] = signal.signal(number, remember)
            yield
        finally:
            restore()


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


# ── inside ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _write(log: BinaryIO, row: Mapping[str, Any]) -> None:
    log.write(json.dumps(row).encode() + b"\n")


def _memory_mib(device: torch.device) -> float:
    """Most memory in use so far: the device's, or this process's."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device)) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 1024)


def _is_lost(error: RuntimeError) -> bool:
    """Whether an error means that another process is gone."""
    text = str(error)
    return isinstance(error, torch.distributed.DistError) or any(
        sign in text for sign in ("Connection closed by peer", "Connection reset by peer", "gloo", "NCCL", "Broken pipe")
    )
