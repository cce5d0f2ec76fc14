"""Stage 3: the judge ranks the responses of each prompt.

Source: Nectar (one 7-wise judge call per prompt). Departures: prompts and responses that cannot be ranked are counted by
reason instead of vanishing, and every judge call leaves a `Judgment`, ranked or not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from starling.config import RankingSection
from starling.endpoint import Endpoint
from starling.errors import ArtifactError
from starling.judge.judge import Panel, rank_many
from starling.progress import SILENT, Progress
from starling.records import Finish, Judgment, Prompt, Response


@dataclass(frozen=True)
class Ranked:
    """All judge calls' results in prompt order, and what never reached the judge.

    `left_out` counts responses under `response_error` (the call for them had failed), `response_duplicate` and `response_empty`
    (the responses stage set them aside) and `response_repeated` (the same response twice), and prompts under
    `fewer_than_2_responses`. Example: Ranked([…], {"response_error": 3}).
    """

    judgments: list[Judgment]
    left_out: dict[str, int]

    @property
    def outcomes(self) -> dict[str, int]:
        """Judgments by outcome and what was left out, in one table for the manifest."""
        counts = Counter(str(j.outcome) for j in self.judgments)
        return {**{name: counts[name] for name in sorted(counts)}, **self.left_out}


def rank(
    prompts: Sequence[Prompt],
    responses: Sequence[Response],
    judge: Endpoint,
    settings: RankingSection,
    seed: int,
    progress: Progress = SILENT,
) -> Ranked:
    """One judge call (and at most one more) per prompt that has at least two usable responses.

    Responses with equal texts from different models are all shown unless they were set aside (`responses.distinct`).

    Raises:
        ArtifactError: a response belongs to none of the prompts.
    """
    usable: dict[str, dict[str, Response]] = {p.id: {} for p in prompts}
    left_out: Counter[str] = Counter()
    for response in responses:
        if response.prompt_id not in usable:
            raise ArtifactError(
                f"The response {response.id} belongs to a prompt that is not there",
                where=f"prompt {response.prompt_id}",
                cure="run the prompts and responses stages again; they come from different runs",
            )
        if response.finish is Finish.error:
            left_out["response_error"] += 1
        elif response.set_aside:
            left_out[f"response_{response.set_aside}"] += 1
        elif response.id in usable[response.prompt_id]:
            left_out["response_repeated"] += 1
        else:
            usable[response.prompt_id][response.id] = response
    panels = [Panel(p, tuple(usable[p.id].values())) for p in prompts if len(usable[p.id]) >= 2]
    if len(panels) < len(prompts):
        left_out["fewer_than_2_responses"] = len(prompts) - len(panels)
    return Ranked(rank_many(panels, judge, settings, seed, progress), dict(sorted(left_out.items())))
