"""The benchmarks of models that a run's settings ask for: what each is asked with, where its result lies, and when it is redone.

    runs/x/benchmarks/
      mt-bench/       one artifact per benchmark: result.json, the official files, manifest.json
      results.json    all of them in one file
      page.html       all of them on one page

A benchmark goes as the stages do. Its key is a hash of its section of the settings, of the models and the judge that it asks
(without what only makes them faster), of the files that they name, and of the policy where it is the run's own; with another key
it is stale and is done again, whole or not at all. Every call is in the run's journal, so what is repeated costs nothing.

Benchmarks need no chain: settings with [run], [models] and a section of [evaluate] will do.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starling import pipeline
from starling.artifacts import new_artifact, open_artifact
from starling.config import Config, HeadToHeadSection, ServerModel
from starling.config.benchmarks import OWN_MODELS, JudgedSection
from starling.content import content_of
from starling.endpoint import Endpoint
from starling.errors import InputError, UsageError
from starling.evaluate.registry import Benchmark, configured, finished
from starling.evaluate.result_files import RESULT_FILE, as_json, read_result, write_result
from starling.evaluate.results import Job, Result
from starling.lineage import (
    BENCHMARKS_FOLDER,
    KEY_VERSION,
    MICROWORLD_BASE,
    MODEL_SPEED,
    Status,
    changes,
    existing,
    trains,
    without,
)
from starling.plan import check_asked
from starling.progress import SILENT, Progress
from starling.records import content_hash
from starling.rundir import launched, locked
from starling.serving import Endpoints

RESULTS_FILE = "results.json"
Tell = Callable[[str], None]


def run_with_chain(
    config: Config, until: str | None = None, progress: Progress = SILENT, tell: Tell = lambda line: None
) -> tuple[list[Status], list[Result]]:
    """The chain up to a stage and, where that includes the evaluation, the benchmarks of the settings after it.

    Settings that train no policy have their benchmarks alone (`alone`).

    Returns:
        The status of the stages, as `pipeline.run`, and the benchmarks' results.

    Raises:
        StarlingError: as `pipeline.run` and `run`; what the benchmarks lack is found before the chain begins.
    """
    wanted = configured(config)
    by_themselves = alone(config, until)
    if not wanted or launched().count > 1 or not (by_themselves or _evaluates(config, until)):
        return pipeline.run(config, until, progress, tell), []
    check(config, wanted)
    states = [] if by_themselves else pipeline.run(config, "evaluate", progress, tell)
    results = run(config, progress=progress, tell=tell)
    if not by_themselves and until != "evaluate":
        states = pipeline.run(config, until, progress, lambda line: None if line.endswith(": done before") else tell(line))
    return states, results


def alone(config: Config, until: str | None) -> bool:
    """Whether there is nothing to do but benchmarks: they are asked for, and the settings have no policy to train for `evaluate`,
    or no chain at all."""
    if not configured(config) or trains("policy", config):
        return False
    return until == "evaluate" or (until is None and config.prompts is None and not trains("reward", config))


def _evaluates(config: Config, until: str | None) -> bool:
    return any(stage.name == "evaluate" for stage in pipeline.needed(config, until))


def run(
    config: Config,
    wanted: Sequence[Benchmark] | None = None,
    progress: Progress = SILENT,
    tell: Tell = lambda line: None,
    out: Path | None = None,
) -> list[Result]:
    """Do what is not done of the benchmarks; returns all their results, in the registry's order.

    Args:
        config: the settings.
        wanted: which of those that the settings have a section for; None for all.
        progress: gets the progress inside a benchmark.
        tell: gets one line for each benchmark that begins or was done before.
        out: put a copy of a benchmark's files into this folder, too (one benchmark only).

    Raises:
        UsageError: another process works in the run directory, or it cannot be written.
        StarlingError: a benchmark cannot go on. Earlier ones stay, and so does every model call that was answered.
    """
    wanted = configured(config) if wanted is None else wanted
    check(config, wanted)
    made = False
    with locked(config.run.dir), Endpoints(config) as endpoints:
        for one in wanted:
            here = state(config, one)
            if here.state == "done":
                tell(f"{one.word}: done before")
                continue
            tell(f"{one.word}: {len(names(config, one))} models")
            _do(config, one, here, endpoints, progress)
            made = True
        results = [read_result(folder(config) / one.word) for one in wanted]
        if made or not page_of(config).exists():
            write_page(config)
    if out is not None:
        _copy(folder(config) / wanted[0].word, out)
    return results


def folder(config: Config) -> Path:
    """Where the benchmarks of a run lie."""
    return config.run.dir / BENCHMARKS_FOLDER


def _do(config: Config, one: Benchmark, here: Status, endpoints: Endpoints, progress: Progress) -> None:
    asked = _asked(config, one)
    try:
        with new_artifact(folder(config), one.word, key=here.key, inputs=asked.inputs, config=asked.settings) as draft:
            result = one.run()(_given(config, one), job(config, one, endpoints, draft.path, progress))
            write_result(draft.path / RESULT_FILE, result)
            draft.rows = sum(m.overall.n for m in result.models)
            draft.outcomes.update(result.judge.outcomes if result.judge else {})
    finally:
        progress.finish()


def _copy(source: Path, out: Path) -> None:
    import shutil

    shutil.copytree(source, out, dirs_exist_ok=True)


# ── what a benchmark is given ────────────────────────────────────────────────────────────────────────────────────────


def job(config: Config, one: Benchmark, endpoints: Endpoints, out: Path, progress: Progress) -> Job:
    """Models and judge behind endpoints, and what else the settings say.

    Args:
        config: the settings.
        one: a benchmark that they have a section for.
        endpoints: of the run.
        out: folder for the benchmark's files; exists.
        progress: shown while models answer.
    """
    judge = judge_of(config, one)
    asked = names(config, one)
    return Job(
        models={name: _endpoint(config, endpoints, name) for name in asked},
        systems={name: system for name, system in config.systems.items() if name in asked},
        judge=endpoints.get(judge) if judge else None,
        ranking=config.ranking,
        judge_price=price(config, judge),
        seed=config.run.seed,
        resamples=config.evaluate.bootstrap,
        folder=out,
        progress=progress,
    )


def price(config: Config, name: str) -> tuple[float, float] | None:
    """What a million tokens of prompts and of replies cost, with the discount of a batch API."""
    model = config.models.get(name)
    if not isinstance(model, ServerModel) or model.price is None:
        return None
    share = 1 - model.batch.discount if model.batch is not None else 1.0
    return model.price.prompt * share, model.price.completion * share


def _section(config: Config, one: Benchmark) -> JudgedSection:
    section = one.settings(config)
    if section is None:
        raise UsageError(
            f"The settings have no section for {one.word}",
            where=f"[evaluate.{one.section}]",
            cure="add the section, see docs/evaluation.md",
        )
    return section


def _given(config: Config, one: Benchmark) -> JudgedSection:
    """The section as the benchmark gets it: a head to head that names no prompts gets the run's held-out ones."""
    section = _section(config, one)
    if isinstance(section, HeadToHeadSection) and section.prompts is None:
        prompts = open_artifact(config.run.dir, "prompts").path / "prompts.parquet"
        return section.model_copy(update={"prompts": prompts, "split": section.split or config.evaluate.split})
    return section


def names(config: Config, one: Benchmark) -> tuple[str, ...]:
    """Labels of the models that a benchmark asks."""
    section = _section(config, one)
    return section.models or (OWN_MODELS if section.asks_own else ())


def judge_of(config: Config, one: Benchmark) -> str:
    """Name of the judge of a benchmark; "" when it has none."""
    return _section(config, one).judge or (config.ranking.judge if config.ranking else "")


def _is_own(config: Config, name: str) -> bool:
    return name in OWN_MODELS and name not in config.models


def _endpoint(config: Config, endpoints: Endpoints, name: str) -> Endpoint:
    if not _is_own(config, name):
        return endpoints.get(name)
    path, version = _own_folder(config, name)
    return endpoints.folder(name, path, version, batch=config.policy.sample_batch, sampling=config.policy.sampling)


def _own_folder(config: Config, name: str) -> tuple[Path, str]:
    """Where the run's base or policy lies, and a hash of what it holds."""
    if name == "policy":
        policy = open_artifact(config.run.dir, "policy")
        return policy.path, policy.fingerprint
    if config.policy.base == MICROWORLD_BASE:
        world = open_artifact(config.run.dir, "world")
        return world.path / "base", world.fingerprint
    return Path(config.policy.base), content_of(Path(config.policy.base))


# ── when a benchmark is done ─────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Asked:
    """What a benchmark's result depends on."""

    settings: dict[str, Any]
    inputs: dict[str, str]
    """Fingerprints of the stages whose models it asks; "" for one that is not done."""


def _asked(config: Config, one: Benchmark) -> _Asked:
    section = _section(config, one)
    asked, judge = names(config, one), judge_of(config, one)
    named = [name for name in dict.fromkeys([*asked, *_mentioned(config, section), judge]) if name in config.models]
    stages = {"policy"} if any(_is_own(config, n) and n == "policy" for n in asked) else set()
    own_base = any(_is_own(config, n) and n == "base" for n in asked)
    if (own_base and config.policy.base == MICROWORLD_BASE) or any(config.models[n].type == "microworld-speaker" for n in named):
        stages.add("world")
    own_prompts = isinstance(section, HeadToHeadSection) and section.prompts is None
    if own_prompts:
        stages.add("prompts")
    settings: dict[str, Any] = {
        "run.seed": config.run.seed,
        "evaluate.bootstrap": config.evaluate.bootstrap,
        f"evaluate.{one.section}": _plain(section.model_dump()),
        "judge": judge,
        "ranking": None if config.ranking is None else config.ranking.model_dump(mode="json"),
        "models": {name: without(_plain(config.models[name].model_dump()), MODEL_SPEED) for name in named},
    }
    if own_base or "policy" in stages:
        settings["policy.sampling"] = config.policy.sampling.model_dump(mode="json")
    if own_base and config.policy.base != MICROWORLD_BASE:
        settings["policy.base"] = content_of(Path(config.policy.base))
    if own_prompts:
        settings["evaluate.split"] = config.evaluate.split
    artifacts = {stage: existing(config.run.dir, stage) for stage in sorted(stages)}
    return _Asked(settings, {stage: found.fingerprint if found else "" for stage, found in artifacts.items()})


def _mentioned(config: Config, section: JudgedSection) -> Iterator[str]:
    """Models that a section names in fields of its own, e.g. as the baseline."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        yield from (v for v in (value if isinstance(value, tuple) else (value,)) if isinstance(v, str) and v in config.models)


def _plain(value: Any) -> Any:
    """Settings as JSON, with what a file holds in place of its path."""
    if isinstance(value, Path):
        return content_of(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def state(config: Config, one: Benchmark) -> Status:
    """Where a benchmark stands: done, stale (and why) or missing.

    Raises:
        ArtifactError: its artifact is half-written, altered or of another version.
    """
    asked = _asked(config, one)
    key = content_hash([KEY_VERSION, one.word, asked.settings, asked.inputs], 16)
    artifact = existing(folder(config), one.word)
    if artifact is None:
        return Status(one.word, "missing", "", key, None)
    if artifact.key == key:
        return Status(one.word, "done", "", key, artifact)
    remade = [stage for stage, found in asked.inputs.items() if artifact.inputs.get(stage) != found]
    why = ", ".join(changes(artifact.config, asked.settings)) or f"after {', '.join(remade) or 'a change of Starling'}"
    return Status(one.word, "stale", why, key, artifact)


def states(config: Config) -> list[Status]:
    """Where every benchmark of the settings stands."""
    return [state(config, one) for one in configured(config)]


# ── before anything is spent ─────────────────────────────────────────────────────────────────────────────────────────


def check(config: Config, wanted: Sequence[Benchmark]) -> None:
    """Raise when one of the benchmarks cannot work; nothing is written.

    Raises:
        ConfigError: a key is not set.
        InputError: a file that the section names, or a model's folder, is missing.
        UsageError: the run's own policy is wanted, and the settings train none.
        MissingExtra: a model is sampled here, and torch is not installed.
    """
    for one in wanted:
        section = _section(config, one)
        models = names(config, one)
        own = [name for name in models if _is_own(config, name)]
        if own and not trains("policy", config) and existing(config.run.dir, "policy") is None:
            raise UsageError(
                f"{one.word} is to evaluate the run's own {' and '.join(own)}, and these settings train no policy",
                where=f"evaluate.{one.section}.models",
                cure="name models that stand under [models], or add [policy]",
            )
        asked = list(dict.fromkeys([*models, *_mentioned(config, section), judge_of(config, one)]))
        check_asked(config, [name for name in asked if name in config.models])
        for field, path in _files(section):
            if not path.exists():
                raise InputError(
                    f"The file that {one.word} needs is not there",
                    where=f"evaluate.{one.section}.{field} = {path}",
                    cure="correct the path; docs/evaluation.md says where each benchmark's files come from",
                )


def _files(section: JudgedSection) -> Iterator[tuple[str, Path]]:
    """Every file that a section names, with its setting."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        several = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, tuple) else ()
        found = [(f"{name}.{at}", path) for at, path in several] or [(name, value)]
        yield from ((at, path) for at, path in found if isinstance(path, Path))


# ── all of them together ─────────────────────────────────────────────────────────────────────────────────────────────


def as_rows(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Results as plain data, for `--json` and results.json."""
    return [as_json(result) for result in results]


def page_of(config: Config) -> Path:
    """Where the page about a run's benchmarks lies."""
    return folder(config) / "page.html"


def write_page(config: Config) -> None:
    """results.json and page.html about every benchmark of the run that is done."""
    found = finished(config.run.dir)
    if found:
        write_files(found, folder(config), config.run.dir.resolve().name)


def write_files(found: Sequence[Result], out: Path, title: str) -> Path:
    """results.json and page.html about some results; returns the page's path."""
    from starling.report import evaluation_page

    page = evaluation_page.write_page(found, out, title=title)
    text = json.dumps({"results": as_rows(found)}, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    evaluation_page.write_text(out / RESULTS_FILE, text)
    return page
