"""AlpacaEval's measures: by hand, by laws, and what happens when something is missing."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from starling.errors import InputError, UsageError
from starling.evaluate.alpaca_eval import files, from_files, table
from starling.evaluate.alpaca_eval.from_files import Files
from starling.evaluate.alpaca_eval.length_control import Gamed
from starling.evaluate.alpaca_eval.measure import Inputs, Measured, measure, win_rate
from tests.evaluate.alpaca_eval import making
from tests.evaluate.alpaca_eval.making import annotation

N = 40


def rows(n: int = N, seed: int = 0, **changes: Any) -> list[making.Row]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 60, n)
    return [annotation(i, float(1 + rng.uniform()), **({"output_2": "c" * int(lengths[i])} | changes)) for i in range(n)]


def line(folder: Path, given: list[making.Row], inputs: Inputs | None = None, outputs: Any = None) -> Measured:
    (judged,) = files.read_annotations(making.write(folder, "annotations.json", given))
    told = files.read_outputs(making.write(folder, "outputs.json", outputs)) if outputs is not None else None
    return measure(judged, inputs or Inputs(control="none"), told)


def official(n: int = N) -> Inputs:
    rng = np.random.default_rng(9)
    return Inputs(
        difficulty=rng.normal(size=n), gamed=Gamed(rng.uniform(size=30), rng.normal(size=30), rng.normal(size=30)), c=2.0
    )


# ── plain win rates ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_win_rates_by_hand() -> None:
    found = win_rate(np.array([1.0, 0.5, 0.25, np.nan, 0.0, 0.75]))
    assert found.win_rate == pytest.approx(50)
    # deviations .5 0 −.25 −.5 .25: variance .625 / 4, over five rows
    assert found.standard_error == pytest.approx(100 * (0.625 / 4 / 5) ** 0.5)
    assert (found.n_wins, found.n_wins_base, found.n_draws, found.n_total) == (2, 2, 1, 5)
    assert found.discrete_win_rate == pytest.approx(50)


@pytest.mark.parametrize(("given", "rate", "error"), [([], None, None), ([0.75], 75, None)])
def test_too_few_rows_have_no_error(given: list[float], rate: float | None, error: None) -> None:
    found = win_rate(np.array(given))
    assert (found.win_rate, found.standard_error, found.n_total) == (rate, error, len(given))


def test_seen_from_the_baseline_wins_are_losses() -> None:
    values = np.random.default_rng(0).uniform(size=50)
    one, other = win_rate(values), win_rate(1 - values)
    assert one.win_rate is not None
    assert other.win_rate == pytest.approx(100 - one.win_rate)
    assert (one.n_wins, one.n_wins_base) == (other.n_wins_base, other.n_wins)
    assert one.standard_error == pytest.approx(other.standard_error)


# ── the position ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_gap_is_what_standing_first_adds(tmp_path: Path) -> None:
    given = [annotation(i, 1.75 if files.shown_first(f"instruction {i}") else 1.25) for i in range(N)]
    found = line(tmp_path, given)
    assert found.position_gap == pytest.approx(0.5)
    assert found.position_gap_ci == pytest.approx((0.5, 0.5))


def test_a_judge_that_always_takes_the_first_has_a_gap_of_one(tmp_path: Path) -> None:
    given = [annotation(i, 2 if files.shown_first(f"instruction {i}") else 1) for i in range(N)]
    assert line(tmp_path, given).position_gap == pytest.approx(1)


def test_there_is_no_gap_where_one_order_never_came(tmp_path: Path) -> None:
    given = [annotation(i) for i in range(N) if files.shown_first(f"instruction {i}")]
    found = line(tmp_path, given)
    assert (found.position_gap, found.position_gap_ci) == (None, None)


def test_both_orders_of_our_own_annotations_make_the_gap(tmp_path: Path) -> None:
    own = {files.WHEN_FIRST: 1.6, files.WHEN_SECOND: 1.2}
    found = line(tmp_path, [annotation(i, 1.4, **own) for i in range(6)])
    assert found.position_gap == pytest.approx(0.4)


# ── intervals ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_interval_is_the_clustered_bootstrap_of_the_mean(tmp_path: Path) -> None:
    from starling import stats

    given = rows()
    given[1]["instruction"] = given[0]["instruction"]
    found = line(tmp_path, given)
    values = [100 * (row["preference"] - 1) for row in given]
    expected = stats.bootstrap_mean(values, [row["instruction"] for row in given], resamples=2000, seed=0)
    assert found.win_rate_ci == pytest.approx((expected.low, expected.high))
    assert found.clusters == N - 1
    assert any("stands in another row too" in note for note in found.notes)


def test_the_length_controlled_interval_holds_its_rate(tmp_path: Path) -> None:
    found = line(tmp_path, rows(), official())
    assert found.lc_ci is not None
    assert found.lc_win_rate is not None
    assert found.lc_ci[0] < found.lc_win_rate < found.lc_ci[1]


def test_annotating_everything_twice_narrows_no_interval(tmp_path: Path) -> None:
    once, twice = line(tmp_path, rows(), official()), line(tmp_path, rows() + rows(), official(2 * N))
    assert twice.win_rate_ci == pytest.approx(once.win_rate_ci)
    assert twice.plain.standard_error is not None
    assert once.plain.standard_error is not None
    assert twice.plain.standard_error < 0.75 * once.plain.standard_error  # the official error believes it


# ── which length control ─────────────────────────────────────────────────────────────────────────────────────────────


def test_without_its_files_the_length_control_has_a_reason(tmp_path: Path) -> None:
    full = official()
    for lacking, said in (("difficulty", "--difficulty"), ("gamed", "--gamed")):
        found = line(tmp_path, rows(), dataclasses.replace(full, **{lacking: None}))  # type: ignore[arg-type]
        assert (found.lc_win_rate, found.lc_standard_error, found.lc_ci) == (None, None, None)
        assert said in found.lc_reason
        assert found.plain.win_rate is not None


def test_variants(tmp_path: Path) -> None:
    full = official()
    found = {
        control: line(tmp_path, rows(), dataclasses.replace(full, control=control))  # type: ignore[arg-type]
        for control in ("auto", "full", "noreg", "minimal", "none")
    }
    variants = {name: one.controlled.variant if one.controlled else None for name, one in found.items()}
    assert variants == {"auto": "full", "full": "full", "noreg": "noreg", "minimal": "minimal", "none": None}
    assert found["auto"].lc_win_rate == found["full"].lc_win_rate
    assert len({found[name].lc_win_rate for name in ("full", "noreg", "minimal")}) == 3


def test_other_instructions_get_the_minimal_one_and_are_told(tmp_path: Path) -> None:
    found = line(tmp_path, rows(dataset="my own"), official())
    assert found.controlled is not None
    assert found.controlled.variant == "minimal"
    assert any("not the official instructions" in note for note in found.notes)


def test_without_a_dataset_the_difficulties_say_which_instructions_these_are(tmp_path: Path) -> None:
    given, without = line(tmp_path, rows(dataset=""), official()), line(tmp_path, rows(dataset=""), Inputs(c=2.0))
    assert (given.controlled and given.controlled.variant, without.controlled and without.controlled.variant) == (
        "full", "minimal",
    )  # fmt: skip
    assert any("not the official instructions" in note for note in without.notes)


def test_more_rows_than_difficulties_are_no_keyerror(tmp_path: Path) -> None:
    found = line(tmp_path, rows(), official(N - 3))
    assert found.lc_win_rate is None
    assert "3 of 40 rows have no difficulty" in found.lc_reason


def test_after_a_missing_row_the_official_difficulty_is_the_next_ones(tmp_path: Path) -> None:
    baseline = [{"instruction": f"instruction {i}", "output": "b" * 10, "generator": "base"} for i in range(N)]
    given = rows()
    del given[5]
    order = files.read_outputs(making.write(tmp_path, "base.json", baseline))
    by_row = dataclasses.replace(official(), baseline=order)
    rightly = dataclasses.replace(by_row, difficulty_by="instruction")
    shifted = line(tmp_path, given, by_row)
    right = line(tmp_path, given, rightly)
    assert any("34 of 39 rows have another instruction's difficulty" in note for note in shifted.notes)
    assert not any("difficulty" in note for note in right.notes)
    assert shifted.outcomes["not_annotated"] == right.outcomes["not_annotated"] == 1
    # the same as moving the difficulties by hand
    assert by_row.difficulty is not None
    moved = dataclasses.replace(by_row, difficulty=np.delete(by_row.difficulty, 5), baseline=None)
    assert right.lc_win_rate == pytest.approx(line(tmp_path, given, moved).lc_win_rate)
    assert right.lc_win_rate != pytest.approx(shifted.lc_win_rate, abs=1e-6)


def test_by_instruction_the_order_must_be_known(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="order of the instructions"):
        line(tmp_path, rows(), dataclasses.replace(official(), difficulty_by="instruction"))


def test_equal_preferences_and_single_rows_are_degenerate_not_nan(tmp_path: Path) -> None:
    for given, reason in (([annotation(i, 1.25) for i in range(6)], "all preferences are 1.25"), ([annotation(0)], "1 rows")):
        found = line(tmp_path, given, official())
        assert found.lc_win_rate is None
        assert reason in found.lc_reason
        assert found.plain.win_rate == pytest.approx(25)


def test_no_preference_at_all(tmp_path: Path) -> None:
    found = line(tmp_path, [annotation(i, None) for i in range(3)], official())
    assert (found.plain.win_rate, found.win_rate_ci, found.lc_win_rate, found.clusters) == (None, None, None, 0)
    assert found.outcomes == {"no_preference": 3}


def test_the_baseline_itself_is_fifty_by_definition(tmp_path: Path) -> None:
    given = [annotation(i, 1.5, generator_2="base", output_2="b" * 10) for i in range(6)]
    found = line(tmp_path, given, official())
    assert (found.lc_win_rate, found.lc_reason) == (50, "")
    renamed = line(tmp_path, [row | {"generator_2": "twin"} for row in given], official())
    assert renamed.lc_win_rate == 50


# ── files that do not belong together ────────────────────────────────────────────────────────────────────────────────


def outputs_of(given: list[making.Row]) -> list[dict[str, str]]:
    return [{"instruction": r["instruction"], "output": r["output_2"], "generator": "cand"} for r in given]


def test_mean_length_is_that_of_all_outputs_cut_to_a_whole_number(tmp_path: Path) -> None:
    given = [annotation(i) for i in range(2)]
    more = [*outputs_of(given), {"instruction": "unjudged", "output": "c" * 8, "generator": "cand"}]
    found = line(tmp_path, given, outputs=more)
    assert found.avg_length == 3  # (1 + 2 + 8) / 3
    assert found.outcomes["not_annotated"] == 1


def test_outputs_of_another_run_are_refused(tmp_path: Path) -> None:
    given = rows()
    other = [row | {"output": row["output"] + "!"} for row in outputs_of(given)]
    with pytest.raises(InputError, match="None of the 40 annotated answers"):
        line(tmp_path, given, outputs=other)


def test_outputs_that_differ_in_part_are_counted(tmp_path: Path) -> None:
    given = rows()
    other = outputs_of(given)
    other[3]["output"] += "!"
    found = line(tmp_path, given, outputs=other)
    assert found.outcomes["answer_differs"] == 1


# ── the table ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    """Two models that differ by a tenth on every instruction, and one that is as good as the first."""
    write = partial(making.write, tmp_path)
    first = rows()
    second = [row | {"generator_2": "worse", "preference": max(1.0, row["preference"] - 0.1)} for row in first]
    return [
        write("a.json", first), write("b.json", second), write("c.json", [row | {"generator_2": "twin"} for row in first]),
    ]  # fmt: skip


def test_models_are_compared_on_the_same_instructions(three: list[Path]) -> None:
    lines, found = from_files.evaluate(Files(annotations=three), Inputs(control="none"))
    gaps = {(gap.first, gap.second): gap for gap in found.differences}
    worse = gaps["cand", "worse"]
    assert worse.difference == pytest.approx((lines[0].plain.win_rate or 0) - (lines[1].plain.win_rate or 0))
    assert worse.p_adjusted < 0.001
    twin = gaps["cand", "twin"]
    assert (twin.difference, twin.ci, twin.p) == (0, (0, 0), 1)
    assert [one.model for one in found.models] == ["cand", "twin", "worse"]


def test_the_table_can_be_written_and_read(three: list[Path], tmp_path: Path) -> None:
    from starling.evaluate import result_files

    _, found = from_files.evaluate(Files(annotations=three), dataclasses.replace(official(), control="noreg"))
    result_files.write_result(tmp_path / "result.json", found)
    assert result_files.read_result(tmp_path / "result.json").models == found.models
    assert found.judge is not None
    assert (found.judge.calls, found.judge.unparsed_share, found.judge.dollars) == (3 * N, 0, pytest.approx(3 * N * 0.01))
    assert found.benchmark == table.WORD


def test_the_judges_gap_is_that_of_all_models_together(three: list[Path]) -> None:
    lines, found = from_files.evaluate(Files(annotations=[three[0], three[2]]), Inputs(control="none"))
    assert found.judge is not None
    assert found.judge.position_gap == pytest.approx(lines[0].position_gap)
    assert found.judge.position_gap_ci == pytest.approx(lines[0].position_gap_ci)  # the same answers twice narrow nothing
    _, mixed = from_files.evaluate(Files(annotations=three[:2]), Inputs(control="none"))
    both = [line.position_gap or 0 for line in from_files.evaluate(Files(annotations=three[:2]), Inputs(control="none"))[0]]
    assert mixed.judge is not None
    assert mixed.judge.position_gap == pytest.approx(sum(both) / 2)


def test_another_baseline_turns_the_table(three: list[Path], tmp_path: Path) -> None:
    difficulty = "index,instruction_difficulty\n" + "".join(f"{i},{i / 20 - 1}\n" for i in range(N))
    given = Files(annotations=three, difficulty=making.write(tmp_path, "d.csv", difficulty))
    lines, found = from_files.evaluate(given, Inputs(control="noreg", c=5.0), "worse")
    by_name = {one.model: one for one in lines}
    assert by_name["worse"].lc_win_rate == 50
    assert by_name["cand"].lc_win_rate == pytest.approx(by_name["twin"].lc_win_rate)
    assert (by_name["cand"].lc_win_rate or 0) > 50
    assert found.differences == ()
    with pytest.raises(UsageError, match="no weights of 'nobody'"):
        from_files.evaluate(given, Inputs(control="noreg", c=5.0), "nobody")
    with pytest.raises(UsageError, match="no weights of 'worse'"):
        from_files.evaluate(given, Inputs(control="minimal", c=5.0), "worse")


def test_files_of_different_models_are_not_mixed(three: list[Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="two sets of annotations of 'cand'"):
        from_files.evaluate(Files(annotations=[three[0], three[0]]), Inputs())
    stranger = making.write(tmp_path, "o.json", [{"instruction": "x", "output": "y", "generator": "stranger"}])
    with pytest.raises(InputError, match="no annotations here"):
        from_files.evaluate(Files(annotations=three, outputs=[stranger]), Inputs())
    with pytest.raises(InputError, match="these are the outputs of 'stranger'"):
        from_files.evaluate(Files(annotations=three, baseline=stranger), Inputs())


def test_a_leaderboard_keeps_the_models_that_were_on_it(three: list[Path], tmp_path: Path) -> None:
    lines, _ = from_files.evaluate(Files(annotations=three), Inputs(control="none"))
    files.write_leaderboard(tmp_path / "old.csv", {"cand": {"win_rate": 1.0, "mode": "verified"}, "older": {"win_rate": 99.0}})
    from_files.write_leaderboard(tmp_path / "new.csv", lines, tmp_path / "old.csv")
    found = files.read_leaderboard(tmp_path / "new.csv")
    assert list(found) == ["older", "cand", "twin", "worse"] or list(found) == ["older", "twin", "cand", "worse"]
    assert found["cand"]["mode"] == "verified"
    assert found["cand"]["win_rate"] == lines[0].plain.win_rate
    assert found["twin"]["mode"] == "community"
