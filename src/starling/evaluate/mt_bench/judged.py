"""Asking the judge, by our protocol or FastChat's; what it says becomes rows of FastChat's judgment files.

starling    our rubrics and grammar (`starling.evaluate.judging`): a grade from 1 to 10, or a verdict in both orders; the
            reference and, at turn 2, the conversation so far stand in frames that nothing inside them can leave.
official    FastChat's prompts from the user's own judge_prompts.jsonl, temperature 0, 2,048 tokens, and its way of
            reading replies.

At turn 2 of a pair the two conversations differ in their first answers. FastChat's prompt shows both whole; ours shows the user's
two turns as the conversation, and each side's two answers together as its text.

A call that brought no grade or verdict keeps FastChat's −1 or "error" in the file, and its own name in the counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from starling.call import Failure, Reply
from starling.config import MTBenchSection
from starling.evaluate import judging
from starling.evaluate.mt_bench import files, official
from starling.evaluate.mt_bench.answering import conversation
from starling.evaluate.mt_bench.files import API_ERROR, NO_GRADE, Answer, Pair, Question, Single
from starling.evaluate.results import Job
from starling.judge.calls import fresh_nonce
from starling.metering import Tap
from starling.records import Finish, Messages, Outcome, content_hash
from starling.stats import Interval

NO_ANSWER = "no_answer"
"""Outcome of a turn that cannot be judged because a model gave no answer."""
STARLING_PROMPTS = {"single": "starling-single", "pair": "starling-pair"}
_OWN_FIRST = (
    "(Each assistant gave an answer of its own here. Below, lines that begin with [{mark}] say which of its answers follows; "
    "the last one is to be judged.)"
)
BLOCK = 4096
"""Questions to the judge that are in memory at once: with 10 kB of prompts and replies each, 40 MB for every repeat and order."""


@dataclass(frozen=True, kw_only=True)
class Material:
    """What is judged."""

    questions: Mapping[int, Question]
    answers: Mapping[str, Mapping[int, Answer]]
    """By model; baseline and models from files included."""
    references: Mapping[int, Answer]
    """Of the questions that are judged with one."""
    prompts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """FastChat's, by name, for its protocol."""

    def reference(self, question: int, turn: int) -> str:
        """The reference answer to one turn; "" without."""
        found = self.references.get(question)
        return (found.turns[turn - 1] or "") if found is not None and turn <= len(found.turns) else ""

    def texts(self, model: str, question: int, turn: int) -> list[str] | None:
        """A model's answers up to a turn; None when one of them is missing."""
        answer = self.answers.get(model, {}).get(question)
        said = list(answer.turns[:turn]) if answer is not None else []
        texts = [text for text in said if text is not None]
        return texts if len(texts) == turn else None


@dataclass(kw_only=True)
class Judged:
    """Everything the judge said."""

    unjudged: Mapping[str, Mapping[str, int]]
    """Model → {"no_answer": turns}."""
    singles: list[Single] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    """Calls by outcome."""
    votes: list[tuple[judging.Vote, judging.Vote]] = field(default_factory=list)
    """Of pairs by our protocol: both orders of each, in terms of model_2."""

    def position(self, resamples: int, seed: int) -> Interval | None:
        """The position gap of our protocol, which asks nobody about identical answers and leaves them out."""
        questions = [str(pair.question) for pair in self.pairs]
        return judging.position_gap(self.votes, questions, resamples=resamples, seed=seed) if self.votes else None


@dataclass(frozen=True)
class _Task:
    """One thing to judge: one model or two, at one turn of a question."""

    question: Question
    turn: int
    models: tuple[str, ...]

    @property
    def id(self) -> str:
        return "/".join([*self.models, str(self.question.id), str(self.turn)])


@dataclass(frozen=True)
class _Said:
    """What became of one call."""

    prompt: str
    text: str
    value: float | str
    """A grade, or a winner as FastChat writes it."""
    outcome: Outcome


def judge(job: Job, material: Material, settings: MTBenchSection, out: Path) -> Judged:
    """Every answer graded, or every pair of answers compared in both orders, `settings.repeats` times.

    Args:
        out: the judgment file, written as the verdicts come in, and there when all have.

    Raises:
        InputError: a prompt of the official protocol is missing or cannot be filled.
        BudgetError, EndpointError: as the judge's; everything answered is in the journal.
    """
    tasks, unjudged = _tasks(material, _sides(material, settings))
    found, ask = Judged(unjudged=unjudged), _grade if settings.mode == "single" else _compare
    with files.RowWriter(out) as file:
        for start in range(0, len(tasks), BLOCK):
            ask(job, material, settings, tasks[start : start + BLOCK], found, file)
    return found


def _sides(material: Material, settings: MTBenchSection) -> list[tuple[str, ...]]:
    """Who is judged together: each alone, each with the baseline, or all pairs in the order of the models."""
    models = list(material.answers)
    if settings.mode == "single":
        return [(model,) for model in models]
    if settings.mode == "pairwise_baseline":
        return [(model, settings.baseline) for model in models if model != settings.baseline]
    return list(combinations(models, 2))


# ── single grading ───────────────────────────────────────────────────────────────────────────────────────────────────


def _grade(
    job: Job, material: Material, settings: MTBenchSection, tasks: Sequence[_Task], found: Judged, file: files.RowWriter
) -> None:
    if settings.protocol == "official":
        names = [_prompt_name("single", task, material) for task in tasks]
        prompts = [_official_prompt(name, task, material, task.models) for name, task in zip(names, tasks, strict=True)]
        replies = judging.ask_official(job, prompts, official.JUDGE_SAMPLING, repeats=settings.repeats)
        said = [[_graded(prompt, one) for one in round_] for prompt, round_ in zip(prompts, replies, strict=True)]
        found.calls.update(one.outcome.value for round_ in said for one in round_)
    else:
        names = [STARLING_PROMPTS["single"]] * len(tasks)
        with _Heard(job) as heard:
            grades = judging.grade(job, [_own_question(task, material) for task in tasks], repeats=settings.repeats)
        said = [
            [heard.said(g.call_id, NO_GRADE if g.score is None else g.score, g.outcome, g.reason) for g in round_]
            for round_ in grades
        ]
        found.calls.update(judging.outcomes_of([g for round_ in grades for g in round_]))
    for name, task, round_ in zip(names, tasks, said, strict=True):
        for one in round_:
            single = Single(
                question=task.question.id, turn=task.turn, model=task.models[0], judge=_judge_name(job), prompt=name,
                score=_plain(one.value), outcome=one.outcome, shown=content_hash(task.id, 16),
            )  # fmt: skip
            found.singles.append(single)
            file.write(files.single_row(single, user_prompt=one.prompt, judgment=one.text, number=file.rows))


def _own_question(task: _Task, material: Material) -> judging.Question:
    texts = _texts(task, material)[0]
    messages = conversation(task.question.turns[: task.turn], texts)
    return judging.Question(task.id, messages, texts[-1], material.reference(task.question.id, task.turn))


def _graded(prompt: Messages, reply: Reply) -> _Said:
    value = official.grade_of(reply.text)
    return _Said(prompt[-1].content, _judgment(reply), value, _outcome(reply, value != NO_GRADE))


# ── pairs ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _compare(
    job: Job, material: Material, settings: MTBenchSection, tasks: Sequence[_Task], found: Judged, file: files.RowWriter
) -> None:
    if settings.protocol == "official":
        names = [_prompt_name("pair", task, material) for task in tasks]
        prompts = [
            _official_prompt(name, task, material, shown)
            for name, task in zip(names, tasks, strict=True)
            for shown in (task.models, task.models[::-1])
        ]
        replies = judging.ask_official(job, prompts, official.JUDGE_SAMPLING, repeats=settings.repeats)
        every = [[_won(p, one, second=n % 2 == 1) for one in r] for n, (p, r) in enumerate(zip(prompts, replies, strict=True))]
        said = [list(zip(every[2 * n], every[2 * n + 1], strict=True)) for n in range(len(tasks))]
        found.calls.update(one.outcome.value for round_ in every for one in round_)
    else:
        names = [STARLING_PROMPTS["pair"]] * len(tasks)
        contests = [_own_contest(task, material, job.seed) for task in tasks]
        with _Heard(job) as heard:
            votes = judging.compare_both(job, contests, soft=False, repeats=settings.repeats)
        said = [[(_voted(heard, a), _voted(heard, b)) for a, b in round_] for round_ in votes]
        found.votes += [both for round_ in votes for both in round_]
        found.calls.update(judging.outcomes_of([vote for round_ in votes for both in round_ for vote in both]))
    for name, task, round_ in zip(names, tasks, said, strict=True):
        for g1, g2 in round_:
            pair = Pair(
                question=task.question.id, turn=task.turn, model_1=task.models[0], model_2=task.models[1], judge=_judge_name(job),
                prompt=name, g1=str(g1.value), g2=str(g2.value), outcome_1=g1.outcome, outcome_2=g2.outcome,
            )  # fmt: skip
            found.pairs.append(pair)
            file.write(files.pair_row(pair, prompts=(g1.prompt, g2.prompt), judgments=(g1.text, g2.text), number=file.rows))


def _own_contest(task: _Task, material: Material, seed: int) -> judging.Contest:
    texts = _texts(task, material)
    turns = task.question.turns[: task.turn]
    said = [one[0] for one in texts]
    messages = conversation(turns, [])
    if task.turn > 1:
        # Fresh as the judge's own marker: nothing in an answer can have known it, or pass for the line that it begins.
        mark = fresh_nonce(seed, 0, messages, sorted(text for one in texts for text in one))
        messages = conversation(turns, [_OWN_FIRST.format(mark=mark)] * (task.turn - 1))
        said = [_whole(one, mark) for one in texts]
    reference = material.reference(task.question.id, task.turn)
    return judging.Contest(task.id, messages, task.models[0], task.models[1], said[0], said[1], reference)


def _whole(texts: Sequence[str], mark: str) -> str:
    """All that a side said, the answer to be judged last."""
    lines = [f"[{mark}] answer to message {number} of the user\n{text}" for number, text in enumerate(texts, start=1)]
    return "\n".join(lines)


def _won(prompt: Messages, reply: Reply, *, second: bool) -> _Said:
    letter = official.verdict_of(reply.text) if reply.finish is not Finish.error else "error"
    sides = ("model_2", "model_1") if second else ("model_1", "model_2")
    winner = {"A": sides[0], "B": sides[1]}.get(letter, letter)
    return _Said(prompt[-1].content, _judgment(reply), winner, _outcome(reply, winner != "error"))


def _voted(heard: _Heard, vote: judging.Vote) -> _Said:
    preference = vote.preference_b
    winner = "error" if preference is None else "tie" if preference == 0.5 else "model_2" if preference > 0.5 else "model_1"
    return heard.said(vote.call_id, winner, vote.outcome, vote.reason)


# ── both ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _tasks(material: Material, sides: Sequence[tuple[str, ...]]) -> tuple[list[_Task], dict[str, dict[str, int]]]:
    """What can be judged, turn by turn as FastChat does, and what cannot because there is no answer."""
    tasks: list[_Task] = []
    unjudged: dict[str, dict[str, int]] = {model: {} for models in sides for model in models}
    for turn in range(1, 1 + max(len(q.turns) for q in material.questions.values())):
        for question in material.questions.values():
            for models in sides if turn <= len(question.turns) else ():
                if all(material.texts(model, question.id, turn) is not None for model in models):
                    tasks.append(_Task(question, turn, models))
                else:
                    for model in models:
                        unjudged[model][NO_ANSWER] = unjudged[model].get(NO_ANSWER, 0) + 1
    return tasks, unjudged


def _texts(task: _Task, material: Material) -> list[list[str]]:
    found = [material.texts(model, task.question.id, task.turn) for model in task.models]
    return [texts for texts in found if texts is not None]


def _prompt_name(kind: str, task: _Task, material: Material) -> str:
    return official.prompt_name(kind, reference=task.question.id in material.references, turn=task.turn)


def _official_prompt(name: str, task: _Task, material: Material, shown: Sequence[str]) -> Messages:
    sides = [""] if len(shown) == 1 else ["_a", "_b"]
    texts = dict(zip(task.models, _texts(task, material), strict=True))
    answers = {side: texts[model] for side, model in zip(sides, shown, strict=True)}
    references = [material.reference(task.question.id, turn) for turn in range(1, task.turn + 1)]
    values = official.values_of(task.question.turns, answers, references, task.turn)
    return official.fill(official.prompt_of(material.prompts, name), values, "the judge's prompts")


def _judgment(reply: Reply) -> str:
    return API_ERROR if reply.finish is Finish.error else reply.text


def _outcome(reply: Reply, found: bool) -> Outcome:
    """What became of a call of the official protocol: a grade or verdict that can be read counts, however the reply ended."""
    if reply.finish is Finish.error:
        return Outcome.too_long if reply.failure is Failure.context_length else Outcome.provider_error
    if found:
        return Outcome.ranked
    return {Finish.refusal: Outcome.refused, Finish.length: Outcome.truncated}.get(reply.finish, Outcome.unparsed)


def _judge_name(job: Job) -> str:
    return job.judge.model.name if job.judge is not None else ""


def _plain(value: float | str) -> float:
    """A whole grade as a whole number, as FastChat writes it."""
    number = float(value)
    return int(number) if number.is_integer() else number


class _Heard:
    """Keeps what goes to the judge and comes back while in use, for the judgment file."""

    def __init__(self, job: Job) -> None:
        self._tap = job.judge
        self._texts: dict[str, tuple[str, str]] = {}

    def __enter__(self) -> _Heard:
        if isinstance(self._tap, Tap):
            self._tap.meter.exchanges = []
        return self

    def __exit__(self, *_: object) -> None:
        if isinstance(self._tap, Tap):
            for request, reply in self._tap.meter.exchanges or ():
                self._texts[request.key] = (request.messages[-1].content, _judgment(reply))
            self._tap.meter.exchanges = None

    def said(self, call_id: str, value: float | str, outcome: Outcome, reason: str) -> _Said:
        """A verdict with its texts; the reason where there was no call."""
        prompt, text = self._texts.get(call_id, ("", reason))
        return _Said(prompt, text, value, outcome)
