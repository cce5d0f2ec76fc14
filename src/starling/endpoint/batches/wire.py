"""The batch APIs of OpenAI and Anthropic on the wire: their addresses, what a batch's state means, the lines of their files.

Sources: the API references "Files" and "Batch" (OpenAI) and "Message Batches" (Anthropic). What differs:

                 OpenAI                                  Anthropic
    in           a file of lines, uploaded; then a       one JSON object with all requests
                 batch that names the file
    recognised   by metadata, which we choose            by nothing of ours: by age, size and, once it has
                                                         ended, by the custom_id of its results
    over when    completed, expired, cancelled, failed   processing_status is ended
    out          output file and error file              one file of results
    free         failed and expired lines                errored, expired and cancelled lines

Departures: a state that is not known counts as running, because gateways have words of their own ("queued"). Results are fetched
only from the server that the batch was sent to, whatever address it names: our key goes nowhere else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import quote, urlsplit

from starling.call import storable
from starling.endpoint.wire import error_message, retry_after
from starling.journal import StoredReply

PAGE = 100
"""Batches per page of a listing: OpenAI's most."""
TRANSFER_S = 3600.0
"""Most seconds for sending or fetching a file of up to 200 MB: 60 kB/s."""


class Refusal(Exception):
    """The server answered that it will not do it: nothing was done, nothing is paid."""

    def __init__(self, status: int, message: str, wait_s: float = 0.0) -> None:
        self.status = status
        self.message = message
        self.wait_s = wait_s
        super().__init__(f"HTTP {status}: {message}")


class NoReply(Exception):
    """Nothing usable came back. `sent` is False when the request cannot have arrived."""

    def __init__(self, message: str, sent: bool = True) -> None:
        self.sent = sent
        super().__init__(message)


@dataclass(frozen=True)
class Complaint:
    """Why a file was refused, e.g. Complaint(17, "invalid_json_line", "This line is not valid JSON.")."""

    line: int | None
    code: str
    message: str


@dataclass(frozen=True)
class View:
    """A batch as the provider shows it."""

    id: str
    phase: Literal["running", "ended", "refused"]
    status: str
    """The provider's own word."""
    total: int
    finished: int
    """Requests that have come to an end."""
    succeeded: int
    tags: Mapping[str, str]
    results: tuple[str, ...]
    """Addresses of what came out."""
    complaints: tuple[Complaint, ...] = ()

    @property
    def cut_short(self) -> bool:
        """Whether requests without a result were never worked on."""
        return self.status in ("expired", "cancelled", "canceled")


class BatchApi(Protocol):
    """One provider's batch API."""

    head: bytes
    between: bytes
    tail: bytes
    """The file is head, lines with `between` between them, tail."""
    uploads: bool
    """Whether a file is uploaded first and named when the batch is created."""
    tagged: bool
    """Whether a batch carries our tags, so that a lost one is recognised for certain."""

    def line(self, key: str, payload: bytes) -> bytes:
        """A request in the file."""

    async def upload(self, file: Path) -> str:
        """Send the file; returns its id."""

    async def create(self, file: Path, file_id: str, tags: Mapping[str, str]) -> View:
        """Start the batch: from here on it costs."""

    async def get(self, batch_id: str) -> View:
        """How a batch stands."""

    async def page(self, after: str, limit: int = PAGE) -> tuple[list[View], str]:
        """Batches of this account, newest first, and what to give as `after` for those that follow; "" at the end."""

    def read(self, line: bytes) -> tuple[str, StoredReply] | None:
        """The key and the reply in a line of the results; None when there is no key in it."""


class Http:
    """One server's API, one try per request. Use as an asynchronous context manager.

    Args:
        base_url: up to and including /v1.
        headers: among them the key; no content type.
        timeout_s: seconds until a request that carries no file is given up.
        clean: blanks the key out of a text.
    """

    def __init__(self, base_url: str, headers: Mapping[str, str], timeout_s: float, clean: Callable[[str], str]) -> None:
        self.base_url = base_url.rstrip("/")
        self._headers = headers
        self._timeout_s = timeout_s
        self._clean = clean

    async def __aenter__(self) -> Http:
        import aiohttp  # takes 0.2 s; commands that call no server do without

        self._aiohttp = aiohttp
        self._session = aiohttp.ClientSession(headers=self._headers, cookie_jar=aiohttp.DummyCookieJar())
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._session.close()

    async def json(
        self, method: str, path: str, *, file: Path | None = None, form: bool = False, **options: Any
    ) -> dict[str, Any]:
        """The JSON object that the server answers with.

        Args:
            method: GET or POST.
            path: below the base URL.
            file: sent as the body, or as an uploaded file when `form` is set.
            form: send a form with purpose=batch.
            options: `params`, `json` of aiohttp.

        Raises:
            Refusal: a status of the 4xx kind.
            NoReply: anything else.
        """
        timeout = self._aiohttp.ClientTimeout(total=TRANSFER_S if file is not None else self._timeout_s)
        url = f"{self.base_url}{path}"
        try:
            handle = file.open("rb") if file is not None else None
            try:
                if form and file is not None:
                    fields = self._aiohttp.FormData()
                    fields.add_field("purpose", "batch")
                    fields.add_field("file", handle, filename=file.name, content_type="application/jsonl")
                    options["data"] = fields
                elif handle is not None:
                    options |= {"data": handle, "headers": {"Content-Type": "application/json"}}
                async with self._session.request(method, url, timeout=timeout, allow_redirects=False, **options) as answer:
                    body = (await answer.read()).decode("utf-8", "replace")
                    status, wait_s = answer.status, retry_after(answer.headers.get("Retry-After", ""))
            finally:
                if handle is not None:
                    handle.close()
        except (TimeoutError, self._aiohttp.ClientError, ConnectionError, ValueError) as error:
            raise self._no_reply(error) from None
        self._check(status, body, wait_s)
        try:
            data = json.loads(body)
        except (ValueError, RecursionError):
            data = None
        if not isinstance(data, dict):
            raise NoReply(self._clean(f"no JSON object but {body[:100]!r}"))
        return data

    async def fetch(self, address: str, target: Path) -> None:
        """Append what is at an address, a path below the base URL or a whole URL of this server, to a file."""
        url = address if "://" in address else f"{self.base_url}{address}"
        timeout = self._aiohttp.ClientTimeout(total=TRANSFER_S, sock_read=self._timeout_s)
        start = target.stat().st_size if target.exists() else 0
        try:
            async with self._session.get(url, timeout=timeout, allow_redirects=False) as answer:
                if answer.status != 200:
                    body = (await answer.read()).decode("utf-8", "replace")
                    self._check(answer.status, body, retry_after(answer.headers.get("Retry-After", "")))
                with target.open("r+b" if start else "wb") as file:
                    file.seek(start)
                    async for part in answer.content.iter_chunked(1 << 16):
                        file.write(part)
                    file.write(b"\n")  # the last line of a file need not end with one
        except (TimeoutError, self._aiohttp.ClientError, ConnectionError, ValueError) as error:
            with target.open("ab") as file:
                file.truncate(start)
            raise self._no_reply(error) from None

    def _no_reply(self, error: Exception) -> NoReply:
        sent = not isinstance(error, self._aiohttp.ClientConnectorError)
        text = "no reply in time" if isinstance(error, TimeoutError) else f"{type(error).__name__}: {error}"
        return NoReply(self._clean(text), sent)

    def _check(self, status: int, body: str, wait_s: float) -> None:
        if 200 <= status < 300:
            return
        message = self._clean(error_message(body))
        if 400 <= status < 500 and status != 408:
            raise Refusal(status, message, wait_s)
        raise NoReply(f"HTTP {status}: {message}")


# ── OpenAI ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class OpenAIBatches:
    """OpenAI's files and batches, as spoken by compatible providers too.

    Args:
        http: the server.
        path: what the requests are for, "/v1/chat/completions" or "/v1/completions".
    """

    head, between, tail = b"", b"\n", b"\n"
    uploads = tagged = True

    def __init__(self, http: Http, path: str = "/v1/chat/completions") -> None:
        self._http = http
        self._path = path

    def line(self, key: str, payload: bytes) -> bytes:
        return b'{"custom_id": "%s", "method": "POST", "url": "%s", "body": %s}' % (key.encode(), self._path.encode(), payload)

    async def upload(self, file: Path) -> str:
        return _ident(await self._http.json("POST", "/files", file=file, form=True))

    async def create(self, file: Path, file_id: str, tags: Mapping[str, str]) -> View:
        asked = {"input_file_id": file_id, "endpoint": self._path, "completion_window": "24h", "metadata": dict(tags)}
        return self._view(await self._http.json("POST", "/batches", json=asked))

    async def get(self, batch_id: str) -> View:
        return self._view(await self._http.json("GET", f"/batches/{quote(batch_id, safe='')}"))

    async def page(self, after: str, limit: int = PAGE) -> tuple[list[View], str]:
        data = await self._http.json("GET", "/batches", params={"limit": str(limit)} | ({"after": after} if after else {}))
        views = [self._view(b) for b in data.get("data") or [] if isinstance(b, dict)]
        return views, views[-1].id if views and data.get("has_more") else ""

    def _view(self, data: Mapping[str, Any]) -> View:
        counts, metadata, errors = _part(data, "request_counts"), _part(data, "metadata"), _part(data, "errors").get("data")
        status = str(data.get("status"))
        completed, failed = _number(counts, "completed"), _number(counts, "failed")
        files = [data.get(name) for name in ("output_file_id", "error_file_id")]
        results = tuple(f"/files/{quote(f, safe='')}/content" for f in files if isinstance(f, str) and f)
        phase: Literal["running", "ended", "refused"] = "running"
        if status in ("completed", "expired", "cancelled") or (status == "failed" and results):
            phase = "ended"
        elif status == "failed":
            phase = "refused"
        complaints = tuple(
            Complaint(
                e["line"] if isinstance(e.get("line"), int) else None, storable(str(e.get("code"))),
                storable(str(e.get("message"))),
            )
            for e in errors or [] if isinstance(e, dict)
        )  # fmt: skip
        tags = {str(k): str(v) for k, v in metadata.items()}
        return View(
            _ident(data), phase, status, _number(counts, "total"), completed + failed, completed, tags, results, complaints
        )

    def read(self, line: bytes) -> tuple[str, StoredReply] | None:
        data = _object(line)
        key, response, error = data.get("custom_id"), data.get("response"), data.get("error")
        if not isinstance(key, str):
            return None
        if isinstance(response, dict) and isinstance(response.get("status_code"), int):
            status, body = response["status_code"], json.dumps(response.get("body"), ensure_ascii=False)
            error_text = "" if status == 200 else f"HTTP {status}: {error_message(body)}"
            return key, StoredReply(status=status, body=body, error=error_text)
        if isinstance(error, dict):  # not worked on: expired, cancelled
            words = storable(f"{error.get('code')}: {error.get('message')}"[:300])
            return key, StoredReply(status=0, error=words, sent=False)
        return key, StoredReply(status=0, body=line.decode("utf-8", "replace"), error="the batch's line has no response")


# ── Anthropic ────────────────────────────────────────────────────────────────────────────────────────────────────────

_STATUS = {
    "invalid_request_error": 400, "authentication_error": 401, "billing_error": 402, "permission_error": 403,
    "not_found_error": 404, "request_too_large": 413, "rate_limit_error": 429, "api_error": 500, "timeout_error": 504,
    "overloaded_error": 529,
}  # fmt: skip
"""Anthropic's error types and the statuses that its Messages API gives them (API reference, "Errors")."""


class AnthropicBatches:
    """Anthropic's message batches.

    Args:
        http: the server.
    """

    head, between, tail = b'{"requests":[', b",\n", b"]}"
    uploads = tagged = False

    def __init__(self, http: Http) -> None:
        self._http = http

    def line(self, key: str, payload: bytes) -> bytes:
        return b'{"custom_id": "%s", "params": %s}' % (key.encode(), payload)

    async def upload(self, file: Path) -> str:
        raise NotImplementedError("its file goes out with `create`")

    async def create(self, file: Path, file_id: str, tags: Mapping[str, str]) -> View:
        return self._view(await self._http.json("POST", "/messages/batches", file=file))

    async def get(self, batch_id: str) -> View:
        return self._view(await self._http.json("GET", f"/messages/batches/{quote(batch_id, safe='')}"))

    async def page(self, after: str, limit: int = PAGE) -> tuple[list[View], str]:
        params = {"limit": str(limit)} | ({"after_id": after} if after else {})
        data = await self._http.json("GET", "/messages/batches", params=params)
        views = [self._view(b) for b in data.get("data") or [] if isinstance(b, dict)]
        return views, views[-1].id if views and data.get("has_more") else ""

    def _view(self, data: Mapping[str, Any]) -> View:
        counts, ident = _part(data, "request_counts"), _ident(data)
        kinds = ("processing", "succeeded", "errored", "canceled", "expired")
        number = {kind: _number(counts, kind) for kind in kinds}
        total, ended = sum(number.values()), data.get("processing_status") == "ended"
        results: tuple[str, ...] = ()
        if ended and data.get("results_url"):
            address = str(data["results_url"])
            same = urlsplit(address)[:2] == urlsplit(self._http.base_url)[:2]
            results = (address if same else f"/messages/batches/{quote(ident, safe='')}/results",)
        return View(
            ident, "ended" if ended else "running", str(data.get("processing_status")), total, total - number["processing"],
            number["succeeded"], {}, results,
        )  # fmt: skip

    def read(self, line: bytes) -> tuple[str, StoredReply] | None:
        data = _object(line)
        key, result = data.get("custom_id"), _part(data, "result")
        if not isinstance(key, str):
            return None
        match result.get("type"):
            case "succeeded":
                return key, StoredReply(status=200, body=json.dumps(result.get("message"), ensure_ascii=False))
            case "errored":
                body = json.dumps(result.get("error"), ensure_ascii=False)
                inner = _part(_part(result, "error"), "error") or _part(result, "error")
                status = _STATUS.get(str(inner.get("type")), 500)
                return key, StoredReply(status=status, body=body, error=f"HTTP {status}: {error_message(body)}")
            case "expired" | "canceled" as kind:
                return key, StoredReply(status=0, error=f"{kind} before it was worked on", sent=False)
        return key, StoredReply(status=0, body=line.decode("utf-8", "replace"), error="the batch's line has no result")


# ── JSON that may be anything ────────────────────────────────────────────────────────────────────────────────────────


def _object(line: bytes) -> dict[str, Any]:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _part(data: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = data.get(name)
    return value if isinstance(value, dict) else {}


def _number(data: Mapping[str, Any], name: str) -> int:
    value = data.get(name)
    return value if isinstance(value, int) else 0


def _ident(data: Mapping[str, Any]) -> str:
    """The id of a file or batch; without one, what came back is no answer."""
    if not isinstance(data.get("id"), str) or not data["id"]:
        raise NoReply(f"an answer without an id: {json.dumps(data)[:100]}")
    return str(data["id"])
