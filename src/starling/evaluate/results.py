"""What a benchmark of models is given, and what it gives back: the contract between benchmarks, the command, and the page.

A benchmark (MT-Bench, AlpacaEval, head to head, Arena-Hard, safety) takes a `Job`, asks models and judge through their endpoints,
writes files in the official formats into `job.folder`, and returns a `Result`. The page and `--json` read nothing but Results.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starling.config import RankingSection
from starling.endpoint import Endpoint
from starling.metering import Meter, Tap
from starling.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that the benchmarks of one run have in common. Each job counts its own judge calls: whatever endpoint it is made
    with, its judge is a tap with a meter of its own."""

    models: Mapping[str, Endpoint]
    """Who is evaluated, by label, in the order of the settings."""
    systems: Mapping[str, str]
    """System messages by label, of the models that have one."""
    judge: Endpoint | None
    ranking: RankingSection | None = None
    """How the judge is asked: its limits, ties and retries (`judging.how`); the defaults when None."""
    judge_price: tuple[float, float] | None = None
    """Dollars for a million prompt tokens and for a million reply tokens."""
    seed: int = 0
    resamples: int = 2000
    folder: Path
    """Where the benchmark's files go; exists."""
    progress: Progress

    def __post_init__(self) -> None:
        if self.judge is not None:
            inner, dry = (self.judge.endpoint, self.judge.dry) if isinstance(self.judge, Tap) else (self.judge, False)
            object.__setattr__(self, "judge", Tap(inner, Meter(self.judge_price), purpose=PURPOSE, dry=dry))


PURPOSE = "evaluate"
"""Label of a benchmark's calls in the journal."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One number with its interval, e.g. a category, a turn, or the whole; `score` is None where nothing could be measured."""

    score: float | None
    ci: tuple[float, float] | None
    """95 %, clustered by prompt; None where there is no telling."""
    n: int
    """Verdicts behind it."""
    clusters: int
    """Prompts behind it."""


@dataclass(frozen=True, kw_only=True)
class ModelResult:
    """One model's line in a benchmark's table."""

    model: str
    overall: Part
    parts: Mapping[str, Part] = field(default_factory=dict)
    outcomes: Mapping[str, int] = field(default_factory=dict)
    """Every answer and verdict by its named outcome: ranked, unparsed, refused, …"""
    more: Mapping[str, float | None] = field(default_factory=dict)
    """The benchmark's own further figures, e.g. lc_win_rate, avg_length."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Two models on the same prompts: the mean of first − second with a paired, clustered interval."""

    first: str
    second: str
    difference: float
    ci: tuple[float, float]
    p: float
    p_adjusted: float
    """For all pairs of the table at once."""


@dataclass(frozen=True, kw_only=True)
class JudgeFacts:
    """How far a table's judge can be trusted, and what it cost."""

    judge: str
    calls: int
    outcomes: Mapping[str, int]
    """Calls by outcome; `unparsed_share` is everything but `ranked` over all."""
    unparsed_share: float | None
    position_gap: float | None = None
    """Share of verdicts for the answer shown first minus that for the second, −1 … 1; None where only one answer is shown."""
    position_gap_ci: tuple[float, float] | None = None
    repeat_spread: float | None = None
    """Standard deviation of the table's score over repeated judging, in the table's own unit; None without repeats."""
    repeats: int = 1
    human_agreement: float | None = None
    """Share of human votes on the same pairs that say the same; None where there are none."""
    human_agreement_ci: tuple[float, float] | None = None
    human_votes: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    estimated: int = 0
    """Calls whose tokens are estimated at four characters each."""
    dollars: float | None = None
    seconds: float | None = None
    """From question to answer, summed over the calls."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One benchmark's table."""

    benchmark: str
    """The command's word for it, e.g. "mt-bench"."""
    title: str
    unit: str
    """What a score of 1 means, e.g. "points of 10", "% of verdicts"."""
    higher_is_better: bool = True
    models: tuple[ModelResult, ...]
    """Best first."""
    differences: tuple[Difference, ...] = ()
    judge: JudgeFacts | None = None
    notes: tuple[str, ...] = ()
    """What a reader must know, one sentence each."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What was asked for, as plain data."""
