"""Starling: align a language model with AI feedback.

The chain, in the order of the data (each name is a module of this package):

    prompts    gather, filter, deduplicate, split
    responses  K responses per prompt from a pool of models
    ranking    a judge ranks all K in one call ("internal pairwise rating")
    nectar     the rankings as a Nectar-style dataset
    reward     a reward model learns them with the K-wise (Plackett–Luce) loss
    policy     APA or PPO tunes the policy on it
    evaluate   reward accuracy, head to head, gold score
    report     one self-contained page
    publish    dataset and model cards

`starling run configs/tiny.toml` runs it all; `starling.pipeline.STAGES` is the same story in code. From Python:

    config = starling.load_config(Path("configs/tiny.toml"), ("run.seed=1",))
    starling.run(config)
    rewards = starling.score_conversations("runs/tiny/reward", [(messages, "3 + 4 = 7.", True)])

The names in `__all__` are the public door; each is imported when it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_DOOR = {
    "Config": "config",
    "Message": "records",
    "Prompt": "records",
    "RankedPrompt": "records",
    "StarlingError": "errors",
    "bradley_terry": "losses.ranking",
    "import_nectar": "nectar",
    "load_config": "config",
    "plackett_luce": "losses.ranking",
    "read_nectar": "nectar",
    "run": "pipeline",
    "score_conversations": "models.scorer",
    "status": "pipeline",
}
"""Public name → the module it lives in."""

__all__ = sorted(_DOOR)


def __getattr__(name: str) -> Any:
    if name not in _DOOR:
        raise AttributeError(f"module 'starling' has no attribute {name!r}")
    return getattr(import_module(f"starling.{_DOOR[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
