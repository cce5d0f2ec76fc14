"""What is found out about a server at first contact, and which sampling settings its log-probs can serve.

The trainer recomputes the log-prob of every sampled token at the sampling temperature, before top-p cuts the distribution. What
an engine reports of the tokens it draws is one of

    raw         at temperature 1, before top-p       vLLM's default, raw_logprobs; SGLang with SGLANG_RETURN_ORIGINAL_LOGPROB=1
    tempered    at the temperature, before top-p     SGLang's default
    truncated   at the temperature, after top-p      vLLM --logprobs-mode processed_logprobs
    logits      no log-probs at all                  vLLM --logprobs-mode raw_logits, processed_logits

so some combinations are refused instead of training on ratios that mean nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from starling.records import Sampling

LogprobKind = Literal["raw", "tempered", "truncated", "logits"]


@dataclass(frozen=True)
class Facts:
    """One server, e.g. Facts(version="0.33.0", model="base", logprobs="raw", seeded=True, max_length=8192)."""

    version: str
    model: str
    """Its name on that server (vLLM), or the folder that it was loaded from (SGLang)."""
    logprobs: LogprobKind | None
    """None: the server does not say; it is measured when it matters."""
    seeded: bool
    """Whether a request's seed decides what is drawn."""
    max_length: int | None
    """Tokens of prompt and reply together; None: not said."""


UNKNOWN = Facts(version="", model="", logprobs=None, seeded=False, max_length=None)


def unfit(kind: LogprobKind, sampling: Sampling) -> str:
    """Why log-probs of this kind are not those that the trainer computes; "" when they are.

    Greedy replies are for evaluation: their log-probs enter no loss, and every kind is as good.
    """
    if kind == "logits":
        return "it reports logits instead of log-probs"
    if sampling.temperature == 0:
        return ""
    if kind == "raw" and sampling.temperature != 1:
        return f"it reports log-probs at temperature 1, and replies are sampled at {sampling.temperature:g}"
    if kind == "truncated" and sampling.top_p < 1:
        return f"it reports log-probs after top-p, and replies are sampled with top_p = {sampling.top_p:g}"
    return ""
