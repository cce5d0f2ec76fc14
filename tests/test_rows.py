"""Rows of foreign files: numbers, named problems, damaged files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from starling.errors import InputError
from starling.rows import Row, read_rows


def test_lines_are_numbered_as_an_editor_numbers_them(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"a": 1}\n\n[1]\nnot json\n{"a": "\xff"}\n{"a": "\\ud800"}\n{"a": "\\ud83d\\ude00"}\r\n{"a": 2}'
    )
    assert list(read_rows(path)) == [
        Row(1, {"a": 1}),
        Row(3, None, "not_an_object"),
        Row(4, None, "not_json"),
        Row(5, None, "not_utf8"),
        Row(6, None, "not_unicode"),
        Row(7, {"a": "😀"}),
        Row(8, {"a": 2}),
    ]


def test_json_nested_too_deep_is_a_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a":' + "[" * 100_000 + "\n" + '{"a": 1}\n')
    assert [r.problem for r in read_rows(path)] == ["not_json", ""]


def test_compressed_and_parquet_give_the_same_rows(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i}", "n": i} for i in range(1200)]
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as out:
        out.writelines(json.dumps(r) + "\n" for r in rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    expected = [Row(i, r) for i, r in enumerate(rows, start=1)]
    assert list(read_rows(tmp_path / "a.jsonl.gz")) == expected
    assert list(read_rows(tmp_path / "a.parquet")) == expected


def test_a_parquet_text_that_is_no_utf8_is_one_bad_row(tmp_path: Path) -> None:
    offsets, data = pa.py_buffer(bytes(4) + b"\x01\0\0\0\x02\0\0\0\x03\0\0\0"), pa.py_buffer(b"a\xffc")
    column = pa.Array.from_buffers(pa.string(), 3, [None, offsets, data])
    pq.write_table(pa.table({"prompt": column}), tmp_path / "a.parquet")
    assert list(read_rows(tmp_path / "a.parquet")) == [Row(1, {"prompt": "a"}), Row(2, None, "not_utf8"), Row(3, {"prompt": "c"})]


def test_a_gzip_file_that_breaks_off_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    whole = gzip.compress("".join(json.dumps({"n": i, "x": str(i) * 50}) + "\n" for i in range(5000)).encode())
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"breaks off or is damaged.*after line \d{3,}"):
        list(read_rows(path))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl.gz", b"not gzip at all", "damaged"),
        ("a.parquet", b"PAR1 half written", "damaged or only half written"),
        ("a.parquet", b"", "damaged or only half written"),
        ("a.csv", b"a,b\n", "not known by its name"),
        ("a", b"", "not known by its name"),
    ],
)
def test_files_that_cannot_be_read_at_all(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said) as error:
        list(read_rows(tmp_path / name))
    assert str(tmp_path / name) in str(error.value)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "no.jsonl", tmp_path):
        with pytest.raises(InputError, match="does not exist or is a folder"):
            read_rows(path)
