"""`starling evaluate alpaca-eval` as a person meets it: table, JSON, files, wrong use, and a whole live run behind a server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from starling.cli import call
from starling.evaluate import result_files
from starling.evaluate.alpaca_eval import files
from tests.evaluate.alpaca_eval.making import annotation, write

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def made(*arguments: object) -> tuple[int, str, str]:
        code = call(["evaluate", "alpaca-eval", *map(str, arguments)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return made


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    return write(tmp_path, "annotations.json", [annotation(i, 1 + (i % 4) / 4) for i in range(12)])


def test_json_of_one_model_is_flat(run: Run, annotations: Path) -> None:
    code, out, _ = run("--annotations", annotations, "--lc", "minimal", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["win_rate"] == pytest.approx(37.5)
    assert (found["n"], found["n_total"], found["n_wins"], found["n_wins_base"], found["n_draws"]) == (12, 12, 3, 6, 3)
    assert found["lc_variant"] == "minimal"
    needed = {"standard_error", "discrete_win_rate", "avg_length", "lc_win_rate", "lc_standard_error", "position_gap"}
    assert needed <= found.keys()
    assert "NaN" not in out


def test_json_without_length_control_is_null_with_a_reason(run: Run, annotations: Path) -> None:
    code, out, _ = run("--annotations", annotations, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["lc_win_rate"] is None
    assert "--difficulty" in found["lc_reason"]


def test_json_of_several_models_is_a_list(run: Run, annotations: Path, tmp_path: Path) -> None:
    other = write(tmp_path, "b.json", [annotation(i, 1.5 + (i % 4) / 8, generator_2="other") for i in range(12)])
    code, out, _ = run("--annotations", annotations, "--annotations", other, "--lc", "none", "--json")
    found = json.loads(out)
    assert code == 0
    assert [one["model"] for one in found["models"]] == ["cand", "other"]
    assert found["differences"][0]["difference"] == pytest.approx(37.5 - 68.75)


def test_the_table_names_what_to_know(run: Run, annotations: Path) -> None:
    code, out, _ = run("--annotations", annotations)
    assert code == 0
    for word in (
        "cand",
        "37.5",
        "length-controlled",
        "position",
        "no length-controlled win rate: the instructions' difficulties",
    ):
        assert word in out


def test_results_and_leaderboard_are_written(run: Run, annotations: Path, tmp_path: Path) -> None:
    files.write_leaderboard(tmp_path / "old.csv", {"older": {"win_rate": 99.0}})
    given = ("--annotations", annotations, "--out", tmp_path / "out", "--leaderboard", tmp_path / "old.csv")
    code, _, err = run(*given)
    assert code == 0
    assert "leaderboard.csv" in err
    assert list(files.read_leaderboard(tmp_path / "out" / "leaderboard.csv")) == ["older", "cand"]
    assert result_files.read_result(tmp_path / "out").models[0].model == "cand"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "nothing to evaluate"),
        (["--annotations", "A", "--lc", "half"], 2, "There is no 'half'"),
        (["--annotations", "A", "--difficulty-by", "name"], 2, "There is no 'name'"),
        (["--annotations", "A", "--c", "0"], 2, "C must be above 0"),
        (["--annotations", "A", "--c", "nan"], 2, "C must be above 0"),
        (["--annotations", "A", "--leaderboard", "A"], 2, "no place to be written"),
        (["--annotations", "A", "--against", "x"], 2, "difficulties"),
        (["--annotations", "A", "--set", "run.seed=1"], 2, "--set needs a settings file"),
        (["some.toml", "--annotations", "A"], 2, "everything but --out"),
        (["some.toml", "--lc", "none"], 2, "everything but --out"),
        (["some.toml"], 2, "does not exist"),
        (["--annotations", "nowhere.json"], 1, "does not exist"),
        (["--annotations", "A", "--difficulty", "A"], 1, "no difficulty"),
        (["--annotations", "A", "--gamed", "nowhere.csv"], 1, "does not exist"),
        (["--annotations", "A", "--outputs", "A"], 1, "No row has an instruction and an output"),
    ],
)
def test_wrong_use_says_what_to_do(run: Run, annotations: Path, arguments: list[str], code: int, said: str) -> None:
    found = run(*(annotations if word == "A" else word for word in arguments))
    assert (found[0], found[1]) == (code, "")
    assert said in found[2]
    assert "What to do:" in found[2]


def test_live_with_a_settings_file(run: Run, tmp_path: Path) -> None:
    """Two models, one of them the baseline, and a judge behind a server of the tests; then again, and again from the files."""
    from tests.fakes.process import FakeServer

    asked = write(tmp_path, "instructions.jsonl", "\n".join(json.dumps({"instruction": f"Why {i}?"}) for i in range(6)))
    with FakeServer() as server:
        settings = write(
            tmp_path,
            "run.toml",
            f'[run]\ndir = "{tmp_path / "run"}"\n'
            + "".join(f'[models.{m}]\ntype = "openai"\nname = "{m}"\nbase_url = "{server.url}"\n' for m in ("a", "b", "judge"))
            + f'[evaluate.alpaca_eval]\ninstructions = "{asked}"\nmodels = ["a", "b"]\nbaseline_model = "a"\njudge = "judge"\n',
        )
        code, out, err = run(settings, "--json", "--out", tmp_path / "copy")
        assert code == 0, err
        (model,) = json.loads(out)["models"]
        assert (model["model"], model["outcomes"]) == ("b", {"ranked": 6})
        before = server.stats()["received"]
        code, again, err = run(settings, "--json")
        assert (code, again) == (0, out)
        assert server.stats()["received"] == before == 12 + 12
    code, out, _ = run("--annotations", tmp_path / "copy" / "b" / "annotations.json", "--json")
    assert json.loads(out)["win_rate"] == pytest.approx(model["overall"]["score"])
