"""One call to a model: what is asked, what came back, and the chat-completions format between the two.

Pure functions and frozen values; who sends them is `starling.endpoint`. The format is that of OpenAI's chat completions as
spoken by vLLM, SGLang, Ollama and the gateways. Local models' replies are written in it too, so that one parser reads the
whole journal.

Departures from that API: lone surrogates in a reply become U+FFFD (they cannot be stored as UTF-8; the journal has the raw
text), and a finish reason that is not known is a failure with that name rather than "stop".
"""

from __future__ import annotations

import email.utils
import json
import math
import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from starling.records import Finish, Messages, ModelRef, content_hash


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
        """64 hex digits: the question's identity in the journal."""
        return content_hash([self.model.model_dump(mode="json"), [[m.role, m.content] for m in self.messages], self.sample])

    def as_dict(self) -> dict[str, Any]:
        """What the journal keeps of it."""
        return {
            "model": self.model.model_dump(mode="json"), "messages": [m.model_dump() for m in self.messages],
            "sample": self.sample, "purpose": self.purpose,
        }  # fmt: skip


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


# ── the reply ─────────────────────────────────────────────────────────────────────────────────────────────────

_FINISH = {
    "stop": Finish.stop, "eos": Finish.stop, "eos_token": Finish.stop, "end_turn": Finish.stop, "stop_sequence": Finish.stop,
    "length": Finish.length, "max_tokens": Finish.length, "model_length": Finish.length,
    "content_filter": Finish.refusal, "refusal": Finish.refusal, "safety": Finish.refusal,
}  # fmt: skip
"""OpenAI's own names first; the others are what compatible servers were seen to send."""


def parse_reply(body: str, call_id: str) -> Reply | None:
    """Read a chat completion; None when the text is none at all."""
    try:
        data = json.loads(body)
        choice = data["choices"][0]
        message, reason = choice["message"], choice.get("finish_reason")
        content, refusal = message.get("content"), message.get("refusal")
        if isinstance(content, list):
            content = "".join(part["text"] for part in content if part.get("type") == "text")
        usage = data.get("usage") or {}
        counts = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
        tokens = [n if isinstance(n, int) and n >= 0 else None for n in counts]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return None
    if not isinstance(content, str | None) or not isinstance(reason, str | None):
        return None
    finish = _FINISH.get(reason or "")
    if isinstance(refusal, str) and refusal:
        content, finish = content or refusal, Finish.refusal
    if finish is None:
        return failed_reply(call_id, f"the reply ended for the unknown reason {reason!r}")
    text = (content or "").encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return Reply(text, finish, call_id, "", *tokens)


def compose_reply(reply: Reply) -> str:
    """The body of a reply that did not come from a server; `parse_reply` gives it back."""
    reason = {Finish.stop: "stop", Finish.length: "length", Finish.refusal: "content_filter"}[reply.finish]
    usage = {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.completion_tokens}
    return json.dumps({"choices": [{"message": {"content": reply.text}, "finish_reason": reason}], "usage": usage})


def failed_reply(call_id: str, error: str) -> Reply:
    """A call without an answer, and why."""
    return Reply("", Finish.error, call_id, error)


# ── the wire ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def payload_of(request: Request, limit_name: str) -> bytes:
    """The JSON that asks it. `limit_name` is the server's name for the limit on reply tokens."""
    sampling = request.model.sampling
    payload: dict[str, Any] = {
        "model": request.model.name, "messages": [{"role": m.role, "content": m.content} for m in request.messages],
        "temperature": sampling.temperature, limit_name: sampling.max_tokens,
    }  # fmt: skip
    if sampling.top_p < 1:
        payload["top_p"] = sampling.top_p
    if sampling.stop:
        payload["stop"] = list(sampling.stop)
    return json.dumps(payload).encode()


def error_message(body: str) -> str:
    """The server's own words about an error, or the beginning of what it sent."""
    try:
        data = json.loads(body)
        error = data.get("error", data)
        return str(error["message"] if isinstance(error, dict) else error)[:300]
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return " ".join(body.split())[:300]


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
