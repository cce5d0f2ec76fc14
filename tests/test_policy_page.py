"""The policy's part of the report: what it says about the guard, the evaluations and the selection, from logs made by hand."""

from __future__ import annotations

import random
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from starling import report
from starling.artifacts import open_artifact
from starling.errors import ArtifactError
from starling.report.figures import _root_ticks
from starling.report.gather import gather
from starling.report.policy_page import policy_figures, policy_tables
from tests import fake_run

QUIET = {"fired": False, "why": "The guard model sees no fall that counts."}


def evaluation(iteration: int, **numbers: Any) -> dict[str, Any]:
    return {"iteration": iteration, **{f"eval/{name}": value for name, value in numbers.items()}}


LOG = [
    evaluation(0, score=0.0, guard=0.0, guard_se=0.1, length=20.0, repetition=0.02) | {"guard": QUIET},
    {"iteration": 1, "reward": 0.1, "score": 0.2},
    evaluation(5, score=1.0, guard=0.5, guard_se=0.1, kl=2.0, length=21.0) | {"guard": QUIET},
    evaluation(10, score=2.0, guard=0.1, guard_se=0.1, kl=4.0, length=25.0) | {"guard": {"fired": True, "why": "It fell."}},
    evaluation(15, score=3.0, guard=float("nan"), kl=8.0, length=30.0) | {"guard": {"fired": True, "why": "Lower."}},
]


# ── tables ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_table_has_the_evaluations_and_the_columns_that_are_there() -> None:
    found = policy_tables(LOG, {"iteration": 5})
    assert found is not None
    assert found.heads == ("reward model", "guard", "KL, nats", "tokens", "repetition")
    assert [line.iteration for line in found.lines] == [0, 5, 10, 15]
    assert found.lines[0].cells == ((0.0, None, 2), (0.0, 0.1, 2), (None, None, 2), (20.0, None, 1), (0.02, None, None))
    assert found.lines[3].cells[1] == (None, None, 2), "what is not finite is not shown as a number"
    assert [line.fired for line in found.lines] == [False, False, True, True]
    assert [line.chosen for line in found.lines] == [False, True, False, False]
    assert found.has_errors


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (LOG, "It fired at iteration 10. It fell. At the last evaluation: lower."),
        (LOG[:4], "It fired at iteration 10. It fell."),
        (LOG[:3], "It never fired. The guard model sees no fall that counts."),
        ([evaluation(0, score=0.0)], ""),
    ],
)
def test_what_the_guard_said(rows: list[dict[str, Any]], says: str) -> None:
    found = policy_tables(rows, {})
    assert found is not None
    assert found.guard == says


def test_a_log_without_evaluations_or_no_log() -> None:
    assert policy_tables([], {}) is None
    assert policy_tables([{"iteration": 1, "reward": 0.5}], {}) is None
    assert policy_figures([], {}, {}) == []


# ── figures ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_figures_follow_what_the_log_has() -> None:
    titles = [f.title for f in policy_figures(LOG, {}, {})]
    assert titles[:3] == ["Reward model's score against KL", "Guard's score against KL", "Is it better, or only liked better?"]
    only_score = [evaluation(0, score=0.0), evaluation(5, score=1.0)]
    assert [f.title for f in policy_figures(only_score, {}, {})] == ["Reward model's score"], "one point makes no frontier"


def test_a_frontier_shows_the_reference_the_choice_and_the_fall() -> None:
    curve = {"replies": 4, "curve": [{"n": 1, "kl": 0.0, "score": 0.0, "score_se": 0.1}, {"n": 4, "kl": 0.64, "score": 1.0}]}
    with_all = policy_figures(LOG, curve, {"iteration": 5, "outcome": "chosen"})
    assert "best of 1 to 4 replies" in with_all[0].note
    assert "best of" not in with_all[1].note, "the curve has no guard"
    for word in ("best of n", "tuning", "selected", "guard fired", ">15<"):
        assert word in with_all[0].svg
    bare = policy_figures(LOG[:3], {}, {"iteration": 5, "outcome": "last"})[0].svg
    for word in ("best of n", "selected", "guard fired"):
        assert word not in bare


@pytest.mark.parametrize(
    ("largest", "ticks"),
    [
        (20.0, [0, 1, 5, 10, 20]),
        (15.8, [0, 1, 2, 5, 10]),
        (0.7, [0, 0.02, 0.1, 0.2, 0.5]),
        (0.0, [0]),
        (1.0, [0, 0.1, 0.2, 0.5, 1]),
    ],
)
def test_ticks_of_the_square_root_axis(largest: float, ticks: list[float]) -> None:
    assert _root_ticks(largest) == ticks


# ── the page ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run up to the reward model; each test makes its own policy in it."""
    return Path(fake_run.make(tmp_path_factory.mktemp("fake"), until="reward", prompts=20))


def policy_section(run: Path, out: Path) -> str:
    text = report.write(run, out).read_text(encoding="utf-8")
    return re.sub(r"<svg.*?</svg>", "", text[text.index('<section id="policy">') :].split("</section>")[0], flags=re.DOTALL)


def test_a_gamed_reward_model_is_told(run: Path, tmp_path: Path) -> None:
    fake_run.stage(run, "policy", partial(fake_run.fill_policy, random.Random(3), exploited=1.0), "world", "prompts", "reward")
    section = policy_section(run, tmp_path / "out")
    assert '<span class="tag bad">guard fired</span>It fired at iteration 21. Since iteration 9 the reward model' in section
    assert section.count('<span class="tag bad">guard fired</span>') == 1 + 2
    assert "of these the largest eval/guard. Iteration 9 has the largest eval/guard, 0.01302, of the 3 that pass." in section
    assert section.count('<span class="tag">selected</span>') == 1
    assert section.count('<span class="tag bad">fails</span>') == 5
    assert "replies are 1.60 times as long as the base&#39;s, more than 1.5" in section


def test_a_selection_that_none_passes_is_flagged(run: Path, tmp_path: Path) -> None:

    def fill(draft: Any) -> None:
        fake_run.fill_policy(random.Random(3), draft)
        text = (draft.path / "selection.json").read_text()
        (draft.path / "selection.json").write_text(text.replace('"chosen"', '"none_passes"'))

    fake_run.stage(run, "policy", fill, "world", "prompts", "reward")
    section = policy_section(run, tmp_path / "out")
    assert '<span class="tag bad">none passes</span>Rule, set before the tuning' in section
    assert '<span class="tag">selected</span>' not in section


@pytest.mark.parametrize("text", ["[1]", "{"])
def test_a_broken_file_is_named(text: str, run: Path) -> None:

    def fill(draft: Any) -> None:
        (draft.path / "best_of_n.json").write_text(text)

    fake_run.stage(run, "policy", fill, "world", "prompts", "reward")
    with pytest.raises(ArtifactError, match=r"cannot be read.*best_of_n\.json"):
        gather(run)
    assert open_artifact(run, "policy").files
