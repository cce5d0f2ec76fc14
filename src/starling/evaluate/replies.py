"""Replies of a model folder, drawn for evaluation.

torch is imported inside the function, so that reading an evaluation (report, publish) never loads it. Base and tuned
policy draw sample i of a prompt with the same seed (common random numbers): their difference has less noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from starling.progress import Progress
from starling.records import Prompt, Sampling, content_hash

NO_LIMIT = 1 << 20
"""Tokens allowed where a model states no limit."""


@dataclass(frozen=True, kw_only=True)
class DrawnReply:
    """One reply of a policy: its text, whether it ended by itself, and its length in tokens (end token included)."""

    text: str
    finished: bool
    tokens: int


def sample_seed(prompt_id: str, sample: int, seed: int) -> int:
    """A 64-bit seed that depends on the prompt and the sample's number, not on the model."""
    return int(content_hash(["evaluate", prompt_id, sample, seed], 16), 16)


def draw(
    model: Path,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    samples: int,
    seed: int,
    batch: int,
    progress: Progress,
    what: str,
) -> list[tuple[DrawnReply, ...]]:
    """`samples` replies of a causal model folder to each prompt, in the order of the prompts.

    Raises:
        InputError: the folder holds no causal model with a tokenizer.
    """
    from starling.models.encode import Encoder
    from starling.models.load import load_causal, load_tokenizer, longest_input
    from starling.models.sample import Sampler

    net = load_causal(model)
    encoder = Encoder(load_tokenizer(model), max_length=longest_input(net) or NO_LIMIT)
    jobs = [(prompt, sample) for prompt in prompts for sample in range(samples)]
    progress.start(what, len(jobs))
    drawn = Sampler(net, encoder.end_ids, batch).generate(
        [encoder.prompt_ids(prompt.messages) for prompt, _ in jobs],
        sampling,
        [sample_seed(prompt.id, sample, seed) for prompt, sample in jobs],
        done=progress.advance,
    )
    progress.finish()
    replies = [DrawnReply(text=encoder.decode_reply(d.ids), finished=d.finished, tokens=len(d.ids)) for d in drawn]
    return [tuple(replies[i : i + samples]) for i in range(0, len(replies), samples)]
