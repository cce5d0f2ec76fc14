"""Rows of foreign files: numbers, named problems, damaged files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from starling import rows
from starling.errors import InputError
from starling.rows import Row, count_rows, files_of, read_rows


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
        ("a.tsv", b"a\tb\n", "not known by its name"),
        ("a.json", b"", "does not begin with"),
        ("a.json", b'{"a": 1}', "does not begin with"),
        ("a.json", b'[{"a": 1}', "comma or . is missing.*after element 1"),
        ("a.json", b'[{"a": 1} {"a": 2}]', "comma or . is missing"),
        ("a.json", b'[{"a": 1}, {"a": ]', "after element 1"),
        ("a.json", b'[{"a": "\xff"}]', "damaged"),
        ("a.json", b"[" * 100_000, "not one array of objects"),
        ("a.json.gz", b"not gzip at all", "damaged"),
        ("a.csv", b'a,b\n1,2\n3,"4', "csv file breaks off or is damaged.*after row 1"),
        ("a.csv", b"a,b\n\xff,2\n", "csv file breaks off or is damaged"),
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


# ── json arrays ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("piece", [1, 2, 7, 2**20])
def test_a_json_array_is_read_element_by_element_however_it_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(rows, "PIECE", piece)
    values = [{"a": "é\n]},{[" * 5, "b": [1, {"c": None}]}, {}, {"n": 1234567}, {"x": "y" * 100}]
    for indent in (None, 2):
        (tmp_path / "a.json").write_text("\ufeff \n" + json.dumps(values, indent=indent, ensure_ascii=False) + "\n", "utf-8")
        assert list(read_rows(tmp_path / "a.json")) == [Row(i, v) for i, v in enumerate(values, start=1)]
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(b' [1234567, {"a": "\\ud800"}, null, {"a": "\\ud83d\\ude00"}] '))
    assert [(r.number, r.problem) for r in read_rows(tmp_path / "b.json.gz")] == [
        (1, "not_an_object"),
        (2, "not_unicode"),
        (3, "not_an_object"),
        (4, ""),
    ]
    (tmp_path / "c.json").write_text(" [ ] ")
    assert list(read_rows(tmp_path / "c.json")) == []


def test_a_json_array_is_never_held_whole(tmp_path: Path) -> None:
    import tracemalloc

    with (tmp_path / "a.json").open("w") as out:
        out.write("[" + ",".join(json.dumps({"n": i, "text": "x" * 1000}) for i in range(20_000)) + "]")
    tracemalloc.start()
    assert sum(1 for _ in read_rows(tmp_path / "a.json")) == 20_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * 2**20, "of 20 MB"


# ── csv ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_csv_rows(tmp_path: Path) -> None:
    long = "x" * 200_000  # more than the module's own limit
    text = f'\ufeffQuestion,Best Answer\r\n"a, ""b""\nc",d\r\n\r\nonly\r\n1,2,3\r\n{long},é\r\n'
    (tmp_path / "a.csv").write_text(text, "utf-8", newline="")
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(text.encode()))
    expected = [
        Row(1, {"Question": 'a, "b"\nc', "Best Answer": "d"}),
        Row(2, {"Question": "only", "Best Answer": None}),
        Row(3, None, "too_many_cells"),
        Row(4, {"Question": long, "Best Answer": "é"}),
    ]
    assert list(read_rows(tmp_path / "a.csv")) == list(read_rows(tmp_path / "a.csv.gz")) == expected


# ── several files ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_files_of_a_folder_a_glob_and_a_list(tmp_path: Path) -> None:
    names = ["b.parquet", "a.jsonl.gz", "in/c.json", "README.md", "a.jsonl.lock", "d.csv"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def found(*paths: str) -> list[str]:
        return [p.relative_to(tmp_path).as_posix() for p in files_of([tmp_path / p for p in paths])]

    assert found(".") == ["a.jsonl.gz", "b.parquet", "d.csv", "in/c.json"]
    assert found("[ab].*") == ["a.jsonl.gz", "a.jsonl.lock", "b.parquet"]
    assert found("d.csv", "**/c.*", "no.csv") == ["d.csv", "in/c.json", "no.csv"]
    assert files_of(tmp_path / "d.csv") == [tmp_path / "d.csv"]
    (tmp_path / "x[1].csv").touch()
    assert files_of(tmp_path / "x[1].csv") == [tmp_path / "x[1].csv"], "a name that looks like a glob"
    (tmp_path / "empty").mkdir()
    for nothing in ("empty", "*.xyz"):
        with pytest.raises(InputError, match="no data file here"):
            files_of(tmp_path / nothing)


def test_rows_are_counted_before_they_are_read(tmp_path: Path) -> None:
    values = [{"a": i} for i in range(700)]
    pq.write_table(pa.Table.from_pylist(values), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(v) + "\n" for v in values))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    (tmp_path / "a.json").write_text(json.dumps(values))
    (tmp_path / "a.csv").write_text("a\n" + "1\n" * 700)
    assert [count_rows(p) for p in files_of(tmp_path)] == [700] * 5
    (tmp_path / "b.jsonl.gz").write_bytes((tmp_path / "a.jsonl.gz").read_bytes()[:-40])
    assert count_rows(tmp_path / "b.jsonl.gz") <= 700, "damage is found by the reading itself"
