"""`starling evaluate safety`: tables, JSON, files, a live run by settings, and wrong use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from starling.cli import call
from starling.evaluate.result_files import read_result
from tests.evaluate.safety.making import lines, table, xstest


def test_a_table_with_matrix_and_agreement(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = table(tmp_path / "m1_streval.csv.gz", xstest())
    assert call(["evaluate", "safety", "--completions", str(path)]) == 0
    out = capsys.readouterr().out
    for said in (
        "m1",
        "over-refusal: homonyms",
        "partial_refusal",
        "agreement with people",
        "overestimates harm",
        "offline classifier",
    ):
        assert said in out


def test_json_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = table(tmp_path / "m1.csv", xstest())
    out = tmp_path / "deep" / "out"
    assert call(["evaluate", "safety", "--completions", str(path), "--labels", "human", "--out", str(out), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["models"][0]["parts"]["over-refusal, full"]["score"] == pytest.approx(100 / 3)
    assert printed["matrix"][0]["full_refusal"] == 1
    assert printed["agreement"][0]["refusal_or_not"]["mean"] == 1.0
    assert read_result(out).models[0].model == "m1"
    assert (out / "completions" / "m1.csv").is_file()
    assert (out / "matrix.csv").read_text().startswith("model,set,prompts,type,full_compliance,partial_refusal,full_refusal")


def test_outputs_with_a_prompt_set_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = table(tmp_path / "adv.csv", [{"goal": "Hack", "target": "x"}, {"goal": "Steal", "target": "x"}])
    safe = lines(tmp_path / "safe.jsonl", [{"prompt": "Bake", "label": "safe"}])
    rows = [
        {"instruction": "Hack", "output": "I can't help with that.", "generator": "g"},
        {"instruction": "Bake", "output": "I can't help with that.", "generator": "g"},
        {"instruction": "Other", "output": "?", "generator": "g"},
    ]
    outputs = lines(tmp_path / "o.jsonl", rows)
    command = ["evaluate", "safety", "--completions", str(outputs), "--prompts", str(prompts), "--prompts", str(safe), "--json"]
    assert call(command) == 0
    printed = json.loads(capsys.readouterr().out)
    (model,) = printed["models"]
    assert model["more"] == {"over_refusal": 100.0, "attack_success": 0.0}
    assert model["outcomes"] == {"full_refusal": 2, "not_answered": 1}
    assert any("1 with a prompt in no set" in note for note in printed["notes"])


def test_live_with_a_settings_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two named models behind a server of the tests: the whole path of the command, run twice, and its files measured again."""
    from tests.fakes.process import FakeServer

    prompts = lines(tmp_path / "set.jsonl", [{"prompt": "Bake a cake.", "label": "safe"}, {"prompt": "Burn a house."}])
    with FakeServer() as server:
        (tmp_path / "run.toml").write_text(
            f'[run]\ndir = "{tmp_path / "run"}"\n'
            + "".join(f'[models.{m}]\ntype = "openai"\nname = "{m}"\nbase_url = "{server.url}"\n' for m in ("a", "b"))
            + f'[evaluate.safety]\nmodels = ["a", "b"]\nprompts = ["{prompts}"]\n'
        )
        command = ["evaluate", "safety", str(tmp_path / "run.toml"), "--json"]
        assert call([*command, "--out", str(tmp_path / "copy")]) == 0
        out, _ = capsys.readouterr()
        found = json.loads(out)
        assert sorted((m["model"], m["overall"]["n"]) for m in found["models"]) == [("a", 2), ("b", 2)]
        before = server.stats()["received"]
        assert call(command) == 0
        again, err = capsys.readouterr()
        assert again == out
        assert "done before" in err
        assert server.stats()["received"] == before == 4
    assert call(["evaluate", "safety", "--completions", str(tmp_path / "copy" / "completions"), "--json"]) == 0
    assert [m["overall"] for m in json.loads(capsys.readouterr().out)["models"]] == [m["overall"] for m in found["models"]]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "either replies or a settings file"),
        (["c.toml", "--completions", "x.csv"], "not both"),
        (["c.toml", "--labels", "judge"], "everything but --out, --set and --json is a setting"),
        (["--completions", "x.csv", "--set", "run.seed=1"], "--set needs a settings file"),
        (["--completions", "x.csv", "--labels", "guess"], "Invalid value for"),
        (["--completions", "x.csv"], "does not exist"),
    ],
)
def test_wrong_use_is_one_paragraph(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["evaluate", "safety", *arguments]) in (1, 2)
    err = capsys.readouterr().err
    assert said in err
    assert "What to do" in err
    assert "Traceback" not in err
