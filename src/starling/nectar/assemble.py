"""Joins prompts, responses, rankings and judgments into rows of the dataset, in one pass over all four.

All four come in the order of the prompts (that is how the stages write them), so the join holds what belongs to one prompt and
nothing else. A record out of that order, or about a prompt that is not there, is an error: the files come from different runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Generic, TypeVar

from starling.chat import to_transcript
from starling.config import DatasetSection
from starling.errors import ArtifactError, InputError
from starling.nectar.schema import NectarWriter
from starling.progress import SILENT, Progress
from starling.records import (
    Judgment,
    MergedRanking,
    PlacedVerdict,
    Prompt,
    RankedAnswer,
    RankedPair,
    RankedPrompt,
    Response,
)

R = TypeVar("R", Response, MergedRanking, Judgment)


class Assembly(Iterable[RankedPrompt]):
    """The rows of the dataset in the order of the prompts, made while they are read; see `assemble`.

    `left_out` counts, once all rows are read, the rankings that are not among them: by an outcome other than ranked,
    `too_few_answers`, `no_transcript` (the conversation cannot be written as one).
    """

    def __init__(self, make: Callable[[Counter[str]], Iterator[RankedPrompt]]) -> None:
        self._make = make
        self._counts: Counter[str] = Counter()

    @property
    def left_out(self) -> dict[str, int]:
        return dict(sorted(self._counts.items()))

    def __iter__(self) -> Iterator[RankedPrompt]:
        self._counts.clear()
        return self._make(self._counts)


def assemble(
    prompts: Iterable[Prompt],
    responses: Iterable[Response],
    rankings: Iterable[MergedRanking],
    judgments: Iterable[Judgment],
    settings: DatasetSection,
) -> Assembly:
    """One row per prompt whose merged ranking orders at least `settings.min_answers` answers.

    Args:
        prompts: theirs is the order that everything else has to keep; those without a ranking give no row.
        responses: several per prompt, or none.
        rankings: at most one per prompt.
        judgments: the calls behind the rankings, several per prompt.
        settings: what a row needs.

    Raises:
        ArtifactError: while reading: a record comes out of the order of the prompts, belongs to no prompt, or names a response
            that is not there.
    """

    def rows(left_out: Counter[str]) -> Iterator[RankedPrompt]:
        answers = _ByPrompt("response", responses)
        merged = _ByPrompt("ranking", rankings)
        calls = _ByPrompt("judgment", judgments)
        for prompt in prompts:
            found = {r.id: r for r in answers.of(prompt.id)}
            ranking, said = merged.of(prompt.id), calls.of(prompt.id)
            if len(ranking) > 1:
                raise _mismatch("There are several merged rankings of one prompt", f"prompt {prompt.id}")
            if not ranking:
                if said:
                    raise _mismatch("There are judgments of a prompt, but no merged ranking of it", f"prompt {prompt.id}")
                continue
            row = _row(prompt, found, ranking[0], said, settings, left_out)
            if row is not None:
                yield row
        for stream in (answers, merged, calls):
            stream.finish()

    return Assembly(rows)


class _ByPrompt(Generic[R]):
    """A stream of records in prompt order, taken prompt by prompt."""

    def __init__(self, what: str, records: Iterable[R]) -> None:
        self._what = what
        self._records: Iterator[R] = iter(records)
        self._next: R | None = next(self._records, None)

    def of(self, prompt_id: str) -> list[R]:
        """The next records, as long as they belong to this prompt."""
        taken: list[R] = []
        while self._next is not None and self._next.prompt_id == prompt_id:
            taken.append(self._next)
            self._next = next(self._records, None)
        return taken

    def finish(self) -> None:
        """Raise when records are left that belonged to none of the prompts asked for."""
        if self._next is not None:
            raise _mismatch(
                f"A {self._what} belongs to a prompt that is not there, or stands out of the order of the prompts",
                f"{self._what} of prompt {self._next.prompt_id}",
            )


def _mismatch(what: str, where: str) -> ArtifactError:
    cure = "run the prompts, responses and ranking stages again: their files come from different runs or were sorted anew"
    return ArtifactError(what, where=where, cure=cure)


def _row(
    prompt: Prompt,
    responses: Mapping[str, Response],
    ranking: MergedRanking,
    judgments: Sequence[Judgment],
    settings: DatasetSection,
    left_out: Counter[str],
) -> RankedPrompt | None:
    """The row of one prompt, or None and one more in `left_out`."""
    if not ranking.tiers:
        left_out[str(ranking.outcome)] += 1
        return None
    best_first = [i for tier in ranking.tiers for i in tier]
    if len(best_first) < settings.min_answers:
        left_out["too_few_answers"] += 1
        return None
    ranks = [1.0 + sum(map(len, ranking.tiers[:above])) for above, tier in enumerate(ranking.tiers) for _ in tier]
    place = {i: number for number, i in enumerate(best_first)}
    try:
        row = RankedPrompt(
            prompt=prompt,
            answers=tuple(
                RankedAnswer(answer=responses[i].text, model=responses[i].model, rank=rank)
                for i, rank in zip(best_first, ranks, strict=True)
            ),
            good_natured=ranking.good_natured,
            lineage=_lineage(ranking, judgments),
            pairs=tuple(
                RankedPair(better=place[p.better], worse=place[p.worse], confidence=p.support / p.weight, weight=p.weight)
                for p in ranking.pairs
            ),
            verdicts=tuple(_verdicts(judgments, place)),
            contested=ranking.contested,
            judge_calls=len(ranking.calls) or None,
        )
    except KeyError as missing:
        raise _mismatch(
            f"A ranking or judgment names the response {missing}, which is not there", f"ranking of prompt {prompt.id}"
        ) from None
    try:
        to_transcript(prompt.messages)
    except InputError:
        left_out["no_transcript"] += 1
        return None
    return row


def _verdicts(judgments: Sequence[Judgment], place: Mapping[str, int]) -> Iterator[PlacedVerdict]:
    for judgment in judgments:
        for v in judgment.pair_verdicts:
            yield PlacedVerdict(first=place[v.first], second=place[v.second], winner=place[v.winner])
        for first, second in judgment.pair_ties:
            yield PlacedVerdict(first=place[first], second=place[second], winner=None)


def _lineage(ranking: MergedRanking, judgments: Sequence[Judgment]) -> dict[str, str]:
    """Where the ranking came from; all calls about a prompt have the same judge and rubric."""
    about = {"judge": judgments[0].judge, "rubric": judgments[0].rubric} if judgments else {}
    return about | {"calls": " ".join(ranking.calls)}


def write_splits(folder: Path, rows: Iterable[RankedPrompt], progress: Progress = SILENT) -> int:
    """Write each row into the file of its split, `<folder>/train.parquet` and so on, with the extra columns; returns how many
    there are. There is always a file for train, the others only where they have rows. `progress` gets one unit per row.

    Raises:
        InputError: a row cannot be written.
    """
    written = 0
    with ExitStack() as files:
        splits = {"train": files.enter_context(NectarWriter(folder / "train.parquet", extra=True))}
        for row in rows:
            split = row.prompt.split
            if split not in splits:
                splits[split] = files.enter_context(NectarWriter(folder / f"{split}.parquet", extra=True))
            splits[split].write(row)
            written += 1
            progress.advance()
    return written
