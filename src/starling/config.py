"""The settings: one frozen, typed tree, read from TOML and `--set section.key=value`.

The sentence under a field is its help text, its JSON schema and its row in docs/config.md; where a default comes from
stands in it too. Unknown keys are errors that name the nearest known key. Nothing is filled in later: the resolved
tree is saved with every run, and `fingerprint` of a part of it is what makes a stage stale.

Sources of defaults: "Starling" = the original system's public code and cards (arXiv 2301.11270, 2306.02231 and the
Starling-7B release); "measured" = docs/results.md.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from starling.config_errors import explain, nearest
from starling.errors import ConfigError
from starling.records import Sampling, content_hash


class Section(BaseModel):
    """Base of all settings: frozen, unknown keys refused, defaults validated, NaN and infinity refused.

    A part that is given in part keeps the rest of *its* default: `policy.optimizer = {learning_rate = 1e-6}` leaves the betas
    that the policy's optimizer has by default, not those of optimizers in general.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _complete_parts(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        completed = dict(given)
        for name, info in cls.model_fields.items():
            part = completed.get(name)
            if isinstance(info.default, BaseModel) and isinstance(part, dict):
                default = info.default.model_dump()
                if part.get("type", default.get("type")) == default.get("type"):
                    completed[name] = default | part
        return completed


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


# ── models behind endpoints ──────────────────────────────────────────────────────────────────────────────────────────


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


# ── stage 1–4: data ──────────────────────────────────────────────────────────────────────────────────────────────────


class MicroworldPrompts(Section):
    type: Literal["microworld"]


class FilePrompts(Section):
    type: Literal["file"]
    path: Path = Field(
        description="jsonl(.gz) or parquet with a `messages` list, a Nectar `prompt` transcript or a plain `prompt`."
    )
    name: str = Field(description="Source label written into the dataset.")


PromptSource = Annotated[MicroworldPrompts | FilePrompts, Field(discriminator="type")]


class PromptsSection(Section):
    sources: tuple[PromptSource, ...] = Field(
        min_length=1, description="Where prompts come from, in order of preference for duplicates."
    )
    train: int | None = Field(default=None, gt=0, description="Prompts kept for ranking and tuning; all when not given.")
    validation_fraction: float = Field(default=0.1, ge=0, lt=1, description="Share of conversations for choosing settings.")
    test_fraction: float = Field(default=0.1, ge=0, lt=1, description="Share of conversations that no stage trains on.")
    max_chars: int = Field(default=20_000, gt=0, description="Longer conversations are dropped and counted.")


class ResponsesSection(Section):
    models: tuple[str, ...] = Field(
        min_length=1, description="Names under [models] that answer every prompt (Starling: 7 answers)."
    )

    @model_validator(mode="after")
    def _distinct(self) -> ResponsesSection:
        if len(set(self.models)) != len(self.models):
            raise ValueError("the same model is named twice")
        return self


class RankingSection(Section):
    judge: str = Field(description="Name under [models] of the judge.")
    flip_pairs: bool = Field(
        default=True,
        description="Flip letters inside pairs at random. Starling kept them alphabetical; flipping removes that bias.",
    )
    retries: int = Field(
        default=1, ge=0, le=1, description="Further calls after a reply that does not parse, with a fresh order."
    )
    max_prompt_chars: int = Field(
        default=30_000, gt=0, description="Longer judge prompts become `too_long` (Starling: 7,500 tokens × 4)."
    )
    max_tokens: int = Field(default=1024, gt=0, description="Longest judge reply in tokens.")


class DatasetSection(Section):
    min_answers: int = Field(default=2, ge=2, description="Rankings of fewer answers are left out and counted.")


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


class RewardSection(Section):
    backbone: str = Field(
        default="microworld:base", description="transformers folder (decoder or encoder) to start from, or microworld:base."
    )
    data: Path | None = Field(
        default=None, description="A Nectar-schema file or imported folder to train on instead of the run's own dataset stage."
    )
    loss: Literal["plackett_luce", "bradley_terry"] = Field(
        default="plackett_luce", description="K-wise loss (Starling) or all pairs."
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


# ── stage 7 and after ────────────────────────────────────────────────────────────────────────────────────────────────


class EvaluateSection(Section):
    split: Literal["validation", "test"] = Field(
        default="test", description="validation while settings are chosen; test for what is reported."
    )
    samples: int = Field(default=3, gt=0, description="Sampled replies per prompt for gold score and head to head (plus greedy).")
    judge_prompts: int = Field(default=200, gt=0, description="Prompts in the judge's head to head, both orders each.")
    bootstrap: int = Field(default=2000, ge=100, description="Resamples behind each interval, clustered by prompt.")


class PublishSection(Section):
    license: str = Field(
        default="apache-2.0", description="Licence on the cards; the judge's and the sources' terms still apply."
    )
    judge_terms: str = Field(default="", description="Terms of the judge model that bind users of the dataset.")
    dataset: str = Field(default="", description="Hub id the dataset will have, e.g. me/my-nectar; the model cards name it.")
    policy_base: str = Field(default="", description="Hub id of the model in policy.base, for the policy's card.")
    reward_base: str = Field(default="", description="Hub id of the model in reward.backbone, for the reward model's card.")


class Config(Section):
    """The whole tree. Sections that a run does not use may be left out: a reward model on imported data needs only
    [run] and [reward]. `starling.pipeline` names the section that a stage needs and does not find."""

    run: RunSection
    microworld: MicroworldSection | None = None
    models: dict[str, Model] = Field(default_factory=dict, description="Every model of the run by name.")
    prompts: PromptsSection | None = None
    responses: ResponsesSection | None = None
    ranking: RankingSection | None = None
    dataset: DatasetSection = DatasetSection()
    reward: RewardSection = RewardSection()
    policy: PolicySection = PolicySection()
    evaluate: EvaluateSection = EvaluateSection()
    publish: PublishSection = PublishSection()

    @model_validator(mode="after")
    def _names_are_known(self) -> Config:
        named = [("responses.models", n) for n in (self.responses.models if self.responses else ())]
        named += [("ranking.judge", self.ranking.judge)] if self.ranking else []
        for where, name in named:
            if name not in self.models:
                raise ValueError(f"{where} names the model '{name}', which is not under [models]{nearest(name, self.models)}")
        if self.responses is not None and len(self.responses.models) < 2:
            raise ValueError("responses.models needs at least two models: one answer cannot be ranked (K = 1)")
        if self.microworld is None and (
            any(m.type.startswith("microworld") for m in self.models.values())
            or any(s.type == "microworld" for s in (self.prompts.sources if self.prompts else ()))
        ):
            raise ValueError("something refers to the microworld, but there is no [microworld] section")
        if self.prompts is not None and self.prompts.validation_fraction + self.prompts.test_fraction >= 1:
            raise ValueError("prompts.validation_fraction + prompts.test_fraction leave nothing to train on")
        return self


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def load_config(path: Path, overrides: tuple[str, ...] = ()) -> Config:
    """Read a TOML file, apply `section.key=value` overrides, validate.

    Raises:
        ConfigError: the file is missing, is no UTF-8 TOML, or a setting is unknown or wrong. Nothing is written.
    """
    try:
        raw = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise ConfigError(
            "The settings file does not exist", where=str(path), cure="check the path; configs/ holds examples"
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"The settings file cannot be read: {error}", where=str(path), cure="give a UTF-8 TOML file") from None
    try:
        tree = tomllib.loads(raw)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"The settings file is not valid TOML: {error}", where=str(path), cure="fix that line") from None
    for override in overrides:
        _apply_override(tree, override)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        what, key = explain(error.errors(include_url=False), tree, Config.model_json_schema())
        where = (f"{key} in " if key else "") + str(path) + (f" with --set {' '.join(overrides)}" if overrides else "")
        raise ConfigError(what, where=where, cure="`starling config schema` lists every setting and what is allowed") from None


def _apply_override(tree: dict[str, Any], override: str) -> None:
    """Set one dotted key in the raw tree; the value is read as TOML, else taken as a string."""
    key, sep, text = override.partition("=")
    parts = key.strip().split(".")
    if not sep or not all(parts):
        raise ConfigError(f"--set wants section.key=value, not '{override}'", where="--set", cure="write e.g. --set run.seed=1")
    try:
        value = tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    node = tree
    for part in parts[:-1]:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise ConfigError(f"'{part}' in --set {override} is a value, not a section", where="--set", cure="check the key")
    node[parts[-1]] = value


def fingerprint(part: BaseModel | None) -> str:
    """Hash of a part of the settings: what makes the stages that read it stale."""
    return content_hash(part.model_dump(mode="json") if part is not None else None, 16)


def secret(name: str | None) -> str | None:
    """The value of an environment variable named in the settings; only its name is ever stored.

    Raises:
        ConfigError: the variable is named but not set.
    """
    if name is None:
        return None
    value = os.environ.get(name)
    if not value:
        raise ConfigError(
            f"The environment variable {name} is not set", where="api_key_env", cure=f"export {name}=… before the command"
        )
    return value
