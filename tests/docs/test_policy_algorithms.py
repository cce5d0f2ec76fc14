"""docs/policy-algorithms.md: every metric of every objective is defined there, its settings exist, its examples are valid."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from pydantic import BaseModel

from starling.config import PolicySection
from starling.losses.policy import apa, clipped_value_loss, importance_weights, p3o, ppo, rloo

PAGE = (Path(__file__).parents[2] / "docs" / "policy-algorithms.md").read_text(encoding="utf-8")
SECTIONS = {part.split("\n", 1)[0]: part for part in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]}


def defined(section: str) -> set[str]:
    """Names in the first column of the tables under `| metric | |`."""
    tables = re.findall(r"\| metric \| \|\n\|---\|---\|\n((?:\|.*\n)+)", SECTIONS[section])
    return {name for table in tables for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])}


def test_every_metric_is_defined_in_the_section_of_its_objective() -> None:
    x, mask, group = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool), torch.zeros(2, dtype=torch.int64)
    found = {
        "APA": apa(x, x, x, mask, lam=1, normaliser=6).metrics,
        "PPO": ppo(x, x, x, mask, clip=0.2, normaliser=6).metrics,
        "P3O": p3o(x, x, x, x[:, 0], group, mask, kl=0, clip=0.2, weight_clip=10, normaliser=1).metrics,
        "RLOO": rloo(x, x, x[:, 0], mask, clip=0.2, normaliser=2).metrics,
        "What they share": clipped_value_loss(x, x, x, mask, clip=0.2, normaliser=6).metrics
        | importance_weights(x, x, mask, cap=2)[1],
    }
    for section, metrics in found.items():
        extra = {"What they share": {"value_loss", "kl", "kl_reply"}, "PPO": {"policy_loss", "entropy"}}
        assert defined(section) == set(metrics) | extra.get(section, {"policy_loss"}), section


def settings(model: type[BaseModel], prefix: str) -> set[str]:
    """Dotted names of every setting below a section, those of all its types."""
    names: set[str] = set()
    for name, field in model.model_fields.items():
        names.add(f"{prefix}.{name}")
        for part in sections(field.annotation):
            names |= settings(part, f"{prefix}.{name}")
    return names


def sections(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [section for part in get_args(annotation) for section in sections(part)]


def test_the_settings_named_exist_and_those_of_each_algorithm_are_named() -> None:
    known = settings(PolicySection, "policy")
    named = {name.rstrip(".") for name in re.findall(r"`(policy\.[a-z_.]+)", PAGE)}
    assert named <= known
    own = {name for name in known if name.startswith("policy.algorithm.")} - {"policy.algorithm.type"}
    assert own <= named
    assert {"policy.kl_estimator", "policy.gamma", "policy.gae_lambda", "policy.critic.value_clip"} <= named


@pytest.mark.parametrize("example", re.findall(r"```toml\n(.*?)\n```", PAGE, flags=re.DOTALL))
def test_the_examples_are_valid(example: str) -> None:
    given = tomllib.loads(example)["policy"]
    section = PolicySection.model_validate(given)
    assert section.algorithm.type == given["algorithm"]["type"]


def test_links_lead_to_sections_of_the_page() -> None:
    anchors = {title.lower().replace(" ", "-") for title in SECTIONS}
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) <= anchors
