"""A live audit: the configured judge ranks a sample of a run's prompts several times, and the answers are compared.

Three passes over the same panels (data as in "Judging the judges", arXiv 2406.07791):

    first      as the ranking stage asks, so what it has asked already costs nothing
    again      the very same requests once more                    → repetition stability
    reordered  another order of answers and pairs, another marker  → position consistency

and one more by another judge, if a reference is named. The order's own effect is position consistency minus stability. A reply
that does not parse is not asked again here: the audit shows what the judge does, not what retries make of it.

Length preference "at equal quality" takes pairs that somebody else calls close: the ranking of the other order, the reference
judge, or, in the microworld, the truth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from starling.artifacts import RecordFile, open_artifact
from starling.audit.consistency import (
    Accuracy,
    Agreement,
    OrderEffect,
    accuracy,
    agreement,
    as_json,
    equal_pairs,
    longer_wins,
    neighbours,
    order_effect,
    places,
)
from starling.audit.measure import RESAMPLES, Audit, clustered_share, measure
from starling.audit.saved import of_judgment
from starling.audit.tap import Ranked, cost_json, other_seed, rank
from starling.config import RankingSection
from starling.errors import ArtifactError, InputError
from starling.judge.judge import Panel
from starling.metering import Cost, Latency, Tap
from starling.microworld import world
from starling.progress import SILENT, Progress
from starling.records import Finish, Prompt, Response, content_hash
from starling.rows import read_rows
from starling.stats import Interval

PROMPTS = 2000
"""Prompts of a sample: a first place then has a standard error of 0.8 points at K = 7, and 2.2 are seen with 80 % power."""


# ── the sample ───────────────────────────────────────────────────────────────────────────────────────────────────────


def sample(run_dir: Path, count: int, seed: int) -> list[Panel]:
    """At most `count` prompts of a run with their usable responses, in the order of the prompts.

    Which ones depends on seed and prompts only, and a larger sample holds the smaller one, so its calls are asked once.

    Raises:
        ArtifactError: prompts or responses are not finished, or damaged.
        InputError: no prompt has two usable responses.
    """
    prompts, answers = open_artifact(run_dir, "prompts").path, open_artifact(run_dir, "responses").path
    usable: dict[str, int] = {}
    for row in read_rows(answers / "responses.parquet"):
        if row.value is not None and row.value["finish"] != Finish.error.value:
            usable[row.value["prompt_id"]] = usable.get(row.value["prompt_id"], 0) + 1
    ranked = (prompt_id for prompt_id, n in usable.items() if n >= 2)
    chosen = set(sorted(ranked, key=lambda prompt_id: content_hash(["audit", seed, prompt_id], 16))[:count])
    if not chosen:
        raise InputError(
            "No prompt of the run has two usable responses",
            where=str(answers),
            cure="see `starling show` on this folder for what went wrong, and collect responses again",
        )
    responses: dict[str, dict[str, Response]] = {}
    for row in read_rows(answers / "responses.parquet"):
        if row.value is not None and row.value["prompt_id"] in chosen and row.value["finish"] != Finish.error.value:
            response = _response(row.value, answers)
            responses.setdefault(response.prompt_id, {})[response.id] = response
    return [
        Panel(prompt, tuple(responses[prompt.id].values()))
        for prompt in RecordFile(prompts / "prompts.parquet", Prompt)
        if len(responses.get(prompt.id, ())) >= 2
    ]


def _response(row: Mapping[str, Any], folder: Path) -> Response:
    try:
        return Response.model_validate(row)
    except ValidationError as error:
        raise ArtifactError(
            f"A row is no response: {error.errors()[0]['msg']}", where=str(folder), cure="run `starling respond` again"
        ) from None


def gold_of(panels: Sequence[Panel]) -> dict[str, dict[str, float]]:
    """True quality of every response, where all prompts belong to the microworld; empty otherwise."""
    known = world.tasks()
    if any(panel.prompt.messages not in known for panel in panels):
        return {}
    return {
        panel.prompt.id: {r.id: world.gold(panel.prompt.messages, r.text, r.finish is Finish.stop).score for r in panel.responses}
        for panel in panels
    }


# ── the audit ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Agreement with another judge that ranked the same panels in the same order."""

    judge: str
    agreement: Agreement
    good_natured: Interval | None
    """Share of prompts on which both say the same about the request."""
    longer_wins_close: Interval | None
    """Among pairs that the reference ranks next to each other: share whose longer answer the judge prefers."""
    cost: Cost

    def as_json(self) -> dict[str, Any]:
        found = as_json(self)
        return {**found.pop("agreement"), **found}


@dataclass(frozen=True, kw_only=True)
class JudgeAudit:
    """What a live audit found out about a judge."""

    judge: str
    prompts: int
    ranked: int
    """Of these, ranked in the first pass."""
    first: Audit
    """Every figure about one pass."""
    verdicts_contradicted: Interval | None
    """Share of the first pass's pair verdicts, in whatever call, that the prompt's final ranking turns round."""
    stability: Agreement
    """First pass against the same requests again."""
    reordered: Agreement
    """First pass against another order."""
    order_effect: OrderEffect
    """What the order does: position consistency minus stability."""
    good_natured_stable: Interval | None
    """Share of prompts whose request is called the same when asked again."""
    good_natured_reordered: Interval | None
    """Likewise under another order."""
    longer_wins_close: Interval | None
    """Among pairs that the other order's ranking puts next to each other: share whose longer answer ranks better."""
    longer_wins_equal: Interval | None
    """Among pairs of the same true quality, microworld only."""
    accuracy: Accuracy | None
    """Against the truth, microworld only."""
    reference: Reference | None
    cost: Cost
    """Of the three passes."""

    def as_json(self) -> dict[str, Any]:
        """The figures of the first pass on top, as for saved replies, and the others under their names."""
        found = as_json(self)
        del found["first"]
        found["cost"] = cost_json(self.cost, 3 * self.prompts)
        return {**self.first.as_json(), **found}


def audit_judge(
    panels: Sequence[Panel],
    judge: Tap,
    settings: RankingSection,
    seed: int,
    *,
    reference: Tap | None = None,
    latency: Latency | None = None,
    resamples: int = RESAMPLES,
    progress: Progress = SILENT,
    label: str = "",
) -> JudgeAudit:
    """Rank the panels three times, and once by the reference; compare.

    Args:
        panels: the sample.
        judge: the judge behind a tap; a dry one only counts the calls.
        settings: as for the ranking stage.
        seed: the run's; the other order has a seed derived from it.
        reference: another judge.
        latency: seconds of calls by their keys, for the cost.
        label: goes before the names of the passes in the progress.
    """
    first = rank(panels, judge, settings, seed, progress, f"{label}first pass")
    again = rank(panels, judge.again(1), settings, seed, progress, f"{label}asked again")
    turned = rank(panels, judge, settings, other_seed(seed), progress, f"{label}another order")
    gold = gold_of(panels)
    lengths = {r.id: len(r.text) for panel in panels for r in panel.responses}

    def longer(*rulings: Any) -> Interval | None:
        return longer_wins(rulings, lengths, resamples=resamples, seed=seed)

    found = None
    if reference is not None:
        other = rank(panels, reference, settings, seed, progress, f"{label}by {reference.model.name}")
        found = Reference(
            judge=reference.model.name,
            agreement=agreement(first.tiers, other.tiers, resamples=resamples, seed=seed),
            good_natured=_same(first, other, resamples, seed),
            longer_wins_close=longer((neighbours(other.tiers), first.tiers)),
            cost=reference.meter.cost(latency),
        )
    return JudgeAudit(
        judge=judge.model.name,
        prompts=len(panels),
        ranked=len(first.tiers),
        verdicts_contradicted=_contradicted(first, resamples, seed),
        first=measure((of_judgment(j, lengths) for calls in first.judgments for j in calls), resamples=resamples, seed=seed),
        stability=agreement(first.tiers, again.tiers, resamples=resamples, seed=seed),
        reordered=agreement(first.tiers, turned.tiers, resamples=resamples, seed=seed),
        order_effect=order_effect(first.tiers, again.tiers, turned.tiers, resamples=resamples, seed=seed),
        good_natured_stable=_same(first, again, resamples, seed),
        good_natured_reordered=_same(first, turned, resamples, seed),
        longer_wins_close=longer((neighbours(turned.tiers), first.tiers), (neighbours(first.tiers), turned.tiers)),
        longer_wins_equal=longer((equal_pairs(gold), first.tiers)) if gold else None,
        accuracy=accuracy(first.tiers, gold, resamples=resamples, seed=seed) if gold else None,
        reference=found,
        cost=judge.meter.cost(latency),
    )


def _contradicted(ranked: Ranked, resamples: int, seed: int) -> Interval | None:
    """Pair verdicts against the ranking that all calls about the prompt come to."""
    turned, stated, prompts = [], [], []
    for merged, calls in zip(ranked.merged, ranked.judgments, strict=True):
        place = places(merged.tiers)
        verdicts = [v for call in calls for v in call.pair_verdicts if place]
        turned.append(sum(place[v.winner] > place[v.second if v.winner == v.first else v.first] for v in verdicts))
        stated.append(len(verdicts))
        prompts.append(merged.prompt_id)
    return clustered_share(turned, stated, prompts, resamples, seed)


def _same(one: Ranked, other: Ranked, resamples: int, seed: int) -> Interval | None:
    """Share of prompts of which both say the same about the request."""
    prompts = [p for p in one.good_natured if p in other.good_natured]
    same = [int(one.good_natured[p] == other.good_natured[p]) for p in prompts]
    return clustered_share(same, [1] * len(same), prompts, resamples, seed)
