"""Head to head of any two or many models: from saved votes, or live.

Live, models answer the same prompts (or their answers come from files), every pair, or every model with the baseline, is judged
in both orders, and what was said is kept in the job's folder:

    answers/LABEL.json   AlpacaEval's model_outputs form where prompts have one turn, else rows with `messages`
    votes.jsonl          one line per verdict, see `votes`; `starling evaluate head-to-head --votes` reads it again

An answer that is none (a failed call, an empty text) meets nobody and is counted.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

from starling.config import HeadToHeadSection
from starling.errors import ConfigError, InputError, UsageError
from starling.evaluate import judging
from starling.evaluate.pairwise.answers import Answers, Prompts, read_answers, read_prompts
from starling.evaluate.pairwise.arena_hard_files import write_rows
from starling.evaluate.pairwise.measure import measure
from starling.evaluate.pairwise.votes import First, PairVote, Verdict, Votes, VotesBuilder, read_votes
from starling.evaluate.results import Job, Result
from starling.records import Finish, Messages, content_hash

VOTES_FILE = "votes.jsonl"


# ── from files ───────────────────────────────────────────────────────────────────────────────────────────────────────


def from_files(
    votes: Sequence[Path],
    *,
    answers: Mapping[str, Path] | None = None,
    questions: Sequence[Path] = (),
    people: Path | None = None,
    soft: bool = False,
    baseline: str = "",
    resamples: int = 2000,
    seed: int = 0,
) -> Result:
    """The table of saved votes.

    Args:
        votes: files of votes, see `votes`.
        answers: files of answers by label, for lengths; see `answers`.
        questions: files that say which prompts uids and question numbers stand for, so that votes and answers meet.
        people: votes of people on the same pairs, for the judge's agreement with them.
        soft, baseline, resamples, seed: see `measure`.

    Raises:
        InputError: a file cannot be read or holds nothing, or the baseline met nobody.
    """
    prompts = Prompts()
    for path in questions:
        read_prompts(path, prompts=prompts)
    known = [read_answers(label, path, prompts) for label, path in (answers or {}).items()]
    found = read_votes(votes, prompts.aliases)
    human = None if people is None else read_votes([people], prompts.aliases)
    result = measure(
        found, soft=soft, baseline=baseline, resamples=resamples, seed=seed, texts={a.label: a.texts for a in known}, people=human
    )
    return replace(result, notes=(*result.notes, *_file_notes(known)))


def _file_notes(known: Sequence[Answers]) -> list[str]:
    return [
        f"{a.label}: rows left out of its answers: " + ", ".join(f"{n:,} {reason}" for reason, n in a.left_out.items()) + "."
        for a in known
        if a.left_out
    ]


# ── live ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def run(settings: HeadToHeadSection, job: Job) -> Result:
    """Ask the models and the judge.

    Raises:
        ConfigError: no prompts are named, or the baseline does not take part.
        UsageError: there are fewer than two models, or no judge.
        InputError: a file cannot be used, or no two models have an answer to the same prompt.
        BudgetError, EndpointError: as the endpoints'; what was answered is in the journal.
    """
    if settings.prompts is None:
        raise ConfigError(
            "Head to head has no prompts",
            where="evaluate.head_to_head.prompts",
            cure="name a file of prompts, see docs/head-to-head.md",
        )
    labels = [*job.models, *(label for label in settings.answers if label not in job.models)]
    _check(labels, settings)
    prompts = read_prompts(settings.prompts, split=settings.split)
    chosen = _drawn(list(prompts.messages), settings.most_prompts, job.seed)
    notes: list[str] = []
    texts = _answers_of_files(settings, job, prompts, notes)
    texts |= _answers_of_models(settings, job, [prompts.messages[p] for p in chosen], chosen, notes)
    _write_answers(job.folder, texts, chosen, prompts)
    pairs = (
        [(settings.baseline, m) for m in labels if m != settings.baseline] if settings.baseline else list(combinations(labels, 2))
    )
    contests = [
        judging.Contest(id=prompt, messages=prompts.messages[prompt], a=a, b=b, text_a=texts[a][prompt], text_b=texts[b][prompt])
        for prompt in chosen
        for a, b in pairs
        if prompt in texts[a] and prompt in texts[b]
    ]
    if not contests:
        raise InputError(
            "No two models have an answer to the same prompt",
            where=str(settings.prompts),
            cure="check that the answer files are about these prompts; see the reasons in the notes: " + " ".join(notes),
        )
    said = judging.compare_both(job, contests, soft=settings.votes == "soft", repeats=settings.repeats)
    rows = list(_vote_rows(contests, said, job))
    write_rows(job.folder / VOTES_FILE, (row.model_dump(mode="json") for row in rows))
    votes = [vote for repeats in said for pair in repeats for vote in pair]
    facts = judging.facts(job, outcomes=judging.outcomes_of(votes), repeats=settings.repeats)
    result = measure(
        _votes(rows), soft=settings.votes == "soft", baseline=settings.baseline, resamples=job.resamples, seed=job.seed,
        texts={label: {p: texts[label][p] for p in chosen if p in texts[label]} for label in labels}, judge=facts,
    )  # fmt: skip
    identical = sum(c.text_a == c.text_b for c in contests)
    if identical:
        notes.append(f"{identical:,} of {len(contests):,} pairs have identical answers: ties, without a call.")
    asked = settings.model_dump(mode="json", include={"repeats", "most_prompts", "votes", "baseline"}) | {"prompts": len(chosen)}
    return replace(result, notes=(*result.notes, *notes), settings={**result.settings, **asked})


def _check(labels: Sequence[str], settings: HeadToHeadSection) -> None:
    if len(labels) < 2:
        raise UsageError(
            f"A head to head needs two models, and there {'is' if labels else 'are'} {len(labels)}",
            where="evaluate.head_to_head.models and .answers",
            cure="name another model or a file of answers",
        )
    if settings.baseline and settings.baseline not in labels:
        raise ConfigError(
            f"The baseline '{settings.baseline}' does not take part",
            where="evaluate.head_to_head.baseline",
            cure=f"name one of {', '.join(labels)}",
        )


def _drawn(names: list[str], most: int, seed: int) -> list[str]:
    """At most so many, in the order of the file."""
    if len(names) <= most:
        return names
    picked = sorted(random.Random(f"head-to-head {seed}").sample(range(len(names)), most))
    return [names[i] for i in picked]


def _answers_of_files(settings: HeadToHeadSection, job: Job, prompts: Prompts, notes: list[str]) -> dict[str, dict[str, str]]:
    known = [read_answers(label, path, prompts) for label, path in settings.answers.items() if label not in job.models]
    notes += _file_notes(known)
    return {a.label: dict(a.texts) for a in known}


def _answers_of_models(
    settings: HeadToHeadSection, job: Job, conversations: Sequence[Messages], chosen: Sequence[str], notes: list[str]
) -> dict[str, dict[str, str]]:
    """What the models say, by label and prompt; what is no answer is counted in the notes."""
    found: dict[str, dict[str, str]] = {}
    for label, replies in judging.answer(job, conversations, settings.sampling).items() if job.models else ():
        failed: Counter[str] = Counter()
        found[label] = {}
        for prompt, reply in zip(chosen, replies, strict=True):
            if reply.finish is Finish.error or not reply.text.strip():
                failed["failed calls" if reply.finish is Finish.error else "empty replies"] += 1
            else:
                found[label][prompt] = reply.text
        if failed:
            notes.append(f"{label}: no answer to {sum(failed.values()):,} prompts: " + _counts(failed) + ".")
    return found


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n:,} {reason}" for reason, n in sorted(counts.items()))


def _vote_rows(
    contests: Sequence[judging.Contest], said: Sequence[tuple[tuple[judging.Vote, judging.Vote], ...]], job: Job
) -> Iterator[PairVote]:
    """A line per verdict; about identical answers nobody was asked, so neither was shown first."""
    name = "" if job.judge is None else job.judge.model.name
    orders: tuple[First, First] = ("a", "b")
    for contest, repeats in zip(contests, said, strict=True):
        for repeat, pair in enumerate(repeats):
            for vote, first in zip(pair, orders, strict=True):
                yield PairVote(
                    prompt_id=contest.id, a=contest.a, b=contest.b, preference_b=vote.preference_b, outcome=vote.outcome,
                    first="" if contest.text_a == contest.text_b else first, repeat=repeat, by=name, reason=vote.reason,
                    call_id=vote.call_id,
                )  # fmt: skip


def _votes(rows: Sequence[PairVote]) -> Votes:
    """The rows as read from their file."""
    builder = VotesBuilder()
    for one, two in zip(rows[::2], rows[1::2], strict=True):
        both = [Verdict(row.preference_b, row.first, row.outcome.value) for row in (one, two)]
        builder.add(one.prompt_id, one.a, one.b, both, by=one.by, repeat=one.repeat)
    return builder.build()


def _write_answers(folder: Path, texts: Mapping[str, Mapping[str, str]], chosen: Sequence[str], prompts: Prompts) -> None:
    for label, of in texts.items():
        rows: list[dict[str, Any]] = []
        for prompt in chosen:
            if prompt not in of:
                continue
            messages = prompts.messages[prompt]
            if len(messages) == 1:
                rows.append({"instruction": messages[0].content, "output": of[prompt], "generator": label})
            else:
                turns = [{"role": m.role, "content": m.content} for m in messages]
                rows.append({"messages": [*turns, {"role": "assistant", "content": of[prompt]}], "generator": label})
        path = folder / "answers" / f"{_file_name(label)}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", errors="surrogatepass")


def _file_name(label: str) -> str:
    """The label, or where it cannot be a file's name something like it that no other label has."""
    name = "".join(c if c.isalnum() or c in "-_." else "_" for c in label).lstrip(".")
    return name if name == label else f"{name}-{content_hash(label, 8)}"
