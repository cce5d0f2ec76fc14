"""Settings of the run itself, of the models behind endpoints, and of the microworld that stands in for them offline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from starling.config.base import Section
from starling.records import Sampling

# ── the run ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class RunSection(Section):
    dir: Path = Field(description="Directory of the run: one folder per stage, the journal, summary.json.")
    seed: int = Field(default=0, ge=0, description="Seed of everything random in the run.")
    threads: int = Field(
        default=0, ge=0, description="CPU threads for training; 0 = torch's own choice. Bitwise results need the same number."
    )
    budget_calls: int | None = Field(
        default=None, gt=0, description="Most model calls the run may pay for; it stops cleanly there. No default limit."
    )
    budget_tokens: int | None = Field(
        default=None,
        gt=0,
        description="Most tokens, prompts and replies together. Before a call leaves, the longest reply it may get is set aside.",
    )
    budget_dollars: float | None = Field(
        default=None, gt=0, description="Most dollars, by the prices under the models. Set aside likewise."
    )


# ── models behind endpoints ──────────────────────────────────────────────────────────────────────────────────────────


class BatchSection(Section):
    """How a model is asked through its provider's batch API: files out and in, half the price, answers within a day."""

    requests: int = Field(
        default=50_000, gt=0, le=100_000, description="Most requests per file (OpenAI allows 50,000, Anthropic 100,000)."
    )
    bytes: int = Field(
        default=200_000_000, gt=0, le=256_000_000, description="Most bytes per file (OpenAI allows 200 MB, Anthropic 256 MB)."
    )
    poll_s: float = Field(
        default=60.0, ge=1.0, description="Longest pause between two looks at a batch, in seconds; the first come sooner."
    )
    discount: float = Field(default=0.5, ge=0, lt=1, description="Share of the price that the provider takes off (both: half).")


class OpenAIModel(Section):
    """A model behind an OpenAI-compatible chat server: OpenAI, vLLM, SGLang, Ollama, a gateway."""

    type: Literal["openai"]
    base_url: str = Field(
        pattern=r"^https?://[^/@\s]+(/\S*)?$", description="Server address up to and including /v1, without a password."
    )
    name: str = Field(description="The model's name on that server.")
    api_key_env: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="Name of the environment variable that holds the key; the key itself is never stored.",
    )
    in_flight: int = Field(default=64, gt=0, description="Most calls in flight at once.")
    timeout_s: float = Field(default=120.0, gt=0, description="Seconds until one attempt is given up (Starling: 100).")
    attempts: int = Field(default=5, gt=0, description="Attempts per call before it becomes a named failure.")
    batch: BatchSection | None = Field(
        default=None, description="Ask through the provider's batch API: {}, or a section with limits. Default: one by one."
    )
    sampling: Sampling = Field(default=Sampling(), description="How replies are drawn.")


class LocalModel(Section):
    """A transformers folder on this machine, sampled by Starling's own decode loop."""

    type: Literal["local"]
    path: Path = Field(description="Folder of a causal language model with its tokenizer.")
    batch: int = Field(default=128, gt=0, description="Rows decoded together (measured: 128 is fastest on two cores).")
    sampling: Sampling = Field(default=Sampling(), description="How replies are drawn.")


class MicroworldSpeaker(Section):
    """One of the speakers that the microworld stage trains."""

    type: Literal["microworld-speaker"]
    checkpoint: Literal["early", "middle", "base", "clean", "flawed"] = Field(
        description="Which training state speaks: 30 %, 60 % or all of the base's training, or the base tuned a little further "
        "on clean or on flawed examples."
    )
    batch: int = Field(default=128, gt=0, description="Rows decoded together.")
    sampling: Sampling = Field(default=Sampling(max_tokens=48), description="How replies are drawn.")


class MicroworldJudge(Section):
    """The microworld's rubric judge; it reads the real judge prompt and answers in the real grammar."""

    type: Literal["microworld-judge"]
    noise: float = Field(default=0.05, ge=0, description="Standard deviation added to each answer's perceived quality.")
    position_bias: float = Field(
        default=0.04, ge=0, description="Quality added to the first position, falling linearly to 0 at the last."
    )
    malformed: float = Field(
        default=0.01, ge=0, le=1, description="Share of replies that break the grammar, to keep the path honest."
    )


Model = Annotated[OpenAIModel | LocalModel | MicroworldSpeaker | MicroworldJudge, Field(discriminator="type")]


# ── stage 0: the microworld ──────────────────────────────────────────────────────────────────────────────────────────


class MicroworldSection(Section):
    """The embedded offline world: a tokenizer, a base chat model and its speakers, trained on the spot."""

    hidden: int = Field(default=128, gt=0, description="Width of the base model.")
    layers: int = Field(default=4, gt=0, description="Layers of the base model.")
    heads: int = Field(default=4, gt=0, description="Attention heads.")
    vocab: int = Field(default=1024, ge=300, description="Entries of the byte-level BPE tokenizer.")
    steps: int = Field(default=300, gt=0, description="Optimiser steps of the base model.")
    batch: int = Field(default=96, gt=0, description="Examples per step.")
    learning_rate: float = Field(
        default=2e-2, gt=0, description="Peak of Muon's cosine schedule; AdamW has 0.3 of it (measured)."
    )
    flawed_share: float = Field(
        default=0.6, ge=0, le=1, description="Share of training examples with the systematic flaw of their kind."
    )
    tune_steps: int = Field(default=30, ge=0, description="Further steps for the `clean` and `flawed` speakers.")
