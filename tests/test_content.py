"""Content hashes of the user's files: what changes them and what does not."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from starling import content
from starling.content import MISSING, content_of


def test_a_file_counts_by_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "b").write_bytes(b"abc")
    assert content_of(tmp_path / "a") == content_of(tmp_path / "b") == hashlib.sha256(b"abc").hexdigest()[:16]
    (tmp_path / "b").write_bytes(b"abd")
    assert content_of(tmp_path / "a") != content_of(tmp_path / "b")


def test_a_folder_counts_by_names_and_contents_not_by_place(tmp_path: Path) -> None:
    for name in ("x", "y"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "w").write_bytes(b"1")
        (tmp_path / name / "c").write_bytes(b"2")
    same = content_of(tmp_path / "x")
    assert content_of(tmp_path / "y") == same
    (tmp_path / "y" / "c").rename(tmp_path / "y" / "d")
    assert content_of(tmp_path / "y") != same


def test_a_glob_counts_by_the_names_and_contents_of_its_files(tmp_path: Path) -> None:
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jsonl").write_bytes(b"1")
        (tmp_path / name / "b.txt").write_bytes(name.encode())
    same = content_of(tmp_path / "x" / "*.jsonl")
    assert content_of(tmp_path / "y" / "*.jsonl") == same
    (tmp_path / "y" / "b.jsonl").write_bytes(b"2")
    assert content_of(tmp_path / "y" / "*.jsonl") != same
    assert content_of(tmp_path / "x" / "*.csv") == MISSING


def test_what_is_not_there_is_missing(tmp_path: Path) -> None:
    assert content_of(tmp_path / "none") == MISSING


def test_of_large_files_the_size_and_both_ends_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "WHOLE_BYTES", 10)
    monkeypatch.setattr(content, "ENDS_BYTES", 4)
    path = tmp_path / "weights"

    def of(data: bytes) -> str:
        path.write_bytes(data)
        return content_of(path)

    first = of(b"head" + b"middle" + b"tail")
    assert of(b"head" + b"MIDDLE" + b"tail") == first
    assert of(b"heat" + b"middle" + b"tail") != first
    assert of(b"head" + b"middle" + b"tale") != first
    assert of(b"head" + b"midddle" + b"tail") != first
