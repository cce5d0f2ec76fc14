"""Stage 6: tune a policy against reward models with APA, PPO, P3O or RLOO.

    prompts → replies (rollout) → scores (rewards) → reward (shaping) → log-probs, values, advantages (experience)
            → epochs × minibatches optimiser steps (objective, update)

Sources: arXiv 2306.02231 (APA), 1707.06347 (PPO), 2310.00212 (P3O), 2402.14740 (RLOO), Starling's settings. Departures from
Starling's code are told where they are made: `rollout`, `shaping`, `experience`, `update`, `losses.policy`. Here: the critic
learns alone for some iterations, in a phase with an engine of its own, before the policy moves.

Everything drawn depends on (seed, iteration) only, and what changes is in the checkpoints of iterations and in the buffers of
sampled replies between them: a tuning that is killed at any moment goes on to the same weights and the same log, bit for bit.

`work` holds, while a tuning goes on:

    checkpoints/     training.checkpoint; the newest two
    rollouts/        replies and scores of the iterations since
    best/            weights of the evaluation that the rule of `policy.selection` would keep now
    base_replies.json  what the base says to the prompts that the judge sees
    log.jsonl        one line per iteration (`metrics`); speed.jsonl beside it differs from run to run
    non_finite.json  the replies of a step that was refused

`out` is written once, at the end, by the first process: the model, log.jsonl, selection.json, best_of_n.json.

SIGTERM and SIGINT finish what is going on, the sampling or the update of an iteration, save it and then interrupt.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from starling.config import AdaptiveKL, PolicySection, ServerEngine
from starling.errors import InputError
from starling.lineage import GUARD_FOLDER, SPEED, without
from starling.losses.policy import next_kl_coefficient
from starling.models.encode import Encoder
from starling.policy import buffer
from starling.policy.best_of_n import BEST_OF_N_FILE
from starling.policy.checks import Check, checks_of
from starling.policy.evaluation import Evaluation, Monitor, fixed_prompts
from starling.policy.experience import Packing, make_experience, measure
from starling.policy.guard import Guard
from starling.policy.judged import Judge
from starling.policy.learner import Learner
from starling.policy.models import Models
from starling.policy.rewards import RewardModel
from starling.policy.rollout import LocalRollouts, Rollout, RolloutEngine, choose_prompts, sample_rollouts
from starling.policy.selection import SELECTION_FILE, Choice, choose
from starling.policy.selection import require as require_rule
from starling.policy.shaping import Shaping
from starling.policy.update import Updates
from starling.progress import SILENT, Progress
from starling.records import Prompt, content_hash
from starling.training.interrupt import Interrupt
from starling.training.logbook import LOG_FILE, Logbook, memory_mib
from starling.training.loop import load_whole, make_accelerator, set_determinism
from starling.training.step import among_others
from starling.training.trackers import open_trackers, require

ROLLOUTS_FOLDER = "rollouts"
BASE_REPLIES_FILE = "base_replies.json"

Scored = tuple[list[Rollout], npt.NDArray[np.float64]]


def train(
    prompts: Sequence[Prompt],
    validation: Sequence[Prompt],
    *,
    base: Path,
    reward: Path,
    out: Path,
    work: Path,
    settings: PolicySection,
    seed: int,
    progress: Progress = SILENT,
    monitor: Monitor | None = None,
    judge: Judge | None = None,
    tracking: Path | None = None,
) -> dict[str, float]:
    """Tune the model in `base` against the reward model in `reward`; write the tuned folder and log.jsonl to `out`.

    Started with several processes, all call this with the same arguments and see the same `work`; the first one writes.

    Args:
        prompts: what the policy is trained on.
        validation: what the curve in the log is measured on; nothing is trained on it.
        base, reward: folders of the language model and of the reward model.
        out: receives the tuned model; log.jsonl has one line per iteration.
        work: checkpoints and buffers; a killed run goes on from the newest. The caller removes it after success.
        settings: algorithm and numbers.
        seed: fixes prompts, samples and updates.
        monitor: adds numbers to each evaluation, e.g. the microworld's gold score.
        judge: who compares with the base at every evaluation, with policy.selection.judge_prompts.
        tracking: folder of the trackers' files; beside `out` if None.

    Returns:
        The numbers of the kept weights' evaluation, and counts.

    Raises:
        InputError: no prompts, or the reward model cannot start a critic or has no statistics.
        ConfigError: the settings do not go with the models, or with the way the processes were started.
        UsageError: a tracker is not installed.
        TrainingError: a loss or gradient is not finite (the replies are in work/non_finite.json), or memory ran out.
        KeyboardInterrupt: SIGTERM or SIGINT, after everything was saved.
    """
    if not prompts:
        raise InputError("There are no prompts to tune the policy on", where="policy stage", cure="check the prompts stage")
    require(settings.trackers, "policy.trackers")
    set_determinism(seed)
    tuning = _Tuning(prompts, validation, base, reward, work, settings, seed, monitor, judge)
    shown = open_trackers(settings.trackers, tracking or out.parent / "tracking", "policy", tuning.chosen) if tuning.first else []
    with Logbook(work, tuning.first, tuning.learner.state.log_bytes, shown) as log, tuning.interrupt:
        evaluations = tuning.run(log, progress if tuning.first else SILENT)
        log.saved()
    choice = choose(evaluations, settings.selection, tuning.learner.state.untrained) if evaluations else None
    tuning.write(out, choice)
    kept = next((row for row in evaluations if choice is not None and row["iteration"] == choice.iteration), {})
    return {
        "prompts/too_long": float(tuning.too_long),
        "iterations": float(tuning.learner.state.iteration),
        **{k.removeprefix("eval/"): v for k, v in kept.items() if k.startswith("eval/")},
    }


def _fitting(prompts: Sequence[Prompt], encoder: Encoder, settings: PolicySection) -> list[Prompt]:
    """The prompts that leave room for a whole reply.

    Raises:
        InputError: there were prompts and none fits.
    """
    room = encoder.max_length - settings.sampling.max_tokens
    kept = [p for p in prompts if len(encoder.prompt_ids(p.messages)) <= room]
    if prompts and not kept:
        raise InputError(
            f"No prompt leaves room for a reply: the models hold {encoder.max_length} tokens",
            where=f"policy.sampling.max_tokens = {settings.sampling.max_tokens}",
            cure="lower it, or use models with more positions",
        )
    return kept


def _fitting_checks(settings: PolicySection, encoder: Encoder) -> list[Check]:
    """The user's checks.

    Raises:
        InputError: one cannot be read, or leaves no room for a reply.
    """
    checks = checks_of(settings.selection)
    for number, check in enumerate(checks, start=1):
        if len(encoder.prompt_ids(check.messages)) + settings.sampling.max_tokens > encoder.max_length:
            raise InputError(
                f"A check leaves no room for a reply: the models hold {encoder.max_length} tokens",
                where=f"{settings.selection.checks}, check {number}",
                cure="shorten it, or lower policy.sampling.max_tokens",
            )
    return checks


def _sampler(settings: PolicySection, encoder: Encoder, first: bool) -> RolloutEngine:
    """Who samples, by the settings."""
    if isinstance(settings.engine, ServerEngine):
        from starling.policy.servers import ServerRollouts

        return ServerRollouts(settings.engine, encoder, first=first)
    return LocalRollouts(encoder, settings.sample_batch)


class _Tuning:
    """The parts of a tuning, and the flow of its iterations."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        validation: Sequence[Prompt],
        base: Path,
        reward: Path,
        work: Path,
        settings: PolicySection,
        seed: int,
        monitor: Monitor | None,
        judge: Judge | None = None,
    ) -> None:
        self.settings, self.seed, self.work = settings, seed, work
        accelerator = make_accelerator(settings.precision)
        load_whole(accelerator)
        folders = [reward, *map(Path, settings.shaping.models)]
        models = Models(base, reward, settings, seed)
        self.proxies = [RewardModel(folder, accelerator.device) for folder in folders]
        self.shaping = Shaping(settings.shaping, [m.statistics for m in self.proxies], [m.name for m in self.proxies])
        self.encoder = models.encoder
        self.prompts = _fitting(prompts, self.encoder, settings)
        self.too_long = len(prompts) - len(self.prompts)
        watched = fixed_prompts(_fitting(validation, self.encoder, settings), settings.eval_prompts)
        # where files lie and how fast a result comes does not change the weights
        self.chosen = without(settings.model_dump(mode="json", exclude={"base"}), SPEED["policy"])
        key = content_hash([self.chosen, seed, [p.id for p in self.prompts], [p.id for p in watched]])
        work.mkdir(parents=True, exist_ok=True)
        self.learner = Learner(models, accelerator, settings, work, key)
        if self.learner.state.shaping:
            self.shaping.restore(self.learner.state.shaping)
        self.first = self.learner.engine.first
        found = settings.guard.model or (reward / GUARD_FOLDER if (reward / GUARD_FOLDER).is_dir() else None)
        guard = RewardModel(Path(found), accelerator.device) if found is not None else None
        self.guard = Guard(settings.guard, guard.statistics.get("std", 1.0) if guard else 1.0)
        self.sampler = _sampler(settings, self.encoder, self.first)
        self.loaded: int | None = None
        """Iterations after which the weights were those that the sampler has."""
        layout = self._layouts([*self.proxies, *([guard] if guard else [])])
        self.packing = Packing(self.encoder.pad_id, layout, settings.samples_per_prompt)
        self.updates = Updates(settings, self.packing, seed, work, self.learner.state.micro_tokens)
        self.evaluation = Evaluation(
            prompts=watched,
            checks=_fitting_checks(settings, self.encoder),
            encoder=self.encoder,
            settings=settings,
            proxy=self.proxies[0],
            guard=guard,
            reference=self.learner.reference,
            packing=Packing(self.encoder.pad_id, "sequences", 1),
            monitor=monitor,
            judge=judge if settings.selection.judge_prompts else None,
            base_replies=work / BASE_REPLIES_FILE,
            seed=seed,
        )
        self.interrupt = Interrupt()
        self.seconds: dict[str, float] = {}

    def _layouts(self, rewards: Sequence[RewardModel]) -> Any:
        """Find how replies go through the actor and, set in them, through the reward models; by trials on one prompt."""
        settings, engine = self.settings, self.learner.engine
        alone = settings.samples_per_prompt == 1 and settings.layout == "auto"  # nothing is shared
        for model in rewards:
            model.choose(self.prompts[0], "sequences" if alone else settings.layout, engine)
        messages = self.prompts[0].messages
        return self.learner.layout([self.encoder.completion(messages, text) for text in ("a", "a b")])

    # ── the loop ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def run(self, log: Logbook, progress: Progress) -> list[dict[str, Any]]:
        """All iterations that are not done yet; returns the rows of the evaluations, on the first process those of before too."""
        settings, learner = self.settings, self.learner
        state = learner.state
        engine = learner.engine
        kind = f" · {engine.ranks} processes ({engine.kind})" if engine.ranks > 1 else ""
        progress.start(f"tuning the policy ({settings.algorithm.type}){kind}", settings.iterations)
        progress.advance(state.iteration)
        engine.wait()
        self.evaluations = [row for row in engine.told(log.rows()) if any(name.startswith("eval/") for name in row)]
        if learner.saved is None:
            self._base(log)
        while state.iteration < settings.iterations and not state.stopped:
            with among_others(learner.engine, f"iteration {state.iteration + 1}"):
                note = self._iterate(log)
            progress.advance(1, note=note)
        progress.finish()
        return self.evaluations

    def _base(self, log: Logbook) -> None:
        """The evaluation before anything is tuned, and the curve of best-of-n that the tuning is compared with."""
        self.seconds = {}
        with self._timed("evaluation"):
            self._load()
            found = self.evaluation.run(self.sampler, self.learner.engine, self.updates.micro_tokens)
            self.evaluation.best_of_n(self.sampler, self.learner.engine, self.updates.micro_tokens, self.work)
        row = {"iteration": 0, **found}
        if found:
            require_rule(row, self.settings.selection)
            self.evaluations.append(row)
        log.write(row)
        log.show({k: v for k, v in found.items() if isinstance(v, float)}, 0)

    def _iterate(self, log: Logbook) -> str:
        """One iteration and whatever is due after it; returns a note for the progress."""
        state, settings = self.learner.state, self.settings
        iteration = state.iteration + 1
        self.seconds = {}
        rollouts, scores_MB = self._scored(iteration)
        if self._asked():  # what was sampled is on the disk
            self._save(log)
            raise KeyboardInterrupt
        shaped = self.shaping.shape(
            scores_MB, [r.finished for r in rollouts], [len(r.ids) for r in rollouts], [r.ids for r in rollouts]
        )
        row: dict[str, Any] = {"iteration": iteration, **shaped.metrics}
        row |= self._learn(rollouts, torch.from_numpy(shaped.reward_B), iteration)
        state.iteration = iteration
        self._after(row)
        last = iteration == settings.iterations
        if iteration % settings.eval_every == 0 or last:
            self._evaluate(row)
        log.write(row)
        log.show({k: float(v) for k, v in row.items() if isinstance(v, float)} | self._speed(log, rollouts), iteration)
        stop = self._asked()
        if stop or last or state.stopped or iteration % settings.checkpoint_every == 0:
            self._save(log)
        if stop:
            raise KeyboardInterrupt
        return f"reward {row['reward']:.2f}, KL {row['kl_reply']:.2f}"

    def _scored(self, iteration: int) -> Scored:
        """The iteration's replies and their scores [M, B]: from the buffer of a run that was killed, or drawn."""
        settings, engine = self.settings, self.learner.engine
        samples, folder = settings.samples_per_prompt, self.work / ROLLOUTS_FOLDER
        chosen = choose_prompts(self.prompts, settings.rollouts // samples, iteration - 1, self.seed)
        found = buffer.load(folder, iteration, chosen, self.encoder, settings.sampling, samples) if self.first else None
        kept: Scored | None = engine.told(found)
        if kept is not None:
            return kept
        with self._timed("sampling"):
            self._load()
            rollouts = sample_rollouts(
                self.sampler, engine, self.encoder, chosen, settings.sampling,
                samples=samples, stream=f"iteration {iteration}", seed=self.seed,
            )  # fmt: skip
        with self._timed("scoring"):
            scores_MB = np.stack([m.score(rollouts, samples, engine, self.updates.micro_tokens) for m in self.proxies])
        if self.first:
            buffer.save(folder, iteration, rollouts, scores_MB)
        return rollouts, scores_MB

    def _learn(self, rollouts: list[Rollout], rewards_B: torch.Tensor, iteration: int) -> dict[str, float]:
        """Experience and update."""
        learner, settings = self.learner, self.settings
        engine, state = learner.engine, learner.state
        with self._timed("experience"):
            measured = measure(
                engine, learner.reference, [r.encoded for r in rollouts], self.packing, budget=self.updates.micro_tokens,
                temperature=settings.sampling.temperature, values=self.updates.objective.has_critic,
            )  # fmt: skip
            experience, metrics = make_experience(rollouts, rewards_B, measured, self.packing, settings, state.kl)
        with self._timed("update"):
            policy = state.phase == "actor"
            metrics |= self.updates.run(engine, experience, rollouts, iteration=iteration, kl=state.kl, policy=policy)
        return metrics

    def _after(self, row: dict[str, Any]) -> None:
        """What changes between iterations: the KL coefficient, the phase."""
        state, settings = self.learner.state, self.settings
        state.shaping, state.micro_tokens = self.shaping.state, self.updates.micro_tokens
        if state.phase == "critic":
            if self._pretrained(row) and state.iteration < settings.iterations:
                self.learner.move_on()
        elif isinstance(settings.kl, AdaptiveKL):
            kl = settings.kl
            state.kl = next_kl_coefficient(state.kl, row["kl_reply"], settings.rollouts, target=kl.target, horizon=kl.horizon)

    def _pretrained(self, row: dict[str, Any]) -> bool:
        """Whether the critic has learnt alone for long enough."""
        critic = self.settings.critic
        explained, loss = critic.pretrain_explained_variance, critic.pretrain_value_loss
        return (
            self.learner.state.iteration >= critic.pretrain
            or (explained is not None and row["explained_variance"] >= explained)
            or (loss is not None and row["value_loss"] <= loss)
        )

    def _evaluate(self, row: dict[str, Any]) -> None:
        """Numbers on validation into the row, the guard's verdict, and the weights put aside if the rule would keep them."""
        learner, state = self.learner, self.learner.state
        with self._timed("evaluation"):
            self._load()
            found = self.evaluation.run(self.sampler, learner.engine, self.updates.micro_tokens)
        if not found:
            return
        row |= found
        self.evaluations.append(row)
        verdict = self.guard.look(self.evaluations)
        row |= verdict.row()
        if verdict.fired and self.settings.guard.action == "stop":
            state.stopped = verdict.why
        choice = choose(self.evaluations, self.settings.selection, state.untrained)
        if choice.outcome == "chosen" and choice.iteration == state.iteration:
            learner.keep()

    # ── around it ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _load(self) -> None:
        """Give the sampler the present weights, unless it has them."""
        version = self.learner.state.iteration
        if self.loaded != version:
            self.sampler.load(self.learner.whole.policy(self.learner.models, self.learner.engine), version)
            self.loaded = version

    def _asked(self) -> bool:
        """Whether any process was asked to stop."""
        engine = self.learner.engine
        return bool(engine.largest(torch.tensor(self.interrupt.asked, device=engine.device).int()))

    def _save(self, log: Logbook) -> None:
        """A checkpoint of the iterations done, unless it is there; buffers that it makes needless go."""
        if self.learner.saved != self.learner.state.iteration:
            self.learner.save(log.saved())
            if self.first:
                buffer.drop(self.work / ROLLOUTS_FOLDER, self.learner.state.iteration)

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.seconds[what] = self.seconds.get(what, 0.0) + time.monotonic() - began

    def _speed(self, log: Logbook, rollouts: Sequence[Rollout]) -> dict[str, float]:
        """`metrics.SPEED_METRICS` of the iteration, written into the speed file."""
        parts = ("sampling", "scoring", "experience", "update", "evaluation")
        sampled = sum(len(r.ids) for r in rollouts)
        speed = {
            **{f"{part}_seconds": self.seconds.get(part, 0.0) for part in parts},
            "sampled_tokens_per_second": sampled / self.seconds["sampling"] if self.seconds.get("sampling") else 0.0,
            "tokens_per_second": self.updates.tokens / max(self.seconds["update"], 1e-9),
            "memory_mib": memory_mib(self.learner.engine.device),
        }
        log.speed({"iteration": self.learner.state.iteration, **speed})
        return speed

    def write(self, out: Path, choice: Choice | None) -> None:
        """Write the artifact's files; all processes together, which need each other no more afterwards."""
        state = self.learner.state
        self.learner.write(out, state.iteration if choice is None else choice.iteration)
        if self.first:
            shutil.copyfile(self.work / LOG_FILE, out / LOG_FILE)
            if choice is not None:
                (out / SELECTION_FILE).write_text(json.dumps(choice.record(), indent=1, sort_keys=True) + "\n", encoding="utf-8")
            if (self.work / BEST_OF_N_FILE).exists():
                shutil.copyfile(self.work / BEST_OF_N_FILE, out / BEST_OF_N_FILE)
        self.learner.engine.part()
