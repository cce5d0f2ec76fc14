"""Arena-Hard: the table from judgment files, or live.

Live, models answer the questions (or their answers come from files), each pair with the baseline's answer is judged in both
orders, and the files of arena-hard-auto are left in the job's folder: model_answer/MODEL.jsonl, model_judgment/JUDGE/MODEL.jsonl.
Two protocols: `starling` asks by our own rubric, whose verdicts know no >>; `official` sends a user's own copy of the original
prompt and reads the label as the original does. Sources and rules: `arena_hard_files`, `arena_hard_scores`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from starling.call import Failure, Reply
from starling.config import ArenaHardSection
from starling.errors import InputError, UsageError
from starling.evaluate import judging
from starling.evaluate.pairwise.answers import Prompts, read_answers
from starling.evaluate.pairwise.arena_hard_files import (
    LABELS,
    Game,
    Judged,
    Question,
    answer_row,
    judgment_row,
    label_of,
    read_judgments,
    read_questions,
    write_rows,
)
from starling.evaluate.pairwise.arena_hard_prompt import read_judge_prompt
from starling.evaluate.pairwise.arena_hard_scores import Rules, measure
from starling.evaluate.pairwise.arena_hard_style import style_scores
from starling.evaluate.results import Job, Result
from starling.records import Finish, Message, Messages

Texts = dict[str, dict[str, str]]
"""Model → uid → its answer."""


# ── from files ───────────────────────────────────────────────────────────────────────────────────────────────────────


def from_files(
    judgments: Sequence[Path],
    rules: Rules,
    *,
    questions: Path | None = None,
    answers: Mapping[str, Path] | None = None,
    style: bool = False,
) -> Result:
    """The table of judgment files.

    Args:
        questions: question.jsonl: subcategories, and which prompts were never judged.
        answers: model_answer files by label, for lengths and style control; the baseline's too for that.
        style: hold style equal.

    Raises:
        InputError: a file cannot be read or holds nothing, or style control is not possible.
    """
    asked = [] if questions is None else read_questions(questions)
    rows, left_out = read_judgments(judgments)
    texts = _texts(answers or {}, asked)
    return _table(rows, rules, asked, texts, left_out=left_out, style=style)


def _texts(files: Mapping[str, Path], questions: Sequence[Question]) -> Texts:
    """Answers by uid. A file's answers are matched by uid, or by the prompt where the questions are known."""
    found: Texts = {}
    for label, path in files.items():
        prompts = Prompts()
        texts = read_answers(label, path, prompts).texts
        if questions:
            by_prompt = {q.uid: prompts.aliases.get(q.uid) or Prompts().add(_asked(q)) for q in questions}
            found[label] = {uid: texts[p] for uid, p in by_prompt.items() if p in texts} | {
                q.uid: texts[q.uid] for q in questions if q.uid in texts
            }
        else:
            found[label] = {uid: texts[p] for uid, p in prompts.aliases.items() if p in texts} or dict(texts)
    return found


def _asked(question: Question) -> Messages:
    return (Message(role="user", content=question.prompt),)


def _table(
    rows: Sequence[Judged],
    rules: Rules,
    questions: Sequence[Question],
    texts: Texts,
    *,
    left_out: Mapping[str, int] | None = None,
    style: bool = False,
    judge: Any = None,
) -> Result:
    result = measure(rows, rules, questions=questions, texts=texts, left_out=left_out, judge=judge)
    if not style:
        return result
    if rules.strong_weight != int(rules.strong_weight):
        raise UsageError("Style control needs a whole weight", where="--strong-weight", cure="use 1, 2, 3, …")
    notes, more = list(result.notes), {m.model: dict(m.more) for m in result.models}
    for category in sorted({row.category for row in rows}):
        found = style_scores(rows, texts, category=category, weight=int(rules.strong_weight))
        for model, (score, low, high) in found.scores.items():
            if model in more:
                name = "style_controlled" if len({row.category for row in rows}) == 1 else f"style_controlled {category}"
                more[model] |= {name: score, f"{name}_low": low, f"{name}_high": high, f"{name}_official": found.official[model]}
        worth = ", ".join(f"{name} {value:+.2f}" for name, value in found.coefficients.items())
        notes.append(f"Style in {category}, log-odds for one spread more: {worth}.")
        if found.unknown:
            notes.append(f"Style in {category}: {found.unknown:,} verdicts left out, an answer is not in the files.")
    return replace(result, notes=tuple(notes), models=tuple(replace(m, more=more[m.model]) for m in result.models))


# ── live ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Pair:
    """One model's answer and the baseline's to one question."""

    question: Question
    model: str
    baseline: str
    text: str
    base_text: str


def run(settings: ArenaHardSection, job: Job) -> Result:
    """Ask the models and the judge.

    Raises:
        UsageError: there is no model or no judge.
        InputError: a file cannot be used, a category has no baseline, or there is no pair to judge.
        BudgetError, EndpointError: as the endpoints'; what was answered is in the journal.
    """
    questions = read_questions(settings.questions)
    notes: list[str] = []
    texts = _texts({k: p for k, p in settings.answers.items() if k not in job.models}, questions)
    texts |= _answers(settings, job, questions, notes)
    if not texts:
        raise UsageError("Arena-Hard has no model", where="evaluate.arena_hard.models", cure="name models or files of answers")
    for label, of in texts.items():
        rows = [answer_row(q, label, of[q.uid]) for q in questions if q.uid in of]
        write_rows(job.folder / "model_answer" / f"{_file_name(label)}.jsonl", rows)
    pairs = _pairs(settings, questions, texts, notes)
    judged, facts = (_official if settings.protocol == "official" else _ours)(settings, job, pairs)
    rules = Rules(strong_weight=settings.strong_weight, resamples=job.resamples, seed=job.seed)
    result = _table(judged, rules, questions, texts, judge=facts)
    if settings.protocol == "starling":
        notes.append("Asked by Starling's rubric: no verdict is a strong one, and scores do not compare with published ones.")
    return replace(result, notes=(*result.notes, *notes), settings={**result.settings, "protocol": settings.protocol})


def _answers(settings: ArenaHardSection, job: Job, questions: Sequence[Question], notes: list[str]) -> Texts:
    """What the models say; what is no answer is counted in the notes."""
    found: Texts = {}
    if not job.models:
        return found
    for label, replies in judging.answer(job, [_asked(q) for q in questions], settings.sampling).items():
        usable = {
            q.uid: r.text for q, r in zip(questions, replies, strict=True) if r.finish is not Finish.error and r.text.strip()
        }
        found[label] = usable
        if len(usable) < len(questions):
            notes.append(f"{label}: no answer to {len(questions) - len(usable):,} questions (failed calls and empty replies).")
    return found


def _pairs(settings: ArenaHardSection, questions: Sequence[Question], texts: Texts, notes: list[str]) -> list[_Pair]:
    files = settings.baseline_answers
    names = {category: path.name.removesuffix(".gz").rsplit(".", 1)[0] for category, path in files.items()}
    bases = {category: _texts({names[category]: path}, questions)[names[category]] for category, path in files.items()}
    pairs: list[_Pair] = []
    unanswered = 0
    for question in questions:
        category = question.category if question.category in files else "all"
        if category not in files:
            raise InputError(
                f"The category '{question.category}' has no baseline",
                where="evaluate.arena_hard.baseline_answers",
                cure=f"name a file for {question.category} or for all",
            )
        base = bases[category].get(question.uid)
        unanswered += base is None
        if base is not None:
            pairs += [
                _Pair(question, model, names[category], of[question.uid], base)
                for model, of in texts.items()
                if question.uid in of and model != names[category]
            ]
    if unanswered:
        notes.append(f"The baseline has no answer to {unanswered:,} of {len(questions):,} questions: they are not judged.")
    if not pairs:
        raise InputError(
            "No question has both a model's and the baseline's answer",
            where="evaluate.arena_hard.baseline_answers",
            cure="check that the files are about these questions",
        )
    return pairs


_WORDS = {1.0: "B>A", 0.5: "A=B", 0.0: "A>B"}
"""Score of the answer shown as B → label."""


def _ours(settings: ArenaHardSection, job: Job, pairs: Sequence[_Pair]) -> tuple[list[Judged], Any]:
    contests = [judging.Contest(p.question.uid, _asked(p.question), p.baseline, p.model, p.base_text, p.text) for p in pairs]
    said = judging.compare_both(job, contests, soft=False, repeats=settings.repeats)
    games = [[[_our_game(first, False), _our_game(second, True)] for first, second in repeats] for repeats in said]
    votes = [vote for repeats in said for pair in repeats for vote in pair]
    return _keep(job, pairs, games), judging.facts(job, outcomes=judging.outcomes_of(votes), repeats=settings.repeats)


def _our_game(vote: judging.Vote, model_first: bool) -> dict[str, Any]:
    """A game in the official form; the vote is in terms of the model."""
    preference = vote.preference_b
    label = None if preference is None else _WORDS[1 - preference if model_first else preference]
    said = {"answer": vote.reason, "call_id": vote.call_id}
    return {"score": label, "judgment": said, "prompt": [], "outcome": vote.outcome.value}


def _official(settings: ArenaHardSection, job: Job, pairs: Sequence[_Pair]) -> tuple[list[Judged], Any]:
    assert settings.prompt_file is not None
    prompt = read_judge_prompt(settings.prompt_file)
    asked = [
        prompt.messages(p.question.category, p.question.prompt, *texts)
        for p in pairs
        for texts in ((p.base_text, p.text), (p.text, p.base_text))
    ]
    replies = judging.ask_official(job, asked, settings.judge_sampling, repeats=settings.repeats)
    games = []
    for number in range(len(pairs)):
        both = [(asked[2 * number + g], replies[2 * number + g]) for g in (0, 1)]
        games.append([[_game(messages, reply[repeat]) for messages, reply in both] for repeat in range(settings.repeats)])
    outcomes = Counter(game["outcome"] for of in games for both in of for game in both)
    return _keep(job, pairs, games), judging.facts(job, outcomes=dict(sorted(outcomes.items())), repeats=settings.repeats)


def _game(messages: Messages, reply: Reply) -> dict[str, Any]:
    label = label_of(reply.text)
    outcome = "ranked"
    if reply.finish is Finish.error:
        outcome = "too_long" if reply.failure is Failure.context_length else "provider_error"
    elif label not in LABELS:
        outcome = {Finish.refusal: "refused", Finish.length: "truncated"}.get(reply.finish, "unparsed")
    listed = [{"role": m.role, "content": m.content} for m in messages]
    return {
        "score": label if outcome == "ranked" else None, "judgment": {"answer": reply.text}, "prompt": listed, "outcome": outcome,
    }  # fmt: skip


def _keep(job: Job, pairs: Sequence[_Pair], games: Sequence[Sequence[Sequence[Mapping[str, Any]]]]) -> list[Judged]:
    """Write the judgment files; returns what they say."""
    judge = "" if job.judge is None else job.judge.model.name
    rows: dict[str, list[dict[str, Any]]] = {}
    judged: list[Judged] = []
    for pair, repeats in zip(pairs, games, strict=True):
        for repeat, both in enumerate(repeats):
            rows.setdefault(pair.model, []).append(judgment_row(pair.question, judge, pair.model, pair.baseline, both, repeat))
            found = tuple(Game(game["score"], game["outcome"]) for game in both)
            judged.append(Judged(pair.question.uid, pair.question.category, judge, pair.model, pair.baseline, found, repeat))
    for model, of in rows.items():
        write_rows(job.folder / "model_judgment" / _file_name(judge) / f"{_file_name(model)}.jsonl", of)
    return judged


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name).lstrip(".") or "_"
