"""Settings of the run itself, of the models behind endpoints, and of the microworld that stands in for them offline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, JsonValue, StringConstraints, field_validator, model_validator

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


class Price(Section):
    """What a provider charges; there is no built-in price list, because a wrong price is worse than none."""

    prompt: float = Field(default=0.0, ge=0, description="Dollars per million tokens of prompts.")
    completion: float = Field(default=0.0, ge=0, description="Dollars per million tokens of replies.")

    def dollars(self, prompt_tokens: int, completion_tokens: int) -> float:
        """What so many tokens cost, e.g. Price(prompt=2.5, completion=10).dollars(1_000_000, 100_000) = 3.5."""
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6


class BatchSection(Section):
    """How a model is asked through its provider's batch API: files out and in, half the price, answers within a day."""

    requests: int = Field(
        default=50_000, gt=0, le=50_000, description="Most requests per file (OpenAI allows 50,000, Anthropic 100,000)."
    )
    bytes: int = Field(
        default=200_000_000, gt=0, le=200_000_000, description="Most bytes per file (OpenAI allows 200 MB, Anthropic 256 MB)."
    )
    poll_s: float = Field(
        default=60.0, ge=1.0, description="Longest pause between two looks at a batch, in seconds; the first come sooner."
    )
    discount: float = Field(default=0.5, ge=0, lt=1, description="Share of the price that the provider takes off (both: half).")


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Url = Annotated[str, StringConstraints(pattern=r"^https?://[^/@\s]+(/\S*)?$")]
Urls = Annotated[tuple[Url, ...], Field(min_length=1), BeforeValidator(_listed)]
EnvName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
EnvNames = Annotated[tuple[EnvName, ...], BeforeValidator(_listed)]
_URLS = (
    "Server address up to and including /v1, without a password. A list of them shares the calls; one that fails is left out "
    "for a while."
)
_KEYS = (
    "Name of the environment variable that holds the key; the key itself is never stored. A list of names shares the calls. "
    "Empty: no key."
)
_OWN = frozenset({"model", "messages", "prompt", "system", "stream", "n", "max_tokens", "max_completion_tokens", "temperature",
                  "top_p", "stop", "stop_sequences", "logprobs", "top_logprobs"})  # fmt: skip
"""Parameters that other settings decide."""


class ServerModel(Section):
    """What all models behind servers have in common."""

    base_url: Urls = Field(description=_URLS)
    name: str = Field(description="The model's name on that server.")
    api_key_env: EnvNames = Field(default=(), description=_KEYS)
    in_flight: int = Field(
        default=64, gt=0, description="Most calls in flight at once per key; fewer while the server says that it is too busy."
    )
    timeout_s: float = Field(
        default=120.0, gt=0, description="Seconds until one attempt is given up (Starling: 100). It may have been paid for."
    )
    idle_timeout_s: float | None = Field(
        default=None,
        gt=0,
        description="Most seconds without a byte from the server; the thinking before the first byte counts. Default: timeout_s.",
    )
    attempts: int = Field(
        default=5, gt=0, description="Attempts per call before it becomes a named failure; being told to come back later is none."
    )
    price: Price | None = Field(
        default=None, description="For the budget in dollars and the plan. Default: no cost is known, and none is counted."
    )
    extra: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="Further parameters sent with every call, e.g. { seed = 1, chat_template_kwargs = { … } }. "
        "Other parameters are another model to the journal.",
    )
    batch: BatchSection | None = Field(
        default=None, description="Ask through the provider's batch API: {}, or a section with limits. Default: one by one."
    )
    sampling: Sampling = Field(default=Sampling(), description="How replies are drawn.")
    system: str | None = Field(
        default=None, description="System message before the prompts it answers (Starling: a persona); unused when it judges."
    )

    @model_validator(mode="after")
    def _batches_have_one_account(self) -> ServerModel:
        if self.batch is not None and (len(self.base_url) > 1 or len(self.api_key_env) > 1):
            raise ValueError("with `batch` there is one base_url and one api_key_env: a batch is known only to its account")
        return self

    @field_validator("extra")
    @classmethod
    def _leaves_ours_alone(cls, extra: dict[str, JsonValue]) -> dict[str, JsonValue]:
        if ours := sorted(_OWN & set(extra)):
            raise ValueError(f"'{ours[0]}' is set by Starling itself, see name and sampling")
        return extra


class OpenAIModel(ServerModel):
    """A model behind an OpenAI-compatible server: OpenAI, vLLM, SGLang, Ollama, a gateway."""

    type: Literal["openai"]
    api: Literal["chat", "completions"] = Field(
        default="chat",
        description="`completions` is for base models: it sends a Nectar transcript, a system turn before the first marker.",
    )


class AnthropicModel(ServerModel):
    """A model behind Anthropic's Messages API."""

    type: Literal["anthropic"]
    base_url: Urls = Field(default=("https://api.anthropic.com/v1",), description=_URLS)
    api_key_env: EnvNames = Field(default=("ANTHROPIC_API_KEY",), description=_KEYS)

    @field_validator("sampling")
    @classmethod
    def _api_has_it(cls, sampling: Sampling) -> Sampling:
        if sampling.temperature > 1:
            raise ValueError(f"temperature = {sampling.temperature:g}: this API takes 0 to 1")
        if sampling.top_logprobs:
            raise ValueError("top_logprobs: this API gives no log-probabilities")
        return sampling


class KeySection(Section):
    """The limits of one API key, shared by all models that use it. A server without keys is limited by `in_flight` alone."""

    requests_per_minute: float | None = Field(default=None, gt=0, description="Most calls per minute. Default: no limit known.")
    tokens_per_minute: float | None = Field(
        default=None,
        gt=0,
        description="Most tokens per minute. Before a call leaves, its prompt's estimate and the longest reply are set aside.",
    )


class LocalModel(Section):
    """A transformers folder on this machine, sampled by Starling's own decode loop."""

    type: Literal["local"]
    path: Path = Field(description="Folder of a causal language model with its tokenizer.")
    batch: int = Field(default=128, gt=0, description="Rows decoded together (measured: 128 is fastest on two cores).")
    sampling: Sampling = Field(default=Sampling(), description="How replies are drawn.")
    system: str | None = Field(
        default=None, description="System message before the prompts it answers (Starling: a persona); unused when it judges."
    )


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


Model = Annotated[
    OpenAIModel | AnthropicModel | LocalModel | MicroworldSpeaker | MicroworldJudge, Field(discriminator="type")
]


def journal_name(label: str, settings: Model) -> str:
    """The name under which the journal has the calls of the model `label`: that of its `ModelRef`."""
    if isinstance(settings, LocalModel):
        return settings.path.name
    if isinstance(settings, MicroworldSpeaker):
        return f"microworld:{settings.checkpoint}"
    return label if isinstance(settings, MicroworldJudge) else settings.name


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
