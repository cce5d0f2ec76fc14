"""`starling ratings` as a person uses it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from starling.cli import call


def log(path: Path, count: int = 300, models: str = "abcd", seed: int = 0) -> Path:
    """A small battle log in FastChat's format."""
    rng = np.random.default_rng(seed)
    lines = []
    for n in range(count):
        a, b = rng.choice(len(models), 2, replace=False).tolist()
        row: dict[str, Any] = {
            "model_a": models[a],
            "model_b": models[b],
            "winner": str(rng.choice(["model_a", "model_b", "tie", "tie (bothbad)"])),
            "judge": f"j{n % 25}",
            "question_id": f"q{n % 60}",
            "language": ["English", "German"][n % 2],
            "anony": n % 5 > 0,
            "tstamp": 1e9 + n,
            "conversation_a": [{"role": "assistant", "content": "word " * int(rng.integers(1, 90))}],
            "conversation_b": [{"role": "assistant", "content": "word " * int(rng.integers(1, 90))}],
        }
        lines.append(json.dumps(row))
    path.write_text("\n".join([*lines, "no json"]) + "\n", encoding="utf-8")
    return path


def asked(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = call(["ratings", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


def found(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    code, out, err = asked(capsys, *arguments, "--json")
    assert code == 0, err
    result: dict[str, Any] = json.loads(out)
    return result


def test_a_table_and_what_was_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = log(tmp_path / "log.jsonl")
    code, out, err = asked(capsys, path, "--anonymous", "--no-ties", "--anchor", "a=1200", "--matrix", "--by", "language")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].split() == ["rank", "model", "rating", "95", "%", "interval", "battles", "win", "rate", "expected"]
    assert any(line.split()[1:3] == ["a", "1,200.0"] for line in lines)
    assert "sandwich intervals relative to the mean from" in out
    assert "\nEnglish\n" in out
    assert "\nGerman\n" in out
    assert "win rate of the row's model in %, and what its rating predicts" in out
    assert "of 301 rows: " in err
    assert "300 rated" in err
    assert "1 not_json" in err
    assert "removed: 60 not_anonymous" in err


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = log(tmp_path / "log.jsonl")
    result = found(capsys, path, "--by", "language", "--matrix", "--daily-cap", 3, "--drop-outliers")
    assert [one["model"] for one in result["ratings"]] == result["matrix"]["models"]
    assert all(one["ci"][0] < one["rating"] < one["ci"][1] for one in result["ratings"])
    assert result["outcomes"] == {"rated": 300, "not_json": 1}
    assert result["rows"] == 301
    assert result["removed"] == {"daily_cap": 225, "outlier_judges": 0, "outlier_judges_votes": 0}
    assert found(capsys, path, "--daily-cap", 3)["removed"] == {"daily_cap": 225}
    assert set(result["parts"]) == {"English", "German"}
    assert result["parts"]["German"]["ratings"][0]["rating"] > 0
    assert result["scale"] == {"points": 400.0, "base": 10.0, "initial": 1000.0}


def test_methods_and_intervals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = log(tmp_path / "log.jsonl")
    plain = found(capsys, path)
    for options in (
        ["--interval", "bootstrap", "--rounds", 60, "--seed", 4],
        ["--cluster", "judge"],
        ["--cluster", "prompt", "--interval", "bootstrap", "--rounds", 60],
        ["--relative-to", "a"],
        ["--interval", "none"],
    ):
        same = found(capsys, path, *options)
        assert [one["rating"] for one in same["ratings"]] == pytest.approx([one["rating"] for one in plain["ratings"]])
    elo = found(capsys, path, "--method", "elo", "--rounds", 20, "--k", 8)
    assert (elo["method"], elo["interval"], elo["notes"]) == ("elo", "bootstrap", [])  # the log has times, and they are read
    style = found(capsys, path, "--style", "length", "--style-ridge", "fastchat")
    assert style["style"][0]["feature"] == "length"
    code, out, _ = asked(capsys, path, "--style", "length")
    assert code == 0
    assert "without style" in out
    assert "points per spread" in out


def test_new_models_against_saved_ratings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = found(capsys, log(tmp_path / "old.jsonl", models="abc"))
    (tmp_path / "old.json").write_text(json.dumps(old), encoding="utf-8")
    new = log(tmp_path / "new.jsonl", models="abcn", seed=1)
    result = found(capsys, new, "--ratings", tmp_path / "old.json")
    ratings = {one["model"]: one["rating"] for one in result["ratings"]}
    assert ratings.pop("n") == pytest.approx(1000, abs=150)
    assert ratings == {one["model"]: one["rating"] for one in old["ratings"]}
    code, out, _ = asked(capsys, new, "--ratings", tmp_path / "old.json")
    assert code == 0
    assert "new" in out
    assert "saved ratings stay as they are" in out
    code, _, err = asked(capsys, new, "--ratings", tmp_path / "old.json", "--by", "language")
    assert (code, "--by does not go with saved ratings" in err) == (2, True)


def test_categories_of_prompts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = tmp_path / "question.jsonl"
    rows = [{"question_id": f"q{n}", "category": "maths" if n % 2 else "jokes"} for n in range(60)]
    prompts.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    result = found(capsys, log(tmp_path / "log.jsonl"), "--prompts", prompts, "--by", "category")
    assert set(result["parts"]) == {"maths", "jokes"}


def test_disconnected_votes_are_refused_with_the_groups(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "votes.csv"
    path.write_text("left,right,winner\nx,y,left\ny,x,left\np,q,tie\n", encoding="utf-8")
    code, out, err = asked(capsys, path)
    assert (code, out) == (1, "")
    assert "The models cannot be put on one scale: 2 groups never met: (x, y), (p, q)." in err
    assert found(capsys, path, "--ridge", "0.5")["ratings"]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--method", "glicko"], "There is no 'glicko' for --method"),
        (["--interval", "wald"], "There is no 'wald' for --interval"),
        (["--cluster", "turn"], "There is no 'turn' for --cluster"),
        (["--by", "judge"], "There is no 'judge' for --by"),
        (["--style", "emoji"], "There is no 'emoji' for --style"),
        (["--style-ridge", "fastchat"], "--style-ridge is a penalty of --style"),
        (["--anchor", "a"], "is no anchor"),
        (["--anchor", "a=high"], "is no anchor"),
        (["--anchor", "a=nan"], "is no anchor"),
        (["--anchor", "z=1000"], "No vote is about z"),
        (["--without", "z"], "No vote is about z"),
        (["--method", "elo", "--interval", "sandwich"], "Elo depends on the order"),
        (["--rounds", "1"], "--rounds"),
    ],
)
def test_wrong_use(tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], complaint: str) -> None:
    code, out, err = asked(capsys, log(tmp_path / "log.jsonl"), *options)
    assert (code, out) == (2, "")
    assert complaint in err
