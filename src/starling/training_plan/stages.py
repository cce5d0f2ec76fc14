"""The two trainings, from their settings: facts, arithmetic, decoding, and what lies in a GPU's memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from starling.config import APA, PPO, Config, FullTraining, LastLayers, LoRA, PolicySection, RewardSection, ServerEngine, Trained
from starling.forecast import ASSUMED_REPLY_TOKENS
from starling.records import Prompt
from starling.shapes import Shape
from starling.training.plan import count as count_steps
from starling.training_plan.cost import (
    BYTES_PER_LOGIT,
    LOGITS_AT_ONCE,
    Decoding,
    Fact,
    Held,
    Needs,
    activation_bytes,
    pass_flops,
    trained_parameters,
)
from starling.training_plan.inputs import Rankings, prompt_tokens, rankings_of, shape_named


def _weights(shape: Shape, whole: int, trained: int, settings: RewardSection | PolicySection, bf16: bool) -> list[Held]:
    """Of a model in training."""
    held = [Held("weights", 4.0 * whole, spread=True), Held("gradients", 4.0 * trained, spread=True)]
    moments = 8.0 * trained
    if settings.optimizer.type == "muon":  # one moment for the layers' matrices
        inside = shape.layers * (shape.layer - shape.norms) if isinstance(settings.trained, FullTraining) else 0
        moments -= 4.0 * inside
    held.append(Held("optimiser", moments, spread=True))
    if bf16:
        held.append(Held("bf16 copies of trained weights", 2.0 * trained, several=False))
        held.append(Held("two gathered layers", 4.0 * shape.layer, several=True))
    else:
        held.append(Held("two gathered layers", 8.0 * shape.layer, several=True))
    return held


def _is_bf16(settings: RewardSection | PolicySection) -> bool:
    return settings.precision != "fp32"  # auto: on a GPU


def _again(settings: RewardSection | PolicySection) -> bool:
    return settings.gradient_checkpointing != "off"  # auto: on a GPU


def _activations(shapes: Sequence[tuple[Shape, Trained]], settings: RewardSection | PolicySection, again: bool) -> float:
    """Bytes of one micro-batch; policy and critic keep theirs at the same time."""
    bf16, tokens = _is_bf16(settings), settings.micro_tokens
    return sum(activation_bytes(shape, trained, tokens, bf16=bf16, again=again) for shape, trained in shapes)


# ── the reward model ───────────────────────────────────────────────────────────────────────────────────────────────────


def ranking_cost(layout: str, k: int, prompt: float, answer: float) -> tuple[float, float]:
    """(tokens, attended pairs) of a forward pass over one ranking."""
    alone = prompt + answer
    if layout == "all_pairs":
        return k * (k - 1) * alone, k * (k - 1) * alone**2 / 2
    if layout == "sequences":
        return k * alone, k * alone**2 / 2
    return prompt + k * answer, prompt**2 / 2 + k * (prompt * answer + answer**2 / 2)


def reward_needs(config: Config, prompts: Sequence[Prompt]) -> Needs:
    settings = config.reward
    shape = shape_named(config, settings.backbone, "reward.backbone")
    found = rankings_of(config, prompts)
    guard = round(found.count * settings.guard_fraction)
    main = found.count - guard
    steps = count_steps(main, settings.rankings_per_step, settings.epochs)
    guard_steps = count_steps(guard, settings.rankings_per_step, settings.epochs) if guard else 0
    looks = math.ceil(steps / settings.eval_steps) + (math.ceil(guard_steps / settings.eval_steps) if guard else 0)
    costs = [_reward_cost(found, settings, answer, looks, shape) for answer in (found.answer, found.longest)]
    trained = trained_parameters(shape, settings.trained, shape.hidden)
    adapters = trained - shape.hidden if isinstance(settings.trained, LoRA) else 0
    facts: list[tuple[str, float, float]] = [
        ("parameters", shape.scalar, shape.scalar),
        ("trained", trained, trained),
        ("rankings", main, main),
        ("answers per ranking", found.k, found.k),
        ("optimiser steps", steps, steps),
    ]
    if guard:
        facts += [("rankings of the guard's model", guard, guard), ("its optimiser steps", guard_steps, guard_steps)]
    facts += [
        ("prompt tokens on average", found.prompt, found.prompt),
        ("answer tokens on average", found.answer, found.longest),
        ("tokens trained on", costs[0][0], costs[1][0]),
    ]
    held = _weights(shape, shape.scalar + adapters, trained, settings, _is_bf16(settings))
    held.append(Held("activations", _activations([(shape, settings.trained)], settings, _again(settings)), when="update"))
    return Needs(
        "reward", tuple(Fact(*fact) for fact in facts), (costs[0][1], costs[1][1]), ((), ()), tuple(held), found.basis,
        shape.scalar, _activations([(shape, settings.trained)], settings, again=False),
    )  # fmt: skip


def _reward_cost(found: Rankings, settings: RewardSection, answer: float, looks: int, shape: Shape) -> tuple[float, float]:
    """(tokens trained on, FLOPs with evaluations)."""
    answer = min(answer, settings.max_length)
    prompt = min(found.prompt, settings.max_length - answer)
    tokens, pairs = ranking_cost(settings.layout, found.k, prompt, answer)
    passes = found.count * settings.epochs
    flops = passes * pass_flops(shape, settings.trained, _again(settings), tokens, pairs)
    return passes * tokens, flops + looks * found.held_out * pass_flops(shape, None, False, tokens, pairs)


# ── the policy ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Models:
    """Shapes of a policy training; `judges` is how many reward models score each reply."""

    policy: Shape
    critic: Shape | None
    """A critic with a trunk of its own."""
    reward: Shape
    judges: int
    guards: int

    def trained(self, settings: PolicySection) -> list[tuple[Shape, Trained]]:
        """Shapes that learn, and what of them does: of a critic of its own the same as of the policy."""
        return [(shape, settings.trained) for shape in (self.policy, self.critic) if shape is not None]


@dataclass(frozen=True)
class _Batch:
    """Replies of a pass: tokens in the rows, attended pairs, tokens of replies."""

    tokens: float
    pairs: float
    reply_tokens: float


def reply_batch(replies: int, samples: int, shared: bool, prompt: float, reply: float) -> _Batch:
    """`samples` replies to each prompt, in rows that hold it once (`shared`) or each in a row of its own."""
    if not shared:
        alone = prompt + reply
        return _Batch(replies * alone, replies * alone**2 / 2, replies * reply)
    prompts = replies / samples
    pairs = prompts * prompt**2 / 2 + replies * (prompt * reply + reply**2 / 2)
    return _Batch(prompts * prompt + replies * reply, pairs, replies * reply)


def policy_needs(config: Config, prompts: Sequence[Prompt]) -> Needs:
    settings = config.policy
    models = _models(config)
    prompt, basis = prompt_tokens(prompts)
    longest = settings.sampling.max_tokens
    likely = min(ASSUMED_REPLY_TOKENS, longest)
    costs = [_policy_flops(settings, models, prompt, reply) for reply in (likely, longest)]
    drawn = [() if isinstance(settings.engine, ServerEngine) else _drawn(settings, models, prompt, r) for r in (likely, longest)]
    return Needs(
        "policy", tuple(_policy_facts(settings, models, prompt, likely)), (costs[0], costs[1]), (drawn[0], drawn[1]),
        tuple(_policy_held(settings, models, prompt)), basis, models.policy.causal,
        _activations(models.trained(settings), settings, again=False),
    )  # fmt: skip


def _models(config: Config) -> _Models:
    settings = config.policy
    policy = shape_named(config, settings.base, "policy.base")
    reward = shape_named(config, config.reward.backbone, "reward.backbone")
    has_critic = isinstance(settings.algorithm, APA | PPO) and settings.critic.trunk == "own"
    critic = (reward if settings.critic.start == "reward" else policy) if has_critic else None
    guards = int(settings.guard.model is not None or config.reward.guard_fraction > 0)
    return _Models(policy, critic, reward, 1 + len(settings.shaping.models), guards)


def _policy_trained(settings: PolicySection, models: _Models) -> tuple[int, int]:
    """Weights trained of the policy (with a critic's head on it), and of a critic of its own."""
    shape, shared = models.policy, shared_critic(models.policy.hidden) if _has_shared_critic(settings) else 0
    critic = 0
    if models.critic is not None:
        behind = models.critic.final_norm if isinstance(settings.trained, LastLayers) else 0
        critic = trained_parameters(models.critic, settings.trained, models.critic.hidden) + behind
    return _trained_of_policy(settings, shape) + shared, critic


def _trained_of_policy(settings: PolicySection, shape: Shape) -> int:
    if isinstance(settings.trained, FullTraining):
        return shape.causal
    if isinstance(settings.trained, LastLayers):  # and what runs after them; a tied head is the embedding matrix
        return settings.trained.layers * shape.layer + shape.final_norm + shape.embedding
    return shape.lora(settings.trained.rank, settings.trained.target_modules)


def _has_shared_critic(settings: PolicySection) -> bool:
    return isinstance(settings.algorithm, APA | PPO) and settings.critic.trunk == "shared"


def shared_critic(hidden: int) -> int:
    """Parameters of the head that gives values on the policy's last states: Linear(d, 2d), ReLU, Linear(2d, 1)."""
    return hidden * 2 * hidden + 2 * hidden + 2 * hidden + 1


def evaluations(settings: PolicySection) -> int:
    """Before the first iteration, every `eval_every`, and after the last."""
    return 1 + math.ceil(settings.iterations / settings.eval_every)


def _policy_facts(settings: PolicySection, models: _Models, prompt: float, likely: int) -> list[Fact]:
    policy, critic = _policy_trained(settings, models)
    alone = min(settings.critic.pretrain, settings.iterations) if isinstance(settings.algorithm, APA | PPO) else 0
    replies = settings.iterations * settings.rollouts
    evaluated = (evaluations(settings) * 2 + settings.guard.best_of) * settings.eval_prompts
    per_iteration = settings.epochs * settings.minibatches
    longest = settings.sampling.max_tokens
    facts: list[tuple[str, float, float]] = [
        ("parameters of the policy", models.policy.causal, models.policy.causal),
        ("trained of the policy", policy, policy),
    ]
    if models.critic is not None:
        facts += [
            ("parameters of the critic", models.critic.scalar, models.critic.scalar),
            ("trained of the critic", critic, critic),
        ]
    facts += [
        ("parameters of the reward model", models.reward.scalar, models.reward.scalar),
        ("iterations", settings.iterations, settings.iterations),
        ("of them for the critic alone", 0 if settings.critic.pretrain_explained_variance or settings.critic.pretrain_value_loss
         else alone, alone),
        ("optimiser steps of the policy", (settings.iterations - alone) * per_iteration, settings.iterations * per_iteration),
        ("replies per step", settings.rollouts / settings.minibatches, settings.rollouts / settings.minibatches),
        ("prompts drawn", replies / settings.samples_per_prompt, replies / settings.samples_per_prompt),
        ("replies sampled to train", replies, replies),
        ("replies sampled to evaluate", evaluated, evaluated),
        ("prompt tokens on average", prompt, prompt),
        ("tokens sampled", (replies + evaluated) * likely, (replies + evaluated) * longest),
    ]  # fmt: skip
    return [Fact(*fact) for fact in facts if fact[2] or not fact[0].startswith("of them for")]


def _policy_flops(settings: PolicySection, models: _Models, prompt: float, reply: float) -> float:
    """All passes of the training; the tokens that are decoded one by one are left out."""
    samples, shape, again = settings.samples_per_prompt, models.policy, _again(settings)
    batch = reply_batch(settings.rollouts, samples, settings.layout != "sequences", prompt, reply)
    asked = settings.rollouts / samples
    filled = shape.layers * shape.layer_flops(asked * prompt, asked * prompt**2 / 2)
    head = shape.head_flops(batch.reply_tokens)
    forward = pass_flops(shape, None, False, batch.tokens, batch.pairs)
    made = filled + 2 * (forward + head)  # policy and reference
    made += models.judges * pass_flops(models.reward, None, False, batch.tokens, batch.pairs)
    # the head is tiled: its logits are computed again in the backward pass
    update = pass_flops(shape, settings.trained, again, batch.tokens, batch.pairs)
    update += (3 if isinstance(settings.trained, LoRA) else 4) * head
    values = forward if _has_shared_critic(settings) else 0.0  # a pass for values alone: to pre-train, and before a gated step
    learns = values
    if models.critic is not None:
        values = pass_flops(models.critic, None, False, batch.tokens, batch.pairs)
        learns = pass_flops(models.critic, settings.trained, again, batch.tokens, batch.pairs)
        made += values
        update += learns
    alone = min(settings.critic.pretrain, settings.iterations) if values else 0
    gate = values if values and settings.critic.gate is not None else 0.0
    steps = settings.epochs * (alone * learns + (settings.iterations - alone) * (update + gate))
    watched = evaluations(settings) * _evaluation_flops(settings, models, prompt, reply)
    return settings.iterations * made + steps + watched + _best_of_n_flops(settings, models, prompt, reply)


def _evaluation_flops(settings: PolicySection, models: _Models, prompt: float, reply: float) -> float:
    """Of each: sampled and greedy replies are read by policy, reference, the run's reward model and the guard."""
    batch = reply_batch(2 * settings.eval_prompts, 1, False, prompt, reply)
    policy = pass_flops(models.policy, None, False, batch.tokens, batch.pairs) + models.policy.head_flops(batch.reply_tokens)
    first = 2 * settings.eval_prompts
    filled = models.policy.layers * models.policy.layer_flops(first * prompt, first * prompt**2 / 2)
    scored = (1 + models.guards) * pass_flops(models.reward, None, False, batch.tokens, batch.pairs)
    return filled + 2 * policy + scored


def _best_of_n_flops(settings: PolicySection, models: _Models, prompt: float, reply: float) -> float:
    """The base's replies for the curve of best-of-n, once, read by the run's reward model and the guard."""
    count = settings.guard.best_of
    if not count:
        return 0.0
    batch = reply_batch(settings.eval_prompts * count, count, settings.layout != "sequences", prompt, reply)
    asked = settings.eval_prompts
    filled = models.policy.layers * models.policy.layer_flops(asked * prompt, asked * prompt**2 / 2)
    return filled + (1 + models.guards) * pass_flops(models.reward, None, False, batch.tokens, batch.pairs)


def _drawn(settings: PolicySection, models: _Models, prompt: float, reply: float) -> tuple[Decoding, ...]:
    train = Decoding(
        settings.iterations, settings.rollouts, settings.sample_batch, prompt, reply, settings.sampling.max_tokens, models.policy
    )
    looks = replace(train, rounds=2 * evaluations(settings), replies=settings.eval_prompts)
    best = replace(train, rounds=1, replies=settings.eval_prompts * settings.guard.best_of)
    return (train, looks, best) if settings.guard.best_of else (train, looks)


def _policy_held(settings: PolicySection, models: _Models, prompt: float) -> list[Held]:
    bf16, shape = _is_bf16(settings), models.policy
    policy, critic = _policy_trained(settings, models)
    adapters = shape.lora(settings.trained.rank, settings.trained.target_modules) if isinstance(settings.trained, LoRA) else 0
    more = adapters + (shared_critic(shape.hidden) if _has_shared_critic(settings) else 0)
    held = _weights(shape, shape.causal + more, policy, settings, bf16)
    if models.critic is not None:
        added = critic - models.critic.hidden if isinstance(settings.trained, LoRA) else 0
        own = _weights(models.critic, models.critic.scalar + added, critic, settings, bf16)
        held += [replace(part, what=f"critic: {part.what}") for part in own]
    copied = 0 if isinstance(settings.trained, LoRA) else _trained_of_policy(settings, shape)  # adapters are switched off instead
    held.append(Held("reference", (2.0 if bf16 else 4.0) * copied))
    held.append(Held("reward models", 4.0 * (models.judges + models.guards) * models.reward.scalar))
    if not isinstance(settings.engine, ServerEngine):
        row = (prompt + settings.sampling.max_tokens) * shape.cache_bytes(2)
        rows = (settings.sample_batch, max(settings.rollouts, settings.eval_prompts))
        half = Held("policy in bf16 to sample with", 2.0 * shape.causal)
        held += [
            half if bf16 else Held("whole policy to sample with", 4.0 * shape.causal, several=True),
            Held("keys and values", row, when="sampling", rows=rows),
        ]
    held.append(Held("activations", _activations(models.trained(settings), settings, _again(settings)), when="update"))
    logits = min(LOGITS_AT_ONCE, settings.micro_tokens * shape.vocab) * BYTES_PER_LOGIT
    held.append(Held("logits", float(logits), when="update"))
    return held
