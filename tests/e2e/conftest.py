"""One undisturbed run of the micro chain, shared by the tests here."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.processes import MICRO, starling


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run directory of an undisturbed run of the whole micro chain."""
    run_dir = tmp_path_factory.mktemp("chain") / "run"
    done = starling("run", MICRO, "--set", f"run.dir={run_dir}")
    assert done.returncode == 0, done.stderr
    return run_dir
