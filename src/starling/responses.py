"""Stage 2: K answers to every prompt, from a pool of models and from what was found with the prompts.

Source: Nectar (K = 7: GPT-4, GPT-3.5 and Mistral for nearly every prompt, the answers that the source sets already had, and
Llama-2-7b-chat where one was missing). Departures: which models answer a prompt is decided by its content and not by the batch
it came in; equal texts count once and are drawn again; a prompt that ends with fewer than K answers is kept and counted; and
whatever was asked leaves a row, also when nothing came of it.

An answer has a *slot*: a chain of models, each asked when the one before gave nothing of use. A prompt has more slots than it
needs answers; `next_asks` says, from what became of the asks so far, whom to ask now. All prompts go through that in rounds, each
round asking every model at once. Between the rounds only the prompts that still lack something are remembered, in a few bytes
each; texts go to one file per round, and the files are merged at the end. So memory does not grow with the texts.

Models that say something else in another batch (`endpoint.BatchEndpoint`) get the same requests in the same order however often
a run was stopped: the requests of a round depend on the settings, the prompts and the replies of earlier rounds alone.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import partial
from itertools import groupby, repeat
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, NamedTuple

from starling.artifacts import RecordFile, write_records
from starling.chat import with_system
from starling.config import ResponsesSection
from starling.endpoint import Endpoint, Reply, Request, ask_together
from starling.errors import ArtifactError
from starling.progress import SILENT, Progress
from starling.records import Finish, FoundAnswer, Prompt, Response, content_hash

MILLION = 1_000_000


# ── whom to ask ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Fate(IntEnum):
    """What became of an ask."""

    kept = 0
    failed = 1
    """No reply; the endpoint has made all its attempts, so the same model is not asked again."""
    useless = 2
    """Empty, or a text that the prompt has already: another draw may do better."""


class Step(NamedTuple):
    """One model in the chain of a slot."""

    model: str
    again: bool = False
    """A further draw from the model before, skipped when that one failed."""


Slot = tuple[Step, ...]


class Ask(NamedTuple):
    """A question to `model`; `sample` tells its draws for one prompt apart."""

    model: str
    sample: int


def slots_of(prompt_id: str, settings: ResponsesSection, greedy: Collection[str], seed: int) -> tuple[Slot, ...]:
    """The slots of a prompt in the order in which they are used: the pool's, then the fillers.

    The pool's are in an order of the prompt's own, so that where only some are needed each is as likely to be one. A model
    whose `share` is below 1 has a slot for that share of the prompts. Its prompts are drawn systematically (Madow 1949): the
    number of models that a prompt gets is the sum of the shares, or the whole numbers next to it, never more or less by chance.

    Args:
        prompt_id: all that is known of the prompt here; other prompts do not matter.
        settings: the pool.
        greedy: models that would only repeat themselves, and are not drawn again.
        seed: the run's seed.
    """

    def order(*what: str | int) -> str:
        return content_hash(["responses", seed, prompt_id, *what])

    def chain(models: Iterable[str]) -> Slot:
        again = {model: 0 if model in greedy else settings.resample for model in models}
        return tuple(step for model, n in again.items() for step in (Step(model), *[Step(model, again=True)] * n))

    chosen = settings.members
    if any(member.share < 1 for member in chosen):
        start, end, chosen_list = int(order("share"), 16) % MILLION, 0, []
        for member in sorted(chosen, key=lambda m: order("walk", m.model)):
            begin, end = end, end + round(member.share * MILLION)
            if -(-(end - start) // MILLION) > -(-(begin - start) // MILLION):  # start + a whole number lies in [begin, end)
                chosen_list.append(member)
        chosen = tuple(chosen_list)
    drawn = [(member, n) for member in chosen for n in range(member.samples)]
    drawn.sort(key=lambda draw: order("slot", draw[0].model, draw[1]))
    return (*(chain((m.model, *m.fallback)) for m, _ in drawn), *(chain((name,)) for name in settings.fillers))


def next_asks(slots: Sequence[Slot], need: int, fates: bytes) -> list[Ask]:
    """Whom to ask now for the answers that are still missing; nothing when there are enough or nobody is left.

    Args:
        slots: of the prompt, see `slots_of`.
        need: answers wanted in all, those that were found not among them.
        fates: what became of all asks so far, in the order in which this function named them: one `Fate` each.
    """
    waiting = deque((slot, 0) for slot in slots)
    active = [waiting.popleft() for _ in range(min(need, len(waiting)))]
    samples: Counter[str] = Counter()
    told = 0
    while True:
        asks = []
        for slot, at in active:
            asks.append(Ask(slot[at].model, samples[slot[at].model]))
            samples[slot[at].model] += 1
        if told == len(fates):
            return asks
        now, told = fates[told : told + len(asks)], told + len(asks)
        going = []
        for (slot, at), fate in zip(active, now, strict=True):
            if fate == Fate.kept:
                continue
            after = at + 1
            while fate == Fate.failed and after < len(slot) and slot[after].again:
                after += 1
            if after < len(slot):
                going.append((slot, after))
            elif waiting:
                going.append(waiting.popleft())
        active = going


def most_asks(slots: Sequence[Slot], need: int) -> Counter[str]:
    """How often each model can be asked at most, whatever becomes of the asks; nobody when nothing is needed."""
    return Counter(step.model for slot in slots for step in slot) if need else Counter()


def greedy_among(temperatures: Mapping[str, float]) -> frozenset[str]:
    """Models that give the same answer every time."""
    return frozenset(name for name, temperature in temperatures.items() if temperature == 0)


# ── the stage ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Collected:
    """What was collected, for the manifest.

    `outcomes` counts rows: usable ones by how they ended (stop, length, refusal), the others as error, empty or duplicate;
    and prompts that ended with `fewer_than_k` usable answers. `metrics`: {"prompts", "k", "rounds": calls of each round,
    "prompts_by_answers": {"7": …}, "models": {label: {"calls", "kept", "failed", "empty", "duplicate", "refused",
    "truncated"}} where the last two are among the kept, "found": {author: answers used}, "found_unused"}.
    """

    rows: int
    outcomes: dict[str, int]
    metrics: dict[str, Any]


def collect(
    prompts: Collection[Prompt],
    pool: Mapping[str, Endpoint],
    settings: ResponsesSection,
    *,
    out: Path,
    scratch: Path,
    seed: int = 0,
    systems: Mapping[str, str] | None = None,
    found: Iterable[FoundAnswer] = (),
    progress: Progress = SILENT,
) -> Collected:
    """Ask until every prompt has K usable answers or nobody is left to ask, and write all responses to one file.

    The file is in the order of the prompts; within a prompt found answers come first, then the pool's in the order of
    `settings.names`, each model's draws one after the other. It has `settings.answers` usable rows per prompt, or fewer where
    that could not be had, and a row for every ask that came to nothing.

    Args:
        prompts: what to answer; gone through several times, never held.
        pool: endpoint by label, one for each of `settings.names`.
        settings: how many answers, from whom.
        out: the parquet file to write.
        scratch: an existing folder for files that are removed again.
        seed: decides, with the prompt, who answers where not everybody does.
        systems: system message by label, for models that have one.
        found: answers that were found with the prompts, in the order of the prompts; gone through several times.
        progress: gets one unit per call; each round is a piece of work of its own.

    Raises:
        ArtifactError: a found answer belongs to no prompt, or its order is another one.
    """
    stage = _Stage(pool, settings, seed, systems or {})
    todo: Callable[[], Iterator[_Todo]] = partial(stage.beginning, prompts, found)
    asked: Collection[Prompt] = prompts
    files: list[Path] = []
    rounds: list[int] = []
    while True:
        files.append(scratch / f"round-{len(files)}.parquet")
        calls, left = stage.ask(asked, todo, files[-1], progress)
        rounds += [calls] if calls else []
        if not left:
            break
        file = scratch / f"open-{len(files) % 2}.parquet"  # in turn: the new one is made from the old one
        write_records(file, _members(asked, left), Prompt)
        asked = RecordFile(file, Prompt)
        todo = _Continued(asked, list(left.values()))
    tally = _Tally(settings.names)
    write_records(out, tally.counting(_merged(files, settings.names)), Response)
    for file in (*files, scratch / "open-0.parquet", scratch / "open-1.parquet"):
        file.unlink(missing_ok=True)
    return tally.result(len(prompts), settings.answers, rounds, stage.found_unused)


class _State(NamedTuple):
    """Where a prompt stands between two rounds, in a few bytes: there can be 183,000 of them."""

    need: int
    fates: bytes
    seen: bytes
    """Digests of the texts kept, DIGEST bytes each."""


class _Todo(NamedTuple):
    """A prompt that takes part in a round; `rows` are those it has without asking."""

    prompt: Prompt
    state: _State
    rows: Sequence[Response]


DIGEST = 8
"""Bytes that tell a dozen texts of one prompt apart (two different ones agree once in 10^17)."""


def _members(prompts: Iterable[Prompt], numbers: Collection[int]) -> Iterator[Prompt]:
    return (prompt for number, prompt in enumerate(prompts) if number in numbers)


@dataclass(frozen=True)
class _Continued:
    """The prompts of a later round with their states; call it to go through them."""

    prompts: Collection[Prompt]
    states: list[_State]

    def __call__(self) -> Iterator[_Todo]:
        return (_Todo(prompt, state, rows) for prompt, state, rows in zip(self.prompts, self.states, repeat(()), strict=False))


class _Questions(Collection[Request]):
    """What one model is asked in a round: made anew from the prompts whenever somebody goes through it."""

    def __init__(self, prompts: Collection[Prompt], endpoint: Endpoint, system: str | None) -> None:
        self._prompts, self._model, self._system = prompts, endpoint.model, system
        self._numbers, self._samples = array("I"), array("H")

    def add(self, number: int, sample: int) -> None:
        """Ask about the prompt of this number; numbers never fall."""
        self._numbers.append(number)
        self._samples.append(sample)

    def __len__(self) -> int:
        return len(self._numbers)

    def __contains__(self, request: object) -> bool:
        return any(request == one for one in self)

    def __iter__(self) -> Iterator[Request]:
        prompts = enumerate(self._prompts)
        at, prompt = -1, None
        for number, sample in zip(self._numbers, self._samples, strict=True):
            while at < number:
                at, prompt = next(prompts)
            assert prompt is not None
            messages = with_system(prompt.messages, self._system)
            yield Request(model=self._model, messages=messages, sample=sample, purpose="respond")


class _Stage:
    """What does not change from round to round."""

    def __init__(self, pool: Mapping[str, Endpoint], settings: ResponsesSection, seed: int, systems: Mapping[str, str]) -> None:
        self._pool, self._settings, self._seed, self._systems = pool, settings, seed, systems
        self._greedy = greedy_among({name: endpoint.model.sampling.temperature for name, endpoint in pool.items()})
        self.found_unused = 0

    # ── found answers ────────────────────────────────────────────────────────────────────────────────────────────────

    def beginning(self, prompts: Iterable[Prompt], found: Iterable[FoundAnswer]) -> Iterator[_Todo]:
        """Every prompt with the found answers it starts from."""
        self.found_unused = 0
        groups = groupby(found, key=attrgetter("prompt_id"))
        head = next(groups, None)
        for prompt in prompts:
            there: list[FoundAnswer] = []
            if head is not None and head[0] == prompt.id:
                there, head = list(head[1]), next(groups, None)
            rows, seen = self._chosen(prompt, there)
            self.found_unused += len(there) - len(rows)
            yield _Todo(prompt, _State(self._settings.answers - len(rows), b"", seen), rows)
        if head is not None:
            raise ArtifactError(
                "An answer that was found belongs to none of the prompts, or is out of their order",
                where=f"answers to prompt {head[0]}",
                cure="run the prompts stage again: its prompts and answers come from different runs",
            )

    def _chosen(self, prompt: Prompt, there: Sequence[FoundAnswer]) -> tuple[list[Response], bytes]:
        """The found answers that are used: any of them is as likely, whatever order the source has them in."""
        most = self._settings.answers if self._settings.max_found is None else self._settings.max_found
        rows: list[Response] = []
        seen = b""
        for answer in sorted(there, key=lambda a: content_hash(["found", self._seed, prompt.id, a.model, a.text])):
            digest = self._digest(answer.model, answer.text)
            if len(rows) < min(most, self._settings.answers) and answer.text.strip() and not _within(digest, seen):
                seen += digest
                id_ = content_hash([prompt.id, answer.model, answer.text], 16)
                rows.append(
                    Response(
                        id=id_, prompt_id=prompt.id, model=answer.model, text=answer.text, finish=Finish.stop, call_id="",
                        source=answer.source,
                    )
                )  # fmt: skip
        return rows, seen

    # ── a round ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def ask(
        self, prompts: Collection[Prompt], todo: Callable[[], Iterator[_Todo]], file: Path, progress: Progress
    ) -> tuple[int, dict[int, _State]]:
        """One round: ask, write what came back, and say how many calls that were and which prompts still lack something."""
        questions = {name: _Questions(prompts, self._pool[name], self._systems.get(name)) for name in self._settings.names}
        for number, one in enumerate(todo()):
            for model, sample in self._next(one.prompt, one.state):
                questions[model].add(number, sample)
        asked = {name: those for name, those in questions.items() if those}
        calls = sum(map(len, asked.values()))
        replies: dict[str, Iterator[Reply]] = {}
        if calls:
            progress.start("respond" if file.stem == "round-0" else "respond again", calls)
            answers = ask_together([(self._pool[name], those) for name, those in asked.items()], progress)
            replies = dict(zip(asked, answers, strict=True))
            progress.finish()
        left: dict[int, _State] = {}

        def rows() -> Iterator[Response]:
            for number, one in enumerate(todo()):
                yield from one.rows
                asks = self._next(one.prompt, one.state)
                state, fresh = self._taken(one, [(model, next(replies[model])) for model, _ in asks])
                yield from fresh
                if asks and self._next(one.prompt, state):
                    left[number] = state

        write_records(file, rows(), Response)
        return calls, left

    def _next(self, prompt: Prompt, state: _State) -> list[Ask]:
        return next_asks(slots_of(prompt.id, self._settings, self._greedy, self._seed), state.need, state.fates)

    def _taken(self, one: _Todo, replies: Iterable[tuple[str, Reply]]) -> tuple[_State, list[Response]]:
        """The prompt's state after these replies, and their rows."""
        need, fates, seen = one.state
        rows: list[Response] = []
        for model, reply in replies:
            text = "" if reply.finish is Finish.error else reply.text
            digest = self._digest(model, text)
            aside: Literal["", "duplicate", "empty"] = ""
            if reply.finish is not Finish.error:
                aside = "empty" if not text.strip() else "duplicate" if _within(digest, seen) else ""
            fate = Fate.failed if reply.finish is Finish.error else Fate.useless if aside else Fate.kept
            seen += digest if fate is Fate.kept else b""
            fates += bytes([fate])
            rows.append(
                Response(
                    id=content_hash([one.prompt.id, model, text], 16), prompt_id=one.prompt.id, model=model, text=text,
                    finish=reply.finish, call_id=reply.call_id, reason=reply.error, set_aside=aside,
                )
            )  # fmt: skip
        return _State(need, fates, seen), rows

    def _digest(self, model: str, text: str) -> bytes:
        """Equal for texts that count as the same; blanks around them do not matter."""
        said = text.strip() if self._settings.distinct else f"{model}\0{text.strip()}"
        return hashlib.blake2b(said.encode("utf-8", "surrogatepass"), digest_size=DIGEST).digest()


def _within(digest: bytes, seen: bytes) -> bool:
    return any(digest == seen[at : at + DIGEST] for at in range(0, len(seen), DIGEST))


# ── all rounds together ──────────────────────────────────────────────────────────────────────────────────────────────


def _merged(files: Sequence[Path], names: Sequence[str]) -> Iterator[Response]:
    """The rows of all rounds by prompt: found ones, then by model, then by round. Whoever has a row has one in the first file."""
    order = {name: place for place, name in enumerate(names)}
    groups = [groupby(RecordFile(file, Response), key=attrgetter("prompt_id")) for file in files]
    heads = [next(group, None) for group in groups]
    while heads[0] is not None:
        prompt_id = heads[0][0]
        rows: list[Response] = []
        for number, head in enumerate(heads):
            if head is not None and head[0] == prompt_id:
                rows += head[1]
                heads[number] = next(groups[number], None)
        yield from sorted(rows, key=lambda r: -1 if r.source else order[r.model])


@dataclass
class _Tally:
    """Counts rows that pass by."""

    names: Sequence[str]
    rows: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    by_model: dict[str, Counter[str]] = field(default_factory=dict)
    by_answers: Counter[int] = field(default_factory=Counter)

    def counting(self, responses: Iterable[Response]) -> Iterator[Response]:
        self.by_model = {name: Counter() for name in self.names}
        for _, rows in groupby(responses, key=attrgetter("prompt_id")):
            usable = 0
            for row in rows:
                self._count(row)
                usable += row.usable
                yield row
            self.by_answers[usable] += 1

    def _count(self, row: Response) -> None:
        self.rows += 1
        self.outcomes[row.set_aside or row.finish.value] += 1
        if row.source:
            self.found[row.model] += 1
            return
        counts = self.by_model[row.model]
        counts["calls"] += 1
        counts["kept" if row.usable else row.set_aside or "failed"] += 1
        if row.usable:
            counts["refused"] += row.finish is Finish.refusal
            counts["truncated"] += row.finish is Finish.length

    def result(self, prompts: int, k: int, rounds: list[int], found_unused: int) -> Collected:
        """Everything counted; `prompts` is their number, those without a single row among them."""
        self.by_answers[0] += prompts - sum(self.by_answers.values())
        parts = ("calls", "kept", "failed", "empty", "duplicate", "refused", "truncated")
        fewer = sum(count for answers, count in self.by_answers.items() if answers < k)
        outcomes = self.outcomes + Counter({"fewer_than_k": fewer})
        metrics = {
            "prompts": prompts, "k": k, "rounds": rounds,
            "prompts_by_answers": {str(n): count for n, count in sorted(self.by_answers.items()) if count},
            "models": {name: {part: counts[part] for part in parts} for name, counts in self.by_model.items()},
            "found": dict(sorted(self.found.items())), "found_unused": found_unused,
        }  # fmt: skip
        return Collected(self.rows, {name: outcomes[name] for name in sorted(outcomes)}, metrics)
