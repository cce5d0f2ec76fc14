"""Every algorithm solves small problems to their known optimum, with exact expectations instead of samples.

All replies are enumerated and each counts by its probability under the policy that sampled, so nothing is random. π₀ is the base
(reference and initial policy), β the KL coefficient, r the reward of a whole reply y.

What must come out:
- With the KL penalty in the reward (or, P3O, in the objective): π*(y) ∝ π₀(y) exp(r(y)/β), the maximum of E r − β KL(π ‖ π₀).
  At the fixed point of PPO, RLOO and P3O the policy gradient is 0, so all advantages are. At that of APA anchored at the policy
  that sampled, log-ratios are 0, so again all advantages are: the same π*. Near it, an APA step fully taken leaves 1 − β/λ of
  the error. Without the penalty APA so anchored goes on to the best reply.
- APA anchored at π₀ has its fixed point where, in every state, log π/π₀ − A/λ is the same for all tokens (the gradient in the
  logits is π(b)(e_b − Σ π e), e the errors): π(b|s) ∝ π₀(b|s) exp(Q(s,b)/λ), Q being the value of π itself. For replies of one
  token that is π* with λ for β, and λ + β with a penalty β. For longer ones it is not π*: Q holds the KL still to be paid in
  later tokens with weight β, where π* has it with λ + β.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from starling.losses.masked import LossOutputs
from starling.losses.policy import KLEstimator, apa, gae, kl_k1, kl_penalty, p3o, ppo, rloo, rloo_advantages


@dataclass(frozen=True)
class Problem:
    """All replies B of some prompts to a policy that is a table of logits, one row per state."""

    base_SA: Tensor  # logits of π₀
    state_BR: Tensor
    action_BR: Tensor
    mask_BR: Tensor
    reward_B: Tensor
    prompts: int  # the first states are the prompts

    def logprobs(self, logits_SA: Tensor) -> Tensor:
        table_SA = logits_SA.log_softmax(-1)
        return torch.where(self.mask_BR, table_SA[self.state_BR, self.action_BR], 0.0)

    def best(self, beta: float) -> Tensor:
        """π*(y) ∝ π₀(y) exp(r(y)/β) of each prompt, probability_B."""
        weight_B = (self.logprobs(self.base_SA).sum(1) + self.reward_B / beta).exp()
        sum_S = torch.zeros(len(self.base_SA), dtype=torch.float64).index_add(0, self.state_BR[:, 0], weight_B)
        return weight_B / sum_S[self.state_BR[:, 0]]

    def values(self, logprobs_BR: Tensor, rewards_BR: Tensor) -> Tensor:
        """What a perfect critic says: Σ over the replies through a state of their probability from there on × rewards to come."""
        rest_BR, to_come_BR = (x.flip(1).cumsum(1).flip(1) for x in (logprobs_BR, rewards_BR))
        total_BR = torch.where(self.mask_BR, rest_BR.exp() * to_come_BR, 0.0)
        value_S = torch.zeros(len(self.base_SA), dtype=torch.float64)
        value_S = value_S.index_add(0, self.state_BR.flatten(), total_BR.flatten())
        return torch.where(self.mask_BR, value_S[self.state_BR], 0.0)


def one_token() -> Problem:
    """Three prompts, four replies of one token each."""
    base_SA = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.0, 0.0, -0.5, 0.5], [-1.0, 0.3, 0.0, 0.6]], dtype=torch.float64)
    reward_SA = torch.tensor([[1.0, 0.0, -1.0, 0.5], [-0.5, 0.5, 0.8, 0.0], [10.4, 10.0, 9.6, 10.2]], dtype=torch.float64)
    state_B, action_B = torch.cartesian_prod(torch.arange(3), torch.arange(4)).T
    return Problem(
        base_SA, state_B[:, None], action_B[:, None], torch.ones(12, 1, dtype=torch.bool), reward_SA.flatten(), prompts=3
    )


def two_tokens() -> Problem:
    """One prompt (state 0). Token 0 ends the reply at once; after 1 (state 1) or 2 (state 2) comes one of three.

    What is best to begin with depends on what follows: after 1 a good end can be found, after 2 only what π₀ rarely says.
    """
    base_SA = torch.tensor([[0.4, 0.0, 0.0], [0.0, 0.5, -0.5], [0.0, 0.8, -0.7]], dtype=torch.float64)
    replies = [(0,), *((first, second) for first in (1, 2) for second in range(3))]
    state_BR = torch.tensor([[0, reply[0] if len(reply) > 1 else 0] for reply in replies])
    action_BR = torch.tensor([[reply[0], reply[-1]] for reply in replies])
    mask_BR = torch.tensor([[True, len(reply) > 1] for reply in replies])
    reward_B = torch.tensor([0.2, 0.9, -0.4, 0.3, -0.6, -0.2, 1.2], dtype=torch.float64)
    return Problem(base_SA, state_BR, action_BR, mask_BR, reward_B, prompts=1)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors of a few numbers: threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


PROBLEMS = pytest.mark.parametrize("problem", [one_token(), two_tokens()], ids=["one token", "two tokens"])

Loss = Callable[[Tensor], Tensor]
"""From logits_SA to the loss of an iteration whose rollouts are fixed."""


def train(problem: Problem, iteration: Callable[[Tensor], Loss], *, iterations: int, steps: int, rate: float) -> Tensor:
    """Logits after plain gradient descent from π₀; `iteration` samples and scores with the policy it is given."""
    logits_SA = problem.base_SA.clone().requires_grad_()
    for _ in range(iterations):
        loss = iteration(logits_SA.detach().clone())
        for _ in range(steps):
            (gradient_SA,) = torch.autograd.grad(loss(logits_SA), logits_SA)
            with torch.no_grad():
                logits_SA -= rate * gradient_SA
    return logits_SA.detach()


def probabilities(problem: Problem, logits_SA: Tensor) -> Tensor:
    return problem.logprobs(logits_SA).sum(1).exp()


# ── with a critic ────────────────────────────────────────────────────────────────────────────────────────────────────


def with_critic(
    problem: Problem,
    beta: float,
    objective: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], LossOutputs],
    estimator: KLEstimator = "k1",
) -> Callable[[Tensor], Loss]:
    """Iterations of an objective(logprobs, old, base, advantages, weights) on advantages of GAE with a perfect critic."""
    base_BR = problem.logprobs(problem.base_SA)

    def iteration(sampling_SA: Tensor) -> Loss:
        old_BR = problem.logprobs(sampling_SA)
        rewards_BR = torch.where(problem.mask_BR, -beta * kl_penalty(estimator, old_BR, base_BR), 0.0)
        rewards_BR[torch.arange(len(rewards_BR)), problem.mask_BR.sum(1) - 1] += problem.reward_B
        values_BR = problem.values(old_BR, rewards_BR)
        advantages_BR, _ = gae(rewards_BR, values_BR, problem.mask_BR, gamma=1.0, lam=0.95)
        weights_BR = old_BR.sum(1).exp()[:, None].expand_as(old_BR)
        return lambda logits_SA: objective(problem.logprobs(logits_SA), old_BR, base_BR, advantages_BR, weights_BR).loss

    return iteration


def ppo_towards(problem: Problem, beta: float, estimator: KLEstimator) -> Tensor:
    def objective(new: Tensor, old: Tensor, base: Tensor, advantages: Tensor, weights: Tensor) -> LossOutputs:
        return ppo(new, old, advantages, problem.mask_BR, clip=0.2, normaliser=1, weights=weights)

    found = train(problem, with_critic(problem, beta, objective, estimator), iterations=100, steps=4, rate=1.0)
    return probabilities(problem, found)


@PROBLEMS
def test_ppo_reaches_the_optimum_of_reward_less_kl(problem: Problem) -> None:
    assert torch.allclose(ppo_towards(problem, 0.5, "k1"), problem.best(0.5), atol=1e-3)


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_other_estimators_than_k1_in_the_reward_do_not_hold_the_policy(estimator: KLEstimator) -> None:
    """Why docs/policy-algorithms.md says to keep k1: at the same β the first prompt's policy ends at one reply of four."""
    found, best = ppo_towards(one_token(), 0.5, estimator)[:4], one_token().best(0.5)[:4]
    assert float((best * (4 * best).log()).sum()) == pytest.approx(0.499, abs=1e-3)  # π₀ is 1/4 each
    assert found.max() > 0.99


def apa_towards(problem: Problem, anchor: str, *, lam: float, beta: float, iterations: int, steps: int) -> Tensor:
    def objective(new: Tensor, old: Tensor, base: Tensor, advantages: Tensor, weights: Tensor) -> LossOutputs:
        centre = old if anchor == "rollout" else base
        return apa(new, centre, advantages, problem.mask_BR, lam=lam, normaliser=1, weights=weights)

    return train(problem, with_critic(problem, beta, objective), iterations=iterations, steps=steps, rate=0.5)


@PROBLEMS
def test_apa_anchored_at_the_policy_that_sampled_reaches_the_optimum_of_reward_less_kl(problem: Problem) -> None:
    found = apa_towards(problem, "rollout", lam=1.0, beta=0.5, iterations=40, steps=10)
    assert torch.allclose(probabilities(problem, found), problem.best(0.5), atol=1e-3)


@PROBLEMS
def test_apa_anchored_at_the_policy_that_sampled_goes_to_the_best_reply_without_a_kl_penalty(problem: Problem) -> None:
    found = probabilities(problem, apa_towards(problem, "rollout", lam=0.2, beta=0.0, iterations=60, steps=10))
    for prompt in range(problem.prompts):
        of_prompt = problem.state_BR[:, 0] == prompt
        best = torch.where(of_prompt, problem.reward_B, -torch.inf).argmax()
        assert found[best] > 0.99


@PROBLEMS
@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_apa_anchored_at_the_initial_policy_reaches_its_fixed_point(problem: Problem, beta: float) -> None:
    lam = 0.5
    found = apa_towards(problem, "initial", lam=lam, beta=beta, iterations=100, steps=4).log_softmax(-1)
    base = problem.base_SA.log_softmax(-1)
    # from the last state to the first: Q of a token that ends is its reward, of another the value of π after it, KL paid
    q_SA = torch.zeros_like(base)
    value_S = torch.zeros(len(base), dtype=torch.float64)
    expected = torch.zeros_like(base)
    for s in reversed(range(len(base))):
        for b in range(len(problem.reward_B)):
            states, actions = (x[b, problem.mask_BR[b]].tolist() for x in (problem.state_BR, problem.action_BR))
            if s in states:
                at = states.index(s)
                ends = at == len(states) - 1
                q_SA[s, actions[at]] = problem.reward_B[b] if ends else value_S[states[at + 1]]
        expected[s] = (base[s] + q_SA[s] / (lam + beta)).log_softmax(-1)
        value_S[s] = (expected[s].exp() * (q_SA[s] - beta * (expected[s] - base[s]))).sum()
    assert torch.allclose(found.exp(), expected.exp(), atol=1e-3)
    one_token_each = problem.mask_BR.shape[1] == 1
    assert torch.allclose(probabilities(problem, found), problem.best(lam + beta), atol=1e-3) is one_token_each


@pytest.mark.parametrize(("size", "beta"), [(0.6, 0.0), (0.8, 0.0), (0.5, 0.3), (0.7, 0.3)])
def test_an_apa_step_fully_taken_from_the_initial_policy_overshoots_by_the_kl(size: float, beta: float) -> None:
    """Near its fixed point such a step turns an error x into −(β/λ + K)/(1 − K) x, K = KL(π ‖ π₀) there.

    For K above (1 − β/λ)/2 that is more than x: then only steps that are not fully taken converge. Two replies, reward ±size.
    """
    lam = 0.5
    base = torch.full((2,), 0.5, dtype=torch.float64).log()
    reward = torch.tensor([size, -size], dtype=torch.float64)
    fixed = (base + reward / (lam + beta)).log_softmax(-1)
    kl = float((fixed.exp() * (fixed - base)).sum())

    def policy(margin: Tensor) -> Tensor:
        return torch.stack([margin, torch.zeros_like(margin)]).log_softmax(0)

    before, at = 1e-5, fixed[0] - fixed[1]  # the difference of the two logits is the one free number
    old = policy(at + before)
    penalised = reward - beta * kl_k1(old, base)
    advantages = penalised - (old.exp() * penalised).sum()
    margin = at + before
    for _ in range(6):  # Newton
        margin = margin.detach().requires_grad_()
        loss = apa(
            policy(margin)[None],
            base[None],
            advantages[None],
            torch.tensor([[True, True]]),
            lam=lam,
            normaliser=1,
            weights=old.exp()[None],
        ).loss
        (slope,) = torch.autograd.grad(loss, margin, create_graph=True)
        (curvature,) = torch.autograd.grad(slope, margin)
        margin = margin - slope / curvature
    after = float((margin - at).detach())
    assert after / before == pytest.approx(-(beta / lam + kl) / (1 - kl), rel=1e-3)
    assert (abs(after) > before) is (size > 0.6)


# ── without a critic ─────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Pairs:
    """All pairs of different replies to a prompt; rows 2i and 2i + 1 are pair i. (A reply beside itself teaches nothing.)"""

    row_N: Tensor
    group_N: Tensor

    @classmethod
    def of(cls, problem: Problem) -> Pairs:
        pairs = torch.combinations(torch.arange(len(problem.reward_B)))
        start_P2 = problem.state_BR[:, 0][pairs]
        pairs = pairs[start_P2[:, 0] == start_P2[:, 1]]
        return cls(pairs.flatten(), torch.arange(len(pairs)).repeat_interleave(2))

    def chance(self, old_BR: Tensor) -> Tensor:
        """Of each row's pair, in either order."""
        p_P2 = old_BR.sum(1).exp()[self.row_N].view(-1, 2)
        return (2 * p_P2.prod(1)).repeat_interleave(2)


@PROBLEMS
@pytest.mark.parametrize(("clip", "steps"), [(None, 1), (0.2, 4)])
def test_rloo_reaches_the_optimum_of_reward_less_kl(problem: Problem, clip: float | None, steps: int) -> None:
    beta, pairs = 0.5, Pairs.of(problem)
    base_BR, mask_NR = problem.logprobs(problem.base_SA), problem.mask_BR[pairs.row_N]

    def iteration(sampling_SA: Tensor) -> Loss:
        old_BR = problem.logprobs(sampling_SA)
        reward_B = problem.reward_B - beta * kl_k1(old_BR, base_BR).sum(1)
        advantages_N = rloo_advantages(reward_B[pairs.row_N], pairs.group_N)
        weights_NR = pairs.chance(old_BR)[:, None].expand_as(mask_NR)
        old_NR = old_BR[pairs.row_N]
        return lambda logits_SA: (
            rloo(
                problem.logprobs(logits_SA)[pairs.row_N],
                old_NR,
                advantages_N,
                mask_NR,
                clip=clip,
                normaliser=2,
                weights=weights_NR,
            ).loss
        )

    found = train(problem, iteration, iterations=400 // steps, steps=steps, rate=1.0)
    assert torch.allclose(probabilities(problem, found), problem.best(beta), atol=1e-3)


@PROBLEMS
def test_p3o_reaches_the_optimum_of_reward_less_kl(problem: Problem) -> None:
    beta, pairs = 0.5, Pairs.of(problem)
    reward_N, mask_NR = problem.reward_B[pairs.row_N], problem.mask_BR[pairs.row_N]
    base_NR = problem.logprobs(problem.base_SA)[pairs.row_N]

    def iteration(sampling_SA: Tensor) -> Loss:
        old_BR = problem.logprobs(sampling_SA)
        chance_N, old_NR = pairs.chance(old_BR), old_BR[pairs.row_N]

        def loss(logits_SA: Tensor) -> Tensor:
            new_NR = problem.logprobs(logits_SA)[pairs.row_N]
            leaf_NR = new_NR.detach().requires_grad_()
            plain = p3o(
                leaf_NR, old_NR, base_NR, reward_N, pairs.group_N, mask_NR, kl=beta, clip=0.2, weight_clip=10, normaliser=1
            ).loss
            # p3o takes no weights: each pair's gradient counts by the chance of the pair
            (gradient_NR,) = torch.autograd.grad(plain, leaf_NR)
            return (gradient_NR * chance_N[:, None] * new_NR).sum()

        return loss

    found = train(problem, iteration, iterations=100, steps=4, rate=1.0)
    assert torch.allclose(probabilities(problem, found), problem.best(beta), atol=1e-3)
