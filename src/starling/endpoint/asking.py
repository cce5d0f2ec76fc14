"""What all endpoints have in common: first every call is made, then the replies are read back from the journal one by one.

Between the two, nothing is kept but the replies that failed: they are not in the journal. The requests are gone through twice and
may make their members anew each time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from itertools import islice
from typing import TypeVar

from starling.call import Failure, Reply, Request, compose_reply, failed_reply, parse_reply
from starling.journal import Journal, Rejection, StoredReply
from starling.progress import SILENT, Progress
from starling.records import Finish

READ_TOGETHER = 64
"""Replies read from the journal at once: the most that are in memory."""
NOT_A_REPLY = "the server's reply is in no known format"

_T = TypeVar("_T")


class Asked:
    """Base of the endpoints; they say in `_ask` how calls are made."""

    _journal: Journal

    def ask_all(self, requests: Collection[Request], progress: Progress = SILENT) -> Iterator[Reply]:
        """See `endpoint.Endpoint`."""
        return self.replies(requests, self._ask(requests, progress))

    def complete_all(self, requests: Collection[Request], progress: Progress = SILENT) -> list[Reply]:
        """See `endpoint.Endpoint`."""
        return list(self.ask_all(requests, progress))

    def seconds(self, keys: Iterable[str]) -> float:
        """See `endpoint.Endpoint`."""
        return self._journal.seconds(keys)

    def _ask(self, requests: Collection[Request], progress: Progress) -> dict[str, Reply]:
        """Make all calls that have no answer yet; returns the failed ones by key."""
        raise NotImplementedError

    def replies(self, requests: Collection[Request], failed: dict[str, Reply]) -> Iterator[Reply]:
        """The replies in the order of the requests, after all calls were made; `failed` holds those that are not in the journal.

        A stored body that is no reply is taken back and asked for again here: a process died between storing and parsing it.
        """
        for part in batched(requests, READ_TOGETHER):
            known = self._read(dict.fromkeys(r.key for r in part if r.key not in failed))
            lost = {r.key: r for r in part if r.key not in known and r.key not in failed}
            if lost:
                failed |= self._ask(list(lost.values()), SILENT)
                known |= self._read(dict.fromkeys(key for key in lost if key not in failed))
            for request in part:
                reply = known.get(request.key) or failed.get(request.key)
                yield reply or failed_reply(request.key, NOT_A_REPLY, Failure.not_a_reply)

    def _read(self, keys: Iterable[str]) -> dict[str, Reply]:
        """Parsed answers; those that are none are taken back."""
        known: dict[str, Reply] = {}
        broken: list[Rejection] = []
        for key, stored in self._journal.get_many(keys).items():
            reply = parse_reply(stored.body, key)
            if reply is None:
                broken.append(Rejection(key=key, reason=NOT_A_REPLY))
            else:
                known[key] = reply
        if broken:
            self._journal.write(broken)
        return known


def batched(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    """Lists of `size` items, the last one shorter."""
    source = iter(items)
    while part := list(islice(source, size)):
        yield part


def stored(reply: Reply, latency_s: float = 0.0) -> StoredReply:
    """A local reply as the journal keeps it; failures are no answers, so another run asks again."""
    if reply.finish is Finish.error:
        return StoredReply(status=500, error=reply.error or "failed without a reason", latency_s=latency_s)
    return StoredReply(status=200, body=compose_reply(reply), latency_s=latency_s)


def told(reply: Reply, key: str) -> Reply:
    """A local failure as the caller gets it."""
    return failed_reply(key, reply.error or "failed without a reason", reply.failure or Failure.server_error)
