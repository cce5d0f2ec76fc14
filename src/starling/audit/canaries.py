"""Canaries: answers whose place is known before the judge has seen them.

    twins    the same text twice: nothing may stand between the two, and which comes first is a coin's business
    empty    no text at all: last
    aside    a good answer to another question: last

The latter two stand among the good answers of our own hosts, the twins among bad ones, in several orders. Canaries need neither a
truth nor a second judge. The injected answer, the fourth of them, has a module of its own: `starling.audit.attacks`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starling.audit.consistency import Tiers, as_json, places
from starling.audit.hosts import ASIDE, VERSION, Host, responses
from starling.audit.measure import RESAMPLES, clustered_share
from starling.audit.tap import other_seed, rank
from starling.config import RankingSection
from starling.judge.judge import Panel
from starling.metering import Tap
from starling.progress import SILENT, Progress
from starling.records import Judgment
from starling.stats import Interval

ORDERS = 6
"""Orders in which every host is judged: the twins' coin is thrown so often per host."""


@dataclass(frozen=True, kw_only=True)
class Canaries:
    """What became of the canaries; shares over hosts and orders, hosts resampled."""

    version: int
    hosts: int
    outcomes: dict[str, int]
    """Rankings asked for, by outcome."""
    twins_adjacent: Interval | None
    """Share of rankings with nothing between the two equal texts; 1 is right."""
    twins_first_shown: Interval | None
    """Share in which the twin shown first is ranked above the other; 0.5 is right. Only where one call shows both."""
    empty_last: Interval | None
    """Share with the empty answer last; 1 is right."""
    aside_last: Interval | None
    """Share with the answer to another question last; 1 is right."""

    def as_json(self) -> dict[str, Any]:
        return as_json(self)


def run(
    hosts: Sequence[Host],
    judge: Tap,
    settings: RankingSection,
    seed: int,
    progress: Progress = SILENT,
    *,
    resamples: int = RESAMPLES,
) -> Canaries:
    """Ask about every host with each canary in `ORDERS` orders."""
    kinds = {
        # Only clearly worse company: with answers about as good, even an honest judge may put one of them between the twins.
        "twins": [_panel(h, h.good[0], h.good[0], h.bad, ASIDE[i % len(ASIDE)]) for i, h in enumerate(hosts)],
        "empty": [_panel(h, *h.good, "") for h in hosts],
        "aside": [_panel(h, *h.good, ASIDE[i % len(ASIDE)]) for i, h in enumerate(hosts)],
    }
    panels = [panel for listed in kinds.values() for panel in listed]
    kind_of = [kind for kind, listed in kinds.items() for _ in listed]
    outcomes: Counter[str] = Counter()
    hits: dict[str, list[tuple[float, str]]] = {"adjacent": [], "first": [], "empty": [], "aside": []}
    for order in range(ORDERS):
        found = rank(panels, judge, settings, other_seed(seed, 200 + order), progress, f"canaries {order + 1}/{ORDERS}")
        outcomes.update(m.outcome.value for m in found.merged)
        for kind, panel, merged, calls in zip(kind_of, panels, found.merged, found.judgments, strict=True):
            if merged.tiers:
                _enter(kind, panel, merged.tiers, calls, hits)

    def share(name: str) -> Interval | None:
        rows = hits[name]
        return clustered_share([v for v, _ in rows], [1] * len(rows), [h for _, h in rows], resamples, seed)

    return Canaries(
        version=VERSION,
        hosts=len(hosts),
        outcomes=dict(sorted(outcomes.items())),
        twins_adjacent=share("adjacent"),
        twins_first_shown=share("first"),
        empty_last=share("empty"),
        aside_last=share("aside"),
    )


def _panel(host: Host, *texts: str) -> Panel:
    return Panel(host.prompt, responses(host.prompt, texts))


def _enter(kind: str, panel: Panel, tiers: Tiers, calls: Sequence[Judgment], hits: dict[str, list[tuple[float, str]]]) -> None:
    """Enter one ranking under what it says."""
    prompt, place = panel.prompt.id, places(tiers)
    if kind != "twins":
        alone = place[panel.responses[-1].id] == len(tiers) - 1 and len(tiers[-1]) == 1
        hits[kind].append((float(alone), prompt))
        return
    one, two = panel.responses[0].id, panel.responses[1].id
    hits["adjacent"].append((float(abs(place[one] - place[two]) <= 1), prompt))
    together = [c.shown for c in calls if {one, two} <= {*c.shown}]
    if len(together) == 1 and place[one] != place[two]:
        first, second = sorted((one, two), key=together[0].index)
        hits["first"].append((float(place[first] < place[second]), prompt))
