"""New models against saved ratings: the same as rating all together when nothing moved, errors, and files that are none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from starling.errors import InputError, UsageError
from starling.ratings.battles import Battles, of_scores
from starling.ratings.bradley_terry import ELO, bradley_terry
from starling.ratings.newcomers import KnownRatings, rate_new, read_known
from starling.ratings.standings import Wanted, check_against, rate, rate_against


def some_battles(seed: int = 0, models: str = "abcde", count: int = 500) -> Battles:
    rng = np.random.default_rng(seed)
    a = rng.integers(0, len(models), count)
    b = (a + rng.integers(1, len(models), count)) % len(models)
    scores = rng.choice([0, 0.5, 1, 1], count).astype(np.float32)
    return Battles(models=tuple(models), a_N=a.astype(np.int32), b_N=b.astype(np.int32), score_a_N=scores)


def known(battles: Battles, without: str, sd: float | None = None) -> KnownRatings:
    fit = bradley_terry(battles)
    rating = {n: r for n, r in zip(fit.models, fit.rating_M.tolist(), strict=True) if n not in without}
    return KnownRatings(rating=rating, sd={} if sd is None else dict.fromkeys(rating, sd), ci={})


def test_new_models_come_where_rating_all_together_puts_them() -> None:
    battles = some_battles()
    expected = bradley_terry(battles)
    found = rate_new(battles, known(battles, "de"))
    assert found.new_M.tolist() == [False, False, False, True, True]
    assert found.fit.strength_M == pytest.approx(expected.strength_M, abs=1e-8)
    old = (battles.a_N < 3) & (battles.b_N < 3)
    assert found.between_known == old.sum()
    moved = {n: r + 77 for n, r in known(battles, "de").rating.items()}
    shifted = rate_new(battles, KnownRatings(rating=moved, sd={}, ci={}))
    assert shifted.fit.strength_M == pytest.approx(expected.strength_M + 77 / ELO.per_unit, abs=1e-8)


def test_the_error_of_one_new_model_by_hand() -> None:
    # Won 3 of 4 against a model at 1000: p = ¾, curvature ¾, Σ (S − p)² = ¾, factor 4/3 for four battles.
    battles = of_scores([("new", "old", 1.0)] * 3 + [("old", "new", 1.0)])
    found = rate_new(battles, KnownRatings(rating={"old": 1000.0}, sd={}, ci={}))
    new = found.fit.models.index("new")
    assert found.fit.rating_M[new] == pytest.approx(1000 + 400 * np.log10(3))
    assert found.sd_M[new] ** 2 == pytest.approx((4 / 3) * 0.75 / 0.75**2)
    # Against one old model its error is passed on whole.
    passed_on = rate_new(battles, KnownRatings(rating={"old": 1000.0}, sd={"old": 30.0}, ci={}))
    assert passed_on.sd_M[new] ** 2 - found.sd_M[new] ** 2 == pytest.approx((30 / ELO.per_unit) ** 2)


def test_saved_ratings_are_read_back(tmp_path: Path) -> None:
    battles = some_battles()
    table = rate(battles.kept((battles.a_N < 4) & (battles.b_N < 4)), Wanted(anchor=("a", 1200.0)))
    path = tmp_path / "old.json"
    path.write_text(json.dumps(table.as_json()), encoding="utf-8")
    saved = read_known(path)
    assert saved.rating == {one.model: one.rating for one in table.standings}
    assert saved.rating["a"] == pytest.approx(1200)
    assert saved.sd == {one.model: one.sd for one in table.standings}
    found = rate_against(battles, saved, Wanted())
    assert [one.model for one in found.standings if not one.known] == ["e"]
    for one in found.standings:
        if one.known:
            before = next(other for other in table.standings if other.model == one.model)
            assert (one.rating, one.ci, one.sd) == (before.rating, before.ci, before.sd)
    new = next(one for one in found.standings if not one.known)
    assert new.ci is not None
    assert new.sd is not None
    assert new.ci[1] - new.ci[0] == pytest.approx(2 * 1.959963984540054 * new.sd)
    assert any("between models already rated say nothing" in note for note in found.notes)
    (tmp_path / "plain.json").write_text(json.dumps(saved.rating), encoding="utf-8")
    plain = rate_against(battles, read_known(tmp_path / "plain.json"), Wanted())
    assert next(one for one in plain.standings if not one.known).rating == pytest.approx(new.rating)
    assert any("without their error" in note for note in plain.notes)


def test_new_models_that_cannot_be_put_on_the_scale() -> None:
    old = KnownRatings(rating={"a": 1000.0, "b": 1100.0}, sd={}, ci={}, source="old.json")
    with pytest.raises(InputError, match=r"none of \(the models already rated\) ever beat one of \(new\)"):
        rate_new(of_scores([("new", "a", 1.0), ("new", "b", 1.0)]), old)
    with pytest.raises(InputError, match=r"2 groups never met: \(the models already rated, new\), \(p, q\)"):
        rate_new(of_scores([("new", "a", 1.0), ("b", "new", 1.0), ("p", "q", 0.5)]), old)
    with pytest.raises(InputError, match="None of the models with a saved rating takes part"):
        rate_new(of_scores([("p", "q", 0.5)]), old)
    with pytest.raises(InputError, match="has a saved rating already"):
        rate_new(of_scores([("a", "b", 0.5)]), old)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"ratings": [{"rating": 3}]}', '{"a": "high"}', '{"a": NaN}', "3"])
def test_files_that_hold_no_ratings(tmp_path: Path, text: str) -> None:
    path = tmp_path / "old.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"saved ratings.*old\.json.*starling ratings … --json"):
        read_known(path)
    with pytest.raises(InputError, match="does not exist"):
        read_known(tmp_path / "none.json")


def test_what_does_not_go_with_saved_ratings() -> None:
    check_against(Wanted())
    for wanted in (replace(Wanted(), method="elo"), replace(Wanted(), ridge=1.0), replace(Wanted(), anchor=("a", 1.0))):
        with pytest.raises(UsageError, match="does not go with saved ratings"):
            check_against(wanted)
    with pytest.raises(UsageError, match="--by does not go"):
        check_against(Wanted(), "language")
