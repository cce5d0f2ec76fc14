"""A tuning that is killed at any moment ends as one that was not; two processes do what one does."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from starling.config import PolicySection
from tests.policy.small import lines, settings, tune

SCRIPT = Path(__file__).with_name("launched.py")
ROOT = Path(__file__).parents[2]
ENGINES: dict[str, dict[str, str]] = {
    "ddp": {},
    "fsdp2": {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
    "zero1": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"},
    "zero3": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
}
pytestmark = pytest.mark.e2e


class Launcher:
    """One small tuning, as often as wanted: in this process, or in others."""

    def __init__(self, folder: Path, base: Path, reward: Path, rules: PolicySection) -> None:
        self.folder, self.base, self.reward, self.rules = folder, base, reward, rules

    def here(self, name: str) -> None:
        torch.set_num_threads(1)
        tune(self.base, self.reward, self.folder, name, self.rules)

    def job(self, name: str, **fault: Any) -> list[str]:
        job = {
            "base": str(self.base), "reward": str(self.reward), "folder": str(self.folder), "name": name,
            "settings": self.rules.model_dump(mode="json"), "result": str(self.folder / f"{name}.json"), **fault,
        }  # fmt: skip
        (self.folder / f"{name}-job.json").write_text(json.dumps(job))
        return [sys.executable, str(SCRIPT), str(self.folder / f"{name}-job.json")]

    def alone(self, name: str, **fault: Any) -> subprocess.CompletedProcess[str]:
        """One process of its own."""
        return subprocess.run(
            self.job(name, **fault), capture_output=True, text=True, check=False, env=environment(), timeout=300
        )

    def pair(self, name: str, engine: str, **fault: Any) -> list[tuple[int, str]]:
        """Two, without torchrun, which would end the other process when one dies: (exit code, stderr) of both."""
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        command = self.job(name, **fault)
        places = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
        started = [
            subprocess.Popen(
                command, stderr=subprocess.PIPE, text=True,
                env=environment(engine) | places | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in (0, 1)
        ]  # fmt: skip
        try:
            said = [process.communicate(timeout=300)[1] for process in started]
        finally:
            for process in started:
                process.kill()
        return [(process.returncode, text) for process, text in zip(started, said, strict=True)]

    def there_were_two(self, name: str) -> bool:
        """Looked at, because a process that finds no others goes on alone."""
        return bool(json.loads((self.folder / f"{name}.json").read_text())["world"] == 2)

    def assert_close(self, name: str, other: str) -> None:
        ours, theirs = (load_file(self.folder / n / "model.safetensors") for n in (name, other))
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            torch.testing.assert_close(theirs[key], value, atol=1e-5, rtol=1e-5)
        for row, its in zip(lines(self.folder / name), lines(self.folder / other), strict=True):
            numbers = {k: v for k, v in row.items() if not k.startswith("mismatch") and k != "guard"}
            assert numbers == pytest.approx({k: v for k, v in its.items() if k in numbers}, rel=1e-3, abs=1e-4)

    def assert_same_bytes(self, name: str, other: str) -> None:
        for file in ("model.safetensors", "config.json", "log.jsonl", "selection.json", "best_of_n.json"):
            assert (self.folder / name / file).read_bytes() == (self.folder / other / file).read_bytes(), file


def environment(engine: str = "ddp") -> dict[str, str]:
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": paths, **ENGINES[engine]}


@pytest.fixture(scope="module")
def launcher(backbone: Callable[..., Path], reward_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Launcher:
    """With `one` tuned in this process."""
    # a rate at which rounding does not grow in a few steps of Adam
    optimizer = {"learning_rate": 1e-3, "schedule": "linear", "warmup_fraction": 0}
    rules = settings(optimizer=optimizer, critic={"pretrain": 1, "learning_rate": 1e-3}, samples_per_prompt=2, micro_tokens=60)
    made = Launcher(tmp_path_factory.mktemp("processes"), backbone("llama"), reward_folder, rules)
    made.here("one")
    return made


@pytest.mark.parametrize(
    ("fault", "when"),
    [
        ("in_a_rollout", {"round": 4}),  # evaluation, best of n, iterations 1 and 2
        ("in_a_buffer", {"iteration": 3}),
        ("in_an_update", {"step": 10}),  # the second of iteration 3: 4 steps each
        ("in_a_checkpoint", {"iteration": 2}),
    ],
)
def test_killed_it_goes_on_to_the_same_artifact(fault: str, when: dict[str, int], launcher: Launcher) -> None:
    killed = launcher.alone(fault, fault=fault, **when)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    assert not (launcher.folder / fault).exists()
    launcher.here(fault)
    launcher.assert_same_bytes("one", fault)


@pytest.mark.parametrize("engine", list(ENGINES))
def test_two_processes_killed_in_an_update_end_as_one_undisturbed(engine: str, launcher: Launcher) -> None:
    if engine.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed")
    two, again = f"{engine}-two", f"{engine}-again"
    ended = launcher.pair(two, engine)
    assert [code for code, _ in ended] == [0, 0], ended[0][1][-3000:] + ended[1][1][-3000:]
    assert launcher.there_were_two(two)
    launcher.assert_close("one", two)
    survivor, killed = launcher.pair(again, engine, fault="in_an_update", step=10, rank=1)
    assert killed[0] == -signal.SIGKILL
    assert survivor[0] == 1  # it ends by itself
    assert "Another process of this training has ended" in survivor[1]
    assert not (launcher.folder / again).exists()
    shutil.copytree(launcher.folder / f"{again}-work", launcher.folder / f"{engine}-alone-work")
    assert [code for code, _ in launcher.pair(again, engine)] == [0, 0]
    launcher.assert_same_bytes(two, again)
    launcher.here(f"{engine}-alone")  # another number of processes goes on from the same checkpoint
    launcher.assert_close("one", f"{engine}-alone")


def test_a_signal_to_one_process_stops_both_and_loses_nothing(launcher: Launcher) -> None:
    for code, said in launcher.pair("term", "ddp", fault="in_an_update", step=10, rank=1, signal="SIGTERM"):
        assert code != 0
        assert "KeyboardInterrupt" in said
    saved = sorted(p.name for p in (launcher.folder / "term-work" / "checkpoints").iterdir())
    assert saved == ["step-00000002", "step-00000003"]
    launcher.here("term")
    launcher.assert_close("one", "term")
