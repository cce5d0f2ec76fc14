"""A model server for tests and benchmarks, in a process of its own: OpenAI, Anthropic, their batch APIs, and a judge.

    python -m tests.fakes.server --latency 0.25 --port 0        prints one line of JSON with its address

It is cheap (no router, bodies from prepared pieces, no access log: about 0.2 CPU-s per 1,000 calls), deterministic (see
`replies`), as faulty as its plan says (see `faults`), and keeps a record of everything it received and answered. Its
times are those of CLOCK_MONOTONIC, which all processes of a machine share.

Paths besides the APIs':

    GET  /stats          totals, and with ?keys=1 every content with the times it came and was answered
    POST /control        {"faults": [...], "latency": s, "jitter": s, "batch": {...}, "forget": true}; what is given is changed
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import resource
import signal
import sys
import time
from collections import defaultdict
from typing import Any

from aiohttp import web

from tests.fakes import batches, replies
from tests.fakes.faults import BODY, STATUS, Fault, Plan
from tests.fakes.replies import Asked

FORMS = {
    "/v1/chat/completions": replies.CHAT,
    "/v1/completions": replies.COMPLETION,
    "/v1/messages": replies.MESSAGES,
}
JSON_HEADERS = {"Content-Type": "application/json"}
BROKEN = {
    "truncated_json": lambda body: body[: len(body) // 2],
    "malformed_json": lambda body: body.replace(b":", b"=", 3),
    "not_json": lambda body: b"upstream connect error or disconnect/reset before headers",
    "wrong_type": lambda body: b"<html><head><title>Welcome</title></head><body>Please log in</body></html>",
    "wrong_shape": lambda body: b'{"object":"list","data":[]}',
}
assert set(BROKEN) == set(BODY)


class Record:
    """What happened: times per content, and the calls in flight."""

    def __init__(self) -> None:
        self.received = self.answered = self.now = self.most = self.connections = 0
        self.arrived: dict[str, list[float]] = defaultdict(list)
        self.finished: dict[str, list[float]] = defaultdict(list)
        self.kinds: dict[str, list[str]] = defaultdict(list)
        """Per content: the fault of every call, "" for none."""
        self.marks: dict[str, str] = {}
        """The beginning of each content's last message, so that a test can find it again."""
        self.faults: dict[str, int] = defaultdict(int)
        self.first = self.last = 0.0
        self.lags: list[tuple[float, float]] = []
        """(when, seconds): the server itself was not scheduled for so long; on a busy machine its clients were not, either."""


class Server:
    """The state of the server; `handle` is the whole of HTTP.

    Args:
        latency: seconds from the arrival of a call to its answer.
        jitter: further seconds, between 0 and this, by the hash of the content.
        chars: length of an ordinary reply.
        plan: what goes wrong.
        key: the API key to ask for; None asks for none.
    """

    def __init__(self, latency: float, jitter: float, chars: int, plan: Plan, key: str | None) -> None:
        self.latency, self.jitter, self.plan, self.key = latency, jitter, plan, key
        self.speaker = replies.Speaker(chars)
        self.record = Record()
        self.batches = batches.Batches(self)

    # ── one call ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        form = FORMS.get(request.path)
        if form is None or request.method != "POST":
            return await self._other(request)
        record = self.record
        record.received += 1
        number = record.received
        if self.plan.early(number):
            record.faults["reset_before"] += 1
            raise abort(request)
        arrived = time.monotonic()
        record.first = record.first or arrived
        record.now += 1
        record.most = max(record.most, record.now)
        try:
            return await self._call(request, form, number, arrived)
        finally:
            record.now -= 1

    async def _call(self, request: web.BaseRequest, form: str, number: int, arrived: float) -> web.StreamResponse:
        record = self.record
        raw = await request.read()
        if self.key is not None and not self._authorized(request):
            return failure(form, "unauthorized", f"Incorrect API key provided: {request.headers.get('Authorization')}")
        try:
            asked = replies.read(form, json.loads(raw))
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            return failure(form, "bad_request", f"this is no request: {type(error).__name__} {error}")
        key = asked.key
        record.arrived[key].append(arrived)
        record.marks.setdefault(key, asked.last[:100])
        fault = self.fault(asked, number, len(record.arrived[key]))
        kind = fault.kind if fault else ""
        record.kinds[key].append(kind)
        if fault:
            record.faults[kind] += 1
        delay = self.latency + self.jitter * (int(key[8:16], 16) / 2**32) - (time.monotonic() - arrived)
        if delay > 0 and kind not in ("reset_after", "hang"):
            await asyncio.sleep(delay)
        if fault is not None and kind in STATUS:
            return failure(form, kind, replies.ERROR_WORDS[kind], fault.retry_after)
        response = await self._answer(request, asked, fault)
        if request.transport is not None and not request.transport.is_closing():
            record.last = time.monotonic()
            if kind not in BODY and kind not in ("cut_body", "hang"):
                record.finished[key].append(record.last)
                record.answered += 1
        return response

    def fault(self, asked: Asked, number: int, attempt: int) -> Fault | None:
        """What goes wrong with this call."""
        return self.plan.find(asked.key, number, attempt, asked.model, asked.last, judge=asked.judge)

    async def _answer(self, request: web.BaseRequest, asked: Asked, fault: Fault | None) -> web.StreamResponse:
        """A 200, or what is left of it; when this returns the last byte was handed to the kernel."""
        kind = fault.kind if fault else ""
        if kind == "reset_after":
            raise abort(request)
        if fault is not None and kind == "hang":
            await asyncio.sleep(fault.seconds)
            raise abort(request)
        body = self.speaker.body(asked, kind)
        if kind in BROKEN:
            body = BROKEN[kind](body)
        response = web.StreamResponse(headers={"Content-Type": "text/html"} if kind == "wrong_type" else JSON_HEADERS)
        response.content_length = len(body)
        await response.prepare(request)
        if fault is not None and kind == "drip":
            for start in range(0, len(body), 1 + len(body) // 20):
                await asyncio.sleep(fault.seconds / 20)
                await response.write(body[start : start + 1 + len(body) // 20])
        elif kind == "cut_body":
            await response.write(body[: len(body) // 2])
            await asyncio.sleep(0.01)
            raise abort(request)
        else:
            await response.write_eof(body)
            return response
        await response.write_eof()
        return response

    def _authorized(self, request: web.BaseRequest) -> bool:
        return self.key in (request.headers.get("Authorization", "").removeprefix("Bearer "), request.headers.get("x-api-key"))

    # ── everything else ──────────────────────────────────────────────────────────────────────────────────────────────

    async def _other(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/stats":
            return web.json_response(self.stats(keys="keys" in request.query))
        if request.path == "/control":
            self.control(await request.json())
            return web.json_response({})
        if request.path == "/v1/models":
            return web.json_response({"object": "list", "data": [{"id": "m", "object": "model", "owned_by": "nobody"}]})
        if self.key is not None and not self._authorized(request):
            return failure(replies.CHAT, "unauthorized", replies.ERROR_WORDS["unauthorized"])
        return await self.batches.handle(request)

    def control(self, wanted: dict[str, Any]) -> None:
        """Change what is named; see the top of the file."""
        if wanted.get("forget"):
            self.record = Record()
            self.batches.forget()
        self.latency = float(wanted.get("latency", self.latency))
        self.jitter = float(wanted.get("jitter", self.jitter))
        if "faults" in wanted:
            self.plan = Plan.from_json(wanted["faults"])
        self.batches.settings |= wanted.get("batch", {})

    def stats(self, *, keys: bool) -> dict[str, Any]:
        """Everything that was seen, as JSON."""
        record, used = self.record, resource.getrusage(resource.RUSAGE_SELF)
        total = {
            "received": record.received, "answered": record.answered, "in_flight": record.now, "max_in_flight": record.most,
            "contents": len(record.arrived), "faults": record.faults, "first": record.first, "last": record.last,
            "now": time.monotonic(), "cpu_s": used.ru_utime + used.ru_stime, "lags": record.lags, "plan": self.plan.as_json(),
            "batches": self.batches.stats(),
        }  # fmt: skip
        if keys:
            total["keys"] = {
                key: {"arrived": times, "finished": record.finished.get(key, []), "faults": record.kinds[key],
                      "says": record.marks[key]}
                for key, times in record.arrived.items()
            }  # fmt: skip
        return total

    async def watch(self) -> None:
        """Note when this process got no CPU for more than 10 ms."""
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.02)
            late = time.monotonic() - before - 0.02
            if late > 0.01:
                self.record.lags.append((time.monotonic(), late))


def abort(request: web.BaseRequest) -> Exception:
    """Reset the connection; raise what this returns, so that nothing else is sent."""
    if request.transport is not None:
        request.transport.abort()
    return ConnectionResetError("on purpose")


def failure(form: str, kind: str, message: str, retry_after: str = "") -> web.Response:
    """An HTTP error in the words of the API asked."""
    headers = JSON_HEADERS | ({"Retry-After": retry_after} if retry_after else {})
    return web.Response(status=STATUS[kind], body=replies.error_body(form, kind, message), headers=headers)


def worth_logging(record: logging.LogRecord) -> bool:
    """Not the connections that clients gave up or that were reset on purpose."""
    return not (record.exc_info and isinstance(record.exc_info[1], ConnectionError))


async def serve(args: argparse.Namespace) -> None:
    """Listen, say where, and go on until a signal."""
    logging.getLogger("aiohttp.server").addFilter(worth_logging)
    plan = Plan.from_json(json.loads(args.faults))
    server = Server(args.latency, args.jitter, args.chars, plan, args.key)

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        return await server.handle(request)

    runner = web.ServerRunner(web.Server(handle, access_log=None, keepalive_timeout=300), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", args.port, backlog=4096)
    await site.start()
    port = runner.addresses[0][1]
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    watching = asyncio.create_task(server.watch())
    gc.freeze()
    print(json.dumps({"url": f"http://127.0.0.1:{port}/v1", "port": port}), flush=True)
    await stop.wait()
    watching.cancel()
    await runner.cleanup()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds until an answer")
    parser.add_argument("--jitter", type=float, default=0.0, help="further seconds, by content")
    parser.add_argument("--chars", type=int, default=1200, help="length of an ordinary reply")
    parser.add_argument("--faults", default="[]", help="plan as JSON, see faults.py")
    parser.add_argument("--key", help="API key to ask for")
    args = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(serve(args))


if __name__ == "__main__":
    sys.exit(main())
