"""What a stage's result depends on, and with it where every stage of a run stands.

A stage's key is a hash of the settings it reads, the content of the user's files it reads, and the keys of its inputs. A stage is

    done      its artifact has the present key and was made from the inputs that are there now
    stale     its artifact was made with other settings, files or inputs
    missing   there is no artifact
    unused    the settings do without it

so changing one setting makes exactly the stages stale that read it, and those after them. Settings that change how fast a
result comes, not what it is (SPEED), are no part of a key; nor is where a file lies, only what it holds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from starling.artifacts import MANIFEST, Artifact, open_artifact
from starling.config import Config, ServerModel
from starling.content import content_of
from starling.errors import ArtifactError
from starling.records import content_hash

MICROWORLD_BASE = "microworld:base"

GUARD_FOLDER = "guard"
"""Inside the reward artifact: the second reward model of `reward.guard_fraction`."""

BENCHMARKS_FOLDER = "benchmarks"
"""Inside the run directory: an artifact for each benchmark of models, and the page about all of them."""

KEY_VERSION = 1
"""Raised when a change of the code makes every artifact out of date."""

MODEL_SPEED = {"api_key_env", "attempts", "base_url", "batch", "idle_timeout_s", "in_flight", "price", "timeout_s"}
SPEED = {
    "pool": MODEL_SPEED,
    "judge": MODEL_SPEED,
    "policy judge": MODEL_SPEED,
    "evaluate": {"alpaca_eval", "arena_hard", "head_to_head", "mt_bench", "safety"},  # the benchmarks have keys of their own
    "reward": {"checkpoint_steps", "gradient_checkpointing", "micro_tokens", "trackers"},
    "policy": {
        "checkpoint_every", "gradient_checkpointing", "micro_tokens", "trackers",
        "api_key_env", "attempts", "in_flight", "timeout", "urls", "weights",
    },
}
"""Settings that are no part of a key, by section: they change how fast a result comes, not what it is."""

PATHS = frozenset({"path", "data", "backbone", "base", "checks", "guard.model", "shaping.models"})
"""Settings that name a file or folder of the user, some with the section they stand in: what it holds is part of the key, not
where it lies."""


@dataclass(frozen=True)
class Stage:
    """One link of the chain."""

    name: str
    does: str
    """One line for people."""
    run: Callable[[Any], None]
    """The work, given a `pipeline.Job`."""
    inputs: tuple[str, ...]
    """Stages whose artifacts it reads, where the settings make it read them (`inputs_of`)."""
    sections: tuple[str, ...]
    """Settings it reads, dotted; `pool` and `judge` stand for the models that responses and ranking name, `policy judge` for the
    latter with [ranking] where the policy's selection asks it, `prices` for what those under [models] cost, `benchmarks` for the
    results of benchmarks that are there."""


# ── dependencies ─────────────────────────────────────────────────────────────────────────────────────────────────────


def is_world(config: Config) -> bool:
    """Whether every prompt is the microworld's, so that gold scores exist."""
    return config.prompts is not None and all(source.type == "microworld" for source in config.prompts.sources)


def inputs_of(stage: Stage, config: Config) -> tuple[str, ...]:
    """The stages whose artifacts `stage` reads under these settings."""
    collects = config.responses is not None and config.ranking is not None
    reads = {
        "world": _reads_world(stage.name, config),
        "responses": collects or stage.name != "report",
        "ranking": collects or stage.name != "report",
        "dataset": _reads_dataset(stage.name, config, collects),
    }
    if stage.name == "publish":  # whoever wants a dataset or a reward model alone gets its card
        reads |= {"reward": trains("reward", config), "policy": trains("policy", config), "evaluate": trains("policy", config)}
    return tuple(name for name in stage.inputs if reads.get(name, True))


def trains(section: Literal["reward", "policy"], config: Config) -> bool:
    """Whether the whole chain goes as far as this training: in the microworld, and where the settings have its section."""
    return config.microworld is not None or section in config.model_fields_set


def _reads_world(stage: str, config: Config) -> bool:
    pool = config.responses.names if config.responses else ()
    judge = (config.ranking.judge,) if config.ranking else ()
    asks = {"responses": pool, "ranking": judge, "evaluate": pool + judge}.get(stage, ())
    starts_from = {"reward": config.reward.backbone, "policy": config.policy.base, "evaluate": config.policy.base}.get(stage)
    return starts_from == MICROWORLD_BASE or any(config.models[name].type == "microworld-speaker" for name in asks)


def _reads_dataset(stage: str, config: Config, collects: bool) -> bool:
    own_rankings = config.reward.data is None
    if stage == "evaluate":  # the microworld's answers have a gold score, others are judged by held-out rankings
        return own_rankings and not is_world(config)
    if stage == "publish":
        return collects or not trains("reward", config)
    return own_rankings if stage == "reward" else collects


def settings_read(stage: Stage, config: Config) -> dict[str, Any]:
    """What the stage's result depends on besides its inputs: settings, with the content of files in place of their paths."""
    found: dict[str, Any] = {}
    for section in stage.sections:
        if section == "pool":
            value: Any = {name: _dump(config.models[name]) for name in (config.responses.names if config.responses else ())}
        elif section == "judge":
            value = {config.ranking.judge: _dump(config.models[config.ranking.judge])} if config.ranking else None
        elif section == "policy judge":
            if not config.policy.selection.judge_prompts or config.ranking is None:
                continue
            value = {"ranking": _dump(config.ranking), "model": _dump(config.models[config.ranking.judge])}
        elif section == "benchmarks":
            value = benchmark_fingerprints(config.run.dir)
        elif section == "prices":
            priced = {name: model.price for name, model in config.models.items() if isinstance(model, ServerModel)}
            value = {name: _dump(price) for name, price in priced.items() if price is not None}
        else:
            value = config
            for part in section.split("."):
                value = getattr(value, part, None)
            value = _dump(value)
        found[section] = _content_for_paths(without(value, SPEED.get(section, set())))
    return found


def benchmark_fingerprints(run_dir: Path) -> dict[str, str]:
    """What the results of the run's benchmarks hold, by their names; those that cannot be read are left out."""
    found = {}
    for manifest in sorted((run_dir / BENCHMARKS_FOLDER).glob(f"*/{MANIFEST}")):
        try:
            found[manifest.parent.name] = open_artifact(manifest.parent.parent, manifest.parent.name).fingerprint
        except ArtifactError:
            continue
    return found


def _dump(value: Any) -> Any:
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value


def without(value: Any, names: set[str]) -> Any:
    if not isinstance(value, dict):
        return value
    return {k: without(v, names) for k, v in value.items() if k not in names}


def _content_for_paths(value: Any, section: str = "") -> Any:
    if isinstance(value, dict):
        return {
            k: _content_of_path(v) if PATHS & {k, f"{section}.{k}"} else _content_for_paths(v, k) for k, v in value.items()
        }
    return [_content_for_paths(v, section) for v in value] if isinstance(value, list) else value


def _content_of_path(value: Any) -> Any:
    if isinstance(value, list):
        return [_content_of_path(v) for v in value]
    return content_of(Path(value)) if isinstance(value, str) and value != MICROWORLD_BASE else value


# ── status ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Status:
    """Where a stage stands, e.g. Status("reward", "stale", why="reward.epochs: 1 → 2", …)."""

    stage: str
    state: Literal["done", "stale", "missing", "unused"]
    why: str
    key: str
    artifact: Artifact | None


def stage_status(stage: Stage, config: Config, before: Mapping[str, Status]) -> Status:
    """Where `stage` stands, given the stages before it.

    Raises:
        ArtifactError: its artifact is half-written, altered or of another version.
    """
    inputs = {name: before[name] for name in inputs_of(stage, config)}
    settings = settings_read(stage, config)
    key = content_hash([KEY_VERSION, stage.name, settings, {name: s.key for name, s in inputs.items()}], 16)
    artifact = existing(config.run.dir, stage.name)
    if artifact is None:
        return Status(stage.name, "missing", "", key, None)
    changed = changes(artifact.config, settings)
    waiting = [name for name, s in inputs.items() if s.state != "done"]
    remade = [name for name, s in inputs.items() if s.artifact and artifact.inputs.get(name) != s.artifact.fingerprint]
    if changed or waiting or remade or artifact.key != key:
        why = ", ".join(changed) or f"after {', '.join(waiting or remade) or 'a change of Starling'}"
        return Status(stage.name, "stale", why, key, artifact)
    return Status(stage.name, "done", "", key, artifact)


def existing(run_dir: Path, stage: str) -> Artifact | None:
    """The artifact of a stage, or None where there is none yet.

    Raises:
        ArtifactError: what is there is half-written, altered, of another version, or not Starling's.
    """
    try:
        return open_artifact(run_dir, stage)
    except ArtifactError:
        folder = run_dir / stage
        if not folder.exists():
            return None
        if not (folder / MANIFEST).exists():
            raise ArtifactError(
                f"Where the stage '{stage}' writes, there is something without a manifest that Starling did not make",
                where=str(folder),
                cure="move it away, or give this run another directory with --set run.dir=…",
            ) from None
        raise


def changes(old: Any, new: Any, at: str = "") -> list[str]:
    """Settings that differ, as "reward.epochs: 1 → 2"."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = dict.fromkeys([*old, *new])
        return [c for n in names for c in changes(old.get(n), new.get(n), f"{at}.{n}" if at else str(n))]
    return [] if old == new else [f"{at}: {_short(old)} → {_short(new)}"]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "…"
