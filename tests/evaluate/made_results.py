"""Results written by hand, for the tests of whatever shows or compares them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from starling.evaluate.results import Difference, JudgeFacts, ModelResult, Part, Result

JUDGE = JudgeFacts(
    judge="gpt-4", calls=320, outcomes={"ranked": 312, "unparsed": 8}, unparsed_share=8 / 320, prompt_tokens=320_000,
    completion_tokens=80_000, seconds=512.0,
)  # fmt: skip


def part(score: float | None, half: float = 0.3, n: int = 160, clusters: int = 80) -> Part:
    return Part(score=score, ci=None if score is None else (score - half, score + half), n=n, clusters=clusters)


def model(name: str, score: float | None, half: float = 0.3, **further: Any) -> ModelResult:
    return ModelResult(model=name, overall=part(score, half), **further)


def difference(first: str, second: str, gap: float, half: float = 0.2, p: float = 0.001) -> Difference:
    return Difference(first=first, second=second, difference=gap, ci=(gap - half, gap + half), p=p, p_adjusted=p)


def bench(*models: ModelResult, differences: tuple[Difference, ...] = (), **further: Any) -> Result:
    """An MT-Bench of these models, judged by JUDGE unless something else is said."""
    facts: dict[str, Any] = {"judge": JUDGE, "settings": {"protocol": "starling"}} | further
    return Result(
        benchmark="mt-bench", title="MT-Bench", unit="points of 10", models=models, differences=differences, **facts
    )  # fmt: skip


def spread(result: Result, value: float, repeats: int = 3) -> Result:
    """The same, with a judge that was asked again."""
    assert result.judge is not None
    return replace(result, judge=replace(result.judge, repeat_spread=value, repeats=repeats))
