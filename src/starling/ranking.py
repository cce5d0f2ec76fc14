"""Stage 3: the judge ranks the responses of each prompt.

Source: Nectar (one 7-wise judge call per prompt). Departures: prompts and responses that cannot be ranked are counted by
reason instead of vanishing; every judge call leaves a `Judgment`, ranked or not; and all calls about a prompt are merged into one
`MergedRanking`, of which there is one for every prompt that was judged.

Prompts and responses are read as streams in the order of the prompts, several times over, and so is what is written: nothing
here grows with the number of responses but a few bytes for each call.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

from starling.artifacts import RecordFile, write_records
from starling.config import RankingSection
from starling.endpoint import Endpoint
from starling.errors import ArtifactError
from starling.judge import spill
from starling.judge.judge import Panel, rank_many
from starling.judge.merge import merge
from starling.progress import SILENT, Progress
from starling.records import Finish, Judgment, MergedRanking, Prompt, Response

JUDGMENTS_FILE = "judgments.parquet"
RANKINGS_FILE = "rankings.parquet"


@dataclass(frozen=True)
class Ranked:
    """What the judge said, in prompt order, and what never reached it.

    `left_out` counts responses under `response_error` (the call for them had failed), `response_duplicate` and `response_empty`
    (the responses stage set them aside) and `response_repeated` (the same response twice), and prompts under
    `fewer_than_2_responses`. Example: Ranked(…, left_out={"response_error": 3}).
    """

    judgments: Collection[Judgment]
    """Every judge call: those about one prompt side by side."""
    rankings: Collection[MergedRanking]
    """One per prompt that was judged."""
    outcomes: dict[str, int]
    """Prompts by the outcome of their merged ranking, with `left_out`: the one table in which every prompt is explained."""
    metrics: dict[str, int | dict[str, int]]
    """`calls`, `calls_by_outcome`, `asked_again` (calls whose reply did not parse and that were repeated), `contested`."""
    left_out: dict[str, int]


def rank(
    prompts: Iterable[Prompt],
    responses: Iterable[Response],
    judge: Endpoint,
    settings: RankingSection,
    seed: int,
    progress: Progress = SILENT,
    folder: Path | None = None,
) -> Ranked:
    """Judge every prompt that has at least two usable responses, in the mode and the number of orders that the settings name.

    Responses with equal texts from different models are all shown unless they were set aside (`responses.distinct`).

    Args:
        prompts: re-iterable; the order of everything else.
        responses: re-iterable, in the order of the prompts; those to one prompt in any order.
        judge: the endpoint asked.
        settings: the section [ranking].
        seed: of orders, markers and lots.
        progress: gets one piece of work per round of calls.
        folder: where judgments.parquet and rankings.parquet are written, which are then read from there. With None they are
            returned as lists.

    Raises:
        ArtifactError: a response belongs to none of the prompts, or stands out of their order.
    """
    if folder is None:
        with TemporaryDirectory(prefix="ranking-") as name:
            found = rank(prompts, responses, judge, settings, seed, progress, Path(name))
            return Ranked(list(found.judgments), list(found.rankings), found.outcomes, found.metrics, found.left_out)
    panels = Panels(prompts, responses)
    tally = _Tally()
    with TemporaryDirectory(prefix="ranking-", dir=folder) as name:
        waiting = Path(name) / "rankings.jsonl.gz"
        groups = rank_many(panels, judge, settings, seed, progress, Path(name))
        write_records(folder / JUDGMENTS_FILE, chain.from_iterable(_merging(groups, settings, seed, tally, waiting)), Judgment)
        write_records(folder / RANKINGS_FILE, spill.read(waiting, MergedRanking), MergedRanking)
    return Ranked(
        RecordFile(folder / JUDGMENTS_FILE, Judgment),
        RecordFile(folder / RANKINGS_FILE, MergedRanking),
        {**dict(sorted(tally.outcomes.items())), **panels.left_out},
        {
            "calls": sum(tally.calls.values()),
            "calls_by_outcome": dict(sorted(tally.calls.items())),
            "asked_again": tally.asked_again,
            "contested": tally.contested,
        },
        panels.left_out,
    )


@dataclass
class _Tally:
    """Counts, taken while the judgments go by."""

    outcomes: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    asked_again: int = 0
    contested: int = 0


def _merging(
    groups: Iterable[tuple[Judgment, ...]], settings: RankingSection, seed: int, tally: _Tally, waiting: Path
) -> Iterator[tuple[Judgment, ...]]:
    """Hand the judgments of each prompt on and leave what they come to in the file `waiting`."""

    def merged() -> Iterator[MergedRanking]:
        for group in groups:
            latest.append(group)
            yield merge(group, orders=settings.orders, keep_ties=settings.ties == "keep", seed=seed)

    latest: list[tuple[Judgment, ...]] = []
    for ranking in spill.write(waiting, merged()):
        group = latest.pop()
        tally.outcomes[ranking.outcome.value] += 1
        tally.contested += ranking.contested
        tally.asked_again += sum(j.attempt > 0 for j in group)
        tally.calls.update(j.outcome.value for j in group)
        yield group


class Panels(Iterable[Panel]):
    """Prompts with their usable responses, joined as two streams in prompt order; one whole pass also counts `left_out`."""

    def __init__(self, prompts: Iterable[Prompt], responses: Iterable[Response]) -> None:
        self._prompts, self._responses = prompts, responses
        self.left_out: dict[str, int] = {}

    def __iter__(self) -> Iterator[Panel]:
        left_out: Counter[str] = Counter()
        responses = iter(self._responses)
        waiting = next(responses, None)
        for prompt in self._prompts:
            usable: dict[str, Response] = {}
            while waiting is not None and waiting.prompt_id == prompt.id:
                if waiting.finish is Finish.error:
                    left_out["response_error"] += 1
                elif waiting.set_aside:
                    left_out[f"response_{waiting.set_aside}"] += 1
                elif waiting.id in usable:
                    left_out["response_repeated"] += 1
                else:
                    usable[waiting.id] = waiting
                waiting = next(responses, None)
            if len(usable) >= 2:
                yield Panel(prompt, tuple(usable.values()))
            else:
                left_out["fewer_than_2_responses"] += 1
        if waiting is not None:
            raise ArtifactError(
                f"The response {waiting.id} belongs to a prompt that is not there, or stands out of the order of the prompts",
                where=f"prompt {waiting.prompt_id}",
                cure="run the prompts and responses stages again; they come from different runs",
            )
        self.left_out = dict(sorted(left_out.items()))
