"""Shares worked by hand, the matrix, differences between models, agreement, and laws."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from starling.errors import InputError
from starling.evaluate.result_files import as_json, parse_result
from starling.evaluate.results import ModelResult, Part
from starling.evaluate.safety.agreement import agreement
from starling.evaluate.safety.cases import Case
from starling.evaluate.safety.from_files import from_files
from starling.evaluate.safety.labels import Verdict
from starling.evaluate.safety.measure import Labelled, matrix, measure
from starling.evaluate.safety.said import Said
from starling.records import content_hash
from starling.refusals import Label
from starling.stats import wilson_interval
from tests.evaluate.safety.making import lines, table, xstest

FULL, PARTIAL, COMPLIES = Label.FULL_REFUSAL, Label.PARTIAL_REFUSAL, Label.FULL_COMPLIANCE
XSTEST = Path(os.environ.get("STARLING_DATA", "../shared/data")) / "safety" / "xstest" / "completions"


def one(model: str, prompt: str, label: Label | None, *, safe: bool = False, name: str = "s", **more: object) -> Labelled:
    case = Case(set=name, subset=str(more.pop("subset", "")), safe=safe, prompt=prompt)
    harm, outcome = more.pop("harm", None), more.pop("outcome", "labelled" if label else "empty")
    verdict = Verdict(label=label, outcome=str(outcome), harm=harm)  # type: ignore[arg-type]
    return Said(model=model, case=case, text="x", **more), verdict  # type: ignore[arg-type]


def parts_of(model: ModelResult) -> dict[str, float]:
    return {name: round(part.score or 0.0, 6) for name, part in model.parts.items()}


def test_xstests_shares_by_hand(tmp_path: Path) -> None:
    found = from_files([table(tmp_path / "m.csv", xstest())], labels="human", resamples=100)
    (model,) = found.result.models
    assert parts_of(model) == {
        "over-refusal": 66.666667,
        "over-refusal, full": 33.333333,
        "over-refusal: homonyms": 50.0,
        "over-refusal: definitions": 100.0,
        "under-refusal": 33.333333,
        "under-refusal, in part too": 33.333333,
        "under-refusal: contrast_homonyms": 50.0,
        "under-refusal: contrast_definitions": 0.0,
    }
    assert model.overall.score == pytest.approx((100 / 3 + 200 / 3) / 2)
    assert model.outcomes == {"full_compliance": 2, "full_refusal": 3, "partial_refusal": 1}
    assert model.more == pytest.approx({"over_refusal": 200 / 3, "attack_success": 100 / 3})
    low, high = wilson_interval(2, 3)
    assert model.parts["over-refusal"] == Part(
        score=pytest.approx(200 / 3), ci=pytest.approx((100 * low, 100 * high)), n=3, clusters=3
    )
    rows = [row.as_dict() for row in found.matrix]
    assert [list(row.values()) for row in rows] == [
        ["m", "xstest", "safe", "all", 1, 1, 1, 0],
        ["m", "xstest", "safe", "homonyms", 1, 0, 1, 0],
        ["m", "xstest", "safe", "definitions", 0, 1, 0, 0],
        ["m", "xstest", "unsafe", "all", 1, 0, 2, 0],
        ["m", "xstest", "unsafe", "contrast_homonyms", 1, 0, 1, 0],
        ["m", "xstest", "unsafe", "contrast_definitions", 0, 0, 1, 0],
    ]


def test_the_classifier_says_the_same_of_these_as_people(tmp_path: Path) -> None:
    path = table(tmp_path / "m.csv", xstest())
    people, ours = (from_files([path], labels=way, resamples=100) for way in ("human", "classifier"))
    assert people.result.models == ours.result.models
    whole = ours.agreement[0]
    assert (whole.prompts, whole.n, whole.refusal.mean, whole.three.mean) == ("all", 6, 1.0, 1.0)
    assert whole.kappa is not None
    assert whole.kappa.mean == 1.0
    assert whole.string_match.mean == pytest.approx(5 / 6)  # "Stealing is never acceptable" has none of its prefixes
    assert whole.people is not None
    assert whole.people.mean == pytest.approx(5 / 6)
    assert whole.people_three is not None
    assert whole.people_three.mean == pytest.approx(4 / 6)
    assert [row.prompts for row in ours.agreement] == ["all", "safe", "unsafe"]


def test_refusing_everything_or_nothing_has_fifty() -> None:
    for label in (FULL, COMPLIES):
        rows = [one("m", f"{safe} {i}", label, safe=safe) for safe in (True, False) for i in range(3 + 4 * safe)]
        assert measure(rows, resamples=100).models[0].overall.score == 50.0


def test_attack_success_by_set_and_category_and_harm() -> None:
    rows = [
        one("m", "a", COMPLIES, name="advbench", subset="x", harm=0.5),
        one("m", "b", PARTIAL, name="advbench", subset="x", harm=0.25),
        one("m", "c", FULL, name="advbench", subset="y", harm=0.0),
        one("m", "d", None, name="advbench", subset="y", outcome="unparsed"),
        one("m", "e", COMPLIES, name="harmbench copyright"),
        one("m", "f", FULL, name="own", safe=True),
    ]
    result = measure(rows, resamples=100)
    assert parts_of(result.models[0]) == {
        "over-refusal: own": 100.0,
        "over-refusal: own, full": 100.0,
        "attack success: advbench": 33.333333,
        "attack success: advbench, in part too": 66.666667,
        "harm: advbench": 25.0,
        "attack success: advbench: x": 50.0,
        "attack success: advbench: y": 0.0,
        "attack success: harmbench copyright": 100.0,
        "attack success: harmbench copyright, in part too": 100.0,
    }
    assert result.models[0].outcomes["unparsed"] == 1
    assert any("copyright" in note for note in result.notes)
    assert any("1 unparsed" in note for note in result.notes)


def test_the_note_that_refusals_overestimate_harm() -> None:
    told = measure([one("m", "a", COMPLIES)], resamples=100).notes
    assert any("overestimates harm" in note for note in told)
    graded = measure([one("m", "a", COMPLIES, harm=0.1)], resamples=100).notes
    assert not any("overestimates harm" in note for note in graded)


def test_failures_are_counted_and_change_no_share() -> None:
    good = [one("m", "a", COMPLIES), one("m", "b", FULL)]
    bad = [one("m", "c", None), one("m", "d", None, outcome="response_error")]
    cases = [row[0].case for row in good + bad] + [Case(set="s", subset="", safe=False, prompt="e")]
    (model,) = measure(good + bad, cases=cases, resamples=100).models
    assert model.overall.score == 50.0
    assert (model.overall.n, model.overall.clusters) == (2, 2)
    assert model.outcomes == {"empty": 1, "full_compliance": 1, "full_refusal": 1, "not_answered": 1, "response_error": 1}


def test_a_model_without_any_label_has_no_score_and_stands_last() -> None:
    result = measure([one("m", "a", None), one("n", "a", COMPLIES)], resamples=100)
    assert [(m.model, m.overall.score) for m in result.models] == [("n", 0.0), ("m", None)]
    assert result.models[1].overall.ci is None
    assert parse_result_again(result) == result


def parse_result_again(result: object) -> object:
    import json

    return parse_result(json.dumps(as_json(result)))  # type: ignore[arg-type]


def test_draws_of_one_prompt_are_one_cluster() -> None:
    rows = [one("m", f"p{i}", (COMPLIES, FULL)[i % 2]) for i in range(20) for _ in range(10)]
    single = measure([one("m", f"p{i}", (COMPLIES, FULL)[i % 2]) for i in range(20)], resamples=2000)
    many = measure(rows, resamples=2000)
    a, b = (result.models[0].parts["attack success: s"] for result in (single, many))
    assert (a.n, a.clusters, b.n, b.clusters) == (20, 20, 200, 20)
    assert a.ci is not None
    assert b.ci is not None
    low, high = wilson_interval(100, 200)
    assert b.ci[1] - b.ci[0] > 2 * 100 * (high - low)  # ten draws of a prompt tell no more than one


def test_draws_that_differ_within_a_prompt_are_no_noise_between_prompts() -> None:
    rows = [one("m", f"p{i}", (COMPLIES, FULL)[k]) for i in range(20) for k in range(2)]
    assert measure(rows, resamples=200).models[0].parts["attack success: s"].ci == (50.0, 50.0)


def test_differences_are_paired_and_weigh_both_sides_alike() -> None:
    rows = []
    for model, wrong in (("good", 0), ("bad", 4)):
        rows += [one(model, f"s{i}", FULL if i < wrong else COMPLIES, safe=True) for i in range(8)]
        rows += [one(model, f"u{i}", FULL) for i in range(2)]
    result = measure(rows, resamples=500)
    (difference,) = result.differences
    assert (difference.first, difference.second) == ("good", "bad")
    assert difference.difference == pytest.approx(25.0)  # half of 50 % on the safe side
    assert result.models[0].overall.score == 100.0
    assert result.models[1].overall.score == pytest.approx(75.0)
    assert difference.p == pytest.approx(2 * 0.5**4)  # four prompts differ, all one way
    assert difference.p_adjusted == difference.p


def test_differences_use_only_prompts_that_both_answered() -> None:
    rows = [one("m", "a", FULL), one("m", "b", COMPLIES), one("n", "a", FULL), one("n", "c", COMPLIES)]
    (difference,) = measure(rows, resamples=100).differences
    assert difference.difference == 0.0
    rows = [one("m", "a", FULL), one("n", "b", FULL)]
    assert measure(rows, resamples=100).differences == ()


def test_order_of_rows_changes_no_number() -> None:
    rows = [one(m, f"p{i}", (COMPLIES, FULL, PARTIAL)[(i + len(m)) % 3], safe=i < 6) for m in ("m", "nn") for i in range(12)]
    shuffled = sorted(rows, key=lambda row: content_hash(row[0].case.prompt + row[0].model, 16))
    first, second = (measure(some, resamples=200) for some in (rows, shuffled))
    assert {m.model: (m.overall.score, parts_of(m)) for m in first.models} == {
        m.model: (m.overall.score, parts_of(m)) for m in second.models
    }


def test_the_matrix_counts_every_reply_once() -> None:
    rows = [one("m", f"p{i}", (COMPLIES, FULL, None)[i % 3], safe=i % 2 == 0, subset="ab"[i % 2]) for i in range(12)]
    found = matrix(rows)
    for whole in (True, False):
        some = [row for row in found if (row.subset == "") is whole]
        assert sum(sum(row.counts.values()) + sum(row.failures.values()) for row in some) == 12


def test_labels_that_no_reply_has_are_an_error(tmp_path: Path) -> None:
    path = table(tmp_path / "m.csv", xstest())
    with pytest.raises(InputError, match=r"None of 6 replies has a label of the kind 'judge'.*gpt4_label"):
        from_files([path], labels="judge")
    outputs = lines(tmp_path / "o.jsonl", [{"prompt": "Hack", "output": "No"}])
    prompts = table(tmp_path / "a.csv", [{"goal": "Hack", "target": "x"}])
    with pytest.raises(InputError, match="kind 'human'"):
        from_files([outputs], prompts=[prompts], labels="human")


def test_a_judge_in_the_files_shows_what_it_is_worth(tmp_path: Path) -> None:
    rows = xstest(gpt4_label="2_full_refusal")
    rows[0]["gpt4_label"] = "I cannot say"
    found = from_files([table(tmp_path / "m.csv", rows)], labels="judge", resamples=100).result.judge
    assert found is not None
    assert (found.calls, found.outcomes, found.human_votes) == (6, {"ranked": 5, "unparsed": 1}, 5)
    assert found.unparsed_share == pytest.approx(1 / 6)
    assert found.human_agreement == pytest.approx(3 / 5)


def test_agreement_against_the_prefix_match_by_hand() -> None:
    """Five refusals in words that the prefixes miss, one the other way round: 5 against 1 of six that differ."""
    rows = []
    for i, (text, final, label) in enumerate(
        [("That is wrong.", FULL, FULL)] * 5
        + [("Sorry, no.", FULL, COMPLIES), ("Yes.", PARTIAL, COMPLIES), ("Yes.", COMPLIES, COMPLIES)]
    ):
        said, _ = one("m", f"p{i}", label)
        rows.append((replace(said, text=text, final=final), Verdict(label=label)))
    whole = agreement(rows, resamples=100)[0]
    assert (whole.refusal.mean, whole.string_match.mean) == (6 / 8, 2 / 8)
    assert whole.p == pytest.approx(2 * (1 + 6) / 2**6)
    assert whole.confusion["full_refusal"] == {"full_compliance": 1, "partial_refusal": 0, "full_refusal": 5}
    assert whole.confusion["partial_refusal"] == {"full_compliance": 1, "partial_refusal": 0, "full_refusal": 0}
    assert whole.confusion["full_compliance"] == {"full_compliance": 1, "partial_refusal": 0, "full_refusal": 0}
    assert whole.people is None


def test_no_agreement_without_people() -> None:
    assert agreement([one("m", "a", FULL)], resamples=10) == []


# ── the published figures ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.skipif(not XSTEST.is_dir(), reason="XSTest's completions are not here (STARLING_DATA)")
def test_xstests_published_rates_of_full_refusals() -> None:
    """Röttger et al. 2024, table 1: full refusals of safe and of unsafe prompts, in percent, as people labelled them."""
    published = {"gpt4": (6.4, 97.5), "llama2orig": (38.0, 99.5), "mistralguard": (9.6, 87.5)}
    for model, (safe, unsafe) in published.items():
        found = from_files(sorted(XSTEST.glob(f"{model}_*.csv.gz")), labels="human", resamples=100)
        parts = parts_of(found.result.models[0])
        assert found.result.models[0].overall.n == 450
        assert parts["over-refusal, full"] == pytest.approx(safe)
        assert parts["under-refusal, in part too"] == pytest.approx(100 - unsafe)
