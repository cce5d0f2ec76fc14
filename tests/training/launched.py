"""A training in processes of its own: `torchrun … launched.py JOB.json`, as tests start it.

The job names a backbone, rankings and settings; every process calls `starling.reward.train.train` with them. The first process
leaves what it returned in result.json, with the number of processes there really were.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    job: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    import torch

    from starling.config import RewardSection
    from starling.models import cpu_linear
    from starling.records import RankedPrompt
    from starling.reward.train import train
    from starling.training import trainer

    torch.set_num_threads(1)
    cpu_linear._LEAST_WORK = 1  # small layers compute as large ones do
    original = trainer.Trainer._agree

    def in_the_middle(self: Any, step: int, batches: Any, losses: Any, full: bool = False) -> None:
        """Dies when the gradients of some micro-batches are there and the update is not."""
        if step == job.get("kill_at") and self.engine.rank == job.get("kill_rank", 0):
            os.kill(os.getpid(), signal.SIGKILL)
        if step == job.get("term_at") and self.engine.rank == job.get("kill_rank", 0):
            os.kill(os.getpid(), signal.SIGTERM)
        if step == job.get("nan_at") and self.engine.rank == job.get("kill_rank", 0):
            losses[0] = losses[0] * float("nan")
        original(self, step, batches, losses, full)

    trainer.Trainer._agree = in_the_middle  # type: ignore[method-assign]
    worlds: list[int] = []
    run = trainer.Trainer.run

    def counted(self: Any, *args: Any, **named: Any) -> Any:
        worlds.append(torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1)
        return run(self, *args, **named)

    trainer.Trainer.run = counted  # type: ignore[method-assign]
    rows = [[RankedPrompt.model_validate(row) for row in job[side]] for side in ("train", "validation")]
    rank = int(os.environ.get("RANK", "0"))
    metrics = train(
        rows[0], rows[1], backbone=Path(job["backbone"]), out=Path(job["out"]), work=Path(job["work"]),
        settings=RewardSection.model_validate(job["settings"]), seed=1,
    )  # fmt: skip
    world = worlds[0]
    if rank == 0:
        Path(job["result"]).write_text(json.dumps({"world": world, "metrics": metrics}))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from tests.launching import end_with

    end_with(main)
