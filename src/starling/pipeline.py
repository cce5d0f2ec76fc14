"""The whole story in one file: the stages in order, what each reads and writes, and how a run goes on.

A stage writes one artifact, `<run.dir>/<stage>`. Its key is a hash of what its result depends on: the settings it reads, the
content of the user's files it reads, and the keys of its inputs. A stage is

    done      its artifact has the present key and was made from the inputs that are there now
    stale     its artifact was made with other settings, files or inputs
    missing   there is no artifact

so changing one setting makes exactly the stages stale that read it, and those after them. Settings that change how fast a
result comes, not what it is (SPEED), are no part of a key.

`run` does what is not done, in order. It may be killed at any instant: finished stages are artifacts, answered model calls are in
the journal, training goes on from its last checkpoint, and the next `run` ends with the same artifacts.
"""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starling import imported, nectar, prompts, ranking, responses
from starling.artifacts import Draft, RecordFile, drop_work, new_artifact, open_artifact, read_records, work_dir, write_records
from starling.config import Config
from starling.errors import ConfigError, UsageError
from starling.lineage import (
    GUARD_FOLDER,
    MICROWORLD_BASE,
    Stage,
    Status,
    inputs_of,
    is_world,
    settings_read,
    stage_status,
    trains,
)
from starling.plan import check, require_shared
from starling.progress import SILENT, Progress
from starling.records import FoundAnswer, Judgment, MergedRanking, Prompt, RankedPrompt, Response
from starling.rundir import WORK_FOLDER, Stopwatch, launched, locked, write_json
from starling.serving import Endpoints

SUMMARY_FILE = "summary.json"
CONFIG_FILE = "config.json"


@dataclass(frozen=True)
class Job:
    """What a stage's function is given: where to read and write, and the run's settings, models and progress."""

    config: Config
    stage: str
    key: str
    draft: Draft
    endpoints: Endpoints
    progress: Progress

    @property
    def seed(self) -> int:
        return self.config.run.seed

    @property
    def scratch(self) -> Path:
        """Folder for checkpoints of this very stage and key; made when asked for."""
        return work_dir(self.config.run.dir, self.stage, self.key)

    def path(self, stage: str) -> Path:
        """The finished artifact of an earlier stage."""
        return open_artifact(self.config.run.dir, stage).path

    def prompts(self, *splits: str) -> list[Prompt]:
        """The gathered prompts of these splits; of all when none is named."""
        found = read_records(self.path("prompts") / "prompts.parquet", Prompt)
        return [p for p in found if not splits or p.split in splits]

    def model_folder(self, name: str) -> Path:
        """The folder that `reward.backbone` or `policy.base` names."""
        return self.path("world") / "base" if name == MICROWORLD_BASE else Path(name)

    def prepare_torch(self) -> None:
        """Seed torch, so that a stage does not depend on those that ran before it in the same process."""
        from starling.training.loop import set_determinism

        set_determinism(self.seed, self.config.run.threads)


# ── the stages' work ─────────────────────────────────────────────────────────────────────────────────────────────────


def _world(job: Job) -> None:
    from starling.microworld import speakers

    settings, prompt_settings = job.config.microworld, job.config.prompts
    assert settings is not None
    assert prompt_settings is not None
    job.prepare_torch()
    metrics = speakers.build(
        job.draft.path,
        job.scratch,
        settings,
        seed=job.seed,
        validation=prompt_settings.validation_fraction,
        test=prompt_settings.test_fraction,
        progress=job.progress,
    )
    job.draft.metrics.update(metrics)


def _prompts(job: Job) -> None:
    settings = job.config.prompts
    assert settings is not None
    from_world: list[Prompt] = []
    if any(source.type == "microworld" for source in settings.sources):
        from starling.microworld import world

        from_world = world.all_prompts(validation=settings.validation_fraction, test=settings.test_fraction)
    gathered = prompts.gather(settings, from_world, job.progress, job.seed, job.scratch)
    write_records(job.draft.path / "prompts.parquet", gathered.prompts, Prompt)
    write_records(job.draft.path / "answers.parquet", gathered.answers, FoundAnswer)
    write_records(job.draft.path / "dropped.parquet", gathered.rows, prompts.GatheredRow)
    if gathered.contaminated:
        write_records(job.draft.path / "contaminated.parquet", gathered.contaminated, prompts.GatheredRow)
    job.draft.rows = len(gathered.prompts)
    job.draft.outcomes.update(gathered.dropped | gathered.noted)


def _responses(job: Job) -> None:
    settings = job.config.responses
    assert settings is not None
    world = is_world(job.config)
    asked = job.prompts("train", "validation") if world else RecordFile(job.path("prompts") / "prompts.parquet", Prompt)
    collected = responses.collect(
        asked,
        job.endpoints.pool(),
        settings,
        out=job.draft.path / "responses.parquet",
        scratch=job.scratch,
        seed=job.seed,
        systems=job.config.systems,
        found=RecordFile(job.path("prompts") / "answers.parquet", FoundAnswer) if settings.use_found else (),
        progress=job.progress,
    )
    job.draft.rows = collected.rows
    job.draft.outcomes.update(collected.outcomes)
    job.draft.metrics.update(collected.metrics)


def _ranking(job: Job) -> None:
    judge, settings = job.endpoints.judge(), job.config.ranking
    assert judge is not None
    assert settings is not None
    collected = RecordFile(job.path("responses") / "responses.parquet", Response)
    ranked = ranking.rank(_answered(job), collected, judge, settings, job.seed, job.progress, job.draft.path)
    job.draft.rows = len(ranked.rankings)
    job.draft.outcomes.update(ranked.outcomes)
    job.draft.metrics.update(ranked.metrics)


def _answered(job: Job) -> Iterable[Prompt]:
    """The prompts that the pool was asked, in order, re-iterable: in the microworld, those of the test are the evaluation's."""
    everything = RecordFile(job.path("prompts") / "prompts.parquet", Prompt)
    return _InSplits(everything, ("train", "validation")) if is_world(job.config) else everything


@dataclass(frozen=True)
class _InSplits(Iterable[Prompt]):
    prompts: Iterable[Prompt]
    splits: tuple[str, ...]

    def __iter__(self) -> Iterator[Prompt]:
        return (p for p in self.prompts if p.split in self.splits)


def _dataset(job: Job) -> None:
    ranked = job.path("ranking")
    rankings = RecordFile(ranked / ranking.RANKINGS_FILE, MergedRanking)
    assembled = nectar.assemble(
        RecordFile(job.path("prompts") / "prompts.parquet", Prompt),
        RecordFile(job.path("responses") / "responses.parquet", Response),
        rankings,
        RecordFile(ranked / ranking.JUDGMENTS_FILE, Judgment),
        job.config.dataset,
    )
    job.progress.start("dataset", len(rankings))
    job.draft.rows = nectar.write_splits(job.draft.path, assembled, job.progress)
    job.draft.outcomes.update(assembled.left_out)


def _reward(job: Job) -> None:
    from starling.reward import guard, train

    settings = job.config.reward
    train_rows: Collection[RankedPrompt] = ()
    validation_rows: Collection[RankedPrompt] = ()
    if not launched().first:
        pass  # the first process reads them
    elif settings.data is not None:
        train_rows, validation_rows, outcomes = imported.load(settings.data, settings.validation_fraction)
        job.draft.outcomes.update(outcomes)
    else:
        train_rows, validation_rows = _rankings(job, "train"), _rankings(job, "validation")
    job.prepare_torch()
    guarded = settings.guard_fraction > 0
    guard_rows: Collection[RankedPrompt] = ()
    if guarded and launched().first:
        train_rows, guard_rows = guard.split(train_rows, settings.guard_fraction)
    tracking = job.config.run.dir / "tracking"
    common: dict[str, Any] = {
        "backbone": job.model_folder(settings.backbone), "settings": settings, "progress": job.progress
    }  # fmt: skip
    metrics = train.train(
        train_rows, validation_rows, out=job.draft.path, work=job.scratch, seed=job.seed, tracking=tracking / "reward",
        part=not guarded, **common,
    )  # fmt: skip
    job.draft.rows = len(train_rows)
    job.draft.metrics.update(metrics)
    if guarded:
        found = train.train(
            guard_rows, validation_rows, out=job.draft.path / GUARD_FOLDER, work=job.scratch / GUARD_FOLDER,
            seed=guard.guard_seed(job.seed), tracking=tracking / "guard", name="guard model", **common,
        )  # fmt: skip
        job.draft.metrics.update({f"guard/{name}": value for name, value in found.items()})


def _policy(job: Job) -> None:
    from starling.policy import train
    from starling.policy.judged import Judge

    job.prepare_torch()
    asked = job.prompts("train")
    metrics = train.train(
        asked,
        job.prompts("validation"),
        base=job.model_folder(job.config.policy.base),
        reward=job.path("reward"),
        out=job.draft.path,
        work=job.scratch,
        settings=job.config.policy,
        seed=job.seed,
        progress=job.progress,
        monitor=_gold_of if is_world(job.config) else None,
        judge=Judge.of(job.config, job.endpoints.get) if launched().first else None,
        tracking=job.config.run.dir / "tracking" / "policy",
    )
    job.draft.rows = len(asked)
    job.draft.metrics.update(metrics)


def _gold_of(asked: Sequence[Prompt], texts: Sequence[str], finished: Sequence[bool]) -> dict[str, float]:
    """Mean gold score of replies, for the curve in the policy's log; the training never sees it."""
    from starling.microworld import world

    scores = [world.gold(p.messages, text, done).score for p, text, done in zip(asked, texts, finished, strict=True)]
    return {"gold": sum(scores) / len(scores)}


def _rankings(job: Job, split: str) -> Collection[RankedPrompt]:
    """The dataset's rows of a split, with their ties; read when they are iterated, again each time."""
    file = job.path("dataset") / f"{split}.parquet"
    return nectar.NectarFile(file) if file.exists() else ()


def _evaluate(job: Job) -> None:
    from starling import evaluate

    config = job.config
    job.prepare_torch()
    metrics = evaluate.run(
        job.prompts(),
        pool=job.endpoints.pool(),
        systems=config.systems,
        judge=job.endpoints.judge(),
        base=job.model_folder(config.policy.base),
        tuned=job.path("policy"),
        reward=job.path("reward"),
        settings=config.evaluate,
        ranking=config.ranking,
        world=is_world(config),
        seed=job.seed,
        progress=job.progress,
        out=job.draft.path,
        sampling=config.policy.sampling,
        rankings=() if config.reward.data is not None else _rankings(job, config.evaluate.split),
        batch=config.policy.sample_batch,
        budget_tokens=config.reward.micro_tokens,
    )
    job.draft.rows = metrics["prompts"]
    job.draft.metrics.update(metrics)


def _report(job: Job) -> None:
    from starling import report

    report.write(job.config.run.dir, job.draft.path)


def _publish(job: Job) -> None:
    from starling import publish

    publish.write(job.config.run.dir, job.draft.path, job.config.publish, job.config.models)


STAGES: tuple[Stage, ...] = (
    Stage(
        "world", "train the microworld's speakers", _world, (),
        ("run.seed", "microworld", "prompts.validation_fraction", "prompts.test_fraction"),
    ),
    Stage("prompts", "gather, filter, deduplicate and split prompts", _prompts, (), ("run.seed", "prompts")),
    Stage("responses", "every model of the pool answers", _responses, ("world", "prompts"), ("run.seed", "responses", "pool")),
    Stage(
        "ranking", "the judge ranks the answers", _ranking, ("world", "prompts", "responses"), ("run.seed", "ranking", "judge")
    ),
    Stage("dataset", "assemble the Nectar-style dataset", _dataset, ("prompts", "responses", "ranking"), ("dataset",)),
    Stage("reward", "train the reward model", _reward, ("world", "dataset"), ("run.seed", "reward")),
    Stage("policy", "tune the policy", _policy, ("world", "prompts", "reward"), ("run.seed", "policy", "policy judge")),
    Stage(
        "evaluate", "measure reward model and policy", _evaluate, ("world", "prompts", "dataset", "reward", "policy"),
        ("run.seed", "evaluate", "responses", "pool", "ranking", "judge"),
    ),
    Stage(
        "report", "write the report", _report,
        ("prompts", "responses", "ranking", "dataset", "reward", "policy", "evaluate"), ("benchmarks",),
    ),
    Stage("publish", "write the cards", _publish, ("dataset", "reward", "policy", "evaluate"), ("publish", "prices")),
)  # fmt: skip
BY_NAME = {stage.name: stage for stage in STAGES}


# ── what a run needs ─────────────────────────────────────────────────────────────────────────────────────────────────


def needed(config: Config, until: str | None = None) -> tuple[Stage, ...]:
    """The stages that lead to `until` (to the end of the chain when None), in order.

    The end of a chain whose settings train no policy is `publish`: there is no evaluation to report.

    Raises:
        UsageError: there is no such stage.
        ConfigError: a stage on the way needs a section that the settings lack.
    """
    if until is not None and until not in BY_NAME:
        near = difflib.get_close_matches(until, BY_NAME, n=1, cutoff=0.5)
        raise UsageError(
            f"There is no stage '{until}'" + (f"; did you mean '{near[0]}'?" if near else ""),
            where="the name of a stage",
            cure=f"use one of {', '.join(BY_NAME)}",
        )
    wanted: set[str] = set()
    open_names = [until] if until is not None else ["report", "publish"] if trains("policy", config) else ["publish"]
    while open_names:
        name = open_names.pop()
        if name not in wanted:
            wanted.add(name)
            open_names += inputs_of(BY_NAME[name], config)
    stages = tuple(stage for stage in STAGES if stage.name in wanted)
    # A chain without prompts is told so first, and of its lack of a world last.
    for stage in sorted(stages, key=lambda s: s.name == "world"):
        _require_sections(stage, config)
    return stages


def _require_sections(stage: Stage, config: Config) -> None:
    """Raise ConfigError when a section is missing that the stage cannot do without."""
    wanted = {"pool": "responses", "judge": "ranking", "prices": "models", "benchmarks": "evaluate", "policy judge": "policy"}
    sections = {wanted.get(section, section).split(".")[0] for section in stage.sections}
    if stage.name == "evaluate":  # goes without a judge: then there is no head to head
        sections -= {"responses", "ranking"}
    starts_from = {"reward": "reward.backbone", "policy": "policy.base", "evaluate": "policy.base"}.get(stage.name)
    if starts_from is not None and "world" in inputs_of(stage, config) and config.microworld is None:
        raise ConfigError(
            f"The stage '{stage.name}' has no model to start from: {starts_from} is not set, and there is no [microworld]",
            where=starts_from,
            cure=f"set {starts_from} to a transformers folder, or ask for an earlier stage only",
        )
    for section in sorted(sections):
        if getattr(config, section) is None:
            raise ConfigError(
                f"The stage '{stage.name}' needs the section [{section}], which the settings lack",
                where=f"[{section}]",
                cure="add the section, or ask for an earlier stage only",
            )


def status(config: Config) -> list[Status]:
    """Where every stage stands; `unused` ones are not needed with these settings, or lack a section.

    Raises:
        ArtifactError: an artifact is half-written, altered or of another version.
    """
    used: set[str] = set()
    lacking: dict[str, str] = {}
    for stage in STAGES[1:]:  # the world is used when a later stage uses it
        try:
            used |= {s.name for s in needed(config, stage.name)}
        except ConfigError as error:
            lacking[stage.name] = error.what
    found: dict[str, Status] = {}
    for stage in STAGES:
        if stage.name in used:
            found[stage.name] = stage_status(stage, config, found)
        else:
            found[stage.name] = Status(stage.name, "unused", lacking.get(stage.name, "not needed with these settings"), "", None)
    return list(found.values())


# ── run ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def run(
    config: Config, until: str | None = None, progress: Progress = SILENT, tell: Callable[[str], None] = lambda line: None
) -> list[Status]:
    """Do what is not done of the stages that lead to `until`; returns their status, all done.

    One of several processes (`rundir.launched`) that is not the first only helps where the work is shared; it shows nothing.

    Args:
        config: the settings.
        until: name of the last stage; the whole chain when None.
        progress: gets the progress inside a stage.
        tell: gets one line for each stage that begins or was done before.

    Raises:
        UsageError: no such stage, another process works in the run directory, or it cannot be written. Nothing is changed.
        StarlingError: a stage cannot go on. Earlier stages stay, and so does every model call that was answered.
    """
    wanted = [stage.name for stage in needed(config, until)]
    here = {s.stage: s for s in status(config)}
    todo = [name for name in wanted if here[name].state != "done"]
    check(config, todo)
    require_shared(todo)
    if not launched().first:
        return [_help(BY_NAME[name], config, here[name]) for name in todo]
    with locked(config.run.dir), Endpoints(config) as endpoints:
        for name in wanted:
            here = {s.stage: s for s in status(config)}
            if here[name].state == "done":
                tell(f"{name}: done before")
                continue
            tell(f"{name}: {BY_NAME[name].does}")
            if name == "report":  # the report reads both
                _finish(config, wanted)
            _do(BY_NAME[name], config, here, endpoints, progress)
            drop_work(config.run.dir, name)
        _finish(config, wanted)
        for name in wanted:
            drop_work(config.run.dir, name)  # of stages that were killed just after they were done
            for file in (config.run.dir / WORK_FOLDER).glob(f"{name}-*"):  # seconds of attempts with other settings
                file.unlink()
        return [s for s in status(config) if s.stage in wanted]


def _help(stage: Stage, config: Config, here: Status) -> Status:
    """Take part in a stage that the first process runs into its artifact; nothing is written or shown here."""
    with Endpoints(config) as endpoints:  # made when asked for, and nobody asks
        draft = Draft(work_dir(config.run.dir, stage.name, here.key))
        stage.run(Job(config=config, stage=stage.name, key=here.key, draft=draft, endpoints=endpoints, progress=SILENT))
    return here


def _do(stage: Stage, config: Config, here: dict[str, Status], endpoints: Endpoints, progress: Progress) -> None:
    """Run one stage into its artifact."""
    key = here[stage.name].key
    inputs = {name: open_artifact(config.run.dir, name).fingerprint for name in inputs_of(stage, config)}
    scratch = config.run.dir / WORK_FOLDER / f"{stage.name}-{key}"
    with Stopwatch(scratch.with_suffix(".seconds")) as watch:
        try:
            with new_artifact(config.run.dir, stage.name, key=key, inputs=inputs, config=settings_read(stage, config)) as draft:
                stage.run(Job(config=config, stage=stage.name, key=key, draft=draft, endpoints=endpoints, progress=progress))
                draft.seconds = watch.seconds
        except BaseException:
            if not scratch.exists() or not any(scratch.rglob("*")):
                watch.forget()
                shutil.rmtree(scratch, ignore_errors=True)
            raise
        finally:
            progress.finish()
        watch.forget()


def _finish(config: Config, wanted: list[str]) -> None:
    """Write the settings, and after an evaluation the summary, into the run directory."""
    write_json(config.run.dir / CONFIG_FILE, config.model_dump(mode="json"))
    if "evaluate" not in wanted:
        return
    artifacts = {s.stage: s.artifact for s in status(config) if s.state == "done" and s.artifact}
    seconds = sum(artifact.seconds for artifact in artifacts.values())
    from starling.evaluate import summary

    numbers = summary(artifacts["evaluate"].metrics, seconds=seconds, algorithm=config.policy.algorithm.type)
    write_json(config.run.dir / SUMMARY_FILE, numbers)
