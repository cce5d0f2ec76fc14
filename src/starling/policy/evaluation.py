"""Evaluations of a policy in tuning: always the same validation prompts and the same random numbers, so that rows compare.

Each has sampled replies, as in training, and greedy ones; the numbers are defined in `metrics.EVALUATION_METRICS`. The training
never sees any of them but through `guard.action = "stop"` and the choice of the checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from starling.config import PolicySection
from starling.models.encode import Encoder
from starling.policy.best_of_n import BEST_OF_N_FILE, write_reference
from starling.policy.checks import Check, measure_checks
from starling.policy.experience import Packing, ReferencePolicy, measure, reply_kl
from starling.policy.guard import measure as looks
from starling.policy.guard import standard_error
from starling.policy.judged import Judge
from starling.policy.rewards import RewardModel
from starling.policy.rollout import Rollout, RolloutEngine, sample_rollouts
from starling.records import Prompt
from starling.training.engine import Engine

Monitor = Callable[[Sequence[Prompt], Sequence[str], Sequence[bool]], dict[str, float]]
"""Looks at (prompts, replies, finished) of an evaluation and returns numbers for the log; never seen by the training."""


def fixed_prompts(validation: Sequence[Prompt], count: int) -> list[Prompt]:
    """At most `count` prompts, spread evenly over all."""
    return list(validation)[:: max(1, len(validation) // count)][:count]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What stays the same over evaluations."""

    prompts: Sequence[Prompt]
    encoder: Encoder
    settings: PolicySection
    proxy: RewardModel
    guard: RewardModel | None
    checks: Sequence[Check]
    reference: ReferencePolicy
    packing: Packing
    monitor: Monitor | None
    judge: Judge | None
    base_replies: Path
    """The base's greedy replies to the prompts that the judge sees: written by the first evaluation, which is the base's."""
    seed: int

    def run(self, sampler: RolloutEngine, engine: Engine, micro_tokens: int) -> dict[str, float]:
        """Numbers under eval/ and eval/greedy/; none without prompts. All processes call it, and get the same.

        Args:
            sampler: has the policy's present weights.
            engine: over the actor.
            micro_tokens: of a pass.
        """
        numbers: dict[str, float] = {}
        for name, temperature in (("eval", self.settings.sampling.temperature), ("eval/greedy", 0.0)):
            if self.prompts:
                rows = self._sample(sampler, engine, self.prompts, temperature, 1)
                found = self._numbers(rows, engine, micro_tokens)
                numbers |= {f"{name}/{key}": value for key, value in found.items()}
                if self.judge is not None and temperature == 0:
                    numbers |= engine.told(self._judged(self.judge, rows) if engine.first else {})
        if self.checks and numbers:
            replies = self._sample(sampler, engine, [check.prompt for check in self.checks], 0.0, 1)
            checked = measure_checks([r.text for r in replies], self.checks)
            numbers |= {f"eval/{key}": value for key, value in checked.items()}
        return numbers

    def _judged(self, judge: Judge, rows: Sequence[Rollout]) -> dict[str, float]:
        """The judge's view of greedy replies, compared with those of the first evaluation. One process asks."""
        count = min(self.settings.selection.judge_prompts, len(rows))
        chosen = [rows[i * len(rows) // count] for i in range(count)]  # spread evenly over all
        texts = [row.text for row in chosen]
        if not self.base_replies.exists():  # a kill leaves the whole file or none
            draft = self.base_replies.with_suffix(".new")
            draft.write_text(json.dumps(texts), encoding="utf-8")
            draft.replace(self.base_replies)
        base = json.loads(self.base_replies.read_text(encoding="utf-8"))
        return {f"eval/{name}": value for name, value in judge.compare([r.prompt for r in chosen], base, texts).items()}

    def best_of_n(self, sampler: RolloutEngine, engine: Engine, micro_tokens: int, folder: Path) -> None:
        """Write the reference curve of best-of-n sampling into `folder`, unless it is there; the policy must be the base."""
        count = self.settings.guard.best_of
        if not count or not self.prompts or engine.told((folder / BEST_OF_N_FILE).exists()):
            return
        rows = self._sample(sampler, engine, self.prompts, self.settings.sampling.temperature, count)
        shape = (len(self.prompts), count)
        scores = self.proxy.score(rows, count, engine, micro_tokens).reshape(shape)
        others = {}
        if self.guard is not None:
            others["guard"] = self.guard.score(rows, count, engine, micro_tokens).reshape(shape)
        if self.monitor is not None:
            seen = [self.monitor([r.prompt], [r.text], [r.finished]) for r in rows]
            others |= {name: np.array([one[name] for one in seen]).reshape(shape) for name in seen[0]}
        if engine.first:  # a kill leaves the whole file or none
            draft = folder / ".best-of-n"
            write_reference(draft, self.settings.guard, lambda n: (scores, others))
            (draft / BEST_OF_N_FILE).replace(folder / BEST_OF_N_FILE)
            draft.rmdir()
        engine.wait()

    def _sample(
        self, sampler: RolloutEngine, engine: Engine, prompts: Sequence[Prompt], temperature: float, samples: int
    ) -> list[Rollout]:
        sampling = self.settings.sampling.model_copy(update={"temperature": temperature})
        return sample_rollouts(
            sampler, engine, self.encoder, prompts, sampling, samples=samples, stream="evaluation", seed=self.seed
        )

    def _numbers(self, rows: Sequence[Rollout], engine: Engine, micro_tokens: int) -> dict[str, float]:
        clusters = [r.prompt.id for r in rows]
        prompts, texts, finished = [r.prompt for r in rows], [r.text for r in rows], [r.finished for r in rows]
        found: dict[str, float] = {}
        for name, model in (("score", self.proxy), ("guard", self.guard)):
            if model is not None:
                scores = model.score(rows, 1, engine, micro_tokens).tolist()
                found[name] = float(np.mean(scores))
                error = standard_error(scores, clusters)
                found |= {f"{name}_se": error} if error is not None else {}
        measured = measure(
            engine, self.reference, [r.encoded for r in rows], self.packing,
            budget=micro_tokens, temperature=self.settings.sampling.temperature, values=False,
        )  # fmt: skip
        found["kl"] = float(reply_kl(measured).mean())
        found["length"] = sum(len(r.ids) for r in rows) / len(rows)
        found |= looks(prompts, texts, [r.ids for r in rows], finished)
        monitored: Mapping[str, float] = self.monitor(prompts, texts, finished) if self.monitor is not None else {}
        return found | dict(monitored)
