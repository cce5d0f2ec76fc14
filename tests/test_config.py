"""Settings: what is accepted, what --set does, and that every kind of bad input names the place, the cure and the nearest key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from starling.config import (
    APA,
    PPO,
    BradleyTerry,
    Config,
    MicroworldSpeaker,
    OpenAIModel,
    OptimizerSection,
    PlackettLuce,
    PolicySection,
    Section,
    fingerprint,
    load_config,
    secret,
)
from starling.errors import ConfigError
from starling.records import Sampling

TINY = """
[run]
dir = "runs/x"
[microworld]
[models.a]
type = "microworld-speaker"
checkpoint = "base"
[models.b]
type = "openai"
base_url = "http://127.0.0.1:8000/v1"
name = "m"
[models.j]
type = "microworld-judge"
[[prompts.sources]]
type = "microworld"
[responses]
models = ["a", "b"]
[ranking]
judge = "j"
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


def test_a_whole_file(tiny: Path) -> None:
    config = load_config(tiny)
    assert config.run.dir == Path("runs/x")
    assert isinstance(config.models["b"], OpenAIModel)
    assert config.responses is not None
    assert config.responses.models == ("a", "b")
    assert config.policy.algorithm == APA(type="apa")


def test_a_run_on_imported_data_needs_little(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('[run]\ndir = "x"\n[reward]\ndata = "nectar.parquet"\nbackbone = "model"\n')
    assert load_config(tmp_path / "c.toml").prompts is None


# ── --set ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("override", "found"),
    [
        ("run.seed=7", lambda c: c.run.seed == 7),
        ("run.dir=runs/other place", lambda c: c.run.dir == Path("runs/other place")),
        ('run.dir="quoted"', lambda c: c.run.dir == Path("quoted")),
        ("models.b.sampling.temperature=0", lambda c: c.models["b"].sampling.temperature == 0),
        ('responses.models=["b", "a"]', lambda c: c.responses.models == ("b", "a")),
        ("ranking.mode='pairwise'", lambda c: c.ranking.mode == "pairwise"),
        (" run.seed = 7 ", lambda c: c.run.seed == 7),
        ("publish.judge_terms=a=b", lambda c: c.publish.judge_terms == "a=b"),
        ("policy.algorithm.type=ppo", lambda c: c.policy.algorithm == PPO(type="ppo")),
        ("reward.loss=bradley_terry", lambda c: c.reward.loss == BradleyTerry(type="bradley_terry")),
        ('reward.loss={type="bradley_terry", pairs="random"}', lambda c: c.reward.loss.pairs == "random"),
        ("reward.loss.ties=strict", lambda c: c.reward.loss == PlackettLuce(type="plackett_luce", ties="strict")),
        ('policy={samples_per_prompt=2, algorithm={type="rloo", clip="none"}}', lambda c: c.policy.algorithm.clip is None),
        ("policy.algorithm.lam=0.5", lambda c: c.policy.algorithm == APA(type="apa", lam=0.5)),
    ],
)
def test_overrides(tiny: Path, override: str, found: Any) -> None:
    assert found(load_config(tiny, (override,)))


def test_the_last_override_counts(tiny: Path) -> None:
    assert load_config(tiny, ("run.seed=1", "run.seed=2")).run.seed == 2


def test_a_part_given_in_part_keeps_its_own_defaults(tiny: Path) -> None:
    """The policy's optimizer has betas 0.9/0.95 and decay 1e-6; naming a rate must not bring back 0.9/0.999 and 0."""
    config = load_config(tiny, ("policy.optimizer.learning_rate=1e-3", "models.a.sampling.temperature=0.5"))
    assert config.policy.optimizer == PolicySection().optimizer.model_copy(update={"learning_rate": 1e-3})
    assert config.policy.optimizer.betas == (0.9, 0.95)
    assert isinstance(config.models["a"], MicroworldSpeaker)
    assert config.models["a"].sampling == Sampling(temperature=0.5, max_tokens=48)


# ── bad input ────────────────────────────────────────────────────────────────────────────────────────────────────────

BAD = [
    ("reward.learning_rte=1", "did you mean 'reward.optimizer.learning_rate'?"),
    ("rewrd.epochs=1", "'rewrd'; did you mean 'reward'?"),
    ('policy.kl={type="adaptive", horizon=50}', "kl.horizon = 50 must be above a fifth of rollouts = 256"),
    ("run.sed=1", "'run.sed'; did you mean 'seed'?"),
    ("in_flight=3", "did you mean 'models.<name>.in_flight'?"),
    ("models.b.in_flght=1", "did you mean 'in_flight'?"),
    ("models.b.sampling.temperture=1", "'models.b.sampling.temperture'; did you mean 'temperature'?"),
    ("dataset.zzz=1", "(known: min_answers)"),
    ('prompts.sources=[{type="file", pth="x", name="n"}]', "'prompts.sources.0.pth'; did you mean 'path'?"),
    ('policy.algorithm={type="ppo", lam=1}', "it does not go with type 'ppo' (known: clip,"),
    ("models.b.type=opnai", "'opnai' is no type of 'models.b'; did you mean 'openai'?"),
    ("models.c.name=x", "'models.c.type' is required and missing (known: anthropic, local, microworld-judge, micro"),
    ('models.c={type="openai", name="x"}', "'models.c.base_url' is required and missing"),
    ("models.b.base_url=localhost:8000", "'models.b.base_url' is wrong: it must be this: Server address"),
    ('models.b.base_url=["http://a/v1", "b"]', "'models.b.base_url.1' is wrong: it must be this: Server address"),
    ("models.b.base_url=[]", "it must have at least 1 entry"),
    ("models.b.extra={temperature=1}", "'temperature' is set by Starling itself"),
    ('models.c={type="anthropic", name="x", sampling={temperature=1.5}}', "this API takes 0 to 1"),
    ("keys.OPENAI_KEY={requests_per_minute=3}", "[keys.OPENAI_KEY] is the api_key_env of no model"),
    ("policy.algorithm.type=ap", "did you mean 'apa'?"),
    ("models.a.checkpoint=bas", "given 'bas'; did you mean 'base'?"),
    ("reward.loss=placket_luce", "did you mean 'plackett_luce'?"),
    ("reward.loss=3", "it must be a section"),
    ("reward.loss.ties=breslo", "'reward.loss.ties' is wrong: it must be 'efron', 'breslow' or 'strict', given 'breslo'; did"),
    ("reward.loss.pairs=all", "'reward.loss.pairs': it does not go with type 'plackett_luce' (known: ties, "),
    ("reward.loss.marg=1", "Unknown setting 'reward.loss.marg'"),
    ('reward.loss={type="bradley_terry", ties="efron"}', "it does not go with type 'bradley_terry' (known: margin,"),
    ('reward.loss={type="bradley_terry", pairs="adjacent", tied_pairs=true}', "tied_pairs = true goes with pairs = 'all'"),
    ("policy.algorithm.lamb=1", "'policy.algorithm.lamb'; did you mean 'lam'?"),
    ("ranking.mode=internal_fliped", "did you mean 'internal_flipped'?"),
    ("ranking.orders=0", "ranking.orders"),
    ("ranking={judge='j', orders=2, orders_if_contested=2}", "orders_if_contested = 2 must be more than orders = 2"),
    ("ranking={judge='j', mode='rank_only', orders_if_contested=3}", "one rank_only order cannot contradict itself"),
    ("ranking={judge='j', mode='pointwise', orders_if_contested=3}", "set orders = 2"),
    ("ranking.judge=jj", "names the model 'jj', which is not under [models]; did you mean 'j'?"),
    ('responses.models=["a", "zzz"]', "'zzz', which is not under [models] (known: a, b, j)"),
    ('responses.models=["a"]', "K = 1"),
    ('responses.models=["a", "a"]', "named twice"),
    ("prompts.sources=[]", "at least 1 entry"),
    ("reward.optimizer.learning_rate=nan", "finite number"),
    ("reward.optimizer.learning_rate=-1", "greater than 0"),
    ("reward.optimizer.betas=[0.9]", "reward.optimizer.betas"),
    ("reward.optimizer.betas=[0.9, 1.0]", "less than 1"),
    ("run.seed=1.5", "valid integer"),
    ("run.seed=x", "valid integer"),
    ("run.dir=3", "it must be a path, given 3"),
    ("run=3", "it must be a section of key = value lines"),
    ("policy.algorithm=3", "it must be a section"),
    ("run.seed.x=1", "'run.seed' is wrong"),
    ("prompts.validation_fraction=0.95", "nothing to train on"),
    ("run.seed", "section.key=value"),
    ("=3", "section.key=value"),
    ("run..seed=3", "section.key=value"),
    ("run.dir.x=3", "'dir' in --set run.dir.x=3 is a value"),
]


@pytest.mark.parametrize(("override", "told"), BAD, ids=[b[0] for b in BAD])
def test_bad_overrides_are_told_in_one_paragraph(tiny: Path, override: str, told: str) -> None:
    before = sorted(tiny.parent.iterdir())
    with pytest.raises(ConfigError) as caught:
        load_config(tiny, (override,))
    text = str(caught.value)
    assert told in text
    assert "\n" not in text
    assert "?." not in text
    assert ".." not in text.replace("run..seed", "")
    assert "--set" in caught.value.where
    assert " What to do: " in text
    assert caught.value.exit_code == 2
    assert sorted(tiny.parent.iterdir()) == before


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"[run\n", "not valid TOML"),
        (b'[run]\ndir = "a"\ndir = "b"\n', "not valid TOML"),
        (b'[run]\ndir = "\xff"\n', "cannot be read"),
        (b"", "'run' is required and missing"),
        (b"[run]\n", "'run.dir' is required and missing"),
        (b'[run]\ndir = "x"\nbudget_calls = 0\n', "greater than 0"),
    ],
)
def test_bad_files(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "c.toml").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "c.toml")
    assert told in str(caught.value)
    assert "c.toml" in caught.value.where


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(tmp_path / "no.toml")
    for path in (tmp_path, Path("a\x00b")):
        with pytest.raises(ConfigError, match="cannot be read"):
            load_config(path)


def test_several_problems_are_counted_and_a_typo_is_told_first(tiny: Path) -> None:
    with pytest.raises(ConfigError, match=r"Unknown setting 'rewrd'.*\(1 more problem besides\)"):
        load_config(tiny, ("run.seed=-1", "rewrd.x=1"))
    with pytest.raises(ConfigError, match=r"2 more problems besides"):
        load_config(tiny, ("run.seed=-1", "rewrd.x=1", "run.threads=-1"))


def test_the_microworld_must_be_there_when_something_needs_it(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(TINY.replace("[microworld]", ""))
    with pytest.raises(ConfigError, match=r"no \[microworld\] section"):
        load_config(tmp_path / "c.toml")


# ── secrets ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_key_pasted_in_place_of_its_name_is_not_repeated(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(TINY.replace('name = "m"', 'name = "m"\napi_key_env = "sk-secret-123"'))
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "c.toml")
    assert "sk-secret" not in str(caught.value)
    assert "Name of the environment variable" in str(caught.value)


def test_one_address_and_one_key_are_lists_of_one(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(TINY)
    overrides = ("models.b.api_key_env=KEY", "keys.KEY.requests_per_minute=60")
    config = load_config(tmp_path / "c.toml", overrides)
    model = config.models["b"]
    assert isinstance(model, OpenAIModel)
    assert model.api_key_env == ("KEY",)
    assert len(model.base_url) == 1
    assert config.keys["KEY"].requests_per_minute == 60
    two = load_config(tmp_path / "c.toml", ('models.b.api_key_env=["A", "B"]', 'models.b.base_url=["http://a/v1", "http://b/v1"]'))
    assert isinstance(two.models["b"], OpenAIModel)
    assert (two.models["b"].api_key_env, two.models["b"].base_url) == (("A", "B"), ("http://a/v1", "http://b/v1"))


def test_a_password_in_the_address_is_refused_and_not_repeated(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(TINY.replace("http://127", "http://me:hunter2@127"))
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "c.toml")
    assert "hunter2" not in str(caught.value)


def test_secrets_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "value")
    assert secret("MY_KEY") == "value"
    assert secret(None) is None
    monkeypatch.setenv("MY_KEY", "")
    with pytest.raises(ConfigError, match="MY_KEY is not set"):
        secret("MY_KEY")


# ── the tree ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_fingerprints_follow_content() -> None:
    one, two = OptimizerSection(learning_rate=1e-3), OptimizerSection(learning_rate=1e-3, betas=(0.9, 0.999))
    assert fingerprint(one) == fingerprint(two)
    assert fingerprint(one) != fingerprint(OptimizerSection(learning_rate=2e-3))
    assert fingerprint(None) != fingerprint(one)


def test_the_tree_is_frozen(tiny: Path) -> None:
    config = load_config(tiny)
    with pytest.raises(ValueError, match="frozen"):
        config.run.seed = 3  # type: ignore[misc]


def test_every_setting_explains_itself() -> None:
    def all_sections(cls: type[BaseModel]) -> set[type[BaseModel]]:
        return {cls}.union(*(all_sections(c) for c in cls.__subclasses__()))

    silent = [
        f"{cls.__name__}.{name}"
        for cls in all_sections(Section) - {Section, Config}
        if cls.__module__.startswith("starling.config")
        for name, info in cls.model_fields.items()
        if not info.description and name != "type"
    ]
    assert silent == []


def test_the_schema_is_plain_json() -> None:
    schema = Config.model_json_schema()
    assert schema["additionalProperties"] is False
    assert "learning_rate" in schema["$defs"]["OptimizerSection"]["properties"]
