"""`starling serve-reward`: the real server on a free port, spoken to over HTTP as vLLM's, SGLang's and OpenRLHF's clients do."""

import asyncio
import json
import math
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from starling import serve_reward
from starling.errors import InputError, UsageError
from starling.models.encode import Encoded
from starling.records import Message
from starling.serve_reward import RewardServer, check_host

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src"), "GOMP_SPINCOUNT": "1000"}
CHAT = [{"role": "user", "content": "name three animals"}, {"role": "assistant", "content": "a cat"}]
RENDERED = "<|user|>name three animals<|end|>\n<|assistant|>a cat<|end|>\n"


class Running:
    """The command in a process of its own."""

    def __init__(self, folder: Path, *options: str, **environment: str) -> None:
        command = [sys.executable, "-m", "starling.cli", "serve-reward", str(folder), "--port", "0", *options]
        code = f"import sys; from starling.cli import call; sys.exit(call({command[3:]!r}))"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, env={**ENVIRONMENT, **environment}
        )
        assert self.process.stderr is not None
        self.said = self.process.stderr.readline()
        self.url = next((word.rstrip(";") for word in self.said.split() if word.startswith("http")), "")

    def ask(self, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Status and JSON of a GET, or of a POST if there is a body (bytes are sent as they are)."""
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json", **headers})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        self.process.send_signal(number)
        _, err = self.process.communicate(timeout=60)
        return self.process.returncode, err


@pytest.fixture(scope="module")
def reward_model(backbone: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    from starling.models.load import load_backbone_as_scalar, load_tokenizer, save_folder

    folder = tmp_path_factory.mktemp("serve") / "tiny-rm"
    tokenizer = load_tokenizer(backbone("llama"))
    save_folder(folder, load_backbone_as_scalar(backbone("llama"), 0, tokenizer), tokenizer)
    return folder


@pytest.fixture(scope="module")
def server(reward_model: Path) -> Iterator[Running]:
    running = Running(reward_model)
    yield running
    assert running.stop() == (0, "")


@pytest.fixture(scope="module")
def expected(reward_model: Path) -> Callable[..., list[float]]:
    """What `starling score` says: expected("a cat", …) → rewards of replies to the question of CHAT."""
    from starling.models.scorer import Scorer
    from starling.rows import Row
    from starling.scoring import read_item, score_items

    scorer = Scorer(reward_model)

    def rewards(*replies: str) -> list[float]:
        items = [read_item(Row(1, {"messages": CHAT[:1], "response": reply})) for reply in replies]
        return [float(score.reward or math.nan) for score in score_items(scorer, items)]

    return rewards


# ── the shapes of others ─────────────────────────────────────────────────────────────────────────────────────────────


def test_health_and_models(server: Running) -> None:
    assert server.said == f"tiny-rm answers on {server.url}; Ctrl-C stops it\n"
    assert server.ask("/health") == (200, {"status": "ok"})
    status, found = server.ask("/v1/models")
    assert (status, found["object"], [m["id"] for m in found["data"]]) == (200, "list", ["tiny-rm"])
    assert found["data"][0]["max_model_len"] == 128


@pytest.mark.parametrize("path", ["/classify", "/v1/classify"])
def test_classify_as_vllm_and_sglang_answer(path: str, server: Running, expected: Callable[..., list[float]]) -> None:
    cat, dog = expected("a cat", "a dog")
    status, found = server.ask(path, {"model": "tiny-rm", "input": [RENDERED, RENDERED.replace("cat", "dog")], "user": "me"})
    assert status == 200
    assert found["data"] == [
        {"index": 0, "label": "LABEL_0", "probs": [cat], "num_classes": 1},
        {"index": 1, "label": "LABEL_0", "probs": [dog], "num_classes": 1},
    ]
    assert (found["object"], found["model"], found["id"][:9]) == ("list", "tiny-rm", "classify-")
    assert found["usage"]["prompt_tokens"] == found["usage"]["total_tokens"] > 10
    for body in ({"input": RENDERED}, {"input": "<s>" + RENDERED}, {"messages": CHAT}):
        assert server.ask(path, body)[1]["data"][0]["probs"] == [cat], body


def test_token_ids(server: Running, reward_model: Path, expected: Callable[..., list[float]]) -> None:
    from starling.models.load import load_tokenizer

    ids = load_tokenizer(reward_model)(RENDERED)["input_ids"]
    for given in (ids, [ids]):
        assert server.ask("/classify", {"input": given})[1]["data"][0]["probs"] == expected("a cat")
    for bad in ([10**6], [[1], [-1]], [[1], ["a"]], [True]):
        assert server.ask("/classify", {"input": bad})[0] == 400


def test_pooling(server: Running, expected: Callable[..., list[float]]) -> None:
    found = server.ask("/pooling", {"messages": CHAT})[1]
    assert found["data"] == [{"index": 0, "object": "pooling", "data": expected("a cat")}]
    assert server.ask("/pooling", {"messages": CHAT, "encoding_format": "base64"})[0] == 400


def test_score_of_pairs(server: Running, expected: Callable[..., list[float]]) -> None:
    cat, dog = expected("a cat", "a dog")
    question = "name three animals"
    bodies = [
        {"text_1": question, "text_2": ["a cat", "a dog"]},
        {"text_1": [question, question], "text_2": ["a cat", "a dog"]},
        {"queries": question, "documents": ["a cat", "a dog"]},
        {"data_1": f"\n\nHuman: {question}\n\nAssistant: ", "data_2": ["a cat", "a dog"]},
    ]
    for body in bodies:
        found = server.ask("/score", body)[1]
        assert [(d["object"], d["score"]) for d in found["data"]] == [("score", cat), ("score", dog)]
    assert server.ask("/v1/score", {"text_1": question, "text_2": "a cat"})[1]["data"][0]["score"] == cat


@pytest.mark.parametrize(
    "query",
    [
        RENDERED,
        "<pad><pad><s>" + RENDERED,
        RENDERED + "<pad><pad>",
        RENDERED.removesuffix("<|end|>\n"),
        RENDERED.removesuffix("\n") + "<|end|><pad>",
    ],
)
def test_get_reward_as_openrlhf_asks(query: str, server: Running, expected: Callable[..., list[float]]) -> None:
    body = {"query": [query, RENDERED.replace("cat", "dog")], "prompts": ["x", "y"], "labels": [None, None]}
    assert server.ask("/get_reward", body) == (200, {"rewards": expected("a cat", "a dog")})


def test_the_same_bits_whoever_asks_at_the_same_time(server: Running, expected: Callable[..., list[float]]) -> None:
    replies = [f"a cat {'and a dog ' * (i % 13)}{i}" for i in range(48)]

    def ask(i: int) -> float:
        return float(server.ask("/score", {"text_1": "name three animals", "text_2": replies[i]})[1]["data"][0]["score"])

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(ask, range(48))) == expected(*replies)


# ── bad requests ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/classify", {}, 400, "either input or messages"),
        ("/classify", {"input": "x", "messages": CHAT}, 400, "either input or messages"),
        ("/classify", {"input": []}, 400, "input must be a text"),
        ("/classify", {"input": ["x", ""]}, 400, "none of them empty"),
        ("/classify", {"input": ["x", 3]}, 400, "input must be a text"),
        ("/classify", {"input": ["x"] * 4097}, 400, "at most 4096"),
        ("/classify", b'{"input": "\\ud800"}', 400, "lone surrogate"),
        ("/classify", {"messages": CHAT[:1]}, 400, "and a reply"),
        ("/classify", {"messages": "hello"}, 400, "and a reply"),
        ("/classify", {"messages": [CHAT[0], {"role": "assistant", "content": " "}]}, 400, "the reply is blank"),
        ("/classify", {"input": "x", "model": "gpt-4"}, 404, "'gpt-4' is not served here"),
        ("/classify", b"not json", 400, "no JSON"),
        ("/classify", b"\xff", 400, "no JSON"),
        ("/classify", b"[" * 100_000, 400, "no JSON"),
        ("/classify", [1], 400, "JSON object"),
        ("/score", {"text_1": "x"}, 400, "text_2 must be"),
        ("/score", {"prompt": "x"}, 400, "text_1 (the prompt)"),
        ("/score", {"text_1": ["x", "y"], "text_2": ["a", "b", "c"]}, 400, "2 prompts and 3 replies"),
        ("/score", {"text_1": "x", "text_2": ["a", " "]}, 400, "Conversation 1: the reply is blank"),
        ("/score", {"text_1": "\n\nHuman: x", "text_2": "a"}, 400, "no Nectar transcript"),
        ("/get_reward", {"prompts": ["x"]}, 400, "query must be"),
        ("/rerank", {"query": "x"}, 404, "Not Found"),
        ("/health", {"x": 1}, 405, "Method Not Allowed"),
    ],
)
def test_a_bad_request_gets_a_clear_error_and_the_server_goes_on(
    path: str, body: Any, status: int, said: str, server: Running
) -> None:
    found = server.ask(path, body)
    assert found[0] == found[1]["error"]["code"] == status
    assert said in found[1]["error"]["message"]
    assert set(found[1]["error"]) == {"message", "type", "param", "code"}
    assert server.ask("/health")[0] == 200


def test_plain_text_and_too_much(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    status, found = server.ask("/classify", json.dumps({"input": "x"}).encode(), **{"Content-Type": "text/plain"})
    assert (status, found["error"]["message"]) == (415, "The content type must be application/json")

    async def large() -> tuple[int, Any]:
        monkeypatch.setattr(serve_reward, "MAX_BODY", 1000)
        async with (
            serving(Slow()) as url,
            aiohttp.ClientSession() as session,
            session.post(url + "/classify", json={"input": "x" * 2000}) as answer,
        ):
            return answer.status, await answer.json()

    status, found = asyncio.run(large())
    assert (status, found["error"]["message"]) == (413, "A request has at most 1000 bytes")


# ── keys, hosts, stopping ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_key_is_asked_for_and_a_stop_is_clean(reward_model: Path) -> None:
    running = Running(reward_model, "--key-env", "MY_KEY", "--name", "rm", MY_KEY="sésame")
    assert running.said.startswith("rm answers on")
    assert running.ask("/health")[0] == 200
    for headers in ({}, {"Authorization": "Bearer sesame"}, {"Authorization": "sesame"}):
        status, found = running.ask("/get_reward", {"query": ["x"]}, **headers)
        assert (status, found["error"]["type"]) == (401, "AuthenticationError")
    key = "Bearer sésame".encode().decode("latin-1")
    assert running.ask("/get_reward", {"query": ["x"]}, Authorization=key)[0] == 200
    assert running.stop(signal.SIGINT) == (0, "")


def test_only_loopback_without_a_key(reward_model: Path) -> None:
    for host in ("127.0.0.1", "::1", "localhost", "127.0.0.9"):
        check_host(host, None, "KEY")
    for host in ("0.0.0.0", "::", "192.168.0.7", "example.org"):
        check_host(host, "secret", "KEY")
        with pytest.raises(UsageError, match="environment variable KEY"):
            check_host(host, None, "KEY")
    running = Running(reward_model, "--host", "0.0.0.0", STARLING_REWARD_KEY="")
    assert "needs an API key" in running.said
    assert running.process.wait(60) == 2


# ── the queue, with a model whose speed and failures are known ───────────────────────────────────────────────────────


class Slow:
    """Rewards are numbers of ids. A pass waits for `gate`, and is remembered."""

    def __init__(self) -> None:
        self.passes: list[int] = []
        self.failure: Exception | None = None
        self.encoder = SimpleNamespace(tokenizer=range(1000), closed=lambda text: text)
        self.max_length = 100

    def encode(self, conversations: Sequence[tuple[tuple[Message, ...], str]]) -> list[Encoded]:
        if any(m.role == "system" for messages, _ in conversations for m in messages):
            raise InputError("This template has no system turn", where="here", cure="drop it")
        return [self.encode_text(text) for _, text in conversations]

    def encode_text(self, text: str) -> Encoded:
        return Encoded(tuple(map(ord, text)), 0)

    def encode_ids(self, ids: Sequence[int]) -> Encoded:
        return Encoded(tuple(ids), 0)

    def score(self, rows: Sequence[Encoded]) -> list[float]:
        self.passes.append(len(rows))
        if self.failure is not None:
            raise self.failure
        return [math.nan if row.ids == (7,) else float(len(row.ids)) for row in rows]


@asynccontextmanager
async def serving(model: Any) -> AsyncIterator[str]:
    runner = web.AppRunner(RewardServer(model, "slow").app(), handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def post(session: aiohttp.ClientSession, url: str, ids: list[int] | list[list[int]]) -> tuple[int, Any]:
    async with session.post(url + "/pooling", json={"input": ids}) as answer:
        found = await answer.json()
        return answer.status, [d["data"][0] for d in found["data"]] if answer.status == 200 else found["error"]["message"]


def test_requests_that_wait_share_a_pass_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_reward, "PASS_TOKENS", 100)
    monkeypatch.setattr(serve_reward, "GATHER_S", 0.2)
    model = Slow()

    async def run() -> list[tuple[int, Any]]:
        async with serving(model) as url, aiohttp.ClientSession() as session:
            return list(await asyncio.gather(*(post(session, url, [1] * (10 + i)) for i in range(20))))

    assert asyncio.run(run()) == [(200, [10.0 + i]) for i in range(20)]
    assert sum(model.passes) == 20
    assert 5 <= len(model.passes) <= 10, "390 tokens in passes of at most 100"


def test_a_failing_pass_is_an_error_for_its_requests_only() -> None:
    model = Slow()

    async def run() -> list[tuple[int, Any]]:
        async with serving(model) as url, aiohttp.ClientSession() as session:
            model.failure = RuntimeError("out of memory")
            first = await post(session, url, [1, 2])
            model.failure = None
            return [first, await post(session, url, [1, 2]), await post(session, url, [[1], [7]])]

    failed, well, nan = asyncio.run(run())
    assert failed == (500, "The model failed: out of memory")
    assert well == (200, [2.0])
    assert nan == (500, "The model gives no finite reward to 1 conversations, first number 1")


def test_a_full_queue_says_come_again_and_a_client_that_left_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_reward, "MAX_WAITING", 50)
    monkeypatch.setattr(serve_reward, "GATHER_S", 0.5)
    model = Slow()

    async def run() -> tuple[tuple[int, Any], tuple[int, Any]]:
        async with serving(model) as url, aiohttp.ClientSession() as session:
            gone = asyncio.create_task(post(session, url, [1] * 30))
            await asyncio.sleep(0.1)
            full = await post(session, url, [1] * 40)
            gone.cancel()
            return full, await post(session, url, [1] * 20)

    full, well = asyncio.run(run())
    assert full == (503, "The server has more to do than it can queue; come again")
    assert well == (200, [20.0])
    assert model.passes == [1]


def test_what_the_template_refuses_is_the_clients_error() -> None:
    async def run() -> tuple[int, Any]:
        body = {"messages": [{"role": "system", "content": "be short"}, *CHAT]}
        async with (
            serving(Slow()) as url,
            aiohttp.ClientSession() as session,
            session.post(url + "/classify", json=body) as answer,
        ):
            return answer.status, await answer.json()

    status, found = asyncio.run(run())
    assert (status, found["error"]["message"]) == (400, "This template has no system turn")


def test_the_queue_forgets_what_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_reward, "MAX_WAITING", 50)

    async def run() -> list[int]:
        async with serving(Slow()) as url, aiohttp.ClientSession() as session:
            for _ in range(5):
                await post(session, url, [1] * 30)
            return [status for status, _ in await asyncio.gather(*(post(session, url, [1] * 10) for _ in range(4)))]

    assert asyncio.run(run()) == [200] * 4


def test_a_stopping_server_answers_what_it_has_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_reward, "GATHER_S", 0.3)

    async def run() -> tuple[int, Any]:
        async with aiohttp.ClientSession() as session:
            async with serving(Slow()) as url:
                asked = asyncio.create_task(post(session, url, [1] * 3))
                await asyncio.sleep(0.1)
            return await asked

    assert asyncio.run(run()) == (200, [3.0])


def test_a_port_that_is_taken_is_named(reward_model: Path) -> None:
    from starling.errors import UsageError
    from starling.models.scorer import Scorer
    from starling.serve_reward import RewardServer, serve

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"cannot listen.*--port {port}.*0 takes a free one"):
            serve(RewardServer(Scorer(reward_model), "rm", None), "127.0.0.1", port, lambda url: None)
