"""Two processes do what one does: DDP, FSDP2, DeepSpeed; each killed in the middle of a step and started again."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

Make = Callable[..., Any]
Launch = Callable[..., subprocess.CompletedProcess[str]]
SCRIPT = Path(__file__).with_name("launched.py")
ENGINES: dict[str, dict[str, str]] = {
    "ddp": {},
    "fsdp2": {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
    "zero1": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"},
    "zero3": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
}
pytestmark = pytest.mark.e2e


@pytest.fixture
def launch(backbone: Make, make_rankings: Make, tmp_path: Path) -> Launch:
    """launch("name", "ddp", 2, rankings_per_step=…) → the finished launcher of so many processes."""
    # rankings of all sizes: the processes get different numbers of forward passes
    rows = make_rankings(9) + make_rankings(8, k=2, seed=3) + make_rankings(8, k=6, seed=4)
    sides = {"train": rows, "validation": make_rankings(5, seed=9)}

    def start(name: str, engine: str, processes: int, kill_at: int = 0, term_at: int = 0, **settings: Any) -> Any:
        job = {
            **{side: [row.model_dump(mode="json") for row in found] for side, found in sides.items()},
            "backbone": str(backbone("llama")), "out": str(tmp_path / name), "work": str(tmp_path / f"work-{name}"),
            "result": str(tmp_path / f"{name}.json"), "kill_at": kill_at, "term_at": term_at, "kill_rank": processes - 1,
            "settings": {
                "backbone": "x", "optimizer": {"learning_rate": 1e-3}, "rankings_per_step": 7, "micro_tokens": 300,
                "max_length": 128, "checkpoint_steps": 2, "eval_steps": 2, **settings,
            },
        }  # fmt: skip
        (tmp_path / "job.json").write_text(json.dumps(job))
        command = [sys.executable, str(SCRIPT), str(tmp_path / "job.json")]
        if processes > 1:
            command[1:1] = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--master-port=0", "--rdzv-backend=c10d",
                            "--rdzv-endpoint=localhost:0"]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **ENGINES[engine]}
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=240)

    return start


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("engine", ["ddp", "fsdp2", "zero1", "zero3"])
def test_two_processes_killed_in_a_step_end_as_one_undisturbed(engine: str, launch: Launch, tmp_path: Path) -> None:
    if engine.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed")
    for name, processes, used in (("one", 1, "ddp"), ("two", 2, engine)):
        done = launch(name, used, processes)
        assert done.returncode == 0, done.stderr[-3000:]
        assert json.loads((tmp_path / f"{name}.json").read_text())["world"] == processes
    killed = launch("again", engine, 2, kill_at=4)
    assert killed.returncode != 0
    assert not (tmp_path / "again").exists()
    assert [p.name for p in (tmp_path / "work-again" / "checkpoints").iterdir()] == ["step-00000002"]
    done = launch("again", engine, 2)
    assert done.returncode == 0, done.stderr[-3000:]

    one, two, again = (weights(tmp_path / name) for name in ("one", "two", "again"))
    assert one.keys() == two.keys() == again.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-5, rtol=1e-5)
        assert torch.equal(two[name], again[name]), name
    for row, other in zip(lines(tmp_path / "one"), lines(tmp_path / "two"), strict=True):
        assert row.get("validation", row) == pytest.approx(other.get("validation", other), rel=1e-4, abs=1e-5)
    assert (tmp_path / "two" / "log.jsonl").read_bytes() == (tmp_path / "again" / "log.jsonl").read_bytes()
