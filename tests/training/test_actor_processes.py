"""An actor on two processes gives the numbers and gradients of one, in both layouts, with its weights spread or not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from starling.models.replies import lay_out
from starling.training.trained import trained_parameters
from tests.training.launched_actor import loss, make, replies

ENGINES = {"ddp": {}, "fsdp2": {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}}
pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("engine", list(ENGINES))
def test_two_processes_do_what_one_does(engine: str, tmp_path: Path) -> None:
    script = Path(__file__).with_name("launched_actor.py")
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **ENGINES[engine]}
    command = [sys.executable, *torchrun, str(script), str(tmp_path / "found.pt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-5000:]
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    assert (found["kind"], found["ranks"], found["layout"], found["tied"]) == (engine, 2, "shared_prefix", True)

    actor = make()
    out = actor(lay_out(replies(), 0), temperature=0.7, entropy=True, values=True)
    loss(out).backward()
    for layout in ("sequences", "shared_prefix"):
        for what in ("logprobs", "reference"):
            torch.testing.assert_close(torch.tensor(found[layout][what]), out.logprobs_BR.detach(), rtol=0, atol=1e-5)
        gradients = found[layout]["gradients"]
        assert gradients.keys() == {name for name, _ in trained_parameters(actor)}
        assert {"policy.model.embed_tokens.weight", "critic.model.score.weight"} <= gradients.keys()
        for name, parameter in trained_parameters(actor):
            assert parameter.grad is not None
            assert float((gradients[name] - parameter.grad).norm() / parameter.grad.norm()) < 1e-5, name
