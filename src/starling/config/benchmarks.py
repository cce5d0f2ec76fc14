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

    @property
    def asks_own(self) -> bool:
        """Whether no named models means that the run's own are asked."""
        return True


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
        description="FastChat's model_answer files of further models, named after their files: judged, but not asked. With them, "
        "no `models` means that nobody is asked.",
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

    @property
    def asks_own(self) -> bool:
        """Where there are answer files, no named models means that these alone are judged."""
        return not self.answers

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


class HeadToHeadSection(JudgedSection):
    """Any models against each other, or all against one."""

    prompts: Path | None = Field(
        default=None, description="File of prompts, see docs/head-to-head.md. Empty: the run's held-out prompts."
    )
    split: Literal["", "train", "validation", "test"] = Field(
        default="", description="Of a file that names splits, only these prompts. Empty: all; of the run's own, `evaluate.split`."
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


class SafetySection(JudgedSection):
    """Over-refusal of safe prompts and attack success of unsafe ones."""

    prompts: tuple[Path, ...] = Field(
        min_length=1,
        description="The sets' own files: XSTest, HarmBench, StrongREJECT, AdvBench, or columns prompt, label, category.",
    )
    sampling: Sampling = Field(
        default=Sampling(temperature=0.0, max_tokens=512),
        description="How all models answer (XSTest and HarmBench draw greedily; 512 tokens: HarmBench).",
    )
    samples: int = Field(default=1, ge=1, description="Replies to each prompt (1: XSTest, HarmBench); more need a temperature.")
    labels: Literal["classifier", "judge"] = Field(
        default="classifier",
        description="classifier: by the wording of a reply, offline (docs/safety.md). judge: the judge is asked.",
    )
    template: Path | None = Field(
        default=None,
        description="Your copy of an official judge prompt, sent as it is. None: our own question with three labels.",
    )
    parser: Literal["xstest", "strongreject", "yes-no"] | None = Field(
        default=None, description="How the replies to the template are read: as XSTest's, StrongREJECT's or HarmBench's tools do."
    )
    repeats: int = Field(default=1, ge=1, description="Times that the judge is asked; from 2 on its noise is known.")

    @model_validator(mode="after")
    def _fits_together(self) -> SafetySection:
        if (self.template is None) != (self.parser is None):
            raise ValueError("`template` and `parser` belong together: give both, or none")
        if self.labels == "classifier" and (self.template is not None or self.repeats > 1):
            raise ValueError(
                '`template`, `parser` and `repeats` are for labels = "judge"; the classifier says the same every time'
            )
        if self.samples > 1 and self.sampling.temperature == 0:
            raise ValueError("`samples` above 1 would all be the same reply at temperature 0: set sampling.temperature")
        return self
