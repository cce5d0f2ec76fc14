"""Tokens drawn from hand-made distributions."""

from collections import Counter

import pytest
import torch

from starling.models.drawing import draw, nucleus

THREE = torch.log(torch.tensor([[0.1, 0.2, 0.7]]))


def evenly(count: int) -> torch.Tensor:
    """Uniforms spread evenly over [0, 1): shares come out exactly."""
    return torch.linspace(0.5 / count, 1 - 0.5 / count, count, dtype=torch.float64)


def test_draws_follow_the_distribution() -> None:
    drawn = draw(THREE.repeat(4000, 1), evenly(4000), temperature=1.0, top_p=1.0)
    share = Counter(drawn.tokens_B.tolist())
    assert [share[i] / 4000 for i in range(3)] == pytest.approx([0.1, 0.2, 0.7], abs=1e-3)
    assert torch.allclose(drawn.logprobs_B.exp(), torch.tensor([0.1, 0.2, 0.7])[drawn.tokens_B], atol=1e-6)
    assert drawn.drawn_B is drawn.logprobs_B


def test_temperature_sharpens() -> None:
    # at temperature 1/2 probabilities are squared: 0.01, 0.04, 0.49 of 0.54
    drawn = draw(THREE.repeat(5400, 1), evenly(5400), temperature=0.5, top_p=1.0)
    assert Counter(drawn.tokens_B.tolist()) == {0: 100, 1: 400, 2: 4900}
    assert float(drawn.logprobs_B[drawn.tokens_B == 0][0].exp()) == pytest.approx(1 / 54, abs=1e-6)


def test_greedy_takes_the_most_likely_at_temperature_1() -> None:
    drawn = draw(THREE, torch.zeros(1, dtype=torch.float64), temperature=0.0, top_p=0.5)
    assert drawn.tokens_B.tolist() == [2]
    assert float(drawn.logprobs_B.exp()) == pytest.approx(0.7, abs=1e-6)
    assert drawn.drawn_B is drawn.logprobs_B


@pytest.mark.parametrize("uniform", [0.0, 1 - 1e-16])
def test_a_token_of_probability_0_is_never_drawn(uniform: float) -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf], [-torch.inf, -torch.inf, 3.0]])
    drawn = draw(logits, torch.full((2,), uniform, dtype=torch.float64), temperature=1.0, top_p=1.0)
    assert drawn.tokens_B.tolist() == [1, 2]
    many = torch.full((1, 5000), 0.0)
    many[0, 4000:] = -torch.inf  # the sum of 4,000 times 1/4,000 is rounded, the last uniform still lands among them
    assert int(draw(many, torch.tensor([uniform], dtype=torch.float64), temperature=1.0, top_p=1.0).tokens_B) < 4000


@pytest.mark.parametrize("vocabulary", [1, 63, 64, 65, 5000, 8192])
def test_tokens_are_those_of_a_running_sum(vocabulary: int) -> None:
    """Against the sum over the whole vocabulary in fp64, one row of which is mostly zeros."""
    generator = torch.Generator().manual_seed(vocabulary)
    logits = torch.randn(40, vocabulary, generator=generator) * 3
    logits[20:, 1::2] = -torch.inf
    uniform = torch.rand(40, generator=generator, dtype=torch.float64)
    tokens = draw(logits, uniform, temperature=1.0, top_p=1.0).tokens_B
    cdf = torch.softmax(logits.double(), -1).cumsum(-1)
    rows = torch.arange(40)
    until, chance = cdf[rows, tokens], torch.softmax(logits.double(), -1)[rows, tokens]
    assert bool((uniform < until + 1e-6).all())
    assert bool((until - chance - 1e-6 < uniform).all())
    assert bool((chance > 0).all())


def test_nucleus_keeps_the_smallest_sufficient_set() -> None:
    # 0.7 alone is below 0.8, so 0.2 joins; 0.1 never comes. Renormalised: 7/9 and 2/9.
    drawn = draw(THREE.repeat(900, 1), evenly(900), temperature=1.0, top_p=0.8)
    assert set(drawn.tokens_B.tolist()) == {1, 2}
    assert Counter(drawn.tokens_B.tolist())[1] / 900 == pytest.approx(2 / 9, abs=2e-3)
    likely = drawn.tokens_B == 2
    assert float(drawn.drawn_B[likely][0].exp()) == pytest.approx(7 / 9, abs=1e-5)
    assert float(drawn.logprobs_B[likely][0].exp()) == pytest.approx(0.7, abs=1e-5)


def test_nucleus_of_mass_reached_exactly() -> None:
    assert nucleus(torch.tensor([[0.5, 0.25, 0.25]]), 0.5).tolist() == [[0.5, 0.0, 0.0]]
    assert nucleus(torch.tensor([[0.5, 0.25, 0.25]]), 0.500001).tolist() == [[0.5, 0.25, 0.0]]  # a tie: the lower id


def test_nucleus_with_ties_at_its_edge_and_a_vocabulary_beyond_the_first_look() -> None:
    # 2,000 equal tokens: the nucleus of 0.75 is the first 1,500
    even = nucleus(torch.full((2, 2048), 2.0**-11), 0.75)
    assert (even > 0).sum(-1).tolist() == [1536, 1536]
    assert bool((even[:, :1536] > 0).all())


@pytest.mark.parametrize("vocabulary", [7, 300, 3000])
def test_nucleus_by_sorting(vocabulary: int) -> None:
    probs = torch.softmax(torch.randn(20, vocabulary, generator=torch.Generator().manual_seed(0)) * 2, -1)
    for row, kept in zip(probs.tolist(), nucleus(probs, 0.9).tolist(), strict=True):
        mass, expected = 0.0, set()
        for i in sorted(range(vocabulary), key=lambda i: -row[i]):
            if mass >= 0.9:
                break
            expected.add(i)
            mass += row[i]
        assert {i for i, p in enumerate(kept) if p > 0} == expected
