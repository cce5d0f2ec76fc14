"""Two processes do what one does: DDP, FSDP2, DeepSpeed; each killed in the middle of a step and started again."""

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

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from starling.config import RewardSection
from starling.records import RankedPrompt
from starling.reward.train import train
from starling.training.plan import Plan

Make = Callable[..., Any]
SCRIPT = Path(__file__).with_name("launched.py")
ENGINES: dict[str, dict[str, str]] = {
    "ddp": {},
    "fsdp2": {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
    "zero1": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"},
    "zero3": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
}
pytestmark = pytest.mark.e2e


class Launcher:
    """One small training, as often as wanted: in this process, or in several of torchrun's."""

    def __init__(self, folder: Path, backbone: Path, rows: list[RankedPrompt], held_out: list[RankedPrompt]) -> None:
        self.folder, self.backbone, self.rows, self.held_out = folder, backbone, rows, held_out

    def settings(self) -> dict[str, Any]:
        return {
            "backbone": "x", "optimizer": {"learning_rate": 1e-3}, "rankings_per_step": 7, "micro_tokens": 300, "max_length": 128,
            "checkpoint_steps": 2, "eval_steps": 2,
        }  # fmt: skip

    def here(self, name: str) -> dict[str, float]:
        torch.set_num_threads(1)
        return train(
            self.rows, self.held_out, backbone=self.backbone, out=self.folder / name, work=self.folder / f"work-{name}",
            settings=RewardSection.model_validate(self.settings()), seed=1,
        )  # fmt: skip

    def job(self, name: str, **harm: int) -> list[str]:
        job = {
            "train": [row.model_dump(mode="json") for row in self.rows],
            "validation": [row.model_dump(mode="json") for row in self.held_out],
            "backbone": str(self.backbone), "out": str(self.folder / name), "work": str(self.folder / f"work-{name}"),
            "result": str(self.folder / f"{name}.json"), "settings": self.settings(), "kill_rank": 1, **harm,
        }  # fmt: skip
        (self.folder / f"{name}-job.json").write_text(json.dumps(job))
        return [str(SCRIPT), str(self.folder / f"{name}-job.json")]

    def torchrun(self, name: str, engine: str) -> None:
        """Two processes as people start them."""
        torchrun = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
        command = [sys.executable, *torchrun, *self.job(name)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=_environment(engine), timeout=300)
        assert done.returncode == 0, done.stderr[-5000:]
        self.assert_there_were_two(name)

    def pair(self, name: str, engine: str, **harm: int) -> list[tuple[int, str]]:
        """The same without torchrun, which would end the other process when one dies: (exit code, stderr) of both."""
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        command = [sys.executable, *self.job(name, **harm)]
        places = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
        started = [
            subprocess.Popen(
                command, stderr=subprocess.PIPE, text=True,
                env=_environment(engine) | places | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in (0, 1)
        ]  # fmt: skip
        try:
            said = [process.communicate(timeout=300)[1] for process in started]
        finally:
            for process in started:
                process.kill()
        return [(process.returncode, text) for process, text in zip(started, said, strict=True)]

    def assert_there_were_two(self, name: str) -> None:
        """`accelerate launch --cpu` starts one process and says nothing: so this is looked at."""
        assert json.loads((self.folder / f"{name}.json").read_text())["world"] == 2

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        return load_file(self.folder / name / "model.safetensors")

    def lines(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / name / "log.jsonl").read_text().splitlines()]

    def checkpoints(self, name: str) -> list[str]:
        return sorted(p.name for p in (self.folder / f"work-{name}" / "checkpoints").iterdir())

    def assert_close(self, name: str, other: str) -> None:
        ours, theirs = self.weights(name), self.weights(other)
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            torch.testing.assert_close(theirs[key], value, atol=1e-5, rtol=1e-5)
        for row, its in zip(self.lines(name), self.lines(other), strict=True):
            assert row.get("validation", row) == pytest.approx(its.get("validation", its), rel=1e-4, abs=1e-5)

    def assert_same_bytes(self, name: str, other: str) -> None:
        for file in ("model.safetensors", "config.json", "log.jsonl"):
            assert (self.folder / name / file).read_bytes() == (self.folder / other / file).read_bytes(), file


def _environment(engine: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **ENGINES[engine]}


@pytest.fixture(scope="module")
def launcher(backbone: Make, make_rankings: Make, tmp_path_factory: pytest.TempPathFactory) -> Launcher:
    """With `one` trained in a single process; rankings of all sizes, so that processes differ in their forward passes."""
    rows = make_rankings(9) + make_rankings(8, k=2, seed=3) + make_rankings(8, k=6, seed=4)
    made = Launcher(tmp_path_factory.mktemp("processes"), backbone("llama"), rows, make_rankings(5, seed=9))
    made.here("one")
    return made


@pytest.mark.parametrize("engine", list(ENGINES))
def test_two_processes_killed_in_a_step_end_as_one_undisturbed(engine: str, launcher: Launcher) -> None:
    if engine.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed")
    two, again = f"{engine}-two", f"{engine}-again"
    launcher.torchrun(two, engine)
    launcher.assert_close("one", two)
    survivor, killed = launcher.pair(again, engine, kill_at=4)
    assert killed[0] == -signal.SIGKILL
    assert survivor[0] == 1  # it ends by itself
    assert "Another process of this training has ended" in survivor[1]
    assert not (launcher.folder / again).exists()
    assert launcher.checkpoints(again) == ["step-00000002"]
    shutil.copytree(launcher.folder / f"work-{again}", launcher.folder / f"work-{engine}-alone")
    assert [code for code, _ in launcher.pair(again, engine)] == [0, 0]
    launcher.assert_there_were_two(again)
    launcher.assert_same_bytes(two, again)
    launcher.here(f"{engine}-alone")  # another number of processes goes on from the same checkpoint
    launcher.assert_close("one", f"{engine}-alone")


def test_a_signal_to_one_process_stops_both_after_the_step(launcher: Launcher) -> None:
    for code, said in launcher.pair("term", "ddp", term_at=3):
        assert code != 0
        assert "KeyboardInterrupt" in said
    assert launcher.checkpoints("term") == ["step-00000002", "step-00000003"]
    launcher.here("term")
    launcher.assert_close("one", "term")


def test_a_loss_that_is_not_finite_on_one_process_is_refused_by_both(launcher: Launcher) -> None:
    for code, said in launcher.pair("nan", "ddp", nan_at=3):
        assert code == 1
        assert "TrainingError: The loss is nan. Where: step 3" in said
    assert launcher.checkpoints("nan") == ["step-00000002"]
    refused = json.loads((launcher.folder / "work-nan" / "non_finite.json").read_text())
    plan = Plan(np.ones(len(launcher.rows), dtype=np.int64), 7, 1, 1, 300)
    assert refused["step"] == 3
    assert set(refused["prompt_ids"]) < {launcher.rows[i].prompt.id for i in plan.items(3)}  # the process's own, not all
    assert refused["prompt_ids"]
