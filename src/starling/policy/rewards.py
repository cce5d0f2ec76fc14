"""Reward models that score rollouts: the run's own, further ones that are combined with it, and the guard that only watches.

Replies to one prompt share its tokens in a pass where the model passes the trial of that layout. Every process scores its share.

Shapes: B replies, M reward models, G groups of K replies to one prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from starling.models.encode import Encoded, Encoder
from starling.models.load import load_reward_tokenizer, load_scalar, longest_input
from starling.models.score import Layout, choose_layout, score_groups
from starling.models.tree import tree_tokens
from starling.policy.rollout import Rollout
from starling.records import Prompt
from starling.training.engine import Engine
from starling.training.plan import deal


class RewardModel:
    """A frozen reward model with its tokenizer.

    Args:
        folder: any *ForSequenceClassification with one output, or a peft adapter of one.
        device: where it computes.

    Raises:
        InputError: the folder holds no reward model with a tokenizer.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.name = str(folder)
        self.head = load_scalar(folder).requires_grad_(False).eval().to(device)
        tokenizer = load_reward_tokenizer(folder)
        self.encoder = Encoder(tokenizer, max_length=longest_input(self.head.model, tokenizer) or 1 << 30)
        self.layout: Layout = "sequences"

    @property
    def statistics(self) -> dict[str, float]:
        """Recorded mean and standard deviation of its scores; empty if there are none."""
        return self.head.statistics

    def choose(self, prompt: Prompt, wanted: Literal["auto", "shared_prefix", "sequences"], engine: Engine) -> None:
        """Find the layout, by a trial on two replies to a prompt.

        Raises:
            InputError: shared_prefix was asked for, and the model cannot do it.
        """
        trial = self._encode([(prompt, "a", True), (prompt, "a b", False)])
        with engine.accelerator.autocast():
            self.layout = choose_layout(self.head, trial, self.encoder.pad_id, wanted, engine.accelerator.mixed_precision != "no")

    @torch.no_grad()
    def score(self, rollouts: Sequence[Rollout], samples: int, engine: Engine, budget: int) -> npt.NDArray[np.float64]:
        """Raw score of each rollout, the same on all processes.

        A text is encoded anew with the model's own template, without its end where the reply has none; one that is longer than
        the model's positions is cut on the left.

        Args:
            rollouts: `samples` after each other for each prompt.
            engine: says how many processes share the work.
            budget: tokens of a pass.
        """
        rows = self._encode([(r.prompt, r.text, r.finished) for r in rollouts])
        groups = [rows[i : i + samples] for i in range(0, len(rows), samples)]
        costs = [self._cost(group) for group in groups]
        scores_GK = torch.zeros(len(groups), samples, device=engine.device, dtype=torch.float64)
        for items in deal(range(len(groups)), costs, budget, engine.ranks, self.layout == "sequences")[engine.rank]:
            if items:
                with engine.accelerator.autocast():
                    found_GK, _ = score_groups(self.head, [groups[i] for i in items], self.encoder.pad_id, self.layout)
                scores_GK[torch.tensor(items, device=engine.device)] = found_GK.double()
        found: npt.NDArray[np.float64] = engine.total(scores_GK).flatten().cpu().numpy()
        return found

    def _encode(self, replies: Sequence[tuple[Prompt, str, bool]]) -> list[Encoded]:
        rows = self.encoder.conversations([(prompt.messages, text, finished) for prompt, text, finished in replies])
        fitted = [self.encoder.fit(row, "truncate_left")[0] for row in rows]
        return [row for row in fitted if row is not None]  # only "drop" gives none

    def _cost(self, group: Sequence[Encoded]) -> int:
        if self.layout == "shared_prefix":
            return tree_tokens([row.ids for row in group])
        return len(group) * max(len(row.ids) for row in group)
