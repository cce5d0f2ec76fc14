"""One iteration's optimiser steps: `epochs` passes of `minibatches` steps over its experience.

A step's items are prompts with all their replies (P3O and RLOO compare those, and they share tokens in a pass); a step is cut
into micro-batches of `micro_tokens` and dealt over processes by `training.plan.deal`. Neither changes its result.

Source of the gate: Starling's code, in which a step whose value loss is above 1 trains the value function alone. Departure: the
value loss is that of the whole step, by a pass without gradient before it; the original looked at each micro-batch of each GPU,
so that which of them trained the policy depended on the split.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch

from starling.config import PolicySection
from starling.errors import TrainingError
from starling.models.actor import Outputs
from starling.policy.experience import Experience, Packing
from starling.policy.objective import Counts, Objective
from starling.policy.rollout import Rollout
from starling.records import content_hash
from starling.training.engine import Engine
from starling.training.step import Batches, OutOfMemory, accumulate, agreed, refuse

log = logging.getLogger(__name__)


def steps_of(groups: int, minibatches: int, epochs: int, seed: int, iteration: int) -> list[list[int]]:
    """Groups of every optimiser step of an iteration; each once per epoch, in an order drawn from (seed, iteration, epoch)."""
    found: list[list[int]] = []
    for epoch in range(epochs):
        order = np.random.Generator(np.random.PCG64([seed, iteration, epoch])).permutation(groups)
        found += [part.tolist() for part in np.array_split(order, minibatches)]
    return found


class Updates:
    """Goes through the steps of an iteration; holds what stays the same over iterations.

    Args:
        settings: of the stage.
        packing: how replies go through the models.
        seed: of the order of minibatches, and of adapters' dropout.
        folder: of the work in progress.
        micro_tokens: of a micro-batch; lowered when the memory of a device runs out.
    """

    def __init__(self, settings: PolicySection, packing: Packing, seed: int, folder: Path, micro_tokens: int) -> None:
        self.settings, self.packing, self.seed, self.folder = settings, packing, seed, folder
        self.objective = Objective(settings)
        self.micro_tokens = micro_tokens
        self.tokens = 0
        """Tokens that went through the update of the last `run`, every pass over them counted."""

    def run(
        self,
        engine: Engine,
        experience: Experience,
        rollouts: Sequence[Rollout],
        *,
        iteration: int,
        kl: float,
        policy: bool,
    ) -> dict[str, float]:
        """All steps of an iteration; returns `metrics.UPDATE_METRICS`, the same on all processes.

        Args:
            engine: over the actor, with what is trained now.
            experience: of `rollouts`.
            iteration: counted from 1.
            kl: coefficient of the KL penalty.
            policy: whether the policy learns, or the critic alone.

        Raises:
            TrainingError: a loss or gradient is not finite (the replies are in non_finite.json), or a single prompt's replies
                do not fit into memory.
        """
        costs = self.packing.costs(experience.encoded)
        names = self.objective.metrics(policy)
        step = _Step(self, engine, experience, rollouts, costs, names, kl, iteration)
        rows: list[torch.Tensor] = []
        once: list[dict[str, float]] = []
        groups = steps_of(len(costs), self.settings.minibatches, self.settings.epochs, self.seed, iteration)
        self.tokens = sum(costs) * self.settings.epochs
        reduced = False
        for number, items in enumerate(groups, start=1):
            is_open = policy and not self._gated(step, items)
            # of adapters' dropout; nothing else draws
            torch.manual_seed(int(content_hash([self.seed, iteration, number, engine.rank], 15), 16))
            engine.module.train()
            while True:
                try:
                    rows.append(step.take(items, number, is_open, policy))
                    break
                except OutOfMemory as error:
                    self._halve(items, costs, engine, error)
                    reduced = True
            gated = {"gated": float(not is_open)} if policy and self.settings.critic.gate is not None else {}
            once.append({"open": float(is_open), **gated, **_once(engine, policy)})
        found = _means(engine, names, rows, once)
        return found | ({"micro_tokens": float(self.micro_tokens)} if reduced else {})

    def _gated(self, step: _Step, items: Sequence[int]) -> bool:
        """Whether the value loss of a step, before it, is too large for the policy to learn from the advantages."""
        gate = self.settings.critic.gate
        return gate is not None and self.objective.has_critic and step.value_loss(items) > gate

    def _halve(self, items: Sequence[int], costs: Sequence[int], engine: Engine, error: OutOfMemory) -> None:
        """A smaller budget with which the step is cut into more micro-batches.

        Raises:
            TrainingError: every micro-batch is one prompt's replies already.
        """
        samples = self.packing.samples
        mine = [index[::samples] for index in self.packing.deal(items, costs, self.micro_tokens, engine)]
        dearest = [max((sum(costs[i // samples] for i in groups) for groups in mine), default=0), max(map(len, mine))]
        tokens, most = engine.largest(torch.tensor(dearest, device=engine.device)).tolist()
        if most <= 1:
            raise TrainingError(
                f"The memory of the device does not hold one prompt's replies ({max(costs[i] for i in items)} tokens)",
                where="policy stage, a micro-batch of its update",
                cure="lower policy.sampling.max_tokens or policy.samples_per_prompt, set policy.gradient_checkpointing = "
                '"on", or train less with policy.trained',
            ) from error
        old = self.micro_tokens
        self.micro_tokens = max(1, min(old, tokens) // 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if engine.first:
            log.warning(
                "the memory of the device ran out with policy.micro_tokens = %d; the step is tried again, and the training goes "
                "on, with %d (no result changes)",
                old,
                self.micro_tokens,
            )


class _Step:
    """One optimiser step of an iteration."""

    def __init__(
        self,
        updates: Updates,
        engine: Engine,
        experience: Experience,
        rollouts: Sequence[Rollout],
        costs: Sequence[int],
        names: tuple[str, ...],
        kl: float,
        iteration: int,
    ) -> None:
        self.updates, self.engine, self.experience, self.rollouts = updates, engine, experience, rollouts
        self.costs, self.names, self.kl, self.iteration = costs, names, kl, iteration

    def take(self, items: Sequence[int], number: int, is_open: bool, policy: bool) -> torch.Tensor:
        """Update by the step's gradient; returns this process's share of the numbers, maxima as they are.

        `is_open`: the policy learns; `policy`: it is part of the passes all the same, because DDP waits for its gradients.
        """
        engine, objective, packing = self.engine, self.updates.objective, self.updates.packing
        batches = packing.deal(items, self.costs, self.updates.micro_tokens, engine)
        counts = Counts.of(self.experience.rows(self._replies(items)))
        largest = {name: 0.0 for name in self.names if name.endswith("_max")}

        def loss_of(index: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
            batch = self.experience.rows(index)
            outputs = self._pass(index, policy)
            found = objective.loss(outputs, batch, counts, self.kl, policy=is_open)
            for name in largest:
                if name in found.metrics:
                    largest[name] = max(largest[name], float(found.metrics[name]))
            loss = found.loss + (0.0 * _sum(outputs) if policy and not is_open else 0.0)
            zero = torch.zeros((), device=engine.device)
            shares = [zero if name in largest else found.metrics.get(name, zero) for name in self.names]
            return loss, torch.stack([share.float() for share in shares])

        def one_pass() -> torch.Tensor:
            return _sum(self._pass(range(packing.samples), policy))

        def agree(batches: Batches, losses: list[torch.Tensor], full: bool) -> None:
            _, bad, _ = agreed(engine, losses, full, False)
            if bad:
                where = [i for i, loss in enumerate(losses) if not bool(loss.isfinite())]
                values = engine.gathered([float(losses[i]) for i in where])
                self._refuse([i for at in where for i in batches[at]], number, f"The loss is {values[0]}")

        sums = accumulate(engine, batches, loss_of, one_pass, 1 + len(self.names), agree)
        shared = objective.settings.critic.trunk == "shared"
        try:
            engine.update(without=[""] if policy and not is_open and not shared else [])
        except TrainingError as error:
            self._refuse(self._replies(items), number, error.what)
        return torch.cat([sums[1:].double(), torch.tensor(list(largest.values()), device=sums.device, dtype=torch.float64)])

    @torch.no_grad()
    def value_loss(self, items: Sequence[int]) -> float:
        """Of the whole step, by a pass without gradient."""
        engine, packing = self.engine, self.updates.packing
        engine.module.eval()
        counts = Counts.of(self.experience.rows(self._replies(items)))
        total = torch.zeros((), device=engine.device)
        for index in packing.deal(items, self.costs, self.updates.micro_tokens, engine):
            if index or engine.spread:
                outputs = self._values(index or range(packing.samples))
                if index:
                    total += self.updates.objective.value_loss(outputs, self.experience.rows(index), counts).loss
        return float(engine.total(total))

    def _pass(self, index: Sequence[int], policy: bool) -> Outputs:
        replies = self.updates.packing.lay_out([self.experience.encoded[i] for i in index], self.engine.device)
        outputs: Outputs = self.engine.model(
            replies,
            temperature=self.updates.settings.sampling.temperature,
            logprobs=policy,
            entropy=policy and self.updates.objective.wants_entropy,
            values=self.updates.objective.has_critic,
        )
        return outputs

    def _values(self, index: Sequence[int]) -> Outputs:
        replies = self.updates.packing.lay_out([self.experience.encoded[i] for i in index], self.engine.device)
        outputs: Outputs = self.engine.model(replies, logprobs=False, values=True)
        return outputs

    def _replies(self, items: Sequence[int]) -> list[int]:
        return [i * self.updates.packing.samples + k for i in items for k in range(self.updates.packing.samples)]

    def _refuse(self, index: Sequence[int], number: int, what: str) -> NoReturn:
        """Keep what the loss was computed from, name its prompts, and stop; all processes together."""
        rows = [
            {
                "prompt_id": self.rollouts[i].prompt.id,
                "ids": list(self.rollouts[i].encoded.ids),
                "text": self.rollouts[i].text,
                "finished": self.rollouts[i].finished,
                "reward": float(self.experience.rewards_B[i]),
            }
            for i in index
        ]
        gathered = self.engine.gathered(rows)
        kept = list({(row["prompt_id"], *row["ids"]): row for row in gathered}.values())  # all name all if it is the gradient
        names = list(dict.fromkeys(row["prompt_id"] for row in rows))
        where = f"iteration {self.iteration}, step {number}; prompts {', '.join(str(name) for name in names[:4])}"
        refuse(
            self.engine, self.updates.folder, [str(name) for name in names], what, where,
            {"iteration": self.iteration, "step": number, "rollouts": kept},
        )  # fmt: skip


def _sum(outputs: Outputs) -> torch.Tensor:
    """A number that depends on all that was computed."""
    parts = [part.sum() for part in (outputs.logprobs_BR, outputs.entropy_BR, outputs.values_BR) if part is not None]
    return torch.stack(parts).sum()


def _once(engine: Engine, policy: bool) -> dict[str, float]:
    """What is the same on all processes: norms and rates of the last step."""
    norms = dict(engine.norms)
    rates = dict(engine.rates)
    found = {"learning_rate": rates.get("", 0.0), "grad_norm": norms.get("", 0.0)} if policy else {}
    critic = "critic" if policy else ""
    if critic in rates:
        found |= {"critic_learning_rate": rates[critic], "critic_grad_norm": norms.get(critic, 0.0)}
    return found


def _means(engine: Engine, names: tuple[str, ...], rows: list[torch.Tensor], once: list[dict[str, float]]) -> dict[str, float]:
    """Over the steps, those of the policy over the steps that trained it; maxima are the largest of all."""
    at_most = [name for name in names if name.endswith("_max")]
    table = torch.stack(rows)
    sums = engine.total(table[:, : len(names)]).cpu()
    largest = engine.largest(table[:, len(names) :].amax(0)).cpu() if at_most else torch.zeros(0)
    steps, opened = len(rows), sum(row["open"] for row in once)
    found: dict[str, float] = {}
    for i, name in enumerate(names):
        if name not in at_most:
            count = steps if name.startswith("value_") else opened
            found[name] = float(sums[:, i].sum()) / max(count, 1.0)
    found |= {name: float(value) for name, value in zip(at_most, largest.tolist(), strict=True)}
    for name in ("grad_norm", "critic_grad_norm"):
        if name in once[0]:
            found[name] = sum(row[name] for row in once) / steps
    found |= {name: once[-1][name] for name in ("learning_rate", "critic_learning_rate") if name in once[-1]}
    return found | ({"gated": sum(row["gated"] for row in once) / steps} if "gated" in once[0] else {})
