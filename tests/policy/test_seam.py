"""A tuning whose replies come from inference servers: through the same seam, with weights that follow, and weighted tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from starling.policy.servers import fleet
from tests.fakes.rollout_server import RolloutServer
from tests.policy.small import lines, settings, tune


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_a_tuning_with_servers(
    kind: str, backbone: Callable[..., Path], reward_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "PAUSE_S", 0.01)
    with RolloutServer(backbone("llama"), kind) as server:  # type: ignore[arg-type]
        engine = {"type": kind, "urls": [server.url], "weights": str(tmp_path / "weights"), "dtype": "fp32"}
        tune(backbone("llama"), reward_folder, tmp_path, "served", settings(iterations=3, engine=engine))
    rows = lines(tmp_path / "served")[1:]
    for row in rows:
        assert row["mismatch_max"] < 1e-3  # the server had the weights of the iteration
        assert row["weight"] == pytest.approx(1.0, abs=1e-3)
        assert row["weight_capped"] == 0.0
    assert abs(rows[2]["kl_reply"]) > 1e-3
