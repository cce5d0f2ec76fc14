"""The fake server keeps its word: formats, determinism, faults, what it records, batches. Other tests believe what it says."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from starling.call import parse_reply
from starling.judge.rubric import STARLING, build_prompt, rubric_as_given
from starling.judge.verdict import Failure, Verdict, parse, preference
from starling.records import Message
from tests.fakes.faults import BODY, JUDGE, KINDS, STATUS, Fault, Plan
from tests.fakes.process import FakeServer
from tests.fakes.replies import content_key


@pytest.fixture(scope="module")
def running() -> Iterator[FakeServer]:
    with FakeServer(chars=200) as server:
        yield server


@pytest.fixture
def server(running: FakeServer) -> FakeServer:
    running.reset()
    return running


def post(server: FakeServer, path: str, payload: Any, timeout: float = 5) -> tuple[int, dict[str, str], bytes]:
    data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    kind = "multipart/form-data; boundary=XX" if path == "files" else "application/json"
    request = urllib.request.Request(f"{server.url}/{path}", data=data, headers={"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


def get(server: FakeServer, path: str) -> Any:
    with urllib.request.urlopen(f"{server.url}/{path}", timeout=5) as answer:
        content = answer.read()
    return json.loads(content) if content.startswith(b"{") and content.count(b"\n") == 0 else content


def chat(text: str, model: str = "m") -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 9}


def judge(count: int = 3) -> dict[str, Any]:
    answers = [f"answer {i}" for i in reversed(range(count))]
    pairs = [(a, b) for a in range(count) for b in range(a + 1, count)]
    prompt = build_prompt(STARLING, (Message(role="user", content="Hi"),), answers, pairs, "0123456789abcdef")
    return {"model": "judge", "messages": [m.model_dump() for m in prompt]}


def test_the_three_formats_say_the_same_and_say_it_again(server: FakeServer) -> None:
    status, headers, body = post(server, "chat/completions", chat("Hi"))
    reply = json.loads(body)
    text = reply["choices"][0]["message"]["content"]
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert (reply["choices"][0]["finish_reason"], reply["model"], len(text)) == ("stop", "m", 199)
    assert reply["usage"] == {"prompt_tokens": 1, "completion_tokens": 50, "total_tokens": 51}
    assert post(server, "chat/completions", chat("Hi"))[2] == body
    assert post(server, "chat/completions", chat("Ho"))[2] != body
    assert json.loads(post(server, "completions", {"model": "m", "prompt": "Hi"})[2])["choices"][0]["text"] == text
    message = json.loads(post(server, "messages", chat("Hi"))[2])
    assert (message["content"], message["stop_reason"]) == ([{"type": "text", "text": text}], "end_turn")
    assert message["usage"] == {"input_tokens": 1, "output_tokens": 50}
    seen = server.stats(keys=True)
    assert len(seen["keys"][content_key("m", [{"role": "user", "content": "Hi"}])]["arrived"]) == 4
    assert (seen["received"], seen["answered"], seen["contents"], seen["max_in_flight"]) == (5, 5, 2, 1)


def test_messages_demands_max_tokens_and_knows_system(server: FakeServer) -> None:
    without = {k: v for k, v in chat("Hi").items() if k != "max_tokens"}
    status, _, body = post(server, "messages", without)
    assert (status, json.loads(body)["error"]["type"]) == (400, "invalid_request_error")
    plain, system = (post(server, "messages", chat("Hi") | extra)[2] for extra in ({}, {"system": "Be brief."}))
    assert plain != system
    as_chat = {"model": "m", "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]}
    said = json.loads(post(server, "chat/completions", as_chat)[2])["choices"][0]["message"]["content"]
    assert said == json.loads(system)["content"][0]["text"]


def test_the_judge_ranks_the_same_answers_the_same_way_in_any_order(server: FakeServer) -> None:
    text = json.loads(post(server, "chat/completions", judge())[2])["choices"][0]["message"]["content"]
    verdict = parse(text, 3)
    assert isinstance(verdict, Verdict)
    place = {answer: i for i, answer in enumerate(verdict.ranking)}
    assert all(winner == (a if place[a] < place[b] else b) for a, b, winner in verdict.pairs)
    # The sha256 of "answer 0", "answer 1", "answer 2" begin with 0a, 6c and f0 (sha256sum), and they are shown backwards.
    assert verdict.ranking == (2, 1, 0)


def letter(path: str) -> dict[str, Any]:
    """A one-letter comparison in either format of OpenAI."""
    rubric = rubric_as_given("letter")
    system, user = build_prompt(rubric, (Message(role="user", content="Hi"),), ["answer 2", "answer 0"], [], "0123456789abcdef")
    if path == "completions":
        return {"model": "judge", "prompt": user.content, "logprobs": 3}
    return {"model": "judge", "messages": [system.model_dump(), user.model_dump()], "logprobs": True, "top_logprobs": 3}


def test_it_gives_log_probabilities_where_they_are_asked_for(server: FakeServer) -> None:
    reply = parse_reply(post(server, "chat/completions", letter("chat"))[2].decode(), "id")
    assert reply is not None
    assert reply.text == "B"  # the sha256 of "answer 0" is the smaller one
    assert preference(reply.first_token) == pytest.approx(0.8)
    plain = parse_reply(post(server, "completions", {"model": "m", "prompt": "Hi", "logprobs": 1})[2].decode(), "id")
    assert plain is not None
    assert [token for token, _ in plain.first_token] == [plain.text[:4]]
    assert post(server, "messages", chat("Hi") | {"top_logprobs": 3})[0] == 400
    server.reset([Fault("bad_logprobs")])
    spoilt = parse_reply(post(server, "chat/completions", letter("chat"))[2].decode(), "id")
    assert spoilt is not None
    assert (spoilt.text, spoilt.first_token) == ("B", ())


@pytest.mark.parametrize("kind", JUDGE)
def test_a_spoilt_letter_is_none(kind: str, server: FakeServer) -> None:
    server.reset([Fault(kind, judge=True)])
    reply = parse_reply(post(server, "chat/completions", letter("chat"))[2].decode(), "id")
    assert reply is not None
    assert isinstance(parse(reply.text, 2, rubric_as_given("letter").grammar), Failure)
    assert isinstance(preference(reply.first_token), Failure)


@pytest.mark.parametrize("kind", JUDGE)
def test_a_spoilt_verdict_does_not_parse(kind: str, server: FakeServer) -> None:
    server.reset([Fault(kind, judge=True)])
    text = json.loads(post(server, "chat/completions", judge())[2])["choices"][0]["message"]["content"]
    assert isinstance(parse(text, 3), Failure)
    assert json.loads(post(server, "chat/completions", chat("Hi"))[2])["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in (*JUDGE, "hang")])
def test_every_fault_strikes_once_and_leaves_no_trace_when_it_was_for_once(kind: str, server: FakeServer) -> None:
    faults = [Fault(kind, nth=(1,), retry_after="7", seconds=0.1)]
    server.reset(faults)
    if kind in ("reset_before", "reset_after", "cut_body"):
        with pytest.raises((OSError, http.client.HTTPException)):
            post(server, "chat/completions", chat("Hi"))
    else:
        status, headers, body = post(server, "chat/completions", chat("Hi"))
        assert status == STATUS.get(kind, 200)
        assert headers.get("Retry-After") == ("7" if kind in STATUS else None)
        assert (body == post(server, "chat/completions", chat("Hi"))[2]) == (kind == "drip")
        assert len(body) > 2_000_000 or kind != "huge"
        if kind in ("truncated_json", "malformed_json", "not_json", "wrong_type"):
            with pytest.raises(json.JSONDecodeError):
                json.loads(body)
    seen = server.stats(keys=True)
    assert seen["faults"] == {kind: 1}
    assert post(server, "chat/completions", chat("Hi"))[0] == 200
    complete = kind not in (*STATUS, *BODY, "reset_before", "reset_after", "cut_body")
    assert server.stats()["answered"] == server.stats()["received"] - (not complete)


def test_which_calls_a_fault_strikes() -> None:
    def struck(fault: Fault, key: str = "0" * 40, numbers: range = range(1, 7), **changes: Any) -> list[int]:
        given = {"attempt": 1, "model": "m", "last": "Hi there", "judge": False} | changes
        return [n for n in numbers if Plan([fault]).find(key, n, **given)]

    assert struck(Fault("hang")) == [1, 2, 3, 4, 5, 6]
    assert struck(Fault("hang", nth=(2, 5))) == [2, 5]
    assert struck(Fault("hang", every=3)) == [3, 6]
    assert struck(Fault("hang", after=2, until=4)) == [3, 4]
    assert struck(Fault("hang", marker="there", model="m", judge=False)) == [1, 2, 3, 4, 5, 6]
    assert struck(Fault("hang", marker="here!")) == struck(Fault("hang", model="n")) == struck(Fault("hang", judge=True)) == []
    assert struck(Fault("hang", times=1), attempt=2) == []
    assert struck(Fault("hang", share=0.5), key="7fffffff") == [1, 2, 3, 4, 5, 6]
    assert struck(Fault("hang", share=0.5), key="80000000") == []
    both = Plan([Fault("hang", share=0.5), Fault("drip", share=0.5)])
    found = both.find("80000000", 1, 1, "m", "", judge=False)
    assert found is not None
    assert found.kind == "drip"
    for wrong in (lambda: Plan([Fault("hang", share=0.6)] * 2), lambda: Fault("tea"), lambda: Fault("reset_before", share=0.1)):
        with pytest.raises(ValueError, match=r"share|called|number"):
            wrong()


# ── batches ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def upload(server: FakeServer, rows: list[dict[str, Any]]) -> str:
    content = "\n".join(json.dumps(r) for r in rows)
    parts = [("purpose", "", "batch"), ("file", '; filename="in.jsonl"', content)]
    body = "".join(f'--XX\r\nContent-Disposition: form-data; name="{n}"{x}\r\n\r\n{v}\r\n' for n, x, v in parts) + "--XX--\r\n"
    return str(json.loads(post(server, "files", body.encode())[2])["id"])


def lines(count: int) -> list[dict[str, Any]]:
    return [
        {"custom_id": f"c{i}", "method": "POST", "url": "/v1/chat/completions", "body": chat(f"Hi {i}")} for i in range(count)
    ]


def create(server: FakeServer, rows: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    wanted = {"input_file_id": upload(server, rows), "endpoint": "/v1/chat/completions", "completion_window": "24h"} | more
    return dict(json.loads(post(server, "batches", wanted)[2]))


def content(server: FakeServer, ident: str | None) -> dict[str, dict[str, Any]]:
    rows = [json.loads(x) for x in post_free(server, f"files/{ident}/content").splitlines()] if ident else []
    return {row["custom_id"]: row for row in rows}


def post_free(server: FakeServer, path: str) -> bytes:
    with urllib.request.urlopen(f"{server.url}/{path}", timeout=5) as answer:
        return bytes(answer.read())


def test_a_batch_gives_what_single_calls_give(server: FakeServer) -> None:
    server.reset([Fault("bad_request", marker="Hi 2")])
    made = create(server, lines(4), metadata={"run": "r1"})
    assert (made["status"], made["metadata"]) == ("validating", {"run": "r1"})
    batch = get(server, f"batches/{made['id']}")
    assert (batch["status"], batch["request_counts"]) == ("completed", {"total": 4, "completed": 3, "failed": 1})
    good, bad = content(server, batch["output_file_id"]), content(server, batch["error_file_id"])
    assert (set(good), set(bad)) == ({"c0", "c1", "c3"}, {"c2"})
    assert bad["c2"]["response"]["status_code"] == 400
    assert good["c1"]["response"]["body"] == json.loads(post(server, "chat/completions", chat("Hi 1"))[2])


def test_batches_end_badly_on_request(server: FakeServer) -> None:
    server.reset(batch={"end": "expired"})
    batch = get(server, f"batches/{create(server, lines(4))['id']}")
    assert (batch["status"], batch["request_counts"]) == ("expired", {"total": 4, "completed": 2, "failed": 2})
    assert {r["error"]["code"] for r in content(server, batch["error_file_id"]).values()} == {"batch_expired"}
    server.reset(batch={"all_failed": True})
    batch = get(server, f"batches/{create(server, lines(3))['id']}")
    assert (batch["status"], batch["output_file_id"]) == ("completed", None)
    assert len(content(server, batch["error_file_id"])) == 3
    server.reset(batch={"seconds": 60})
    made = create(server, lines(1))
    assert get(server, f"batches/{made['id']}")["status"] == "in_progress"
    assert json.loads(post(server, f"batches/{made['id']}/cancel", {})[2])["status"] == "cancelled"
    assert create(server, [*lines(1), *lines(1)])["errors"]["data"][0]["code"] == "duplicate_custom_id"
    assert create(server, [])["status"] == "failed"


def test_batches_are_listed_in_pages_newest_first_and_survive_a_lost_answer(server: FakeServer) -> None:
    server.reset(batch={"page": 2})
    made = [create(server, lines(1), metadata={"n": str(i)})["id"] for i in range(3)]
    first = get(server, "batches?limit=5")
    assert ([b["id"] for b in first["data"]], first["has_more"]) == ([made[2], made[1]], True)
    second = get(server, f"batches?after={first['last_id']}")
    assert ([b["metadata"] for b in second["data"]], second["has_more"]) == ([{"n": "0"}], False)
    ident = upload(server, lines(1))
    server.change(batch={"lose": 1})
    wanted = {"input_file_id": ident, "endpoint": "/v1/chat/completions", "completion_window": "24h", "metadata": {"n": "lost"}}
    with pytest.raises((OSError, http.client.HTTPException)):
        post(server, "batches", wanted)
    assert get(server, "batches")["data"][0]["metadata"] == {"n": "lost"}


def test_a_message_batch(server: FakeServer) -> None:
    server.reset([Fault("bad_request", marker="Hi 1")])
    rows = [{"custom_id": f"c{i}", "params": chat(f"Hi {i}")} for i in range(3)]
    made = json.loads(post(server, "messages/batches", {"requests": rows})[2])
    assert (made["processing_status"], made["request_counts"]["processing"], made["results_url"]) == ("in_progress", 3, None)
    batch = get(server, f"messages/batches/{made['id']}")
    counts = {"processing": 0, "succeeded": 2, "errored": 1, "canceled": 0, "expired": 0}
    assert (batch["processing_status"], batch["request_counts"]) == ("ended", counts)
    results = {
        r["custom_id"]: r["result"]
        for r in map(json.loads, post_free(server, batch["results_url"].split("/v1/")[1]).splitlines())
    }
    assert results["c1"]["type"] == "errored"
    assert results["c1"]["error"]["error"]["type"] == "invalid_request_error"
    assert results["c2"]["message"] == json.loads(post(server, "messages", chat("Hi 2"))[2])
    assert [b["id"] for b in get(server, "messages/batches?limit=1")["data"]] == [made["id"]]
    assert post(server, "messages/batches", {"requests": [rows[0], rows[0]]})[0] == 400
