"""A whole MT-Bench: models answer, the judge grades or compares, FastChat's files and the result are written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from starling.config import MTBenchSection
from starling.errors import ConfigError, InputError
from starling.evaluate import judging
from starling.evaluate.mt_bench import answering, files, judged, official
from starling.evaluate.mt_bench.answering import Answered
from starling.evaluate.mt_bench.files import Answer, Question, answer_row, file_name, question_row, write_rows
from starling.evaluate.mt_bench.judged import Judged, Material
from starling.evaluate.mt_bench.table import Measured, Rules, pair_table, single_table, warn_of_references
from starling.evaluate.results import Job, Result


def run(settings: MTBenchSection, job: Job) -> Result:
    """Ask models and judge through the job's endpoints; write question.jsonl, model_answer, model_judgment and reference_answer
    into its folder. A killed run asks only what has no answer in the journal yet.

    Raises:
        ConfigError: the baseline is none of the models, or a model of `answers` has the name of one that is asked.
        InputError: a file cannot be used: questions, answers, references, judge prompts.
        UsageError: the job has no judge.
        BudgetError, EndpointError: as the endpoints'; everything answered is in the journal.
    """
    questions = files.read_questions(settings.questions)
    given = _given(settings, job)
    references, notes = _references(settings, questions)
    prompts = files.read_judge_prompts(settings.judge_prompts) if settings.judge_prompts else {}
    if settings.protocol == "official":
        _check_prompts(settings, questions, prompts)
    answered = answering.answer(job, questions, settings)
    _write_answers(job.folder, questions, answered, given, references, _judge_name(job))
    material = Material(questions=questions, answers={**answered.answers, **given}, references=references, prompts=prompts)
    kind = "single" if settings.mode == "single" else "pair"
    found = judged.judge(job, material, settings, job.folder / "model_judgment" / f"{file_name(_judge_name(job))}_{kind}.jsonl")
    return _result(settings, job, questions, answered, found, notes)


def _result(
    settings: MTBenchSection, job: Job, questions: Mapping[int, Question], answered: Answered, found: Judged, notes: list[str]
) -> Result:
    rules = Rules(official=settings.official_rule, baseline=settings.baseline, resamples=job.resamples, seed=job.seed)
    judge = _judge_name(job)
    if settings.mode == "single":
        measured = single_table(found.singles, judge, questions, rules, further=found.unjudged)
    else:
        measured = pair_table(found.pairs, judge, questions, rules, further=found.unjudged)
    result = _with_facts(measured, job, found, settings)
    notes = [*notes, *_answer_notes(answered)]
    if settings.protocol == "official":
        notes.append("The judge was asked with FastChat's prompts at temperature 0, and read by FastChat's rules.")
    return replace(result, notes=(*result.notes, *notes), settings=_plain(settings))


def _with_facts(measured: Measured, job: Job, found: Judged, settings: MTBenchSection) -> Result:
    """The result with the cost of its calls, and with every call counted, those asked a second time included."""
    own = measured.result.judge
    position = found.position(job.resamples, job.seed)
    spread = own.repeat_spread if own else None
    facts = judging.facts(job, outcomes=found.calls, position=position, spread=spread, repeats=settings.repeats)
    if own is not None and settings.protocol == "official":
        facts = replace(facts, position_gap=own.position_gap, position_gap_ci=own.position_gap_ci)
    return replace(measured.result, judge=facts)


# ── what it starts from ──────────────────────────────────────────────────────────────────────────────────────────────


def _given(settings: MTBenchSection, job: Job) -> dict[str, dict[int, Answer]]:
    """Answers of models that are not asked."""
    found = files.read_answers(list(settings.answers)) if settings.answers else {}
    if twice := set(found) & {file_name(label) for label in job.models}:
        raise ConfigError(
            f"The model '{sorted(twice)[0]}' is to be asked and has answers in a file, too",
            where="evaluate.mt_bench.answers",
            cure="leave it out of models, or rename the file",
        )
    known = [*job.models, *found]
    if settings.baseline and settings.baseline not in known:
        raise ConfigError(
            f"The baseline '{settings.baseline}' is none of the models: {', '.join(known) or 'there are none'}",
            where="evaluate.mt_bench.baseline",
            cure="add it to models, or its answer file to answers",
        )
    if settings.mode != "single" and len(known) < 2:
        raise ConfigError(
            "Pairs need two models", where="evaluate.mt_bench.models", cure="name another model, or use mode single"
        )
    return found


def _references(settings: MTBenchSection, questions: Mapping[int, Question]) -> tuple[dict[int, Answer], list[str]]:
    """Reference answers of the questions that need one, the corrections first; and what to say about them."""
    needed = [q for q in questions.values() if q.category in settings.reference_categories]
    if settings.references is None:
        if settings.protocol == "official" and needed:
            raise ConfigError(
                f"FastChat's prompts for {len(needed)} questions show a reference answer, and there are none",
                where="evaluate.mt_bench.references",
                cure="name FastChat's reference_answer file, or set reference_categories = []",
            )
        note = f"{len(needed):,} questions in {', '.join(settings.reference_categories)} were judged without a reference answer."
        return {}, [note] if needed else []
    published = _one(settings.references)
    corrected = _one(settings.corrections) if settings.corrections else {}
    found: dict[int, Answer] = {}
    for question in needed:
        answer = corrected.get(question.id) or published.get(question.id)
        if answer is None or len(answer.turns) < len(question.turns) or None in answer.turns:
            raise InputError(
                f"The question {question.id} ({question.category}) has no whole reference answer",
                where=str(settings.references),
                cure="add it there or to evaluate.mt_bench.corrections, or take its category out of reference_categories",
            )
        found[question.id] = answer
    warning = warn_of_references(set(found), set(corrected))
    return found, [warning] if warning else []


def _one(path: Path) -> dict[int, Answer]:
    """Reference answers of one judge."""
    found = files.read_answers(path)
    if len(found) != 1:
        raise InputError("A reference file is one file", where=str(path), cure=f"name one of {', '.join(sorted(found))}")
    return next(iter(found.values()))


def _check_prompts(settings: MTBenchSection, questions: Mapping[int, Question], prompts: Mapping[str, Mapping[str, str]]) -> None:
    """Whether every prompt that will be wanted is there, before anything is asked."""
    kind = "single" if settings.mode == "single" else "pair"
    for question in questions.values():
        for turn in range(1, 1 + len(question.turns)):
            official.prompt_of(
                prompts, official.prompt_name(kind, reference=question.category in settings.reference_categories, turn=turn)
            )


# ── what it leaves ───────────────────────────────────────────────────────────────────────────────────────────────────


def _write_answers(
    folder: Path, questions: Mapping[int, Question], answered: Answered, given: Mapping[str, Mapping[int, Answer]],
    references: Mapping[int, Answer], judge: str,
) -> None:  # fmt: skip
    write_rows(folder / "question.jsonl", map(question_row, questions.values()))
    for label, answers in {**answered.answers, **given}.items():
        write_rows(
            folder / "model_answer" / f"{file_name(label)}.jsonl", (answer_row(a, n) for n, a in enumerate(answers.values()))
        )
    if references:
        rows = (answer_row(answer, n) for n, answer in enumerate(references.values()))
        write_rows(folder / "reference_answer" / f"{file_name(judge)}.jsonl", rows)


def _answer_notes(answered: Answered) -> list[str]:
    notes = [f"{label}: {n:,} answers were cut at max_tokens and judged as they are." for label, n in answered.cut.items() if n]
    for label, failures in answered.failures.items():
        if failures:
            listed = ", ".join(f"{n:,} {why}" for why, n in sorted(failures.items()))
            notes.append(f"{label}: turns without an answer, not judged: {listed}.")
    return notes


def _judge_name(job: Job) -> str:
    return job.judge.model.name if job.judge is not None else ""


def _plain(settings: MTBenchSection) -> dict[str, Any]:
    return settings.model_dump(mode="json")
