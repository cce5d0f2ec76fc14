"""The pipeline: keys, staleness, what a run does and does not do again, locks, clean-up. No model is trained here."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from starling import pipeline, plan
from starling.artifacts import new_artifact, open_artifact
from starling.config import Config, load_config
from starling.errors import ArtifactError, ConfigError, InputError, TrainingError, UsageError
from starling.pipeline import Job
from starling.progress import SILENT
from starling.serving import Endpoints

MICRO = Path(__file__).parent / "e2e" / "micro.toml"
ALL = [s.name for s in pipeline.STAGES]
FROM_REWARD = ["reward", "policy", "evaluate", "report", "publish"]
FROM_RANKING = ["ranking", "dataset", *FROM_REWARD]
METRICS = {
    "gold": {s: {"mean": 0.5, "ci": [0.4, 0.6], "greedy": 0.5, "harmlessness": 1.0} for s in ("base", "tuned")}
    | {"difference": {"mean": 0.0, "ci": [0.0, 0.0]}},
}


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., Config]:
    """settings("reward.epochs=2") → the micro settings with overrides, in a run directory of this test."""

    def make(*overrides: str) -> Config:
        return load_config(MICRO, (f"run.dir={tmp_path / 'run'}", *overrides))

    return make


@pytest.fixture
def did(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stages in the order in which they really ran; each only writes a file with its name and key."""
    ran: list[str] = []

    def work(job: Job) -> None:
        ran.append(job.stage)
        (job.draft.path / "made.txt").write_text(f"{job.stage} {job.key}", "utf-8")
        job.draft.rows = len(ran)
        if job.stage == "evaluate":
            job.draft.metrics.update(METRICS)

    stages = tuple(dataclasses.replace(stage, run=work) for stage in pipeline.STAGES)
    monkeypatch.setattr(pipeline, "STAGES", stages)
    monkeypatch.setattr(pipeline, "BY_NAME", {s.name: s for s in stages})
    monkeypatch.setattr(pipeline, "check", lambda config, names: None)
    return ran


def states(config: Config) -> dict[str, str]:
    return {s.stage: s.state for s in pipeline.status(config)}


def listing(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# ── order, keys, staleness ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_fresh_run_does_every_stage_once_in_order(settings: Callable[..., Config], did: list[str]) -> None:
    assert set(states(settings()).values()) == {"missing"}
    pipeline.run(settings())
    assert did == ALL
    assert set(states(settings()).values()) == {"done"}
    pipeline.run(settings())
    assert did == ALL, "nothing is done twice"


@pytest.mark.parametrize(
    ("override", "stale"),
    [
        ("run.seed=1", ALL),
        ("microworld.steps=13", ["world", "responses", *FROM_RANKING]),
        ("microworld.batch=17", ["world", "responses", *FROM_RANKING]),
        ("prompts.train=40", ["prompts", "responses", *FROM_RANKING]),
        ("prompts.validation_fraction=0.03", ALL),
        ('responses.models=["base", "clean"]', ["responses", *FROM_RANKING]),
        ("models.clean.sampling.temperature=0.8", ["responses", *FROM_RANKING]),
        ('ranking.mode="internal_random"', FROM_RANKING),
        ("models.judge.noise=0.2", FROM_RANKING),
        ("dataset.min_answers=3", ["dataset", *FROM_REWARD]),
        ("reward.epochs=2", FROM_REWARD),
        ("reward.optimizer.learning_rate=2e-3", FROM_REWARD),
        ("policy.kl=0.2", FROM_REWARD[1:]),
        ('policy.algorithm.type="ppo"', FROM_REWARD[1:]),
        ("evaluate.samples=3", FROM_REWARD[2:]),
        ('publish.license="mit"', ["publish"]),
        ("run.budget_calls=100000", []),
        ("run.threads=2", []),
        ("models.base.batch=7", []),
        ("reward.micro_tokens=512", []),
        ("reward.checkpoint_steps=7", []),
        ("policy.checkpoint_every=2", []),
    ],
)
def test_one_setting_makes_exactly_the_later_stages_stale(
    settings: Callable[..., Config], did: list[str], override: str, stale: list[str]
) -> None:
    pipeline.run(settings())
    changed = settings(override)
    assert [name for name, state in states(changed).items() if state == "stale"] == stale
    assert "missing" not in states(changed).values()
    did.clear()
    pipeline.run(changed)
    assert did == stale
    assert set(states(changed).values()) == {"done"}


def test_a_model_that_nobody_asks_makes_nothing_stale(settings: Callable[..., Config], did: list[str]) -> None:
    pipeline.run(settings())
    unused = settings('models.extra.type="microworld-speaker"', 'models.extra.checkpoint="flawed"')
    assert set(states(unused).values()) == {"done"}


def test_going_back_to_old_settings_is_not_believed_to_be_done(settings: Callable[..., Config], did: list[str]) -> None:
    """Stage folders hold one artifact: after a change and back, the stages run again."""
    pipeline.run(settings())
    pipeline.run(settings("policy.kl=0.2"))
    did.clear()
    pipeline.run(settings())
    assert did == FROM_REWARD[1:]


def test_status_says_which_setting_changed(settings: Callable[..., Config], did: list[str]) -> None:
    pipeline.run(settings())
    why = {s.stage: s.why for s in pipeline.status(settings("reward.epochs=3"))}
    assert why["reward"] == "reward.epochs: 1 → 3"
    assert why["policy"] == "after reward"
    assert why["dataset"] == ""


def test_an_input_made_again_makes_its_readers_stale(settings: Callable[..., Config], did: list[str]) -> None:
    """Same key, other content: happens when a server answers differently after the journal was removed."""
    pipeline.run(settings())
    shutil.rmtree(settings().run.dir / "responses")
    assert states(settings())["responses"] == "missing"
    assert states(settings())["ranking"] == "stale"
    pipeline.run(settings(), "responses")
    assert {n for n, s in states(settings()).items() if s == "stale"} == set(FROM_RANKING)
    why = {s.stage: s.why for s in pipeline.status(settings())}
    assert why["ranking"] == "after responses"


def test_files_count_by_content_not_by_place(settings: Callable[..., Config], did: list[str], tmp_path: Path) -> None:
    def with_file(name: str, text: str) -> Config:
        (tmp_path / name).write_text(text, "utf-8")
        return settings(f"prompts.sources=[{{type='file', path='{tmp_path / name}', name='mine'}}]")

    pipeline.run(with_file("a.jsonl", '{"prompt": "Hi"}\n'))
    assert set(states(with_file("b.jsonl", '{"prompt": "Hi"}\n')).values()) == {"done"}
    assert states(with_file("a.jsonl", '{"prompt": "Hello"}\n'))["prompts"] == "stale"
    assert states(with_file("a.jsonl", '{"prompt": "Hello"}\n'))["world"] == "done"


def test_shards_and_benchmarks_count_by_content_too(settings: Callable[..., Config], did: list[str], tmp_path: Path) -> None:
    def config(folder: Path) -> Config:
        sources = f'[{{type = "file", name = "a", path = ["{folder}/*.jsonl", "{folder}/b.csv"]}}]'
        sets = f'{{sets = [{{name = "s", path = "{folder}/b.csv"}}]}}'
        return settings(f"prompts.sources={sources}", f"prompts.decontamination={sets}")

    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jsonl").write_text("a", "utf-8")
        (tmp_path / name / "b.csv").write_text("b", "utf-8")
    pipeline.run(config(tmp_path / "one"), "prompts")
    assert states(config(tmp_path / "two"))["prompts"] == "done"
    (tmp_path / "two" / "c.jsonl").write_text("c", "utf-8")
    assert states(config(tmp_path / "two"))["prompts"] == "stale"
    (tmp_path / "one" / "b.csv").write_text("c", "utf-8")
    assert states(config(tmp_path / "one"))["prompts"] == "stale"


def test_what_guards_the_policy_counts_by_content_too(settings: Callable[..., Config], did: list[str], tmp_path: Path) -> None:
    def config(name: str) -> Config:
        folder = tmp_path / name
        return settings(
            f"policy.guard.model='{folder}'", f"policy.shaping.models=['{folder}']", f"policy.selection.checks='{name}.jsonl'"
        )

    def write(name: str, weights: str, pattern: str) -> None:
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "config.json").write_text('{"model_type": "llama"}', "utf-8")
        (tmp_path / name / "model.safetensors").write_text(weights, "utf-8")
        row = {"messages": [{"role": "user", "content": "Hi"}], "expect": pattern}
        Path(f"{name}.jsonl").write_text(json.dumps(row), "utf-8")

    with contextlib.chdir(tmp_path):
        write("one", "a", "x")
        write("two", "a", "x")
        pipeline.run(config("one"), "policy")
        assert states(config("two"))["policy"] == "done"
        write("two", "b", "x")
        assert states(config("two"))["policy"] == "stale"
        write("two", "a", "y")
        assert states(config("two"))["policy"] == "stale"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("policy.guard.model='none'", r"does not exist.*policy\.guard\.model"),
        ("policy.shaping.models=['none']", r"does not exist.*policy\.shaping\.models"),
        ("policy.selection.checks='none.jsonl'", r"does not exist.*none\.jsonl"),
    ],
)
def test_what_guards_the_policy_is_looked_for_before_anything_runs(
    override: str, says: str, settings: Callable[..., Config]
) -> None:
    with pytest.raises(InputError, match=says):
        plan.check(settings(override), ["policy"])
    plan.check(settings(override), ["reward"])


def test_keys_do_not_depend_on_the_run_directory(tmp_path: Path) -> None:
    def keys(folder: str) -> list[str]:
        return [s.key for s in pipeline.status(load_config(MICRO, (f"run.dir={tmp_path / folder}",)))]

    assert keys("a") == keys("b")
    assert len(set(keys("a"))) == len(ALL)


# ── parts of the chain ───────────────────────────────────────────────────────────────────────────────────────────────


def test_until_runs_only_what_leads_there(settings: Callable[..., Config], did: list[str]) -> None:
    pipeline.run(settings(), "dataset")
    assert did == ["world", "prompts", "responses", "ranking", "dataset"]
    assert states(settings())["reward"] == "missing"
    assert not (settings().run.dir / "summary.json").exists()


def test_prompts_alone_need_no_world(settings: Callable[..., Config], did: list[str]) -> None:
    pipeline.run(settings(), "prompts")
    assert did == ["prompts"]


def test_imported_rankings_need_only_run_and_reward(tmp_path: Path, did: list[str]) -> None:
    file = tmp_path / "small.toml"
    (tmp_path / "model").mkdir()
    file.write_text(
        f'[run]\ndir = "{tmp_path}/run"\n[reward]\nbackbone = "{tmp_path}/model"\ndata = "{tmp_path}/x.jsonl"\n', "utf-8"
    )
    config = load_config(file)
    assert [s.name for s in pipeline.needed(config, "reward")] == ["reward"]
    pipeline.run(config, "reward")
    assert did == ["reward"]
    found = {s.stage: (s.state, s.why) for s in pipeline.status(config)}
    assert found["reward"][0] == "done"
    assert found["ranking"] == ("unused", "The stage 'prompts' needs the section [prompts], which the settings lack")
    assert [s.name for s in pipeline.needed(config)] == ["reward", "publish"], "its card, and nothing that it does not train"


def data_only(folder: Path, more: str = "") -> Config:
    model = 'type = "openai"\nbase_url = "http://localhost:1/v1"\n'
    (folder / "data.toml").write_text(
        f'[run]\ndir = "{folder}/run"\n[models.a]\n{model}name = "a"\n[models.b]\n{model}name = "b"\n'
        f'[prompts]\nsources = [{{ type = "file", path = "{folder}/x.jsonl", name = "mine" }}]\n'
        f'[responses]\nmodels = ["a", "b"]\n[ranking]\njudge = "a"\n{more}',
        "utf-8",
    )
    return load_config(folder / "data.toml")


def test_settings_for_data_alone_end_with_its_card(tmp_path: Path) -> None:
    data = ["prompts", "responses", "ranking", "dataset"]
    assert [s.name for s in pipeline.needed(data_only(tmp_path))] == [*data, "publish"]
    reward = data_only(tmp_path, f'[reward]\nbackbone = "{tmp_path}/model"\n')
    assert [s.name for s in pipeline.needed(reward)] == [*data, "reward", "publish"]
    policy = data_only(tmp_path, f'[reward]\nbackbone = "{tmp_path}/model"\n[policy]\nbase = "{tmp_path}/model"\n')
    assert [s.name for s in pipeline.needed(policy)] == [*data, "reward", "policy", "evaluate", "report", "publish"]


def test_a_training_without_a_model_to_start_from_is_told_which_setting_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"reward\.backbone is not set"):
        pipeline.needed(data_only(tmp_path, "[reward]\nepochs = 2\n"))
    with pytest.raises(ConfigError, match=r"policy\.base is not set"):
        pipeline.needed(data_only(tmp_path, f'[reward]\nbackbone = "{tmp_path}/model"\n[policy]\niterations = 2\n'))


def test_a_backbone_from_the_world_needs_the_section(tmp_path: Path) -> None:
    file = tmp_path / "small.toml"
    file.write_text(f'[run]\ndir = "{tmp_path}/run"\n[reward]\ndata = "{tmp_path}/x.jsonl"\n', "utf-8")
    with pytest.raises(ConfigError, match=r"\[microworld\]"):
        pipeline.needed(load_config(file), "reward")


def test_unknown_stage_names_the_nearest(settings: Callable[..., Config]) -> None:
    with pytest.raises(UsageError, match="did you mean 'ranking'"):
        pipeline.run(settings(), "rankings")


# ── what a run leaves behind ─────────────────────────────────────────────────────────────────────────────────────────


def test_the_run_directory_holds_settings_summary_and_nothing_else(settings: Callable[..., Config], did: list[str]) -> None:
    config = settings()
    pipeline.run(config)
    assert sorted(p.name for p in config.run.dir.iterdir()) == sorted([*ALL, "config.json", "summary.json"])
    assert Config.model_validate_json((config.run.dir / "config.json").read_text("utf-8")) == config
    summary = json.loads((config.run.dir / "summary.json").read_text("utf-8"))
    assert summary["policy"] == {"algorithm": "apa"}
    assert summary["gold"]["tuned"]["mean"] == 0.5
    assert summary["seconds"] >= 0


def test_seconds_add_up_over_processes(settings: Callable[..., Config], did: list[str]) -> None:
    config = settings()
    key = next(s.key for s in pipeline.status(config) if s.stage == "prompts")
    (config.run.dir / ".work").mkdir(parents=True)
    (config.run.dir / ".work" / f"prompts-{key}.seconds").write_text("1000.5", "utf-8")
    (config.run.dir / ".work" / "prompts-otherkey.seconds").write_text("77", "utf-8")
    pipeline.run(config, "prompts")
    assert 1000.5 <= open_artifact(config.run.dir, "prompts").seconds < 1100
    assert not (config.run.dir / ".work").exists()


def failing(monkeypatch: pytest.MonkeyPatch, stage: str, error: BaseException, checkpoint: str | None = None) -> None:
    """Make a stage fail half-way, having asked for its scratch folder and perhaps having written a checkpoint there."""

    def work(job: Job) -> None:
        (job.draft.path / "half.txt").write_text("half", "utf-8")
        scratch = job.scratch
        if checkpoint is not None:
            (scratch / checkpoint).write_text("state", "utf-8")
        raise error

    found = tuple(dataclasses.replace(s, run=work) if s.name == stage else s for s in pipeline.STAGES)
    monkeypatch.setattr(pipeline, "STAGES", found)
    monkeypatch.setattr(pipeline, "BY_NAME", {s.name: s for s in found})


@pytest.mark.parametrize("error", [TrainingError("x", where="y", cure="z"), KeyboardInterrupt(), ZeroDivisionError()])
def test_a_failing_stage_leaves_everything_as_it_was(
    settings: Callable[..., Config], did: list[str], monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    config = settings()
    pipeline.run(config)
    before = listing(config.run.dir)
    failing(monkeypatch, "reward", error)
    with pytest.raises(type(error)):
        pipeline.run(settings("reward.epochs=2"))
    assert listing(config.run.dir) == before
    assert set(states(config).values()) == {"done"}


def test_a_failing_stage_keeps_its_checkpoints_until_it_is_done(settings: Callable[..., Config], did: list[str]) -> None:
    config = settings()
    with pytest.MonkeyPatch.context() as patch:
        failing(patch, "reward", TrainingError("x", where="y", cure="z"), checkpoint="step-3")
        with pytest.raises(TrainingError):
            pipeline.run(config)
    kept = [p.relative_to(config.run.dir).as_posix() for p in (config.run.dir / ".work").rglob("*") if p.is_file()]
    key = next(s.key for s in pipeline.status(config) if s.stage == "reward")
    assert f".work/reward-{key}/step-3" in kept
    pipeline.run(config)
    assert not (config.run.dir / ".work").exists()


def test_a_first_stage_that_fails_leaves_no_directory(
    settings: Callable[..., Config], did: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, "prompts", InputError("x", where="y", cure="z"))
    with pytest.raises(InputError):
        pipeline.run(settings(), "prompts")
    assert not settings().run.dir.exists()


def test_an_altered_artifact_stops_the_run(settings: Callable[..., Config], did: list[str]) -> None:
    config = settings()
    pipeline.run(config)
    manifest = config.run.dir / "dataset" / "manifest.json"
    manifest.write_text(manifest.read_text("utf-8").replace('"rows": 5', '"rows": 6'), "utf-8")
    before = listing(config.run.dir)
    with pytest.raises(ArtifactError, match="altered"):
        pipeline.run(config)
    assert listing(config.run.dir) == before


def test_a_folder_that_is_not_ours_is_never_replaced(settings: Callable[..., Config], did: list[str]) -> None:
    config = settings()
    (config.run.dir / "reward").mkdir(parents=True)
    (config.run.dir / "reward" / "thesis.txt").write_text("precious", "utf-8")
    with pytest.raises(ArtifactError, match="did not make"):
        pipeline.run(config)
    assert listing(config.run.dir) == {"reward/thesis.txt": b"precious"}
    assert did == []


# ── one process at a time ────────────────────────────────────────────────────────────────────────────────────────────

HOLD = """
import sys, time
from pathlib import Path
from starling.rundir import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_and_a_dead_one_holds_nothing(settings: Callable[..., Config], did: list[str]) -> None:
    config = settings()
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(config.run.dir)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match=f"pid {holder.pid}"):
            pipeline.run(config)
        assert did == []
    finally:
        holder.kill()
        holder.wait()
    assert (config.run.dir / ".lock").exists(), "a killed process leaves its lock file"
    pipeline.run(config)
    assert did == ALL
    assert not (config.run.dir / ".lock").exists()


def test_a_run_directory_that_cannot_be_made_is_refused(settings: Callable[..., Config], did: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    with pytest.raises(UsageError, match="cannot be written"):
        pipeline.run(load_config(MICRO, (f"run.dir={tmp_path / 'file' / 'run'}",)))


# ── rows for training ────────────────────────────────────────────────────────────────────────────────────────────────


def test_rankings_with_ties_reach_the_reward_model_as_they_are(
    settings: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Which of them teach anything is the loss's business; an evaluation keeps them too."""
    from starling import nectar
    from starling.records import Message, Prompt, RankedAnswer, RankedPrompt

    def row(split: str, *ranks: float) -> RankedPrompt:
        answers = tuple(RankedAnswer(answer=str(i), model="m", rank=r) for i, r in enumerate(ranks))
        prompt = Prompt.make((Message(role="user", content=f"{split}{ranks}"),), ("s",), split)
        return RankedPrompt(prompt=prompt, answers=answers, good_natured=True)

    rows = [row("train", 1, 2, 3), row("train", 1, 1, 3), row("train", 1, 2), row("validation", 1, 1), row("test", 1, 1)]
    with new_artifact(tmp_path / "run", "dataset", key="k", inputs={}, config={}) as draft:
        nectar.write_splits(draft.path, rows)
    seen: list[list[RankedPrompt]] = []
    fake = types.ModuleType("starling.reward.train")
    fake.train = lambda train, held_out, **rest: seen.extend([train, held_out]) or {"steps": 1.0}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "starling.reward.train", fake)
    monkeypatch.setattr("starling.reward.train", fake, raising=False)
    monkeypatch.setattr(Job, "prepare_torch", lambda job: None)
    monkeypatch.setattr(Job, "model_folder", lambda job, name: tmp_path)
    config = settings("reward.guard_fraction=0")
    with new_artifact(tmp_path / "run", "reward", key="k", inputs={}, config={}) as draft, Endpoints(config) as endpoints:
        job = Job(config=config, stage="reward", key="k", draft=draft, endpoints=endpoints, progress=SILENT)
        pipeline._reward(job)
        assert (draft.rows, draft.outcomes) == (3, {})
    assert [[[a.rank for a in r.answers] for r in part] for part in seen] == [[[1, 2, 3], [1, 1, 3], [1, 2]], [[1, 1]]]
    assert [r.tied for r in pipeline._rankings(job, "test")] == [True]


def test_a_share_of_the_conversations_trains_a_second_reward_model(
    settings: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from starling import nectar
    from starling.records import Message, Prompt, RankedAnswer, RankedPrompt
    from starling.reward.guard import guard_seed, side_of

    answers = tuple(RankedAnswer(answer=a, model="m", rank=float(i + 1)) for i, a in enumerate("ab"))
    prompts = [Prompt.make((Message(role="user", content=f"q{i}"),), ("s",), "train") for i in range(20)]
    rows = [RankedPrompt(prompt=p, answers=answers, good_natured=True) for p in prompts]
    with new_artifact(tmp_path / "run", "dataset", key="k", inputs={}, config={}) as draft:
        nectar.write_splits(draft.path, rows)
    calls: list[dict[str, Any]] = []

    def train(given: Any, held_out: Any, **rest: Any) -> dict[str, float]:
        calls.append({"questions": [r.prompt.messages[0].content for r in given], **rest})
        return {"rankings/train": float(len(given))}

    fake = types.ModuleType("starling.reward.train")
    fake.train = train  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "starling.reward.train", fake)
    monkeypatch.setattr("starling.reward.train", fake, raising=False)
    monkeypatch.setattr(Job, "prepare_torch", lambda job: None)
    monkeypatch.setattr(Job, "model_folder", lambda job, name: tmp_path)
    config = settings("reward.guard_fraction=0.4")
    with new_artifact(tmp_path / "run", "reward", key="k", inputs={}, config={}) as draft, Endpoints(config) as endpoints:
        job = Job(config=config, stage="reward", key="k", draft=draft, endpoints=endpoints, progress=SILENT)
        pipeline._reward(job)
        made, scratch = draft, job.scratch
    main, guard = calls
    assert main["questions"] == [p.messages[0].content for p in prompts if side_of(p.messages, 0.4) == "main"]
    assert guard["questions"] == [p.messages[0].content for p in prompts if side_of(p.messages, 0.4) == "guard"]
    assert made.rows == len(main["questions"])
    assert made.metrics == {"rankings/train": float(made.rows), "guard/rankings/train": float(20 - made.rows)}
    assert (main["out"], main["work"], main["seed"]) == (made.path, scratch, config.run.seed)
    assert (guard["out"], guard["work"]) == (made.path / "guard", scratch / "guard")
    assert guard["seed"] == guard_seed(config.run.seed)
    assert (main["part"], guard.get("part", True)) == (False, True), "processes stay together until the last of the two"
