"""Before anything is spent: what a run lacks, and what it will cost.

`check` finds what would stop a run later (missing files, folders that are no models, keys that are not set, parts that are
not installed) before the run directory is touched. `count` counts calls and tokens as the settings have them; its numbers are

    exact        prompts, calls of responses and ranking without retries (before the prompts
                 stage is done, as if no answers were found with the prompts)
    upper bound  completion tokens (every reply as long as allowed); calls about contested prompts
    estimate     prompt tokens, at four characters a token (English text, common tokenizers: 3.5–4.5)

What of that is answered already, what replies of a likely length come to, dollars and hours: `starling.forecast`.
"""

from __future__ import annotations

import glob
import importlib.util
import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from starling import prompts
from starling.artifacts import RecordFile, open_artifact, read_records
from starling.chat import with_system
from starling.config import Config, FilePrompts, LocalModel, MicroworldJudge, PolicySection, ServerModel, secret
from starling.endpoint.limits import CHARS_PER_TOKEN
from starling.endpoint.wire import model_ref
from starling.errors import ConfigError, InputError, MissingExtra, UsageError
from starling.judge.modes import calls_per_order
from starling.judge.rubric import Rubric, prompt_chars, rubric_of
from starling.judge.verdict import FORMS
from starling.lineage import MICROWORLD_BASE, is_world
from starling.policy.checks import read_checks
from starling.progress import SILENT, Progress
from starling.records import FoundAnswer, Message, Prompt
from starling.responses import greedy_among, most_asks, next_asks, slots_of
from starling.rows import read_rows
from starling.rundir import launched

ASKING = frozenset({"responses", "ranking", "evaluate"})
"""The stages that ask models."""


# ── check ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Absent:
    """Something that is not on this machine, e.g. Absent("models/openchat/openchat_3.5", "policy.base")."""

    what: str
    """A file or folder, an environment variable, or a distribution."""
    where: str
    """The setting that names it, or how it is installed."""


def absent(config: Config, stages: Sequence[str]) -> list[Absent]:
    """What has to be put where the settings say before `stages` can run; a plan is made without it."""
    named: list[tuple[str, str]] = []
    keys: list[Absent] = []
    if "prompts" in stages and config.prompts is not None:
        for at, source in enumerate(config.prompts.sources):
            paths = _paths(source.path) if isinstance(source, FilePrompts) else ()
            named += [(f"prompts.sources[{at}].path", str(path)) for path in paths]
        sets = config.prompts.decontamination.sets if config.prompts.decontamination is not None else ()
        named += [(f"prompts.decontamination.sets[{at}].path", str(p)) for at, s in enumerate(sets) for p in _paths(s.path)]
    for name in _models_asked(config, stages):
        model = config.models[name]
        named += [(f"models.{name}.path", str(model.path))] if isinstance(model, LocalModel) else []
        keys += [Absent(env, f"models.{name}.api_key_env") for env in getattr(model, "api_key_env", ()) if not _is_set(env)]
    if "reward" in stages:
        named += [("reward.data", str(config.reward.data))] if config.reward.data is not None else []
        named.append(("reward.backbone", config.reward.backbone))
    if {"policy", "evaluate"} & set(stages):
        named.append(("policy.base", config.policy.base))
    if "policy" in stages:
        policy = config.policy
        named += [("policy.guard.model", policy.guard.model)] if policy.guard.model is not None else []
        named += [("policy.shaping.models", folder) for folder in policy.shaping.models]
        named += [("policy.selection.checks", str(policy.selection.checks))] if policy.selection.checks is not None else []
    gone = [Absent(path, setting) for setting, path in dict.fromkeys(named) if path != MICROWORLD_BASE and not _is_there(path)]
    module = _module_lacking(config, stages)
    return [*gone, *keys] if module is None else [*gone, *keys, Absent(module, _INSTALL)]


_INSTALL = 'pip install "starling-rlaif[train]"'


def _module_lacking(config: Config, stages: Sequence[str]) -> str | None:
    """The first part of the extra `train` that the stages need and that is not installed."""
    sampled_here = any(config.models[name].type in _SAMPLED_HERE for name in _models_asked(config, stages))
    if not sampled_here and not {"world", "reward", "policy", "evaluate"} & set(stages):
        return None
    return _first_lacking()


def _first_lacking() -> str | None:
    modules = ("torch", "transformers", "accelerate", "safetensors", "tokenizers")
    return next((module for module in modules if importlib.util.find_spec(module) is None), None)


def _is_set(env: str) -> bool:
    try:
        return bool(secret(env, ""))
    except ConfigError:
        return False


def _paths(path: Path | tuple[Path, ...]) -> tuple[Path, ...]:
    return path if isinstance(path, tuple) else (path,)


def _is_there(path: str) -> bool:
    return Path(path).exists() or (glob.has_magic(path) and next(glob.iglob(path, recursive=True), None) is not None)


def check(config: Config, stages: Sequence[str], excused: Sequence[Absent] = ()) -> None:
    """Raise when one of `stages`, all of which are about to run, cannot work; nothing is written.

    Args:
        config: the settings.
        stages: names of the stages.
        excused: what is known to be missing and not to be complained of; [prompts] is not checked when a part of it is.

    Raises:
        InputError: a file or model folder is missing or is something else.
        ConfigError: a key is not set, or two models would be one in the journal.
        MissingExtra: torch and its company are needed and not installed.
    """
    missing = {gone.where for gone in excused}
    asked = _models_asked(config, stages)
    module = _module_lacking(config, stages)
    if module is not None and _INSTALL not in missing:
        raise MissingExtra("train", module)
    _check_models(config, asked, missing)
    if "prompts" in stages and config.prompts is not None and not lacks_prompts(excused):
        prompts.check(config.prompts)
    if "reward" in stages:
        if "reward.data" in missing:
            pass
        elif config.reward.data is not None and not config.reward.data.is_dir():
            _check_rows(config.reward.data)
        elif config.reward.data is not None and not (config.reward.data / "manifest.json").is_file():
            raise InputError(
                "The folder is no imported dataset: it has no manifest.json",
                where=f"reward.data = {config.reward.data}",
                cure="give a folder written by `starling import`, or the data file itself",
            )
        _check_folder("reward.backbone", config.reward.backbone, missing)
    if {"policy", "evaluate"} & set(stages):
        _check_folder("policy.base", config.policy.base, missing)
    if "policy" in stages:
        _check_honesty(config.policy, missing)


def check_asked(config: Config, names: Sequence[str]) -> None:
    """Raise when a model of `names` (under [models]) cannot be asked: as `check`, for what asks outside the stages.

    Raises:
        InputError, ConfigError, MissingExtra: as `check`.
    """
    if any(config.models[name].type in _SAMPLED_HERE for name in names) and (module := _first_lacking()) is not None:
        raise MissingExtra("train", module)
    _check_models(config, names, ())


def lacks_prompts(missing: Sequence[Absent]) -> bool:
    """Whether a file of prompts, or one that they are compared with, is among what is missing."""
    return any(gone.where.startswith("prompts.") for gone in missing)


_SAMPLED_HERE = ("local", "microworld-speaker")


def _models_asked(config: Config, stages: Sequence[str]) -> list[str]:
    """Names of the models that these stages will ask."""
    names: list[str] = []
    if config.responses is not None and {"responses", "evaluate"} & set(stages):
        names += config.responses.names
    if config.ranking is not None and {"ranking", "evaluate"} & set(stages):
        names.append(config.ranking.judge)
    return names


def _check_models(config: Config, names: Sequence[str], missing: Collection[str]) -> None:
    identities: dict[str, str] = {}
    for name in names:
        model = config.models[name]
        if isinstance(model, ServerModel):
            for env in model.api_key_env if f"models.{name}.api_key_env" not in missing else ():
                secret(env, f"models.{name}.api_key_env")
            identity = f"{model_ref(model)} {model.system!r}"
        elif isinstance(model, LocalModel):
            _check_folder(f"models.{name}.path", str(model.path), missing)
            identity = f"{model.path} {model.sampling} {model.system!r}"
        else:
            identity = str(model)
        other = identities.setdefault(identity, name)
        if other != name and name in (config.responses.names if config.responses else ()):
            raise ConfigError(
                f"The models '{other}' and '{name}' are the same model with the same sampling: both would give the same answers",
                where=f"models.{name}",
                cure="give them different names on their servers or different sampling settings, or drop one",
            )


def _check_rows(path: Path) -> None:
    if next(iter(read_rows(path)), None) is None:
        raise InputError("The data file has no rows", where=str(path), cure="give a file with at least one row")


def _check_honesty(settings: PolicySection, missing: Collection[str]) -> None:
    """What is used by the first evaluation and not before, hours later perhaps."""
    if settings.guard.model is not None:
        _check_folder("policy.guard.model", settings.guard.model, missing, adapter=True)
    for folder in settings.shaping.models:
        _check_folder("policy.shaping.models", folder, missing, adapter=True)
    if settings.selection.checks is not None and "policy.selection.checks" not in missing:
        read_checks(settings.selection.checks)


def _check_folder(setting: str, folder: str, missing: Collection[str], adapter: bool = False) -> None:
    """A transformers folder has a config.json that names its kind of model; an adapter has adapter_config.json instead."""
    if folder == MICROWORLD_BASE or setting in missing:
        return
    path = Path(folder)
    if adapter and (path / "adapter_config.json").is_file():
        return
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


# ── count ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Calls:
    """What one model will be asked by one stage, e.g. Calls("ranking", "judge", "openai", 1000, 4_000_000, 1_024_000)."""

    stage: str
    model: str
    kind: str
    calls: int
    """If nothing fails and no answer has to be drawn again."""
    prompt_tokens: int
    """Estimate."""
    completion_tokens: int
    """Upper bound."""
    further_calls: int = 0
    """At most so many more, where calls fail and answers are empty or repeat one another."""


def asked_prompts(config: Config, stages: Sequence[str], progress: Progress = SILENT) -> Sequence[Prompt]:
    """The prompts that `stages` will work on: those of the finished prompts stage, or gathered now when it is one of `stages`.

    Raises:
        InputError: a prompt file cannot be used.
        ArtifactError: the prompts stage is not done, and not one of `stages`.
    """
    if config.prompts is None or not (ASKING | {"policy"}) & set(stages):
        return []
    if "prompts" in stages:
        return _gathered(config, progress)
    return read_records(open_artifact(config.run.dir, "prompts").path / "prompts.parquet", Prompt)


def count(config: Config, stages: Sequence[str], everything: Sequence[Prompt]) -> list[Calls]:
    """The model calls that `stages` will make about these prompts, those already in the journal included."""
    if config.prompts is None or not (ASKING | {"policy"}) & set(stages):
        return []
    held_out = [p for p in everything if p.split == config.evaluate.split]
    asked = [p for p in everything if p.split != "test"] if is_world(config) else everything
    calls: list[Calls] = []
    if "responses" in stages:
        calls += _pool_calls(config, asked, _found(config, stages))
    if "ranking" in stages and config.ranking is not None:
        calls += _judge_calls(config, asked, config.responses.answers if config.responses else 0)
    if judged := "policy" in stages and config.policy.selection.judge_prompts:
        policy = config.policy
        evaluations = -(-policy.iterations // policy.eval_every)
        validation = [p for p in everything if p.split == "validation"][: min(judged, policy.eval_prompts)]
        rubric = rubric_of("internal_flipped", config.ranking is not None and config.ranking.ties == "keep")
        calls.append(_asks(config, "policy", rubric, validation, 2, policy.sampling.max_tokens, 2 * evaluations))
    if "evaluate" in stages:
        if is_world(config):
            calls += _everybody_calls(config, held_out)
        if config.ranking is not None:
            both_orders = held_out[: config.evaluate.judge_prompts] * 2
            rubric = rubric_of("internal_flipped", config.ranking.ties == "keep")
            calls.append(_asks(config, "evaluate", rubric, both_orders, 2, config.policy.sampling.max_tokens, 1))
    return calls


def _gathered(config: Config, progress: Progress) -> list[Prompt]:
    assert config.prompts is not None
    from_world: list[Prompt] = []
    if any(source.type == "microworld" for source in config.prompts.sources):
        from starling.microworld import world

        from_world = world.all_prompts(validation=config.prompts.validation_fraction, test=config.prompts.test_fraction)
    return list(prompts.gather(config.prompts, from_world, progress, seed=config.run.seed).prompts)


def _found(config: Config, stages: Sequence[str]) -> Counter[str]:
    """How many answers were found with each prompt, by its id; none are known before the prompts stage is done."""
    if config.responses is None or not config.responses.use_found or "prompts" in stages:
        return Counter()
    file = open_artifact(config.run.dir, "prompts").path / "answers.parquet"
    return Counter(answer.prompt_id for answer in RecordFile(file, FoundAnswer))


def _pool_calls(config: Config, asked: Iterable[Prompt], found: Mapping[str, int]) -> list[Calls]:
    """The calls of the responses stage, by model: exactly those of its first round, and what later rounds may add.

    Args:
        config: the settings; without [responses] there are no calls.
        asked: the prompts.
        found: by prompt id, how many answers were found with it; nothing where none were.
    """
    settings = config.responses
    if settings is None:
        return []
    models = {name: config.models[name] for name in settings.names}
    greedy = greedy_among({n: m.sampling.temperature for n, m in models.items() if not isinstance(m, MicroworldJudge)})
    systems = config.systems
    calls: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    most: Counter[str] = Counter()
    for prompt in asked:
        there = found.get(prompt.id, 0)
        need = max(0, settings.answers - min(there, settings.max_found or there))
        slots = slots_of(prompt.id, settings, greedy, config.run.seed)
        most += most_asks(slots, need)
        for model, _ in next_asks(slots, need, b""):
            calls[model] += 1
            tokens[model] += _tokens(with_system(prompt.messages, systems.get(model)))
    return [
        Calls(
            "responses", name, model.type, calls[name], tokens[name], calls[name] * _longest(config, [name]),
            most[name] - calls[name],
        )
        for name, model in models.items()
    ]  # fmt: skip


def _everybody_calls(config: Config, asked: Sequence[Prompt]) -> list[Calls]:
    """In the microworld's evaluation every model of the pool answers every held-out prompt once."""
    systems = config.systems
    found = []
    for name in config.responses.names if config.responses else ():
        tokens = sum(_tokens(with_system(p.messages, systems.get(name))) for p in asked)
        longest = len(asked) * _longest(config, [name])
        found.append(Calls("evaluate", name, config.models[name].type, len(asked), tokens, longest))
    return found


def _longest(config: Config, names: Sequence[str]) -> int:
    """Most tokens that one of these models may write in a reply."""
    models = [config.models[name] for name in names]
    return max((m.sampling.max_tokens for m in models if not isinstance(m, MicroworldJudge)), default=0)


def _judge_calls(config: Config, asked: Sequence[Prompt], k: int) -> list[Calls]:
    """The calls of `ranking.orders` orders; with `orders_if_contested`, a second row for what contested prompts take at most:
    all prompts might be contested."""
    settings = config.ranking
    assert settings is not None
    rubric = rubric_of(settings.mode, settings.ties == "keep")
    longest = _longest(config, config.responses.names if config.responses else ()) or config.policy.sampling.max_tokens
    per_order = calls_per_order(settings.mode, k)
    orders = {"ranking": settings.orders}
    if settings.orders_if_contested is not None:
        orders["ranking contested"] = settings.orders_if_contested - settings.orders
    return [_asks(config, stage, rubric, asked, k, longest, per_order * count) for stage, count in orders.items()]


def _asks(config: Config, stage: str, rubric: Rubric, asked: Sequence[Prompt], k: int, longest: int, each: int) -> Calls:
    """`each` judge calls for every prompt. A judge prompt holds the rubric, the conversation and as many of the K answers as the
    rubric shows at once; the answers are taken to be as long as allowed."""
    assert config.ranking is not None
    shown = min(k, FORMS[rubric.grammar].sizes[1])
    frame = 0
    if shown >= FORMS[rubric.grammar].sizes[0]:
        pairs = list(combinations(range(shown), 2)) if rubric.lists_pairs else []
        frame = prompt_chars(rubric, (Message(role="user", content="-"),), [""] * shown, pairs) // CHARS_PER_TOKEN + 1
    tokens = len(asked) * (frame + shown * longest) + sum(_tokens(p.messages) for p in asked)
    name = config.ranking.judge
    calls = each * len(asked)
    return Calls(stage, name, config.models[name].type, calls, each * tokens, calls * config.ranking.max_tokens)


def _tokens(messages: Sequence[Message]) -> int:
    return sum(len(m.content) for m in messages) // CHARS_PER_TOKEN + 1


SHARED = ("reward", "policy")
"""Stages that several processes do together, each calling the stage's function; one stage per start, since the next one reads
what the first process has yet to finish."""


def require_shared(todo: Sequence[str]) -> None:
    """Look whether this process is one of several, and the work left is not for several.

    Raises:
        UsageError: it is so; names the stage.
    """
    count, alone = launched().count, [name for name in todo if name not in SHARED]
    if count > 1 and alone:
        raise UsageError(
            f"{count} processes were started, and the stage '{alone[0]}' is to be done by one",
            where="torchrun or accelerate launch",
            cure=f"run it first without them: `starling run CONFIG --until {alone[0]}`; several can do {', '.join(SHARED)}",
        )
    if count > 1 and len(todo) > 1:
        raise UsageError(
            f"{count} processes were started, and they do one stage at a time: {', '.join(todo)}",
            where="torchrun or accelerate launch",
            cure=f"start them for `starling run CONFIG --until {todo[0]}` first",
        )
