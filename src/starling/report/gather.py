"""Reads a run's artifacts into the tables that the report shows. Nothing is computed again that a stage has computed.

Every part may be missing (a run that was stopped, or one that only trains a reward model on imported data): what cannot be
read is left out and said. Times are not read at all: the report is an artifact, and equal runs give equal bytes.
"""

from __future__ import annotations

import json
import sys
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starling import audit, stats
from starling.artifacts import Artifact, RecordFile, open_artifact, read_records
from starling.errors import ArtifactError, InputError
from starling.evaluate.registry import finished
from starling.evaluate.results import Result
from starling.evaluate.rows import ANSWERS_FILE, REPLIES_FILE, EvaluatedPrompt, EvaluatedReply, ScoredAnswer
from starling.policy.best_of_n import BEST_OF_N_FILE
from starling.policy.selection import SELECTION_FILE
from starling.records import Judgment, MergedRanking, Response, content_hash
from starling.rows import read_rows

READS = ("world", "prompts", "responses", "ranking", "dataset", "reward", "policy", "evaluate")
"""The stages shown, in the order of the data."""

RESAMPLES = 1000
"""Bootstrap resamples of the judge's tables; the evaluation's own intervals come with its metrics."""


@dataclass(frozen=True, kw_only=True)
class StageLine:
    """One stage in the lineage table."""

    name: str
    rows: int
    outcomes: dict[str, int]
    fingerprint: str
    inputs: tuple[str, ...]
    outdated: tuple[str, ...]
    """Inputs that were made again after this stage read them."""


@dataclass(frozen=True, kw_only=True)
class ModelRank:
    """One pool member as the judge saw it."""

    model: str
    judgments: int
    mean_rank: float
    ci: tuple[float, float]
    first_share: float
    gold: float | None
    """Mean gold score of its answers to held-out prompts; None outside the microworld."""


@dataclass(frozen=True, kw_only=True)
class JudgeTables:
    """What the judge's verdicts say about the pool and about the judge."""

    models: tuple[ModelRank, ...]
    position: stats.PositionBias | None
    outcomes: dict[str, int]
    judgments: int
    good_natured: float | None
    """Share of ranked prompts that the judge calls good natured."""
    pairs: int
    first_named_wins: float | None
    """Share of pair verdicts for the member written first; 0.5 is unbiased."""
    contradicted: float | None
    """Share of pair verdicts that the final ranking contradicts."""
    rubric: str
    judge: str


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """One conversation with both policies' first sampled replies."""

    prompt: EvaluatedPrompt
    base: EvaluatedReply
    tuned: EvaluatedReply
    gain: float


@dataclass(frozen=True, kw_only=True)
class Conversations:
    """Exchanges chosen by a rule, not by hand, and how all prompts fared."""

    measure: str
    """What gain is measured in: gold score or reward."""
    better: int
    same: int
    worse: int
    groups: tuple[tuple[str, tuple[Exchange, ...]], ...]


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """Everything the page shows. Parts that the run does not have are empty or None."""

    stages: tuple[StageLine, ...]
    missing: dict[str, str]
    """Stage → why it could not be read."""
    judge: JudgeTables | None
    reward_log: tuple[dict[str, Any], ...]
    reward_metrics: dict[str, Any]
    policy_log: tuple[dict[str, Any], ...]
    selection: dict[str, Any]
    """Which checkpoint was kept and why, as `starling.policy.selection` wrote it."""
    best_of_n: dict[str, Any]
    """What best-of-n sampling from the base comes to, as `starling.policy.best_of_n` wrote it."""
    evaluation: dict[str, Any]
    conversations: Conversations | None
    settings: dict[str, Any]
    benchmarks: tuple[Result, ...] = ()
    """Results of the benchmarks of models that the run has finished."""


def gather(run_dir: Path) -> Gathered:
    """Read what there is of a run.

    Raises:
        ArtifactError: there is no finished stage at all, or a finished one holds rows that cannot be read.
    """
    found, missing = _open_all(run_dir)
    if not found:
        raise ArtifactError(
            "There is nothing to report on: no stage has finished", where=str(run_dir), cure="`starling run CONFIG` first"
        )
    answers = _records(found, "evaluate", ANSWERS_FILE, ScoredAnswer)
    evaluation = found["evaluate"].metrics if "evaluate" in found else {}
    return Gathered(
        stages=tuple(_stage_line(artifact, found) for artifact in found.values()),
        missing=missing,
        judge=_judge_tables(found, answers if evaluation.get("gold") else []),
        reward_log=_log(found.get("reward")),
        reward_metrics=found["reward"].metrics if "reward" in found else {},
        policy_log=_log(found.get("policy")),
        selection=_json(found.get("policy"), SELECTION_FILE),
        best_of_n=_json(found.get("policy"), BEST_OF_N_FILE),
        evaluation=evaluation,
        conversations=_conversations(_records(found, "evaluate", REPLIES_FILE, EvaluatedPrompt)),
        settings=_settings(run_dir),
        benchmarks=tuple(finished(run_dir)),
    )


# ── artifacts ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _open_all(run_dir: Path) -> tuple[dict[str, Artifact], dict[str, str]]:
    found: dict[str, Artifact] = {}
    missing: dict[str, str] = {}
    for stage in READS:
        try:
            found[stage] = open_artifact(run_dir, stage)
        except ArtifactError as error:
            missing[stage] = "not made yet" if not (run_dir / stage).exists() else error.what
    used = {name for artifact in found.values() for name in artifact.inputs}
    if "world" in found and "world" not in used:  # left over from other settings
        del found["world"]
    if "world" not in used:  # a run without the microworld has none: nothing is missing
        missing.pop("world", None)
    return found, missing


def _stage_line(artifact: Artifact, found: dict[str, Artifact]) -> StageLine:
    outdated = tuple(name for name, seen in artifact.inputs.items() if name in found and found[name].fingerprint != seen)
    return StageLine(
        name=artifact.stage,
        rows=artifact.rows,
        outcomes={k: v for k, v in sorted(artifact.outcomes.items()) if v},
        fingerprint=artifact.fingerprint,
        inputs=tuple(artifact.inputs),
        outdated=outdated,
    )


def _records(found: dict[str, Artifact], stage: str, file: str, cls: Any) -> list[Any]:
    """The rows of a stage's file; none when the stage or the file is not there."""
    if stage not in found or file not in found[stage].files:
        return []
    return list(read_records(found[stage].path / file, cls))


def _log(artifact: Artifact | None) -> tuple[dict[str, Any], ...]:
    """The lines of a training log; none when there is no log."""
    if artifact is None or "log.jsonl" not in artifact.files:
        return ()
    lines = []
    for row in read_rows(artifact.path / "log.jsonl"):
        if row.value is None:
            raise ArtifactError(
                f"A line of the training log cannot be read: {row.problem}",
                where=f"{artifact.path / 'log.jsonl'}, line {row.number}",
                cure=f"run the stage '{artifact.stage}' again",
            )
        lines.append(row.value)
    return tuple(lines)


def _json(artifact: Artifact | None, file: str) -> dict[str, Any]:
    """A file with one JSON object; empty when it is not there."""
    if artifact is None or file not in artifact.files:
        return {}
    try:
        found = json.loads((artifact.path / file).read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it holds no JSON object")
    except ValueError as error:
        raise ArtifactError(
            f"A file of the stage cannot be read: {error}",
            where=str(artifact.path / file),
            cure=f"run the stage '{artifact.stage}' again",
        ) from None
    return found


def _settings(run_dir: Path) -> dict[str, Any]:
    """The resolved settings that the pipeline saved, without the run's own folder."""
    try:
        saved = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(
            f"The run's saved settings cannot be read: {error}",
            where=str(run_dir / "config.json"),
            cure="`starling run CONFIG` again",
        ) from None
    return {
        k: {n: v for n, v in part.items() if (k, n) != ("run", "dir")} if k == "run" else part
        for k, part in saved.items()
        if part
    }


# ── the judge ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _judge_tables(found: dict[str, Artifact], answers: Sequence[ScoredAnswer]) -> JudgeTables | None:
    """The judge's calls are read one by one and measured as `starling audit` measures them."""
    if "ranking" not in found:
        return None
    ranked = found["ranking"].path
    judgments = RecordFile(ranked / "judgments.parquet", Judgment)
    first = next(iter(judgments), None)
    if first is None:
        return None
    measured = audit.measure((audit.of_judgment(judgment, {}) for judgment in judgments), resamples=RESAMPLES)
    return JudgeTables(
        models=_model_ranks(RecordFile(ranked / "rankings.parquet", MergedRanking), _model_of(found), answers),
        position=_position(measured),
        outcomes=measured.outcomes,
        judgments=measured.calls,
        good_natured=_mean(measured.good_natured),
        pairs=measured.pairs,
        first_named_wins=_mean(measured.first_named_win),
        contradicted=_mean(measured.contradiction),
        rubric=first.rubric,
        judge=first.judge,
    )


def _mean(one: stats.Interval | None) -> float | None:
    return None if one is None else one.mean


def _position(measured: audit.Audit) -> stats.PositionBias | None:
    if not measured.n:
        return None
    return stats.PositionBias(
        k=measured.k,
        judgments=measured.n,
        first_shares=tuple(one.mean for one in measured.first_share),
        first_intervals=tuple((one.low, one.high) for one in measured.first_share),
        mean_ranks=tuple(one.mean for one in measured.mean_rank),
        rank_intervals=tuple((one.low, one.high) for one in measured.mean_rank),
    )


def _model_of(found: dict[str, Artifact]) -> dict[str, str]:
    """Response id → model, for all responses: some 150 bytes each."""
    if "responses" not in found:
        return {}
    models: dict[str, str] = {}
    for response in RecordFile(found["responses"].path / "responses.parquet", Response):
        models[response.id] = sys.intern(response.model)
    return models


def _model_ranks(
    rankings: Iterable[MergedRanking], model_of: dict[str, str], answers: Sequence[ScoredAnswer]
) -> tuple[ModelRank, ...]:
    """Mean rank of each model over the prompts it was ranked on, best first; tied answers share the rank of the first of them."""
    ranks: dict[str, array[int]] = {}
    for ranking in rankings:
        rank = 1
        for tier in ranking.tiers:
            for response in tier:
                if response in model_of:
                    ranks.setdefault(model_of[response], array("B")).append(rank)
            rank += len(tier)
    truths: dict[str, list[float]] = {}
    for answer in answers:
        truths.setdefault(answer.model, []).append(answer.truth)
    lines = []
    for model, own in ranks.items():
        interval = stats.ratio_interval(own, [1] * len(own), resamples=RESAMPLES, seed=0)
        lines.append(
            ModelRank(
                model=model,
                judgments=len(own),
                mean_rank=interval.mean,
                ci=(interval.low, interval.high),
                first_share=own.count(1) / len(own),
                gold=sum(truths[model]) / len(truths[model]) if model in truths else None,
            )
        )
    return tuple(sorted(lines, key=lambda line: (line.mean_rank, line.model)))


# ── conversations ────────────────────────────────────────────────────────────────────────────────────────────────────


def _conversations(rows: Sequence[EvaluatedPrompt], count: int = 4) -> Conversations | None:
    """The biggest gains, the biggest losses and random ones, by gold score where there is one, else by reward."""
    if not rows:
        return None
    by_gold = all(r.base_sampled[0].gold is not None and r.tuned_sampled[0].gold is not None for r in rows)
    exchanges = []
    for row in rows:
        base, tuned = row.base_sampled[0], row.tuned_sampled[0]
        gain = (tuned.gold or 0.0) - (base.gold or 0.0) if by_gold else tuned.reward - base.reward
        exchanges.append(Exchange(prompt=row, base=base, tuned=tuned, gain=gain))
    by_chance = sorted(exchanges, key=lambda e: content_hash(["report", e.prompt.prompt_id], 16))
    gains = _varied(sorted((e for e in by_chance if e.gain > 0), key=lambda e: -e.gain), count)
    losses = _varied(sorted((e for e in by_chance if e.gain < 0), key=lambda e: e.gain), count)
    groups = (("Biggest gains", gains), ("Biggest losses", losses), ("Drawn at random", by_chance[:count]))
    return Conversations(
        measure="gold score" if by_gold else "reward",
        better=sum(e.gain > 0 for e in exchanges),
        same=sum(e.gain == 0 for e in exchanges),
        worse=sum(e.gain < 0 for e in exchanges),
        groups=tuple((title, tuple(members)) for title, members in groups if members),
    )


def _varied(ordered: Sequence[Exchange], count: int) -> list[Exchange]:
    """The first of each kind in order, then, if too few, the next ones: many equal gains must not show one kind only."""
    first_of_kind = list({e.prompt.kind: e for e in reversed(ordered)}.values())
    chosen = sorted(first_of_kind, key=ordered.index)[:count]
    rest = [e for e in ordered if e not in chosen]
    return sorted(chosen + rest[: count - len(chosen)], key=ordered.index)
