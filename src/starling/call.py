"""One call to a model: what is asked, what came back, and how a raw reply is read.

Pure functions and frozen values. What goes over the wire is `starling.endpoint.wire`, who sends it
`starling.endpoint.server`. Replies are stored as received; their own shape says which of three formats they are in, so one
parser reads the whole journal:

    chat         choices[0].message    OpenAI's chat completions, as spoken by vLLM, SGLang, Ollama and the gateways
    completions  choices[0].text       OpenAI's completions
    messages     type = "message"      Anthropic's Messages

Local models' replies are written in the first. Departures from those APIs: lone surrogates in a reply become U+FFFD (they cannot
be stored as UTF-8; the journal has the raw text), a finish reason that is not known is a failure with that name rather than
"stop", and one space at the beginning of a completion is dropped: it belongs to the marker "Assistant:" before it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property, lru_cache
from typing import Any

from starling.records import Finish, Messages, ModelRef, canonical_json


@lru_cache(maxsize=256)
def _dumped(model: ModelRef) -> tuple[dict[str, Any], str]:
    """A model as plain data and as JSON: the same for a million calls."""
    dumped = model.model_dump(mode="json")
    return dumped, canonical_json(dumped)


@dataclass(frozen=True)
class Request:
    """One question to one model, e.g. Request(ModelRef(provider="openai", name="gpt-4o"), (Message(...),), sample=0)."""

    model: ModelRef
    """Everything that changes the answers stands in its name, revision (weights' fingerprint, settings' hash) and sampling."""
    messages: Messages
    sample: int = 0
    """Tells repeated draws of the same question apart."""
    purpose: str = ""
    """A label for the journal, e.g. "judge"; not part of the question."""

    @cached_property
    def key(self) -> str:
        """64 hex digits: the question's identity in the journal, `content_hash` of model, messages and sample."""
        messages = canonical_json([[m.role, m.content] for m in self.messages])
        text = f"[{_dumped(self.model)[1]},{messages},{self.sample}]"
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    @property
    def chars(self) -> int:
        """Characters of all turns."""
        return sum(len(m.content) for m in self.messages)

    def as_dict(self) -> dict[str, Any]:
        """What the journal keeps of it."""
        return {
            "model": _dumped(self.model)[0], "messages": [{"role": m.role, "content": m.content} for m in self.messages],
            "sample": self.sample, "purpose": self.purpose,
        }  # fmt: skip


class Failure(StrEnum):
    """Why a call has no answer; `Reply.error` says it in words."""

    context_length = "context_length"
    """The question is longer than the model or its server takes."""
    bad_request = "bad_request"
    """The server finds this question wrong; asking again would not help."""
    rate_limited = "rate_limited"
    server_error = "server_error"
    timeout = "timeout"
    connection = "connection"
    """No connection, or one that was lost."""
    not_a_reply = "not_a_reply"
    """A body in none of the known formats: truncated or malformed JSON, a web page."""
    too_large = "too_large"
    """A body beyond `wire.MOST_BYTES`."""
    unknown_finish = "unknown_finish"
    """A reply that ended for a reason that Starling does not know."""


FirstToken = tuple[tuple[str, float], ...]
"""Tokens as the server writes them, in its order, e.g. (("A", -0.1), (" A", -2.5))."""


@dataclass(frozen=True)
class Reply:
    """What a model said, or why it said nothing. `finish` error ⇔ `error` is not empty; such replies have no text."""

    text: str
    finish: Finish
    call_id: str
    """Key of the call in the journal."""
    error: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    failure: Failure | None = None
    """The kind of failure; None for a reply."""
    first_token: FirstToken = ()
    """The likeliest first tokens with their natural log-probabilities; empty where none were asked for, or none came."""


# ── the reply ────────────────────────────────────────────────────────────────────────────────────────────────────────

_FINISH = {
    "stop": Finish.stop, "eos": Finish.stop, "eos_token": Finish.stop, "end_turn": Finish.stop, "stop_sequence": Finish.stop,
    "length": Finish.length, "max_tokens": Finish.length, "model_length": Finish.length,
    "model_context_window_exceeded": Finish.length,
    "content_filter": Finish.refusal, "refusal": Finish.refusal, "safety": Finish.refusal,
}  # fmt: skip
"""OpenAI's and Anthropic's names first; the others are what compatible servers were seen to send."""


def parse_reply(body: str, call_id: str) -> Reply | None:
    """Read a raw reply; None when the text is none at all. A known format with an unknown end is a failed reply."""
    likely: FirstToken = ()
    try:
        data = json.loads(body)
        if data.get("type") == "message":
            content, refusal, reason, counts = _parts_of_message(data)
        else:
            content, refusal, reason, counts = _parts_of_choice(data)
            likely = _first_token(data["choices"][0].get("logprobs"))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return None
    if not isinstance(content, str | None) or not isinstance(reason, str | None):
        return None
    finish = _FINISH.get(reason or "")
    if isinstance(refusal, str) and refusal:
        content, finish = content or refusal, Finish.refusal
    if finish is None:
        return failed_reply(call_id, f"the reply ended for the unknown reason {reason!r}", Failure.unknown_finish, counts)
    return Reply(storable(content or ""), finish, call_id, "", *counts, first_token=likely)


def storable(text: str) -> str:
    """A text from elsewhere with U+FFFD for lone surrogates, which nothing can store as UTF-8."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


Counts = tuple[int | None, int | None]
"""Tokens of the prompt and of the reply."""


def _parts_of_choice(data: dict[str, Any]) -> tuple[Any, Any, Any, Counts]:
    """Content, refusal, reason of the end and token counts of OpenAI's formats."""
    choice = data["choices"][0]
    if "message" in choice:
        content, refusal = choice["message"].get("content"), choice["message"].get("refusal")
    else:
        content, refusal = str.removeprefix(choice["text"], " "), None
    if isinstance(content, list):
        content = _joined(content)
    usage = _usage(data)
    counts = (_count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens")))
    return content, refusal, choice.get("finish_reason"), counts


def _parts_of_message(data: dict[str, Any]) -> tuple[Any, Any, Any, Counts]:
    """The same of Anthropic's format; cached parts of a prompt are counted like the rest of it."""
    usage = _usage(data)
    read = [_count(usage.get(n)) for n in ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")]
    prompt = None if read[0] is None else sum(n or 0 for n in read)
    return _joined(data["content"]), None, data.get("stop_reason"), (prompt, _count(usage.get("output_tokens")))


def _first_token(logprobs: Any) -> FirstToken:
    """The likeliest first tokens of a choice in OpenAI's formats; nonsense in their place does not spoil the reply."""
    try:
        if isinstance(logprobs.get("content"), list):
            likely = [(one["token"], one["logprob"]) for one in logprobs["content"][0]["top_logprobs"]]
        else:
            likely = list(logprobs["top_logprobs"][0].items())
        if not all(isinstance(token, str) and _is_logprob(value) for token, value in likely):
            return ()
        return tuple((storable(token), float(value)) for token, value in likely)
    except (KeyError, IndexError, TypeError, AttributeError, OverflowError):
        return ()


def _is_logprob(value: Any) -> bool:
    """A little above 0 is rounding; a server told to send raw logits instead sends numbers far above."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value <= 1e-3  # False for NaN


def _joined(parts: list[Any]) -> str:
    return "".join(part["text"] for part in parts if part.get("type") == "text")


def _usage(data: dict[str, Any]) -> dict[str, Any]:
    """The token counts; nonsense in their place does not spoil a reply that was paid for."""
    usage = data.get("usage")
    return usage if isinstance(usage, dict) else {}


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def compose_reply(reply: Reply) -> str:
    """The body of a reply that did not come from a server; `parse_reply` gives it back."""
    reason = {Finish.stop: "stop", Finish.length: "length", Finish.refusal: "content_filter"}[reply.finish]
    usage = {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.completion_tokens}
    choice: dict[str, Any] = {"message": {"content": reply.text}, "finish_reason": reason}
    if reply.first_token:
        likely = [{"token": token, "logprob": value} for token, value in reply.first_token]
        choice["logprobs"] = {"content": [{"top_logprobs": likely}]}
    return json.dumps({"choices": [choice], "usage": usage})


def failed_reply(call_id: str, error: str, failure: Failure, tokens: Counts = (None, None)) -> Reply:
    """A call without an answer, and why."""
    return Reply("", Finish.error, call_id, error, *tokens, failure)
