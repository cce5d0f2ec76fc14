"""From scores to rewards, by hand; the running deviation against numpy and against any cut of the stream."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from starling.config import ShapingSection
from starling.errors import InputError, TrainingError
from starling.policy.shaping import Moments, Shaped, Shaping, repeated_share

PLAIN: dict[str, Any] = {"scale": "none", "clip": 100.0, "shift": 0.0, "unfinished": -100.0}


def shaped(
    scores: list[list[float]],
    *,
    finished: list[bool] | None = None,
    replies: list[list[int]] | None = None,
    statistics: list[dict[str, float]] | None = None,
    **settings: Any,
) -> Shaped:
    replies = replies or [[1]] * len(scores[0])
    shaping = Shaping(ShapingSection(**(PLAIN | settings)), statistics or [{}] * len(scores))
    return shaping.shape(scores, finished or [True] * len(replies), [len(r) for r in replies], replies)


# ── scale, clip, shift, cap ──────────────────────────────────────────────────────────────────────────────────────────


def test_recorded_statistics_standardise_then_clip_then_shift() -> None:
    # (−4 − 1) / 2 = −2.5, (3 − 1) / 2 = 1, (9 − 1) / 2 = 4 → clipped at 3
    found = shaped([[-4.0, 3.0, 9.0]], scale="recorded", statistics=[{"mean": 1.0, "std": 2.0}], clip=3.0, shift=0.25)
    assert found.reward_B.tolist() == [-2.25, 1.25, 3.25]
    assert found.metrics["shaping/clipped"] == pytest.approx(1 / 3)
    assert found.metrics["reward"] == pytest.approx(2.25 / 3)
    assert found.metrics["reward_std"] == pytest.approx(float(np.std([-2.25, 1.25, 3.25])))
    assert found.metrics["score"] == pytest.approx(8 / 3)  # raw, as the model gave it


def test_as_in_the_original_the_clip_comes_before_the_running_deviation() -> None:
    # clipped to ±10: 2, 10; deviation with divisor n − 1 is 8 / √2
    found = shaped([[2.0, 30.0]], scale="running_std", clip=10.0)
    deviation = 8 / 2**0.5
    assert found.reward_B == pytest.approx([2 / deviation, 10 / deviation])
    assert found.metrics["shaping/std"] == pytest.approx(deviation)
    assert found.metrics["shaping/clipped"] == 0.5


def test_no_scale_leaves_scores_but_for_the_clip() -> None:
    assert shaped([[-3.0, 0.5, 7.0]], clip=2.0).reward_B.tolist() == [-2.0, 0.5, 2.0]


def test_an_unfinished_reply_gets_at_most_the_cap_and_a_worse_one_keeps_what_it_has() -> None:
    found = shaped([[3.0, 3.0, -5.0, 1.0]], finished=[True, False, False, False], unfinished=-2.0)
    assert found.reward_B.tolist() == [3.0, -2.0, -5.0, -2.0]
    assert found.metrics["shaping/capped"] == 0.5  # the third was below it anyway


def test_the_cap_counts_after_the_shift() -> None:
    assert shaped([[-2.5]], finished=[False], shift=1.0, unfinished=-2.0).reward_B.tolist() == [-2.0]


# ── penalties ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_length_costs_beyond_what_is_free() -> None:
    replies = [[1] * 3, list(range(5)), list(range(9))]
    found = shaped([[1.0, 1.0, 1.0]], replies=replies, length_penalty=0.1, length_free=5)
    assert found.reward_B == pytest.approx([1.0, 1.0, 0.6])
    assert found.metrics["shaping/length_penalty"] == pytest.approx(0.4 / 3)


def test_repetition_costs_by_its_share_and_so_for_a_capped_reply() -> None:
    replies = [[7] * 6, [1, 2, 3, 4, 1, 2, 3, 4], [1, 2, 3, 4, 5]]
    # of 3 grams 2 are repeated; of 5 grams (1234 2341 3412 4123 1234) one; of 2 none
    assert [repeated_share(r) for r in replies] == pytest.approx([2 / 3, 1 / 5, 0.0])
    found = shaped([[3.0, 3.0, 3.0]], replies=replies, finished=[False, True, True], unfinished=-2.0, repetition_penalty=3.0)
    assert found.reward_B == pytest.approx([-4.0, 2.4, 3.0])
    assert found.metrics["shaping/repetition_penalty"] == pytest.approx((2.0 + 0.6) / 3)
    assert found.metrics["repetition"] == pytest.approx((2 / 3 + 1 / 5) / 3)


@pytest.mark.parametrize("ids", [[], [5], [5, 5, 5], [5, 5, 5, 5]])
def test_a_reply_without_two_grams_repeats_nothing(ids: list[int]) -> None:
    assert repeated_share(ids) == 0.0
    assert repeated_share([5] * 5) == 0.5  # two of them, the second one came before


# ── several models ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("combine", "wanted"),
    [("mean", [2.0, 0.0]), ("minimum", [1.0, -2.0]), ("mean_minus_std", [1.5, -1.0])],
)
def test_models_combined(combine: str, wanted: list[float]) -> None:
    found = shaped([[1.0, 2.0], [3.0, -2.0]], combine=combine, std_weight=0.5)  # std with divisor 2: 1, 2
    assert found.reward_B.tolist() == wanted
    assert found.metrics["shaping/disagreement"] == 1.5
    assert (found.metrics["score"], found.metrics["score/1"]) == (1.5, 0.5)


def test_each_model_is_standardised_by_its_own_statistics_before_they_are_combined() -> None:
    statistics = [{"mean": 0.0, "std": 1.0}, {"mean": 100.0, "std": 50.0}]
    found = shaped([[1.0], [150.0]], scale="recorded", statistics=statistics, combine="minimum")
    assert found.reward_B.tolist() == [1.0]


def test_each_model_has_its_own_running_deviation() -> None:
    found = shaped([[0.0, 2.0], [0.0, 20.0]], scale="running_std")
    assert found.reward_B == pytest.approx([0.0, 2**0.5])  # 2 / √2 and 20 / √200 are equal


def test_one_model_is_combined_with_nothing() -> None:
    for combine in ("mean", "minimum", "mean_minus_std"):
        assert shaped([[1.0, 2.0]], combine=combine).reward_B.tolist() == [1.0, 2.0]


# ── running moments ──────────────────────────────────────────────────────────────────────────────────────────────────

finite = st.floats(-1e3, 1e3)


@given(st.lists(finite, min_size=2, max_size=40), st.data())
def test_any_cut_of_the_stream_gives_numpys_deviation(values: list[float], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(values)), max_size=4)))
    moments = Moments()
    for low, high in zip([0, *cuts], [*cuts, len(values)], strict=True):
        moments = moments.merged(values[low:high])
    assert moments.count == len(values)
    assert moments.mean == pytest.approx(float(np.mean(values)), abs=1e-9)
    assert moments.squares == pytest.approx(float(np.var(values)) * len(values), rel=1e-6, abs=1e-6)
    if np.ptp(values) > 1e-3:
        assert moments.std == pytest.approx(float(np.std(values, ddof=1)), rel=1e-6)


def test_moments_far_from_zero_keep_their_digits() -> None:
    """The textbook sum of squares loses all of them here."""
    assert Moments().merged([1e9 + 1, 1e9 + 2]).merged([1e9 + 3]).std == pytest.approx(1.0)


def test_while_all_scores_are_equal_dividing_changes_nothing() -> None:
    assert shaped([[3.0]], scale="running_std").reward_B.tolist() == [3.0]
    assert shaped([[3.0, 3.0]], scale="running_std").reward_B.tolist() == [3.0, 3.0]


def test_the_moments_go_on_from_their_state_to_the_last_bit() -> None:
    settings = ShapingSection(**(PLAIN | {"scale": "running_std"}))
    rng = np.random.default_rng(0)
    batches = [rng.normal(size=(2, 5)) for _ in range(4)]
    rest: Any = ([True] * 5, [1] * 5, [[1]] * 5)
    whole = Shaping(settings, [{}, {}])
    for batch in batches:
        last = whole.shape(batch, *rest)
    first = Shaping(settings, [{}, {}])
    for batch in batches[:2]:
        first.shape(batch, *rest)
    second = Shaping(settings, [{}, {}])
    second.restore(json.loads(json.dumps(first.state)))
    for batch in batches[2:]:
        resumed = second.shape(batch, *rest)
    assert resumed.reward_B.tolist() == last.reward_B.tolist()
    assert second.state == whole.state


def test_the_order_of_replies_changes_nothing() -> None:
    scores, finished = [[0.3, 5.0, -2.0, 1.1]], [True, False, True, False]
    replies = [[1] * 5, [1, 2], [3] * 9, [4]]
    settings: dict[str, Any] = {"scale": "running_std", "length_penalty": 0.1, "repetition_penalty": 1.0, "unfinished": -1.0}
    order = [2, 0, 3, 1]
    here = shaped(scores, finished=finished, replies=replies, **settings)
    there = shaped(
        [[scores[0][i] for i in order]], finished=[finished[i] for i in order], replies=[replies[i] for i in order], **settings
    )
    assert there.reward_B == pytest.approx([here.reward_B[i] for i in order])
    assert there.metrics == pytest.approx(here.metrics)


def test_what_is_given_is_not_changed() -> None:
    scores = np.array([[1.0, 20.0]])
    Shaping(ShapingSection(scale="none", clip=2.0), [{}]).shape(scores, [False, True], [1, 1], [[1], [1]])
    assert scores.tolist() == [[1.0, 20.0]]


# ── malformed ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_model_without_statistics_is_refused_by_name_unless_none_are_needed() -> None:
    with pytest.raises(InputError, match=r"no score statistics.*second/folder.*running_std"):
        Shaping(ShapingSection(), [{"mean": 0.0, "std": 1.0}, {}], ["first", "second/folder"])
    Shaping(ShapingSection(scale="running_std"), [{}])


@pytest.mark.parametrize("std", [0.0, float("nan"), float("inf")])
def test_a_model_that_tells_no_answers_apart_is_refused(std: float) -> None:
    with pytest.raises(InputError, match="tells no two answers apart"):
        Shaping(ShapingSection(), [{"mean": 0.0, "std": std}])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_stops_and_leaves_the_moments(bad: float) -> None:
    shaping = Shaping(ShapingSection(scale="running_std"), [{}, {}])
    before = shaping.state
    with pytest.raises(TrainingError, match="reward model 2 of 2, reply 3 of 3"):
        shaping.shape([[1.0, 2.0, 3.0], [1.0, 2.0, bad]], [True] * 3, [1] * 3, [[1]] * 3)
    assert shaping.state == before


def test_a_state_of_other_models_is_refused() -> None:
    state = Shaping(ShapingSection(scale="running_std"), [{}]).state
    with pytest.raises(TrainingError, match="1 reward models, and there are 2"):
        Shaping(ShapingSection(scale="running_std"), [{}, {}]).restore(state)


@pytest.mark.parametrize(
    ("scores", "finished", "lengths", "replies"),
    [
        ([[1.0]], [True, True], [1], [[1]]),
        ([[1.0]], [True], [1, 2], [[1]]),
        ([[1.0, 2.0]], [True], [1], [[1]]),
        ([[1.0], [2.0]], [True], [1], [[1]]),
        ([[]], [], [], []),
    ],
)
def test_numbers_that_do_not_go_together_are_refused(scores: Any, finished: Any, lengths: Any, replies: Any) -> None:
    with pytest.raises(ValueError, match=r"for .* models and replies"):
        Shaping(ShapingSection(scale="none"), [{}]).shape(scores, finished, lengths, replies)
