"""Collecting under load: how fast, how cheap and how large `HttpEndpoint` with its journal is against a server that waits.

The fake server of the test suite answers after a fixed latency, from a process of its own; the client is a fresh process,
and every figure of CPU and memory is of that process alone, imports included. The latency bound is in-flight / latency:
no client can be faster, and N calls in waves of W reach at most N / (ceil(N / W) · W) of it.

    python benchmarks/collect_load.py                                   20,000 calls, 0.25 s, 256 in flight
    python benchmarks/collect_load.py --latency 5 --in-flight 2000      the latency of a real model
    python benchmarks/collect_load.py --restart 1463632                 a run of Nectar's size that is started again

`--restart N` makes a journal with N answered calls (kept with --journal, so that it is made once), then starts a process
that asks for those N and 256 new ones behind them: seconds from its start to the arrival of the first new call, and to
the end of everything.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from starling.call import Reply, Request, compose_reply
from starling.config import OpenAIModel
from starling.endpoint import HttpEndpoint
from starling.journal import Answer, Entry, Intent, Journal, StoredReply
from starling.records import Finish, Message, ModelRef

NEW = 256
"""Calls behind the answered ones in a restart."""


class Questions(Collection[Request]):
    """Requests that are made anew on every pass: nothing of their number is in memory.

    Args:
        model: who is asked.
        count: how many.
        chars: length of each prompt.
        fresh: the last so many are questions that nobody ever asked before.
    """

    def __init__(self, model: ModelRef, count: int, chars: int, fresh: int = 0) -> None:
        self._model, self._count, self._chars = model, count, chars
        self._old, self._salt = count - fresh, time.time_ns()

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Request]:
        return (self.make(i) for i in range(self._count))

    def __contains__(self, item: object) -> bool:
        return any(request == item for request in self)

    def make(self, number: int) -> Request:
        name = number if number < self._old else f"{number} of {self._salt}"
        text = f"Question {name}: " + "why is that so? " * (self._chars // 16)
        return Request(self._model, (Message(role="user", content=text),), purpose="load")


def endpoint(url: str, in_flight: int, journal: Journal) -> HttpEndpoint:
    settings = OpenAIModel(type="openai", base_url=url, name="m", in_flight=in_flight, timeout_s=120)
    return HttpEndpoint("load", settings, journal)


def peak_mb() -> float:
    """Largest resident set of this process so far; ru_maxrss would count the parent's, too."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


# ── the client: a process of its own ─────────────────────────────────────────────────────────────────────────────────


def client(args: argparse.Namespace) -> None:
    """Ask everything, read every reply, print what it took."""
    with Journal(args.journal) as journal:
        model = endpoint(args.client, args.in_flight, journal)
        began, used = time.monotonic(), time.process_time()
        replies = model.ask_all(Questions(model.model, args.calls, args.chars, args.fresh))
        asked, asked_peak = time.monotonic(), peak_mb()
        failed = sum(reply.finish is Finish.error for reply in replies)
        read = time.monotonic()
    found = {
        "ask_s": asked - began, "read_s": read - asked, "failed": failed, "asked_peak_mb": asked_peak, "peak_mb": peak_mb(),
        "cpu_s": time.process_time(), "imports_cpu_s": used,
    }  # fmt: skip
    print(json.dumps(found))


def run_client(url: str, journal: Path, args: argparse.Namespace, calls: int, fresh: int = 0) -> dict[str, Any]:
    """The client's own figures, and its whole time seen from outside."""
    command = [sys.executable, __file__, "--client", url, "--journal", journal, "--calls", calls, "--chars", args.chars]
    command += ["--in-flight", args.in_flight, "--fresh", fresh]
    started = time.monotonic()
    done = subprocess.run([*map(str, command)], stdout=subprocess.PIPE, check=True)
    return {**json.loads(done.stdout), "started": started, "wall_s": time.monotonic() - started}


# ── the two measurements ─────────────────────────────────────────────────────────────────────────────────────────────


def load(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Calls against the latency bound."""
    from tests.fakes.process import FakeServer

    with FakeServer(args.latency, chars=args.reply_chars) as server:
        found = run_client(server.url, folder / "journal.sqlite", args, args.calls)
        seen = server.stats()
    size = sum(p.stat().st_size for p in folder.glob("journal.sqlite*"))
    bound = args.in_flight / args.latency
    running = seen["last"] - seen["first"]
    assert seen["answered"] == seen["received"] == args.calls, seen
    return {
        "calls": args.calls, "latency_s": args.latency, "in_flight": args.in_flight, "failed": found["failed"],
        "max_in_flight": seen["max_in_flight"],
        "calls_per_s": round(args.calls / running, 1), "calls_per_s_with_start": round(args.calls / found["wall_s"], 1),
        "share_of_bound": round(args.calls / running / bound, 3),
        "cpu_s_per_1000": round(found["cpu_s"] / args.calls * 1000, 3),
        "cpu_s_per_1000_without_imports": round((found["cpu_s"] - found["imports_cpu_s"]) / args.calls * 1000, 3),
        "server_cpu_s_per_1000": round(seen["cpu_s"] / args.calls * 1000, 3),
        "peak_mb": round(found["peak_mb"], 1), "journal_kb_per_1000": round(size / args.calls * 1000 / 1024, 1),
        "read_all_replies_s": round(found["read_s"], 2),
    }  # fmt: skip


def restart(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """A run that begins with a large journal."""
    from tests.fakes.process import FakeServer

    path = args.journal or folder / "journal.sqlite"
    made = 0.0
    if not path.exists():
        began = time.monotonic()
        fill(path, args.restart, args)
        made = time.monotonic() - began
    with FakeServer(args.latency, chars=args.reply_chars) as server:
        found = run_client(server.url, path, args, args.restart + NEW, NEW)
        seen = server.stats()
    assert seen["received"] == NEW, f"{seen['received']} calls, but {NEW} are new"
    return {
        "answered_calls": args.restart, "new_calls": seen["received"], "journal_mb": round(path.stat().st_size / 2**20),
        "made_in_s": round(made, 1), "first_new_call_s": round(seen["first"] - found["started"], 2) if seen["first"] else None,
        "all_asked_s": round(found["ask_s"], 2), "peak_mb_when_asked": round(found["asked_peak_mb"], 1),
        "read_all_replies_s": round(found["read_s"], 2), "peak_mb": round(found["peak_mb"], 1), "cpu_s": round(found["cpu_s"], 1),
        "failed": found["failed"],
    }  # fmt: skip


def fill(path: Path, count: int, args: argparse.Namespace) -> None:
    """A journal in which the first `count` questions are answered, written through the journal's own door."""
    with Journal(path) as journal:
        model = endpoint("http://127.0.0.1:9/v1", 1, journal).model
        questions = Questions(model, count, args.chars)
        text = "because of the water " * (args.reply_chars // 21)
        entries: list[Entry] = []
        for number, request in enumerate(questions):
            reply = Reply(f"{number} {text}", Finish.stop, request.key, prompt_tokens=50, completion_tokens=300)
            entries.append(Intent(key=request.key, attempt=1, request=request.as_dict()))
            entries.append(Answer(key=request.key, attempt=1, reply=StoredReply(status=200, body=compose_reply(reply))))
            if len(entries) >= 20_000:
                journal.write(entries)
                entries = []
        journal.write(entries)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--latency", type=float, default=0.25, help="seconds")
    parser.add_argument("--in-flight", type=int, default=256)
    parser.add_argument("--chars", type=int, default=200, help="length of a prompt")
    parser.add_argument("--reply-chars", type=int, default=1200, help="length of a reply")
    parser.add_argument("--restart", type=int, default=0, metavar="N", help="measure a restart on a journal of N answered calls")
    parser.add_argument("--journal", type=Path, help="where --restart keeps its journal")
    parser.add_argument("--client", help=argparse.SUPPRESS)
    parser.add_argument("--fresh", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.client:
        client(args)
        return
    with tempfile.TemporaryDirectory() as folder:
        found = restart(args, Path(folder)) if args.restart else load(args, Path(folder))
    for name, value in found.items():
        print(f"{name:32} {value}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
