"""When the guard fires and when it must not: histories made by hand, and noise."""

from __future__ import annotations

import random
from typing import Any

import pytest

from starling.config import GuardSection
from starling.policy.guard import Guard, Verdict, measure, standard_error
from starling.records import Message, Prompt


def history(score: list[float], guard: list[float] | None = None, **others: list[float]) -> list[dict[str, Any]]:
    """One row per evaluation, every fifth iteration."""
    rows: list[dict[str, Any]] = []
    for i, proxy in enumerate(score):
        row: dict[str, Any] = {"iteration": 5 * i, "eval/score": proxy}
        if guard is not None:
            row["eval/guard"] = guard[i]
        rows.append(row | {f"eval/{name}": values[i] for name, values in others.items()})
    return rows


def looked(rows: list[dict[str, Any]], std: float = 1.0, **settings: Any) -> Verdict:
    return Guard(GuardSection(**settings), std).look(rows)


# ── with a guard model ───────────────────────────────────────────────────────────────────────────────────────────────


def test_it_fires_after_patience_evaluations_with_the_proxy_up_and_the_guard_down() -> None:
    rows = history([0.0, 1.0, 1.5, 2.0], [0.0, 0.5, 0.3, 0.2])
    fired = [looked(rows[: n + 1]).fired for n in range(4)]
    assert fired == [False, False, False, True]
    verdict = looked(rows)
    assert verdict.doubtful == 2
    assert "Since iteration 5" in verdict.why
    assert "rose by 1 " in verdict.why
    assert "fell by 0.3 (more than 0.1)" in verdict.why
    assert "2 evaluations in a row" in verdict.why
    assert looked(rows[:3]).why.endswith("So far in 1 evaluation of 2.")
    assert verdict.row() == {"guard": {"fired": True, "why": verdict.why}}


def test_patience_counts_evaluations_in_a_row() -> None:
    rows = history([0, 1, 2, 3, 4, 5], [1.0, 0.5, 1.0, 0.5, 1.0, 0.5])
    assert not looked(rows).fired
    assert looked(rows).doubtful == 1
    assert looked(rows, patience=1).fired


def test_the_margin_is_in_the_guards_own_deviations() -> None:
    rows = history([0, 1, 2], [10.0, 9.5, 9.5])
    assert looked(rows, std=1.0, margin=0.4).fired
    assert not looked(rows, std=1.0, margin=0.6).fired
    assert not looked(rows, std=2.0, margin=0.4).fired


def test_a_fall_of_the_margin_itself_does_not_count_yet() -> None:
    assert not looked(history([0, 1, 2], [1.0, 0.5, 0.5]), margin=0.5).fired


def test_both_falling_is_no_over_optimisation() -> None:
    assert not looked(history([2, 1, 0], [2.0, 1.0, 0.0])).fired


def test_the_fall_is_from_the_best_and_the_rise_since_then() -> None:
    # the guard is best at iteration 5, where the proxy is highest too: later both are lower
    assert not looked(history([0, 5, 4, 4], [0.0, 5.0, 1.0, 1.0])).fired
    assert looked(history([0, 5, 6, 6], [0.0, 5.0, 1.0, 1.0])).fired


def test_a_guard_that_recovers_to_a_new_best_withdraws() -> None:
    rows = history([0, 1, 2, 3], [1.0, 0.0, 0.0, 1.5])
    assert looked(rows[:3]).fired
    assert looked(rows) == Verdict(fired=False, why="The guard model sees no fall that counts.")


def test_scores_far_from_zero_or_negative_change_nothing() -> None:
    rows = history([0, 1, 2], [0.0, -0.3, -0.4])
    moved = history([-90, -89, -88], [-50.0, -50.3, -50.4])
    assert looked(rows).fired
    assert looked(moved).fired


def test_a_fall_within_the_standard_errors_does_not_count() -> None:
    # one pair: 1.95996 √(0.1² + 0.1²) = 0.2772; three: z(1 − 0.025 / 3) = 2.39398, 0.3386
    errors = {"guard_se": [0.1, 0.1, 0.1]}
    assert not looked(history([0, 1, 2], [0.0, -0.27, -0.34], **errors)).fired
    assert not looked(history([0, 1, 2], [0.0, 0.0, -0.33], **errors), patience=1).fired
    assert looked(history([0, 1, 2], [0.0, 0.0, -0.34], **errors), patience=1).fired
    assert looked(history([0, 1, 2], [0.0, -0.28, -0.34], **errors)).fired


def test_no_false_alarm_while_the_guard_wiggles_within_its_standard_error() -> None:
    """The proxy rises all the way, the guard is flat with noise as large as its standard error: 100 tunings of 40 evaluations."""
    rng = random.Random(0)
    alarms = naive = 0
    for _ in range(100):
        rows = history([float(i) for i in range(40)], [rng.gauss(0, 0.09) for _ in range(40)], guard_se=[0.09] * 40)
        alarms += any(looked(rows[:n]).fired for n in range(1, 41))
        naive += any(looked([{k: v for k, v in r.items() if k != "eval/guard_se"} for r in rows[:n]]).fired for n in range(1, 41))
    assert alarms <= 2  # some 1 %
    assert naive > 80, "without the standard errors the margin alone would be crossed by luck"


def test_a_true_fall_is_found_through_the_same_noise() -> None:
    rng = random.Random(1)
    for _ in range(50):
        guard = [rng.gauss(-max(0.0, i - 5) * 0.15, 0.09) for i in range(20)]
        assert looked(history([float(i) for i in range(20)], guard, guard_se=[0.09] * 20)).fired


def test_rows_that_are_no_evaluations_are_passed_over() -> None:
    rows = history([0, 1, 2], [1.0, 0.0, 0.0])
    training = {"iteration": 1, "reward": 0.3, "score": 5.0}
    broken = {"iteration": 11, "eval/score": float("nan"), "eval/guard": 1.0}
    unguarded = {"iteration": 12, "eval/score": 3.0}
    mixed = [rows[0], training, rows[1], broken, unguarded, rows[2]]
    assert looked(mixed) == looked(rows)
    assert looked([]).why == "There is no evaluation to judge by."
    assert not looked(rows[:1]).fired


# ── without one ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "values", "says"),
    [
        ("length", [20.0, 31.0, 31.0], "replies grew from 20 to 31 tokens"),
        ("repetition", [0.05, 0.25, 0.25], "repeated 4-grams went from 5 % to 25 %"),
        ("refusals", [0.1, 0.5, 0.5], "refusals went from 10 % to 50 %"),
        ("finished", [1.0, 0.8, 0.8], "replies that end went from 100 % to 80 %"),
    ],
)
def test_signs_of_decay_stand_in_for_a_guard_model(name: str, values: list[float], says: str) -> None:
    rows = history([0, 1, 2], **{name: values})
    verdict = looked(rows)
    assert verdict.fired
    assert "No guard model" in verdict.why
    assert says in verdict.why
    assert not looked(rows[:2]).fired
    assert not looked(history([0, -1, -1], **{name: values})).fired, "the proxy did not rise"


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("length", [20.0, 30.0, 30.0]),
        ("length", [20.0, 5.0, 5.0]),
        ("repetition", [0.3, 0.0, 0.0]),
        ("refusals", [0.5, 0.6, 0.6]),
        ("finished", [0.8, 1.0, 1.0]),
        ("kl", [0.0, 90.0, 90.0]),
    ],
)
def test_what_is_no_sign_of_decay(name: str, values: list[float]) -> None:
    assert looked(history([0, 1, 2], **{name: values})).why == "No guard model; replies show no sign of decay."


def test_a_guard_model_is_believed_before_the_signs() -> None:
    assert not looked(history([0, 1, 2], [0.0, 1.0, 2.0], length=[10.0, 99.0, 99.0])).fired


# ── what is measured ─────────────────────────────────────────────────────────────────────────────────────────────────


def prompt(text: str) -> Prompt:
    return Prompt.make((Message(role="user", content=text),), ("test",))


def test_measured_by_hand() -> None:
    a, b = prompt("a"), prompt("b")
    found = measure(
        [a, a, b, b],
        ["I cannot help with that.", "", "Yes. I cannot wait to see it.", "I'm sorry, but no."],
        [[7] * 6, [1], [1, 2, 3, 4, 5], [1, 2, 3, 4, 1, 2, 3, 4]],
        [True, False, True, True],
    )
    assert found["repetition"] == pytest.approx((2 / 3 + 0 + 0 + 1 / 5) / 4)
    assert found["refusals"] == 0.5
    assert found["finished"] == 0.75
    assert found["empty"] == 0.25
    # deviations of a: 1/2, −1/2 → 0; of b the same → 0: both prompts refuse one of two
    assert found["refusals_se"] == 0.0
    # repetition: mean 13/60; sums of deviations ±(40 − 26)/60 = ±14/60; √(2 · 2 · (14/60)²) / 4
    assert found["repetition_se"] == pytest.approx(14 / 120)


def test_nothing_to_measure_and_a_single_prompt() -> None:
    assert measure([], [], [], []) == {}
    found = measure([prompt("a")] * 2, ["x", "y"], [[1], [2]], [True, True])
    assert found == {"repetition": 0.0, "refusals": 0.0, "finished": 1.0, "empty": 0.0}


def test_standard_errors_with_one_reply_per_prompt_are_the_usual_ones() -> None:
    values = [1.0, 2.0, 4.0, 9.0]
    mean = 4.0
    usual = (sum((v - mean) ** 2 for v in values) / 3) ** 0.5 / 2
    assert standard_error(values, "abcd") == pytest.approx(usual)
    assert standard_error([v for v in values for _ in range(3)], [c for c in "abcd" for _ in range(3)]) == pytest.approx(usual)
    assert standard_error([1.0, 2.0], "aa") is None
