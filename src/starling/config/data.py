"""Settings of the stages that make data: prompts, responses, ranking, dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from starling.config.base import Section

# ── stage 1–4: data ──────────────────────────────────────────────────────────────────────────────────────────────────


class MicroworldPrompts(Section):
    type: Literal["microworld"]


class FilePrompts(Section):
    type: Literal["file"]
    path: Path = Field(
        description="jsonl(.gz) or parquet with a `messages` list, a Nectar `prompt` transcript or a plain `prompt`."
    )
    name: str = Field(description="Source label written into the dataset.")


PromptSource = Annotated[MicroworldPrompts | FilePrompts, Field(discriminator="type")]


class PromptsSection(Section):
    sources: tuple[PromptSource, ...] = Field(
        min_length=1, description="Where prompts come from, in order of preference for duplicates."
    )
    train: int | None = Field(default=None, gt=0, description="Prompts kept for ranking and tuning; all when not given.")
    validation_fraction: float = Field(default=0.1, ge=0, lt=1, description="Share of conversations for choosing settings.")
    test_fraction: float = Field(default=0.1, ge=0, lt=1, description="Share of conversations that no stage trains on.")
    max_chars: int = Field(default=20_000, gt=0, description="Longer conversations are dropped and counted.")


class ResponsesSection(Section):
    models: tuple[str, ...] = Field(
        min_length=1, description="Names under [models] that answer every prompt (Starling: 7 answers)."
    )

    @model_validator(mode="after")
    def _distinct(self) -> ResponsesSection:
        if len(set(self.models)) != len(self.models):
            raise ValueError("the same model is named twice")
        return self


RankingMode = Literal[
    "internal_flipped", "internal_random", "internal_fixed", "internal_unlisted", "rank_only", "pairwise", "pairwise_both",
    "pointwise",
]  # fmt: skip


class RankingSection(Section):
    judge: str = Field(description="Name under [models] of the judge.")
    mode: RankingMode = Field(
        default="internal_flipped",
        description="How the judge is asked; [judge.md](judge.md). Starling: `internal_random`; flipping letters inside pairs "
        "removes its taste for the letter written first.",
    )
    orders: int = Field(
        default=1,
        ge=1,
        le=64,
        description="How often each prompt is judged, each time under a fresh order; all are merged (Starling: 1).",
    )
    orders_if_contested: int | None = Field(
        default=None, ge=2, le=64, description="Raise `orders` to this where the first left doubt; never when not given."
    )
    ties: Literal["break", "keep"] = Field(
        default="break",
        description="`keep`: the judge may call answers equal, and equal ones share a rank. `break`: neither (Starling).",
    )
    retries: int = Field(
        default=1, ge=0, le=1, description="Further calls after a reply that does not parse, with a fresh order."
    )
    max_prompt_chars: int = Field(
        default=30_000, gt=0, description="Longer judge prompts become `too_long` (Starling: 7,500 tokens × 4)."
    )
    max_tokens: int = Field(default=1024, gt=0, description="Longest judge reply in tokens.")

    @model_validator(mode="after")
    def _doubt_can_arise(self) -> RankingSection:
        if self.orders_if_contested is None:
            return self
        if self.orders_if_contested <= self.orders:
            raise ValueError(f"orders_if_contested = {self.orders_if_contested} must be more than orders = {self.orders}")
        if self.mode in ("rank_only", "pointwise") and self.orders == 1:
            raise ValueError(
                f"one {self.mode} order cannot contradict itself, so orders_if_contested would never be used; set orders = 2"
            )
        return self


class DatasetSection(Section):
    min_answers: int = Field(default=2, ge=2, description="Rankings of fewer answers are left out and counted.")
