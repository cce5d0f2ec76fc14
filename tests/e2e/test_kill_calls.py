"""Law 1 against a server that keeps its own books: SIGKILL at random moments of collecting and ranking.

After each kill the run is started again; at the end its files are those of an undisturbed run, byte for byte. What was paid
twice is read from the server's record, whose clock is that of the kills: at most what was in flight at a kill by the journal's
account, and nothing whose reply had been handed to the kernel more than 50 ms before. To these 50 ms comes the longest time for
which the server itself got no processor around that moment: on a machine with other work the killed process waited, too.

The suite kills three times; STARLING_KILLS=20 kills more often.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from starling.journal import Journal
from tests.e2e.collecting import sentence, write_settings
from tests.e2e.processes import killed_when, starling
from tests.fakes.process import FakeServer

KILLS = int(os.environ.get("STARLING_KILLS", "3"))
KILLS_PER_RUN = 5
PROMPTS = 120
CALLS = 3 * PROMPTS
"""Two speakers and a judge."""
IN_FLIGHT = 24
GRACE_S = 0.05


@dataclass(frozen=True)
class Kill:
    """One SIGKILL."""

    when: float
    """On the clock of the server's record, just before the signal."""
    over: float
    """When whatever the process had sent was surely read by the server, and the next process had not come to ask anything."""
    unfinished: int
    """Attempts that the journal gained and that have no end: in flight when the process died."""


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    with FakeServer(chars=300) as made:
        yield made


def restart(server: FakeServer) -> None:
    """An empty record; replies that do not come in waves."""
    server.reset(latency=0.06, jitter=0.08)


def files(run_dir: Path) -> dict[str, bytes]:
    return {p.relative_to(run_dir).as_posix(): p.read_bytes() for p in sorted(run_dir.glob("*/*.parquet"))}


@pytest.fixture(scope="module")
def undisturbed(server: FakeServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    restart(server)
    folder = tmp_path_factory.mktemp("undisturbed")
    settings = write_settings(folder, server.url, [sentence(i) for i in range(PROMPTS)], in_flight=IN_FLIGHT)
    done = starling("rank", settings)
    assert done.returncode == 0, done.stderr
    stats = server.stats()
    assert (stats["received"], stats["answered"], stats["contents"]) == (CALLS, CALLS, CALLS)
    found = files(folder / "run")
    assert {"responses/responses.parquet", "ranking/judgments.parquet"} <= set(found)
    return found


def moments(seed: int, count: int) -> list[tuple[int, float]]:
    """Random moments: a number of calls that the server has received, and seconds after that."""
    draw = random.Random(seed)
    return sorted((draw.randrange(1, CALLS + 1), draw.uniform(0.0, 0.25)) for _ in range(count))


def reached(server: FakeServer, received: int, then_s: float, marks: list[float]) -> Callable[[], bool]:
    """True once so many calls are there, repeats not counted; notes the time."""

    def moment() -> bool:
        if server.stats()["contents"] < received:
            return False
        time.sleep(then_s)
        marks.append(time.monotonic())
        return True

    return moment


def unfinished(path: Path) -> int:
    if not path.exists():
        return 0
    with Journal(path) as journal:
        return journal.usage().unfinished


@pytest.mark.parametrize("part", range(-(-KILLS // KILLS_PER_RUN)))
def test_killed_at_random_moments(part: int, server: FakeServer, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    restart(server)
    settings = write_settings(tmp_path, server.url, [sentence(i) for i in range(PROMPTS)], in_flight=IN_FLIGHT)
    kills: list[Kill] = []
    for received, then_s in moments(part, min(KILLS_PER_RUN, KILLS - part * KILLS_PER_RUN)):
        before, marks = unfinished(tmp_path / "run" / "journal.sqlite"), list[float]()
        if killed_when(reached(server, received, then_s, marks), "rank", settings):
            over = time.monotonic() + 0.1
            kills.append(Kill(marks[0], over, unfinished(tmp_path / "run" / "journal.sqlite") - before))
    assert kills, "no moment was met"
    done = starling("rank", settings)
    assert done.returncode == 0, done.stderr
    assert files(tmp_path / "run") == undisturbed

    stats = server.stats(keys=True)
    assert stats["contents"] == CALLS
    for kill in kills:
        twice = [finished for row in stats["keys"].values() for finished in asked_again(row, kill, kills)]
        print(f"in flight at the kill: {kill.unfinished}; asked again: {len(twice)}")
        assert len(twice) <= kill.unfinished <= 2 * (IN_FLIGHT + IN_FLIGHT // 4 + 8), kill  # two speakers at the same time
        grace = GRACE_S + starved(stats, kill.when)
        early = [round(kill.when - finished, 3) for finished in twice if finished <= kill.when - grace]
        assert early == [], f"asked again although answered so many seconds before the kill; grace was {grace:.3f} s"


def asked_again(row: dict[str, Any], kill: Kill, kills: list[Kill]) -> list[float]:
    """When the call of a content that was in flight at `kill` was answered (inf: never), if it was asked again.

    Every arrival but the last was followed by another one; the kill that is to blame is the first one after it. An arrival
    with no kill before the next one has no excuse at all, and is blamed on every kill.
    """
    found = []
    for arrived, following in zip(row["arrived"], row["arrived"][1:], strict=False):
        blamed = next((k for k in kills if arrived <= k.over < following), kill)
        if blamed == kill:
            found.append(next((t for t in row["finished"] if arrived <= t < following), float("inf")))
    return found


def starved(stats: dict[str, Any], when: float) -> float:
    """For how long at most the server was not scheduled in the second before `when`."""
    return max((late for at, late in stats["lags"] if when - 1 < at - late < when + 0.1), default=0.0)
