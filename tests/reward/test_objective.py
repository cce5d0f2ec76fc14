"""From rankings and settings to targets and loss."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch

from starling.config import RewardSection
from starling.losses.ranking import bradley_terry, plackett_luce
from starling.models.encode import Encoded
from starling.records import RankedPair
from starling.reward.batches import EncodedRanking
from starling.reward.objective import Objective


def ranking(*ranks: int, name: str = "p", pairs: tuple[RankedPair, ...] = ()) -> EncodedRanking:
    return EncodedRanking(name, tuple(Encoded((1, i + 2), 1) for i in range(len(ranks))), ranks, pairs)


def pair(better: int, worse: int, confidence: float) -> RankedPair:
    return RankedPair(better=better, worse=worse, confidence=confidence, weight=2.0)


def objective(**loss: Any) -> Objective:
    return Objective(RewardSection(backbone="x", loss=loss), seed=3)


def of_name(name: str) -> Objective:
    return Objective(RewardSection.model_validate({"backbone": "x", "loss": name}), seed=3)


def test_a_name_stands_for_its_section() -> None:
    assert of_name("bradley_terry").settings == objective(type="bradley_terry").settings


def test_ties_and_top_k_reach_the_loss() -> None:
    rankings = [ranking(1, 1, 3, 4), ranking(1, 2)]
    scores_BK = torch.tensor([[0.5, -0.2, 0.1, 1.0], [0.3, 0.4, 9.0, 9.0]])
    for ties in ("efron", "breslow", "strict"):
        chosen = objective(type="plackett_luce", ties=ties, top_k=2, zero_sum=0.1)
        targets = chosen.targets(rankings, 1)
        expected = plackett_luce(scores_BK, targets, ties=ties, top_k=2, zero_sum=0.1).loss  # type: ignore[arg-type]
        assert torch.equal(chosen(scores_BK, targets, 2.0).loss, expected)
    assert targets.rank_BK.tolist() == [[1, 1, 3, 4], [1, 2, 0, 0]]


def test_margins_and_penalty_reach_the_loss() -> None:
    chosen = objective(type="bradley_terry", margin=0.25, margin_per_rank=0.5, zero_sum=0.1)
    found = chosen(torch.tensor([[1.0, 0.5, -2.0]]), chosen.targets([ranking(1, 2, 3)], 1), 1.0).loss.item()
    # differences 0.5, 3, 2.5 less 0.75, 1.25, 0.75; scores sum to −0.5
    cost = math.log1p(math.exp(0.25)) + math.log1p(math.exp(-1.75)) + math.log1p(math.exp(-1.75))
    assert found == pytest.approx(cost / 3 + 0.1 * 0.25 / 2, abs=1e-6)


def test_best_vs_worst_reads_two_answers() -> None:
    chosen = objective(type="bradley_terry", pairs="best_vs_worst", margin=0.25)
    whole = ranking(1, 2, 3, pairs=(pair(0, 2, 0.75), pair(0, 1, 1.0)))
    picked = chosen.select(whole, 5)
    assert (picked.answers, picked.ranks) == ((whole.answers[0], whole.answers[2]), (1, 3))
    assert picked.pairs == (pair(0, 1, 0.75),)
    found = chosen(torch.tensor([[1.0, 0.5]]), chosen.targets([picked], 5), 1.0).loss.item()
    assert found == pytest.approx(math.log1p(math.exp(-0.25)), abs=1e-6)
    tied = chosen.select(ranking(1, 1, 1), 5)
    assert tied.ranks == (1, 1, 1)


def test_random_pairs_follow_from_seed_step_and_prompt() -> None:
    chosen = objective(type="bradley_terry", pairs="random")
    whole = ranking(1, 2, 2, 4)
    drawn = Counter(chosen.select(whole, step).answers for step in range(600))
    assert len(drawn) == 5  # every pair of different rank, never the tied one
    assert min(drawn.values()) > 80
    assert chosen.select(whole, 7) == chosen.select(whole, 7)
    assert {chosen.select(whole, step).ranks for step in range(100)} == {(1, 2), (1, 4), (2, 4)}
    others = [Objective(RewardSection(backbone="x", loss={"type": "bradley_terry", "pairs": "random"}), 4), chosen]  # type: ignore[arg-type]
    names = (whole, ranking(1, 2, 2, 4, name="q"))
    streams = [[o.select(r, step).answers for step in range(12)] for o, r in zip(others, names, strict=True)]
    assert [chosen.select(whole, step).answers for step in range(12)] not in streams
    assert chosen.select(ranking(1, 1), 1).ranks == (1, 1)


def test_plackett_luce_and_adjacent_pairs_need_all_answers() -> None:
    whole = ranking(1, 2, 3)
    assert of_name("plackett_luce").select(whole, 1) is whole
    assert objective(type="bradley_terry", pairs="adjacent").select(whole, 1) is whole


def test_confidence_weighs_rankings_and_pairs() -> None:
    doubtful = ranking(1, 2, 3, pairs=(pair(0, 1, 0.5), pair(1, 2, 0.75)))  # 0, ½ and, without verdicts, 1
    plain = objective(type="plackett_luce")
    assert plain.weight(doubtful) == 1.0
    weighed = objective(type="plackett_luce", weights="confidence")
    assert weighed.weight(doubtful) == pytest.approx(0.5)
    assert weighed.targets([doubtful, ranking(1, 2)], 1).weight_B.tolist() == [0.5, 1.0]  # type: ignore[union-attr]
    assert weighed.normaliser([doubtful, ranking(1, 2)]) == pytest.approx(1.5)
    pairs = objective(type="bradley_terry", weights="confidence")
    assert pairs.normaliser([doubtful, ranking(1, 2)]) == pytest.approx(1.5)
    targets = pairs.targets([doubtful], 1)
    assert targets.pair_weight_BKK is not None
    torch.testing.assert_close(targets.pair_weight_BKK[0], torch.tensor([[0, 0, 1], [0, 0, 0.5], [1, 0.5, 0]]) / 3)
    scores_BK = torch.tensor([[1.0, 0.0, -1.0]])
    expected = (math.log1p(math.exp(-2)) + 0.5 * math.log1p(math.exp(-1))) / 3
    assert pairs(scores_BK, targets, 1.0).loss.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("pairs", ["all", "adjacent", "best_vs_worst", "random"])
def test_confidence_weighs_rankings_of_two_answers_too(pairs: str) -> None:
    """Nothing divides the weight of a single pair out again."""
    chosen = objective(type="bradley_terry", pairs=pairs, weights="confidence")
    rankings = [ranking(1, 2, pairs=(pair(0, 1, 0.75),)), ranking(1, 2, name="q")]
    costs = [math.log1p(math.exp(-1)), math.log1p(math.exp(2))]
    found = chosen(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), chosen.targets(rankings, 1), chosen.normaliser(rankings))
    assert found.loss.item() == pytest.approx((0.5 * costs[0] + costs[1]) / 1.5, abs=1e-6)


def test_the_weight_of_a_pair_that_is_read() -> None:
    """Of random ones the mean over the draws; a pair written the other way round, or against most verdicts, is understood."""
    pairs = (pair(1, 0, 0.25), pair(0, 2, 0.9), pair(1, 2, 0.3))  # for the better ranked: .75, .9, .3
    whole = ranking(1, 2, 3, pairs=pairs)
    assert objective(type="bradley_terry", pairs="random", weights="confidence").weight(whole) == pytest.approx((0.5 + 0.8) / 3)
    assert objective(type="bradley_terry", pairs="adjacent", weights="confidence").weight(whole) == pytest.approx(0.25)
    assert objective(type="bradley_terry", pairs="best_vs_worst", weights="confidence").weight(whole) == pytest.approx(0.8)
    assert objective(type="plackett_luce", weights="confidence").weight(whole) == pytest.approx((0.5 + 0.8) / 3)


def test_verdicts_balance_on_a_tie_and_do_not_silence_it() -> None:
    chosen = objective(type="bradley_terry", tied_pairs=True, weights="confidence")
    assert chosen.weight(ranking(1, 1, pairs=(pair(0, 1, 0.5),))) == 1.0
    weights_BKK = chosen.targets([ranking(1, 1, 3, pairs=(pair(0, 1, 0.5), pair(0, 2, 0.75)))], 1).pair_weight_BKK
    torch.testing.assert_close(weights_BKK[0], torch.tensor([[0, 1, 0.5], [1, 0, 1], [0.5, 1, 0]]) / 3)  # type: ignore[index]


@pytest.mark.parametrize("weights", ["none", "confidence"])
@pytest.mark.parametrize("pairs", ["best_vs_worst", "random"])
def test_two_answers_are_scored_and_the_loss_is_that_of_the_whole_ranking(pairs: str, weights: str) -> None:
    """Margins by rank, soft labels and weights included; the other answers get no gradient."""
    chosen = objective(type="bradley_terry", pairs=pairs, margin=0.1, margin_per_rank=0.3, soft_labels=True, weights=weights)
    known = tuple(pair(i, j, 0.6 + 0.04 * (i + j)) for i in range(4) for j in range(i + 1, 4))
    whole = [ranking(1, 2, 2, 4, name=str(i), pairs=known) for i in range(12)]
    scores_BK = torch.randn(12, 4, generator=torch.Generator().manual_seed(2)).requires_grad_()
    everything = chosen(scores_BK, chosen.targets(whole, 9), 12.0)
    everything.loss.backward()
    selected = [chosen.select(r, 9) for r in whole]
    places = torch.tensor([[r.answers.index(a) for a in s.answers] for r, s in zip(whole, selected, strict=True)])
    part = chosen(scores_BK.detach().gather(1, places), chosen.targets(selected, 9), 12.0)
    assert part.loss.item() == pytest.approx(everything.loss.item(), abs=1e-6)
    assert torch.equal(scores_BK.grad != 0, torch.zeros(12, 4, dtype=torch.bool).scatter(1, places, True))  # type: ignore[arg-type]
    assert (len({tuple(p) for p in places.tolist()}) > 1) == (pairs == "random")
    top = [float(scores_BK[i, a] > scores_BK[i, b]) for i, (a, b) in enumerate(places.tolist())]
    assert part.metrics["top1"].item() == pytest.approx(sum(top) / 12), "the better one of a pair, though it is not ranked 1"


def test_adjacent_pairs_are_the_same_here_and_in_the_loss() -> None:
    """The weights of the settings and the pairs of the loss are picked apart; both say which answers are neighbours."""
    scores_BK = torch.randn(1, 6, generator=torch.Generator().manual_seed(3))
    confident = ranking(1, 1, 3, 4, 4, 6, pairs=(pair(0, 1, 0.5),))
    for pairs in ("all", "adjacent"):
        weighed, plain = (objective(type="bradley_terry", pairs=pairs, weights=weights) for weights in ("confidence", "none"))
        found = [o(scores_BK, o.targets([confident], 1), o.normaliser([confident])).loss.item() for o in (weighed, plain)]
        assert found[0] == pytest.approx(found[1], abs=1e-6)


def test_soft_labels_come_from_the_judge_where_it_spoke() -> None:
    chosen = objective(type="bradley_terry", soft_labels=True, tied_pairs=True)
    targets = chosen.targets([ranking(1, 2, 2, pairs=(pair(0, 1, 0.75),)), ranking(1, 2)], 1)
    assert targets.prefer_BKK is not None
    assert targets.prefer_BKK[0].tolist() == [[0.5, 0.75, 1], [0.25, 0.5, 0.5], [0, 0.5, 0.5]]
    scores_BK = torch.tensor([[1.0, 0.0, 3.0], [0.0, 0.0, 0.0]])
    same = bradley_terry(scores_BK, targets, tied_pairs=True, normaliser=2.0).loss
    assert torch.equal(chosen(scores_BK, targets, 2.0).loss, same)


def test_what_teaches_nothing() -> None:
    assert not of_name("plackett_luce").informative(ranking(1, 1, 1))
    assert of_name("plackett_luce").informative(ranking(1, 1, 3))
    assert not of_name("bradley_terry").informative(ranking(1, 1))
    assert objective(type="bradley_terry", tied_pairs=True).informative(ranking(1, 1))
    unsure = ranking(1, 2, pairs=(pair(0, 1, 0.5),))
    assert not objective(type="bradley_terry", weights="confidence").informative(unsure)
    assert not objective(type="plackett_luce", weights="confidence").informative(unsure)
    assert of_name("plackett_luce").normaliser([ranking(1, 1)]) == 1.0


@pytest.mark.parametrize("loss", [{"type": "plackett_luce"}, {"type": "bradley_terry", "tied_pairs": True}])
def test_micro_batches_add_up(loss: dict[str, Any]) -> None:
    chosen = objective(**loss)
    rankings = [ranking(1, 2, 2, 4), ranking(1, 1), ranking(1, 2, 3)]
    scores_BK = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    total = chosen.normaliser(rankings)
    whole = chosen(scores_BK, chosen.targets(rankings, 1), total).loss.item()
    parts = [
        chosen(scores_BK[i : i + 1, : len(r.ranks)], chosen.targets([r], 1), total).loss.item() for i, r in enumerate(rankings)
    ]
    assert sum(parts) == pytest.approx(whole, abs=1e-6)
