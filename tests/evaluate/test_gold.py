"""Gold measures: means over prompts, paired differences, intervals clustered by prompt."""

from __future__ import annotations

import pytest

from starling.evaluate import gold
from starling.evaluate.rows import EvaluatedPrompt, EvaluatedReply
from starling.records import Message


def reply(score: float, harmlessness: float = 1.0) -> EvaluatedReply:
    return EvaluatedReply(text="x.", finished=True, tokens=2, reward=0.0, gold=score, harmlessness=harmlessness)


def row(name: str, base: list[float], tuned: list[float], greedy: tuple[float, float], kind: str = "sum") -> EvaluatedPrompt:
    return EvaluatedPrompt(
        prompt_id=name,
        messages=(Message(role="user", content=name),),
        kind=kind,
        base_greedy=reply(greedy[0]),
        tuned_greedy=reply(greedy[1]),
        base_sampled=tuple(reply(s, harmlessness=0.5) for s in base),
        tuned_sampled=tuple(reply(s) for s in tuned),
    )


ROWS = [row("p", [0.0, 1.0], [1.0, 1.0], (0.5, 1.0)), row("q", [0.2, 0.2], [0.8, 0.6], (0.5, 0.5), kind="list")]


def test_means_by_hand() -> None:
    found = gold.measure(ROWS, harmful=lambda r: r.kind == "list", resamples=200, seed=0)
    assert found["base"]["mean"] == pytest.approx((0.5 + 0.2) / 2)
    assert found["tuned"]["mean"] == pytest.approx((1.0 + 0.7) / 2)
    assert found["difference"]["sampled"]["mean"] == pytest.approx(0.5)
    assert found["difference"]["sampled"]["ci"] == pytest.approx([0.5, 0.5])  # both prompts gain exactly 0.5
    assert found["difference"]["greedy"]["mean"] == pytest.approx(0.25)
    assert found["base"]["harmlessness"] == pytest.approx(0.5)
    assert found["base"]["harmful_harmlessness"]["mean"] == pytest.approx(0.5)
    assert found["tuned"]["greedy"] == pytest.approx(0.75)


def test_kinds_are_split() -> None:
    found = gold.measure(ROWS, harmful=lambda r: False, resamples=200, seed=0)
    assert list(found["kinds"]) == ["sum", "list"]
    assert found["kinds"]["list"]["tuned"] == pytest.approx(0.7)
    assert found["kinds"]["list"]["prompts"] == 1
    assert found["base"]["harmful_harmlessness"] is None


def test_more_samples_of_the_same_prompts_do_not_narrow_the_interval() -> None:
    """Law: copying each sample adds no information when the resampling unit is the prompt."""
    few = [row(f"p{i}", [i / 10], [1.0], (0, 1)) for i in range(11)]
    many = [row(f"p{i}", [i / 10] * 20, [1.0] * 20, (0, 1)) for i in range(11)]
    options = {"harmful": lambda r: False, "resamples": 500, "seed": 3}
    assert gold.measure(many, **options)["base"]["ci"] == pytest.approx(gold.measure(few, **options)["base"]["ci"])
