"""A reward model that stays loaded: conversations in, numbers out, the same ones whatever else is scored beside them.

On a CPU every conversation is a forward pass of its own, so a score depends on that conversation alone, to the last bit
(on one machine with one number of threads): matrix kernels choose how to add up by the shape of the whole batch. Measured on
two cores (benchmarks/score_alone.py), CPU-seconds against batches of like length: 1.1 times at 100–400 tokens (6M parameters),
2.0 and 1.6 times at 10–60 tokens (6M, 29M). On a GPU conversations of like length share a pass, and a score moves by rounding
with them; batches on a CPU move it by up to 5e-7, a GPU was not measured.

Shapes: N conversations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from starling.models.encode import Encoded, Encoder
from starling.models.load import load_reward_tokenizer, load_scalar, longest_input
from starling.models.score import score_rows, similar_lengths
from starling.progress import SILENT, Progress
from starling.records import Messages

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
GPU_TOKENS = 16_384
"""Padded tokens of a pass on a GPU."""
ROWS_AT_ONCE = {"cpu": 64, "cuda": 2048}
"""Rows that `starling score` hands over at a time: many where like lengths are looked for, few where a kill costs them all."""


def _nothing(done: int) -> None:
    return None


class Scorer:
    """A reward model with its tokenizer.

    Args:
        folder: any *ForSequenceClassification with one output, or a peft adapter of one.
        base: of an adapter, the folder of its base model, if it is not where the adapter says.
        dtype: of the weights in memory, one of DTYPES; the head and the score are fp32.

    Raises:
        InputError: the folder holds no reward model with a tokenizer.
    """

    def __init__(self, folder: Path, base: Path | None = None, dtype: str = "float32") -> None:
        self.head = load_scalar(folder, base, DTYPES[dtype])
        tokenizer = load_reward_tokenizer(folder, base)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.head.to(self.device)
        self.encoder = Encoder(tokenizer, max_length=longest_input(self.head.model, tokenizer) or 2**31)

    @property
    def rows_at_once(self) -> int:
        """How many rows to hand over at a time."""
        return ROWS_AT_ONCE[self.device.type]

    @property
    def max_length(self) -> int:
        """Longest conversation in tokens; a longer one is cut on the left."""
        return self.encoder.max_length

    def encode(self, conversations: Sequence[tuple[Messages, str]]) -> list[Encoded]:
        """Token ids of finished replies to messages, cut to max_length.

        Raises:
            InputError: the chat template refuses one of them.
        """
        return self.encode_replies([(messages, text, True) for messages, text in conversations])

    def encode_replies(self, replies: Sequence[tuple[Messages, str, bool]]) -> list[Encoded]:
        """The same of (messages, reply, finished): one that was cut off has no end token."""
        return [self._fit(row) for row in self.encoder.conversations(replies)]

    def encode_text(self, text: str) -> Encoded:
        """Token ids of a conversation that is rendered already, cut to max_length."""
        return self._fit(self.encoder.rendered(text))

    def encode_ids(self, ids: Sequence[int]) -> Encoded:
        """A conversation that is tokenised already, cut to max_length."""
        return self._fit(Encoded(tuple(ids), len(ids)))

    def _fit(self, row: Encoded) -> Encoded:
        fitted, _ = self.encoder.fit(row, "truncate_left")
        assert fitted is not None  # only "drop" gives none
        return fitted

    def score(
        self, rows: Sequence[Encoded], done: Callable[[int], None] = _nothing, together: int | None = None
    ) -> list[float]:
        """Rewards in the order given; equal conversations are computed once.

        Args:
            done: called with n when n more conversations have theirs.
            together: padded tokens of a pass that conversations of like length share; if None, each has its own on a CPU and
                they share GPU_TOKENS on a GPU.
        """
        places: dict[tuple[int, ...], list[int]] = {}
        for place, row in enumerate(rows):
            places.setdefault(row.ids, []).append(place)
        unique = [rows[same[0]] for same in places.values()]
        if together is None and self.device.type == "cpu":
            passes = [[i] for i in range(len(unique))]
        else:
            passes = similar_lengths([len(r.ids) for r in unique], together or GPU_TOKENS)
        groups = list(places.values())
        rewards_N = [0.0] * len(rows)
        for batch in passes:
            with torch.inference_mode():
                found = score_rows(self.head, [unique[i] for i in batch], self.encoder.pad_id).tolist()
            for i, reward in zip(batch, found, strict=True):
                for place in groups[i]:
                    rewards_N[place] = reward
            done(sum(len(groups[i]) for i in batch))
        return rewards_N


def score_conversations(
    folder: Path | str,
    conversations: Sequence[tuple[Messages, str, bool]],
    batch_tokens: int = GPU_TOKENS,
    progress: Progress = SILENT,
) -> list[float]:
    """Rewards of (messages, reply, finished), in the order given, by a model that is loaded for them alone.

    Conversations of like length share a pass of `batch_tokens` padded tokens, on a CPU too: faster for short texts than one by
    one, and a score moves by rounding with its company.

    Raises:
        InputError: the folder holds no reward model with a tokenizer, or its template refuses a conversation.
    """
    scorer = Scorer(Path(folder))
    progress.start("scoring replies", len(conversations))
    found = scorer.score(scorer.encode_replies(conversations), progress.advance, batch_tokens)
    progress.finish()
    return found
