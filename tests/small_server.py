"""A small server inside the test's own process that answers as a function says, and what else tests of endpoints share."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from starling.config import AnthropicModel, OpenAIModel
from starling.endpoint import HttpEndpoint, KeyRing, Request
from starling.journal import Journal
from starling.progress import Silent
from starling.records import Message, ModelRef

KEY = "sk-very-secret-0123456789"
MODEL = ModelRef(provider="scripted", name="m")


def ask(text: str, model: ModelRef = MODEL, sample: int = 0) -> Request:
    return Request(model, (Message(role="user", content=text),), sample, "test")


def completion(text: Any, finish: str | None = "stop", **message: Any) -> dict[str, Any]:
    return {
        "choices": [{"message": {"content": text} | message, "finish_reason": finish}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2},
    }


# ── a server ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Server:
    """Answers by `answer(text, how often this text was asked)`; counts what it saw."""

    def __init__(self) -> None:
        self.answer: Callable[[str, int], Awaitable[web.StreamResponse]] = self.echo
        self.seen: Counter[str] = Counter()
        self.payloads: list[dict[str, Any]] = []
        self.times: dict[str, list[float]] = {}
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.now = self.most = 0

    async def echo(self, text: str, _: int) -> web.StreamResponse:
        return web.json_response(completion(f"re {text}"))

    async def handle(self, request: web.Request) -> web.StreamResponse:
        payload = await request.json()
        self.request = request
        text = payload["messages"][-1]["content"] if "messages" in payload else payload["prompt"]
        self.payloads.append(payload)
        self.paths.append(request.path)
        self.headers.append(dict(request.headers))
        self.seen[text] += 1
        self.times.setdefault(text, []).append(time.monotonic())
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            return await self.answer(text, self.seen[text])
        finally:
            self.now -= 1

    def start(self) -> None:
        started = threading.Event()

        def serve() -> None:
            self.loop = asyncio.new_event_loop()
            self.runner = web.AppRunner(self._app(), shutdown_timeout=0.1)
            self.loop.run_until_complete(self.runner.setup())
            site = web.TCPSite(self.runner, "127.0.0.1", 0)
            self.loop.run_until_complete(site.start())
            self.url = f"http://127.0.0.1:{self.runner.addresses[0][1]}/v1"
            started.set()
            self.loop.run_forever()

        self.thread = threading.Thread(target=serve, daemon=True)
        self.thread.start()
        started.wait()

    def _app(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/v1/{path:.*}", self.handle)
        return app

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self.runner.cleanup(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


def http(server: Server, journal: Journal, ring: KeyRing | None = None, **settings: Any) -> HttpEndpoint:
    given = {"type": "openai", "base_url": server.url, "name": "m", "api_key_env": "TEST_KEY", "attempts": 3} | settings
    kind = AnthropicModel if given["type"] == "anthropic" else OpenAIModel
    return HttpEndpoint("pool-name", kind.model_validate(given), journal, ring)


class Count(Silent):
    def __init__(self) -> None:
        self.done = 0
        self.notes: list[str] = []

    def advance(self, n: int = 1, note: str = "") -> None:
        self.done += n
        self.notes.append(note)
