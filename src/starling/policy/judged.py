"""The run's judge on a policy in tuning: its greedy replies against the base's, for the choice of the checkpoint.

Source: Starling's authors took, of the checkpoints that neither ramble nor unlearn, the one that a judge prefers. As in the head
to head of the evaluation each prompt is shown in both orders and won where both prefer the same reply (MT-Bench, arXiv
2306.05685, section 3.4); equal replies are a tie without a call; a prompt with a verdict missing has no score and is counted.
The calls are the judge's like any other: in the journal, within the budget, and not made again when a killed tuning goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from starling.config import Config, RankingSection
from starling.endpoint import Endpoint
from starling.judge.given import Duel, agreed, compare_many
from starling.policy.guard import standard_error
from starling.records import Prompt

BASE, POLICY = "base", "policy"


@dataclass(frozen=True)
class Judge:
    """Who is asked, and how."""

    endpoint: Endpoint
    ranking: RankingSection
    seed: int

    @classmethod
    def of(cls, config: Config, endpoint: Callable[[str], Endpoint]) -> Judge | None:
        """The run's judge; None where the policy's selection does not ask it."""
        if not config.policy.selection.judge_prompts or config.ranking is None:
            return None
        return cls(endpoint(config.ranking.judge), config.ranking, config.run.seed)

    def compare(self, prompts: Sequence[Prompt], base: Sequence[str], policy: Sequence[str]) -> dict[str, float]:
        """The win rate of the policy's replies over the base's.

        Args:
            prompts: what was asked.
            base, policy: one reply of each per prompt.

        Returns:
            win_rate (a tie counts half) with win_rate_se over prompts, absent where no prompt has both verdicts; no_verdict, the
            share of prompts without them.

        Raises:
            BudgetError, EndpointError: as the endpoint's; everything answered is in the journal.
        """
        differing = [
            Duel(prompt, BASE, POLICY, one, other)
            for prompt, one, other in zip(prompts, base, policy, strict=True)
            if one != other
        ]
        both = [duel for pair in differing for duel in (pair, pair.swapped())]
        said = compare_many(both, self.endpoint, self.ranking, self.seed) if both else []
        orders = zip(said[::2], said[1::2], strict=True)
        scores = [agreed(first.preference_b, second.swap().preference_b) for first, second in orders]
        decided = [s for s in scores if s is not None] + [0.5] * (len(prompts) - len(differing))
        found = {"no_verdict": scores.count(None) / len(prompts)}
        if decided:
            error = standard_error(decided, range(len(decided)))
            found |= {"win_rate": sum(decided) / len(decided), **({"win_rate_se": error} if error is not None else {})}
        return found
