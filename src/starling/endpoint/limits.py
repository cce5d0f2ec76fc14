"""When a call may leave, and where to: rate limits of keys, adaptive concurrency, servers that are down.

Bookkeeping only: nothing here sleeps, reads a clock or draws a number. `now` is monotonic seconds, `draw` a number in [0, 1);
both come from the caller, so every rule can be worked by hand in a test.

    Bucket   what a key may send per minute
    Key      its buckets, and whether the server has told it to wait
    Flow     how many calls of one model and key are in flight: additive increase, multiplicative decrease
    Hosts    the addresses of one model: the least busy one that is up
    Ratio    tokens per estimated token, from the usage seen so far
"""

from __future__ import annotations

import math
from collections.abc import Sequence

LONGEST_WAIT_S = 900.0
"""A key that asks for more patience than this, or a server that answers nothing for so long, ends the run: it can go on later."""
FIRST_CONTACT_S = 60.0
"""A server that has never answered is given up sooner: its address is probably wrong."""
EJECT_AFTER = 10
"""So many faults of one address in a row take it out; at 30 % faults by chance that happens to one call in 170,000."""
COOL_DOWN_S = 1.0
LONGEST_COOL_DOWN_S = 60.0
"""An address that is out is tried again after this long, each time twice as long."""
PARK_AFTER = 3
"""So many rejections in a row, each of a call that left after the first came back, mean the key and not the call."""


# ── one call's patience ──────────────────────────────────────────────────────────────────────────────────────────────


def backoff(failures: int, draw: float) -> float:
    """Seconds to wait after so many failures of one call: 0.5 doubling up to 60, the upper half of it by chance."""
    return min(60.0, 0.5 * 2.0 ** min(failures - 1, 10)) * (0.5 + 0.5 * draw)


def after(asked_s: float, draw: float) -> float:
    """Seconds to wait when the server asks for `asked_s`: a little more, so that not all come back at the same instant."""
    return asked_s + min(0.1 * asked_s, 0.5) * draw


# ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Bucket:
    """A rate per minute that no window of 60 s exceeds, save by the last call's own size.

    It holds 1/61 of the minute's amount and fills at 1/61 of it per second: 60 s and a full bucket make one minute's amount. It
    is paid in advance and may go into debt by one call, so that a call larger than the bucket can leave at all.
    """

    def __init__(self, per_minute: float) -> None:
        self.rate = per_minute / 61.0
        self.size = max(1.0, self.rate)
        self._level = self.size
        self._at = -math.inf

    def _fill(self, now: float) -> None:
        if now > self._at:
            self._level = min(self.size, self._level + self.rate * (now - self._at))
            self._at = now

    def wait(self, amount: float, now: float) -> float:
        """Seconds until `amount` may be taken."""
        self._fill(now)
        return max(0.0, (min(amount, self.size) - self._level) / self.rate)

    def take(self, amount: float, now: float) -> None:
        """Take it, whether it is there or not."""
        self._fill(now)
        self._level -= amount

    def give_back(self, amount: float) -> None:
        """What was reserved and not used; negative for more than was reserved."""
        self._level = min(self.size, self._level + amount)


class Key:
    """One API key, shared by all models that use it; `name` is that of its environment variable, "" for servers without keys.

    Args:
        name: for messages.
        requests_per_minute: None means no limit that we know of; likewise tokens.
    """

    def __init__(self, name: str, requests_per_minute: float | None = None, tokens_per_minute: float | None = None) -> None:
        self.name = name
        self.requests = Bucket(requests_per_minute) if requests_per_minute else None
        self.tokens = Bucket(tokens_per_minute) if tokens_per_minute else None
        self.limited_since: float | None = None
        """When the first rejection since the last answer came."""
        self.parked_until = -math.inf
        self._rejections = 0
        self._parkings = 0
        self._parked_at = self._last_rejection = -math.inf
        self._asked_to_park = self._testing = False

    def wait(self, tokens: int, now: float) -> float:
        """Seconds until a call of so many tokens may leave; infinite while one call tests whether the key works again."""
        if now < self.parked_until:
            return self.parked_until - now
        if self._testing:
            return math.inf
        waits = [self.requests.wait(1, now)] if self.requests else []
        waits += [self.tokens.wait(tokens, now)] if self.tokens else []
        return max(waits, default=0.0)

    def take(self, tokens: int, now: float) -> bool:
        """A call is about to leave; True when it tests a key that was parked. Each ends with `landed` or `untake`."""
        if self.requests:
            self.requests.take(1, now)
        if self.tokens:
            self.tokens.take(tokens, now)
        test = self._rejections >= PARK_AFTER
        self._testing = self._testing or test
        return test

    def untake(self, tokens: int, test: bool) -> None:
        """It did not leave after all."""
        if self.requests:
            self.requests.give_back(1)
        self.landed(tokens, test)

    def landed(self, unused: int, test: bool) -> None:
        """A call is over; `unused` of its tokens were not needed."""
        if self.tokens:
            self.tokens.give_back(unused)
        if test:
            self._testing = False

    def refused_for(self, now: float) -> float:
        """Seconds since the first rejection after the last answer; 0 when there is none."""
        return 0.0 if self.limited_since is None else now - self.limited_since

    def answered(self) -> None:
        """A call was answered. Where the server named no time, that ends the waiting."""
        self.limited_since = None
        self._rejections = self._parkings = 0
        if not self._asked_to_park:
            self.parked_until = -math.inf

    def limited(self, sent: float, asked_s: float, now: float) -> bool:
        """A call that left at `sent` was told to come back, after `asked_s` (0: not said); True when that parks the key."""
        if self.limited_since is None or now - self._last_rejection > LONGEST_WAIT_S:  # after so long it is another story
            self.limited_since, self._rejections = now, 1
        elif sent >= self.limited_since:
            self._rejections += 1
        self._last_rejection = now
        if asked_s <= LONGEST_WAIT_S and (self._rejections < PARK_AFTER or sent < self._parked_at):
            return False
        self._parkings += 1
        self._parked_at = now
        self._asked_to_park = asked_s > 0
        self.parked_until = max(self.parked_until, now + (asked_s or min(60.0, 2.0 ** min(self._parkings - 1, 6))))
        return True


class Flow:
    """How many calls may be in flight: additive increase, multiplicative decrease by what share was rejected.

    A round is one round trip: it ends when the first call comes back that left after it began. Its share s of rejections lowers
    the limit by the factor 1 − s/2, so that a round of rejections halves it and a lone one among hundreds is not felt (DCTCP's
    scheme: Alizadeh et al., 2010, without its smoothing); every answer raises it so that a round of answers adds 1/32 of `most`.
    The limit stays between 1/16 of `most` and `most`.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.least = max(1.0, most / 16)
        self.limit = float(most)
        self._began: float | None = None
        self._landed = self._rejected = 0

    def answered(self, sent: float, now: float) -> None:
        """A call that left at `sent` was answered."""
        self.limit = min(float(self.most), self.limit + max(1.0, self.most / 32) / self.limit)
        self._count(sent, now, rejected=False)

    def limited(self, sent: float, now: float) -> None:
        """A call that left at `sent` met a server that is too busy."""
        self._count(sent, now, rejected=True)

    def _count(self, sent: float, now: float, *, rejected: bool) -> None:
        self._landed += 1
        self._rejected += rejected
        if self._began is None:
            self._began = now
        elif sent >= self._began:
            self.limit = max(self.least, self.limit * (1 - 0.5 * self._rejected / self._landed))
            self._began, self._landed, self._rejected = now, 0, 0


# ── servers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Host:
    """One address of a model."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.flying = 0
        self.down_since: float | None = None
        """When it was taken out; None while it is in use."""
        self.try_again = -math.inf
        self._faults = 0
        self._answered_at = -math.inf
        self._cool_down = COOL_DOWN_S
        self._testing = False

    def wait(self, now: float) -> float:
        """Seconds until a call may go there; infinite while one call tests an address that was out."""
        if self.down_since is None:
            return 0.0
        return math.inf if self._testing else max(0.0, self.try_again - now)

    def take(self) -> bool:
        """A call leaves; True when it tests an address that was out. Each ends with `landed`."""
        self.flying += 1
        test = self.down_since is not None
        self._testing = self._testing or test
        return test

    def landed(self, test: bool) -> None:
        """It is over."""
        self.flying -= 1
        if test:
            self._testing = False

    def answered(self, now: float) -> None:
        """It works."""
        self._faults, self.down_since, self._cool_down, self._answered_at = 0, None, COOL_DOWN_S, now

    def failed(self, began: float, sent: float, now: float) -> bool:
        """A call that left at `sent` found no connection, ran out of time or met a fault; True when that takes it out.

        A call that has failed since `began` while others were answered here is to blame itself, and says nothing: such calls
        come last, one after the other.
        """
        if self.down_since is None and began < self._answered_at:
            return False
        self._faults += 1
        if self._faults < EJECT_AFTER or (self.down_since is not None and sent < self.try_again):
            return False
        if self.down_since is None:
            self.down_since = now
        self.try_again = now + self._cool_down
        self._cool_down = min(LONGEST_COOL_DOWN_S, 2 * self._cool_down)
        return True


class Hosts:
    """The addresses of one model."""

    def __init__(self, urls: Sequence[str]) -> None:
        self.all = [Host(url) for url in urls]

    def pick(self, now: float, avoid: Host | None = None) -> Host | None:
        """The least busy address that is up or due for a test; `avoid` only when there is no other."""
        best = None
        for host in self.all:
            if host.wait(now) == 0 and (best is None or (host is avoid, host.flying) < (best is avoid, best.flying)):
                best = host
        return best

    def wait(self, now: float) -> float:
        """Seconds until there may be one."""
        return min(host.wait(now) for host in self.all)

    def down_for(self, now: float) -> float:
        """Seconds since the last of them was taken out; 0 while one is in use."""
        return min(0.0 if host.down_since is None else now - host.down_since for host in self.all)


# ── estimates ────────────────────────────────────────────────────────────────────────────────────────────────────────

CHARS_PER_TOKEN = 4
"""English text with common tokenizers: 3.5–4.5."""


class Ratio:
    """True prompt tokens per estimated one, over about the last hundred calls; 1 before the first."""

    def __init__(self) -> None:
        self._true = self._estimated = 0.0

    def tokens(self, chars: int) -> int:
        """Estimated tokens of a prompt."""
        plain = chars / CHARS_PER_TOKEN + 1
        return math.ceil(plain * self._true / self._estimated if self._estimated else plain)

    def saw(self, chars: int, tokens: int) -> None:
        """A prompt of so many characters had so many tokens."""
        self._true = 0.99 * self._true + tokens
        self._estimated = 0.99 * self._estimated + chars / CHARS_PER_TOKEN + 1
