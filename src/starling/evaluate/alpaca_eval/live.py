"""AlpacaEval asked live: the models answer, the judge compares each answer with the baseline's, and official files come of it.

    <folder>/<model>/model_outputs.json   every answer
    <folder>/<model>/annotations.json     every comparison; what is measured is read back from it
    <folder>/leaderboard.csv

Source: `alpaca_eval.main.evaluate` 0.6.6, where equal answers are a draw without a call, too. Departures: both orders of each
pair by default; an answer or a verdict that could not be had has a named outcome; our annotations carry the columns `outcome`,
`preference_when_first` and `preference_when_second` beside the official ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from starling.config import AlpacaEvalSection
from starling.endpoint import Reply
from starling.errors import InputError, UsageError
from starling.evaluate import judging
from starling.evaluate.alpaca_eval import files, official, table
from starling.evaluate.alpaca_eval.files import Output, Outputs
from starling.evaluate.alpaca_eval.from_files import write_leaderboard
from starling.evaluate.alpaca_eval.measure import Inputs, Measured, measure
from starling.evaluate.judging import Contest, Vote
from starling.evaluate.results import Job, JudgeFacts, ModelResult, Part, Result
from starling.records import Finish, Message, Outcome, content_hash

OUTPUTS_FILE, ANNOTATIONS_FILE, LEADERBOARD_FILE = "model_outputs.json", "annotations.json", "leaderboard.csv"


@dataclass(frozen=True)
class _Pair:
    """A candidate's answer beside the baseline's."""

    model: str
    baseline: Output
    candidate: Output


@dataclass(frozen=True)
class _Verdict:
    """What all calls about a pair come to; preferences 1 … 2 for the candidate, None where there is none."""

    outcome: Outcome
    rounds: tuple[float | None, ...]
    """One preference per repeat."""
    when_first: float | None = None
    when_second: float | None = None
    raw: Any = None

    @property
    def preference(self) -> float | None:
        known = [one for one in self.rounds if one is not None]
        return fmean(known) if known else None


def run(settings: AlpacaEvalSection, job: Job) -> Result:
    """Ask models and judge, write the official files into the job's folder, and measure them.

    Raises:
        InputError: a file that the settings name cannot be used.
        UsageError: no judge, or the baseline is not among the models.
        BudgetError, EndpointError: as the endpoints'; everything answered is in the journal.
    """
    instructions = files.read_instructions(settings.instructions)
    template = official.read_template(settings.prompt) if settings.prompt is not None else None
    inputs = _inputs(settings, job)
    base = _baseline_of_file(settings.baseline, instructions) if settings.baseline is not None else None
    if job.judge is None:
        raise UsageError("There is no judge to ask", where="evaluate.alpaca_eval.judge", cure="name one of [models]")
    if settings.baseline_model and settings.baseline_model not in job.models:
        raise UsageError(
            f"The baseline '{settings.baseline_model}' is not one of the models evaluated: {', '.join(job.models)}",
            where="evaluate.alpaca_eval.baseline_model",
            cure="put it into evaluate.alpaca_eval.models",
        )
    conversations = [(Message(role="user", content=row.instruction),) for row in instructions]
    replies = judging.answer(job, conversations, settings.sampling)
    answers, lost = _kept(instructions, replies, job.folder)
    baseline = base if base is not None else {row.instruction: row for row in answers[settings.baseline_model]}
    pairs = [
        _Pair(label, baseline[row.instruction], row)
        for label, rows in answers.items()
        if label != settings.baseline_model
        for row in rows
        if row.instruction in baseline
    ]
    verdicts, facts = _judged(pairs, settings, job, template)
    _write_annotations(pairs, verdicts, job, facts, settings)
    return _result(settings, job, inputs, answers, lost, baseline, facts)


def _inputs(settings: AlpacaEvalSection, job: Job) -> Inputs:
    return Inputs(
        difficulty=files.read_difficulty(settings.difficulty) if settings.difficulty else None,
        gamed=files.read_gamed(settings.gamed) if settings.gamed else None,
        difficulty_by=settings.difficulty_by,
        control=settings.length_control,
        resamples=job.resamples,
        seed=job.seed,
    )


# ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _kept(
    instructions: Sequence[Output], replies: Mapping[str, Sequence[Reply]], folder: Path
) -> tuple[dict[str, list[Output]], dict[str, Counter[str]]]:
    """The answers by model, written as official files, and what came of the calls that brought none."""
    answers: dict[str, list[Output]] = {}
    lost: dict[str, Counter[str]] = {}
    for label, said in replies.items():
        rows, missing = [], Counter[str]()
        for row, reply in zip(instructions, said, strict=True):
            if reply.finish is Finish.error:
                missing["not_answered"] += 1
            else:
                rows.append(replace(row, output=reply.text, generator=label))
        answers[label], lost[label] = rows, missing
        files.write_outputs(place(folder, label) / OUTPUTS_FILE, rows)
    return answers, lost


def place(folder: Path, label: str) -> Path:
    """A model's folder; a name that is no folder's gets a hash, so that no two models share one."""
    plain = "".join(c if c.isalnum() or c in "-_.+" else "_" for c in label)
    return folder / (label if plain == label and label.strip(".") else f"{plain}-{content_hash(label, 8)}")


def _baseline_of_file(path: Path, instructions: Sequence[Output]) -> dict[str, Output]:
    """The baseline's answer by instruction; the first one where a file has several.

    Raises:
        InputError: it answers none of the instructions.
    """
    given = files.read_outputs(path)
    name = given.generator or path.name.split(".")[0]
    asked = {row.instruction for row in instructions}
    found: dict[str, Output] = {}
    for row in given.rows:
        if row.instruction in asked:
            found.setdefault(row.instruction, replace(row, generator=name))
    if not found:
        raise InputError(
            "The baseline has no answer to any of the instructions",
            where=str(path),
            cure="give the outputs of a model that answered these instructions",
        )
    return found


# ── the judge ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _judged(
    pairs: Sequence[_Pair], settings: AlpacaEvalSection, job: Job, template: official.Template | None
) -> tuple[list[_Verdict], JudgeFacts]:
    """A verdict per pair, and what the judge is worth."""
    clusters = [pair.baseline.instruction for pair in pairs]
    if template is not None:
        verdicts, outcomes = _official(pairs, settings, job, template)
        gap = None  # each pair in one order: it is measured over all rows, see table.position_gap
    else:
        contests = [
            Contest(
                id=str(n),
                messages=(Message(role="user", content=pair.baseline.instruction),),
                a=pair.baseline.generator,
                b=pair.model,
                text_a=pair.baseline.output,
                text_b=pair.candidate.output,
            )
            for n, pair in enumerate(pairs)
        ]
        votes = judging.compare_both(job, contests, soft=settings.soft, repeats=settings.repeats)
        verdicts = [_of_votes(rounds, soft=settings.soft) for rounds in votes]
        flat = [(pair, cluster) for rounds, cluster in zip(votes, clusters, strict=True) for pair in rounds]
        outcomes = judging.outcomes_of([vote for both, _ in flat for vote in both])
        gap = judging.position_gap([b for b, _ in flat], [c for _, c in flat], resamples=job.resamples, seed=job.seed)
    spread = _spread(pairs, verdicts, settings.repeats)
    return verdicts, judging.facts(job, outcomes=outcomes, position=gap, spread=spread, repeats=settings.repeats)


def _of_votes(rounds: Sequence[tuple[Vote, Vote]], *, soft: bool) -> _Verdict:
    """Both orders of each repeat as one; the first of each two had the baseline first, the second the candidate."""
    combine = judging.mean_preference if soft else judging.both_orders
    combined = [combine(first, second) for first, second in rounds]
    failed = next((v.outcome for pair in rounds for v in pair if v.outcome is not Outcome.ranked), Outcome.ranked)
    asked = [pair for pair, value in zip(rounds, combined, strict=True) if value is not None and pair[0].call_id]
    when_second = [1 + first.preference_b for first, _ in asked if first.preference_b is not None]
    when_first = [1 + second.preference_b for _, second in asked if second.preference_b is not None]
    return _Verdict(
        outcome=Outcome.ranked if any(value is not None for value in combined) else failed,
        rounds=tuple(None if value is None else 1 + value for value in combined),
        when_first=fmean(when_first) if when_first else None,
        when_second=fmean(when_second) if when_second else None,
    )


def _official(
    pairs: Sequence[_Pair], settings: AlpacaEvalSection, job: Job, template: official.Template
) -> tuple[list[_Verdict], dict[str, int]]:
    """The official single order; equal answers are a draw without a call."""
    asked = [pair for pair in pairs if pair.baseline.output != pair.candidate.output]
    prompts = [official.ask(template, pair.baseline.instruction, pair.baseline.output, pair.candidate.output) for pair in asked]
    sampling = official.SAMPLING[settings.version]
    replies = iter(judging.ask_official(job, prompts, sampling, repeats=settings.repeats))
    verdicts, outcomes = [], Counter[str]()
    for pair in pairs:
        if pair.baseline.output == pair.candidate.output:
            verdicts.append(_Verdict(Outcome.ranked, (1.5,) * settings.repeats))
            continue
        found = [official.read(reply, pair.baseline.instruction, settings.version) for reply in next(replies)]
        outcomes.update(one.outcome.value for one in found)
        ranked = [one for one in found if one.preference is not None]
        best = ranked[0] if ranked else found[0]
        verdicts.append(_Verdict(best.outcome, tuple(one.preference for one in found), raw=best.raw))
    return verdicts, dict(sorted(outcomes.items()))


def _spread(pairs: Sequence[_Pair], verdicts: Sequence[_Verdict], repeats: int) -> float | None:
    """Standard deviation of a win rate, %, over the repeats; the largest of the models'."""
    rates: dict[str, list[list[float]]] = {}
    for pair, verdict in zip(pairs, verdicts, strict=True):
        of_model = rates.setdefault(pair.model, [[] for _ in range(repeats)])
        for values, one in zip(of_model, verdict.rounds, strict=True):
            if one is not None:
                values.append(100 * (one - 1))
    spreads = [judging.repeat_spread([fmean(values) if values else None for values in of_model]) for of_model in rates.values()]
    return max((spread for spread in spreads if spread is not None), default=None)


# ── files and figures ────────────────────────────────────────────────────────────────────────────────────────────────


def annotator(settings: AlpacaEvalSection, job: Job) -> str:
    """The name under which the judge stands in the files, e.g. "starling both orders: gpt-4o"."""
    assert job.judge is not None
    way = settings.prompt.stem if settings.prompt is not None else f"starling both orders{', soft' if settings.soft else ''}"
    return f"{way}: {job.judge.model.name}"


def _write_annotations(
    pairs: Sequence[_Pair], verdicts: Sequence[_Verdict], job: Job, facts: JudgeFacts, settings: AlpacaEvalSection
) -> None:
    """One annotations.json per model. Price and time of an example are the means over all of them."""
    name = annotator(settings, job)
    each = [None if total is None or not pairs else total / len(pairs) for total in (facts.dollars, facts.seconds)]
    rows: dict[str, list[dict[str, Any]]] = {}
    for pair, verdict in zip(pairs, verdicts, strict=True):
        row = {
            "instruction": pair.baseline.instruction, "output_1": pair.baseline.output, "generator_1": pair.baseline.generator,
            "dataset": pair.candidate.dataset, "output_2": pair.candidate.output, "generator_2": pair.model, "annotator": name,
            "preference": verdict.preference, "price_per_example": each[0], "time_per_example": each[1],
            "raw_completion": verdict.raw, "outcome": verdict.outcome.value,
        }  # fmt: skip
        if settings.protocol == "starling":
            row |= {files.WHEN_FIRST: verdict.when_first, files.WHEN_SECOND: verdict.when_second}
        rows.setdefault(pair.model, []).append(row)
    for label, of_model in rows.items():
        files.write_json(place(job.folder, label) / ANNOTATIONS_FILE, of_model)


def _result(
    settings: AlpacaEvalSection,
    job: Job,
    inputs: Inputs,
    answers: Mapping[str, Sequence[Output]],
    lost: Mapping[str, Counter[str]],
    baseline: Mapping[str, Output],
    facts: JudgeFacts,
) -> Result:
    """The files read back and measured."""
    lines, empty = [], []
    for label in answers:
        if label == settings.baseline_model:
            continue
        path = place(job.folder, label) / ANNOTATIONS_FILE
        if not path.exists():
            empty.append(label)
            continue
        outputs = files.read_outputs(path.with_name(OUTPUTS_FILE))
        (judged,) = files.read_annotations(path)
        lines.append(_with_losses(measure(judged, _ordered(inputs, settings, baseline), outputs), lost[label]))
    write_leaderboard(job.folder / LEADERBOARD_FILE, lines)
    if settings.protocol == "official":
        gap = table.position_gap(lines, resamples=job.resamples, seed=job.seed)
        facts = replace(facts, position_gap=gap[0] if gap else None, position_gap_ci=gap[1] if gap else None)
    found = table.result(
        lines,
        settings=settings.model_dump(mode="json"),
        judge=facts,
        differences=table.differences(lines, resamples=job.resamples, seed=job.seed),
        notes=tuple(_notes(settings, lost)),
    )
    none = Part(score=None, ci=None, n=0, clusters=0)
    silent = tuple(
        ModelResult(model=label, overall=none, outcomes={**lost[label], **_some("not_annotated", len(answers[label]))})
        for label in empty
    )
    return replace(found, models=(*found.models, *silent))


def _ordered(inputs: Inputs, settings: AlpacaEvalSection, baseline: Mapping[str, Output]) -> Inputs:
    """With the order of the instructions, which says whose difficulty is whose."""
    rows = tuple(baseline.get(row.instruction, row) for row in files.read_instructions(settings.instructions))
    name = next(iter(baseline.values())).generator
    return replace(inputs, baseline=Outputs(settings.instructions, name, rows, 0))


def _some(name: str, count: int) -> dict[str, int]:
    return {name: count} if count else {}


def _with_losses(line: Measured, lost: Mapping[str, int]) -> Measured:
    return replace(line, outcomes={**line.outcomes, **lost})


def _notes(settings: AlpacaEvalSection, lost: Mapping[str, Counter[str]]) -> Iterator[str]:
    if settings.protocol == "official":
        yield "each instruction is judged in one order, the official hashed one: the position gap is part of every win rate"
    missing = sum(counts["not_answered"] for label, counts in lost.items() if label == settings.baseline_model)
    if missing:
        yield f"the baseline {settings.baseline_model} did not answer {missing} instructions: nothing is compared with them"
