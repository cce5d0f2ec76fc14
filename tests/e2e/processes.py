"""The command in processes of its own: run it to its end, or kill it in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

MICRO = Path(__file__).with_name("micro.toml")
STARLING = (sys.executable, "-c", "from starling.cli import main; main()")


def starling(*arguments: str | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    done = subprocess.run([*STARLING, *map(str, arguments)], input=stdin, capture_output=True, check=False, env=environment())
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def environment() -> dict[str, str]:
    """No network for the libraries, one thread each."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def killed_when(moment: Callable[[], bool], *arguments: str | Path) -> bool:
    """Start the command and SIGKILL its whole process group as soon as `moment` is true; False when it ended before that."""
    process = subprocess.Popen(
        [*STARLING, *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env=environment(),
    )
    try:
        while process.poll() is None:
            if moment():
                return True
            time.sleep(0.005)
        return False
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def fingerprints(run_dir: Path) -> dict[str, str]:
    """Fingerprint of every finished stage."""
    return {p.parent.name: json.loads(p.read_text("utf-8"))["fingerprint"] for p in sorted(run_dir.glob("*/manifest.json"))}
