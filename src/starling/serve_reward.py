"""`starling serve-reward`: a reward model behind HTTP, in the shapes that trainers and clients already speak.

Source: vLLM's "Online serving" of pooling models (/classify, /pooling, /score) and SGLang's /v1/classify, which answer alike;
OpenRLHF's remote reward model (/get_reward). Errors are vLLM's {"error": {"message", "type", "param", "code"}}.

    POST /classify, /pooling   {"input": text | texts | ids | lists of ids}  or  {"messages": […, the reply]}
    POST /score                {"text_1": prompt(s), "text_2": reply or replies}, also as queries/documents or data_1/data_2
    POST /get_reward           {"query": texts}: pads and end tokens around a text are replaced by the template's end
    GET  /health, /v1/models

An `input` text is a rendered conversation, taken as it is; messages and pairs go through the model's chat template. What is
reported is always the bare reward (`probs` of /classify too, as for every model with problem_type regression), and on a CPU
it is, to the last bit, the one of `starling score`. Departures: conversations longer than the model are cut on the left and not
refused; a BOS that the text and the tokenizer both bring is not doubled; a blank reply is an error, as it has no reward.

Requests that wait are scored together, within a token budget. On loopback no key is needed; elsewhere one is.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import logging
import math
import signal
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

from aiohttp import web

from starling.errors import InputError, UsageError
from starling.rows import Row
from starling.scoring import read_item

if TYPE_CHECKING:
    from starling.models.encode import Encoded, Encoder
    from starling.scoring import Reply

log = logging.getLogger(__name__)

MAX_BODY = 32 * 2**20
"""Bytes of a request."""
MAX_ROWS = 4096
"""Conversations of a request."""
MAX_WAITING = 1 << 22
"""Tokens that may wait; a request beyond them is told to come again."""
PASS_TOKENS = 16_384
"""Tokens that are scored before the queue is looked at again."""
GATHER_S = 0.002
"""How long a first request waits for others; the passes of a real model take longer."""
STOP_S = 60.0
"""How long a stopping server works on requests it has accepted."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Model(Protocol):
    """What is served; `models.scorer.Scorer` is one. `encode` and `score` are each called by one thread at a time."""

    encoder: Encoder

    @property
    def max_length(self) -> int: ...

    def encode(self, conversations: Sequence[Reply]) -> list[Encoded]: ...

    def encode_text(self, text: str) -> Encoded: ...

    def encode_ids(self, ids: Sequence[int]) -> Encoded: ...

    def score(self, rows: Sequence[Encoded]) -> list[float]: ...


class Refusal(Exception):
    """A request that gets an error: HTTP status, message, the field it is about."""

    def __init__(self, message: str, *, status: int = 400, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.param = param


def check_host(host: str, key: str | None, key_env: str) -> None:
    """A server that others can reach must ask for a key.

    Raises:
        UsageError: `host` is not loopback and there is no key.
    """
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback and not key:
        raise UsageError(
            "A reward server that other machines can reach needs an API key",
            where=f"--host {host}",
            cure=f"put a key into the environment variable {key_env}, or listen on 127.0.0.1",
        )


class RewardServer:
    """The web application around one model.

    Args:
        model: a `Scorer`.
        name: what clients call it.
        key: if given, every request but /health needs "Authorization: Bearer KEY".
    """

    def __init__(self, model: Model, name: str, key: str | None = None) -> None:
        self.name = name
        self._model = model
        self._key = key
        self._started = int(time.time())
        self._waiting: list[tuple[Encoded, asyncio.Future[float]]] = []
        self._waiting_tokens = 0
        self._wake = asyncio.Event()
        self._tokenising = ThreadPoolExecutor(1, "tokenise")  # a tokenizer is not safe in two threads
        self._computing = ThreadPoolExecutor(1, "score")
        self._worker: asyncio.Task[None] | None = None

    def app(self) -> web.Application:
        """The aiohttp application; it starts and stops the work with itself."""
        app = web.Application(client_max_size=MAX_BODY, middlewares=[self._guard])
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        for prefix in ("", "/v1"):
            app.router.add_post(f"{prefix}/classify", self._classify)
            app.router.add_post(f"{prefix}/pooling", self._pooling)
            app.router.add_post(f"{prefix}/score", self._score)
        app.router.add_post("/get_reward", self._get_reward)
        app.on_startup.append(self._start)
        app.on_cleanup.append(self._stop)
        return app

    # ── the work ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _start(self, app: web.Application) -> None:
        self._worker = asyncio.create_task(self._work())

    async def _stop(self, app: web.Application) -> None:
        if self._worker is not None:
            self._worker.cancel()
        for pool in (self._tokenising, self._computing):
            pool.shutdown(wait=True, cancel_futures=True)

    async def _work(self) -> None:
        """Score what waits, oldest first, as many conversations at a time as the token budget holds."""
        while True:
            await self._wake.wait()
            await asyncio.sleep(GATHER_S)
            batch = self._next()
            if not self._waiting:
                self._wake.clear()
            if not batch:
                continue
            try:
                rewards = await asyncio.get_running_loop().run_in_executor(
                    self._computing, self._model.score, [row for row, _ in batch]
                )
            except Exception as error:  # out of memory, a device that is gone: the requests hear of it, the server goes on
                log.exception("a pass failed")
                for _, future in batch:
                    if not future.done():
                        future.set_exception(Refusal(f"The model failed: {error}", status=500))
                continue
            for (_, future), reward in zip(batch, rewards, strict=True):
                if not future.done():
                    future.set_result(reward)

    def _next(self) -> list[tuple[Encoded, asyncio.Future[float]]]:
        tokens = taken = 0
        for row, _ in self._waiting:
            if taken and tokens + len(row.ids) > PASS_TOKENS:
                break
            tokens, taken = tokens + len(row.ids), taken + 1
        batch, self._waiting = self._waiting[:taken], self._waiting[taken:]
        self._waiting_tokens -= tokens
        return [(row, future) for row, future in batch if not future.done()]  # done: its client has gone

    async def _rewards(self, rows: Sequence[Encoded]) -> list[float]:
        tokens = sum(len(row.ids) for row in rows)
        if self._waiting and self._waiting_tokens + tokens > MAX_WAITING:
            raise Refusal("The server has more to do than it can queue; come again", status=503)
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in rows]
        self._waiting += zip(rows, futures, strict=True)
        self._waiting_tokens += tokens
        self._wake.set()
        rewards: list[float] = await asyncio.gather(*futures)
        bad = [i for i, reward in enumerate(rewards) if not math.isfinite(reward)]
        if bad:
            raise Refusal(f"The model gives no finite reward to {len(bad)} conversations, first number {bad[0]}", status=500)
        return rewards

    async def _tokenised(self, make: Callable[[], list[Encoded]]) -> list[Encoded]:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._tokenising, make)
        except InputError as error:
            raise Refusal(error.what) from None

    # ── the endpoints ────────────────────────────────────────────────────────────────────────────────────────────────

    async def _health(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _models(self, request: web.Request) -> web.Response:
        card = {
            "id": self.name, "object": "model", "created": self._started, "owned_by": "starling", "root": self.name,
            "parent": None, "max_model_len": self._model.max_length,
        }  # fmt: skip
        return web.json_response({"object": "list", "data": [card]})

    async def _classify(self, request: web.Request) -> web.Response:
        rows, rewards = await self._inputs(await self._body(request))
        data = [{"index": i, "label": "LABEL_0", "probs": [reward], "num_classes": 1} for i, reward in enumerate(rewards)]
        return self._list("classify", data, rows)

    async def _pooling(self, request: web.Request) -> web.Response:
        body = await self._body(request)
        if body.get("encoding_format", "float") != "float":
            raise Refusal("Rewards are sent as numbers: encoding_format must be float", param="encoding_format")
        rows, rewards = await self._inputs(body)
        return self._list("pool", [{"index": i, "object": "pooling", "data": [r]} for i, r in enumerate(rewards)], rows)

    async def _score(self, request: web.Request) -> web.Response:
        body = await self._body(request)
        pairs = [
            (a, b) for a, b in (("text_1", "text_2"), ("queries", "documents"), ("data_1", "data_2")) if a in body or b in body
        ]
        if len(pairs) != 1:
            raise Refusal("A score needs text_1 (the prompt) and text_2 (the reply)", param="text_1")
        prompts, replies = (_texts(body.get(name), name) for name in pairs[0])
        if len(prompts) == 1:
            prompts = prompts * len(replies)
        if len(prompts) != len(replies):
            raise Refusal(
                f"{len(prompts)} prompts and {len(replies)} replies: give one prompt, or one for each reply", param=pairs[0][0]
            )
        found = [_conversation({"prompt": p, "response": r}, i) for i, (p, r) in enumerate(zip(prompts, replies, strict=True))]
        rows = await self._tokenised(lambda: self._model.encode(found))
        rewards = await self._rewards(rows)
        return self._list("score", [{"index": i, "object": "score", "score": r} for i, r in enumerate(rewards)], rows)

    async def _get_reward(self, request: web.Request) -> web.Response:
        texts = _texts((await self._body(request)).get("query"), "query")
        closed = self._model.encoder.closed
        rows = await self._tokenised(lambda: [self._model.encode_text(closed(text)) for text in texts])
        return web.json_response({"rewards": await self._rewards(rows)})

    async def _inputs(self, body: dict[str, Any]) -> tuple[list[Encoded], list[float]]:
        """Token ids and rewards of what /classify and /pooling are sent."""
        if ("input" in body) == ("messages" in body):
            raise Refusal("Give either input or messages", param="input")
        if "messages" in body:
            found = [_conversation({"messages": body["messages"]}, 0)]
            rows = await self._tokenised(lambda: self._model.encode(found))
        else:
            given = body["input"]
            lists = [given] if _are_ids(given) else given if isinstance(given, list) and given and _are_ids(given[0]) else None
            if lists is not None:
                size = len(self._model.encoder.tokenizer)
                if len(lists) > MAX_ROWS or not all(_are_ids(ids) and all(0 <= i < size for i in ids) for ids in lists):
                    raise Refusal(f"Token ids are whole numbers from 0 to {size - 1}, at most {MAX_ROWS} lists", param="input")
                rows = [self._model.encode_ids(ids) for ids in lists]
            else:
                texts = _texts(given, "input")
                rows = await self._tokenised(lambda: [self._model.encode_text(text) for text in texts])
        return rows, await self._rewards(rows)

    # ── requests and answers ─────────────────────────────────────────────────────────────────────────────────────────

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Checks the key; every failure is answered in one shape."""
        try:
            if self._key and request.path != "/health":
                given = request.headers.get("Authorization", "").removeprefix("Bearer ")
                if not hmac.compare_digest(given.encode(), self._key.encode()):
                    return _error("The API key is missing or wrong", 401)
            return await handler(request)
        except Refusal as error:
            return _error(str(error), error.status, error.param)
        except web.HTTPRequestEntityTooLarge:
            return _error(f"A request has at most {MAX_BODY} bytes", 413)
        except web.HTTPException as error:
            return _error(f"{request.method} {request.path}: {error.reason}", error.status)
        except Exception:  # a defect of ours: said in the log, and in the one shape
            log.exception("%s %s failed", request.method, request.path)
            return _error("The server failed; its log says why", 500)

    async def _body(self, request: web.Request) -> dict[str, Any]:
        # a web page can send plain text to a server on its visitor's machine, but not JSON
        if request.content_type != "application/json":
            raise Refusal("The content type must be application/json", status=415)
        try:
            body = json.loads(await request.read())
        except (ValueError, RecursionError) as error:
            raise Refusal(f"The request is no JSON: {error}") from None
        if not isinstance(body, dict):
            raise Refusal("The request must be a JSON object")
        if body.get("model", self.name) not in (self.name, None, ""):
            raise Refusal(f"The model {body['model']!r} is not served here, only {self.name!r}", status=404, param="model")
        return body

    def _list(self, kind: str, data: list[dict[str, Any]], rows: Sequence[Encoded]) -> web.Response:
        tokens = sum(len(row.ids) for row in rows)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0, "prompt_tokens_details": None}
        about = {"id": f"{kind}-{uuid.uuid4().hex}", "object": "list", "created": int(time.time()), "model": self.name}
        return web.json_response({**about, "data": data, "usage": usage})


def _error(message: str, status: int, param: str | None = None) -> web.Response:
    kinds = {401: "AuthenticationError", 404: "NotFoundError", 500: "InternalServerError", 503: "ServiceUnavailableError"}
    error = {"message": message, "type": kinds.get(status, "BadRequestError"), "param": param, "code": status}
    return web.json_response({"error": error}, status=status, headers={"Retry-After": "1"} if status == 503 else None)


def _texts(value: Any, name: str) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) and t for t in texts):
        raise Refusal(f"{name} must be a text or a list of texts, none of them empty", param=name)
    if len(texts) > MAX_ROWS:
        raise Refusal(f"{name} has {len(texts)} texts; a request has at most {MAX_ROWS}", param=name)
    for text in texts:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise Refusal(f"{name} holds a lone surrogate, which is no text", param=name) from None
    return texts


def _conversation(row: dict[str, Any], index: int) -> Reply:
    """The conversation and reply of a row, as `starling score` reads it."""
    item = read_item(Row(index + 1, row))
    if item.problem:
        raise Refusal(f"Conversation {index}: {item.problem}", param=next(iter(row)))
    if not item.replies[0][1].strip():
        raise Refusal(f"Conversation {index}: the reply is blank and has no reward")
    return item.replies[0]


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(i, int) and not isinstance(i, bool) for i in value)


# ── running ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def serve(server: RewardServer, host: str, port: int, told: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; requests that were accepted are answered first. A second signal ends it at once.

    Args:
        server: the application.
        host: address to listen on.
        port: 0 takes a free one.
        told: hears the URL when the server answers.
    """
    asyncio.run(_serve(server, host, port, told))


async def _serve(server: RewardServer, host: str, port: int, told: Callable[[str], None]) -> None:
    runner = web.AppRunner(server.app(), handler_cancellation=True, access_log=None, shutdown_timeout=STOP_S)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:  # taken, not ours to take, or no address of this machine
            raise UsageError(
                f"The server cannot listen: {error.strerror}",
                where=f"--host {host} --port {port}",
                cure="name another port; 0 takes a free one",
            ) from None
        address = runner.addresses[0]
        shown = f"[{address[0]}]" if ":" in str(address[0]) else address[0]
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        told(f"http://{shown}:{address[1]}")
        await stop.wait()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
    finally:
        await runner.cleanup()
