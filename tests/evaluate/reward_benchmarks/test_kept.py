"""The command from scores to files, page and comparison."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from starling.cli import call
from starling.evaluate.reward_benchmarks import folders
from starling.evaluate.reward_benchmarks import rewardbench as rb
from starling.evaluate.reward_benchmarks import rewardbench_files as files


def scores_file(path: Path, shift: float) -> Path:
    """A public score file of all 23 subsets, four items each: the chosen answer wins by `shift` less the item's number."""
    rows = [(s, f"{s}{k}", float(k)) for s in rb.EXAMPLE_COUNTS for k in range(4)]
    columns = {
        "subset": [s for s, _, _ in rows], "id": [i for _, i, _ in rows],
        "text_chosen": [[{"role": "user", "content": i}, {"role": "assistant", "content": "good" * 3}] for _, i, _ in rows],
        "text_rejected": [[{"role": "user", "content": i}, {"role": "assistant", "content": "bad"}] for _, i, _ in rows],
        "scores_chosen": [shift for _ in rows], "scores_rejected": [k for _, _, k in rows], "model": "org/m",
    }  # fmt: skip
    path.write_text(json.dumps(columns), "utf-8")
    return path


def kwise_file(path: Path, scores: list[list[float]]) -> Path:
    rows = [
        {"id": i, "prompt": f"q{i}", "answers": [{"answer": f"{i}-{k}", "rank": k + 1, "score": s} for k, s in enumerate(of)]}
        for i, of in enumerate(scores)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def test_rewardbench_from_a_public_score_file_to_its_own_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = scores_file(tmp_path / "m.json", 2.5)  # three of four right in each subset
    out = tmp_path / "out"
    assert call(["evaluate", "reward", "--benchmark", "rewardbench", "--scores", str(given), "--out", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["accuracy"] == pytest.approx(0.75)
    assert said["baselines"] == {"chance": 0.5, "longest": 1.0, "shortest": 0.0}, "exactly"
    assert said["parts"]["Safety"]["accuracy"] == pytest.approx(0.75)
    kept = folders.read(out)
    assert kept.results == [said]
    assert len(kept.verdicts["rewardbench"]) == 23 * 4
    public = next((out / "rewardbench" / "eval-set").rglob("*.json"))
    assert files.read_result(public).subsets == dict.fromkeys(rb.EXAMPLE_COUNTS, 0.75)
    assert list((out / "rewardbench").rglob("*_outputs.jsonl"))
    again = next((out / "rewardbench" / "eval-set-scores").rglob("*.json"))
    assert call(["evaluate", "reward", "--benchmark", "rewardbench", "--scores", str(again), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == said["accuracy"]
    assert "<svg" in (out / "page.html").read_text("utf-8")


def test_two_models_are_compared_and_a_table_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, shift in (("a", 2.5), ("b", 0.5)):
        given = scores_file(tmp_path / f"{name}.json", shift)
        command = ["evaluate", "reward", "--benchmark", "rewardbench", "--scores", str(given), "--out", str(tmp_path / name)]
        assert call(command) == 0
        assert "rewardbench" in capsys.readouterr().out
    compared = [str(tmp_path / "a"), str(tmp_path / "b")]
    assert call(["evaluate", "compare", *compared, "--out", str(tmp_path / "c"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (pair,) = found["pairs"]
    assert pair["difference"] == pytest.approx(0.5)
    assert pair["different"]
    assert json.loads((tmp_path / "c" / "comparison.json").read_text("utf-8")) == found
    assert "2 reward models" in (tmp_path / "c" / "page.html").read_text("utf-8")
    assert call(["evaluate", "compare", *compared]) == 0
    said = capsys.readouterr().out
    assert "75.0 a" in said
    assert "25.0 b" in said
    assert call(["evaluate", "compare", compared[0], str(tmp_path)]) == 1
    assert "There are no results here" in capsys.readouterr().err


def test_a_proxy_judged_by_a_gold_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    proxy = kwise_file(tmp_path / "proxy.jsonl", [[3, 2, 1], [1, 2, 3]])
    gold = kwise_file(tmp_path / "gold.jsonl", [[0.9, 0.5, 0.1], [0.9, 0.5, 0.1]])
    command = ["evaluate", "reward", "--benchmark", "kwise", "--scores", str(proxy), "--gold", str(gold), "--json"]
    assert call(command) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["benchmark"] == "best_of_n"
    assert said["accuracy"] == 0.5
    assert [row["truth"] for row in said["best_of_n"]["n"]] == pytest.approx([0.5, 0.5, 0.5])
    other = kwise_file(tmp_path / "other.jsonl", [[1, 2]])
    command[command.index(str(gold))] = str(other)
    assert call(command) == 1
    assert "no answers in common" in capsys.readouterr().err
