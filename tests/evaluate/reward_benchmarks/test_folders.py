"""Folders of results: written, read, compared; half-written and altered ones are refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from starling.errors import InputError
from starling.evaluate.reward_benchmarks import folders
from starling.evaluate.reward_benchmarks.compare import Verdict
from starling.evaluate.reward_benchmarks.folders import Folder


def folder(model: str, values: str) -> Folder:
    verdicts = [Verdict(f"i{i}", f"c{i}", float(v), 0.5) for i, v in enumerate(values)]
    return Folder(model, [{"benchmark": "b", "accuracy": 0.5}], {"b": verdicts, "é": verdicts[:1]})


def test_what_is_written_is_read_again_and_has_the_same_bytes(tmp_path: Path) -> None:
    given = folder("org/m", "0110")
    folders.write(tmp_path / "x", given)
    folders.write(tmp_path / "y", given)
    assert folders.read(tmp_path / "x") == given
    for name in (folders.RESULTS_FILE, folders.VERDICTS_FILE):
        assert (tmp_path / "x" / name).read_bytes() == (tmp_path / "y" / name).read_bytes()
    assert (tmp_path / "x" / folders.VERDICTS_FILE).read_bytes()[4:8] == bytes(4), "gzip holds no time"


def test_folders_are_compared_by_item(tmp_path: Path) -> None:
    folders.write(tmp_path / "x", folder("m", "1" * 40))
    folders.write(tmp_path / "y", folder("m", "0" * 40))
    results, found = folders.compare_folders([tmp_path / "x", tmp_path / "y"])
    assert list(results) == ["m (x)", "m (y)"]
    row = next(r for r in found["pairs"] if r["benchmark"] == "b")
    assert (row["a"], row["b"], row["difference"], row["different"]) == ("m (x)", "m (y)", 1.0, True)
    assert found["benchmarks"]["b"]["letters"] == {"m (x)": "a", "m (y)": "b"}
    json.dumps(found, allow_nan=False)


def test_the_same_folder_twice_is_no_difference(tmp_path: Path) -> None:
    folders.write(tmp_path / "x", folder("m", "1010"))
    results, found = folders.compare_folders([tmp_path / "x", tmp_path / "x"])
    assert len(results) == 2
    assert not any(row["different"] for row in found["pairs"])


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"model": "m"}', '{"model": 1, "results": []}', '{"model": "m", "results": [{"accuracy": 1}]}']
)
def test_results_that_are_none(tmp_path: Path, text: str) -> None:
    folders.write(tmp_path, folder("m", "1"))
    (tmp_path / folders.RESULTS_FILE).write_text(text, "utf-8")
    with pytest.raises(InputError, match="results"):
        folders.read(tmp_path)


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ('{"benchmark": "b", "id": "z", "cluster": "c", "value": NaN, "weight": 1}', "is no verdict"),
        ('{"benchmark": "b", "id": "z", "cluster": "c", "value": 1, "weight": 0}', "is no verdict"),
        ('{"benchmark": "b", "id": 3, "cluster": "c", "value": 1, "weight": 1}', "is no verdict"),
        ('{"benchmark": "b", "id": "z"}', "is no verdict"),
        ("{", "is no verdict"),
        ('{"benchmark": "b", "id": "i0", "cluster": "c0", "value": 1, "weight": 1}', "was there before"),
    ],
)
def test_verdicts_that_are_none(tmp_path: Path, line: str, match: str) -> None:
    folders.write(tmp_path, folder("m", "1"))
    path = tmp_path / folders.VERDICTS_FILE
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + line.encode() + b"\n"))
    with pytest.raises(InputError, match=match):
        folders.read(tmp_path)


def test_missing_verdicts_are_said(tmp_path: Path) -> None:
    folders.write(tmp_path, folder("m", "1"))
    (tmp_path / folders.VERDICTS_FILE).unlink()
    with pytest.raises(InputError, match="does not exist"):
        folders.read(tmp_path)
