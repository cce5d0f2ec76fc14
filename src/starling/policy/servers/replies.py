"""What both engines' answers have in common: a drawn reply that is whole and consistent, or a named error.

Both engines leave the end token out of the *text* of a reply and, as of vLLM 0.33 and SGLang 0.5.23, keep it in its token ids and
log-probs; gateways and older versions drop it from the ids. Here `ids` end with an end id exactly when the reply is finished.
Nothing is ever made up: an end token whose log-prob did not come back is an error, and no text is tokenised.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from starling.errors import EndpointError
from starling.models.sample import Sampled

_CURE = "use a version of the engine that docs/policy-servers.md names, without a gateway in between that rewrites answers"


def malformed(url: str, what: str, cure: str = _CURE) -> EndpointError:
    """An answer that cannot be used, and must not be guessed at."""
    return EndpointError(f"The inference server's answer is malformed: {what}", where=url, cure=cure)


def whole(url: str, ids: Any, logprobs: Any, *, stopped: bool, matched: Any, end_ids: Sequence[int], limit: int) -> Sampled:
    """One reply as the trainer wants it.

    Args:
        url: of the server, for messages.
        ids: token ids as they came.
        logprobs: of each of them, and of the end token too if it was left out of `ids`.
        stopped: the server says that an end token ended the reply, not its length.
        matched: that token, if the server says which.
        end_ids: tokens that finish a reply.
        limit: most tokens that were asked for.

    Raises:
        EndpointError: the parts do not fit together.
    """
    tokens = _integers(url, ids)
    numbers = _log_probabilities(url, logprobs)
    if stopped and len(numbers) == len(tokens) + 1 and (not tokens or tokens[-1] not in end_ids):
        tokens = [*tokens, _left_out(url, matched, end_ids)]
    if len(tokens) != len(numbers):
        raise malformed(url, f"{len(tokens)} token ids and {len(numbers)} log-probs")
    if not tokens:
        raise malformed(url, "a reply without a token")
    if len(tokens) > limit:
        raise malformed(url, f"{len(tokens)} tokens, {limit} at most were asked for")
    if any(token in end_ids for token in tokens[:-1]):
        raise malformed(url, "the reply goes on behind an end token", cure="see that the engine honours stop_token_ids")
    finished = tokens[-1] in end_ids
    if stopped and not finished:
        if matched in end_ids:
            raise malformed(url, f"the end token {matched} ended the reply, and its log-prob is missing")
        known, other = ", ".join(map(str, end_ids)), tokens[-1] if matched is None else matched
        raise malformed(
            url,
            f"the reply was ended by the token {other}, which is no end token of the policy ({known})",
            cure="take it out of eos_token_id in generation_config.json of the served folder (vLLM: --generation-config vllm)",
        )
    if not stopped and not finished and len(tokens) < limit:
        raise malformed(
            url,
            f"a reply of {len(tokens)} tokens was cut before the {limit} asked for",
            cure="raise the server's context length: --max-model-len (vLLM), --context-length (SGLang)",
        )
    logprobs = tuple(numbers)
    return Sampled(ids=tuple(tokens), logprobs=logprobs, drawn_logprobs=logprobs, finished=finished)


def scores(url: str, pairs: Sequence[tuple[Any, Any]], ids: Sequence[int]) -> list[float]:
    """Log-probs of the tokens of a text after its first.

    Args:
        pairs: (token id, log-prob) of each as they came; the first has no log-prob.
        ids: the text.

    Raises:
        EndpointError: they belong to another text, or some are missing.
    """
    if [token for token, _ in pairs] != list(ids):
        raise malformed(url, "the log-probs asked for belong to other tokens than those sent")
    return _log_probabilities(url, [value for _, value in pairs[1:]])


def _left_out(url: str, matched: Any, end_ids: Sequence[int]) -> int:
    if matched in end_ids:
        return int(matched)
    if matched is None and len(end_ids) == 1:
        return end_ids[0]
    raise malformed(url, f"an end token was left out, and it is not said which (the server says {matched!r})")


def _integers(url: str, values: Any) -> list[int]:
    if not isinstance(values, list) or any(not isinstance(v, int) or isinstance(v, bool) or v < 0 for v in values):
        raise malformed(url, "the token ids of a reply are missing")
    return values


def _log_probabilities(url: str, values: Any) -> list[float]:
    if not isinstance(values, list) or any(not isinstance(v, int | float) or isinstance(v, bool) for v in values):
        raise malformed(url, "log-probs are missing")
    numbers = [float(v) for v in values]
    wrong = [v for v in numbers if not math.isfinite(v) or v > 1e-3]  # rounding of bf16 and fp16 may leave a little above 0
    if wrong:
        raise malformed(url, f"{wrong[0]} is no log-probability", cure="do not start the server with a --logprobs-mode of logits")
    return [min(v, 0.0) for v in numbers]
