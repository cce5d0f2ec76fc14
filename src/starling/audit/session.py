"""One live audit from end to end: what is wanted, what it will cost, and all of it measured with one judge.

The plan is the audit itself on dry taps (`starling.audit.tap`), so the two cannot drift apart: same code, same calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starling.audit import attacks, canaries, hosts, live, votes
from starling.audit.live import JudgeAudit
from starling.audit.measure import RESAMPLES
from starling.audit.tap import cost_json, tapped
from starling.config import RankingSection
from starling.endpoint import Endpoint
from starling.judge.judge import Panel
from starling.metering import Cost, Latency, Price, Tap
from starling.progress import SILENT, Progress


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What to measure; an empty part is left out."""

    panels: Sequence[Panel] = ()
    """Sample of the run."""
    pairs: Sequence[votes.VotedPair] = ()
    people: votes.Votes | None = None
    """Votes of people about the pairs."""
    canaries: Sequence[hosts.Host] = ()
    attacks: Sequence[hosts.Host] = ()


@dataclass(frozen=True, kw_only=True)
class Session:
    """What a live audit found out, part by part; None where it was not wanted."""

    judge: JudgeAudit | None
    asked: votes.Asked | None
    votes: votes.VoteAgreement | None
    canaries: canaries.Canaries | None
    attacks: attacks.Attacks | None
    parts: dict[str, Cost]
    """What each part came to."""

    def as_json(self) -> dict[str, Any]:
        """The figures of the sample on top, the others under the names of their parts."""
        found = self.judge.as_json() if self.judge is not None else {}
        if self.asked is not None and self.votes is not None:
            found["votes"] = {**self.votes.as_json(), "asked": self.asked.as_json()}
        for name, part in (("canaries", self.canaries), ("attacks", self.attacks)):
            if part is not None:
                found[name] = part.as_json()
        found["parts"] = {name: cost_json(cost, 1) for name, cost in self.parts.items()}
        for part_json in found["parts"].values():
            del part_json["per_ranking"]
        return found


def run(
    wanted: Wanted,
    judge: Endpoint,
    settings: RankingSection,
    seed: int,
    *,
    reference: Endpoint | None = None,
    price: Price | None = None,
    reference_price: Price | None = None,
    latency: Latency | None = None,
    dry: bool = False,
    resamples: int = RESAMPLES,
    progress: Progress = SILENT,
) -> Session:
    """Measure what is wanted.

    Args:
        wanted: the parts.
        judge: the endpoint under audit, settings and seed as for the ranking stage.
        reference: another judge to compare rankings with.
        price, reference_price: dollars for a million tokens of either.
        latency: seconds of calls by their keys.
        dry: ask nothing, count only.

    Raises:
        BudgetError, EndpointError: as the endpoint's; everything answered stays in the journal.
    """
    taps: dict[str, Tap] = {}

    def tap(part: str, endpoint: Endpoint = judge, at: Price | None = price) -> Tap:
        taps[part] = tapped(endpoint, price=at, dry=dry)
        return taps[part]

    found = None
    if wanted.panels:
        other = None if reference is None else tap("reference", reference, reference_price)
        found = live.audit_judge(
            wanted.panels, tap("sample"), settings, seed, reference=other, latency=latency, resamples=resamples,
            progress=progress,
        )  # fmt: skip
    asked = agreed = None
    if wanted.pairs and wanted.people is not None:
        asked = votes.ask(wanted.pairs, tap("votes"), settings, seed, progress, resamples=resamples)
        said = votes.Votes(asked.votes, {})
        agreed = votes.compare(said, wanted.people, resamples=resamples, seed=seed)
    return Session(
        judge=found,
        asked=asked,
        votes=agreed,
        canaries=canaries.run(wanted.canaries, tap("canaries"), settings, seed, progress, resamples=resamples)
        if wanted.canaries
        else None,
        attacks=attacks.run(wanted.attacks, tap("attacks"), settings, seed, progress, resamples=resamples)
        if wanted.attacks
        else None,
        parts={name: t.meter.cost(latency) for name, t in sorted(taps.items())},
    )
