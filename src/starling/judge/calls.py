"""One call to the judge: the model as it is asked, the marker of its prompt, and what became of its reply."""

from __future__ import annotations

from collections.abc import Sequence

from starling.call import Failure as CallFailure
from starling.endpoint import Reply
from starling.judge.rubric import NONCE_CHARS, nonce_is_free
from starling.judge.verdict import Failure, Grammar, Verdict, parse
from starling.records import Finish, Messages, ModelRef, Outcome, content_hash


def with_limit(model: ModelRef, max_tokens: int, top_logprobs: int = 0) -> ModelRef:
    """The judge with the limit on its reply and the number of log-probabilities that somebody reads; the rest stays."""
    changes = {"max_tokens": max_tokens, "top_logprobs": top_logprobs}
    return model.model_copy(update={"sampling": model.sampling.model_copy(update=changes)})


def fresh_nonce(seed: int, draw: int, messages: Messages, texts: Sequence[str]) -> str:
    """Hex digits that depend on all the material, so nothing in the material can have known them."""
    material = [seed, draw, [[m.role, m.content] for m in messages], list(texts)]
    round_ = 0
    while True:
        nonce = content_hash(["marker", round_, *material], NONCE_CHARS)
        if nonce_is_free(nonce, messages, texts):
            return nonce
        round_ += 1


def read_reply(reply: Reply | None, k: int, grammar: Grammar) -> tuple[Outcome, str, Verdict | None]:
    """What became of a call, why, and the verdict. Only a reply that ended by itself is parsed.

    Args:
        reply: None where the prompt was too long to be sent.
        k: answers shown.
        grammar: what the reply must be written in.
    """
    failed = failure_of(reply)
    if failed is not None:
        return *failed, None
    assert reply is not None
    if reply.finish is Finish.length:
        return Outcome.truncated, "the judge's reply was cut at ranking.max_tokens", None
    verdict = parse(reply.text, k, grammar)
    if isinstance(verdict, Failure):
        return Outcome.unparsed, str(verdict), None
    return Outcome.ranked, "", verdict


def failure_of(reply: Reply | None) -> tuple[Outcome, str] | None:
    """Why a call brought no text of the judge's own, by outcome and in words; None when it did."""
    if reply is None:
        return Outcome.too_long, "the judge prompt is longer than ranking.max_prompt_chars; no call was made"
    if reply.finish is Finish.error:
        reason = reply.error or "the provider gave no reply"
        too_long = reply.failure is CallFailure.context_length
        return (Outcome.too_long if too_long else Outcome.provider_error), reason
    if reply.finish is Finish.refusal:
        return Outcome.refused, "the judge refused"
    return None
