"""Law 1: kill the run with SIGKILL at any instant and start it again: the artifacts are those of an undisturbed run."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.processes import MICRO, fingerprints, killed_when, starling

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("chain")]


def checkpoints(run_dir: Path, stage: str, inside: str = "") -> Callable[[], bool]:
    """True once the stage has written a checkpoint (into that folder of its work): it is in the middle of its training."""

    def moment() -> bool:
        try:
            return any((run_dir / ".work").glob(f"{stage}-*/{inside}**/*.safetensors"))
        except FileNotFoundError:  # the folder of a stage before has just been removed
            return False

    return moment


def answered(run_dir: Path, count: int) -> Callable[[], bool]:
    """True once the journal holds so many answers."""

    def moment() -> bool:
        try:
            with sqlite3.connect(f"file:{run_dir / 'journal.sqlite'}?mode=ro", uri=True) as db:
                return bool(db.execute("SELECT count(answer) FROM calls").fetchone()[0] >= count)
        except sqlite3.OperationalError:  # not there yet
            return False

    return moment


def begun(run_dir: Path, stage: str) -> Callable[[], bool]:
    """True once the stage has a draft folder."""
    return lambda: (run_dir / ".work" / f"{stage}.draft").exists()


def test_killed_again_and_again_it_ends_with_the_same_artifacts(chain: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    command = ("run", MICRO, "--set", f"run.dir={run_dir}")
    moments = {
        "in the world's training": checkpoints(run_dir, "world"),
        "while the pool answers": answered(run_dir, 130),
        "while the judge ranks": answered(run_dir, 450),
        "when the dataset begins": begun(run_dir, "dataset"),
        "in the reward model's training": checkpoints(run_dir, "reward"),
        "in the guard model's training": checkpoints(run_dir, "reward", "guard/"),
        "in the policy's training": checkpoints(run_dir, "policy"),
        "when the evaluation begins": begun(run_dir, "evaluate"),
        "when the report begins": begun(run_dir, "report"),
    }
    missed = [name for name, moment in moments.items() if not killed_when(moment, *command)]
    assert "in the reward model's training" not in missed
    assert "in the guard model's training" not in missed
    assert "in the policy's training" not in missed
    assert len(missed) <= 1, "the moments are there to be met"
    done = starling(*command)
    assert done.returncode == 0, done.stderr
    assert fingerprints(run_dir) == fingerprints(chain)
    assert not (run_dir / ".work").exists()
