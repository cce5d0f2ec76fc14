"""Settings of what comes after training: evaluation and publishing."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from starling.config.base import Section
from starling.config.benchmarks import (
    AlpacaEvalSection,
    ArenaHardSection,
    HeadToHeadSection,
    MTBenchSection,
    SafetySection,
)

# ── stage 7 and after ────────────────────────────────────────────────────────────────────────────────────────────────


class EvaluateSection(Section):
    split: Literal["validation", "test"] = Field(
        default="test", description="validation while settings are chosen; test for what is reported."
    )
    samples: int = Field(default=3, gt=0, description="Sampled replies per prompt for gold score and head to head (plus greedy).")
    judge_prompts: int = Field(default=200, gt=0, description="Prompts in the judge's head to head, both orders each.")
    bootstrap: int = Field(default=2000, ge=100, description="Resamples behind each interval, clustered by prompt.")
    mt_bench: MTBenchSection | None = Field(default=None, description="MT-Bench, see docs/mt-bench.md. Absent: not run.")
    alpaca_eval: AlpacaEvalSection | None = Field(
        default=None, description="AlpacaEval, see docs/alpaca-eval.md. Absent: not run."
    )
    head_to_head: HeadToHeadSection | None = Field(
        default=None, description="Head to head of any models, see docs/head-to-head.md. Absent: not run."
    )
    arena_hard: ArenaHardSection | None = Field(
        default=None, description="Arena-Hard, see docs/head-to-head.md. Absent: not run."
    )
    safety: SafetySection | None = Field(
        default=None, description="Over-refusal and attack success, see docs/safety.md. Absent: not run."
    )


class Terms(Section):
    license: str = Field(default="", description="Its licence, e.g. cc-by-4.0, llama3.1 or proprietary.")
    terms: str = Field(default="", description="What its terms bind users of the dataset to, and where they stand.")


class PublishSection(Section):
    license: str = Field(
        default="apache-2.0", description="Licence on the cards; the judge's and the sources' terms still apply."
    )
    judge_license: str = Field(default="", description="Licence of the judge model; the card says so when it is not stated.")
    judge_terms: str = Field(default="", description="Terms of the judge model that bind users of the dataset.")
    models: dict[str, Terms] = Field(
        default_factory=dict, description="Licence and terms of each model that answered, by its name under [models]."
    )
    sources: dict[str, Terms] = Field(
        default_factory=dict, description="Licence and terms of each prompt source, by its label in the dataset."
    )
    dataset: str = Field(default="", description="Hub id the dataset will have, e.g. me/my-nectar; the model cards name it.")
    policy_base: str = Field(default="", description="Hub id of the model in policy.base, for the policy's card.")
    reward_base: str = Field(default="", description="Hub id of the model in reward.backbone, for the reward model's card.")
