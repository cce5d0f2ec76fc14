"""One attempt over HTTP, from request to raw reply; every way it can end is a value.

aiohttp, because the CPU time of httpx's connection pool, on which the openai client rests, grows with the square of the calls in
flight. aiohttp's redirects, cookies and connection limit are off; each attempt is ours and has its row in the journal.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from starling.call import Failure, Request, storable
from starling.config import ServerModel
from starling.endpoint import wire
from starling.errors import InputError
from starling.journal import StoredReply

CONNECT_S = 30.0
"""Seconds for a connection to be made; a call that got none was not paid for."""
KEPT_OF_TOO_LARGE = 10_000
"""Bytes kept of a body that is too large."""


@dataclass(frozen=True, slots=True)
class Landing:
    """How an attempt ended."""

    stored: StoredReply
    failure: Failure | None
    """None when the server sent 200 and a whole body; whether that is a reply is seen after it is stored."""
    wait_s: float
    """What the server asks us to wait; 0 when it does not."""
    sent: float
    ended: float
    """Monotonic seconds."""


class Wire:
    """The connections of one model. Made inside the event loop; `close` it.

    Args:
        settings: the model's.
        secrets: its keys, to be blanked out of whatever comes back.
    """

    def __init__(self, settings: ServerModel, secrets: Sequence[str]) -> None:
        import aiohttp  # takes 0.2 s; commands that call no server do without

        self._aiohttp = aiohttp
        self._settings = settings
        self._secrets = secrets
        self._path = wire.path(settings)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=300),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(
                total=settings.timeout_s, sock_connect=CONNECT_S, sock_read=settings.idle_timeout_s or settings.timeout_s
            ),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def send(self, request: Request, base_url: str, headers: dict[str, str], limit_name: str) -> Landing:
        """One attempt. Never raises but when cancelled."""
        began = time.monotonic()
        status, asked_s = 0, 0.0
        parts: list[bytes] = []
        error, failure, left = "", None, True
        try:
            data = wire.payload(self._settings, request, limit_name)
            url = base_url.rstrip("/") + self._path
            async with self._session.post(url, data=data, headers=headers, allow_redirects=False) as answer:
                asked_s = wire.retry_after(answer.headers.get("Retry-After", "")) if answer.status != 200 else 0.0
                if await _read(answer.content, parts):
                    answer.close()
                    error, failure = f"the reply is larger than {wire.MOST_BYTES // 1_000_000} MB", Failure.too_large
                status = answer.status
        except InputError as caught:
            error, failure, left = f"not sent: {caught.what} ({caught.where})", Failure.bad_request, False
        except self._aiohttp.ConnectionTimeoutError:
            error, failure, left = f"no connection within {CONNECT_S:g} s", Failure.connection, False
        except TimeoutError:
            error, failure = self._timed_out(time.monotonic() - began), Failure.timeout
        except self._aiohttp.ClientConnectorError as caught:
            error, failure, left = f"no connection: {caught}", Failure.connection, False
        except (self._aiohttp.ClientError, OSError, ValueError) as caught:
            error, failure = f"{type(caught).__name__}: {caught}", Failure.connection
        body = b"".join(parts).decode("utf-8", "replace")
        if failure is None and status != 200:
            error, failure = f"HTTP {status}: {wire.error_message(body)}", wire.failure_of(status, body)
        return self._landing(status, body, error, failure, left, asked_s, began)

    def _landing(
        self, status: int, body: str, error: str, failure: Failure | None, left: bool, asked_s: float, began: float
    ) -> Landing:
        for secret in self._secrets:
            if len(secret) >= 8:  # short ones are placeholders such as "EMPTY", which may well occur in a text
                error, body = error.replace(secret, "[key]"), body.replace(secret, "[key]")
        ended = time.monotonic()
        stored = StoredReply(status=status, body=body, error=storable(error), latency_s=ended - began, sent=left)
        return Landing(stored, failure, asked_s, began, ended)

    def _timed_out(self, after_s: float) -> str:
        settings = self._settings
        if settings.idle_timeout_s is not None and after_s < settings.timeout_s - 0.001:
            return f"not a byte within {settings.idle_timeout_s:g} s"
        return f"no reply within {settings.timeout_s:g} s"


async def _read(content: object, parts: list[bytes]) -> bool:
    """Read a body into `parts`; True, with only its beginning kept, when it is larger than MOST_BYTES."""
    size = 0
    async for part in content.iter_any():  # type: ignore[attr-defined]
        parts.append(part)
        size += len(part)
        if size > wire.MOST_BYTES:
            parts[:] = [b"".join(parts)[:KEPT_OF_TOO_LARGE]]
            return True
    return False
