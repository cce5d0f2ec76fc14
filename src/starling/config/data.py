"""Settings of the stages that make data after the prompts: responses, ranking, dataset."""

from __future__ import annotations

from functools import cached_property
from typing import Literal

from pydantic import Field, model_validator

from starling.config.base import Section

# ── stages 2–4: data ──────────────────────────────────────────────────────────────────────────────────────────────────


MOST_ANSWERS = 12
"""Answers that a judge can tell apart by letter."""


class PoolModel(Section):
    """One model of the pool: how many of the prompts it answers, and who answers where it does not."""

    model: str = Field(description="Name under [models].")
    share: float = Field(
        default=1.0, gt=0, le=1, description="Share of the prompts it is asked for; which ones, their content decides."
    )
    samples: int = Field(default=1, ge=1, le=MOST_ANSWERS, description="Answers it draws to each of its prompts.")
    fallback: tuple[str, ...] = Field(
        default=(), description="Asked in its place, in this order, where its call failed or its answers were of no use."
    )


class ResponsesSection(Section):
    models: tuple[str, ...] = Field(
        default=(), description="Names under [models] that answer every prompt: short for a `pool` with one table for each."
    )
    pool: tuple[PoolModel, ...] = Field(
        default=(), description="Models with shares, several draws and fallbacks, in place of `models`."
    )
    fillers: tuple[str, ...] = Field(
        default=(),
        description="Asked, in this order, only where answers are still missing; a name given twice draws twice "
        "(Starling: Llama-2-7b-chat).",
    )
    k: int | None = Field(
        default=None,
        ge=2,
        le=MOST_ANSWERS,
        description="Answers per prompt (Starling: 7). When not given, every draw of the pool.",
    )
    distinct: bool = Field(
        default=True,
        description="Equal texts count once, whoever wrote them. If not, only the same model must not repeat itself.",
    )
    resample: int = Field(
        default=2,
        ge=0,
        description="Further draws from a model whose answer is empty or repeats another; none at temperature 0 (our choice).",
    )
    use_found: bool = Field(default=False, description="Answers found with the prompts come first (Starling: yes).")
    max_found: int | None = Field(
        default=None, gt=0, description="Most found answers per prompt (Starling: 2 of HH-RLHF); as many as fit when not given."
    )

    @cached_property
    def members(self) -> tuple[PoolModel, ...]:
        """The pool, whichever way it is written."""
        return self.pool or tuple(PoolModel(model=name) for name in self.models)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Every model that may be asked: pool, fallbacks, fillers; each once, in this order."""
        in_place = [name for member in self.members for name in member.fallback]
        return tuple(dict.fromkeys([*(member.model for member in self.members), *in_place, *self.fillers]))

    @property
    def answers(self) -> int:
        """K: the answers that each prompt should get."""
        return self.k or sum(member.samples for member in self.members)

    @model_validator(mode="after")
    def _can_give_k_answers(self) -> ResponsesSection:
        if self.models and self.pool:
            raise ValueError("`models` and `pool` say the same thing in two ways; keep one of them")
        asked = [member.model for member in self.members]
        if len(set(asked)) != len(asked):
            raise ValueError("the same model is named twice; `samples` in [[responses.pool]] draws several answers from one")
        for member in self.members:
            if member.model in member.fallback:
                raise ValueError(f"'{member.model}' is its own fallback; `resample` draws from the same model again")
        if self.k is None and any(member.share < 1 for member in self.members):
            raise ValueError("where a share is below 1, `k` must say how many answers a prompt should get")
        if self.answers < 2:
            raise ValueError("responses.models needs at least two models: one answer cannot be ranked (K = 1)")
        if self.answers > MOST_ANSWERS:
            raise ValueError(f"{self.answers} answers per prompt are more than a judge can rank ({MOST_ANSWERS}); set `k`")
        found = min(self.max_found or self.answers, self.answers) if self.use_found else 0
        most = sum(member.share * member.samples for member in self.members) + len(self.fillers) + found
        if most < self.answers - 1e-6:
            raise ValueError(
                f"k = {self.answers}, but pool, fillers and found answers give only {most:g} per prompt; raise shares or "
                "samples, or name fillers"
            )
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
