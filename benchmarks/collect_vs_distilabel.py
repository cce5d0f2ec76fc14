"""Collecting replies: Starling beside distilabel 1.5.3, a plain openai-client loop and the same loop over aiohttp.

Every client gets the same prompts and asks the same fake server (a process of its own, fixed latency) with the same number of
calls in flight; each run is a fresh process, the clients take turns, and the table holds medians over the rounds. Starling
writes its journal. distilabel runs at the best settings we found: one replica, a batch as large as the calls in flight,
DISTILABEL_LOG_LEVEL=WARNING (its filter for the HTTP client's log lines does not know httpx2), no cache in the timed runs.
The openai loops have max_retries=0, connection limits of the calls in flight, and store nothing.

    calls/s          from the first call's arrival to the last answer, on the server's clock
    with start       over the whole life of the process
    share            of the latency bound, in-flight / latency
    CPU-s            user and system time of the client with all its processes, per 1,000 calls
    peak MB          largest sum of the proportional set sizes of those processes, sampled every 0.3 s

    pip install "starling-rlaif[bench-collect]" -c constraints.txt
    python benchmarks/collect_vs_distilabel.py                        2,000 calls, 0.25 s, 256 in flight, 3 rounds
    python benchmarks/collect_vs_distilabel.py --calls 10000 --rounds 1
    python benchmarks/collect_vs_distilabel.py --kill                 SIGKILL at half of the calls, then a restart

`--peer-python PATH` runs the peers in another environment, if they must not live in Starling's own.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

SYSTEM = "You are a helpful assistant."


def prompts(count: int) -> list[str]:
    """What is asked: about 200 characters each."""
    return [f"Question {i}: " + "why is that so? " * 12 for i in range(count)]


# ── the clients: each runs in a process of its own ───────────────────────────────────────────────────────────────────


def starling(args: argparse.Namespace) -> int:
    """HttpEndpoint with its journal; replies are read back one by one."""
    from starling.config import OpenAIModel
    from starling.endpoint import HttpEndpoint, Request
    from starling.journal import Journal
    from starling.records import Finish, Message

    settings = OpenAIModel(type="openai", base_url=args.url, name="m", in_flight=args.in_flight)
    with Journal(args.folder / "journal.sqlite") as journal:
        model = HttpEndpoint("m", settings, journal)
        requests = [Request(model.model, (Message(role="user", content=text),)) for text in prompts(args.calls)]
        return sum(reply.finish is Finish.stop for reply in model.ask_all(requests))


def distilabel(args: argparse.Namespace) -> int:
    """A pipeline of one generator and one TextGeneration step."""
    from distilabel.models import OpenAILLM
    from distilabel.pipeline import Pipeline
    from distilabel.steps import LoadDataFromDicts
    from distilabel.steps.tasks import TextGeneration

    with Pipeline(name="collect", cache_dir=args.folder) as pipeline:
        load = LoadDataFromDicts(data=[{"instruction": text} for text in prompts(args.calls)], batch_size=args.in_flight)
        model = OpenAILLM(model="m", base_url=args.url, api_key="none", generation_kwargs={"max_new_tokens": 512})
        generate = TextGeneration(llm=model, input_batch_size=args.in_flight)
        load >> generate
    found = pipeline.run(use_cache=args.cache)
    return sum(row["generation"] is not None for row in found["default"]["train"])


def openai(args: argparse.Namespace, *, over_aiohttp: bool = False) -> int:
    """asyncio and the official client."""
    import asyncio

    import openai as library

    async def run() -> int:
        options: dict[str, Any] = {"base_url": args.url, "api_key": "none", "max_retries": 0}
        if over_aiohttp:
            from openai import DefaultAioHttpClient

            options["http_client"] = DefaultAioHttpClient(limits=limits(library, args.in_flight))
        else:
            options["http_client"] = library.DefaultAsyncHttpxClient(limits=limits(library, args.in_flight))
        async with library.AsyncOpenAI(**options) as client:
            feed = iter(prompts(args.calls))
            return sum(await asyncio.gather(*(work(client, feed) for _ in range(args.in_flight))))

    async def work(client: Any, feed: Any) -> int:
        done = 0
        for text in feed:
            messages = [{"role": "user", "content": text}]
            reply = await client.chat.completions.create(model="m", messages=messages, max_tokens=512)
            done += bool(reply.choices[0].message.content)
        return done

    return asyncio.run(run())


def limits(library: Any, count: int) -> Any:
    """Connection limits of whichever HTTP library this version of the client rests on."""
    kind = type(library._constants.DEFAULT_CONNECTION_LIMITS)
    return kind(max_connections=count, max_keepalive_connections=count)


def openai_aiohttp(args: argparse.Namespace) -> int:
    return openai(args, over_aiohttp=True)


CLIENTS: dict[str, Callable[[argparse.Namespace], int]] = {
    "starling": starling,
    "openai": openai,
    "openai-aiohttp": openai_aiohttp,
    "distilabel": distilabel,
}


# ── one run ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Watched:
    """A client's process group: its memory while it runs, its CPU time when it is over."""

    def __init__(self, name: str, url: str, folder: Path, args: argparse.Namespace, *, cache: bool = False) -> None:
        python = sys.executable if name == "starling" else args.peer_python
        command = [python, __file__, "--client", name, "--url", url, "--folder", folder, "--calls", args.calls]
        command += ["--in-flight", args.in_flight, *(["--cache"] if cache else [])]
        offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder), "TQDM_DISABLE": "1"}
        environment = os.environ | offline | {"DISTILABEL_LOG_LEVEL": "WARNING"}
        self.log = (folder / f"{name}.log").open("a+")
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            [*map(str, command)], start_new_session=True, stdout=self.log, stderr=self.log, env=environment
        )
        self.peak_mb = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while not self._over.wait(0.3):
            self.peak_mb = max(self.peak_mb, sum(map(proportional_mb, session(self.process.pid))))

    def wait(self, timeout_s: float) -> tuple[int | None, float, float]:
        """Exit code (None: it had to be killed), seconds, CPU-seconds with its children."""
        code: int | None = None
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            pid, status, used = os.wait4(self.process.pid, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                break
            time.sleep(0.02)
        else:
            self.kill()
            used = os.wait4(self.process.pid, 0)[2]
        wall = time.monotonic() - self.began
        self._over.set()
        self._thread.join()
        self.process.returncode = 0 if code is None else code  # it was waited for here
        return code, wall, used.ru_utime + used.ru_stime

    def kill(self) -> None:
        """SIGKILL for the client and all its processes."""
        for pid in {self.process.pid, *session(self.process.pid)}:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def said(self) -> str:
        self.log.seek(0)
        return self.log.read()[-2000:]


def session(leader: int) -> list[int]:
    """The processes of a session."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                fields = (path / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == leader and fields[0] != "Z":
                found.append(int(path.name))
    return found


def proportional_mb(pid: int) -> float:
    """Resident memory, pages shared by n processes counted 1/n."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(x.split()[1]) / 1024 for x in lines if x.startswith("Pss:")), 0.0)


def measure(name: str, args: argparse.Namespace) -> dict[str, float]:
    """One run of one client against a fresh server."""
    from tests.fakes.process import FakeServer

    with FakeServer(args.latency) as server, tempfile.TemporaryDirectory() as folder:
        client = Watched(name, server.url, Path(folder), args)
        code, wall, cpu = client.wait(600)
        seen = server.stats()
        if code != 0 or seen["answered"] != args.calls:
            raise SystemExit(f"{name}: exit code {code}, {seen['answered']} of {args.calls} calls\n{client.said()}")
    running = seen["last"] - seen["first"]
    return {
        "calls_per_s": args.calls / running,
        "calls_per_s_with_start": args.calls / wall,
        "share_of_bound": args.calls / running / (args.in_flight / args.latency),
        "cpu_s_per_1000": cpu / args.calls * 1000,
        "peak_mb": client.peak_mb,
        "max_in_flight": seen["max_in_flight"],
    }


def killed(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Kill the client when half of the calls are answered, start it again with what it left, count what is asked twice."""
    from tests.fakes.process import FakeServer

    with FakeServer(args.latency) as server, tempfile.TemporaryDirectory() as folder:
        first = Watched(name, server.url, Path(folder), args, cache=True)
        while server.stats()["answered"] < args.calls // 2:
            if first.process.poll() is not None:
                raise SystemExit(f"{name} ended before it could be killed\n{first.said()}")
            time.sleep(0.05)
        first.kill()
        first.wait(60)
        before = server.stats()
        time.sleep(args.latency + 0.5)
        second = Watched(name, server.url, Path(folder), args, cache=True)
        code, wall, _ = second.wait(args.cap)
        after = server.stats(keys=True)
    times = [len(k["arrived"]) for k in after["keys"].values()]
    return {
        "client": name, "answered_at_kill": before["answered"], "in_flight_at_kill": before["in_flight"],
        "calls_after_restart": after["received"] - before["received"], "repeated": sum(times) - len(times),
        "never_asked": args.calls - len(times), "exit_code": code, "restart_s": round(wall, 1),
        "outcome": "complete" if code == 0 and len(times) == args.calls else f"hung: killed after {args.cap:g} s" if code is None
        else "incomplete",
    }  # fmt: skip


# ── the tables ───────────────────────────────────────────────────────────────────────────────────────────────────────


def table(args: argparse.Namespace) -> dict[str, Any]:
    """Medians over the rounds, and each client's ratio to Starling."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in args.clients}
    for number in range(args.rounds):
        for name in args.clients:
            runs[name].append(measure(name, args))
            print(f"round {number + 1} {name}: {runs[name][-1]['calls_per_s']:.0f} calls/s", file=sys.stderr)
    medians = {name: {k: statistics.median(r[k] for r in rows) for k in rows[0]} for name, rows in runs.items()}
    own = medians.get("starling")
    print(f"{args.calls} calls, latency {args.latency:g} s, {args.in_flight} in flight, medians of {args.rounds}\n")
    print("| client | calls/s | share of bound | calls/s with start | CPU-s per 1,000 | peak MB | CPU, times Starling |")
    print("|---|---|---|---|---|---|---|")
    for name, row in medians.items():
        ratio = f"{row['cpu_s_per_1000'] / own['cpu_s_per_1000']:.1f}" if own else ""
        print(
            f"| {name} | {row['calls_per_s']:.0f} | {row['share_of_bound']:.2f} | {row['calls_per_s_with_start']:.0f} "
            f"| {row['cpu_s_per_1000']:.2f} | {row['peak_mb']:.0f} | {ratio} |"
        )
    return {
        "settings": {k: getattr(args, k) for k in ("calls", "latency", "in_flight", "rounds")},
        "medians": medians,
        "runs": runs,
    }


def kill_table(args: argparse.Namespace) -> dict[str, Any]:
    """What a SIGKILL costs."""
    rows = [killed(name, args) for name in args.clients if name in ("starling", "distilabel") for _ in range(args.rounds)]
    print("| client | answered at the kill | in flight | calls after the restart | repeated | never asked | outcome |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        keys = ("client", "answered_at_kill", "in_flight_at_kill", "calls_after_restart", "repeated", "never_asked", "outcome")
        print("| " + " | ".join(str(row[k]) for k in keys) + " |")
    return {"killed": rows}


HOW = """\
The peers are not installed in {python}.
  pip install "starling-rlaif[bench-collect]" -c constraints.txt
or in an environment of their own:
  python -m venv peers && peers/bin/pip install "distilabel[openai]==1.5.3" "openai[aiohttp]==3.54.0" requests -c constraints.txt
  python benchmarks/collect_vs_distilabel.py --peer-python peers/bin/python"""


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--latency", type=float, default=0.25, help="seconds")
    parser.add_argument("--in-flight", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", nargs="+", choices=CLIENTS, default=list(CLIENTS))
    parser.add_argument("--kill", action="store_true", help="the kill scenario instead of the timing")
    parser.add_argument("--cap", type=float, default=60, help="seconds that a restarted client gets")
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter of the environment that has the peers")
    for name in ("client", "url"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--cache", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.client:
        done = CLIENTS[args.client](args)
        if done != args.calls:
            raise SystemExit(f"{done} replies to {args.calls} calls")
        return
    peers = set(args.clients) - {"starling"}
    if (
        peers
        and subprocess.run([args.peer_python, "-c", "import distilabel, openai, requests"], stderr=subprocess.DEVNULL).returncode
    ):
        raise SystemExit(HOW.format(python=args.peer_python))
    print(json.dumps(kill_table(args) if args.kill else table(args)))


if __name__ == "__main__":
    main()
