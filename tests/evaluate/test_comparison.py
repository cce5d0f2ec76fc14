"""Benchmarks of several runs: what may be subtracted, how, and what the files may look like."""

from __future__ import annotations

from dataclasses import replace
from math import erfc, sqrt
from pathlib import Path
from typing import Any

import pytest

from starling.errors import InputError
from starling.evaluate.comparison import Source, Table, as_json, compare, differs, find
from starling.evaluate.result_files import write_result
from starling.evaluate.results import Result
from tests.evaluate.made_results import JUDGE, bench, difference, model, spread


def table(*results: Result) -> Table:
    return compare([Source(f"run{i}", r) for i, r in enumerate(results)])[0]


def test_across_runs_a_difference_has_the_variance_of_both() -> None:
    """Intervals ± 0.3 and ± 0.4: the difference's is ± 0.5, its standard error 0.5 / 1.96."""
    found = table(bench(model("a", 7.0, 0.3)), bench(model("b", 6.0, 0.4)))
    (one,) = found.contrasts
    assert one.difference == pytest.approx(1.0)
    assert one.ci == pytest.approx((0.5, 1.5))
    assert one.p == pytest.approx(erfc(1.0 / (0.5 / 1.959964) / sqrt(2)), rel=1e-5)
    assert (one.paired, one.standing) == (False, "first")
    assert any("not on pairs" in note for note in found.notes)


def test_within_a_run_the_benchmark_s_own_pairs_are_taken_in_either_order() -> None:
    own = bench(model("a", 7.0), model("b", 6.0), differences=(difference("b", "a", -1.0, 0.1, 0.004),))
    (one,) = table(own).contrasts
    assert (one.first, one.second, one.difference, one.p, one.paired) == ("b", "a", -1.0, 0.004, True)
    assert one.standing == "second"


def test_p_values_are_adjusted_over_everything_that_is_looked_at() -> None:
    own = bench(model("a", 7.0), model("b", 6.9), differences=(difference("a", "b", 0.1, 0.05, 0.03),))
    assert table(own).contrasts[0].standing == "first"
    two = compare([Source("x", own), Source("x", replace(own, benchmark="arena-hard"))])
    assert [t.contrasts[0].p_adjusted for t in two] == pytest.approx([0.06, 0.06])  # Holm: twice the smaller, then no less
    assert [t.contrasts[0].standing for t in two] == ["open", "open"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"judge": replace(JUDGE, judge="gpt-5")}, "judge: gpt-5 / gpt-4"),
        ({"judge": None}, "judge: none / gpt-4"),
        ({"unit": "points of 100"}, "unit: points of 100 / points of 10"),
        ({"settings": {"protocol": "official"}}, "protocol: official / starling"),
        ({"settings": {}}, "protocol: null / starling"),
    ],
)  # fmt: skip
def test_what_was_judged_otherwise_is_shown_and_never_subtracted(change: dict[str, Any], said: str) -> None:
    one = bench(model("a", 7.0))
    other = replace(bench(model("b", 3.0)), **change)
    found = table(one, other)
    assert [line.name for line in found.lines] == ["a", "b"]
    assert [line.group for line in found.lines] == [0, 1]
    assert found.contrasts == ()
    assert said in found.notes[0]
    assert "never subtracted" in found.notes[0]


def test_names_of_models_repeats_and_folders_are_no_other_protocol() -> None:
    one = bench(model("a", 7.0), settings={"protocol": "starling", "repeats": 1, "models": ["a"], "questions": "/here/q.jsonl"})
    other = bench(
        model("b", 7.0), settings={"protocol": "starling", "repeats": 3, "models": ["b"], "questions": "/there/q.jsonl"}
    )
    assert differs(one, other) == []
    assert differs(one, replace(other, settings={**other.settings, "questions": "/there/r.jsonl"})) == [
        "questions: q.jsonl / r.jsonl"
    ]


def test_below_the_judge_s_own_spread_nothing_counts() -> None:
    one, other = bench(model("a", 7.0, 0.01)), bench(model("b", 6.89, 0.01))
    assert table(one, other).contrasts[0].standing == "first"
    (noisy,) = table(spread(one, 0.08), spread(other, 0.06)).contrasts  # together √(.08² + .06²) = 0.1
    assert noisy.spread == pytest.approx(0.1)
    assert noisy.standing == "first", "0.11 is more than 0.1"
    (noisier,) = table(spread(one, 0.10), spread(other, 0.06)).contrasts  # 0.117
    assert (noisier.standing, noisier.why) == ("open", "within the judge's repeat spread")
    (half_known,) = table(spread(one, 0.08), other).contrasts
    assert half_known.spread == pytest.approx(0.08 * sqrt(2)), "the same judge is taken to be as noisy there"


def test_lower_is_better_turns_the_winner_and_the_order() -> None:
    one, other = (replace(bench(m), higher_is_better=False) for m in (model("a", 9.0, 0.1), model("b", 4.0, 0.1)))
    found = table(one, other)
    assert [line.name for line in found.lines] == ["b", "a"]
    assert found.contrasts[0].standing == "second"


def test_models_of_one_name_are_told_apart_by_their_runs() -> None:
    found = table(bench(model("policy", 7.0), model("base", 6.0)), bench(model("policy", 7.5)))
    assert [line.name for line in found.lines] == ["policy (run1)", "policy (run0)", "base"]


def test_without_score_or_interval_there_is_no_difference() -> None:
    nothing = bench(model("b", None))
    pointwise = bench(replace(model("c", 5.0), overall=replace(model("c", 5.0).overall, ci=None)))
    found = table(bench(model("a", 7.0)), nothing, pointwise)
    assert found.contrasts == ()
    assert [line.name for line in found.lines] == ["a", "c", "b"], "what was not measured comes last"


def test_other_numbers_of_prompts_are_said() -> None:
    fewer = bench(replace(model("b", 6.0), overall=replace(model("b", 6.0).overall, clusters=40)))
    assert any("40, 80" in note for note in table(bench(model("a", 7.0)), fewer).notes)


def test_one_model_alone_is_nothing_to_compare() -> None:
    with pytest.raises(InputError, match="nothing to compare"):
        compare([Source("run", bench(model("a", 7.0)))])


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def put(folder: Path, result: Result) -> Path:
    folder.mkdir(parents=True)
    write_result(folder / "result.json", result)
    return folder


def test_results_are_found_wherever_a_command_puts_them(tmp_path: Path) -> None:
    one = bench(model("a", 7.0))
    run = tmp_path / "runs" / "apa"
    put(run / "benchmarks" / "mt-bench", one)
    put(run / "benchmarks" / "arena-hard", replace(one, benchmark="arena-hard"))
    put(tmp_path / "out", one)
    for place in (run, run / "benchmarks"):
        assert [(s.run, s.result.benchmark) for s in find([place])] == [("apa", "arena-hard"), ("apa", "mt-bench")]
    for place in (run / "benchmarks" / "mt-bench", run / "benchmarks" / "mt-bench" / "result.json"):
        assert [(s.run, s.result.benchmark) for s in find([place])] == [("apa", "mt-bench")]
    assert [s.run for s in find([tmp_path / "out"])] == ["out"]
    # an unfinished draft is no result
    put(run / "benchmarks" / ".work" / "mt-bench.draft", one)
    assert len(find([run])) == 2


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    one = bench(model("a", 7.0))
    for user in ("ann", "bob"):
        put(tmp_path / user / "tiny" / "benchmarks" / "mt-bench", one)
    assert [s.run for s in find([tmp_path / "ann" / "tiny", tmp_path / "bob" / "tiny"])] == ["ann/tiny", "bob/tiny"]
    twice = find([tmp_path / "ann" / "tiny", tmp_path / "ann" / "tiny"])
    assert [s.run for s in twice] == ["tiny", "tiny #2"]


def test_a_place_without_results_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=str(tmp_path)):
        find([tmp_path])


def test_the_json_has_every_line_and_every_difference() -> None:
    found = as_json([table(spread(bench(model("a", 7.0)), 0.1), spread(bench(model("b", 6.0)), 0.1))])
    (one,) = found["benchmarks"]
    assert found["tests"] == 1
    assert [(m["name"], m["run"], m["score"], m["judge"], m["repeat_spread"]) for m in one["models"]] == [
        ("a", "run0", 7.0, "gpt-4", 0.1),
        ("b", "run1", 6.0, "gpt-4", 0.1),
    ]
    assert one["differences"][0]["difference"] == 1.0
