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
