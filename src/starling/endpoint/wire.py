"""What goes over the wire: addresses, headers and bodies of three APIs, and what their errors mean.

    api           sent to              model kind in the settings
    chat          /chat/completions    openai (OpenAI, vLLM, SGLang, Ollama, gateways)
    completions   /completions         openai with api = "completions"
    messages      /messages            anthropic

Sources: the API references of OpenAI and Anthropic (version 2023-06-01); the words for "too long" are those of OpenAI, Anthropic,
vLLM, SGLang, llama.cpp, Ollama and TGI. `completions` sends the Nectar transcript without its last space, because tokenizers join
that space to the first word of the reply, and stops at the next user turn. A system turn goes before the first marker, as plain
text: a transcript has no marker for it. Pure functions; the settings decide.
"""

from __future__ import annotations

import email.utils
import json
import math
import re
import time
from collections.abc import Sequence
from typing import Any

from starling.call import Failure, Request, storable
from starling.chat import to_transcript
from starling.config import AnthropicModel, OpenAIModel, ServerModel
from starling.errors import InputError
from starling.journal import Spend
from starling.records import Message, ModelRef, content_hash

MOST_BYTES = 16_000_000
"""A body larger than this is not read to its end. The longest replies of today's models are below 1 MB."""
STOP = "\n\nHuman:"
"""Ends a completion: the user's next turn."""
ANTHROPIC_VERSION = "2023-06-01"


def model_ref(settings: ServerModel) -> ModelRef:
    """Who answers: everything in the settings that changes the answers, and no address, so that a moved server is not asked all
    over again. Two different models must have different names."""
    provider = "anthropic" if isinstance(settings, AnthropicModel) else "openai"
    if isinstance(settings, OpenAIModel) and settings.api == "completions":
        provider = "openai-completions"
    revision = content_hash(settings.extra, 16) if settings.extra else ""
    return ModelRef(provider=provider, name=settings.name, revision=revision, sampling=settings.sampling)


# ── the question ─────────────────────────────────────────────────────────────────────────────────────────────────────


def path(settings: ServerModel) -> str:
    """What follows the base URL."""
    if isinstance(settings, AnthropicModel):
        return "/messages"
    assert isinstance(settings, OpenAIModel)
    return "/chat/completions" if settings.api == "chat" else "/completions"


def headers(settings: ServerModel, key: str | None) -> dict[str, str]:
    """Headers of every call with one key."""
    given = {"Content-Type": "application/json", "Accept-Encoding": "gzip, deflate"}
    if isinstance(settings, AnthropicModel):
        return given | {"anthropic-version": ANTHROPIC_VERSION} | ({"x-api-key": key} if key else {})
    return given | ({"Authorization": f"Bearer {key}"} if key else {})


def payload(settings: ServerModel, request: Request, limit_name: str = "max_tokens") -> bytes:
    """The JSON that asks it.

    Args:
        settings: the model's.
        request: its own model says name and sampling: a judge is asked with other limits than the settings'.
        limit_name: an OpenAI server's name for the limit on reply tokens.

    Raises:
        InputError: a completion server is asked, and the conversation cannot be written as a transcript; or log-probabilities are
            wanted of an API that has none.
    """
    sampling = request.model.sampling
    body: dict[str, Any] = {"model": request.model.name}
    if isinstance(settings, AnthropicModel):
        if sampling.top_logprobs:
            raise InputError("The API has no log-probabilities", where="top_logprobs", cure="ask a model of type openai or local")
        system = "\n\n".join(m.content for m in request.messages if m.role == "system")
        body |= {"system": system} if system else {}
        body |= {"messages": _turns([m for m in request.messages if m.role != "system"]), "max_tokens": sampling.max_tokens}
        # 1 is this API's default, and its newer models refuse to hear of temperature and top_p at once.
        body |= {"temperature": sampling.temperature} if sampling.temperature != 1 else {}
        stop_name, stop = "stop_sequences", list(sampling.stop)
    else:
        assert isinstance(settings, OpenAIModel)
        stop_name, stop = "stop", list(sampling.stop)
        if settings.api == "chat":
            body["messages"] = _turns(request.messages)
            body |= {"logprobs": True, "top_logprobs": sampling.top_logprobs} if sampling.top_logprobs else {}
        else:
            body["prompt"] = _transcript(request.messages)
            body |= {"logprobs": sampling.top_logprobs} if sampling.top_logprobs else {}
            stop = [*stop, STOP][-4:]  # the API allows four
        body |= {"temperature": sampling.temperature, limit_name: sampling.max_tokens}
    body |= {"top_p": sampling.top_p} if sampling.top_p < 1 else {}
    body |= {stop_name: stop} if stop else {}
    return json.dumps(body | settings.extra).encode()


def _turns(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": m.role, "content": m.content} for m in messages]


def _transcript(messages: Sequence[Message]) -> str:
    system = "\n\n".join(m.content for m in messages if m.role == "system")
    return system + to_transcript([m for m in messages if m.role != "system"]).removesuffix(" ")


def spend(settings: ServerModel, prompt_tokens: int, completion_tokens: int) -> Spend:
    """What so many tokens cost. A dollar per million tokens is a microdollar per token."""
    price = settings.price
    cost = price.prompt * prompt_tokens + price.completion * completion_tokens if price else 0.0
    cost *= 1 - settings.batch.discount if settings.batch is not None else 1
    return Spend(tokens=prompt_tokens + completion_tokens, microdollars=math.ceil(cost))


# ── errors ───────────────────────────────────────────────────────────────────────────────────────────────────────────

RETRY_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
"""Worth another attempt. Other statuses of the 4xx kind mean that the request itself is wrong."""
BUSY_STATUS = frozenset({429, 503, 529})
"""The server wants fewer calls at once."""
UNUSABLE_STATUS = {401: "refuses the key", 402: "asks for payment", 404: "does not know this address or model"}
"""Never the fault of one request: the run stops instead of failing a million times."""

_TOO_LONG = re.compile(
    r"context[ _](length|window|size|limit)|maximum (allowed|input|prompt|sequence|model) length|max_model_len|max_seq_len"
    r"|(prompt|input|request|messages?)( \([^)]*\))? (is|are) (too long|longer than)|too long to fit"
    r"|reduce the length of|must have less than \d+ tokens|string_above_max_length",
    re.IGNORECASE,
)


def failure_of(status: int, body: str) -> Failure:
    """What kind of failure an error status is."""
    if status == 413 or (status in (400, 422, 500) and _TOO_LONG.search(body)):
        return Failure.context_length
    if status == 429 and "Request too large" in body:  # OpenAI, when one call exceeds what a key may send per minute
        return Failure.context_length
    if status == 408:
        return Failure.timeout
    if status == 429:
        return Failure.rate_limited
    return Failure.server_error if status in RETRY_STATUS or status >= 500 else Failure.bad_request


def unusable(status: int, body: str) -> str:
    """Why no call can succeed with this key or address; "" when that is not so."""
    if (status == 429 and "insufficient_quota" in body) or (status == 400 and "credit balance is too low" in body):
        return "says that the credit is used up"
    return UNUSABLE_STATUS.get(status, "")


def wants_new_limit(status: int, body: str) -> bool:
    """OpenAI's newer models refuse the old name of the limit on reply tokens."""
    return status == 400 and "max_completion_tokens" in body


def error_message(body: str) -> str:
    """The server's own words about an error, or the beginning of what it sent."""
    try:
        data = json.loads(body)
        error = data.get("error", data)
        return storable(str(error["message"] if isinstance(error, dict) else error)[:300])
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return " ".join(body[:2000].split())[:300]


def retry_after(header: str) -> float:
    """Seconds from a Retry-After header: a number or an HTTP date (RFC 9110 §10.2.3); 0 when absent or senseless."""
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(header).timestamp() - time.time()
        except (ValueError, TypeError):
            return 0.0
    return seconds if math.isfinite(seconds) and seconds > 0 else 0.0
