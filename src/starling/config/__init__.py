"""The settings: one frozen, typed tree, read from TOML and `--set section.key=value`.

The sentence under a field is its help text, its JSON schema and its row in docs/config.md; where a default comes from
stands in it too. Unknown keys are errors that name the nearest known key. Nothing is filled in later: the resolved
tree is saved with every run, and `fingerprint` of a part of it is what makes a stage stale.

Sources of defaults: "Starling" = the original system's public code and cards (arXiv 2301.11270, 2306.02231 and the
Starling-7B release); "measured" = docs/results.md.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from starling.config.base import (
    Section,
    fingerprint,
    secret,
)
from starling.config.benchmarks import (
    AlpacaEvalSection,
    ArenaHardSection,
    HeadToHeadSection,
    JudgedSection,
    MTBenchSection,
    SafetySection,
)
from starling.config.data import (
    DatasetSection,
    PoolModel,
    RankingMode,
    RankingSection,
    ResponsesSection,
)
from starling.config.evaluation import (
    EvaluateSection,
    PublishSection,
    Terms,
)
from starling.config.models import (
    AnthropicModel,
    BatchSection,
    KeySection,
    LocalModel,
    MicroworldJudge,
    MicroworldSection,
    MicroworldSpeaker,
    Model,
    OpenAIModel,
    Price,
    RunSection,
    ServerModel,
    journal_name,
)
from starling.config.policy import (
    APA,
    P3O,
    PPO,
    RLOO,
    AdaptiveKL,
    Algorithm,
    CriticSection,
    FixedKL,
    GuardSection,
    PolicySection,
    SelectionSection,
    ServerEngine,
    ShapingSection,
)
from starling.config.prompts import (
    BenchmarkSet,
    DecontaminationSection,
    FilePrompts,
    MicroworldPrompts,
    NearDuplicatesSection,
    PromptSource,
    PromptsSection,
)
from starling.config.training import (
    BradleyTerry,
    FullTraining,
    LastLayers,
    LoRA,
    OptimizerSection,
    PlackettLuce,
    RankingLoss,
    RewardSection,
    Trained,
)
from starling.config_errors import explain, nearest
from starling.errors import ConfigError

__all__ = [
    "APA",
    "P3O",
    "PPO",
    "RLOO",
    "AdaptiveKL",
    "Algorithm",
    "AlpacaEvalSection",
    "AnthropicModel",
    "ArenaHardSection",
    "BatchSection",
    "BenchmarkSet",
    "BradleyTerry",
    "Config",
    "CriticSection",
    "DatasetSection",
    "DecontaminationSection",
    "EvaluateSection",
    "FilePrompts",
    "FixedKL",
    "FullTraining",
    "GuardSection",
    "HeadToHeadSection",
    "KeySection",
    "LastLayers",
    "LoRA",
    "LocalModel",
    "MTBenchSection",
    "MicroworldJudge",
    "MicroworldPrompts",
    "MicroworldSection",
    "MicroworldSpeaker",
    "Model",
    "NearDuplicatesSection",
    "OpenAIModel",
    "OptimizerSection",
    "PlackettLuce",
    "PolicySection",
    "PoolModel",
    "Price",
    "PromptSource",
    "PromptsSection",
    "PublishSection",
    "RankingLoss",
    "RankingMode",
    "RankingSection",
    "ResponsesSection",
    "RewardSection",
    "RunSection",
    "SafetySection",
    "Section",
    "SelectionSection",
    "ServerEngine",
    "ServerModel",
    "ShapingSection",
    "Terms",
    "Trained",
    "fingerprint",
    "journal_name",
    "load_config",
    "secret",
]


class Config(Section):
    """The whole tree. Sections that a run does not use may be left out: a reward model on imported data needs only
    [run] and [reward]. `starling.pipeline` names the section that a stage needs and does not find."""

    run: RunSection
    microworld: MicroworldSection | None = None
    models: dict[str, Model] = Field(default_factory=dict, description="Every model of the run by name.")
    keys: dict[str, KeySection] = Field(
        default_factory=dict, description="Limits of API keys, by the environment variable that holds the key."
    )
    prompts: PromptsSection | None = None
    responses: ResponsesSection | None = None
    ranking: RankingSection | None = None
    dataset: DatasetSection = DatasetSection()
    reward: RewardSection = RewardSection()
    policy: PolicySection = PolicySection()
    evaluate: EvaluateSection = EvaluateSection()
    publish: PublishSection = PublishSection()

    @property
    def systems(self) -> dict[str, str]:
        """The system messages under which models answer prompts, by name of the models that have one."""
        without = MicroworldSpeaker | MicroworldJudge
        return {name: m.system for name, m in self.models.items() if not isinstance(m, without) and m.system}

    @model_validator(mode="after")
    def _names_are_known(self) -> Config:
        named = [("responses", n) for n in (self.responses.names if self.responses else ())]
        named += [("ranking.judge", self.ranking.judge)] if self.ranking else []
        named += [("publish.models", n) for n in self.publish.models]
        named += [n for section, one in self.evaluate if isinstance(one, JudgedSection) for n in one.named(section)]
        for where, name in named:
            if name not in self.models:
                raise ValueError(f"{where} names the model '{name}', which is not under [models]{nearest(name, self.models)}")
        used = {env for m in self.models.values() if isinstance(m, ServerModel) for env in m.api_key_env}
        for name in self.keys:
            if name not in used:
                raise ValueError(f"[keys.{name}] is the api_key_env of no model{nearest(name, used)}")
        for member in self.responses.members if self.responses else ():
            sampling = getattr(self.models[member.model], "sampling", None)
            if member.samples > 1 and sampling is not None and sampling.temperature == 0:
                raise ValueError(f"'{member.model}' is to draw {member.samples} answers, which are all the same at temperature 0")
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
