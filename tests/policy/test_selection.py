"""Which checkpoint is kept: the rule on tables made by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest

from starling.config import SelectionSection
from starling.errors import ConfigError
from starling.policy.selection import Choice, choose, require, said

RULE: dict[str, Any] = {"keep": "rule", "longest": 1.5, "check": "eval/check", "most_regression": 0.05, "by": "eval/guard"}


def row(iteration: int, guard: float | None, length: float | None, check: float | None = 0.8) -> dict[str, Any]:
    named = {"eval/guard": guard, "eval/length": length, "eval/check": check}
    return {"iteration": iteration, **{k: v for k, v in named.items() if v is not None}}


ROWS = [
    row(0, 0.0, 20.0),
    {"iteration": 1, "reward": 0.5, "length": 99.0},  # no evaluation
    row(5, 0.4, 22.0),
    row(10, 0.9, 31.0),  # 1.55 times as long
    row(15, 0.8, 24.0, 0.7),  # check down by 0.1
    row(20, 0.6, 30.0, 0.75),  # at both bounds
    row(25, 0.5, 25.0),
]


def chosen(rows: list[dict[str, Any]], **settings: Any) -> Choice:
    return choose(rows, SelectionSection(**(RULE | settings)))


def test_the_best_that_passes_is_chosen_and_the_others_say_why_not() -> None:
    found = chosen(ROWS)
    assert (found.iteration, found.outcome) == (20, "chosen")
    assert found.why == "Iteration 20 has the largest eval/guard, 0.6, of the 3 that pass."
    assert [c.iteration for c in found.table] == [0, 5, 10, 15, 20, 25]
    assert [c.passes for c in found.table] == [True, True, False, False, True, True]
    assert found.table[2].reasons == ("replies are 1.55 times as long as the base's, more than 1.5",)
    assert found.table[3].reasons == ("eval/check fell by 0.1, more than 0.05",)
    assert found.table[4].check_change == pytest.approx(-0.05)
    assert found.table[2].length_ratio == 1.55
    assert found.rule == (
        "Mean length at most 1.5 times the base's, eval/check at most 0.05 below the base's; of these the largest eval/guard."
    )


def test_of_equal_ones_the_earlier() -> None:
    assert chosen([row(0, 0.0, 20.0), row(5, 0.5, 20.0), row(10, 0.5, 20.0), row(15, 0.4, 20.0)]).iteration == 5


def test_the_base_is_the_reference_and_no_candidate() -> None:
    found = chosen([row(0, 9.0, 20.0), row(5, 0.1, 20.0), row(10, 0.2, 20.0)])
    assert found.iteration == 10
    assert found.table[0].by == 9.0


def test_while_only_the_critic_learns_the_policy_is_the_base_and_no_candidate() -> None:
    rows = [row(0, 0.0, 20.0), row(5, 0.3, 20.0), row(10, 0.2, 20.0)]
    assert choose(rows, SelectionSection(**RULE)).iteration == 5
    found = choose(rows, SelectionSection(**RULE), untrained=5)
    assert found.iteration == 10
    assert [c.reasons for c in found.table] == [(), ("the policy is still the base",), ()]
    assert choose(rows, SelectionSection(**RULE), untrained=10).outcome == "none_passes"


def test_bounds_that_are_wider_let_more_pass() -> None:
    assert chosen(ROWS, longest=1.6).iteration == 10
    assert chosen(ROWS, most_regression=0.1).iteration == 15
    assert chosen(ROWS, check=None).iteration == 15


def test_none_passes_is_an_outcome_and_the_last_weights_are_kept() -> None:
    found = chosen([row(0, 0.0, 10.0), row(5, 1.0, 20.0), row(10, 2.0, 10.0, 0.1)])
    assert (found.iteration, found.outcome) == (10, "none_passes")
    assert found.why == "None of 2 evaluations passes; the last weights, of iteration 10, are kept."
    assert all(c.reasons for c in found.table[1:])


def test_keeping_the_last_still_makes_the_table() -> None:
    found = chosen(ROWS, keep="last")
    assert (found.iteration, found.outcome, len(found.table)) == (25, "last", 6)
    assert found.table[2].reasons


@pytest.mark.parametrize("bad", [None, float("nan"), float("inf"), "0.9", True])
def test_a_number_that_is_none_is_a_reason_not_a_zero(bad: Any) -> None:
    broken = row(5, 0.5, 20.0) | {"eval/guard": bad}
    found = chosen([row(0, 0.0, 20.0), broken, row(10, -3.0, 20.0)])
    assert found.iteration == 10
    assert found.table[1].reasons == ("it has no eval/guard",)


def test_a_missing_check_or_length_is_a_reason() -> None:
    rows = [row(0, 0.0, 20.0), row(5, 0.5, 20.0, None), row(10, 0.4, 20.0) | {"eval/length": float("nan")}]
    reasons = [c.reasons for c in chosen(rows).table[1:]]
    assert reasons == [
        ("eval/check relative to the base's is not known",),
        ("its length relative to the base's is not known",),
    ]


def test_a_base_without_length_or_without_tokens_lets_none_pass() -> None:
    assert chosen([row(0, 0.0, 0.0), row(5, 1.0, 20.0)]).outcome == "none_passes"


def test_what_goes_up_is_no_regression() -> None:
    assert chosen([row(0, 0.0, 20.0, 0.1), row(5, 1.0, 20.0, 0.9)]).table[1].passes


def test_a_rule_that_cannot_be_met_is_refused_after_the_bases_evaluation() -> None:
    base = {"iteration": 0, "eval/score": 0.1, "eval/length": 20.0, "score": 3.0}
    with pytest.raises(ConfigError, match=r"called eval/guard.*policy\.selection\.by.*eval/length, eval/score; eval/guard comes"):
        require(base, SelectionSection(**RULE))
    with pytest.raises(ConfigError, match=r"called eval/check.*policy\.selection\.check"):
        require(base, SelectionSection(**(RULE | {"by": "eval/score"})))
    require(base, SelectionSection(**(RULE | {"by": "eval/score", "check": None})))
    require(base, SelectionSection(keep="last"))


def test_no_evaluation_of_the_base() -> None:
    for rows in ([], [row(5, 0.1, 20.0)]):
        with pytest.raises(ValueError, match="base"):
            chosen(rows)


def test_it_is_written_as_json() -> None:
    record = json.loads(json.dumps(chosen(ROWS).record()))
    assert record["outcome"] == "chosen"
    assert record["table"][2]["reasons"] == ["replies are 1.55 times as long as the base's, more than 1.5"]
    assert said(SelectionSection()) == "Keep the last weights."
