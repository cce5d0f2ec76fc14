"""Settings of the stages that make data after the prompts: responses, ranking, dataset."""

from __future__ import annotations

from pydantic import Field, model_validator

from starling.config.base import Section

# ── stages 2–4: data ──────────────────────────────────────────────────────────────────────────────────────────────────


class ResponsesSection(Section):
    models: tuple[str, ...] = Field(
        min_length=1, description="Names under [models] that answer every prompt (Starling: 7 answers)."
    )

    @model_validator(mode="after")
    def _distinct(self) -> ResponsesSection:
        if len(set(self.models)) != len(self.models):
            raise ValueError("the same model is named twice")
        return self


class RankingSection(Section):
    judge: str = Field(description="Name under [models] of the judge.")
    flip_pairs: bool = Field(
        default=True,
        description="Flip letters inside pairs at random. Starling kept them alphabetical; flipping removes that bias.",
    )
    retries: int = Field(
        default=1, ge=0, le=1, description="Further calls after a reply that does not parse, with a fresh order."
    )
    max_prompt_chars: int = Field(
        default=30_000, gt=0, description="Longer judge prompts become `too_long` (Starling: 7,500 tokens × 4)."
    )
    max_tokens: int = Field(default=1024, gt=0, description="Longest judge reply in tokens.")


class DatasetSection(Section):
    min_answers: int = Field(default=2, ge=2, description="Rankings of fewer answers are left out and counted.")
