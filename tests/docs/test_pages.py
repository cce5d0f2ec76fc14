"""The hand-written pages say what the code does: their examples are run, their tables are compared with the source."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer

from starling import nectar, training_plan
from starling.config import Config, RankingMode, load_config
from starling.judge import verdict
from starling.judge.rubric import STARLING, build_prompt, read_prompt, rubric_as_given
from starling.nectar import imported
from starling.records import Message, Outcome, Score

DOCS = Path(__file__).parents[2] / "docs"


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def blocks(name: str, language: str = "text") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)\n```", page(name), flags=re.DOTALL)


def test_the_judge_prompt_shown_is_the_one_that_is_sent() -> None:
    shown = blocks("judge.md")[0]
    material = read_prompt((Message(role="user", content=shown),))
    assert material.answers == ("A cat.", "A cat, a dog and a cow.")
    sent = build_prompt(STARLING, material.messages, material.answers, material.pairs, "9f3c2a7be1d04c58")
    assert sent[-1].content == shown


def test_the_reference_shown_is_the_block_that_is_sent() -> None:
    material = read_prompt((Message(role="user", content=blocks("judge.md")[0]),))
    block = blocks("judge.md")[2]
    rubric = rubric_as_given("letter", reference=True)
    sent = build_prompt(rubric, material.messages, material.answers, (), "9f3c2a7be1d04c58", block.split("\n")[1])
    assert f"\n\n{block}\n\n" in sent[-1].content


def test_the_reply_shown_parses() -> None:
    found = verdict.parse(blocks("judge.md")[1], 2)
    assert found == verdict.Verdict(ranking=(1, 0), good_natured=True, pairs=((1, 0, 1),))


def test_every_failure_and_outcome_is_explained() -> None:
    text = page("judge.md")
    reasons = set(re.findall(r'Failure\("([^"]+)"', Path(verdict.__file__).read_text(encoding="utf-8")))
    assert len(reasons) > 5
    explained = reasons | {o.value for o in Outcome} | set(get_args(RankingMode))
    assert set(re.findall(r"^\| `([^`]+)` \|", text, flags=re.MULTILINE)) == explained


def test_every_reason_of_the_import_is_explained() -> None:
    named = set(re.findall(r"`(\w+)`", page("data.md")))
    reasons = set(re.findall(r'_Refused\("(\w+)"', Path(imported.__file__).read_text(encoding="utf-8")))
    assert len(reasons) > 10
    assert reasons <= named
    assert {"answers_sorted", "ranks_renumbered", "turns_recounted", "model_unknown", "source_unknown"} <= named


def test_the_columns_are_those_that_are_written(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    nectar.write_nectar(tmp_path / "rows.parquet", [])
    public, extra = page("data.md").split("## Splits")[0].split("### What is known about pairs")
    assert re.findall(r"^\| `(\w+)` \|", public, flags=re.MULTILINE) == pq.read_schema(tmp_path / "rows.parquet").names
    nectar.write_nectar(tmp_path / "extra.parquet", [], extra=True)
    columns = public + extra.split("### Ties")[0]
    assert re.findall(r"^\| `(\w+)` \|", columns, flags=re.MULTILINE) == pq.read_schema(tmp_path / "extra.parquet").names


def test_every_outcome_of_a_score_is_explained_and_the_line_shown_is_one() -> None:
    shown = Score.model_validate_json(blocks("reward.md", "json")[0])
    assert (shown.outcome, shown.row, shown.answer) == ("scored", 17, 0)
    outcomes = get_args(Score.model_fields["outcome"].annotation)
    table = page("reward.md").split("| outcome | meaning |")[1].split("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE) == list(outcomes)


@pytest.mark.parametrize(("name", "loss"), [("plackett_luce", "0.3604"), ("bradley_terry", "0.2512")])
def test_the_worked_example_of_the_losses(name: str, loss: str) -> None:
    import torch

    from starling.losses.ranking import LOSSES

    assert f"**{loss}**" in page("losses.md")
    assert float(LOSSES[name](torch.tensor([[2.0, 1.0, 0.0]])).loss) == pytest.approx(float(loss), abs=5e-5)


# ── the policy ───────────────────────────────────────────────────────────────────────────────────────────────────────


def settings_of(schema: dict[str, Any], at: str = "") -> Iterator[str]:
    """Every dotted setting, those of all alternatives of a section included."""
    options = schema.get("anyOf", schema.get("oneOf", [schema]))
    for option in options:
        option = _SCHEMA["$defs"][option["$ref"].rpartition("/")[2]] if "$ref" in option else option
        if "anyOf" in option or "oneOf" in option:
            yield from settings_of(option, at)
        for name, inner in option.get("properties", {}).items():
            yield f"{at}{name}"
            yield from settings_of(inner, f"{at}{name}.")


_SCHEMA = Config.model_json_schema()


@pytest.mark.parametrize("name", ["policy.md", "scaling.md"])
def test_every_setting_named_exists(name: str) -> None:
    known = set(settings_of(_SCHEMA))
    assert {"policy.kl.target", "policy.algorithm.lam", "reward.trained.layers"} <= known
    named = set(re.findall(r"`((?:policy|reward|prompts|run)(?:\.[a-z_]+)+)(?: = [^`]*)?`", page(name)))
    assert len(named) > 5
    assert sorted(named - known) == []
    for value in re.findall(r"`(policy\.[a-z_.]+ = (?:\{[^`]*\}|\"[^`]*\"))`", page(name)):
        key, _, text = value.partition(" = ")
        override = (f"{key}={text}", "policy.samples_per_prompt=2")
        assert load_config(DOCS.parent / "configs" / "tiny.toml", override), value


def test_the_settings_shown_for_the_policy_are_valid(tmp_path: Path) -> None:
    shown = blocks("policy.md", "toml")
    assert shown
    for block in shown:
        (tmp_path / "shown.toml").write_text(f'[run]\ndir = "x"\n{block}\n', "utf-8")
        load_config(tmp_path / "shown.toml")


def test_the_commands_shown_for_the_policy_exist() -> None:
    from starling.cli import app

    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    named = set(re.findall(r"starling ([a-z-]+) [a-zA-Z]", page("policy.md")))
    assert {"plan", "train-policy", "chat", "run"} <= named <= set(known)


def test_the_numbers_of_starling_7b_are_the_plans() -> None:
    config = load_config(DOCS.parent / "configs" / "starling-7b.toml")
    table = page("policy.md").split("## Starling-LM-7B again")[1]
    for needs in training_plan.plan_trainings(config, ["reward", "policy"], []):
        assert isinstance(needs, training_plan.Needs)
        for fact in needs.facts:
            if "parameters" in fact.what or fact.what.startswith(("trained", "optimiser steps", "iterations")):
                assert f"{fact.expected:,.0f}" in table, fact
        for row in training_plan.time_rows(needs):
            if row["device"].startswith(("8 x A100", "8 x H100")):
                assert f"| {row['hours']} h" in table, row
                assert f"{row['GB per GPU']:.0f} GB" in table, row


def test_the_worked_reply_gets_the_reward_that_is_written() -> None:
    from starling.config import ShapingSection
    from starling.policy.shaping import Shaping

    assert "(5 − 1) / 2 + 0.1 − 0.1 = 2." in page("honesty.md")
    assert "min(2.1, −2) − 0.1 = −2.1" in page("honesty.md")
    shaping = Shaping(ShapingSection(length_penalty=0.01, length_free=20), [{"mean": 1.0, "std": 2.0}])
    found = shaping.shape([[5.0, 5.0]], [True, False], [30, 30], [list(range(30))] * 2)
    assert found.reward_B == pytest.approx([2.0, -2.1])


@pytest.mark.parametrize(
    ("prompts", "evaluations", "fall"), [(128, 3, 0.30), (128, 21, 0.46), (1000, 3, 0.11), (1000, 21, 0.16)]
)
def test_the_falls_that_count_are_those_that_are_written(prompts: int, evaluations: int, fall: float) -> None:
    from starling.config import GuardSection
    from starling.policy.guard import Guard

    assert f"{fall:.2f}" in page("honesty.md")

    def fired(last: float) -> bool:
        guard = [0.0] * (evaluations - 1) + [-last]
        rows = [{"iteration": i, "eval/score": i, "eval/guard": g, "eval/guard_se": prompts**-0.5} for i, g in enumerate(guard)]
        return Guard(GuardSection(patience=1)).look(rows).fired

    assert fired(fall + 0.006)
    assert not fired(fall - 0.006)


def test_the_check_shown_is_one_and_the_settings_shown_validate(tmp_path: Path) -> None:
    import tomllib

    from starling.config import PolicySection, RewardSection
    from starling.policy.checks import Check

    check = Check.model_validate_json(blocks("honesty.md", "json")[0])
    assert (check.passes("HELLO"), check.passes("Hello")) == (True, False)
    shown = tomllib.loads(blocks("honesty.md", "toml")[0])
    RewardSection.model_validate(shown["reward"])
    assert PolicySection.model_validate(shown["policy"]).guard.action == "stop"


def test_every_benchmark_of_reward_models_is_explained() -> None:
    from starling.evaluate.reward_benchmarks import BENCHMARKS

    table = page("benchmark-sets.md").split("## The sets")[1].split("## Scores")[0]
    assert re.findall(r"^\| `([\w-]+)` \|", table, flags=re.MULTILINE) == list(BENCHMARKS)
