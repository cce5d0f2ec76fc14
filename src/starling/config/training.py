"""Settings of the stages that train: reward model and policy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from starling.config.base import Section
from starling.records import Sampling

# ── stage 5: reward model ────────────────────────────────────────────────────────────────────────────────────────────


Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerSection(Section):
    type: Literal["adamw", "muon"] = Field(
        default="adamw", description="AdamW (Starling), or Muon for the layers' matrices with AdamW for the rest."
    )
    learning_rate: float = Field(gt=0, description="Peak learning rate.")
    betas: tuple[Beta, Beta] = Field(default=(0.9, 0.999), description="AdamW betas (Starling reward model: 0.9, 0.999).")
    weight_decay: float = Field(default=0.0, ge=0, description="Decoupled weight decay.")
    warmup_fraction: float = Field(default=0.05, ge=0, le=1, description="Share of steps with a rising rate (Starling: 5 %).")
    schedule: Literal["constant", "cosine", "linear"] = Field(
        default="constant", description="After the warm-up (Starling: constant)."
    )
    max_grad_norm: float = Field(default=1.0, gt=0, description="Gradient norm is clipped here.")


class PlackettLuce(Section):
    """K-wise maximum likelihood, arXiv 2301.11270: choose the best, then the best of the rest, and so on."""

    type: Literal["plackett_luce"]
    ties: Literal["efron", "breslow", "strict"] = Field(
        default="efron",
        description="Tied answers (as in Cox regression): efron, breslow, or strict, where they say nothing about each other.",
    )
    top_k: int | None = Field(default=None, gt=0, description="Only the first k choices count; all if not set (Starling).")
    weights: Literal["none", "confidence"] = Field(
        default="none",
        description="confidence: a ranking counts by its judge's mean agreement over pairs, 2c - 1 (Starling: none).",
    )
    zero_sum: float = Field(
        default=0.0, ge=0, description="Penalty on the squared sum of a ranking's scores (Starling's code: 0)."
    )


class BradleyTerry(Section):
    """Logistic loss over pairs of a ranking (InstructGPT, arXiv 2203.02155, takes all of them together)."""

    type: Literal["bradley_terry"]
    pairs: Literal["all", "adjacent", "best_vs_worst", "random"] = Field(
        default="all", description="Which pairs; best_vs_worst and random run two answers of a ranking through the model."
    )
    tied_pairs: bool = Field(default=False, description="With all pairs: tied answers are pairs too, each as likely to win.")
    soft_labels: bool = Field(
        default=False, description="The label is the share of the judge's verdicts that agree, where it is known."
    )
    margin: float = Field(default=0.0, ge=0, description="Score difference asked of every pair before its label.")
    margin_per_rank: float = Field(default=0.0, ge=0, description="More of it for every rank between the two.")
    weights: Literal["none", "confidence"] = Field(
        default="none", description="confidence: a pair counts by its judge's agreement, 2c - 1, where it is known."
    )
    zero_sum: float = Field(default=0.0, ge=0, description="Penalty on the squared sum of a ranking's scores.")

    @model_validator(mode="after")
    def _tied_ones_are_among_all_pairs(self) -> BradleyTerry:
        if self.tied_pairs and self.pairs != "all":
            raise ValueError(f"tied_pairs = true goes with pairs = 'all', not with '{self.pairs}'")
        return self


def _named(value: object) -> object:
    """`loss = "plackett_luce"` stands for the section with that type."""
    return {"type": value} if isinstance(value, str) else value


RankingLoss = Annotated[PlackettLuce | BradleyTerry, Field(discriminator="type"), BeforeValidator(_named)]


class RewardSection(Section):
    backbone: str = Field(
        default="microworld:base", description="transformers folder (decoder or encoder) to start from, or microworld:base."
    )
    data: Path | None = Field(
        default=None, description="A Nectar-schema file or imported folder to train on instead of the run's own dataset stage."
    )
    loss: RankingLoss = Field(
        default=PlackettLuce(type="plackett_luce"), description="K-wise loss (Starling) or pairs; a name or a section."
    )
    optimizer: OptimizerSection = Field(default=OptimizerSection(learning_rate=1e-5), description="Starling 7B: 1e-5.")
    epochs: int = Field(default=1, gt=0, description="Passes over the rankings (Starling: 1).")
    rankings_per_step: int = Field(default=128, gt=0, description="Rankings per optimiser step (Starling 7B-alpha: ≈129).")
    micro_tokens: int = Field(
        default=16_384, gt=0, description="Padded tokens per micro-batch; never changes the result of a step."
    )
    max_length: int = Field(default=2048, gt=1, description="Longest prompt + answer in tokens (Starling: 2,048).")
    over_long: Literal["drop", "truncate_left", "raise"] = Field(
        default="truncate_left", description="What to do with longer ones; counted (Starling: left truncation)."
    )
    validation_fraction: float = Field(
        default=0.05,
        ge=0,
        lt=1,
        description="Share of conversations held out from an imported dataset for validation and statistics.",
    )
    checkpoint_steps: int = Field(default=200, gt=0, description="Steps between checkpoints.")


# ── stage 6: policy ──────────────────────────────────────────────────────────────────────────────────────────────────


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


Algorithm = Annotated[APA | PPO, Field(discriminator="type")]


class PolicySection(Section):
    base: str = Field(default="microworld:base", description="transformers folder of the model to tune, or microworld:base.")
    algorithm: Algorithm = Field(default=APA(type="apa"), description="APA (Starling-LM-7B-alpha) or PPO (beta).")
    iterations: int = Field(default=20, gt=0, description="Rollout + update rounds.")
    rollouts: int = Field(default=256, gt=0, description="Replies sampled per iteration (Starling: 448 on 7 GPUs).")
    epochs: int = Field(default=2, gt=0, description="Passes over one iteration's rollouts (Starling: 2).")
    minibatches: int = Field(default=4, gt=0, description="Optimiser steps per pass.")
    sampling: Sampling = Field(
        default=Sampling(max_tokens=1024), description="Rollout sampling (Starling: T 1, 1,024 new tokens)."
    )
    sample_batch: int = Field(default=128, gt=0, description="Rows decoded together.")
    optimizer: OptimizerSection = Field(
        default=OptimizerSection(learning_rate=2e-7, betas=(0.9, 0.95), weight_decay=1e-6, warmup_fraction=0.0),
        description="AdamW (Starling APA: 2e-7, betas 0.9/0.95, decay 1e-6).",
    )
    critic_learning_rate: float = Field(default=1e-5, gt=0, description="The critic's own rate.")
    critic_warmup: int = Field(
        default=2, ge=0, description="First iterations in which only the critic learns (Starling: critic pre-training)."
    )
    value_clip: float = Field(default=0.2, gt=0, description="Value change clip per iteration (Starling: 0.2).")
    kl: float = Field(default=0.01, ge=0, description="Per-token KL penalty in the reward, fixed (Starling: 0.01).")
    gamma: float = Field(default=1.0, ge=0, le=1, description="Discount (Starling: 1).")
    gae_lambda: float = Field(default=0.95, ge=0, le=1, description="GAE λ (Starling: 0.95).")
    reward_clip: float = Field(default=10.0, gt=0, description="Standardised reward is clipped here (Starling: 10).")
    reward_shift: float = Field(
        default=0.1,
        description="Added after standardising: a slightly positive mean keeps replies from growing (Starling's length control).",
    )
    unfinished_reward: float = Field(
        default=-2.0,
        description="Highest reward of a reply without its end token; Starling let them look finished, which feeds length.",
    )
    eval_every: int = Field(default=5, gt=0, description="Iterations between evaluations on validation prompts.")
    eval_prompts: int = Field(default=128, gt=0, description="Validation prompts per evaluation.")
    checkpoint_every: int = Field(default=5, gt=0, description="Iterations between checkpoints.")
