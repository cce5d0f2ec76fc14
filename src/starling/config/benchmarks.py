"""Settings of the benchmarks of models: `[evaluate.mt_bench]`, `[evaluate.alpaca_eval]` and the others."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from starling.config.base import Section
from starling.records import Sampling


class JudgedSection(Section):
    """What the benchmarks have in common."""

    models: tuple[str, ...] = Field(
        default=(), description="Models to evaluate, by their names under [models]. Empty: the run's base and tuned policy."
    )
    judge: str = Field(default="", description="The judge, by its name under [models]. Empty: ranking.judge.")

    @property
    def asks_own(self) -> bool:
        """Whether no named models means that the run's own are asked."""
        return True


class HeadToHeadSection(JudgedSection):
    """Any models against each other, or all against one."""

    prompts: Path | None = Field(
        default=None, description="File of prompts, see docs/head-to-head.md. Empty: the run's held-out prompts."
    )
    split: Literal["", "train", "validation", "test"] = Field(
        default="", description="Of a file that names splits, only the prompts of this one."
    )
    most_prompts: int = Field(
        default=500, gt=0, description="Prompts at most, drawn by the run's seed (Arena-Hard has 500; see `evaluate plan-size`)."
    )
    answers: dict[str, Path] = Field(
        default_factory=dict, description="Files of answers of further models by label; nothing is asked of these models."
    )
    baseline: str = Field(default="", description="Compare every model with this one. Empty: all pairs.")
    votes: Literal["hard", "soft"] = Field(
        default="hard",
        description="hard: a written verdict, and a win needs both orders (MT-Bench's rule). soft: the judge's log-probabilities "
        "of one letter, averaged over both orders (AlpacaEval 2's rule, which takes one order).",
    )
    repeats: int = Field(default=1, gt=0, description="How often everything is judged; more than one measures the judge's noise.")
    sampling: Sampling = Field(
        default=Sampling(temperature=0.0, max_tokens=1024), description="How models answer (temperature of Arena-Hard)."
    )

    @property
    def asks_own(self) -> bool:
        """Not where two files of answers can be compared."""
        return len(self.answers) < 2

    @model_validator(mode="after")
    def _baseline_is_known(self) -> HeadToHeadSection:
        if self.baseline and self.models and self.baseline not in (*self.models, *self.answers):
            raise ValueError(f"the baseline '{self.baseline}' is neither one of the models nor has a file of answers")
        return self


class ArenaHardSection(JudgedSection):
    """Arena-Hard: hard prompts, two games each against a baseline's answers."""

    questions: Path = Field(description="question.jsonl of Arena-Hard, or one like it.")
    baseline_answers: dict[str, Path] = Field(
        min_length=1,
        description="model_answer file of the baseline by category, e.g. hard_prompt; the key `all` is for every other category.",
    )
    answers: dict[str, Path] = Field(
        default_factory=dict, description="model_answer files of models by label; nothing is asked of these models."
    )
    protocol: Literal["starling", "official"] = Field(
        default="starling", description="Our rubric and parser, or your own copy of the official prompt, for comparable figures."
    )
    prompt_file: Path | None = Field(
        default=None, description="For official: TOML or JSON with prompt_template and system_prompt (one, or one per category)."
    )
    strong_weight: float = Field(
        default=3.0, ge=1, description="Weight of a verdict >> (the official rule: 3); the score with 1 stands beside it."
    )
    repeats: int = Field(default=1, gt=0, description="How often everything is judged; more than one measures the judge's noise.")
    sampling: Sampling = Field(
        default=Sampling(temperature=0.0, max_tokens=4096), description="How models answer (Arena-Hard's gen_answer settings)."
    )
    judge_sampling: Sampling = Field(
        default=Sampling(temperature=0.0, max_tokens=16000),
        description="How the judge answers under the official protocol (arena-hard-v2.0.yaml).",
    )

    @property
    def asks_own(self) -> bool:
        """Not where there are files of answers."""
        return not self.answers

    @model_validator(mode="after")
    def _official_has_a_prompt(self) -> ArenaHardSection:
        if (self.protocol == "official") != (self.prompt_file is not None):
            raise ValueError("protocol = official needs prompt_file, and only official reads it")
        return self
