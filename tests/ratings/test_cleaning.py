"""Clean-up rules: what each keeps and counts, and judges whose votes are unlike the others'."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from starling.errors import InputError, UsageError
from starling.ratings.battles import Battles, Named, of_scores
from starling.ratings.cleaning import Rules, clean, outliers, within_cap


def named(values: list[str]) -> Named:
    names = tuple(dict.fromkeys(values))
    return Named(names=names, codes_N=np.array([names.index(v) for v in values], dtype=np.int32))


BATTLES = replace(
    of_scores([("x", "y", 1.0), ("y", "z", 0.5), ("z", "x", 0.0), ("x", "y", 0.0), ("y", "x", 1.0)]),
    language=named(["English", "unknown", "German", "", "english"]),
    anonymous_N=np.array([True, True, False, True, True]),
    judge=named(["j", "k", "j", "j", ""]),
    time_N=np.array([10.0, 20.0, 5.0, 86400.0, 30.0]),
)


@pytest.mark.parametrize(
    ("rules", "kept", "removed"),
    [
        (Rules(), 5, {}),
        (Rules(languages=("ENGLISH",)), 2, {"language": 3}),
        (Rules(known_language=True), 3, {"unknown_language": 2}),
        (Rules(without=("z",)), 3, {"model": 2}),
        (Rules(anonymous=True), 4, {"not_anonymous": 1}),
        (Rules(ties=False), 4, {"tie": 1}),
        (Rules(daily=1), 4, {"daily_cap": 1}),
        (Rules(languages=("english",), anonymous=True, daily=5), 2, {"language": 3, "not_anonymous": 0, "daily_cap": 0}),
        (Rules(outliers=True), 5, {"outlier_judges": 0, "outlier_judges_votes": 0}),
    ],
)
def test_each_rule_counts_what_it_removes(rules: Rules, kept: int, removed: dict[str, int]) -> None:
    battles, found = clean(BATTLES, rules)
    assert (len(battles), found) == (kept, removed)


def test_the_first_votes_of_a_day_are_the_earliest() -> None:
    # j votes at 10 s and at 5 s of the first day, and at 0 s of the second; the vote without a judge is nobody's.
    assert within_cap(BATTLES, 1).tolist() == [False, True, True, True, True]
    without_time = replace(BATTLES, time_N=np.array([np.nan, 20.0, 5.0, 6.0, 30.0]))
    assert within_cap(without_time, 1).tolist() == [True, True, True, False, True]


def test_models_left_out_have_no_number_any_more() -> None:
    assert clean(BATTLES, Rules(without=("z",)))[0].models == ("x", "y")
    with pytest.raises(UsageError, match="No vote is about nobody"):
        clean(BATTLES, Rules(without=("nobody",)))


@pytest.mark.parametrize(
    ("rules", "column"),
    [
        (Rules(languages=("English",)), "language"),
        (Rules(known_language=True), "language"),
        (Rules(anonymous=True), "names"),
        (Rules(daily=3), "judge"),
        (Rules(outliers=True), "judge"),
    ],
)
def test_rules_that_need_what_the_votes_do_not_say(rules: Rules, column: str) -> None:
    with pytest.raises(InputError, match=f"do not say .*{column}"):
        clean(of_scores([("x", "y", 1.0)]), rules)
    with pytest.raises(InputError, match="when they were cast"):
        clean(replace(BATTLES, time_N=None), Rules(daily=3))


def crowd(seed: int, judges: int = 200, votes: int = 40, models: int = 6) -> Battles:
    """Judges who all vote by the same strengths, a fifth of the votes ties."""
    rng = np.random.default_rng(seed)
    strength = np.linspace(1.5, -1.5, models)
    a = rng.integers(0, models, judges * votes)
    b = (a + rng.integers(1, models, len(a))) % models
    wins = rng.random(len(a)) < 1 / (1 + np.exp(strength[b] - strength[a]))
    scores = np.where(rng.random(len(a)) < 0.2, 0.5, wins)
    who = rng.permutation(np.repeat(np.arange(judges), votes))
    return Battles(
        models=tuple(f"m{i}" for i in range(models)),
        a_N=a.astype(np.int32),
        b_N=b.astype(np.int32),
        score_a_N=scores.astype(np.float32),
        judge=Named(names=tuple(f"j{i}" for i in range(judges)), codes_N=who.astype(np.int32)),
    )


def test_judges_who_vote_like_the_others_seldom_stand_out() -> None:
    """Each side is above 1/α at any time with a chance of α at most, so that 2 α of honest judges are the bound."""
    share = np.mean([outliers(crowd(seed)).mean() for seed in range(3)])
    assert share < 0.1


def test_judges_who_vote_the_other_way_round_or_by_side_are_found() -> None:
    battles = crowd(1)
    assert battles.judge is not None
    code_N, score_N = battles.judge.codes_N, battles.score_a_N.copy()
    against, first = code_N < 5, (code_N >= 5) & (code_N < 10)
    score_N[against] = 1 - score_N[against]
    score_N[first] = battles.a_N[first] > battles.b_N[first]  # always the one with the larger number, the weaker
    spoilt = replace(battles, score_a_N=score_N)
    out_J = outliers(spoilt)
    assert out_J[:10].sum() >= 9
    assert out_J[10:].mean() < 0.1
    kept, removed = clean(spoilt, Rules(outliers=True))
    assert removed["outlier_judges"] == out_J.sum()
    assert removed["outlier_judges_votes"] == len(battles) - len(kept) == 40 * out_J.sum()


def test_few_votes_and_votes_of_nobody_are_not_tested() -> None:
    rows = [("x", "y", 1.0)] * 200 + [("x", "y", 0.0)] * 4 + [("x", "y", 0.0)] * 9 + [("x", "y", 0.0)] * 9
    who = ["many"] * 200 + ["few"] * 4 + [""] * 9 + ["odd"] * 9
    battles = replace(of_scores(rows), judge=named(who))
    assert battles.judge is not None
    found = dict(zip(battles.judge.names, outliers(battles).tolist(), strict=True))
    assert found == {"many": False, "few": False, "": False, "odd": True}


def test_the_product_by_hand() -> None:
    """Of 20 votes on a pair 18 are wins. Two losses of one judge: (20/4)² = 25 > 20; with a win first: 25/2."""
    rows = [("x", "y", 1.0)] * 18 + [("y", "x", 1.0)] * 2 + [("x", "y", 0.5)] * 3
    who = ["j"] + [f"o{i}" for i in range(17)] + ["j", "j"] + ["j", "j", "j"]
    assert not outliers(replace(of_scores(rows), judge=named(who))).any()
    last = [*range(1, 23), 0]  # the same votes, his win at the end
    late = replace(of_scores([rows[i] for i in last]), judge=named([who[i] for i in last]))
    assert late.judge is not None
    assert [late.judge.names[j] for j in np.flatnonzero(outliers(late))] == ["j"]


def test_only_the_first_hundred_decided_votes_of_a_judge_are_looked_at() -> None:
    for before, found in ((98, True), (99, False)):
        # On p and q all are divided, so that a loss of p has the p-value ½ and changes nothing; two losses of x are too odd.
        rows = [("p", "q", 1.0)] * before + [("x", "y", 1.0)] * 18
        rows += [("x", "y", 0.5)] * 50 + [("p", "q", 0.0)] * before + [("x", "y", 0.0)] * 2
        who = [f"o{i}" for i in range(before + 18)] + ["late"] * (52 + before)
        battles = replace(of_scores(rows), judge=named(who))
        assert outliers(battles)[-1] == found


def test_a_judge_alone_on_a_pair_is_compared_with_nobody() -> None:
    battles = replace(of_scores([("x", "y", 1.0)] * 50), judge=named(["only"] * 50))
    assert not outliers(battles).any()
