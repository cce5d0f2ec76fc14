"""What the fake server says: texts that follow from what was asked, in the three formats, with or without a flaw.

The text depends on the model, the messages and the seed of the request and on nothing else, so a run that was killed and
started again is told what an undisturbed run is told. A judge prompt of Starling is read with Starling's own inverse and
answered in its grammar: answers are ranked, compared or scored by a hash of their text, in whatever order they are shown.

Formats: OpenAI chat completions and completions (platform.openai.com/docs/api-reference), Anthropic Messages
(docs.anthropic.com/en/api/messages).
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from itertools import combinations
from typing import Any

_WORDS = """
the a model answer question reason because first then finally example water light river number seven people often think that this
would help clearly simple idea step however between around quite good better result shows means use find make
"""
WORDS = tuple(_WORDS.split())

CHAT, COMPLETION, MESSAGES = "chat", "completion", "messages"
"""The three formats."""

FINISH = {
    CHAT: {"stop": "stop", "length": "length", "refusal": "content_filter", "unknown": "watchdog"},
    COMPLETION: {"stop": "stop", "length": "length", "refusal": "content_filter", "unknown": "watchdog"},
    MESSAGES: {"stop": "end_turn", "length": "max_tokens", "refusal": "refusal", "unknown": "watchdog"},
}


@dataclass(frozen=True)
class Asked:
    """A request as the server understood it."""

    form: str
    model: str
    key: str
    """40 hex digits: the content's identity, see `content_key`."""
    messages: list[dict[str, Any]]
    """With the system message in first place, whatever the format."""
    last: str
    """The last message, or the prompt of a completion."""
    judge: bool
    top: int = 0
    """Likeliest first tokens wanted with their log-probabilities."""


def content_key(model: str, messages: list[dict[str, Any]], seed: object = None) -> str:
    """Identity of a request: two calls with the same one are the same question asked again."""
    plain = [[m["role"], m["content"]] for m in messages]
    return hashlib.sha1(json.dumps([model, plain, seed]).encode()).hexdigest()


def read(form: str, payload: dict[str, Any]) -> Asked:
    """Take a request apart.

    Raises:
        KeyError, TypeError, AttributeError: the payload lacks what the format demands.
    """
    if form == COMPLETION:
        messages = [{"role": "user", "content": payload["prompt"]}]
    else:
        messages = [{"role": m["role"], "content": flat(m["content"])} for m in payload["messages"]]
    if form == MESSAGES:
        payload["max_tokens"] + 0  # required there
        if payload.get("system"):
            messages.insert(0, {"role": "system", "content": flat(payload["system"])})
    last = messages[-1]["content"]
    judge = last.startswith("The marker of this call is ")
    top = payload.get("logprobs") or 0 if form == COMPLETION else payload.get("top_logprobs", 0)
    if (form == MESSAGES and top) or (form == CHAT and bool(payload.get("logprobs")) != bool(top)):
        raise ValueError("logprobs")
    key = content_key(payload["model"], messages, payload.get("seed"))
    return Asked(form, payload["model"], key, messages, last, judge, int(top))


def flat(content: Any) -> str:
    """The text of a message, given as a text or as parts."""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


class Speaker:
    """Composes replies; pieces that every reply shares are made once.

    Args:
        chars: length of an ordinary text.
    """

    def __init__(self, chars: int) -> None:
        self._tails = [self._tail(i, chars) for i in range(64)]
        self._cache: dict[tuple[str, str], tuple[bytes, bytes]] = {}

    @staticmethod
    def _tail(number: int, chars: int) -> str:
        digest = hashlib.sha256(str(number).encode()).digest()
        words = [WORDS[digest[i % 32] * (i + number) % len(WORDS)] for i in range(chars // 3)]
        return " ".join(words)[: max(0, chars - 20)]

    def text(self, asked: Asked, flaw: str = "") -> str:
        """The reply to it, with one of the flaws of `faults.REPLY` or `faults.JUDGE`."""
        if flaw in ("empty_text", "null_text"):
            return ""
        if flaw == "huge":
            return "x" * 2_000_000
        if asked.judge:
            return judge_text(asked, flaw)
        return f"{asked.key[:16]} {asked.model[:12]} {self._tails[int(asked.key[:2], 16) % 64]}"

    def body(self, asked: Asked, flaw: str = "") -> bytes:
        """The whole reply as JSON."""
        text = self.text(asked, flaw)
        finish = {"finish_length": "length", "content_filter": "refusal", "unknown_finish": "unknown"}.get(flaw, "stop")
        usage: Any = {"no_usage": None, "bad_usage": "many"}.get(flaw, (len(asked.last) // 4 + 1, len(text) // 4 + 1))
        unusual = ("null_text", "finish_length", "content_filter", "unknown_finish", "bad_usage", "bad_logprobs")
        if not asked.top and flaw not in unusual:
            head, tail = self._frame(asked.form, asked.model)
            ident = f'{{"id":"r-{asked.key[:20]}",'.encode()
            counts = b"" if usage is None else usage_json(asked.form, usage)
            return ident + head + json.dumps(text).encode() + tail + counts + b"}"
        whole = compose(asked, None if flaw == "null_text" else text, FINISH[asked.form][finish], usage)
        if asked.form != MESSAGES:
            whole["choices"][0]["logprobs"] = {"content": "many"} if flaw == "bad_logprobs" else logprobs(asked, text)
        elif flaw == "bad_logprobs":
            whole["logprobs"] = "many"
        return json.dumps(whole).encode()

    def _frame(self, form: str, model: str) -> tuple[bytes, bytes]:
        """What stands before and after the text of an ordinary reply."""
        if (form, model) not in self._cache:
            name = json.dumps(model)
            if form == CHAT:
                head = f'"object":"chat.completion","created":1700000000,"model":{name},"choices":[{{"index":0,"message":'
                head, tail = head + '{"role":"assistant","content":', '},"logprobs":null,"finish_reason":"stop"}]'
            elif form == COMPLETION:
                head = f'"object":"text_completion","created":1700000000,"model":{name},"choices":[{{"index":0,"text":'
                tail = ',"logprobs":null,"finish_reason":"stop"}]'
            else:
                head = f'"type":"message","role":"assistant","model":{name},"content":[{{"type":"text","text":'
                tail = '}],"stop_reason":"end_turn","stop_sequence":null'
            self._cache[form, model] = (head.encode(), tail.encode())
        return self._cache[form, model]


def logprobs(asked: Asked, text: str) -> dict[str, Any] | None:
    """The likeliest first tokens: of a one-letter verdict both letters, 4 to 1 for the one written; else the text's beginning."""
    if not asked.top:
        return None
    likely = {text[:4]: math.log(0.9)}
    if text in ("A", "B"):
        likely = {text: math.log(0.6), f" {text}": math.log(0.2), "AB".replace(text, ""): math.log(0.2)}
    kept = dict(list(likely.items())[: asked.top])
    if asked.form == COMPLETION:
        return {"tokens": [text[:4]], "token_logprobs": [math.log(0.9)], "top_logprobs": [kept], "text_offset": [0]}
    several = [{"token": token, "logprob": value, "bytes": list(token.encode())} for token, value in kept.items()]
    return {"content": [{**(several or [{}])[0], "top_logprobs": several}], "refusal": None}


def usage_json(form: str, usage: tuple[int, int]) -> bytes:
    """The last field of a reply: tokens in and out."""
    if form == MESSAGES:
        return b',"usage":{"input_tokens":%d,"output_tokens":%d}' % usage
    return b',"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d}' % (*usage, sum(usage))


def compose(asked: Asked, text: str | None, finish: str, usage: Any) -> dict[str, Any]:
    """An unusual reply; `text` None leaves the content null, `usage` a text puts nonsense there."""
    if isinstance(usage, tuple):
        usage = json.loads(b"{" + usage_json(asked.form, usage)[1:] + b"}")["usage"]
    if asked.form == MESSAGES:
        content = [] if text is None else [{"type": "text", "text": text}]
        return {"id": "r", "type": "message", "role": "assistant", "model": asked.model, "content": content,
                "stop_reason": finish, "stop_sequence": None, "usage": usage}  # fmt: skip
    said = {"text": text} if asked.form == COMPLETION else {"message": {"role": "assistant", "content": text}}
    return {"id": "r", "model": asked.model, "choices": [{"index": 0, **said, "finish_reason": finish}], "usage": usage}


def error_body(form: str, kind: str, message: str) -> bytes:
    """An error in the words of its API."""
    if form == MESSAGES:
        names = {
            "bad_request": "invalid_request_error", "context_length": "invalid_request_error",
            "unauthorized": "authentication_error", "rate_limited": "rate_limit_error", "overloaded": "overloaded_error",
        }  # fmt: skip
        return json.dumps({"type": "error", "error": {"type": names.get(kind, "api_error"), "message": message}}).encode()
    codes = {
        "context_length": "context_length_exceeded", "no_credit": "insufficient_quota", "rate_limited": "rate_limit_exceeded",
        "unauthorized": "invalid_api_key",
    }  # fmt: skip
    typed = {"bad_request": "invalid_request_error", "context_length": "invalid_request_error"}.get(kind, kind)
    error = {"message": message, "type": typed, "param": None, "code": codes.get(kind)}
    return json.dumps({"error": error}).encode()


ERROR_WORDS = {
    "bad_request": "The request was rejected: invalid value in 'messages'.",
    "context_length": "This model's maximum context length is 4096 tokens. However, your messages resulted in 5000 tokens.",
    "unauthorized": "Incorrect API key provided.",
    "no_credit": "You exceeded your current quota, please check your plan and billing details.",
    "rate_limited": "Rate limit reached for requests. Please try again later.",
    "server_error": "The server had an error while processing your request. Sorry about that!",
    "bad_gateway": "Bad gateway",
    "unavailable": "The engine is currently overloaded, please try again later",
    "overloaded": "Overloaded",
}


# ── the judge ────────────────────────────────────────────────────────────────────────────────────────────────────────


def judge_text(asked: Asked, flaw: str = "") -> str:
    """The verdict on a judge prompt of any rubric of Starling's: better is what has the smaller hash, and nothing is a tie."""
    from starling.judge.rubric import read_prompt, read_rubric  # half a second, and most servers never judge
    from starling.judge.verdict import FORMS, Verdict, write_reply
    from starling.records import Message

    prompt = tuple(Message(role=m["role"], content=m["content"]) for m in asked.messages)
    material, grammar = read_prompt(prompt), read_rubric(prompt).grammar
    merit = [hashlib.sha256(answer.encode("utf-8", "surrogatepass")).digest() for answer in material.answers]
    order = sorted(range(len(merit)), key=lambda i: (merit[i], i))
    place = {answer: rank for rank, answer in enumerate(order)}
    wanted = material.pairs or (tuple(combinations(range(len(order)), 2)) if FORMS[grammar].pairs else ())
    pairs = tuple((a, b, a if place[a] < place[b] else b) for a, b in wanted)
    good = hashlib.sha256(material.messages[-1].content.encode("utf-8", "surrogatepass")).digest()[0] > 25
    score = 10 - merit[0][0] * 10 // 256 if FORMS[grammar].score else None
    return spoil(write_reply(Verdict(tuple(order), good, pairs, score=score), grammar), flaw)


def spoil(reply: str, flaw: str) -> str:
    """A good verdict made malformed in the named way; where there is no bracketed ranking, its last line is."""
    *lines, last = reply.split("\n")
    if flaw == "prose_around":
        return f"Certainly! Here is my verdict.\n\n{reply}\n\nLet me know if you need more."
    if flaw == "pair_missing":
        if not lines:
            return ""
        lines = lines[:-1]
    if "[" in last:
        letters = [part for part in last.partition("[")[2] if part.isupper()]
        changed = {"letter_twice": [*letters[:-1], letters[0]], "letter_missing": letters[:-1], "stranger": [*letters[:-1], "Z"]}
        last = "Ranking: [" + ", ".join(f"'{x}'" for x in changed.get(flaw, letters)) + "]"
        last = last.replace("[", "[[").replace("]", "]]") if flaw == "double_brackets" else last
    else:
        changed = {
            "letter_twice": [last, last],
            "letter_missing": [],
            "stranger": [f"{last}Z"],
            "double_brackets": [f"[[{last}]]"],
        }
        return "\n".join([*lines, *changed.get(flaw, [last])])
    return "\n".join([*lines, last])
