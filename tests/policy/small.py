"""A tuning small enough for a second, in this process or in others: models, prompts, settings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from starling.config import PolicySection
from starling.policy import train as tuning
from starling.records import Message, Prompt

PROMPTS = [Prompt.make((Message(role="user", content=f"name {n} animals"),), ("test",)) for n in "abcdefgh"]


def settings(**changes: Any) -> PolicySection:
    plain: dict[str, Any] = {
        "iterations": 4, "rollouts": 8, "epochs": 2, "minibatches": 2, "sampling": {"max_tokens": 6}, "sample_batch": 8,
        "critic": {"pretrain": 1, "learning_rate": 1e-2},
        "optimizer": {"learning_rate": 1e-2, "schedule": "linear", "warmup_fraction": 0},
        "eval_every": 2, "eval_prompts": 4, "checkpoint_every": 1, "kl": 0.05, "guard": {"best_of": 2},
        "shaping": {"unfinished": 10.0},
    }  # fmt: skip
    return PolicySection.model_validate(plain | changes)


def count_replies(prompts: Sequence[Prompt], texts: Sequence[str], finished: Sequence[bool]) -> dict[str, float]:
    """A monitor."""
    return {"gold": float(len(texts))}


def tune(
    base: Path, reward: Path, folder: Path, name: str, rules: PolicySection | None = None, **changes: Any
) -> dict[str, float]:
    """Tune in folder/NAME, with work in folder/NAME-work."""
    given: dict[str, Any] = {"seed": 3, "monitor": count_replies} | changes
    return tuning.train(
        given.pop("prompts", PROMPTS), given.pop("validation", PROMPTS[:4]), base=base, reward=reward, out=folder / name,
        work=folder / f"{name}-work", settings=rules or settings(), **given,
    )  # fmt: skip


def begun(base: Path, reward: Path, work: Path, rules: PolicySection | None = None, seed: int = 0) -> Any:
    """The parts of a tuning before its first iteration."""
    return tuning._Tuning(PROMPTS, PROMPTS[:4], base, reward, work, rules or settings(), seed, None)


def lines(folder: Path) -> list[dict[str, Any]]:
    """The log of a tuning."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
