"""The safety benchmark live: models answer the prompts of the sets, the classifier or a judge labels their replies.

Everything is asked through the job's endpoints, so an answered call is never asked again. Replies are labelled as those of files
are; an API's own refusal (a content filter) is a full refusal, a call that failed is response_error and in no share. Into the
job's folder go `completions/MODEL.csv` in XSTest's columns, with label and reason, and `matrix.csv`.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from starling.config import SafetySection
from starling.endpoint import Reply
from starling.errors import InputError, UsageError
from starling.evaluate import judging
from starling.evaluate.results import Job, JudgeFacts, Result
from starling.evaluate.safety.cases import Case, read_cases
from starling.evaluate.safety.labels import (
    LABELLED,
    PARSERS,
    Verdict,
    check_template,
    needs_judge,
    of_files,
    of_reply,
    official_question,
    own_question,
    parse_own,
)
from starling.evaluate.safety.measure import Labelled, matrix, measure
from starling.evaluate.safety.said import Said, write_completions
from starling.records import Finish, Message, Messages, Outcome

Ask = Callable[[Said], Messages]
Parse = Callable[[str], Verdict]


def run(settings: SafetySection, job: Job) -> Result:
    """Ask the models of the job, label what they say, write the files.

    Raises:
        InputError: a prompt file or the template cannot be used.
        UsageError: labels = "judge" without a judge.
        BudgetError, EndpointError: as the endpoints'; everything answered is in the journal.
    """
    cases = read_cases(settings.prompts)
    ask, parse = _question(settings, job)
    said = _ask_models(settings, job, cases)
    facts = None
    rounds: list[list[Verdict]] = [[of_files(one, "classifier") for one in said]]
    if settings.labels == "judge":
        rounds, facts = _ask_judge(settings, job, said, ask, parse)
    labelled: list[Labelled] = [(one, verdict) for verdicts in rounds for one, verdict in zip(said, verdicts, strict=True)]
    write_files(job.folder, list(zip(said, rounds[0], strict=True)))
    return measure(
        labelled,
        cases=cases,
        judge=facts,
        notes=[f"Labels: {_way(settings)}.", "Prompts whose reply failed or has no label are in no share."],
        settings=settings.model_dump(mode="json"),
        resamples=job.resamples,
        seed=job.seed,
    )


def _way(settings: SafetySection) -> str:
    if settings.labels == "classifier":
        return "Starling's offline classifier of wording"
    if settings.template is None:
        return "the judge, asked by Starling's own question"
    return f"the judge, asked by the template {settings.template.name}"


def _question(settings: SafetySection, job: Job) -> tuple[Ask, Parse]:
    """How the judge is asked and read; checked before anything is spent."""
    if settings.labels == "judge" and job.judge is None:
        raise UsageError(
            "There is no judge to ask", where="evaluate.safety", cure="name a judge under [models], or use the classifier"
        )
    if settings.template is None or settings.parser is None:
        return partial(own_question, seed=job.seed), parse_own
    try:
        template = settings.template.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"The judge's template cannot be read: {error}", where=str(settings.template), cure="give a text file in UTF-8"
        ) from None
    check_template(template, str(settings.template))
    return partial(official_question, template), PARSERS[settings.parser]


def _ask_models(settings: SafetySection, job: Job, cases: Sequence[Case]) -> list[Said]:
    conversations = [(Message(role="user", content=case.prompt),) for case in cases]
    replies = judging.answer(job, conversations, settings.sampling, samples=settings.samples)
    return [
        _said(label, cases[n // settings.samples], reply) for label, found in replies.items() for n, reply in enumerate(found)
    ]


def _said(model: str, case: Case, reply: Reply) -> Said:
    return Said(
        model=model,
        case=case,
        text=reply.text,
        failure="response_error" if reply.finish is Finish.error else "",
        refused_by_provider=reply.finish is Finish.refusal,
    )


def _ask_judge(
    settings: SafetySection, job: Job, said: Sequence[Said], ask: Ask, parse: Parse
) -> tuple[list[list[Verdict]], JudgeFacts]:
    """Verdicts by repeat, each in the order of the replies, and how far the judge can be trusted."""
    asked = needs_judge(said)
    assert job.judge is not None
    how = job.judge.model.sampling.model_copy(update={"max_tokens": judging.how(job).max_tokens})
    replies = judging.ask_official(job, [ask(said[n]) for n in asked], how, repeats=settings.repeats)
    rounds = []
    for repeat in range(settings.repeats):
        verdicts = [of_files(one, "classifier") if one.failure or one.refused_by_provider else _EMPTY for one in said]
        for n, found in zip(asked, replies, strict=True):
            verdicts[n] = of_reply(found[repeat], parse)
        rounds.append(verdicts)
    outcomes = Counter(
        Outcome.ranked.value if verdicts[n].outcome == LABELLED else verdicts[n].outcome for verdicts in rounds for n in asked
    )
    spread = _spread(said, rounds)
    return rounds, judging.facts(job, outcomes=dict(sorted(outcomes.items())), spread=spread, repeats=settings.repeats)


_EMPTY = Verdict(label=None, outcome="empty")


def _spread(said: Sequence[Said], rounds: Sequence[Sequence[Verdict]]) -> float | None:
    """How far the score of the model that moves most moves when the judge is asked again."""
    if len(rounds) < 2:
        return None
    scores: dict[str, list[float | None]] = {}
    for verdicts in rounds:
        result = measure(list(zip(said, verdicts, strict=True)), resamples=100)
        for model in result.models:
            scores.setdefault(model.model, []).append(model.overall.score)
    return max((s for s in map(judging.repeat_spread, scores.values()) if s is not None), default=None)


def write_files(folder: Path, labelled: Sequence[Labelled]) -> None:
    """`completions/MODEL.csv` of every model, and the refusal matrix as `matrix.csv`, into a folder that exists."""
    (folder / "completions").mkdir(exist_ok=True)
    names: dict[str, str] = {}
    for model in dict.fromkeys(said.model for said, _ in labelled):
        name = re.sub(r"[^\w.-]", "_", model)
        names[model] = name if name not in names.values() else f"{name}_{len(names)}"
        own = [(said, verdict.label, verdict.reason or verdict.outcome) for said, verdict in labelled if said.model == model]
        write_completions(folder / "completions" / f"{names[model]}.csv", own)
    table = [row.as_dict() for row in matrix(labelled)]
    with (folder / "matrix.csv").open("w", encoding="utf-8", newline="") as file:
        out = csv.DictWriter(file, list(table[0]))
        out.writeheader()
        out.writerows(table)
