"""A run that collects and ranks against the fake server: its settings, its prompts, and how to read what the server saw."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from tests.fakes.faults import BODY, STATUS
from tests.fakes.replies import WORDS

SETTINGS = """
[run]
dir = "{folder}/run"

[models.short]
type = "openai"
base_url = "{url}"
name = "short"
{limits}

[models.long]
type = "openai"
base_url = "{url}"
name = "long"
{limits}

[models.judge]
type = "openai"
base_url = "{url}"
name = "judge"
{limits}

[prompts]
sources = [{{ type = "file", path = "{folder}/prompts.jsonl", name = "mine" }}]
validation_fraction = 0.1
test_fraction = 0.1

[responses]
models = ["short", "long"]

[ranking]
judge = "judge"
"""


def write_settings(folder: Path, url: str, prompts: list[str], **limits: float) -> Path:
    """Prompts and settings in `folder`; `limits` go to all three models."""
    import json

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts), "utf-8")
    path = folder / "settings.toml"
    lines = "\n".join(f"{name} = {value}" for name, value in limits.items())
    path.write_text(SETTINGS.format(folder=folder, url=url, limits=lines), "utf-8")
    return path


def sentence(number: int) -> str:
    """A prompt that resembles no other: 25 words by a seeded draw."""
    draw = random.Random(number)
    return f"Please explain in case {number} " + " ".join(draw.choice(WORDS) for _ in range(25))


UNANSWERED = {*STATUS, *BODY, "reset_before", "reset_after", "cut_body", "hang"}
"""Faults that leave a call without an answer; whatever else the server did was an answer, however odd."""


def asked_again_after_an_answer(stats: dict[str, Any]) -> list[str]:
    """Contents that were asked once more although an answer had been given; there must be none in an undisturbed run."""
    return [row["says"] for row in stats["keys"].values() if any(kind not in UNANSWERED for kind in row["faults"][:-1])]
