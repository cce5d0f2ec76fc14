"""The fake server from the outside: start it, look at it, change what it does, end it."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.fakes.faults import Fault

ROOT = Path(__file__).parents[2]


class FakeServer:
    """A fake server in a process of its own; use as a context manager.

    Args:
        latency: seconds until an answer.
        faults: what goes wrong.
        options: further options of the command, e.g. jitter=0.1, key="sk-1", chars=100.
    """

    def __init__(self, latency: float = 0.0, faults: Sequence[Fault] = (), **options: Any) -> None:
        given = {"latency": latency, "faults": json.dumps([asdict(f) for f in faults]), **options}
        flags = [part for name, value in given.items() for part in (f"--{name}", str(value))]
        command = [sys.executable, "-m", "tests.fakes.server", *flags]
        self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the fake server did not start: exit code {self._process.wait()}")
        self.url: str = json.loads(line)["url"]
        """Base URL, up to and including /v1."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """End it, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def stats(self, *, keys: bool = False) -> dict[str, Any]:
        """What it saw, see `server.Server.stats`; `keys` adds every content."""
        return dict(self._json(f"stats{'?keys=1' if keys else ''}"))

    def reset(self, faults: Sequence[Fault] = (), **changes: Any) -> None:
        """Forget everything seen; no faults but these. `changes`: latency, jitter, batch."""
        self._json("control", {"forget": True, "faults": [asdict(f) for f in faults], "latency": 0.0, "jitter": 0.0, **changes})

    def change(self, **changes: Any) -> None:
        """Change latency, jitter, faults (as dicts) or batch, and remember everything."""
        self._json("control", changes)

    def _json(self, path: str, data: Any = None) -> Any:
        body = None if data is None else json.dumps(data).encode()
        request = urllib.request.Request(f"{self.url.removesuffix('v1')}{path}", data=body)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
            return json.loads(answer.read())
