"""The page of reward benchmarks: what it says, that it is whole, that it escapes, that it needs no measure in particular."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from starling.evaluate.reward_benchmarks import compare
from starling.evaluate.reward_benchmarks.compare import Verdict
from starling.evaluate.reward_benchmarks.diagnosis import Answers, diagnose
from starling.report import reward_page
from tests.html_balance import Balance

EVIL = "<script>alert(1)</script>"


def answers(k: int, n: int = 40) -> list[Answers]:
    return [
        Answers(f"c{i // 2}", tuple(float((i * 7 + j * (3 + i % 2)) % 11) for j in range(k)), tuple(float(-j) for j in range(k)),
                tuple(10 + (i * j) % 13 for j in range(k)))
        for i in range(n)
    ]  # fmt: skip


def result(name: str, value: float, k: int, **more: Any) -> dict[str, Any]:
    return {
        "benchmark": name, "accuracy": value, "ci": [value - 0.03, value + 0.03], "n": 40, "clusters": 20,
        "parts": {"one": {"accuracy": value, "ci": None, "n": 20}, EVIL: 0.5},
        "baselines": {"chance": 0.5, "longest": {"accuracy": 0.62}},
        "left_out": {"no_score": 3}, **diagnose(answers(k), seed=0, resamples=20), **more,
    }  # fmt: skip


@pytest.fixture(scope="module")
def page() -> str:
    results = [result("human_preference", 0.8, 2), result("k_wise", 0.64, 4), result("safety", 0.4, 2, missing=["xstest"])]
    return reward_page.render({f"org/model {EVIL}": results})


def text_of(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", re.sub(r"<style>.*?</style>|<svg.*?</svg>", "", html, flags=re.DOTALL)))


def whole(html: str) -> Balance:
    found = Balance()
    found.feed(html)
    assert found.open == []
    assert len(found.ids) == len(set(found.ids))
    assert set(found.targets) <= set(found.ids)
    return found


def test_the_page_is_whole_and_needs_nothing_from_outside(page: str) -> None:
    whole(page)
    assert not re.search(r'(src|href)="(?!#)', page.replace('xlink:href="#', ""))
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_equal_results_give_equal_bytes(tmp_path: Path) -> None:
    one, other = (reward_page.write_page([result("b", 0.8, 3)], tmp_path / n, model="m").read_bytes() for n in "ab")
    assert one == other


def test_numbers_baselines_and_what_was_left_out_are_there(page: str) -> None:
    said = text_of(page)
    assert "better on 1 of 3 benchmarks, worse on 1 and not clearly different on 1." in said
    assert "80.0 % (95 % interval 77.0 to 83.0 %) over 40 cases in 20 clusters." in said
    assert "62.0 % longest" in said
    assert "no score 3" in said
    assert "Without an item: xstest." in said
    for fact in ("Of pairs that differ in length", "Calibration error", "Within prompts Kendall’s τ", "Best of 4 by the reward"):
        assert fact in said
    # one overview; parts in all three, reliability in three, best of n in one, length in three
    assert page.count("<figure>") == 1 + 3 + 3 + 1 + 3


def test_trivial_scorers_stand_beside_the_parts_too() -> None:
    plain = {"benchmark": "b", "accuracy": 0.8, "ci": None, "n": 9, "parts": {"x": 0.7, "y": 0.9}, "baselines": {"chance": 0.5}}
    told = {**plain, "part_baselines": {"longest": {"x": 0.8, "y": {"accuracy": 0.2}, "z": None}}}
    assert reward_page._bars_of_parts(told) == {"x": [0.8], "y": [0.2]}
    ticks = [reward_page.render({"m": [r]}).count("Orange ticks: trivial scorers.") for r in (plain, told)]
    assert ticks == [0, 1]


def test_prior_sets_are_said_where_there_are_any() -> None:
    found = {
        "benchmark": "rewardbench",
        "accuracy": 0.8,
        "ci": None,
        "n": 9,
        "with_prior_sets": 0.75,
        "with_prior_sets_ci": [0.7, 0.8],
    }
    assert "half weight: 75.0 % (70.0 to 80.0 %)" in text_of(reward_page.render({"m": [found]}))


@pytest.mark.parametrize(("low", "high", "verdict"), [(0.63, 0.7, "better"), (0.5, 0.61, "worse"), (0.6, 0.63, "open")])
def test_better_means_the_interval_excludes_the_best_baseline(low: float, high: float, verdict: str) -> None:
    bars = [reward_page.Line("chance", 0.5, None, None), reward_page.Line("longest", 0.62, None, None)]
    assert reward_page._verdict(reward_page.Line("b", (low + high) / 2, [low, high], 9), bars) == verdict
    assert reward_page._verdict(reward_page.Line("b", 0.9, [low, high], 9), []) == ""
    assert reward_page._verdict(reward_page.Line("b", None, None, 0), bars) == ""


@pytest.mark.parametrize(("ci", "verdict"), [([0.01, 0.2], "better"), ([-0.2, -0.01], "worse"), ([-0.1, 0.1], "open")])
def test_a_paired_difference_decides_where_there_is_one(ci: list[float], verdict: str) -> None:
    line, bars = reward_page.Line("b", 0.6, [0.5, 0.7], 9), [reward_page.Line("longest", 0.6, None, None)]
    assert reward_page._verdict(line, bars, {"baseline": "longest", "difference": 0.0, "ci": ci}) == verdict


def test_what_was_cut_is_said() -> None:
    found = {"benchmark": "b", "accuracy": 0.8, "ci": None, "n": 90, "cut": 12}
    assert "12 answers stand in conversations too long" in text_of(reward_page.render({"m": [found]}))
    assert "too long" not in text_of(reward_page.render({"m": [found | {"cut": 0}]}))


def test_nothing_is_concluded_from_few_clusters() -> None:
    found = {"benchmark": "b", "accuracy": 0.8, "ci": [0.79, 0.81], "n": 90, "clusters": 2, "baselines": {"chance": 0.5}}
    assert 'class="better"' in reward_page.render({"m": [found]})
    html = reward_page.render({"m": [found | {"interval": {"few_clusters": True}}]})
    assert 'class="better"' not in html
    assert "So few clusters make intervals too narrow" in text_of(html)
    assert "the model is better" not in text_of(html)


def test_first_places_and_tau_are_said() -> None:
    found = {
        "benchmark": "kwise", "accuracy": 0.8, "ci": None, "n": 9, "top1": {"accuracy": 0.5, "ci": [0.4, 0.6], "n": 9},
        "adjacent": {"accuracy": 0.6, "ci": [0.5, 0.7], "n": 9}, "kendall_tau": {"tau": 0.25, "ci": [0.2, 0.3], "n": 9},
    }  # fmt: skip
    said = text_of(reward_page.render({"m": [found]}))
    assert (
        "Best answer first 50.0 % (40.0 to 60.0 %); neighbours in order 60.0 % (50.0 to 70.0 %); Kendall’s τ 0.25 (0.200 to"
        in said
    )


def test_a_result_with_nothing_but_its_name_is_shown_as_missing() -> None:
    html = reward_page.render({"m": [{"benchmark": "rewardbench", "accuracy": None, "ci": None, "n": 0, "parts": {}}]})
    whole(html)
    assert "rewardbench" in html
    assert '<b class="">–</b>' in html


def test_several_models_side_by_side(tmp_path: Path) -> None:
    models = {f"org/{n}": [result("b", v, 3), result("other", v, 2)] for n, v in (("x", 0.8), ("y", 0.6), ("x ", 0.5))}
    outcomes = {
        name: {b: [Verdict(str(i), str(i), float(i < share)) for i in range(100)] for b in ("b", "other")}
        for name, share in zip(models, (80, 60, 58), strict=True)
    }
    found = compare.compare(outcomes, flips=2000, resamples=50)
    html = reward_page.write_comparison(models, found, tmp_path).read_text("utf-8")
    whole(html)
    said = text_of(html)
    assert "3 reward models" in said
    assert f"Of 6 paired comparisons {sum(r['different'] for r in found['pairs'])} are different" in said
    assert "+20.0" in said
    assert "Best of n, b" in said


def test_short_names_stay_different() -> None:
    names = ["org/m", "other/m", "runs/reward/a-very-long-name-of-a-model-1", "runs/reward/a-very-long-name-of-a-model-2/"]
    short = reward_page.short_names(names)
    assert len(set(short.values())) == 4
    assert all(len(s) <= 24 for s in short.values())
