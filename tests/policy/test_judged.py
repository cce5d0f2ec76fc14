"""The run's judge on a tuning: win rates by hand, and the checkpoint that it prefers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from starling.config import Config, RankingSection
from starling.endpoint import Reply, Request, ScriptedEndpoint
from starling.journal import Budget, Journal
from starling.judge.given import agreed
from starling.judge.rubric import read_prompt
from starling.lineage import settings_read
from starling.pipeline import BY_NAME
from starling.plan import count
from starling.policy import train as tuning
from starling.policy.judged import Judge
from starling.records import Comparison, ModelRef, Outcome
from tests.policy.small import PROMPTS, lines, settings, tune

Make = Callable[..., Path]
Prefers = Callable[[str, str], str]


class Asked:
    """A judge that prefers by a rule, and counts its calls."""

    def __init__(self, journal: Journal, prefers: Prefers) -> None:
        self.prefers, self.calls = prefers, 0
        endpoint = ScriptedEndpoint(ModelRef(provider="scripted", name="judge"), self.answer, journal)
        self.judge = Judge(endpoint, RankingSection(judge="judge", retries=0), 0)

    def answer(self, request: Request) -> str | Reply:
        self.calls += 1
        shown = read_prompt(request.messages).answers
        best = self.prefers(*shown)
        if best == "?":
            return "I would rather not say."
        order = "'A', 'B'" if best == "A" else "'B', 'A'"
        return f"Good natured: yes\n('A', 'B'): {best}\nRanking: [{order}]"


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal(tmp_path / "journal.sqlite", Budget())
    yield opened
    opened.close()


def longer(a: str, b: str) -> str:
    return "A" if len(a) > len(b) else "B"


def test_win_rate_by_hand(journal: Journal) -> None:
    asked = Asked(journal, longer)
    found = asked.judge.compare(PROMPTS[:4], ["aa", "aa", "same", "aaa"], ["bbb", "b", "same", "bbbb"])
    # won, lost, equal without a call, won: (1 + 0 + .5 + 1) / 4
    assert found == {"no_verdict": 0.0, "win_rate": 0.625, "win_rate_se": pytest.approx(0.2393568, abs=1e-6)}
    assert asked.calls == 6


def test_a_preference_for_the_first_is_none(journal: Journal) -> None:
    found = Asked(journal, lambda a, b: "A").judge.compare(PROMPTS[:2], ["x", "y"], ["u", "v"])
    assert (found["win_rate"], found["no_verdict"]) == (0.5, 0.0)


def test_a_missing_verdict_is_counted_and_never_a_tie(journal: Journal) -> None:
    asked = Asked(journal, lambda a, b: "?" if "?" in a else longer(a, b))
    found = asked.judge.compare(PROMPTS[:3], ["?", "a", "a"], ["bb", "bb", "bb"])
    assert (found["win_rate"], found["no_verdict"]) == (1.0, pytest.approx(1 / 3))
    nothing = Asked(journal, lambda a, b: "?").judge.compare(PROMPTS[:1], ["u"], ["v"])
    assert nothing == {"no_verdict": 1.0}


def test_the_verdicts_of_both_orders_as_one() -> None:
    def said(winner: Any) -> float | None:
        outcome = Outcome.ranked if winner else Outcome.unparsed
        verdict = Comparison(prompt_id="p", a="base", b="policy", winner=winner, by="judge", outcome=outcome)
        swapped = verdict.swap().preference_b
        assert swapped == (None if verdict.preference_b is None else 1 - verdict.preference_b)
        return verdict.preference_b

    rows = (("b", "b"), ("a", "a"), ("a", "b"), ("tie", "tie"), ("b", "tie"))
    assert [agreed(said(a), said(b)) for a, b in rows] == [1.0, 0.0, 0.5, 0.5, 0.5]
    assert agreed(said(None), said("b")) is agreed(said("b"), said(None)) is None


def test_the_checkpoint_that_the_judge_prefers_is_kept_also_after_a_kill(
    backbone: Make, reward_folder: Path, tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A judge with a taste of its own: of the tuned replies it likes those of the second iteration."""
    rule = {"keep": "rule", "longest": 9.0, "by": "eval/win_rate", "judge_prompts": 3}
    rules = settings(iterations=3, eval_every=1, selection=rule, guard={"best_of": 0})
    liked: list[str] = []
    real = Judge.compare

    def compare(self: Judge, prompts: Any, base: list[str], policy: list[str]) -> dict[str, float]:
        liked.append(policy[0])
        rate = {1: 0.5, 2: 0.4, 3: 0.9, 4: 0.2}[len(liked)]
        return real(self, prompts, base, base) | {"win_rate": rate}

    monkeypatch.setattr(Judge, "compare", compare)
    asked = Asked(journal, longer)
    tune(backbone("llama"), reward_folder, tmp_path, "out", rules, judge=asked.judge)
    rows = [row for row in lines(tmp_path / "out") if "eval/win_rate" in row]
    assert [(row["iteration"], row["eval/win_rate"]) for row in rows] == [(0, 0.5), (1, 0.4), (2, 0.9), (3, 0.2)]
    assert json.loads((tmp_path / "out" / "selection.json").read_text())["iteration"] == 2
    assert asked.calls == 0  # equal replies


def test_the_base_is_compared_with_itself_and_a_resumed_tuning_with_the_same_base(
    backbone: Make, reward_folder: Path, tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = settings(iterations=4, eval_every=1, selection={"judge_prompts": 4}, guard={"best_of": 0})
    plain = Asked(journal, longer)
    tune(backbone("llama"), reward_folder, tmp_path, "plain", rules, judge=plain.judge)
    rows = lines(tmp_path / "plain")
    assert rows[0]["eval/win_rate"] == 0.5
    assert rows[0]["eval/no_verdict"] == 0.0
    assert plain.calls > 0  # the tuned replies differ

    learn = tuning._Tuning._learn

    def killed(self: Any, *given: Any) -> Any:
        if given[-1] == 4:
            raise RuntimeError("killed")
        return learn(self, *given)

    monkeypatch.setattr(tuning._Tuning, "_learn", killed)
    second = Asked(journal, longer)
    with pytest.raises(RuntimeError, match="killed"):
        tune(backbone("llama"), reward_folder, tmp_path, "again", rules, judge=second.judge)
    monkeypatch.setattr(tuning._Tuning, "_learn", learn)
    tune(backbone("llama"), reward_folder, tmp_path, "again", rules, judge=second.judge)
    assert lines(tmp_path / "again") == rows
    assert second.calls == 0  # all of it is in the journal


def config(**selection: Any) -> Config:
    return Config.model_validate(
        {
            "run": {"dir": "runs/x"},
            "models": {"j": {"type": "openai", "base_url": "http://h/v1", "name": "j"}},
            "ranking": {"judge": "j"},
            "prompts": {"sources": [{"type": "file", "name": "p", "path": "p.jsonl"}], "train": 8},
            "policy": {"iterations": 5, "eval_every": 2, "eval_prompts": 3, "selection": selection},
        }
    )


def test_the_judge_is_part_of_the_stage_and_of_the_plan_only_where_it_is_asked() -> None:
    stage = BY_NAME["policy"]
    assert "policy judge" not in settings_read(stage, config())
    asks = settings_read(stage, config(judge_prompts=2))
    assert asks["policy judge"]["model"]["name"] == "j"
    assert "base_url" not in asks["policy judge"]["model"]
    prompts = [p.model_copy(update={"split": "validation"}) for p in PROMPTS]
    assert count(config(), ["policy"], prompts) == []
    (calls,) = count(config(judge_prompts=9), ["policy"], prompts)
    assert (calls.stage, calls.calls) == ("policy", 3 * 2 * 3)  # prompts × orders × evaluations after 2, 4 and 5 iterations


def test_a_judge_that_is_not_there_is_named() -> None:
    tree = config(judge_prompts=2).model_dump(mode="json") | {"ranking": None}
    with pytest.raises(ValueError, match=r"judge_prompts asks the judge of the section \[ranking\]"):
        Config.model_validate(tree)
