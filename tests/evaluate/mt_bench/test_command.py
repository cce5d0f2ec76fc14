"""`starling evaluate mt-bench` as a person uses it, on small files and on the public ones."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from starling import cli
from starling.evaluate.result_files import read_result
from tests.evaluate.mt_bench import making
from tests.evaluate.mt_bench.making import pair, single, write

Run = Callable[..., tuple[int, str, str]]
DATA = Path(os.environ.get("STARLING_DATA", "../shared/data")) / "mt_bench"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """run("--judgments", …) → (exit code, stdout, stderr) of `starling evaluate mt-bench`."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        code = cli.call(["evaluate", "mt-bench", *map(str, arguments)])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def real(name: str) -> Path:
    if not (DATA / name).exists():
        pytest.skip(f"the public data is not at {DATA / name}; set STARLING_DATA")
    return DATA / name


def models(out: str) -> dict[str, dict[str, Any]]:
    return {m["model"]: m for m in json.loads(out)["models"]}


# ── the public files ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_published_figures_to_the_digit(run: Run) -> None:
    code, out, err = run("--judgments", real("model_judgment"), "--official", "--json")
    assert (code, err) == (0, "")
    found = models(out)
    trl, orpo = found["mistral-orpo-trl"], found["mistral-orpo"]
    assert (trl["overall"]["score"], trl["parts"]["turn_1"]["score"], trl["parts"]["turn_2"]["score"]) == (7.165625, 7.73125, 6.6)
    assert round(orpo["overall"]["score"], 6) == 5.858934
    assert (orpo["parts"]["turn_1"]["score"], round(orpo["parts"]["turn_2"]["score"], 6)) == (6.675, 5.037736)
    assert (trl["overall"]["n"], orpo["overall"]["n"], orpo["outcomes"]) == (160, 319, {"ranked": 319, "unparsed": 1})


def test_our_rule_on_the_public_files(run: Run) -> None:
    """Question 158, turn 2 has a −1 and a 10: as a row the −1 leaves, as a place the 10 stays: 939.5 / 160."""
    code, out, _ = run("--judgments", real("model_judgment"), "--questions", real("question.jsonl"), "--json")
    assert code == 0
    orpo = models(out)["mistral-orpo"]
    assert orpo["overall"]["score"] == 5.871875 == 939.5 / 160
    assert round(orpo["more"]["score_official"], 6) == 5.858934
    assert models(out)["mistral-orpo-trl"]["overall"]["score"] == 7.165625
    assert [name for name in orpo["parts"] if "turn" not in name] == [
        "writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities",
    ]  # fmt: skip
    notes = " ".join(json.loads(out)["notes"])
    assert "mistral-orpo: 159 of 160 questions and turns have grades of different answers" in notes


def test_the_answer_file_tells_which_judgments_are_of_its_answers(run: Run) -> None:
    code, out, _ = run("--judgments", real("model_judgment"), "--answers", real("model_answer"), "--json")
    assert code == 0
    orpo = models(out)["mistral-orpo"]
    assert (orpo["overall"]["score"], orpo["outcomes"]) == (6.328125, {"other_answer": 160, "ranked": 160})
    assert models(out)["mistral-orpo-trl"]["outcomes"] == {"ranked": 160}


# ── small files ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def grades(tmp_path: Path) -> Path:
    return write(
        tmp_path / "gpt-4_single.jsonl",
        [single(81, 1, 8), single(81, 2, 6), single(101, 1, -1), single(81, 1, "9"), single(81, 1, 3, "n")],
    )


def test_the_table_says_both_rules_the_failures_and_the_judge(run: Run, grades: Path, tmp_path: Path) -> None:
    questions = write(tmp_path / "question.jsonl", making.questions())
    code, out, err = run("--judgments", grades, "--questions", questions)
    assert (code, err) == (0, "")
    assert out.startswith("MT-Bench, single answers graded by gpt-4: points of 10, higher is better\n")
    headline = out.splitlines()[4].split()
    assert headline[:2] == ["m", "7.00"]
    assert "missing 3, ranked 2, score not a number 1, unparsed 1" in out
    assert f"note: Rows that are no judgment: 1 score_not_a_number, the first at {grades}, line 4." in out
    assert "no verdict" in out
    assert "score official" in out


def test_single_and_pair_files_together_and_a_folder_of_results(run: Run, grades: Path, tmp_path: Path) -> None:
    games = write(
        tmp_path / "gpt-4_pair.jsonl.gz", [pair(81, 1, "model_1", "model_1"), pair(81, 2, "model_1", "model_2", ("m", "k"))]
    )
    votes = write(
        tmp_path / "votes.jsonl",
        [{"question_id": 81, "model_a": "n", "model_b": "m", "winner": "model_b", "judge": "expert_1", "turn": 1}],
    )
    code, out, err = run("--judgments", grades, "--judgments", games, "--human", votes, "--out", tmp_path / "out", "--json")
    assert code == 0
    first, second = json.loads(out)["results"]
    assert (first["unit"], second["unit"]) == ("points of 10", "% won, ties half")
    for found in (first, second):
        assert (found["judge"]["human_agreement"], found["judge"]["human_votes"]) == (1, 1)
        assert found["agreement"][0] == {
            "between": "judge and people", "turn": "both", "setup": "S1", "agree": 1, "total": 1, "share": 1, "ci": [1, 1],
        }  # fmt: skip
    assert (second["judge"]["position_gap"], len(second["models"])) == (0.5, 3)
    kept = read_result(tmp_path / "out" / "2")
    assert kept.models[0].model == second["models"][0]["model"]
    assert err.count("result.json") == 2
    code, out, _ = run("--judgments", games, "--baseline", "k", "--json")
    assert list(models(out)) == ["m"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "needs either judgments or a settings file"),
        (["run.toml", "--judgments", "GRADES"], 2, "needs either judgments or a settings file"),
        (["run.toml", "--official"], 2, "evaluate.mt_bench.official_rule=true"),
        (["--judgments", "GRADES", "--set", "run.seed=1"], 2, "--set needs a settings file"),
        (["--judgments", "missing.jsonl"], 1, "does not exist"),
        (["--judgments", "EMPTY"], 1, "There is no judgment in the files: 1 missing_field"),
        (["--judgments", "GAMES", "--baseline", "gpt-3.5-turbo"], 1, "name one of m, n"),
        (["--judgments", "GRADES", "--questions", "GRADES"], 1, "A row is no question"),
    ],
)
def test_wrong_use_says_what_to_do(run: Run, grades: Path, tmp_path: Path, arguments: list[str], code: int, said: str) -> None:
    known = {
        "GRADES": grades,
        "EMPTY": write(tmp_path / "empty.jsonl", [{"hello": 1}]),
        "GAMES": write(tmp_path / "games.jsonl", [pair(81, 1, "tie", "tie")]),
    }
    found = run(*(known.get(word, word) for word in arguments))
    assert (found[0], found[1]) == (code, "")
    assert said in found[2]
    assert "What to do:" in found[2]


# ── live ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_live_with_a_settings_file(run: Run, tmp_path: Path) -> None:
    """Two named models and a judge behind a server of the tests: the whole path of the command, run twice."""
    from tests.fakes.process import FakeServer

    write(tmp_path / "question.jsonl", making.questions())
    with FakeServer() as server:
        (tmp_path / "run.toml").write_text(
            "".join(
                [f'[run]\ndir = "{tmp_path / "run"}"\n']
                + [f'[models.{m}]\ntype = "openai"\nname = "{m}"\nbase_url = "{server.url}"\n' for m in ("a", "b", "judge")]
                + [f'[evaluate.mt_bench]\nquestions = "{tmp_path / "question.jsonl"}"\nmodels = ["a", "b"]\njudge = "judge"\n']
            )
        )
        code, out, err = run(tmp_path / "run.toml", "--json", "--out", tmp_path / "copy")
        assert code == 0, err
        found = models(out)
        assert {name: m["outcomes"] for name, m in found.items()} == {"a": {"ranked": 6}, "b": {"ranked": 6}}
        before = server.stats()["received"]
        code, again, err = run(tmp_path / "run.toml", "--json")
        assert (code, again) == (0, out)
        assert "done before" in err
        assert server.stats()["received"] == before == 12 + 12
    assert (tmp_path / "copy" / "model_judgment" / "judge_single.jsonl").is_file()
    code, out, _ = run("--judgments", tmp_path / "copy" / "model_judgment", "--questions", tmp_path / "question.jsonl", "--json")
    assert {n: m["overall"]["score"] for n, m in models(out).items()} == {n: m["overall"]["score"] for n, m in found.items()}
