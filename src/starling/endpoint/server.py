"""Models behind servers as endpoints: what stays the same from one round of calls to the next, and several models at a time.

How a call is made is `starling.endpoint.calling`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from starling.call import Reply, Request
from starling.config import KeySection, ServerModel
from starling.endpoint.asking import Asked
from starling.endpoint.calling import Calls, Group
from starling.endpoint.lanes import Served
from starling.endpoint.limits import Key
from starling.journal import Journal
from starling.progress import SILENT, Progress

T = TypeVar("T")


class KeyRing:
    """The keys of a run: one object each, whichever models use it."""

    def __init__(self, limits_by_name: Mapping[str, KeySection] | None = None) -> None:
        self._limits = limits_by_name or {}
        self._keys: dict[str, Key] = {}

    def get(self, name: str) -> Key:
        """The key in the environment variable `name`."""
        if name not in self._keys:
            section = self._limits.get(name, KeySection())
            self._keys[name] = Key(name, section.requests_per_minute, section.tokens_per_minute)
        return self._keys[name]


class HttpEndpoint(Asked):
    """A model behind one or several servers. Keys are read from the environment when the first call leaves and stored nowhere.

    Args:
        name: label of the model in the pool, for messages.
        settings: addresses, limits and sampling.
        journal: the run's journal.
        keys: the run's keys, when models share some.
    """

    def __init__(self, name: str, settings: ServerModel, journal: Journal, keys: KeyRing | None = None) -> None:
        ring = keys or KeyRing()
        self.served = Served(name, settings, journal, [ring.get(env) for env in settings.api_key_env] or [Key("")])
        self.model = self.served.model
        self._journal = journal

    def _ask(self, requests: Collection[Request], progress: Progress) -> dict[str, Reply]:
        return ask_servers([(self, requests)], progress)[0]


def ask_servers(asks: Sequence[tuple[HttpEndpoint, Collection[Request]]], progress: Progress = SILENT) -> list[dict[str, Reply]]:
    """Make the calls of several models at the same time; returns the failed ones of each.

    Raises:
        BudgetError, EndpointError: see `endpoint.Endpoint`.
    """
    return run_loop(calls_to(asks, progress))


async def calls_to(asks: Sequence[tuple[HttpEndpoint, Collection[Request]]], progress: Progress) -> list[dict[str, Reply]]:
    """`ask_servers` inside an event loop."""
    group = Group(progress)
    models = [Calls(endpoint.served, requests, group) for endpoint, requests in asks]
    await group.run(models)
    return [model.failed for model in models]


def run_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end from ordinary code; in a notebook, where a loop is running already, in a thread of its own."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    tasks: list[asyncio.Task[T]] = []

    async def noted() -> T:
        task = asyncio.get_running_loop().create_task(work)
        tasks.append(task)
        return await task

    with ThreadPoolExecutor(1) as thread:
        result = thread.submit(asyncio.run, noted())
        try:
            return result.result()
        except KeyboardInterrupt:  # it comes here and not in that thread, for whose end the executor waits
            for task in tasks:
                task.get_loop().call_soon_threadsafe(task.cancel)
            raise
