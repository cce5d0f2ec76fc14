"""Settings of the benchmarks of models: `[evaluate.mt_bench]`, `[evaluate.alpaca_eval]` and the others."""

from __future__ import annotations

from pydantic import Field

from starling.config.base import Section


class JudgedSection(Section):
    """What the benchmarks have in common."""

    models: tuple[str, ...] = Field(
        default=(), description="Models to evaluate, by their names under [models]. Empty: the run's base and tuned policy."
    )
    judge: str = Field(default="", description="The judge, by its name under [models]. Empty: ranking.judge.")
