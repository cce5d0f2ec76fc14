"""A local model that answers requests: the engine behind `endpoint.BatchEndpoint`, between messages and the sampler's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starling.endpoint import Reply, Request
from starling.models.encode import Encoder
from starling.models.sample import Sampler, cut_at, row_seed
from starling.records import Finish


class LocalEngine:
    """A local model as the engine behind `endpoint.BatchEndpoint`: requests in, replies out.

    Args:
        model: a transformers causal language model.
        tokenizer: its tokenizer with chat template.
        batch: rows decoded together.
        seed: the run's seed; with the request's key it fixes every draw.
    """

    def __init__(self, model: Any, tokenizer: Any, *, batch: int, seed: int) -> None:
        self.encoder = Encoder(tokenizer, max_length=getattr(model.config, "max_position_embeddings", 2048))
        self.sampler = Sampler(model, self.encoder.end_ids, batch, decode=self.encoder.decode_reply)
        self.seed = seed

    def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """Replies in the order of the requests. All requests of one call carry the same sampling settings. Where these ask for
        log-probabilities, those of the first token come with the reply, at temperature 1 whatever it was drawn at."""
        prompts = [self.encoder.prompt_ids(r.messages) for r in requests]
        sampling = requests[0].model.sampling
        drawn = self.sampler.generate(prompts, sampling, [row_seed(r.key, self.seed) for r in requests])
        return [
            Reply(
                text=cut_at(self.encoder.decode_reply(one.ids), sampling.stop)[0],
                finish=Finish.stop if one.finished or one.stopped else Finish.length,
                call_id=request.key,
                prompt_tokens=len(prompt),
                completion_tokens=len(one.ids),
                first_token=tuple((self.encoder.decode_reply([token]), logprob) for token, logprob in one.first),
            )
            for request, prompt, one in zip(requests, prompts, drawn, strict=True)
        ]
