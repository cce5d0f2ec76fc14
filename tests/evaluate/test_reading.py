"""What may be said about a table: which differences count, and the judge's noise in words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from starling.cli.benchmark_tables import MOST_DIFFERENCES, print_result
from starling.evaluate import reading
from tests.evaluate.made_results import JUDGE, bench, difference, model, spread


@pytest.mark.parametrize(
    ("gap", "ci", "p", "noise", "expected"),
    [
        (0.5, (0.3, 0.7), 0.001, None, "first"),
        (-0.5, (-0.7, -0.3), 0.001, None, "second"),
        (0.5, (-0.1, 1.1), 0.001, None, "open"),  # the interval includes 0
        (0.5, (0.0, 1.0), 0.001, None, "open"),
        (0.5, (0.3, 0.7), 0.05, None, "open"),  # not after adjustment
        (0.5, (0.3, 0.7), 0.001, 0.5, "open"),  # no larger than what the judge does by itself
        (0.5, (0.3, 0.7), 0.001, 0.49, "first"),
        (-0.5, (-0.7, -0.3), 0.001, 0.6, "open"),
        (0.0, (0.0, 0.0), 1.0, None, "open"),
    ],
)  # fmt: skip
def test_a_difference_counts_only_above_interval_adjustment_and_noise(
    gap: float, ci: tuple[float, float], p: float, noise: float | None, expected: str
) -> None:
    assert reading.standing(gap, ci, p, noise)[0] == expected


def test_where_lower_is_better_the_other_one_is() -> None:
    result = bench(model("base", 4.0), model("policy", 9.0), differences=(difference("base", "policy", -5.0),))
    assert reading.verdict_text(result.differences[0], result) == "policy is better"
    lower = replace(result, higher_is_better=False)
    assert reading.verdict_text(lower.differences[0], lower) == "base is better"
    assert reading.finding(lower) == ("base is better than policy", "better")


def test_the_finding_looks_at_the_two_best() -> None:
    pairs = (difference("a", "b", 0.1, 0.2, 0.3), difference("a", "c", 2.0), difference("b", "c", 1.9))
    result = bench(model("a", 7.1), model("b", 7.0), model("c", 5.1), differences=pairs)
    assert reading.finding(result) == ("a and b are not distinguishable: the interval includes 0", "open")
    apart = replace(result, differences=(difference("b", "a", -0.5), *pairs[1:]))
    assert reading.finding(apart) == ("a is better than b", "better")
    assert reading.finding(spread(apart, 0.6))[1] == "open", "the judge moves more than that by itself"
    assert reading.finding(bench(model("a", None)))[1] == "worse"
    assert reading.finding(bench(model("a", 7.0))) == ("a: 7.00 points of 10", "")
    assert reading.finding(bench(model("a", 7.0), model("b", 6.0)))[1] == "open", "without a test nothing is said"


def test_what_was_not_measured_is_said() -> None:
    said = dict(reading.judge_facts(bench(model("a", 7.0))))
    assert list(said) == ["judge", "position", "asked again", "no verdict", "people", "cost"]
    assert said["position"].startswith("not measured")
    assert said["asked again"].startswith("no:")
    assert said["people"].startswith("no votes")
    assert said["no verdict"] == "2.5 % of calls (ranked 312, unparsed 8)"
    assert said["cost"] == "320 calls, 320,000 + 80,000 tokens, dollars not known, 9 min of waiting, summed"
    assert [name for name, _ in reading.judge_facts(bench(model("a", 7.0), judge=None))] == ["judge"]


def test_what_was_measured_is_said() -> None:
    judge = replace(
        JUDGE, position_gap=0.086, position_gap_ci=(0.071, 0.101), repeat_spread=0.16, repeats=5, human_agreement=0.66,
        human_agreement_ci=(0.6, 0.72), human_votes=1298, dollars=4.256, estimated=12,
    )  # fmt: skip
    said = dict(reading.judge_facts(bench(model("a", 7.0), judge=judge)))
    assert said["position"] == "gap +8.6 points [+7.1, +10.1] for the answer shown first: it favours the first"
    assert said["asked again"] == "5 times, spread 0.160 points of 10; smaller differences are noise"
    assert said["people"] == "say the same in 66.0 % [60.0, 72.0] of 1,298 votes"
    assert said["cost"].startswith("320 calls, 320,000 + 80,000 tokens (of 12 calls estimated), $4.26")
    turned = replace(judge, position_gap=-0.086, position_gap_ci=(-0.101, -0.071))
    assert dict(reading.judge_facts(bench(judge=turned)))["position"].endswith("it favours the second")
    even = replace(judge, position_gap=0.01, position_gap_ci=(-0.01, 0.03))
    assert dict(reading.judge_facts(bench(judge=even)))["position"].endswith("no order is favoured measurably")


def test_every_printed_table_has_the_judge_under_it(capsys: pytest.CaptureFixture[str]) -> None:
    print_result(bench(model("a", 7.0), model("b", None), differences=(), notes=("Something to know.",)))
    out = capsys.readouterr().out
    for said in ("MT-Bench: points of 10, higher is better", "gpt-4", "position", "asked again", "no verdict", "people", "cost"):
        assert said in out
    assert "note: Something to know." in out
    assert "–" in out, "what could not be measured is no zero"


def test_many_models_do_not_fill_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"m{i:02}" for i in range(40)]
    pairs = tuple(difference(a, b, 0.1) for i, a in enumerate(names) for b in names[i + 1 :])
    print_result(bench(*(model(name, 9.0 - i / 10) for i, name in enumerate(names)), differences=pairs))
    out = capsys.readouterr().out
    assert sum("not distinguishable" in line for line in out.splitlines()) == MOST_DIFFERENCES
    assert f"and {len(pairs) - MOST_DIFFERENCES} further differences" in out
