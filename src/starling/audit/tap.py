"""One pass of an audit: panels are judged as the ranking stage judges them, through a tap that labels, numbers and counts.

The label is no part of a call's identity, so the first pass of an audit reuses what the ranking stage has already asked; see
`starling.metering` for the tap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starling.audit.consistency import Tiers
from starling.config import RankingSection
from starling.endpoint import Endpoint
from starling.judge.judge import Panel, rank_many
from starling.judge.merge import merge
from starling.metering import Cost, Meter, Price, Tap
from starling.progress import SILENT, Progress
from starling.records import Judgment, MergedRanking, Outcome, content_hash

PURPOSE = "audit"


def tapped(endpoint: Endpoint, *, price: Price | None = None, dry: bool = False) -> Tap:
    """A tap with a meter of its own: what an audit asks is labelled, repeated under a sample number, and counted."""
    return Tap(endpoint, Meter(price), purpose=PURPOSE, sample=0, dry=dry)


# ── one pass ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Ranked:
    """What one pass over panels came to, by panel."""

    judgments: tuple[tuple[Judgment, ...], ...]
    """Every judge call."""
    merged: tuple[MergedRanking, ...]
    """What the calls about each panel come to; answers that are equal by them are tied, whatever the settings do with ties."""

    @property
    def tiers(self) -> dict[str, Tiers]:
        """Prompt → its ranking; prompts without one are absent. For passes in which no prompt comes twice."""
        return {m.prompt_id: m.tiers for m in self.merged if m.outcome is Outcome.ranked}

    @property
    def good_natured(self) -> dict[str, bool]:
        """Prompt → the judge's view of the request, where it gave one."""
        return {m.prompt_id: m.good_natured for m in self.merged if m.good_natured is not None}


def rank(
    panels: Sequence[Panel], endpoint: Endpoint, settings: RankingSection, seed: int, progress: Progress = SILENT, what: str = ""
) -> Ranked:
    """One pass: each panel is judged as the ranking stage would, but a reply that does not parse is not asked again.

    Lots never decide here: they fall the same way in every pass and would pass for the judge's own consistency.
    """
    once = settings.model_copy(update={"retries": 0})
    said = tuple(rank_many(panels, endpoint, once, seed, _Named(progress, what) if what else progress))
    merged = tuple(merge(calls, orders=settings.orders, keep_ties=True, seed=seed) for calls in said)
    return Ranked(said, merged)


class _Named(Progress):
    """Progress under a name that says which part of the audit it is."""

    def __init__(self, progress: Progress, name: str) -> None:
        self._progress = progress
        self._name = name

    def start(self, what: str, total: int) -> None:
        self._progress.start(self._name, total)

    def advance(self, n: int = 1, note: str = "") -> None:
        self._progress.advance(n, note)

    def finish(self) -> None:
        self._progress.finish()


def other_seed(seed: int, which: int = 1) -> int:
    """A seed for another order of the same panels."""
    return int(content_hash(["audit", "order", seed, which], 12), 16)


def cost_json(cost: Cost, rankings: int) -> dict[str, Any]:
    """Totals, and what one ranking came to."""
    return {
        "calls": cost.calls, "prompt_tokens": cost.prompt_tokens, "completion_tokens": cost.completion_tokens,
        "estimated": cost.estimated, "dollars": cost.dollars, "seconds": cost.seconds, "per_ranking": cost.per(rankings),
    }  # fmt: skip
