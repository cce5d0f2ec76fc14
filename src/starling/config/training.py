"""Settings of stage 5, the reward model, and what it shares with stage 6 (`policy`): optimiser, what is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from starling.config.base import Section

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


def named(value: object) -> object:
    """`loss = "plackett_luce"` stands for the section with that type."""
    return {"type": value} if isinstance(value, str) else value


RankingLoss = Annotated[PlackettLuce | BradleyTerry, Field(discriminator="type"), BeforeValidator(named)]


class FullTraining(Section):
    """Every weight is trained."""

    type: Literal["full"]


class LastLayers(Section):
    """The last layers and the head are trained, of a policy also the final norm; the other layers, and embeddings that are not
    tied to the head, stay as they are."""

    type: Literal["last_layers"]
    layers: int = Field(ge=0, description="How many layers, counted from the last; 0 trains the head alone.")


class LoRA(Section):
    """Low-rank adapters in the layers (arXiv 2106.09685, through peft) and a reward model's or critic's whole head; the base
    stays as it is."""

    type: Literal["lora"]
    rank: int = Field(default=16, gt=0, description="Rank of the adapters (usual: 8 to 64).")
    alpha: float = Field(default=32.0, gt=0, description="Adapters are scaled by alpha / rank (usual: twice the rank).")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout before the adapters. Anything but 0 costs exactness.")
    target_modules: tuple[str, ...] = Field(
        default=(), description="Linear layers that get adapters, e.g. ['q_proj', 'v_proj']; empty: all in the layers."
    )
    save: Literal["merged", "adapter"] = Field(
        default="merged", description="What the artifact holds: a whole model, or a peft adapter with the head."
    )


Trained = Annotated[FullTraining | LastLayers | LoRA, Field(discriminator="type")]


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
        default=16_384, gt=0, description="Tokens per micro-batch and process; never changes the result of a step."
    )
    trained: Trained = Field(default=FullTraining(type="full"), description="What is trained (Starling: everything).")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="Of the passes; weights and optimiser stay fp32. auto: bf16 on a GPU that has it, else fp32."
    )
    gradient_checkpointing: Literal["auto", "on", "off"] = Field(
        default="auto", description="Compute activations again in the backward pass instead of keeping them. auto: on a GPU."
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
    guard_fraction: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of the training conversations kept from this model, for a second one that guards the policy's tuning.",
    )
    layout: Literal["auto", "shared_prefix", "sequences", "all_pairs"] = Field(
        default="auto",
        description="What answers have in common computed once (shared_prefix), one row per answer, or two per pair (as TRL "
        "does); scores are the same. auto: shared_prefix for decoders that pass a trial on a ranking, else sequences.",
    )
    eval_steps: int = Field(default=200, gt=0, description="Steps between evaluations on validation; the last step has one.")
    keep: Literal["last", "best"] = Field(
        default="last", description="Weights of the artifact: after the last step (Starling), or of the best evaluation."
    )
    metric: Literal["loss", "pair_accuracy", "adjacent_accuracy", "top1"] = Field(
        default="pair_accuracy", description="Of two evaluations the better one is told by this; of equal ones, the earlier."
    )
    patience: int | None = Field(
        default=None, gt=0, description="Stop after so many evaluations in a row without a better one. Default: never (Starling)."
    )
    checkpoint_steps: int = Field(default=200, gt=0, description="Steps between checkpoints.")
    log_steps: int = Field(default=1, gt=0, description="Steps per line of log.jsonl, which holds their means.")
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = Field(
        default=(), description="Also show the log there, from <run.dir>/tracking/reward; nothing leaves the machine by default."
    )
