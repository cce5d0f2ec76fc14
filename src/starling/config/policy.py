"""Settings of stage 6: the policy and everything that keeps its tuning honest.

Sources of defaults: arXiv 2306.02231 (APA), 1707.06347 (PPO), 2310.00212 (P3O), 2402.14740 (RLOO), and the settings published
with Starling-LM-7B-alpha ("Starling").
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from starling.config.base import Section
from starling.config.models import EnvName, Urls
from starling.config.training import FullTraining, OptimizerSection, Trained, named
from starling.records import Sampling

# ── algorithms ───────────────────────────────────────────────────────────────────────────────────────────────────────


class APA(Section):
    """Advantage-induced policy alignment, arXiv 2306.02231: squared distance to anchor + advantage / lambda."""

    type: Literal["apa"]
    lam: float = Field(default=1.0, gt=0, description="λ: large keeps the policy near the anchor (Starling: 1; paper: 0.1).")
    anchor: Literal["rollout", "initial"] = Field(
        default="rollout", description="Centre of the squared term: policy that sampled (Starling) or initial policy (paper)."
    )
    whiten: bool = Field(default=False, description="Standardise advantages over the batch (Starling: no; paper code: yes).")


class PPO(Section):
    """Proximal policy optimisation with a clipped ratio, arXiv 1707.06347."""

    type: Literal["ppo"]
    clip: float = Field(default=0.2, gt=0, description="Ratio clip ε (paper).")
    whiten: bool = Field(default=True, description="Standardise advantages over the batch (usual in RLHF).")
    entropy: float = Field(default=0.0, ge=0, description="Entropy bonus coefficient.")


class P3O(Section):
    """Pairwise proximal policy optimisation, arXiv 2310.00212: two or more replies per prompt, no critic."""

    type: Literal["p3o"]
    clip: float = Field(default=0.2, gt=0, description="Clip of the difference of log-ratios of a pair (Starling's code).")
    weight_clip: float = Field(
        default=10.0, gt=1, description="Importance weights stay within 1/this and this (Starling's code)."
    )


def _none(value: object) -> object:
    """TOML has no null."""
    return None if value == "none" else value


class RLOO(Section):
    """REINFORCE with the mean of the other replies to the prompt as baseline, arXiv 2402.14740: no critic."""

    type: Literal["rloo"]
    clip: Annotated[float | None, BeforeValidator(_none)] = Field(
        default=0.2,
        gt=0,
        description="Clip of a whole reply's ratio, for more than one step per rollout (TRL); 'none': no ratio at all (paper).",
    )
    whiten: bool = Field(default=False, description="Standardise advantages over the batch.")


Algorithm = Annotated[APA | PPO | P3O | RLOO, Field(discriminator="type"), BeforeValidator(named)]


# ── KL ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


class FixedKL(Section):
    """A coefficient that stays as it is."""

    type: Literal["fixed"]
    coefficient: float = Field(default=0.01, ge=0, description="Per-token penalty in the reward (Starling: 0.01).")


class AdaptiveKL(Section):
    """A coefficient that follows the measured KL to a target, arXiv 1909.08593, section 2.2."""

    type: Literal["adaptive"]
    coefficient: float = Field(default=0.05, gt=0, description="To begin with (arXiv 2306.02231's PPO: 0.05).")
    target: float = Field(
        default=6.0, gt=0, description="KL of a whole reply from the base, in nats (arXiv 2306.02231's PPO: 6)."
    )
    horizon: int = Field(
        default=10_000,
        gt=0,
        description="Replies in which an error of 100 % changes the coefficient by a factor e^0.2 at most (trlx: 10,000).",
    )


def _fixed(value: object) -> object:
    """`kl = 0.01` stands for a fixed coefficient."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return {"type": "fixed", "coefficient": value} if is_number else value


KL = Annotated[FixedKL | AdaptiveKL, Field(discriminator="type"), BeforeValidator(_fixed)]


# ── parts ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class CriticSection(Section):
    """Value of every position of a reply, for the advantages of APA and PPO; P3O and RLOO have none."""

    trunk: Literal["own", "shared"] = Field(
        default="own",
        description="A model of its own (arXiv 2306.02231), or a head on the policy's last state (Starling's code).",
    )
    start: Literal["reward", "policy"] = Field(
        default="reward", description="Weights that an own trunk starts from; a head on the policy's trunk starts at 0."
    )
    learning_rate: float = Field(default=1e-5, gt=0, description="The critic's own rate, constant.")
    value_clip: float = Field(default=0.2, gt=0, description="Value change clip per iteration (Starling: 0.2).")
    coefficient: float = Field(default=1.0, gt=0, description="Weight of the value loss beside the policy's (Starling: 1).")
    pretrain: int = Field(
        default=2, ge=0, description="First iterations, at most, in which only the critic learns (Starling: critic pre-training)."
    )
    pretrain_explained_variance: float | None = Field(
        default=None, lt=1, description="Pre-training ends early once so much of the returns' variance is explained."
    )
    pretrain_value_loss: float | None = Field(
        default=None, gt=0, description="Pre-training ends early once the value loss is below this."
    )
    gate: float | None = Field(
        default=None, gt=0, description="A step whose value loss is above this trains the critic only (Starling's code: 1)."
    )


class ShapingSection(Section):
    """From scores of reward models to the reward that a reply gets on its last token."""

    models: tuple[str, ...] = Field(
        default=(), description="Folders of further reward models beside the run's own, combined into one score."
    )
    combine: Literal["mean", "minimum", "mean_minus_std"] = Field(
        default="mean", description="How several models' standardised scores become one (conservative: minimum)."
    )
    std_weight: float = Field(default=1.0, ge=0, description="k of mean − k·std, for combine = 'mean_minus_std'.")
    scale: Literal["recorded", "running_std", "none"] = Field(
        default="recorded",
        description="Standardise by the reward model's recorded mean and deviation; divide by the running deviation of what was "
        "seen so far, after the clip (Starling's code); or take scores as they are.",
    )
    clip: float = Field(default=10.0, gt=0, description="Scores are clipped to ± this (Starling: 10).")
    shift: float = Field(
        default=0.1,
        description="Added after standardising: a slightly positive mean keeps replies from growing (Starling's length control).",
    )
    unfinished: float = Field(
        default=-2.0,
        description="Highest reward of a reply without its end token, before penalties; Starling let them look finished, which "
        "feeds length.",
    )
    length_penalty: float = Field(default=0.0, ge=0, description="Taken off per token beyond length_free.")
    length_free: int = Field(default=0, ge=0, description="Tokens of a reply that cost nothing.")
    repetition_penalty: float = Field(
        default=0.0, ge=0, description="Taken off times the share of the reply's 4-grams of tokens that came before in it."
    )


class GuardSection(Section):
    """Is the policy getting better, or only better at pleasing the reward model?"""

    model: str | None = Field(
        default=None, description="Folder of a second reward model; else the one of reward.guard_fraction, if there is one."
    )
    action: Literal["flag", "stop"] = Field(default="flag", description="When it fires: say so in log and report, or stop too.")
    patience: int = Field(
        default=2, gt=0, description="Evaluations in a row with the proxy up and the guard down before it fires."
    )
    margin: float = Field(
        default=0.1, ge=0, description="Fall below the guard's best that counts, in its own standard deviations."
    )
    best_of: int = Field(
        default=16,
        ge=0,
        description="Replies of the base per evaluation prompt, for the best-of-n curve to compare the tuning with; 0: none.",
    )


class SelectionSection(Section):
    """Which checkpoint becomes the artifact, by a rule written down before (as the original authors chose theirs)."""

    keep: Literal["last", "rule"] = Field(default="last", description="The last one, or the best that passes the bounds below.")
    longest: float = Field(default=1.5, gt=0, description="Bound on verbosity: mean length relative to the base's.")
    check: str | None = Field(
        default=None, description="A number of the evaluations (its name in the log) that must not fall, e.g. eval/check."
    )
    checks: Path | None = Field(
        default=None,
        description="File of questions with patterns that a reply must or must not hold; the share right is eval/check.",
    )
    most_regression: float = Field(
        default=0.05, ge=0, description="Fall of that number from the base's that is allowed (Starling: 0.05)."
    )
    by: str = Field(
        default="eval/guard",
        description="Among those that pass: the evaluation number to be largest, e.g. eval/win_rate (Starling: a judge's).",
    )
    judge_prompts: int = Field(
        default=0,
        ge=0,
        description="Evaluation prompts on which the judge (ranking.judge) compares the greedy reply with the base's, in both "
        "orders, at every evaluation: eval/win_rate. 0: it is not asked.",
    )


class LocalEngine(Section):
    """Replies are sampled here, by our own decode loop."""

    type: Literal["local"]


class ServerEngine(Section):
    """Replies are sampled by inference servers that get the new weights after every update; docs/policy-servers.md."""

    type: Literal["vllm", "sglang"]
    urls: Urls = Field(description="Addresses of the servers, without /v1, e.g. http://127.0.0.1:8000; they share the prompts.")
    api_key_env: EnvName | None = Field(
        default=None, description="Name of the environment variable that holds their key; the key itself is never stored."
    )
    weights: str = Field(
        description="Folder that this machine and the servers see under the same path; new weights are handed over there."
    )
    dtype: Literal["bf16", "fp16", "fp32"] = Field(
        default="bf16", description="Type of the weights handed over: what the servers compute in (both engines: bf16)."
    )
    in_flight: int = Field(default=256, gt=0, description="Most replies asked of one server at once (vLLM's usual batch: 256).")
    timeout: float = Field(
        default=600.0, gt=0, description="Seconds to wait for one reply, or for a server to load weights, before asking again."
    )
    attempts: int = Field(
        default=5, gt=0, description="Times that one reply is asked for; failures in a row after which a server is left out."
    )
    tolerance: float = Field(
        default=0.25,
        gt=0,
        description="Largest mean difference, in nats, between a server's log-probs of a fixed text and those of the training "
        "model; beyond, the server has other weights (our choice: far above rounding, far below another model).",
    )
    ratio_cap: float = Field(
        default=2.0, ge=1, description="Truncated importance weights between server and training log-probs stop here (usual: 2)."
    )


Engine = Annotated[LocalEngine | ServerEngine, Field(discriminator="type"), BeforeValidator(named)]


# ── the stage ────────────────────────────────────────────────────────────────────────────────────────────────────────


class PolicySection(Section):
    base: str = Field(default="microworld:base", description="transformers folder of the model to tune, or microworld:base.")
    algorithm: Algorithm = Field(default=APA(type="apa"), description="APA (Starling-LM-7B-alpha), PPO (beta), P3O or RLOO.")
    iterations: int = Field(default=20, gt=0, description="Rollout + update rounds, those of the critic alone included.")
    rollouts: int = Field(default=256, gt=0, description="Replies sampled per iteration (Starling: 448 on 7 GPUs).")
    samples_per_prompt: int = Field(
        default=1, gt=0, description="Replies per prompt; P3O and RLOO need two or more (Starling: 1)."
    )
    epochs: int = Field(default=2, gt=0, description="Passes over one iteration's rollouts (Starling: 2).")
    minibatches: int = Field(default=4, gt=0, description="Optimiser steps per pass.")
    micro_tokens: int = Field(
        default=16_384, gt=0, description="Tokens per micro-batch and process; never changes the result of a step."
    )
    sampling: Sampling = Field(
        default=Sampling(max_tokens=1024), description="Rollout sampling (Starling: T 1, 1,024 new tokens)."
    )
    engine: Engine = Field(default=LocalEngine(type="local"), description="Who samples.")
    sample_batch: int = Field(default=128, gt=0, description="Rows decoded together.")
    trained: Trained = Field(default=FullTraining(type="full"), description="What is trained (Starling: the last 4 layers).")
    optimizer: OptimizerSection = Field(
        default=OptimizerSection(learning_rate=2e-7, betas=(0.9, 0.95), weight_decay=1e-6, warmup_fraction=0.0),
        description="AdamW (Starling APA: 2e-7, betas 0.9/0.95, decay 1e-6).",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="Of the passes; weights and optimiser stay fp32. auto: bf16 on a GPU that has it, else fp32."
    )
    gradient_checkpointing: Literal["auto", "on", "off"] = Field(
        default="auto", description="Compute activations again in the backward pass instead of keeping them. auto: on a GPU."
    )
    layout: Literal["auto", "shared_prefix", "sequences"] = Field(
        default="auto",
        description="Replies to one prompt in one row that holds it once, or a row each; the numbers are the same.",
    )
    critic: CriticSection = Field(default=CriticSection(), description="How values are learnt.")
    shaping: ShapingSection = Field(default=ShapingSection(), description="From score to reward.")
    kl: KL = Field(default=FixedKL(type="fixed"), description="KL penalty to the base, per token; a number or a section.")
    kl_estimator: Literal["k1", "k2", "k3"] = Field(
        default="k1",
        description="Of the penalty (J. Schulman's names). Keep k1 (Starling): only its policy gradient is the KL's.",
    )
    gamma: float = Field(default=1.0, ge=0, le=1, description="Discount (Starling: 1).")
    gae_lambda: float = Field(default=0.95, ge=0, le=1, description="GAE λ (Starling: 0.95).")
    guard: GuardSection = Field(default=GuardSection(), description="Against over-optimisation of the reward model.")
    selection: SelectionSection = Field(default=SelectionSection(), description="Which checkpoint is kept.")
    eval_every: int = Field(default=5, gt=0, description="Iterations between evaluations on validation prompts.")
    eval_prompts: int = Field(default=128, gt=0, description="Validation prompts per evaluation.")
    checkpoint_every: int = Field(default=5, gt=0, description="Iterations between checkpoints.")
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = Field(
        default=(), description="Also show the log there, from <run.dir>/tracking/policy; nothing leaves the machine by default."
    )

    @model_validator(mode="after")
    def _fit_together(self) -> PolicySection:
        if self.rollouts % self.samples_per_prompt:
            raise ValueError(f"rollouts = {self.rollouts} is no multiple of samples_per_prompt = {self.samples_per_prompt}")
        if isinstance(self.algorithm, P3O | RLOO) and self.samples_per_prompt < 2:
            raise ValueError(f"{self.algorithm.type} compares replies to one prompt: samples_per_prompt must be 2 or more")
        prompts = self.rollouts // self.samples_per_prompt
        if self.minibatches > prompts:
            raise ValueError(f"minibatches = {self.minibatches} optimiser steps share the replies to {prompts} prompts only")
        if self.sampling.temperature == 0:
            raise ValueError("sampling.temperature = 0 samples one reply only; a policy learns from several")
        if isinstance(self.kl, AdaptiveKL) and self.rollouts >= 5 * self.kl.horizon:
            raise ValueError(f"kl.horizon = {self.kl.horizon} must be above a fifth of rollouts = {self.rollouts}")
        return self
