"""The table: ranks, anchors, what intervals are relative to, parts, win rates."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from starling.errors import InputError, UsageError
from starling.ratings.battles import Battles, Named, of_scores
from starling.ratings.bradley_terry import Scale, bradley_terry, pair_sums
from starling.ratings.intervals import sandwich
from starling.ratings.standings import Table, Wanted, ranked, rate, rate_parts, win_matrix


def some_battles(seed: int = 0, count: int = 2000) -> Battles:
    rng = np.random.default_rng(seed)
    strength = np.array([0.0, 1.0, -1.0, 0.5])
    a = rng.integers(0, 4, count)
    b = (a + rng.integers(1, 4, count)) % 4
    wins = rng.random(count) < 1 / (1 + np.exp(strength[b] - strength[a]))
    scores = np.where(rng.random(count) < 0.2, 0.5, wins).astype(np.float32)
    counts = rng.integers(1, 200, (2, count, 4)).astype(np.float32)
    return Battles(
        models=("mid", "top", "low", "good"),
        a_N=a.astype(np.int32),
        b_N=b.astype(np.int32),
        score_a_N=scores,
        prompt=Named(names=tuple(map(str, range(50))), codes_N=rng.integers(0, 50, count).astype(np.int32)),
        category=Named(names=("maths", "", "jokes"), codes_N=rng.choice(3, count, p=[0.6, 0.1, 0.3]).astype(np.int32)),
        time_N=np.arange(count) * 1.0,
        style_a_NF=counts[0],
        style_b_NF=counts[1],
    )


def column(table: Table, name: str) -> dict[str, object]:
    return {one.model: getattr(one, name) for one in table.standings}


def test_ranks_by_hand() -> None:
    low_M, high_M = np.array([90.0, 50.0, 40.0, 45.0]), np.array([100.0, 95.0, 60.0, 49.0])
    # The second overlaps with the first and all; the last one's 49 is below 50 and 90.
    assert ranked(low_M, high_M) == ([1, 1, 2, 3], [2, 3, 4, 4])
    assert ranked(np.array([1.0, 1.0]), np.array([1.0, 1.0])) == ([1, 1], [2, 2])


def test_a_table_by_its_parts() -> None:
    battles = some_battles()
    fit = bradley_terry(battles)
    table = rate(battles, Wanted())
    assert [one.model for one in table.standings] == ["top", "good", "mid", "low"]
    assert column(table, "rating") == pytest.approx(dict(zip(fit.models, fit.rating_M, strict=True)))
    assert np.mean([one.rating for one in table.standings]) == pytest.approx(1000)
    low_M, high_M = sandwich(fit, battles).bounds()
    points = 400 / np.log(10)
    for i, name in enumerate(fit.models):
        assert column(table, "ci")[name] == pytest.approx((1000 + points * low_M[i], 1000 + points * high_M[i]))
    assert sum(column(table, "battles").values()) == 2 * 2000  # type: ignore[arg-type]
    assert (table.battles, table.clusters, table.interval, table.relative_to) == (2000, 2000, "sandwich", "mean")
    # A model's share of its battles, and the mean of what its rating predicts against each other.
    top = (battles.a_N == 1) | (battles.b_N == 1)
    share = np.where(battles.a_N == 1, battles.score_a_N, 1 - battles.score_a_N)[top].mean()
    assert column(table, "win_rate")["top"] == pytest.approx(share)
    predicted = [1 / (1 + np.exp(fit.strength_M[j] - fit.strength_M[1])) for j in (0, 2, 3)]
    assert column(table, "expected_win_rate")["top"] == pytest.approx(np.mean(predicted))
    found = json.loads(json.dumps(table.as_json(), allow_nan=False))
    assert next(iter(found)) == "ratings"
    assert set(found["ratings"][0]) >= {"model", "rating", "ci", "rank", "rank_ci", "battles", "win_rate", "sd"}


@pytest.mark.parametrize("interval", ["sandwich", "bootstrap"])
def test_an_anchor_moves_the_table_and_nothing_else(interval: str) -> None:
    battles = some_battles()
    wanted = Wanted(interval=interval, rounds=200)  # type: ignore[arg-type]
    plain, moved = rate(battles, wanted), rate(battles, replace(wanted, anchor=("low", 500.0)))
    shift = 500 - plain.standings[3].rating
    for one, other in zip(plain.standings, moved.standings, strict=True):
        assert one.ci is not None
        assert other.rating == pytest.approx(one.rating + shift)
        assert other.ci == pytest.approx((one.ci[0] + shift, one.ci[1] + shift))
        assert (other.rank_ci, other.sd) == (one.rank_ci, one.sd)
    assert moved.standings[3].rating == pytest.approx(500)


@pytest.mark.parametrize("interval", ["sandwich", "bootstrap"])
def test_intervals_relative_to_a_model_are_wider_but_ranks_stay(interval: str) -> None:
    battles = some_battles(count=120)  # so few that ranks are open
    wanted = Wanted(interval=interval, rounds=400)  # type: ignore[arg-type]
    plain, relative = rate(battles, wanted), rate(battles, replace(wanted, relative_to="mid"))
    assert column(plain, "rank_ci") == column(relative, "rank_ci")
    assert column(plain, "rating") == column(relative, "rating")
    edges = np.array([one.ci for one in relative.standings]).T
    assert ranked(edges[0], edges[1]) != ranked(*np.array([one.ci for one in plain.standings]).T)
    widths = {n: ci[1] - ci[0] for n, ci in column(relative, "ci").items()}  # type: ignore[index]
    assert widths["mid"] == pytest.approx(0, abs=1e-6)
    for name in ("top", "low", "good"):
        ci = column(plain, "ci")[name]
        assert widths[name] > 1.2 * (ci[1] - ci[0])  # type: ignore[index]


def test_another_scale_is_the_same_table() -> None:
    battles = some_battles()
    plain, other = rate(battles, Wanted()), rate(battles, Wanted(scale=Scale(points=1, base=np.e, initial=0)))
    points = 400 / np.log(10)
    for one, two in zip(plain.standings, other.standings, strict=True):
        assert (one.rating - 1000) / points == pytest.approx(two.rating)
        assert (one.model, one.rank_ci) == (two.model, two.rank_ci)


def test_parts_are_rated_alone_and_say_why_where_they_are_not() -> None:
    battles = some_battles()
    assert battles.category is not None
    maths = battles.kept(battles.category.codes_N == 0)
    lonely = replace(battles, score_a_N=np.where(battles.category.codes_N == 2, battles.a_N > battles.b_N, battles.score_a_N))
    parts = rate_parts(replace(lonely, score_a_N=lonely.score_a_N.astype(np.float32)), "category", Wanted())
    assert list(parts) == ["maths", "jokes", "unknown"]
    assert parts["maths"] == rate(maths, Wanted())
    assert isinstance(parts["unknown"], Table)
    assert isinstance(parts["jokes"], str)
    assert "none of a later group ever beat one of an earlier: (good), (low), (top), (mid)" in parts["jokes"]
    anchored = rate_parts(of_parts(), "category", Wanted(anchor=("z", 1000.0)))
    assert anchored["one"] == "z has no vote here"
    assert isinstance(anchored["two"], Table)
    with pytest.raises(InputError, match="do not say their language"):
        rate_parts(battles, "language", Wanted())


def of_parts() -> Battles:
    battles = of_scores([("x", "y", 1.0), ("y", "x", 1.0), ("x", "y", 0.5), ("y", "z", 1.0), ("z", "y", 1.0)])
    return replace(battles, category=Named(names=("one", "two"), codes_N=np.array([0, 0, 0, 1, 1], np.int32)))


def test_notes_say_what_a_reader_must_know() -> None:
    battles = some_battles()
    assert rate(battles, Wanted()).notes == ()
    assert rate(battles, Wanted(cluster="prompt")).notes == ()
    few = replace(battles, prompt=Named(names=("p", ""), codes_N=(battles.a_N > 1).astype(np.int32)))
    notes = rate(few, Wanted(cluster="prompt")).notes
    assert notes[0] == "only 2 prompts: the intervals are too narrow"
    assert "votes do not say their prompt: they count as one cluster" in notes[1]
    assert "a ridge of 0.5" in rate(battles, Wanted(ridge=0.5)).notes[0]
    untimed = replace(battles, time_N=None)
    assert "in the order of the file" in rate(untimed, Wanted(method="elo", interval="none")).notes[0]
    assert rate(battles, Wanted(method="elo", interval="none")).notes == ()
    rare = of_scores([("x", "y", 1.0)] * 50 + [("y", "x", 1.0)])
    assert "of 100 rounds drew battles" in rate(rare, Wanted(interval="bootstrap", rounds=100)).notes[0]


def test_elo_with_and_without_intervals() -> None:
    battles = some_battles(count=400)
    table = rate(battles, Wanted(method="elo", interval="bootstrap", rounds=50))
    assert table.method == "elo"
    assert all(one.ci is not None and one.ci[0] < one.rating < one.ci[1] for one in table.standings)
    bare = rate(battles, Wanted(method="elo", interval="none"))
    assert all(one.ci is None and one.rank is None for one in bare.standings)
    assert column(bare, "rating") == pytest.approx(column(table, "rating"))


def test_style_control_is_in_the_table() -> None:
    battles = some_battles()
    table = rate(battles, Wanted(style=("length", "bold"), cluster="prompt"))
    assert [one["feature"] for one in table.style] == ["length", "bold"]
    assert all(one["ci"][0] < one["points"] < one["ci"][1] for one in table.style)
    assert column(table, "without_style") == pytest.approx(column(rate(battles, Wanted()), "rating"))
    assert rate(battles, Wanted(style=("length",), interval="none")).standings[0].ci is None
    drawn = rate(battles, Wanted(style=("length",), interval="bootstrap", rounds=20))
    assert drawn.interval == "bootstrap"


def test_what_does_not_go_together() -> None:
    battles = some_battles()
    for wrong in (
        Wanted(method="elo"),
        Wanted(method="elo", interval="none", cluster="prompt"),
        Wanted(method="elo", interval="none", style=("length",)),
        Wanted(style=("length",), ridge=1.0),
        Wanted(anchor=("nobody", 1.0)),
        Wanted(relative_to="nobody"),
    ):
        with pytest.raises(UsageError):
            rate(battles, wrong)
    for style in ((), ("length",)):
        with pytest.raises(InputError, match="do not say their judge"):
            rate(battles, Wanted(cluster="judge", style=style))


def test_pairs_in_the_order_of_the_table() -> None:
    battles = of_scores([("x", "y", 1.0), ("y", "x", 1.0), ("y", "x", 1.0), ("y", "z", 0.5)])
    table = rate(battles, Wanted())
    pairs = win_matrix(battles, table, pair_sums(battles))
    assert pairs["models"] == [one.model for one in table.standings]
    order = {name: i for i, name in enumerate(pairs["models"])}
    x, y, z = order["x"], order["y"], order["z"]
    assert (pairs["battles"][y][x], pairs["battles"][x][z]) == (3, 0)
    assert (pairs["won"][y][x], pairs["won"][x][y], pairs["won"][x][z]) == (pytest.approx(2 / 3), pytest.approx(1 / 3), None)
    assert pairs["predicted"][y][x] == pytest.approx(2 / 3)  # the maximum fits a chain exactly
    assert pairs["predicted"][x][z] == pytest.approx(1 / 3)
