"""`starling evaluate reward` as a person uses it; `starling evaluate CONFIG` beside it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from starling import cli

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """run("--benchmark", …) → (exit code, stdout, stderr) of `starling evaluate reward`."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        code = cli.call(["evaluate", "reward", *map(str, arguments)])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def rows(n: int = 6, **more: Any) -> list[dict[str, Any]]:
    return [
        {
            "question_id": f"q{i}", "prompt": f"question {i}", "response_a": "a long answer", "response_b": "short",
            "winner": "model_a" if i % 2 else "model_b", "score_a": float(i), "score_b": 2.5, **more,
        }
        for i in range(n)
    ]  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "human.json"
    path.write_text(json.dumps([*rows(), *({**row, "question_id": "t", "winner": "tie"} for row in rows(1))]), encoding="utf-8")
    return path


def test_scores_of_a_public_file_as_json(run: Run, file: Path) -> None:
    code, out, err = run("--benchmark", "human_preference", "--scores", file, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    # a is above from question 3 on; a is better in odd ones: 0, 2, 3, 5 are right
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert (found["benchmark"], found["n"], found["left_out"]) == ("human_preference", 6, {"tie": 1})
    assert {"parts", "ci", "baselines", "clusters", "over_baseline"} <= set(found)


def test_tables_and_counts_of_what_is_left_out(run: Run, file: Path) -> None:
    code, out, err = run("--benchmark", "human_preference", "--scores", file)
    assert code == 0
    headline = out.splitlines()[2].split()
    assert headline[:2] == ["human_preference", "0.667"]
    assert "baseline longest" in out
    assert "prefers the longer answer" in out
    assert "right, lengths " in out
    assert "above longest" in out or "above chance" in out
    assert err == (
        "human_preference: not asked about or not usable: 1 tie\n"
        "human_preference: only 6 clusters: the intervals are too narrow\n"
    )


def test_several_benchmarks_and_a_folder_of_results(run: Run, file: Path, tmp_path: Path) -> None:
    safety = tmp_path / "a=b.json"  # a path may have an = in it
    safety.write_text(json.dumps(rows(safer_response_id=0)), encoding="utf-8")
    out_dir = tmp_path / "results"
    code, out, _ = run(
        "--scores", f"safety_preference={safety}", "--scores", f"human_preference={file}", "--out", out_dir, "--json"
    )
    assert code == 0
    found = json.loads(out)["results"]
    assert [one["benchmark"] for one in found] == ["safety_preference", "human_preference"]
    assert sorted(p.name for p in out_dir.iterdir()) == ["page.html", "results.json", "verdicts.jsonl.gz"]
    assert json.loads((out_dir / "results.json").read_text("utf-8"))["results"] == found
    assert run("--benchmark", "safety_preference", "--scores", safety, "--json")[0] == 0


def test_from_a_model_and_again_from_its_saved_scores(
    run: Run, file: Path, tmp_path: Path, backbone: Callable[..., Path]
) -> None:
    from starling.models.load import load_backbone_as_scalar, load_tokenizer, save_folder

    tokenizer = load_tokenizer(backbone("llama"))
    save_folder(tmp_path / "model", load_backbone_as_scalar(backbone("llama"), 0, tokenizer), tokenizer)
    saved = tmp_path / "scores.jsonl.gz"
    options = ("--benchmark", "human_preference", "--model", tmp_path / "model", "--data", file)
    code, out, err = run(*options, "--save-scores", saved, "--out", tmp_path / "out", "--json")
    assert code == 0, err
    assert "scoring" in err
    first = json.loads(out)
    assert first["left_out"] == {"tie": 1}
    again = json.loads(run("--benchmark", "human_preference", "--scores", saved, "--json")[1])
    assert again == first
    assert [p.name for p in tmp_path.rglob("*.scoring")] == [], "what was kept meanwhile is gone"
    assert saved.read_bytes() == (tmp_path / "out" / "human_preference.scores.jsonl.gz").read_bytes()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "Nothing says where the scores come from"),
        (("--benchmark", "dance", "--scores", "FILE"), "There is no benchmark 'dance'"),
        (("--scores", "FILE"), "not said which benchmark the file"),
        (("--benchmark", "pairs", "--benchmark", "kwise", "--scores", "FILE"), "not said which benchmark the file"),
        (("--benchmark", "pairs", "--scores", "kwise=FILE"), "no file for the benchmark 'pairs'"),
        (("--benchmark", "pairs", "--scores", "pairs=FILE", "--scores", "kwise=FILE"), "'kwise', which is not asked for"),
        (("--benchmark", "pairs", "--scores", "FILE", "--scores", "pairs=FILE"), "'pairs' has two files"),
        (("--benchmark", "pairs", "--scores", "FILE", "--model", "m"), "beside it"),
        (("--benchmark", "pairs", "--scores", "FILE", "--data", "FILE"), "beside it"),
        (("--benchmark", "pairs", "--model", "m"), "no file for the benchmark 'pairs'"),
        (("--model", "m"), "No benchmark is named"),
        (("--benchmark", "pairs", "--model", "m", "--data", "FILE", "--dtype", "int8"), "no dtype 'int8'"),
        (("--benchmark", "pairs", "--scores", "FILE", "--save-scores", "s.jsonl"), "--save-scores"),
        (("--model", "m", "--data", "pairs=FILE", "--data", "kwise=FILE", "--save-scores", "s.jsonl"), "--save-scores"),
    ],
)
def test_wrong_use_is_one_paragraph_and_exit_2(run: Run, file: Path, options: tuple[str, ...], said: str) -> None:
    code, out, err = run(*(option.replace("FILE", str(file)) for option in options))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err


def test_a_wrong_file_is_one_paragraph_and_exit_1(run: Run, file: Path, tmp_path: Path) -> None:
    code, out, err = run("--benchmark", "truthful_qa", "--scores", file)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "no field 'response_c'" in err
    code, _, err = run("--benchmark", "human_preference", "--model", tmp_path, "--data", file)
    assert code == 1
    assert "There is no model here" in err


def test_the_list_names_every_benchmark_with_its_file_and_source(run: Run) -> None:
    from starling.evaluate.reward_benchmarks import BENCHMARKS

    code, out, _ = run("--list")
    assert code == 0
    assert [line.partition(":")[0] for line in out.splitlines() if not line.startswith(" ")] == list(BENCHMARKS)
    listed = json.loads(run("--list", "--json")[1])
    assert [row["benchmark"] for row in listed] == list(BENCHMARKS)
    assert all(row["file"] and row["source"] for row in listed)


def test_the_stage_command_needs_no_word_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["none.toml"], ["run", "none.toml"], ["--set", "a.b=1", "none.toml"], ["none.toml", "--json"]):
        assert cli.call(["evaluate", *arguments]) == 2
        assert "The settings file does not exist. Where: none.toml" in capsys.readouterr().err
    assert cli.call(["evaluate", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "reward" in shown
    assert "run" in shown


def test_scores_are_measured_without_torch(file: Path) -> None:
    code = (
        "import sys; from starling.cli import call\n"
        f"assert call(['evaluate', 'reward', '--benchmark', 'human_preference', '--scores', {str(file)!r}]) == 0\n"
        "assert not {'torch', 'transformers', 'matplotlib', 'scipy'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**os.environ})
    assert result.returncode == 0, result.stderr
