"""Stage 6: tune a policy against a reward model with APA or PPO.

One iteration: sample replies, score them, estimate advantages with the critic, then `epochs` passes of `minibatches`
updates each. Sources: arXiv 2306.02231 (APA), arXiv 1707.06347 (PPO), Starling's settings (defaults in `config/training.py`).
How we depart from Starling's code: the critic is a model of its own that starts from the reward model (the original put
a fresh head on the policy), it is warmed up for some iterations before the policy moves (the original gated the policy
loss on the value loss), and see `rollout` for the reward's shaping.

Everything drawn depends on (seed, iteration) only, so a run that is killed goes on from its last checkpoint to the same
weights, bit for bit, as one that was not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from starling.config import APA, PPO, PolicySection
from starling.errors import InputError, TrainingError
from starling.losses.masked import LossOutputs, center_and_scale, masked_sum
from starling.losses.policy import apa, clipped_value_loss, ppo
from starling.models.encode import Encoder
from starling.models.load import load_causal, load_scalar, load_tokenizer, longest_input, save_folder
from starling.models.logprobs import token_logprobs
from starling.models.scalar_head import ScalarHead
from starling.models.score import similar_lengths
from starling.policy.rollout import Experience, Rollout, choose_prompts, make_experience, sample_rollouts, score_rollouts
from starling.progress import SILENT, Progress
from starling.records import Prompt
from starling.training import checkpoint
from starling.training.loop import make_optimizer

Monitor = Callable[[Sequence[Prompt], Sequence[str], Sequence[bool]], dict[str, float]]
"""Looks at (prompts, replies, finished) of an evaluation and returns numbers for the log; never seen by the training."""


@dataclass(frozen=True, kw_only=True)
class _Models:
    policy: Any
    reference: Any
    critic: ScalarHead
    reward: ScalarHead
    encoder: Encoder
    reward_encoder: Encoder


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
) -> dict[str, float]:
    """Tune the model in `base` against the reward model in `reward`; write the tuned folder and log.jsonl to `out`.

    Args:
        prompts: what the policy is trained on.
        validation: what the curve in the log is measured on; nothing is trained on it.
        base, reward: folders of the language model and of a reward model trained by Starling.
        out: receives the tuned model; log.jsonl has one line per iteration.
        work: checkpoints; a killed run goes on from the newest.
        settings: algorithm and numbers.
        seed: fixes prompts, samples and updates.
        monitor: adds numbers to each evaluation, e.g. the microworld's gold score.

    Returns:
        The last evaluation's numbers.

    Raises:
        InputError: no prompts, or the reward model cannot start a critic or has no statistics.
        TrainingError: a non-finite loss; the rollouts of that iteration are saved in `work`.
    """
    if not prompts:
        raise InputError("There are no prompts to tune the policy on", where="policy stage", cure="check the prompts stage")
    models = _load(base, reward)
    prompts, too_long = _fitting(prompts, models.encoder, settings)
    validation, _ = _fitting(validation, models.encoder, settings)
    tuner = _Tuner(models, settings, seed, work)
    done, log = tuner.resume()
    progress.start(f"tuning the policy ({settings.algorithm.type})", settings.iterations)
    progress.advance(done)
    if done == 0:
        log = [{"iteration": 0, **tuner.evaluate(validation, 0, monitor)}]
    for iteration in range(done + 1, settings.iterations + 1):
        row: dict[str, Any] = {
            "iteration": iteration,
            **tuner.iterate(choose_prompts(prompts, settings.rollouts, iteration - 1, seed), iteration),
        }
        if iteration % settings.eval_every == 0 or iteration == settings.iterations:
            row |= tuner.evaluate(validation, iteration, monitor)
        log.append(row)
        if iteration % settings.checkpoint_every == 0 or iteration == settings.iterations:
            tuner.save(iteration, log)
        progress.advance(1, note=f"reward {row['reward']:.2f}, KL {row['kl_reply']:.2f}")
    progress.finish()
    save_folder(out, models.policy, models.encoder.tokenizer)
    (out / "log.jsonl").write_text("".join(json.dumps(row, sort_keys=True) + "\n" for row in log), encoding="utf-8")
    return {"prompts/too_long": float(too_long)} | {
        k.removeprefix("eval/"): v for k, v in log[-1].items() if k.startswith("eval/")
    }


def _fitting(prompts: Sequence[Prompt], encoder: Encoder, settings: PolicySection) -> tuple[list[Prompt], int]:
    """The prompts that leave room for a whole reply, and how many do not.

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
    return kept, len(prompts) - len(kept)


def _load(base: Path, reward: Path) -> _Models:
    head, critic = load_scalar(reward), load_scalar(reward)
    if not head.is_decoder:
        raise InputError(
            "The critic starts from the reward model, and this one is an encoder without values per token",
            where=str(reward),
            cure="train the reward model on a decoder backbone",
        )
    if not head.statistics:
        raise InputError(
            "The reward model records no score statistics", where=str(reward), cure="train it with `starling train-reward`"
        )
    policy, tokenizer = load_causal(base), load_tokenizer(base)
    reward_tokenizer = load_tokenizer(reward)
    if tokenizer.get_vocab() != reward_tokenizer.get_vocab():
        raise InputError(
            "The reward model and the policy have different tokenizers, and the critic starts from the reward model",
            where=f"{reward} and {base}",
            cure="train the reward model on a backbone with the policy's tokenizer",
        )
    reference = load_causal(base)
    for frozen in (reference, head):
        frozen.requires_grad_(False).eval()
    limit = min(longest_input(policy) or 1 << 20, longest_input(head.model, reward_tokenizer) or 1 << 20)
    return _Models(
        policy=policy,
        reference=reference,
        critic=critic,
        reward=head,
        encoder=Encoder(tokenizer, max_length=limit),
        reward_encoder=Encoder(reward_tokenizer, max_length=limit),
    )


class _Tuner:
    """Policy and critic with their optimisers; `iterate` is one round, everything else is around it."""

    def __init__(self, models: _Models, settings: PolicySection, seed: int, work: Path) -> None:
        self.models = models
        self.settings = settings
        self.seed = seed
        self.work = work
        per_iteration = settings.epochs * settings.minibatches
        tuned = max(1, settings.iterations - settings.critic.pretrain)
        self.policy_optimizer, self.policy_schedule = make_optimizer(models.policy, settings.optimizer, tuned * per_iteration)
        critic_rules = settings.optimizer.model_copy(
            update={"learning_rate": settings.critic.learning_rate, "schedule": "constant"}
        )
        self.critic_optimizer, self.critic_schedule = make_optimizer(
            models.critic, critic_rules, settings.iterations * per_iteration
        )
        stats = models.reward.statistics
        self.reward_mean, self.reward_std = stats["mean"], max(stats["std"], 1e-6)

    # ── state ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _modules(self) -> dict[str, torch.nn.Module]:
        return {"policy": self.models.policy, "critic": self.models.critic}

    def _states(self) -> dict[str, Any]:
        return {
            "policy_optimizer": self.policy_optimizer,
            "policy_schedule": self.policy_schedule,
            "critic_optimizer": self.critic_optimizer,
            "critic_schedule": self.critic_schedule,
        }

    def resume(self) -> tuple[int, list[dict[str, Any]]]:
        """(iterations done, log so far) from the newest checkpoint, (0, []) without one."""
        newest = checkpoint.latest(self.work)
        if newest is None:
            return 0, []
        done, extra = checkpoint.load(newest, self._modules(), self._states())
        return done, list(extra["log"])

    def save(self, iteration: int, log: list[dict[str, Any]]) -> None:
        checkpoint.save(self.work, iteration, self._modules(), self._states(), {"log": log})

    # ── one iteration ────────────────────────────────────────────────────────────────────────────────────────────────

    def iterate(self, prompts: Sequence[Prompt], iteration: int) -> dict[str, float]:
        """Sample, score, update; returns the iteration's metrics."""
        rollouts = self._sample(prompts, f"iteration {iteration}", self.settings.sampling.temperature)
        scores_B = score_rollouts(self.models.reward, self.models.reward_encoder, rollouts)
        experience = make_experience(
            rollouts,
            scores_B,
            policy=self.models.policy,
            reference=self.models.reference,
            critic=self.models.critic,
            pad_id=self.models.encoder.pad_id,
            settings=self.settings,
            reward_mean=self.reward_mean,
            reward_std=self.reward_std,
        )
        if isinstance(self.settings.algorithm, APA | PPO) and self.settings.algorithm.whiten:
            experience = replace(experience, advantages_BT=center_and_scale(experience.advantages_BT, experience.mask_BT))
        update_policy = iteration > self.settings.critic.pretrain
        totals: dict[str, float] = {}
        generator = torch.Generator().manual_seed((self.seed << 20) + iteration)
        updates = self.settings.epochs * self.settings.minibatches
        for _ in range(self.settings.epochs):
            order = torch.randperm(len(rollouts), generator=generator)
            for index in order.tensor_split(self.settings.minibatches):
                for key, value in self._update(experience, index, update_policy, rollouts, iteration).items():
                    totals[key] = totals.get(key, 0.0) + value / updates
        return experience.metrics | totals

    def _sample(self, prompts: Sequence[Prompt], stream: str, temperature: float) -> list[Rollout]:
        sampling = self.settings.sampling.model_copy(update={"temperature": temperature})
        m = self.models
        return sample_rollouts(m.policy, m.encoder, prompts, sampling, self.settings.sample_batch, stream=stream, seed=self.seed)

    def _update(
        self, experience: Experience, index: Tensor, update_policy: bool, rollouts: Sequence[Rollout], iteration: int
    ) -> dict[str, float]:
        """One optimiser step of the critic and, after the warm-up, of the policy, over the rollouts in `index`.

        Rollouts of like length share a pass; losses are divided by the tokens of the whole step, so passes add up.
        """
        tokens = int(experience.mask_BT[index].sum())
        sums: dict[str, float] = {}
        for rows in similar_lengths(experience.lengths(index)):
            batch = experience.rows(index[rows])
            values_BT = self.models.critic.values(batch.padded.ids_BT, batch.padded.mask_BT)[:, :-1]
            critic = clipped_value_loss(
                values_BT,
                batch.values_BT,
                batch.returns_BT,
                batch.mask_BT,
                clip=self.settings.critic.value_clip,
                normaliser=tokens,
            )
            found = {"value_loss": float(critic.loss.detach()), **{k: float(v) for k, v in critic.metrics.items()}}
            loss = critic.loss
            if update_policy:
                outputs = self._policy_loss(batch, tokens)
                found["policy_loss"] = float(outputs.loss.detach())
                found |= {k: float(v) for k, v in outputs.metrics.items()}
                loss = loss + outputs.loss
            if not math.isfinite(float(loss.detach())):
                self._refuse(rollouts, iteration, float(loss.detach()))
            torch.autograd.backward(loss)
            for key, value in found.items():
                sums[key] = max(sums.get(key, 0.0), value) if key.endswith("_max") else sums.get(key, 0.0) + value
        self._step(self.models.critic, self.critic_optimizer, self.critic_schedule)
        if update_policy:
            self._step(self.models.policy, self.policy_optimizer, self.policy_schedule)
        return sums

    def _policy_loss(self, batch: Experience, tokens: int) -> LossOutputs:
        """The algorithm's objective, chosen by the type of its settings."""
        algorithm = self.settings.algorithm
        wants_entropy = isinstance(algorithm, PPO) and algorithm.entropy > 0
        logprobs_BT, entropy_BT = token_logprobs(self.models.policy, batch.padded, batch.mask_BT, entropy=wants_entropy)
        if isinstance(algorithm, APA):
            anchor_BT = batch.logprobs_BT if algorithm.anchor == "rollout" else batch.reference_BT
            return apa(logprobs_BT, anchor_BT, batch.advantages_BT, batch.mask_BT, lam=algorithm.lam, normaliser=tokens)
        assert isinstance(algorithm, PPO)
        outputs = ppo(logprobs_BT, batch.logprobs_BT, batch.advantages_BT, batch.mask_BT, clip=algorithm.clip, normaliser=tokens)
        if entropy_BT is None:
            return outputs
        bonus = masked_sum(entropy_BT, batch.mask_BT) / tokens
        metrics = {**outputs.metrics, "entropy": bonus.detach()}
        return LossOutputs(loss=outputs.loss - algorithm.entropy * bonus, metrics=metrics)

    def _refuse(self, rollouts: Sequence[Rollout], iteration: int, loss: float) -> None:
        """Keep what the loss was computed from, and stop."""
        saved = self.work / f"non-finite-iteration-{iteration}.jsonl"
        saved.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"prompt_id": r.prompt.id, "text": r.text, "finished": r.finished}) for r in rollouts]
        saved.write_text("\n".join(lines) + "\n", encoding="utf-8")
        raise TrainingError(
            f"The loss of iteration {iteration} is {loss}",
            where=f"policy stage; its rollouts are in {saved}",
            cure="lower policy.optimizer.learning_rate or raise policy.kl; the last checkpoint is untouched",
        )

    def _step(self, module: torch.nn.Module, optimizer: Any, schedule: Any) -> None:
        torch.nn.utils.clip_grad_norm_(module.parameters(), self.settings.optimizer.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()

    # ── the curve ────────────────────────────────────────────────────────────────────────────────────────────────────

    def evaluate(self, validation: Sequence[Prompt], iteration: int, monitor: Monitor | None) -> dict[str, float]:
        """Reward, length and the monitor's numbers on a fixed set of validation prompts, sampled as in training and greedily."""
        chosen = list(validation)[:: max(1, len(validation) // self.settings.eval_prompts)][: self.settings.eval_prompts]
        numbers: dict[str, float] = {}
        for name, temperature in (("eval", self.settings.sampling.temperature), ("eval/greedy", 0.0)):
            rows = self._sample(chosen, f"evaluation {iteration}", temperature)
            if not rows:
                continue
            scores_B = score_rollouts(self.models.reward, self.models.reward_encoder, rows)
            numbers[f"{name}/score"] = float(scores_B.mean())
            numbers[f"{name}/length"] = sum(len(r.encoded.ids) - r.encoded.prompt_length for r in rows) / len(rows)
            numbers[f"{name}/finished"] = sum(r.finished for r in rows) / len(rows)
            if monitor is not None:
                seen = monitor([r.prompt for r in rows], [r.text for r in rows], [r.finished for r in rows])
                numbers |= {f"{name}/{k}": v for k, v in seen.items()}
        return numbers
