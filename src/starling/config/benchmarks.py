"""Settings of the benchmarks of models: `[evaluate.mt_bench]`, `[evaluate.alpaca_eval]` and the others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from starling.config.base import Section
from starling.records import Sampling

OWN_MODELS = ("base", "policy")
"""Names of the run's own models before and after tuning, where no model under [models] has them."""


class JudgedSection(Section):
    """What the benchmarks have in common."""

    models: tuple[str, ...] = Field(
        default=(),
        description="Models to evaluate, by their names under [models]; `base` and `policy` are the run's own. Empty: these two.",
    )
    judge: str = Field(default="", description="The judge, by its name under [models]. Empty: ranking.judge.")

    def named(self, section: str) -> list[tuple[str, str]]:
        """(setting, model) of what must stand under [models]."""
        found = [(f"evaluate.{section}.models", name) for name in self.models if name not in OWN_MODELS]
        return found + ([(f"evaluate.{section}.judge", self.judge)] if self.judge else [])


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
        description="FastChat's rule makes the score: every row counts, repeats as rows, those without a grade (-1) leave the mean.",
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


class AlpacaEvalSection(JudgedSection):
    """AlpacaEval: single instructions, every answer compared with one baseline's. Exactly one of baseline and baseline_model."""

    instructions: Path = Field(
        description="What is asked: a .json, .jsonl, .csv (.gz) or .parquet file with a field `instruction` (and `dataset`), the "
        "official set or your own."
    )
    baseline: Path | None = Field(default=None, description="The baseline's model_outputs.json.")
    baseline_model: str = Field(default="", description="Or one of the models evaluated; the others are compared with it.")
    sampling: Sampling = Field(
        default=Sampling(temperature=0.7, max_tokens=2048),
        description="How all models answer (temperature 0.7 and 2048 tokens: most of the official models_configs).",
    )
    protocol: Literal["starling", "official"] = Field(
        default="starling",
        description="starling: our rubric, each pair in both orders. official: your copy of an official prompt, one order per "
        "instruction, decided by the official hash: comparable with published figures, and as biased.",
    )
    soft: bool = Field(
        default=False, description="starling: preferences between 0 and 1 from the log-probabilities of one letter."
    )
    prompt: Path | None = Field(
        default=None, description="official: the prompt file, e.g. alpaca_eval_clf.txt or alpaca_eval.txt."
    )
    version: Literal[1, 2] = Field(
        default=2, description="official: 2 reads log-probabilities of the tokens m and M, 1 a ranking as a Python list."
    )
    repeats: int = Field(default=1, ge=1, le=20, description="How often everything is judged; more than 1 measures the noise.")
    difficulty: Path | None = Field(
        default=None, description="instruction_difficulty.csv, for the length control on the official instructions."
    )
    gamed: Path | None = Field(default=None, description="df_gamed.csv, for the length control on the official instructions.")
    difficulty_by: Literal["row", "instruction"] = Field(
        default="instruction",
        description="How a row's difficulty is found; row is the official way, which is wrong after a missing row.",
    )
    length_control: Literal["auto", "full", "noreg", "minimal", "none"] = Field(
        default="auto",
        description="full: the official one. noreg: without gamed. minimal: without difficulty too. auto: full on the official "
        "instructions, minimal on others.",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> AlpacaEvalSection:
        if (self.baseline is None) == (not self.baseline_model):
            raise ValueError("give exactly one of `baseline` (a file of outputs) and `baseline_model` (one of the models)")
        if self.baseline_model and self.models and self.baseline_model not in self.models:
            raise ValueError(f"baseline_model names '{self.baseline_model}', which is not one of `models`")
        if (self.prompt is not None) != (self.protocol == "official"):
            raise ValueError("`prompt` belongs to the protocol official, which needs it; Starling's own has its own words")
        if self.soft and self.protocol == "official":
            raise ValueError("`soft` belongs to the protocol starling; the official one is soft in version 2")
        return self
