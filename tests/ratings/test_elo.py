"""Online Elo: by hand, against evalica, the order of time, the bootstrap."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from starling.errors import InputError
from starling.ratings import elo as module
from starling.ratings.battles import Battles, of_scores
from starling.ratings.bradley_terry import ELO, Scale
from starling.ratings.elo import elo, elo_bootstrap


def ratings(battles: Battles, **how: float) -> dict[str, float]:
    fit = elo(battles, **how)
    return dict(zip(fit.models, fit.rating_M, strict=True))


def test_two_battles_by_hand() -> None:
    assert ratings(of_scores([("x", "y", 1.0)])) == pytest.approx({"x": 1002, "y": 998})  # 4 · (1 − ½)
    expected = 1 / (1 + 10 ** ((1002 - 998) / 400))  # y's chance
    after = ratings(of_scores([("x", "y", 1.0), ("y", "x", 0.5)]))
    assert after == pytest.approx({"x": 1002 - 4 * (0.5 - expected), "y": 998 + 4 * (0.5 - expected)})
    assert ratings(of_scores([("x", "y", 1.0)]), k=32) == pytest.approx({"x": 1016, "y": 984})


def test_another_scale() -> None:
    scale = Scale(points=100, base=np.e, initial=0)
    strength_M = elo(of_scores([("x", "y", 1.0), ("x", "y", 0.0)]), k=10, scale=scale).strength_M
    first = 5.0
    second = first - 10 / (1 + np.exp(-2 * first / 100))
    assert strength_M * scale.per_unit == pytest.approx([second, -second])


def test_the_order_is_that_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    battles = of_scores([("x", "y", 1.0), ("y", "z", 1.0), ("z", "x", 1.0)])
    late_first = replace(battles, time_N=np.array([3.0, 2.0, 1.0]))
    turned = of_scores([("z", "x", 1.0), ("y", "z", 1.0), ("x", "y", 1.0)])
    assert ratings(late_first) == pytest.approx(ratings(turned))
    assert ratings(late_first) != pytest.approx(ratings(battles))
    unknown = replace(battles, time_N=np.array([3.0, np.nan, 1.0]))
    assert ratings(unknown) == pytest.approx(ratings(battles))  # then that of the file
    monkeypatch.setattr(module, "_CHUNK", 2)
    assert ratings(late_first) == pytest.approx(ratings(turned))
    with pytest.raises(InputError, match="no battle"):
        elo(of_scores([]))


def some_battles() -> Battles:
    rng = np.random.default_rng(0)
    a = rng.integers(0, 6, 3000)
    b = (a + rng.integers(1, 6, 3000)) % 6
    scores = rng.choice([0, 0.5, 1], 3000).astype(np.float32)
    return Battles(models=tuple("uvwxyz"), a_N=a.astype(np.int32), b_N=b.astype(np.int32), score_a_N=scores)


def test_parity_with_evalica() -> None:
    evalica = pytest.importorskip("evalica")
    battles = some_battles()
    words = {1.0: evalica.Winner.X, 0.0: evalica.Winner.Y, 0.5: evalica.Winner.Draw}
    first, second = ([battles.models[i] for i in codes] for codes in (battles.a_N, battles.b_N))
    expected = evalica.elo(first, second, [words[s] for s in battles.score_a_N.tolist()], k=4).scores
    assert ratings(battles) == pytest.approx(dict(expected), abs=1e-8)


def test_the_bootstrap_lies_around_the_ratings(monkeypatch: pytest.MonkeyPatch) -> None:
    battles = some_battles()
    fit = elo(battles)
    found = elo_bootstrap(fit, battles, rounds=200, seed=3)
    assert found.draws_RM is not None
    assert found.draws_RM.sum(1) == pytest.approx(np.zeros(200), abs=1e-9)
    # A stationary Elo near equals spreads by about √(K · points per unit · ¼ · 2 (S's variance) / …): some dozen points.
    assert np.abs(found.draws_RM.mean(0) - fit.strength_M).max() * ELO.per_unit < 5
    sd_M = found.sd_M() * ELO.per_unit
    assert (sd_M > 5).all()
    assert (sd_M < 20).all()
    monkeypatch.setattr(module, "_CHUNK", 500)
    again = elo_bootstrap(fit, battles, rounds=200, seed=3)
    assert again.draws_RM == pytest.approx(found.draws_RM)
    with pytest.raises(ValueError, match="two rounds"):
        elo_bootstrap(fit, battles, rounds=1)
