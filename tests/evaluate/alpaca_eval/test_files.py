"""AlpacaEval's files: what is read, what is refused, what comes back."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from starling.errors import InputError
from starling.evaluate.alpaca_eval import files
from starling.evaluate.alpaca_eval.files import Output
from tests.evaluate.alpaca_eval import making
from tests.evaluate.alpaca_eval.making import annotation

Write = Callable[[str, Any], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    return partial(making.write, tmp_path)


def test_the_order_is_pythons_own_random_seeded_by_the_instruction() -> None:
    """Values recorded from alpaca_eval's processor; they must never change."""
    assert [files.shown_first(text) for text in ("2+2", "2+3", "", "ü", "Why?")] == [False, True, False, True, False]


def test_annotations_become_columns(write: Write) -> None:
    rows = [annotation(0, "1.75"), annotation(1, None), annotation(2, 0), annotation(3, 2.5), annotation(4, 2)]
    (found,) = files.read_annotations(write("a.json", rows))
    assert (found.model, found.baseline, found.annotator) == ("cand", "base", "ann")
    assert found.preference[[0, 2, 4]] == pytest.approx([0.75, 0.5, 1.0])
    assert np.isnan(found.preference[[1, 3]]).all()
    assert found.outcomes == {"ranked": 3, "no_preference": 1, "out_of_range": 1}
    assert list(found.length) == [1, 2, 3, 4, 5]
    assert list(found.baseline_length) == [10] * 5
    assert list(found.shown_first) == [files.shown_first(f"instruction {i}") for i in range(5)]
    assert (found.dollars, found.seconds) == (pytest.approx(0.05), 10.0)
    assert found.official
    assert found.both_orders is None


@pytest.mark.parametrize("value", [math.nan, "NaN", "", "x", True, [1], {}])
def test_what_is_no_preference_is_none(write: Write, value: Any) -> None:
    (found,) = files.read_annotations(write("a.json", [annotation(0, value), annotation(1)]))
    assert found.outcomes == {"ranked": 1, "no_preference": 1}


def test_a_row_that_cannot_be_read_keeps_its_place(write: Write) -> None:
    rows = [17, annotation(0), annotation(1, output_2=None), annotation(2), "text", annotation(3)]
    (found,) = files.read_annotations(write("a.json", rows))
    assert list(found.position) == [1, 3, 5]
    assert found.outcomes == {"ranked": 3, "unreadable": 3}


def test_gzip_jsonl_and_plain_json_say_the_same(write: Write, tmp_path: Path) -> None:
    rows = [annotation(i, 1 + i / 8) for i in range(5)]
    plain = write("a.json", rows)
    lines = write("a.jsonl", "\n".join(json.dumps(row) for row in rows))
    zipped = tmp_path / "b.json.gz"
    zipped.write_bytes(gzip.compress(plain.read_bytes()))
    found = [files.read_annotations(path)[0] for path in (plain, lines, zipped)]
    assert all((one.preference == found[0].preference).all() and one.digests == found[0].digests for one in found)


def test_several_models_in_one_file(write: Write) -> None:
    rows = [annotation(0), annotation(1), annotation(0, generator_2="other"), annotation(1, 2, generator_2="other")]
    found = files.read_annotations(write("a.json", rows))
    assert [(one.model, list(one.position)) for one in found] == [("cand", [0, 1]), ("other", [0, 1])]


@pytest.mark.parametrize("change", [{"generator_1": "base2"}, {"annotator": "ann2"}])
def test_two_measurements_in_one_are_refused(write: Write, change: dict[str, str]) -> None:
    with pytest.raises(InputError, match="several"):
        files.read_annotations(write("a.json", [annotation(0), annotation(1, **change)]))


@pytest.mark.parametrize("text", ["[]", "[1]", '[{"instruction": "x"}]', "{}", "[{", ""])
def test_a_file_without_annotations_is_refused(write: Write, text: str) -> None:
    with pytest.raises(InputError):
        files.read_annotations(write("a.json", text))


def test_a_compact_table(tmp_path: Path) -> None:
    table = pa.table(
        {
            "model": ["x", "x", "y"], "annotation_row": [0, 1, 0], "instruction_id": [0, 2, 7], "preference": [1.5, None, 2.0],
            "swapped": [True, False, True], "len_1": [4, 5, 6], "len_2": [1, 2, 3],
        }
    )  # fmt: skip
    pq.write_table(table, tmp_path / "a.parquet")
    one, other = files.read_annotations(tmp_path / "a.parquet")
    assert (one.model, other.model) == ("x", "y")
    assert one.outcomes == {"ranked": 1, "no_preference": 1}
    assert one.instruction_id is not None
    assert list(one.instruction_id) == [0, 2]
    assert list(one.shown_first) == [True, False]
    assert other.preference[0] == 1


def test_our_own_annotations_say_both_orders_and_why_there_is_no_preference(write: Write) -> None:
    own = {files.WHEN_FIRST: 1.75, files.WHEN_SECOND: 1.25}
    rows = [annotation(0, 1.5, outcome="ranked", **own), annotation(1, None, outcome="refused")]
    (found,) = files.read_annotations(write("a.json", rows))
    assert found.outcomes == {"ranked": 1, "refused": 1}
    assert found.both_orders is not None
    assert [float(one[0]) for one in found.both_orders] == [0.75, 0.25]


def test_outputs(write: Write) -> None:
    rows = [{"instruction": "i", "output": "four", "generator": "m"}, {"instruction": "j", "output": "seven77", "generator": "m"}]
    found = files.read_outputs(write("o.json", [*rows, {"instruction": "k", "output": None}]))
    assert (found.generator, found.avg_length, found.unreadable) == ("m", 5, 1)
    assert found.index == {"i": 0, "j": 1}
    with pytest.raises(InputError, match="2 models"):
        files.read_outputs(write("p.json", [*rows, {"instruction": "k", "output": "", "generator": "n"}]))
    with pytest.raises(InputError, match="No row"):
        files.read_outputs(write("q.json", [{"instruction": "k"}]))


@pytest.mark.parametrize("name", ["o.json", "o.json.gz"])
def test_outputs_come_back_as_written(tmp_path: Path, name: str) -> None:
    rows = [Output("i", 'say "ü"\n', "m", "koala"), Output("j", "", "m", "")]
    files.write_outputs(tmp_path / name, rows)
    assert files.read_outputs(tmp_path / name).rows == tuple(rows)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_instructions(write: Write) -> None:
    path = write("i.csv", "instruction,dataset\nhow?,mine\nwhy?,\n")
    assert files.read_instructions(path) == [Output("how?", "", "", "mine"), Output("why?", "", "", "")]
    with pytest.raises(InputError, match="comes twice"):
        files.read_instructions(write("i.jsonl", '{"instruction": "x"}\n{"instruction": "x"}\n'))
    with pytest.raises(InputError, match="no instruction"):
        files.read_instructions(write("i.jsonl", '{"instruction": " "}\n'))
    with pytest.raises(InputError, match="There is no instruction"):
        files.read_instructions(write("i.jsonl", ""))


def test_difficulties_must_be_numbered_in_order(write: Write) -> None:
    assert list(files.read_difficulty(write("d.csv", "index,instruction_difficulty\n0,0.0\n1,-1.5\n"))) == [0, -1.5]
    assert list(files.read_difficulty(write("e.csv", ",instruction_difficulty\n0,0.5\n"))) == [0.5]
    for text in ("index,instruction_difficulty\n1,0\n", "index,instruction_difficulty\n0,nan\n", "a,b\n0,1\n", "index,x\n"):
        with pytest.raises(InputError):
            files.read_difficulty(write("f.csv", text))


def test_gamed_rows(write: Write) -> None:
    header = "preference,index,std_delta_len,instruction_difficulty,not_gamed_baseline,model\n"
    found = files.read_gamed(write("g.csv", header + "0.8,0,-1.5,0.25,False,v\n0.1,1,2,0,False,v\n"))
    assert (list(found.preference), list(found.std_delta_len), list(found.difficulty)) == ([0.8, 0.1], [-1.5, 2], [0.25, 0])
    for row in ("1.8,0,1,1,False,v\n", ",0,1,1,False,v\n", "0.5,0,inf,1,False,v\n", ""):
        with pytest.raises(InputError):
            files.read_gamed(write("h.csv", header + row))


def test_a_leaderboard_comes_back_best_first(tmp_path: Path) -> None:
    rows = {
        "low": {"win_rate": 3.5, "n_wins": 3, "mode": "verified", "avg_length": 99, "length_controlled_winrate": 4.25},
        "none": {"win_rate": 90.0},
        "high": {"win_rate": 1.5, "length_controlled_winrate": 40.0},
    }
    files.write_leaderboard(tmp_path / "l.csv", rows)
    assert (tmp_path / "l.csv").read_text().splitlines()[0] == "," + ",".join(files.LEADERBOARD)
    found = files.read_leaderboard(tmp_path / "l.csv")
    assert list(found) == ["high", "low", "none"]
    assert found["low"]["n_wins"] == 3
    assert found["low"]["mode"] == "verified"
    assert found["none"]["length_controlled_winrate"] is None
    (tmp_path / "l.csv").write_text(",win_rate\nx,\n")
    with pytest.raises(InputError, match="leaderboard"):
        files.read_leaderboard(tmp_path / "l.csv")
