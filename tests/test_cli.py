"""The command: what it prints where, exit codes, and the small commands that need no training."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import starling
from starling import cli, pipeline
from starling.artifacts import open_artifact
from starling.errors import TrainingError
from starling.journal import Journal, Spend, StoredReply
from starling.nectar import read_nectar

MICRO = Path(__file__).parent / "e2e" / "micro.toml"


def row(ranks: list[Any], prompt: str = "Hi") -> dict[str, Any]:
    answers = [{"answer": f"answer {i}", "model": f"m{i}", "rank": r} for i, r in enumerate(ranks)]
    text = f"\n\nHuman: {prompt}\n\nAssistant: "
    return {"prompt": text, "answers": answers, "turns": 1, "source": ["s"], "good_natured": True}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """run("status", …) → (exit code, stdout, stderr)."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        code = cli.call([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


Run = Callable[..., tuple[int, str, str]]

# ── help, wrong use ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_commands_are_those_of_the_design(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    listed = [line.split()[0] for line in out.split("Commands:")[1].splitlines() if line.strip()]
    assert listed == [
        "run", "prompts", "respond", "rank", "dataset", "train-reward", "train-policy", "report", "publish",
        "status", "plan",
        "score", "serve-reward", "export-reward", "ratings", "chat", "sample", "show", "doctor", "evaluate", "import",
        "audit", "config",
    ]  # fmt: skip


def test_no_setting_has_a_flag_of_its_own(run: Run) -> None:
    allowed = {"--help", "--until", "--set", "--json", "--out", "--outcome", "--rows", "--greedy", "--seed", "--html"}
    allowed |= {"--strict", "--base", "--dtype", "--host", "--port", "--name", "--key-env", "--template", "--against"}
    allowed |= {"--samples", "--temperature", "--top-p", "--max-tokens", "--batch"}  # how a finished model is asked
    seen: set[str] = set()
    leaves = [["run"], ["rank"], ["status"], ["plan"], ["chat"], ["score"], ["show"], ["doctor"], ["import", "nectar"]]
    leaves += [["serve-reward"], ["export-reward"], ["sample"]]
    for path in [*leaves, ["audit", "run"], ["audit", "replies"]]:
        _, out, _ = run(*path, "--help")
        seen |= {word.strip(",") for word in out.split() if word.startswith("--")}
    assert seen == allowed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["dance"], "No such command 'dance'"),
        (["run"], "Missing argument 'CONFIG'"),
        (["run", "x.toml", "--learning-rate", "1"], "No such option"),
        (["show", "x", "--rows", "-1"], "'--rows'"),
    ],
)
def test_wrong_use_is_one_paragraph_and_exit_2(run: Run, arguments: list[str], said: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err
    assert "Where: the command line. What to do: see `starling" in err


def test_a_defect_shows_the_traceback_and_how_to_report(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "status", lambda config: 1 / 0)
    code, _, err = run("status", MICRO)
    assert code == 1
    assert "ZeroDivisionError" in err
    assert "Please report it" in err


def test_an_interrupt_says_that_the_run_can_go_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "run", interrupted)
    code, _, err = run("run", MICRO)
    assert code == 130
    assert "goes on from here" in err


def test_an_error_on_purpose_is_one_paragraph(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def failed(*args: Any, **kwargs: Any) -> None:
        raise TrainingError("The loss is not finite", where="step 3", cure="lower the rate")

    monkeypatch.setattr(pipeline, "run", failed)
    code, out, err = run("run", MICRO)
    assert (code, out) == (1, "")
    assert err == "The loss is not finite. Where: step 3. What to do: lower the rate.\n"
    monkeypatch.setenv("RANK", "1")  # of several processes, the others say who they are
    assert run("run", MICRO)[2].startswith("process 1: The loss is not finite.")


def test_a_full_disk_is_one_paragraph(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device", "runs/x")

    monkeypatch.setattr(pipeline, "run", full)
    code, _, err = run("run", MICRO)
    assert code == 1
    assert err.startswith("The operating system refuses: No space left on device. Where: runs/x.")


def test_a_reader_that_leaves_is_no_error() -> None:
    command = f"{sys.executable} -c 'from starling.cli import main; main()' config schema | head -1"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert result.stdout == "{\n"
    assert result.stderr == ""


# ── status, plan, config ─────────────────────────────────────────────────────────────────────────────────────────────


def test_status_as_table_and_json(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("status", MICRO, "--set", f"run.dir={tmp_path / 'r'}")
    assert code == 0
    assert out.splitlines()[0].split() == ["stage", "state", "rows", "seconds", "why"]
    assert len(out.splitlines()) == 2 + len(pipeline.STAGES)
    code, out, _ = run("status", MICRO, "--json", "--set", f"run.dir={tmp_path / 'r'}")
    assert [(r["stage"], r["state"]) for r in json.loads(out)] == [(s.name, "missing") for s in pipeline.STAGES]
    assert list(tmp_path.iterdir()) == []


def test_plan_counts_the_calls_by_hand(run: Run, tmp_path: Path) -> None:
    """Two prompts of 4 characters, three models, one judge: 2 calls each; no split but train, so evaluation asks nobody."""
    (tmp_path / "p.jsonl").write_text('{"prompt": "Hi 1"}\n{"prompt": "Hi 2"}\n', "utf-8")
    source = f"prompts.sources=[{{type='file', path='{tmp_path / 'p.jsonl'}', name='mine'}}]"
    none = ["--set", "prompts.validation_fraction=0.0", "--set", "prompts.test_fraction=0.0"]
    code, out, err = run("plan", MICRO, "--json", "--set", f"run.dir={tmp_path / 'r'}", "--set", source, *none)
    assert code == 0, err
    calls = {(c["stage"], c["model"]): c for c in json.loads(out)["calls"]}
    assert {k: (c["calls"] if c["calls"] == c["expected"]["calls"] else None) for k, c in calls.items()} == {
        ("responses", "base"): 2, ("responses", "clean"): 2, ("responses", "early"): 2, ("ranking", "judge"): 2,
        ("evaluate", "judge"): 0,
    }  # fmt: skip
    assert calls["responses", "base"]["expected"]["prompt_tokens"] == 2 * (4 // 4 + 1)
    assert calls["responses", "base"]["most"]["completion_tokens"] == 2 * 12
    assert calls["ranking", "judge"]["expected"]["completion_tokens"] == 2 * 250
    assert calls["ranking", "judge"]["most"]["completion_tokens"] == 2 * 2 * 1024
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p.jsonl"], "planning writes nothing"
    # Three answers have three pairs; two prompts, two orders each, and four more where those leave doubt.
    for mode, each in (("pairwise", 3), ("pairwise_both", 6), ("pointwise", 3), ("rank_only", 1)):
        orders = ["--set", f"ranking={{judge='judge', mode='{mode}', orders=2, orders_if_contested=6}}"]
        _, out, err = run("plan", MICRO, "--json", "--set", f"run.dir={tmp_path / 'r'}", "--set", source, *none, *orders)
        planned = {c["stage"]: c["calls"] for c in json.loads(out)["calls"] if c["model"] == "judge"}
        assert planned == {"ranking": 2 * 2 * each, "ranking contested": 2 * 4 * each, "evaluate": 0}, err


def test_config_check_names_what_it_is_enough_for(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(f'[run]\ndir = "{tmp_path}"\n[reward]\nbackbone = "x"\ndata = "y.parquet"\n', "utf-8")
    assert run("config", "check", file)[1] == f"{file} is valid; enough for: reward, publish\n"
    file.write_text(f'[run]\ndir = "{tmp_path}"\n', "utf-8")
    code, _, err = run("config", "check", file)
    assert code == 2
    assert "enough for no stage" in err


def test_config_show_holds_every_default(run: Run) -> None:
    shown = json.loads(run("config", "show", MICRO, "--set", "run.seed=7")[1])
    assert shown["run"]["seed"] == 7
    assert shown["policy"]["gamma"] == 1.0


def test_config_schema_is_json_schema(run: Run) -> None:
    schema = json.loads(run("config", "schema")[1])
    assert schema["$defs"]["RewardSection"]["properties"]["epochs"]["description"]


def test_doctor_knows_this_machine(run: Run) -> None:
    code, out, _ = run("doctor", "--json")
    found = {r["what"]: r for r in json.loads(out)}
    assert code == 0
    assert found["torch"]["state"] == "ok"
    assert int(found["cores"]["found"]) >= 1


# ── import, show ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_import_counts_what_it_mends_and_rejects(run: Run, tmp_path: Path) -> None:
    rows = [row([1, 2, 3]), row([2.0, 1.0], "Ho"), row([1, 1], "tied")]
    with gzip.open(tmp_path / "a.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write("".join(json.dumps(r) + "\n" for r in rows))
    out_dir = tmp_path / "taken" / "in"
    code, out, err = run("import", "nectar", tmp_path / "a.jsonl.gz", "--out", out_dir, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["rows"] == 2
    assert sum(n for k, n in found.items() if k.startswith("rejected/")) == 1
    kept = read_nectar(out_dir / "rankings.parquet")
    assert [a.model for a in kept[1].answers] == ["m1", "m0"]
    assert [json.loads(line)["row"] for line in (out_dir / "rejected.jsonl").read_text("utf-8").splitlines()] == [3]
    assert sorted(p.name for p in (tmp_path / "taken").iterdir()) == ["in"], "no scratch folder stays"
    first = open_artifact(tmp_path / "taken", "in").fingerprint
    code, out, err = run("import", "nectar", tmp_path / "a.jsonl.gz", "--out", out_dir)
    assert code == 0, err
    assert out.splitlines()[2].split() == ["rows", "2"]
    assert open_artifact(tmp_path / "taken", "in").fingerprint == first


def test_import_never_replaces_a_folder_of_the_user(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(row([1, 2])) + "\n", "utf-8")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x").write_text("precious", "utf-8")
    code, _, err = run("import", "nectar", tmp_path / "a.jsonl", "--out", tmp_path / "mine")
    assert code == 2
    assert "is no import of Starling" in err
    assert (tmp_path / "mine" / "x").read_text("utf-8") == "precious"


def test_show_reads_a_journal(run: Run, tmp_path: Path) -> None:
    with Journal(tmp_path / "j.sqlite") as journal:
        for key, status in (("a", 200), ("b", 400)):
            journal.intend(key, 1, {"model": {"name": "m"}, "purpose": "judge"}, most=Spend(tokens=7))
            journal.put(key, 1, StoredReply(status=status, body=f"said {key}", error="" if status == 200 else "HTTP 400"))
    code, out, _ = run("show", tmp_path / "j.sqlite", "--outcome", "failed", "--json")
    assert code == 0
    shown = json.loads(out)
    assert (shown["answered"], shown["attempts"], shown["failed"], shown["tokens"]) == (1, 2, 1, 7)
    assert [(r["key"], r["attempts"][0]["reply"]) for r in shown["sample"]] == [("b", "said b")]
    assert "said a" in run("show", tmp_path / "j.sqlite")[1]
    code, _, err = run("show", tmp_path / "j.sqlite", "--outcome", "unparsed")
    assert code == 2
    assert "answered, failed, unfinished" in err


def test_show_prints_lineage_rows_and_outcomes(run: Run, tmp_path: Path) -> None:
    config = ["--set", f"run.dir={tmp_path / 'r'}"]
    assert run("prompts", MICRO, *config)[0] == 0
    code, out, _ = run("show", tmp_path / "r" / "prompts", "--rows", "2", "--json")
    assert code == 0
    shown = json.loads(out)
    assert shown["stage"] == "prompts"
    assert len(shown["sample"]) == 2
    assert shown["sample"][0]["messages"][-1]["role"] == "user"
    code, _, err = run("show", tmp_path / "r" / "prompts", "--outcome", "unparsed")
    assert code == 2
    assert "rows here have: over_train_limit" in err
    code, out, _ = run("show", tmp_path / "r" / "prompts", "--outcome", "over_train_limit", "--rows", "1", "--json")
    assert code == 0
    [dropped] = json.loads(out)["sample"]
    assert (dropped["outcome"], dropped["source"].split("/")[0]) == ("over_train_limit", "microworld")
    assert run("show", tmp_path / "r" / "ranking")[0] == 1


def test_prompts_prints_what_became_of_the_rows(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "Why is it blue?"}\n{"prompt": "why is it blue"}\n{"x": 1}\n', "utf-8")
    source = f'{{ type = "file", path = "{tmp_path / "a.jsonl"}", name = "a" }}'
    (tmp_path / "a.toml").write_text(f'[run]\ndir = "{tmp_path / "r"}"\n[prompts]\nsources = [{source}]\n', "utf-8")
    code, out, err = run("prompts", tmp_path / "a.toml")
    assert code == 0, err
    assert [line.split() for line in out.splitlines() if line][-3:-1] == [["duplicate", "1"], ["no_prompt", "1"]]
    assert json.loads(run("prompts", tmp_path / "a.toml", "--json")[1])["outcomes"] == {"duplicate": 1, "no_prompt": 1}
    code, out, _ = run("show", tmp_path / "r" / "prompts", "--outcome", "duplicate", "--json")
    assert (code, [row["row"] for row in json.loads(out)["sample"]]) == (0, [2])


@pytest.mark.parametrize("name", ["starling-7b", "small-gpu", "nectar"])
def test_plan_needs_no_models_no_data_and_no_keys(
    run: Run, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    config = Path(__file__).parents[1] / "configs" / f"{name}.toml"
    given = ("plan", config, "--set", f"run.dir={tmp_path / 'r'}")
    code, out, err = run(*given)
    assert code == 0, err
    assert "! not there yet: data/" in out
    assert ("GPU-hours" in out) == (name != "nectar")
    assert ("calls of models are not counted" in out) == (name == "nectar")
    code, out, err = run(*given, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert set(found["trainings"]) == (set() if name == "nectar" else {"reward", "policy"})
    assert {gone["where"] for gone in found["missing"]} >= {"prompts.sources[0].path"}
    if name == "starling-7b":
        assert found["trainings"]["policy"]["facts"]["optimiser steps of the policy"]["expected"] == 10_016
        assert found["trainings"]["policy"]["memory"][-2]["memory in GB per GPU"] == "at the worst moment"
    assert list(tmp_path.iterdir()) == [], "planning writes nothing"
    code, out, err = run("run", config, "--set", f"run.dir={tmp_path / 'r'}")
    assert code != 0, "a run needs them"


# ── chat and score ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_chat_answers_each_line_and_forgets_at_an_empty_one(
    run: Run, backbone: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("name three animals\n\nname three animals\n"))
    code, out, err = run("chat", backbone("llama"), "--greedy")
    assert code == 0, err
    lines = out.splitlines()
    assert len(lines) >= 2
    assert out == out[: len(out) // 2] * 2, "the second conversation knows nothing of the first"


def scored(
    monkeypatch: pytest.MonkeyPatch, run: Run, folder: Path, *rows: dict[str, Any] | bytes | str
) -> tuple[int, list[Any], str]:
    """`starling score` with these rows on stdin; a str is an option."""
    lines = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in rows if not isinstance(r, str)]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n".join(lines))))
    code, out, err = run("score", folder, *(r for r in rows if isinstance(r, str)))
    return code, [json.loads(line) for line in out.splitlines()], err


@pytest.fixture(scope="module")
def reward_model(backbone: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    from starling.models.load import load_backbone_as_scalar, load_tokenizer, save_folder

    folder = tmp_path_factory.mktemp("reward")
    tokenizer = load_tokenizer(backbone("llama"))
    save_folder(folder, load_backbone_as_scalar(backbone("llama"), 0, tokenizer), tokenizer)
    return folder


def test_score_reads_every_form_of_a_conversation(run: Run, reward_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = [{"role": "user", "content": "name three animals"}]
    code, found, err = scored(
        monkeypatch, run, reward_model,
        {"id": "a", "prompt": "name three animals", "response": "a cat"},
        {"prompt": "\n\nHuman: name three animals\n\nAssistant: ", "response": "a cat"},
        {"messages": turns, "response": "a cat"},
        {"messages": [*turns, {"role": "assistant", "content": "a cat"}]},
        {"messages": turns, "response": "a dog"},
        {"messages": turns, "response": " "},
    )  # fmt: skip
    assert code == 0, err
    assert found[0]["id"] == "a"
    assert len({f["reward"] for f in found[:4]}) == 1
    assert len({f["id"] for f in found[1:4]}) == 1
    assert found[4]["reward"] != found[0]["reward"]
    assert found[5]["reward"] is None
    assert [f["outcome"] for f in found] == ["scored"] * 5 + ["empty"]


@pytest.mark.parametrize(
    "line",
    [
        b"not json", b"[1]", b'{"prompt": "x"}', b'{"prompt": 3, "response": "y"}', b'{"messages": [], "response": "y"}', b"\xff"
    ],
)
def test_score_names_the_line_it_cannot_read(run: Run, reward_model: Path, monkeypatch: pytest.MonkeyPatch, line: bytes) -> None:
    good = {"id": "a", "prompt": "x", "response": "y"}
    code, found, err = scored(monkeypatch, run, reward_model, good, line, {**good, "id": "c"})
    assert code == 1
    assert "line 2 of the input" in err
    assert err.count("\n") == 1
    assert [(f["row"], f["outcome"]) for f in found] == [(1, "scored"), (2, "unreadable"), (3, "scored")], "nothing is lost"
    assert found[0]["reward"] == found[2]["reward"]
    assert found[1]["problem"] in err
    code, found, err = scored(monkeypatch, run, reward_model, "--strict", good, line)
    assert (code, found) == (1, [])
    assert "line 2 of the input" in err


def test_score_wants_a_reward_model(
    run: Run, backbone: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code, _, err = scored(monkeypatch, run, backbone("llama"), {"prompt": "x", "response": "y"})
    assert code == 1
    assert "no reward head" in err
    code, _, err = scored(monkeypatch, run, tmp_path, {"prompt": "x", "response": "y"})
    assert code == 1
    assert "There is no model here" in err


def test_the_installed_command_is_this_one() -> None:
    script = Path(sys.executable).parent / "starling"
    result = subprocess.run([script, "doctor"], capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "80"})
    assert result.returncode == 0
    assert "starling" in result.stdout


def test_version_and_bare_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.call(["--version"]) == 0
    assert capsys.readouterr().out == f"starling {starling.__version__}\n"
    assert cli.call([]) == 2
    assert "Usage: starling [OPTIONS] COMMAND [ARGS]...\n" in capsys.readouterr().err


def test_show_of_a_file_that_is_no_journal(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text('[run]\ndir = "runs/mine"\n', "utf-8")
    code, _, said = run("show", file)
    assert code == 2
    assert said.startswith("The file is no journal. Where: ")
