"""Before anything is spent: what a run lacks, and what it will cost.

`check` finds what would stop a run later (missing files, folders that are no models, keys that are not set, parts that are
not installed) before the run directory is touched. `plan` counts calls and estimates tokens; its numbers are

    exact        prompts, calls of responses and ranking without retries
    upper bound  completion tokens (every reply as long as allowed)
    estimate     prompt tokens, at four characters a token (English text, common tokenizers: 3.5–4.5)
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from starling import prompts
from starling.config import Config, FilePrompts, LocalModel, MicroworldJudge, ServerModel, secret
from starling.errors import ConfigError, InputError, MissingExtra
from starling.judge.rubric import STARLING, build_prompt
from starling.lineage import MICROWORLD_BASE, is_world
from starling.records import Message, Prompt
from starling.rows import read_rows
from starling.wire import model_ref

CHARS_PER_TOKEN = 4


# ── check ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def check(config: Config, stages: Sequence[str]) -> None:
    """Raise when one of `stages`, all of which are about to run, cannot work; nothing is written.

    Raises:
        InputError: a file or model folder is missing or is something else.
        ConfigError: a key is not set, or two models would be one in the journal.
        MissingExtra: torch and its company are needed and not installed.
    """
    asked = _models_asked(config, stages)
    if {"world", "reward", "policy", "evaluate"} & set(stages) or any(config.models[n].type in _SAMPLED_HERE for n in asked):
        for module in ("torch", "transformers", "accelerate", "safetensors", "tokenizers"):
            if importlib.util.find_spec(module) is None:
                raise MissingExtra("train", module)
    _check_models(config, asked)
    if "prompts" in stages and config.prompts is not None:
        for source in config.prompts.sources:
            if isinstance(source, FilePrompts):
                _check_rows(source.path)
    if "reward" in stages:
        if config.reward.data is not None and not config.reward.data.is_dir():
            _check_rows(config.reward.data)
        elif config.reward.data is not None and not (config.reward.data / "manifest.json").is_file():
            raise InputError(
                "The folder is no imported dataset: it has no manifest.json",
                where=f"reward.data = {config.reward.data}",
                cure="give a folder written by `starling import`, or the data file itself",
            )
        _check_folder("reward.backbone", config.reward.backbone)
    if {"policy", "evaluate"} & set(stages):
        _check_folder("policy.base", config.policy.base)


_SAMPLED_HERE = ("local", "microworld-speaker")


def _models_asked(config: Config, stages: Sequence[str]) -> list[str]:
    """Names of the models that these stages will ask."""
    names: list[str] = []
    if config.responses is not None and {"responses", "evaluate"} & set(stages):
        names += config.responses.models
    if config.ranking is not None and {"ranking", "evaluate"} & set(stages):
        names.append(config.ranking.judge)
    return names


def _check_models(config: Config, names: Sequence[str]) -> None:
    identities: dict[str, str] = {}
    for name in names:
        model = config.models[name]
        if isinstance(model, ServerModel):
            for env in model.api_key_env:
                secret(env)
            identity = str(model_ref(model))
        elif isinstance(model, LocalModel):
            _check_folder(f"models.{name}.path", str(model.path))
            identity = f"{model.path} {model.sampling}"
        else:
            identity = str(model)
        other = identities.setdefault(identity, name)
        if other != name and name in (config.responses.models if config.responses else ()):
            raise ConfigError(
                f"The models '{other}' and '{name}' are the same model with the same sampling: both would give the same answers",
                where=f"models.{name}",
                cure="give them different names on their servers or different sampling settings, or drop one",
            )


def _check_rows(path: Path) -> None:
    if next(iter(read_rows(path)), None) is None:
        raise InputError("The data file has no rows", where=str(path), cure="give a file with at least one row")


def _check_folder(setting: str, folder: str) -> None:
    """A transformers folder has a config.json that names its kind of model."""
    if folder == MICROWORLD_BASE:
        return
    path = Path(folder)
    cure = "name a local transformers folder (config.json, safetensors, tokenizer.json)"
    if not path.is_dir():
        raise InputError("The model folder does not exist", where=f"{setting} = {folder}", cure=cure)
    try:
        kind = json.loads((path / "config.json").read_text("utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        kind = None
    if not isinstance(kind, str):
        raise InputError(
            "The folder is no transformers model: it has no config.json with a model_type",
            where=f"{setting} = {folder}",
            cure=cure,
        )


# ── plan ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Calls:
    """What one model will be asked by one stage, e.g. Calls("ranking", "judge", "openai", 1000, 4_000_000, 1_024_000)."""

    stage: str
    model: str
    kind: str
    calls: int
    prompt_tokens: int
    """Estimate."""
    completion_tokens: int
    """Upper bound."""


def plan(config: Config, stages: Sequence[str]) -> list[Calls]:
    """The model calls that `stages` will make, those already in the journal included.

    Raises:
        InputError: a prompt file cannot be used.
    """
    if config.prompts is None or not {"responses", "ranking", "evaluate"} & set(stages):
        return []
    everything = _gathered(config)
    held_out = [p for p in everything if p.split == config.evaluate.split]
    asked = [p for p in everything if p.split != "test"] if is_world(config) else everything
    calls: list[Calls] = []
    if "responses" in stages:
        calls += _pool_calls(config, "responses", asked)
    if "ranking" in stages and config.ranking is not None:
        calls.append(_judge_calls(config, "ranking", asked, len(config.responses.models if config.responses else ())))
    if "evaluate" in stages:
        if is_world(config):
            calls += _pool_calls(config, "evaluate", held_out)
        if config.ranking is not None:
            both_orders = held_out[: config.evaluate.judge_prompts] * 2
            calls.append(_judge_calls(config, "evaluate", both_orders, 2))
    return calls


def _gathered(config: Config) -> tuple[Prompt, ...]:
    assert config.prompts is not None
    from_world: list[Prompt] = []
    if any(source.type == "microworld" for source in config.prompts.sources):
        from starling.microworld import world

        from_world = world.all_prompts(validation=config.prompts.validation_fraction, test=config.prompts.test_fraction)
    return prompts.gather(config.prompts, from_world, seed=config.run.seed).prompts


def _pool_calls(config: Config, stage: str, asked: Sequence[Prompt]) -> list[Calls]:
    tokens = sum(_tokens(p.messages) for p in asked)
    names = config.responses.models if config.responses else ()
    return [Calls(stage, n, config.models[n].type, len(asked), tokens, len(asked) * _longest(config, [n])) for n in names]


def _longest(config: Config, names: Sequence[str]) -> int:
    """Most tokens that one of these models may write in a reply."""
    models = [config.models[name] for name in names]
    return max((m.sampling.max_tokens for m in models if not isinstance(m, MicroworldJudge)), default=0)


def _judge_calls(config: Config, stage: str, asked: Sequence[Prompt], k: int) -> Calls:
    """A judge prompt holds the rubric, the conversation and K answers; the answers are taken to be as long as allowed."""
    assert config.ranking is not None
    pairs = [(a, b) for a in range(k) for b in range(a + 1, k)]
    frame = build_prompt(STARLING, (Message(role="user", content="-"),), [""] * k, pairs, "0" * 16)
    pool = config.responses.models if stage == "ranking" and config.responses else ()
    longest = _longest(config, pool) or config.policy.sampling.max_tokens
    tokens = len(asked) * (_tokens(frame) + k * longest) + sum(_tokens(p.messages) for p in asked)
    name = config.ranking.judge
    return Calls(stage, name, config.models[name].type, len(asked), tokens, len(asked) * config.ranking.max_tokens)


def _tokens(messages: Sequence[Message]) -> int:
    return sum(len(m.content) for m in messages) // CHARS_PER_TOKEN + 1


def as_rows(calls: Sequence[Calls]) -> list[dict[str, object]]:
    """Plain rows for a table or JSON."""
    return [asdict(c) for c in calls]
