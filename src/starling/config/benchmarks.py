"""Settings of the benchmarks of models: `[evaluate.mt_bench]`, `[evaluate.alpaca_eval]` and the others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from starling.config.base import Section


class JudgedSection(Section):
    """What the benchmarks have in common."""

    models: tuple[str, ...] = Field(
        default=(), description="Models to evaluate, by their names under [models]. Empty: the run's base and tuned policy."
    )
    judge: str = Field(default="", description="The judge, by its name under [models]. Empty: ranking.judge.")


class MTBenchSection(JudgedSection):
    """MT-Bench: two-turn questions, answers graded singly or in pairs (arXiv 2306.05685; FastChat's llm_judge)."""

    questions: Path = Field(description="FastChat's question.jsonl, or questions of your own in its format.")
    mode: Literal["single", "pairwise_baseline", "pairwise_all"] = Field(
        default="single", description="A grade for each answer, pairs against `baseline`, or all pairs (FastChat: single)."
    )
    baseline: str = Field(
        default="",
        description="The model that the others are compared with in the mode pairwise_baseline: one of `models` or of `answers`.",
    )
    answers: tuple[Path, ...] = Field(
        default=(),
        description="FastChat's model_answer files of further models, named after their files: judged, but not asked.",
    )
    references: Path | None = Field(
        default=None, description="reference_answer file: what the judge is shown beside answers of `reference_categories`."
    )
    corrections: Path | None = Field(
        default=None,
        description="A second reference_answer file that takes precedence: 13 of FastChat's 30 references are wrong.",
    )
    reference_categories: tuple[str, ...] = Field(
        default=("math", "reasoning", "coding"), description="Categories that are judged with a reference (FastChat's)."
    )
    temperatures: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict,
        description="Temperatures by category in place of FastChat's: writing and roleplay 0.7, stem and humanities 0.1, "
        "extraction, math, coding and reasoning 0, others 0.7.",
    )
    max_tokens: int = Field(default=1024, gt=0, description="Longest answer in tokens, each turn (FastChat: 1024).")
    protocol: Literal["starling", "official"] = Field(
        default="starling",
        description="How the judge is asked: our rubric and grammar, or FastChat's prompts and its way of reading replies.",
    )
    judge_prompts: Path | None = Field(default=None, description="FastChat's judge_prompts.jsonl, for the official protocol.")
    repeats: int = Field(default=1, ge=1, description="Times that everything is judged; from 2 on the judge's noise is known.")
    official_rule: bool = Field(
        default=False,
        description="FastChat's rule makes the score: every row counts, repeats as rows, and those without a grade (-1) do not.",
    )

    @model_validator(mode="after")
    def _parts_fit(self) -> MTBenchSection:
        if (self.mode == "pairwise_baseline") != bool(self.baseline):
            raise ValueError("a baseline and the mode pairwise_baseline need each other")
        if self.protocol == "official" and self.judge_prompts is None:
            raise ValueError("the official protocol needs judge_prompts, FastChat's file of prompts")
        if self.corrections is not None and self.references is None:
            raise ValueError("corrections need references that they correct")
        return self
