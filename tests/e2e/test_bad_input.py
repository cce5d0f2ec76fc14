"""Bad input of every kind: one paragraph that names place and cure, exit code 1 or 2, no traceback, nothing changed on disk."""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from starling import cli, pipeline
from tests.e2e.processes import MICRO


@dataclass
class Place:
    """What a case may use: a folder for its files, and a run directory with the prompts stage done."""

    folder: Path
    run_dir: Path

    def file(self, name: str, content: bytes | str) -> Path:
        path = self.folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def rows(self, name: str, *rows: dict[str, Any]) -> Path:
        return self.file(name, "".join(json.dumps(r) + "\n" for r in rows))

    def micro(self, command: str, *overrides: str) -> list[str | Path]:
        """A command on the micro settings and this run directory."""
        return [command, MICRO, *(a for o in (f"run.dir={self.run_dir}", *overrides) for a in ("--set", o))]

    def prompts(self, path: Path) -> list[str | Path]:
        return self.micro("prompts", f"prompts.sources=[{{type='file', path='{path}', name='mine'}}]")

    def taken(self, *rows: dict[str, Any]) -> list[str | Path]:
        """import nectar of these rows."""
        return ["import", "nectar", self.rows("a.jsonl", *rows), "--out", self.folder / "in"]

    def rankings(self) -> Path:
        return self.rows("a.jsonl", ranking([1, 2]))

    def reward(self, **settings: Path | str) -> list[str | Path]:
        """train-reward on settings that hold only [run] and [reward]."""
        lines = [f'{k} = "{v}"' for k, v in settings.items()]
        return ["train-reward", self.file("reward.toml", "\n".join([f'[run]\ndir = "{self.run_dir}"\n[reward]', *lines]) + "\n")]


def ranking(ranks: list[Any], prompt: str = "Hi") -> dict[str, Any]:
    answers = [{"answer": f"answer {i}", "model": f"m{i}", "rank": r} for i, r in enumerate(ranks)]
    return {"prompt": f"\n\nHuman: {prompt}\n\nAssistant: ", "answers": answers, "turns": 1, "num_responses": len(ranks)}


def parquet(place: Place, name: str, keep: float = 1.0) -> Path:
    """A parquet file of prompts or rankings, cut to a share of its bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist([ranking([1, 2])]), place.folder / "whole.parquet")
    whole = (place.folder / "whole.parquet").read_bytes()
    return place.file(name, whole[: int(len(whole) * keep)])


def empty_folder(place: Place, name: str = "empty") -> Path:
    (place.folder / name).mkdir()
    return place.folder / name


def hollow_model(place: Place) -> Path:
    """A folder that says it is a model and has neither weights nor tokenizer."""
    folder = empty_folder(place, "hollow")
    (folder / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}', "utf-8")
    return folder


def server(place: Place, key: str) -> list[str | Path]:
    models = [f"models.{n}={{type='openai', base_url='http://127.0.0.1:9/v1', name='{n}', api_key_env='{key}'}}" for n in "ab"]
    return place.micro("respond", *models, 'responses.models=["a", "b"]')


def damaged(place: Place, name: str, change: Callable[[bytes], bytes]) -> list[str | Path]:
    path = place.run_dir / "prompts" / name
    path.write_bytes(change(path.read_bytes()))
    return place.micro("respond")


def no_journal(place: Place) -> list[str | Path]:
    (place.run_dir / "journal.sqlite").write_bytes(b"this is no database, but long enough to be taken for one" * 20)
    judges = [f"models.{n}={{type='microworld-judge', noise={i}.0}}" for i, n in enumerate("ab", start=1)]
    return place.micro("respond", *judges, 'responses.models=["a", "b"]')


Case = tuple[Callable[[Place], list[Any]], int, str, str]
GOOD = b'{"prompt": "Hi"}\n'
CASES: dict[str, Case] = {
    # settings                       command                                              exit, what and where it says
    "unknown key": (lambda p: p.micro("run", "reward.learning_rte=1"), 2, "learning_rte", "learning_rate"),
    "unknown key deep": (lambda p: p.micro("run", "policy.sampling.temprature=1"), 2, "temprature", "temperature"),
    "unknown section": (lambda p: p.micro("run", "rewards.epochs=1"), 2, "rewards", "'reward'"),
    "no settings file": (lambda p: ["run", p.folder / "none.toml"], 2, "does not exist", "none.toml"),
    "bad TOML": (lambda p: ["run", p.file("a.toml", "[run\ndir = 1")], 2, "not valid TOML", "a.toml"),
    "settings not UTF-8": (lambda p: ["run", p.file("a.toml", b'[run]\ndir = "\xff"')], 2, "cannot be read", "a.toml"),
    "settings are a folder": (lambda p: ["run", p.folder], 2, "cannot be read", ""),
    "empty settings": (lambda p: ["run", p.file("a.toml", "")], 2, "'run' is required", "a.toml"),
    "wrong type": (lambda p: p.micro("run", 'run.seed="first"'), 2, "run.seed", "first"),
    "negative number": (lambda p: p.micro("run", "reward.epochs=-1"), 2, "reward.epochs", "greater than 0"),
    "NaN": (lambda p: p.micro("run", "policy.kl=nan"), 2, "policy.kl", "finite"),
    "unknown kind of model": (lambda p: p.micro("run", 'models.base.type="oracle"'), 2, "models.base", "microworld-speaker"),
    "unknown choice": (lambda p: p.micro("run", 'reward.loss="hinge"'), 2, "reward.loss", "plackett_luce"),
    "--set without =": (lambda p: p.micro("run", "run.seed"), 2, "--set", "section.key=value"),
    "--set into a value": (lambda p: p.micro("run", "run.dir.x=1"), 2, "--set", "is a value"),
    "unknown stage": (lambda p: [*p.micro("run"), "--until", "rankings"], 2, "no stage 'rankings'", "did you mean 'ranking'"),
    "unknown model in the pool": (lambda p: p.micro("run", 'responses.models=["base", "cleen"]'), 2, "cleen", "'clean'"),
    "unknown judge": (lambda p: p.micro("run", 'ranking.judge="nobody"'), 2, "ranking.judge", "nobody"),
    "K = 1": (lambda p: p.micro("run", 'responses.models=["base"]'), 2, "K = 1", "responses.models"),
    "a model twice": (
        lambda p: p.micro("run", 'models.twin={type="microworld-speaker", checkpoint="base", sampling={max_tokens=12}}',
                          'responses.models=["base", "twin"]'), 2, "same model with the same sampling", "models.twin",
    ),
    "no train split": (lambda p: p.micro("run", "prompts.test_fraction=0.98"), 2, "nothing to train on", "prompts"),
    "no section": (lambda p: ["rank", p.reward()[1]], 2, "needs the section", "[p"),
    "key not set": (lambda p: server(p, "STARLING_NO_SUCH_KEY"), 2, "STARLING_NO_SUCH_KEY", "export"),
    # prompts
    "no prompt file": (lambda p: p.prompts(p.folder / "none.jsonl"), 1, "does not exist", "none.jsonl"),
    "prompts are a folder": (lambda p: p.prompts(empty_folder(p)), 1, "no data file", "empty"),
    "no prompts in the file": (lambda p: p.prompts(p.file("a.jsonl", "\n\n")), 1, "no rows", "a.jsonl"),
    "every prompt empty": (lambda p: p.prompts(p.rows("a.jsonl", {"prompt": " "}, {"prompt": ""})), 1, "Not one row", "empty"),
    "prompts not UTF-8": (lambda p: p.prompts(p.file("a.jsonl", b'{"prompt": "\xff\xfe"}\n')), 1, "Not one row", "not_utf8"),
    "prompts not JSON": (lambda p: p.prompts(p.file("a.jsonl", "Hi\nHo\n")), 1, "Not one row", "not_json"),
    "prompts of unknown kind": (lambda p: p.prompts(p.file("a.docx", "Hi\n")), 1, "not known by its name", "a.docx"),
    "half-written parquet": (lambda p: p.prompts(parquet(p, "half.parquet", 0.5)), 1, "half written", "half.parquet"),
    "broken gzip": (lambda p: p.prompts(p.file("a.jsonl.gz", gzip.compress(GOOD * 999)[:-9])), 1, "damaged", "a.jsonl.gz"),
    # rankings of others
    "ranks are all the same": (lambda p: p.taken(ranking([1, 1, 1])), 1, "tied", "a.jsonl"),
    "one answer": (lambda p: p.taken(ranking([1])), 1, "answer", "a.jsonl"),
    "rank NaN": (lambda p: p.taken(ranking([1, float("nan")])), 1, "rank", "a.jsonl"),
    "import nothing": (lambda p: ["import", "nectar", p.file("a.jsonl", ""), "--out", p.folder / "in"], 1, "no rows", "a.jsonl"),
    "import of no file": (lambda p: ["import", "nectar", p.folder / "x.jsonl", "--out", p.folder / "in"], 1, "exist", "x.jsonl"),
    "import over a folder": (
        lambda p: ["import", "nectar", p.rows("a.jsonl", ranking([1, 2])), "--out", p.run_dir], 2, "no import of Starling", "run",
    ),
    "rankings half-written": (
        lambda p: p.reward(backbone=hollow_model(p), data=parquet(p, "half.parquet", 0.5)), 1, "half written", "half.parquet",
    ),
    "rankings folder is none": (
        lambda p: p.reward(backbone=hollow_model(p), data=empty_folder(p)), 1, "no imported dataset", "reward.data",
    ),
    # models
    "no backbone": (lambda p: p.reward(backbone="none", data=p.rankings()), 1, "does not exist", "reward.backbone"),
    "backbone is no model": (
        lambda p: p.reward(backbone=empty_folder(p), data=p.rankings()), 1, "config.json", "reward.backbone",
    ),
    "backbone without weights": (
        lambda p: p.reward(backbone=hollow_model(p), data=p.rankings()), 1, "cannot be loaded", "hollow",
    ),
    "no policy to tune": (lambda p: p.micro("run", f"policy.base='{p.folder / 'none'}'"), 1, "does not exist", "policy.base"),
    "nothing to score with": (lambda p: ["score", p.folder], 1, "no model here", "transformers folder"),
    "nothing to talk to": (lambda p: ["chat", p.folder / "none"], 1, "no model here", "none"),
    # the run directory
    "corrupt manifest": (lambda p: damaged(p, "manifest.json", lambda b: b[: len(b) // 2]), 1, "manifest", "prompts"),
    "altered manifest": (
        lambda p: damaged(p, "manifest.json", lambda b: b.replace(b'"rows"', b'"row"')), 1, "manifest", "prompts",
    ),
    "half an artifact": (lambda p: damaged(p, "prompts.parquet", lambda b: b[:-8]), 1, "half-written", "prompts.parquet"),
    "journal is no journal": (no_journal, 1, "journal cannot be used", "journal.sqlite"),
    "run directory is a file": (lambda p: p.micro("run", f"run.dir={p.file('f', '')}"), 2, "cannot be written", "run.dir"),
    "show what is no artifact": (lambda p: ["show", p.folder], 1, "no finished output", ""),
    "show an unknown outcome": (lambda p: ["show", p.run_dir / "prompts", "--outcome", "nice"], 2, "'nice'", "prompts"),
}  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a run directory with the prompts stage done."""
    run_dir = tmp_path_factory.mktemp("prepared") / "run"
    assert cli.call(["prompts", str(MICRO), "--set", f"run.dir={run_dir}"]) == 0
    return listing(run_dir)


@pytest.fixture
def place(tmp_path: Path, prepared: dict[str, bytes]) -> Place:
    for name, content in prepared.items():
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_bytes(content)
    (tmp_path / "files").mkdir()
    return Place(tmp_path / "files", tmp_path / "run")


def listing(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def state(folder: Path) -> dict[str, str]:
    """Every file and folder below, with the hash of its content."""
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "folder"
        for p in sorted(folder.rglob("*"))
    }


def refused(arguments: list[Any], place: Place, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Run the command; check what holds for every refusal; exit code and what it said."""
    before = state(place.folder.parent)
    capsys.readouterr()
    code = cli.call([str(a) for a in arguments])
    out, err = capsys.readouterr()
    assert "Traceback" not in err, err
    assert out == ""
    *begun, said = err.splitlines()
    assert all(line.split(":")[0].split()[0] in pipeline.BY_NAME for line in begun), err
    assert " Where: " in said, err
    assert " What to do: " in said, err
    assert state(place.folder.parent) == before
    return code, said


@pytest.mark.parametrize("name", CASES)
def test_bad_input(name: str, place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    make, code, what, where = CASES[name]
    arguments = make(place)
    found, said = refused(arguments, place, capsys)
    assert found == code, said
    assert what in said
    assert where in said


def test_there_are_more_than_twenty_kinds() -> None:
    assert len(CASES) > 21


@pytest.fixture
def busy(place: Place) -> Iterator[Place]:
    """Another process holds the run directory (here: another handle, which flock treats alike)."""
    handle = os.open(place.run_dir / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(handle, fcntl.LOCK_EX)
    os.write(handle, b"4711")
    yield place
    os.close(handle)


def test_a_second_process(busy: Place, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = refused(busy.micro("respond"), busy, capsys)
    assert code == 2
    assert "pid 4711" in said


def test_an_extra_that_is_not_installed(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "torch" else real(name, *rest))
    code, said = refused(place.micro("run"), place, capsys)
    assert code == 1
    assert 'pip install "starling-rlaif[train]"' in said
