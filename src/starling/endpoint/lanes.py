"""By which key a call leaves: the model's lanes, one per key, and the calls in them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

from starling.call import Request
from starling.config import ServerModel
from starling.endpoint import wire
from starling.endpoint.limits import Flow, Host, Hosts, Key, Ratio
from starling.journal import NOTHING, Journal


class Served:
    """A model behind servers, as it is known from one round of calls to the next.

    Args:
        name: label of the model in the pool, for messages.
        settings: addresses, limits and sampling.
        journal: the run's journal.
        keys: one per environment variable in the settings, or one without a name.
    """

    def __init__(self, name: str, settings: ServerModel, journal: Journal, keys: Sequence[Key]) -> None:
        self.name = name
        self.settings = settings
        self.journal = journal
        self.keys = keys
        self.model = wire.model_ref(settings)
        self.hosts = Hosts(settings.base_url)
        self.ratio = Ratio()
        self.limit_name = "max_tokens"
        """What this server calls the limit on reply tokens."""
        self.alive = False
        """Whether it has ever answered."""


class Call:
    """One request on its way to an answer."""

    __slots__ = (
        "attempt", "avoid", "began", "copies", "faults", "key_test", "lane", "most", "not_before", "rejected_since", "rejections",
        "request", "tokens",
    )  # fmt: skip

    def __init__(self, request: Request) -> None:
        self.request = request
        self.copies = 1
        """How often it was asked meanwhile."""
        self.attempt = self.faults = self.rejections = 0
        self.began = math.inf
        """When its first attempt that came to nothing left."""
        self.rejected_since = math.inf
        """When a key told it to come back later for the first time."""
        self.not_before: dict[Key, float] = {}
        """When a key that rejected it may be tried again."""
        self.avoid: Host | None = None
        """Where it failed last."""
        # Of the present attempt: which key, whether it tests that key, and what is set aside from key and budget.
        self.lane: Lane | None = None
        self.key_test = False
        self.tokens = 0
        self.most = NOTHING


class Lane:
    """One key of one model."""

    def __init__(self, key: Key, secret: str | None, settings: ServerModel) -> None:
        self.key = key
        self.headers = wire.headers(settings, secret)
        self.flow = Flow(settings.in_flight)
        # While a call waits for the journal before and after its flight, another one may fly: hence a quarter more announced.
        self.ahead = settings.in_flight // 4 + 8
        self.announced: deque[Call] = deque()
        self.announcing = 0
        """Calls whose intent is being written, and those announced."""
        self.flying = 0

    def room(self) -> bool:
        """Whether another call may be announced."""
        return self.announcing + self.flying < int(self.flow.limit) + self.ahead

    def assign(self, call: Call, now: float) -> None:
        """`call` is to leave by this lane: its key is paid in advance."""
        call.lane = self
        call.key_test = self.key.take(call.tokens, now)
        self.announcing += 1

    def unassign(self) -> Call:
        """The first announced call does not leave by this lane."""
        call = self.announced.popleft()
        self.announcing -= 1
        self.key.untake(call.tokens, call.key_test)
        return call


def choose(lanes: Sequence[Lane], call: Call, now: float) -> tuple[Lane | None, float]:
    """The emptiest lane that takes the call, else the seconds until one may (infinite: when something lands)."""
    best: Lane | None = None
    wait = math.inf
    for lane in lanes:
        if not lane.room():
            continue
        lane_wait = max(lane.key.wait(call.tokens, now), call.not_before.get(lane.key, now) - now)
        if lane_wait > 0:
            wait = min(wait, lane_wait)
        elif best is None or lane.announcing + lane.flying < best.announcing + best.flying:
            best = lane
    return best, wait
