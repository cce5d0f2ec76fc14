"""The import of what others wrote: what is mended, what is rejected by name, real files."""

from __future__ import annotations

import copy
import gzip
import json
import math
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from starling.errors import InputError
from starling.nectar import NectarImport, Rejected, import_nectar, to_nectar, write_nectar
from starling.records import Message, Prompt, RankedAnswer, RankedPair, RankedPrompt

DATA = Path(os.environ.get("STARLING_DATA", "../shared/data")) / "nectar_like" / "train.jsonl.gz"
PROMPT = Prompt.make((Message(role="user", content="Hi"),), ("a", "b"), "validation")
ROWS = [
    RankedPrompt(
        prompt=PROMPT,
        answers=(RankedAnswer(answer="best", model="x", rank=1), RankedAnswer(answer="", model="y", rank=2)),
        good_natured=True,
        pairs=(RankedPair(better=0, worse=1, confidence=1, weight=1),),
        contested=True,
    ),
    RankedPrompt(
        prompt=Prompt.make((Message(role="user", content="é\n\nü"),), ("s",)),
        answers=tuple(RankedAnswer(answer=f"😀{i}", model="m", rank=i) for i in range(1, 13)),
        good_natured=None,
    ),
]


def plain(ranks: list[Any], **more: Any) -> dict[str, Any]:
    answers = [{"answer": f"text {i}", "model": f"m{i}", "rank": rank} for i, rank in enumerate(ranks)]
    return {"prompt": "\n\nHuman: Hi\n\nAssistant: ", "answers": answers, "source": ["s"], "good_natured": True, **more}


def write(path: Path, *rows: Any) -> Path:
    lines = b"".join((r if isinstance(r, bytes) else json.dumps(r).encode()) + b"\n" for r in rows)
    path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)
    return path


@pytest.mark.parametrize(
    ("ranks", "best_first", "changed"),
    [
        ([1, 2], [0, 1], {}),
        ([1.0, 2.0, 3.0], [0, 1, 2], {}),
        ([3, 1, 2], [1, 2, 0], {"answers_sorted": 1}),
        ([2.0, 1.0], [1, 0], {"answers_sorted": 1}),
        ([1, 2.0, 5], [0, 1, 2], {"ranks_renumbered": 1}),
        ([0, 1, 2], [0, 1, 2], {"ranks_renumbered": 1}),
        ([1, 2, 2.0], [0, 1, 2], {}),
        ([2, 1, 2], [1, 0, 2], {"answers_sorted": 1}),
        ([0, 0, 1], [0, 1, 2], {"ranks_renumbered": 1}),
        ([30, -1.5, 7], [1, 2, 0], {"answers_sorted": 1, "ranks_renumbered": 1}),
        (list(range(1, 21)), list(range(20)), {}),
    ],
)
def test_ranks_are_imported_best_first(
    tmp_path: Path, ranks: list[float], best_first: list[int], changed: dict[str, int]
) -> None:
    rows, report = import_nectar(write(tmp_path / "a.jsonl", plain(ranks)))
    assert [a.answer for a in rows[0].answers] == [f"text {i}" for i in best_first]
    assert [a.rank for a in rows[0].answers] == sorted(1.0 + sum(other < rank for other in ranks) for rank in ranks)
    assert (report.read, report.rejected, report.changed) == (1, (), changed)
    assert rows[0].lineage == {"imported": "a.jsonl", "row": "1"}


def without(row: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {k: v for k, v in row.items() if k not in keys}


def answers_changed(**fields: Any) -> dict[str, Any]:
    row = copy.deepcopy(plain([1, 2]))
    row["answers"][1].update(fields)
    return row


BAD_ROWS = [
    ("tied", plain([1, 1])),
    ("tied", plain([3, 3, 3.0])),
    ("rank_missing", plain([1, None])),
    ("rank_missing", {**plain([1]), "answers": [{"answer": "a", "model": "m", "rank": 1}, {"answer": "b", "model": "m"}]}),
    ("rank_not_finite", plain([1, math.nan])),
    ("rank_not_finite", plain([1, math.inf])),
    ("rank_not_finite", plain([1, 10**400])),
    ("rank_not_a_number", plain([1, "2"])),
    ("rank_not_a_number", plain([1, True])),
    ("fewer_than_2_answers", plain([1])),
    ("fewer_than_2_answers", plain([])),
    ("answers_missing", without(plain([1, 2]), "answers")),
    ("answers_missing", {**plain([1, 2]), "answers": {"answer": "a"}}),
    ("answers_missing", {**plain([1, 2]), "answers": ["a", "b"]}),
    ("answer_not_text", answers_changed(answer=None)),
    ("answer_not_text", answers_changed(answer=["b"])),
    ("model_not_text", answers_changed(model=3)),
    ("prompt_missing", without(plain([1, 2]), "prompt")),
    ("prompt_missing", {**plain([1, 2]), "prompt": ["Hi"]}),
    ("prompt_empty", {**plain([1, 2]), "prompt": "  "}),
    ("prompt_not_a_transcript", {**plain([1, 2]), "prompt": "Hi"}),
    ("prompt_not_a_transcript", {**plain([1, 2]), "prompt": "\n\nHuman: \n\nAssistant: "}),
    ("num_responses_differs", plain([1, 2], num_responses=7)),
    ("good_natured_not_bool", plain([1, 2], good_natured="yes")),
    ("source_not_text", plain([1, 2], source=[1])),
    ("source_not_text", plain([1, 2], source=[])),
    ("not_json", b'{"prompt": "\n\nHu'.replace(b"\n", b"")),
    ("not_utf8", b'{"prompt": "\xff\xfe"}'),
    ("not_an_object", b"[1, 2]"),
    ("not_unicode", b'{"prompt": "\\ud800"}'),
]


@pytest.mark.parametrize(("reason", "row"), BAD_ROWS)
def test_a_bad_row_is_rejected_by_name_and_number(tmp_path: Path, reason: str, row: Any) -> None:
    rows, report = import_nectar(write(tmp_path / "a.jsonl.gz", plain([1, 2]), row, plain([2, 1])))
    assert len(rows) == 2
    assert [(r.row, r.reason) for r in report.rejected] == [(2, reason)]
    assert report.rejected_by_reason == {reason: 1}
    assert report.read == 3
    with pytest.raises(InputError, match=f"Not one of the 1 rows can be imported \\(1 {reason}\\).*first row 1: {reason}"):
        import_nectar(write(tmp_path / "b.jsonl", row))


def test_what_may_be_missing(tmp_path: Path) -> None:
    row = without(plain([1, 2], turns=3), "source", "good_natured")
    del row["answers"][0]["model"]
    [found], report = import_nectar(write(tmp_path / "a.jsonl", row))
    assert found.good_natured is None
    assert found.prompt.sources == ("a.jsonl",)
    assert [a.model for a in found.answers] == ["unknown", "m1"]
    assert report.changed == {"model_unknown": 1, "source_unknown": 1, "turns_recounted": 1}


def test_a_source_that_is_one_string(tmp_path: Path) -> None:
    [found], _ = import_nectar(write(tmp_path / "a.jsonl", plain([1, 2], source="x")))
    assert found.prompt.sources == ("x",)


def test_parquet_import_reads_what_we_write_and_integer_ranks(tmp_path: Path) -> None:
    write_nectar(tmp_path / "a.parquet", ROWS)
    rows, report = import_nectar(tmp_path / "a.parquet")
    assert [to_nectar(r) for r in rows] == [to_nectar(r) for r in ROWS]
    assert report.changed == {}
    pq.write_table(pa.Table.from_pylist([plain([3, 1, 2]), plain([1, None, 2])]), tmp_path / "b.parquet")
    rows, report = import_nectar(tmp_path / "b.parquet")
    assert [a.model for a in rows[0].answers] == ["m1", "m2", "m0"]
    assert report.rejected_by_reason == {"rank_missing": 1}


def test_columns_that_nectar_does_not_have_are_ignored(tmp_path: Path) -> None:
    write_nectar(tmp_path / "a.parquet", ROWS, extra=True)
    rows, report = import_nectar(tmp_path / "a.parquet")
    assert [to_nectar(r) for r in rows] == [to_nectar(r) for r in ROWS]
    assert (report.rejected, report.changed) == ((), {})
    [row], _ = import_nectar(write(tmp_path / "a.jsonl", plain([1, 2], pair_confidence="nonsense", mood=7)))
    assert row.pairs == ()


def test_the_stream_gives_the_same_rows_and_counts_and_can_be_read_again(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", plain([2, 1]), plain([1, 1]), b"[]", plain([1, 2]))
    rejected: list[Rejected] = []
    stream = NectarImport(path, rejected.append)
    rows, report = import_nectar(path)
    for _ in range(2):
        rejected.clear()
        assert list(stream) == rows
        assert (stream.read, tuple(rejected)) == (4, report.rejected)
        assert dict(stream.rejected) == report.rejected_by_reason == {"not_an_object": 1, "tied": 1}
        assert dict(stream.changed) == report.changed == {"answers_sorted": 1}


def test_files_without_rows_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no rows"):
        import_nectar(write(tmp_path / "empty.jsonl"))
    write_nectar(tmp_path / "a.parquet", ROWS)
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "half.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="half written"):
        import_nectar(tmp_path / "half.parquet")
    (tmp_path / "rot.parquet").write_bytes(whole[:40] + bytes(100) + whole[140:])
    with pytest.raises(InputError):
        import_nectar(tmp_path / "rot.parquet")


def test_a_table_of_something_else_says_what_is_missing(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", "b"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"2 prompt_missing.*`prompt` transcript and `answers`"):
        import_nectar(tmp_path / "a.parquet")


def test_real_rankings_are_imported_whole() -> None:
    if not DATA.exists():
        pytest.skip(f"the real rankings are not at {DATA}; set STARLING_DATA")
    rows, report = import_nectar(DATA)
    assert (len(rows), report.rejected) == (5066, ())
    with gzip.open(DATA, "rt", encoding="utf-8") as lines:
        for row, line in zip(rows, lines, strict=True):
            raw = json.loads(line)
            best_first = sorted(raw["answers"], key=lambda a: a["rank"])
            assert [(a.answer, a.model) for a in row.answers] == [(a["answer"], a["model"]) for a in best_first]
            assert to_nectar(row)["prompt"] == raw["prompt"]
