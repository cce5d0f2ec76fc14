"""Two-turn answers: each model is asked turn by turn, its own first answer staying in the context of the second.

Temperatures go by category, and answers are at most 1,024 tokens, as FastChat's gen_model_answer has it. Departures: a turn that
failed has no text and the turn after it is not asked (FastChat goes on with "$ERROR$" in the context and lets the judge grade
it); models behind servers are asked at the same time, all questions of a turn at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from starling.chat import with_system
from starling.config import MTBenchSection
from starling.endpoint import Endpoint, Reply, Request, ask_together
from starling.evaluate.mt_bench import official
from starling.evaluate.mt_bench.files import Answer, Question
from starling.evaluate.results import Job
from starling.records import Finish, Message, Messages, Sampling

PURPOSE = "evaluate"
"""Label of the calls in the journal, as that of the judge's."""
LOCAL = "local"
"""Provider of models sampled here: one at a time is in memory, and one call of theirs has one temperature."""


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What the models of a job said."""

    answers: Mapping[str, Mapping[int, Answer]]
    """By label and question."""
    cut: Mapping[str, int]
    """Answers that ended at `max_tokens`, by label; they are judged as they are."""
    failures: Mapping[str, Mapping[str, int]]
    """Why there is no answer, by label: failure of the call → turns, those not asked because of it included."""


def temperature_of(question: Question, settings: MTBenchSection) -> float:
    """The question's own temperature, else the settings' for its category, else FastChat's."""
    if question.temperature is not None:
        return question.temperature
    own = settings.temperatures.get(question.category)
    return official.TEMPERATURES.get(question.category, official.OTHER_TEMPERATURE) if own is None else own


def answer(job: Job, questions: Mapping[int, Question], settings: MTBenchSection) -> Answered:
    """Ask the models of the job everything.

    Raises:
        BudgetError, EndpointError: as the endpoints'; everything answered is in the journal.
    """
    told = {label: {q: _Told(question, settings) for q, question in questions.items()} for label in job.models}
    local = [label for label, endpoint in job.models.items() if endpoint.model.provider == LOCAL]
    together = [label for label in job.models if label not in local]
    for labels in ([together] if together else []) + [[label] for label in local]:
        for turn in range(max(len(q.turns) for q in questions.values())):
            waiting = {label: [t for t in told[label].values() if t.waits(turn)] for label in labels}
            for group in _groups(waiting, alike=labels[0] in local):
                _ask(job, turn, group)
    return Answered(
        answers={label: {q: t.answer(label) for q, t in of.items()} for label, of in told.items()},
        cut={label: sum(t.cut for t in of.values()) for label, of in told.items()},
        failures={label: _failures(of.values()) for label, of in told.items()},
    )


class _Told:
    """One conversation of one model as it grows."""

    def __init__(self, question: Question, settings: MTBenchSection) -> None:
        self.question = question
        self.sampling = Sampling(temperature=temperature_of(question, settings), max_tokens=settings.max_tokens)
        self.texts: list[str | None] = []
        self.cut = 0
        self.failure = ""

    def waits(self, turn: int) -> bool:
        return turn < len(self.question.turns) and not self.failure

    def messages(self, turn: int) -> Messages:
        said = [text for text in self.texts if text is not None]
        return conversation(self.question.turns[: turn + 1], said)

    def take(self, reply: Reply) -> None:
        if reply.finish is Finish.error:
            self.failure = str(reply.failure or "error")
        self.texts.append(None if reply.finish is Finish.error else reply.text)
        self.cut += reply.finish is Finish.length

    def answer(self, label: str) -> Answer:
        missing = len(self.question.turns) - len(self.texts)
        return Answer(question=self.question.id, model=label, turns=(*self.texts, *[None] * missing))


def conversation(turns: Sequence[str], answers: Sequence[str]) -> Messages:
    """User turns with the answers between them; ends with the last user turn."""
    messages: list[Message] = []
    for number, text in enumerate(turns):
        messages.append(Message(role="user", content=text))
        if number < min(len(turns) - 1, len(answers)):
            messages.append(Message(role="assistant", content=answers[number]))
    return tuple(messages)


def _groups(waiting: Mapping[str, Sequence[_Told]], *, alike: bool) -> list[dict[str, list[_Told]]]:
    """What is asked in one go: everything, or what shares a temperature."""
    if not alike:
        return [{label: list(told) for label, told in waiting.items()}]
    temperatures = dict.fromkeys(t.sampling.temperature for told in waiting.values() for t in told)
    return [
        {label: [t for t in told if t.sampling.temperature == one] for label, told in waiting.items()} for one in temperatures
    ]


def _ask(job: Job, turn: int, group: Mapping[str, Sequence[_Told]]) -> None:
    asks: list[tuple[Endpoint, list[Request]]] = []
    for label, told in group.items():
        endpoint = job.models[label]
        asks.append(
            (endpoint, [
                Request(
                    model=endpoint.model.model_copy(update={"sampling": t.sampling}),
                    messages=with_system(t.messages(turn), job.systems.get(label)), purpose=PURPOSE,
                )
                for t in told
            ])
        )  # fmt: skip
    job.progress.start(f"answers, turn {turn + 1}", sum(len(requests) for _, requests in asks))
    for told, replies in zip(group.values(), ask_together(asks, job.progress), strict=True):
        for one, reply in zip(told, replies, strict=True):
            one.take(reply)
    job.progress.finish()


def _failures(told: Iterable[_Told]) -> dict[str, int]:
    found: dict[str, int] = {}
    for one in told:
        if one.failure:
            lost = len(one.question.turns) - len([text for text in one.texts if text is not None])
            found[one.failure] = found.get(one.failure, 0) + lost
    return found
