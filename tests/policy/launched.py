"""A tuning in processes of its own: `[torchrun …] launched.py JOB.json`, as tests start it; with a fault, if one is asked for.

The first process leaves what the tuning returned in result.json, with the number of processes there really were.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any


def _die(job: dict[str, Any]) -> None:
    if int(os.environ.get("RANK", "0")) == job.get("rank", 0):
        os.kill(os.getpid(), getattr(signal, job.get("signal", "SIGKILL")))


def in_a_rollout(job: dict[str, Any]) -> None:
    """Half of the replies are drawn."""
    from starling.policy.rollout import LocalRollouts

    real, rounds = LocalRollouts.generate, [0]

    def generate(self: Any, prompts: Any, sampling: Any, seeds: Any, samples: int = 1) -> Any:
        rounds[0] += sampling.temperature > 0
        if rounds[0] == job["round"]:
            half = len(prompts) // 2
            real(self, prompts[:half], sampling, seeds[: half * samples], samples)
            _die(job)
        return real(self, prompts, sampling, seeds, samples)

    LocalRollouts.generate = generate  # type: ignore[method-assign]


def in_a_buffer(job: dict[str, Any]) -> None:
    """The replies are written, under a name that is not theirs yet."""
    from starling.policy import buffer

    real = Path.replace

    def replace(self: Path, target: Any) -> Path:
        if self.name == f".rollouts-{job['iteration']:08d}.draft":
            _die(job)
        return real(self, target)

    assert buffer.save
    Path.replace = replace  # type: ignore[method-assign, assignment]


def in_an_update(job: dict[str, Any]) -> None:
    """The gradients of a step's micro-batches are there, but for the last, and the step is not the iteration's first."""
    from starling.policy import update

    real, seen = update.agreed, [0]

    def agreed(engine: Any, *given: Any) -> Any:
        seen[0] += 1
        if seen[0] == job["step"]:
            _die(job)
        return real(engine, *given)

    update.agreed = agreed  # type: ignore[assignment]


def in_a_checkpoint(job: dict[str, Any]) -> None:
    """Weights and states are written, what says so is not."""
    from starling.training import checkpoint

    real = checkpoint._sync

    def sync(path: Path) -> None:
        if path.name == "meta.json" and path.parent.name == f".draft-{job['iteration']:08d}":
            _die(job)
        real(path)

    checkpoint._sync = sync


def short_of_memory(job: dict[str, Any]) -> None:
    """One process has memory for the replies to one prompt only, in an update."""
    import torch

    from starling.policy import update

    real = update._Step._pass

    def limited(step: Any, index: Any, policy: bool) -> Any:
        if int(os.environ.get("RANK", "0")) == job["rank"] and len(index) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(step, index, policy)

    update._Step._pass = limited  # type: ignore[method-assign]


FAULTS = {fault.__name__: fault for fault in (in_a_rollout, in_a_buffer, in_an_update, in_a_checkpoint, short_of_memory)}


def main() -> None:
    job: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    import torch

    from starling.config import PolicySection
    from starling.policy import train as tuning
    from tests.policy.small import tune

    torch.set_num_threads(1)
    if "fault" in job:
        FAULTS[job["fault"]](job)
    worlds: list[int] = []
    run = tuning._Tuning.run

    def counted(self: Any, *given: Any) -> Any:
        worlds.append(torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1)
        return run(self, *given)

    tuning._Tuning.run = counted  # type: ignore[method-assign]
    rules = PolicySection.model_validate(job["settings"])
    metrics = tune(Path(job["base"]), Path(job["reward"]), Path(job["folder"]), job["name"], rules)
    if os.environ.get("RANK", "0") == "0":
        Path(job["result"]).write_text(json.dumps({"world": worlds[0], "metrics": metrics}))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from tests.launching import end_with

    end_with(main)
