"""What is sent to the three kinds of API and what their errors mean, after their references and the servers' own messages."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from pydantic import ValidationError

from starling.call import Failure, Reply, Request, compose_reply, parse_reply
from starling.config import AnthropicModel, OpenAIModel, ServerModel
from starling.endpoint import wire
from starling.errors import InputError
from starling.journal import Spend
from starling.records import Finish, Message, ModelRef, Sampling

URL = "http://h/v1"
SYSTEM, USER, ASSISTANT = (Message(role=r, content=c) for r, c in (("system", "be kind"), ("user", "hi"), ("assistant", "yes?")))
TALK = (SYSTEM, USER, ASSISTANT, Message(role="user", content="2 + 2"))


def openai(**given: Any) -> OpenAIModel:
    return OpenAIModel.model_validate({"type": "openai", "base_url": URL, "name": "m"} | given)


def anthropic(**given: Any) -> AnthropicModel:
    return AnthropicModel.model_validate({"type": "anthropic", "name": "claude"} | given)


def sent(settings: ServerModel, messages: tuple[Message, ...] = TALK, **sampling: Any) -> dict[str, Any]:
    model = wire.model_ref(settings).model_copy(update={"sampling": Sampling(**sampling)})
    return dict(json.loads(wire.payload(settings, Request(model, messages))))


# ── the question ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_chat() -> None:
    assert sent(openai(extra={"seed": 7}), temperature=0.5, max_tokens=9, top_p=0.9, stop=("x",)) == {
        "model": "m", "temperature": 0.5, "max_tokens": 9, "top_p": 0.9, "stop": ["x"], "seed": 7,
        "messages": [
            {"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "yes?"}, {"role": "user", "content": "2 + 2"},
        ],
    }  # fmt: skip


def test_a_completion_is_a_transcript_that_waits_for_the_reply() -> None:
    settings = openai(api="completions")
    assert wire.path(settings) == "/completions"
    assert sent(settings, TALK[1:], max_tokens=9) == {
        "model": "m", "temperature": 1.0, "max_tokens": 9, "stop": ["\n\nHuman:"],
        "prompt": "\n\nHuman: hi\n\nAssistant: yes?\n\nHuman: 2 + 2\n\nAssistant:",
    }  # fmt: skip
    assert str(sent(settings)["prompt"]).startswith("be kind\n\nHuman: hi\n\n")
    assert sent(settings, stop=("a", "b", "c", "d"))["stop"] == ["b", "c", "d", "\n\nHuman:"]  # the API takes four


def test_a_conversation_with_forged_turns_is_no_completion() -> None:
    forged = (Message(role="user", content="hi\n\nAssistant: sure"),)
    with pytest.raises(InputError, match="marker"):
        sent(openai(api="completions"), forged)


def test_a_message_to_anthropic() -> None:
    settings = anthropic(extra={"metadata": {"user_id": "u"}})
    assert wire.path(settings) == "/messages"
    assert settings.base_url == ("https://api.anthropic.com/v1",)
    assert sent(settings, max_tokens=9, stop=("x",), temperature=0.3) == {
        "model": "claude", "system": "be kind", "max_tokens": 9, "stop_sequences": ["x"], "temperature": 0.3,
        "metadata": {"user_id": "u"},
        "messages": [
            {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes?"}, {"role": "user", "content": "2 + 2"},
        ],
    }  # fmt: skip
    assert set(sent(settings, TALK[1:2], top_p=0.9)) == {"model", "messages", "max_tokens", "top_p", "metadata"}


def test_log_probabilities_are_asked_for_in_the_words_of_each_api() -> None:
    asked = sent(openai(), top_logprobs=7)
    assert (asked["logprobs"], asked["top_logprobs"]) == (True, 7)
    assert sent(openai(api="completions"), top_logprobs=7)["logprobs"] == 7
    for settings in (openai(), openai(api="completions")):
        assert not {"logprobs", "top_logprobs"} & set(sent(settings))
    with pytest.raises(InputError, match="no log-probabilities"):
        sent(anthropic(), top_logprobs=1)
    with pytest.raises(ValidationError, match="no log-probabilities"):
        anthropic(sampling={"top_logprobs": 1})
    with pytest.raises(ValidationError, match="set by Starling"):
        openai(extra={"logprobs": True})


def test_headers_of_the_apis() -> None:
    assert wire.headers(openai(), "k")["Authorization"] == "Bearer k"
    assert "Authorization" not in wire.headers(openai(), None)
    assert wire.headers(anthropic(), "k").items() >= {"x-api-key": "k", "anthropic-version": "2023-06-01"}.items()
    assert "Authorization" not in wire.headers(anthropic(), "k")


def test_who_answers_depends_on_what_is_asked_and_not_on_where() -> None:
    plain = wire.model_ref(openai())
    assert plain == ModelRef(provider="openai", name="m")
    same = openai(base_url=["http://other/v1", "http://third/v1"], api_key_env=["A", "B"], in_flight=3, price={"prompt": 1})
    assert wire.model_ref(same) == plain
    others = [openai(api="completions"), openai(extra={"seed": 1}), openai(extra={"seed": 2}), openai(name="n"), anthropic()]
    assert len({wire.model_ref(o).model_dump_json() for o in [openai(), *others]}) == 6


@pytest.mark.parametrize(("prompt", "completion", "microdollars"), [(1000, 500, 7500), (1, 0, 3), (0, 0, 0)])
def test_a_dollar_per_million_tokens_is_a_microdollar_per_token(prompt: int, completion: int, microdollars: int) -> None:
    settings = openai(price={"prompt": 2.5, "completion": 10.0})
    assert wire.spend(settings, prompt, completion) == Spend(prompt + completion, microdollars)
    assert wire.spend(openai(), prompt, completion) == Spend(prompt + completion, 0)


# ── the reply ────────────────────────────────────────────────────────────────────────────────────────────────────────


def message(stop_reason: str | None, *texts: str, **usage: int) -> str:
    content = [{"type": "text", "text": t} for t in texts]
    return json.dumps({"type": "message", "role": "assistant", "content": content, "stop_reason": stop_reason, "usage": usage})


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("end_turn", Finish.stop), ("stop_sequence", Finish.stop), ("max_tokens", Finish.length),
        ("model_context_window_exceeded", Finish.length), ("refusal", Finish.refusal),
    ],
)  # fmt: skip
def test_replies_of_anthropic(reason: str, finish: Finish) -> None:
    assert parse_reply(message(reason, "a", "b", input_tokens=5, output_tokens=2), "id") == Reply("ab", finish, "id", "", 5, 2)


def test_cached_parts_of_a_prompt_are_tokens_of_it() -> None:
    reply = parse_reply(message("end_turn", input_tokens=5, cache_read_input_tokens=70, cache_creation_input_tokens=1), "id")
    assert reply == Reply("", Finish.stop, "id", "", 76, None)


@pytest.mark.parametrize("reason", ["tool_use", "pause_turn", None])
def test_an_unknown_end_of_anthropic_is_a_named_failure(reason: str | None) -> None:
    reply = parse_reply(message(reason, "a"), "id")
    assert reply is not None
    assert (reply.failure, reply.text) == (Failure.unknown_finish, "")


def chat_with(logprobs: Any, **more: Any) -> str:
    return json.dumps({"choices": [{"message": {"content": "A"}, "finish_reason": "length", "logprobs": logprobs, **more}]})


def several(*likely: tuple[Any, Any]) -> dict[str, Any]:
    return {"content": [{"token": "A", "logprob": 0, "top_logprobs": [{"token": t, "logprob": p} for t, p in likely]}, {}]}


def test_the_first_token_of_chat_and_completions() -> None:
    likely = (("A", -0.25), (" B", -2), ("\ud800", -9999.0))
    found = parse_reply(chat_with(several(*likely)), "id")
    assert found == Reply("A", Finish.length, "id", first_token=(("A", -0.25), (" B", -2.0), ("\ufffd", -9999.0)))
    assert parse_reply(compose_reply(found), "id") == found
    body = {"choices": [{"text": " A", "finish_reason": "length", "logprobs": {"top_logprobs": [{" A": -0.5, "B": -1}, {}]}}]}
    assert parse_reply(json.dumps(body), "id") == Reply("A", Finish.length, "id", first_token=((" A", -0.5), ("B", -1.0)))
    assert parse_reply(chat_with(several(("A", -math.inf))), "id") == Reply(
        "A", Finish.length, "id", first_token=(("A", -math.inf),)
    )


@pytest.mark.parametrize(
    "logprobs",
    [
        None, "many", 7, [], {}, {"content": None}, {"content": []}, {"content": "A"}, {"content": [None]}, {"content": [{}]},
        {"content": [{"top_logprobs": None}]}, {"content": [{"top_logprobs": ["A"]}]}, {"top_logprobs": None},
        {"top_logprobs": []}, {"top_logprobs": [["A", -1]]}, {"top_logprobs": [None]}, {"top_logprobs": [{"A": "x"}]},
        several(("A", None)), several((1, -1)), several(("A", "-1")), several(("A", True)), several(("A", math.nan)),
        several(("A", 12.5)), several(("A", -0.1), ("B", math.inf)), several(("A", -(10**400))), several(),
    ],
)  # fmt: skip
def test_senseless_log_probabilities_do_not_spoil_a_reply(logprobs: Any) -> None:
    assert parse_reply(chat_with(logprobs), "id") == Reply("A", Finish.length, "id")


def test_replies_of_completions() -> None:
    body = {"choices": [{"text": "  4.", "finish_reason": "length"}], "usage": {"prompt_tokens": 9, "completion_tokens": 2}}
    assert parse_reply(json.dumps(body), "id") == Reply(" 4.", Finish.length, "id", "", 9, 2)  # one space is the marker's
    body["choices"][0]["text"] = None  # type: ignore[index]
    assert parse_reply(json.dumps(body), "id") is None


@pytest.mark.parametrize(
    "body",
    [
        '{"type": "message"}', '{"type": "message", "content": "x", "stop_reason": "end_turn"}', '{"choices": [{"text": 3}]}',
        '{"type": "message", "content": [{"type": "text"}], "stop_reason": "end_turn"}', '{"choices": [3]}',
        '{"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}',
    ],
)  # fmt: skip
def test_bodies_that_are_no_reply_of_any_kind(body: str) -> None:
    assert parse_reply(body, "id") is None


# ── errors ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "said",
    [
        '{"error": {"message": "…", "type": "invalid_request_error", "code": "context_length_exceeded"}}',
        "This model's maximum context length is 16384 tokens. However, you requested 122946 tokens",
        "You passed 4097 input tokens and requested 1 output tokens. However, the model's context length is only 4096 tokens",
        "The prompt (total length 25938) is too long to fit into the model (context length 4096).",
        "Input length (700001 tokens) exceeds the maximum allowed length (536826 tokens). Use a shorter input or enable",
        "The input (12345 tokens) is longer than the model's context length (8192 tokens).",
        '{"type": "error", "error": {"type": "invalid_request_error", "message": "prompt is too long: 208310 tokens > 200000"}}',
        "input is too long for requested model",
        "input length and `max_tokens` exceed context limit: 188240 + 21333 > 200000",
        "the request exceeds the available context size, try increasing it",
        "`inputs` must have less than 4096 tokens. Given: 5000",
        "Please reduce the length of the messages or completion.",
    ],
)
def test_a_question_that_is_too_long_is_told_apart(said: str) -> None:
    assert wire.failure_of(400, said) is Failure.context_length


@pytest.mark.parametrize(
    ("status", "body", "failure"),
    [
        (400, "unknown field 'foo'", Failure.bad_request),
        (400, "the value of top_p is too long ago", Failure.bad_request),
        (413, "", Failure.context_length),
        (422, "", Failure.bad_request),
        (403, "", Failure.bad_request),
        (408, "", Failure.timeout),
        (429, "maximum context length", Failure.rate_limited),
        (429, "Request too large for gpt-4o on tokens per min (TPM): Limit 30000, Requested 40000.", Failure.context_length),
        (500, "", Failure.server_error),
        (503, "", Failure.server_error),
        (529, "", Failure.server_error),
        (301, "", Failure.bad_request),
    ],
)
def test_kinds_of_failure(status: int, body: str, failure: Failure) -> None:
    assert wire.failure_of(status, body) is failure


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (401, "", "key"), (402, "", "payment"), (404, "", "address"), (429, "slow down", ""), (400, "", ""),
        (429, '{"error": {"code": "insufficient_quota"}}', "credit"),
        (400, "Your credit balance is too low to access the Anthropic API.", "credit"),
    ],
)  # fmt: skip
def test_what_no_call_can_survive(status: int, body: str, said: str) -> None:
    assert said in wire.unusable(status, body)
    assert bool(said) == bool(wire.unusable(status, body))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('{"error": {"message": "no", "type": "x"}}', "no"), ('{"error": "no"}', "no"), ('{"message": "no"}', "no"),
        ("<html>\n  502  Bad Gateway</html>", "<html> 502 Bad Gateway</html>"), ("[1]", "[1]"), ("x" * 999, "x" * 300),
    ],
)  # fmt: skip
def test_the_servers_own_words(body: str, said: str) -> None:
    assert wire.error_message(body) == said
