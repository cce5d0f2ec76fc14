"""The public schema: the exact columns, the extra ones, strictness row by row, files as streams with the same bytes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from starling.errors import InputError
from starling.nectar import NectarFile, NectarWriter, from_nectar, read_nectar, schema, to_nectar, write_nectar
from starling.records import Message, PlacedVerdict, Prompt, RankedAnswer, RankedPair, RankedPrompt

PROMPT = Prompt.make((Message(role="user", content="Hi"),), ("a", "b"), "validation")
ROWS = [
    RankedPrompt(
        prompt=PROMPT,
        answers=(RankedAnswer(answer="best", model="x", rank=1), RankedAnswer(answer="", model="y", rank=2)),
        good_natured=True,
        lineage={"judge": "judge"},
        pairs=(RankedPair(better=0, worse=1, confidence=0.75, weight=2),),
        verdicts=(PlacedVerdict(first=1, second=0, winner=0), PlacedVerdict(first=0, second=1, winner=1)),
        contested=True,
        judge_calls=2,
    ),
    RankedPrompt(
        prompt=Prompt.make(
            (Message(role="user", content="é\n\nü"), Message(role="assistant", content=" b "), Message(role="user", content="c")),
            ("s",),
        ),
        answers=tuple(RankedAnswer(answer=f"😀{i}", model="m", rank=i) for i in range(1, 13)),
        good_natured=None,
    ),
    RankedPrompt(
        prompt=Prompt.make((Message(role="user", content="ties"),), ()),
        answers=tuple(RankedAnswer(answer=str(r), model="m", rank=r) for r in (1, 2, 2, 4)),
        good_natured=False,
        contested=False,
        judge_calls=1,
    ),
]
PUBLIC = ["prompt", "answers", "turns", "num_responses", "source", "good_natured"]
EXTRA = ["pair_confidence", "pair_verdicts", "contested", "judge_calls"]


def in_train(row: RankedPrompt) -> RankedPrompt:
    """What the columns can hold of a row: no split, no lineage."""
    return row.model_copy(update={"lineage": {}, "prompt": row.prompt.model_copy(update={"split": "train"})})


def public_only(row: RankedPrompt) -> RankedPrompt:
    return in_train(row).model_copy(update={"pairs": (), "verdicts": (), "contested": None, "judge_calls": None})


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_to_nectar_is_the_public_row() -> None:
    public = {
        "prompt": "\n\nHuman: Hi\n\nAssistant: ",
        "answers": [{"answer": "best", "model": "x", "rank": 1.0}, {"answer": "", "model": "y", "rank": 2.0}],
        "turns": 1,
        "num_responses": 2,
        "source": ["a", "b"],
        "good_natured": True,
    }
    assert to_nectar(ROWS[0]) == public
    assert to_nectar(ROWS[0], extra=True) == public | {
        "pair_confidence": [{"better": 0, "worse": 1, "confidence": 0.75, "weight": 2.0}],
        "pair_verdicts": [{"first": 1, "second": 0, "winner": 0}, {"first": 0, "second": 1, "winner": 1}],
        "contested": True,
        "judge_calls": 2,
    }
    two_turns = to_nectar(ROWS[1])
    assert (two_turns["turns"], two_turns["num_responses"]) == (2, 12)
    assert two_turns["prompt"] == "\n\nHuman: é\n\nü\n\nAssistant:  b \n\nHuman: c\n\nAssistant: "


NECTAR = to_nectar(ROWS[0])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"answers": [{"answer": "a", "model": "x", "rank": 1.0}]}, "at least two answers"),
        ({"answers": NECTAR["answers"][::-1]}, "best first"),
        ({"answers": [{"answer": "a", "model": "x", "rank": "1"}] * 2}, "valid number"),
        ({"answers": [{"answer": "a", "model": "x", "rank": math.nan}] * 2}, "finite number"),
        ({"answers": None}, "no list"),
        ({"good_natured": "yes"}, "valid boolean"),
        ({"source": None}, "no list"),
        ({"source": "lmsys"}, "no list"),
        ({"prompt": "Hi"}, "no Nectar transcript"),
        ({"prompt": None}, "no text"),
        ({"turns": 2}, "turns 2 and num_responses 2, and has 1 and 2"),
        ({"num_responses": 7}, "turns 1 and num_responses 7, and has 1 and 2"),
        ({"turns": None}, "turns None"),
        ({"pair_confidence": [{"better": 0, "worse": 2, "confidence": 1.0, "weight": 1.0}]}, "not there"),
        ({"pair_confidence": [{"better": 0, "worse": 1, "confidence": 1.5, "weight": 1.0}]}, "less than or equal to 1"),
        ({"pair_confidence": [{"better": 0, "worse": 1, "confidence": 1.0, "weight": 0.0}]}, "greater than 0"),
        ({"pair_confidence": "nonsense"}, "no list"),
        ({"pair_verdicts": [{"first": 0, "second": 1, "winner": 2}]}, "winner of a pair"),
        ({"pair_verdicts": [{"first": 0, "second": 2, "winner": 2}]}, "not there"),
        ({"contested": 1}, "valid boolean"),
        ({"judge_calls": 0}, "greater than or equal to 1"),
    ],
)
def test_from_nectar_is_strict(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        from_nectar({**NECTAR, **change})


@pytest.mark.parametrize("name", PUBLIC)
def test_a_missing_column_is_named(name: str) -> None:
    with pytest.raises(InputError, match=f"has no '{name}'"):
        from_nectar({k: v for k, v in NECTAR.items() if k != name})


def test_columns_that_it_does_not_know_and_empty_ones_are_ignored() -> None:
    assert from_nectar({**NECTAR, "mood": 7, **dict.fromkeys(EXTRA)}) == public_only(ROWS[0])


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_writing_and_reading_back_loses_only_split_and_lineage(tmp_path: Path) -> None:
    assert write_nectar(tmp_path / "a.parquet", ROWS, extra=True) == 3
    back = read_nectar(tmp_path / "a.parquet")
    assert back == [in_train(r) for r in ROWS]
    write_nectar(tmp_path / "b.parquet", back, extra=True)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_without_the_extra_columns_the_public_ones_come_back(tmp_path: Path) -> None:
    write_nectar(tmp_path / "a.parquet", ROWS)
    assert read_nectar(tmp_path / "a.parquet") == [public_only(r) for r in ROWS]


def test_the_schema_on_disk_is_exactly_the_public_one(tmp_path: Path) -> None:
    write_nectar(tmp_path / "a.parquet", ROWS)
    found = pq.read_schema(tmp_path / "a.parquet")
    assert found.names == PUBLIC
    answers = found.field("answers").type.value_type
    assert [(f.name, f.type) for f in answers] == [("answer", pa.string()), ("model", pa.string()), ("rank", pa.float64())]
    assert [found.field(n).type for n in ("prompt", "turns", "num_responses", "good_natured")] == [
        pa.string(),
        pa.int64(),
        pa.int64(),
        pa.bool_(),
    ]
    assert found.field("source").type.value_type == pa.string()


def test_the_extra_columns_follow_the_public_ones(tmp_path: Path) -> None:
    write_nectar(tmp_path / "a.parquet", ROWS)
    write_nectar(tmp_path / "b.parquet", ROWS, extra=True)
    public, both = pq.read_schema(tmp_path / "a.parquet"), pq.read_schema(tmp_path / "b.parquet")
    assert both.names == PUBLIC + EXTRA
    assert [both.field(n) for n in PUBLIC] == list(public)


def test_columns_are_what_one_dict_per_row_would_give(tmp_path: Path) -> None:
    """The writer lays its lists out by hand; pyarrow's own way from `to_nectar` gives the same table."""
    write_nectar(tmp_path / "a.parquet", ROWS, extra=True)
    plain = pa.Table.from_pylist([to_nectar(r, extra=True) for r in ROWS], schema=schema.nectar_schema(extra=True))
    assert pq.read_table(tmp_path / "a.parquet").equals(plain)


@pytest.mark.parametrize("extra", [False, True])
def test_datasets_opens_it(tmp_path: Path, extra: bool) -> None:
    datasets = pytest.importorskip("datasets", reason="the library `datasets` is not installed")
    write_nectar(tmp_path / "a.parquet", ROWS, extra=extra)
    loaded = datasets.load_dataset("parquet", data_files=str(tmp_path / "a.parquet"), cache_dir=str(tmp_path / "cache"))["train"]
    assert loaded.column_names == PUBLIC + (EXTRA if extra else [])
    assert list(loaded) == [to_nectar(r, extra=extra) for r in ROWS]


def test_rows_are_taken_one_by_one_and_written_in_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups end after so many rows or so many bytes; what has been written is held no longer."""
    monkeypatch.setattr(schema, "GROUP_ROWS", 2)
    monkeypatch.setattr(schema, "GROUP_BYTES", 200)
    long = ROWS[0].model_copy(update={"answers": (RankedAnswer(answer="é" * 100, model="m", rank=1), ROWS[0].answers[1])})
    write_nectar(tmp_path / "a.parquet", iter([ROWS[2], ROWS[2], ROWS[2], long, long, ROWS[2]]))
    file = pq.ParquetFile(tmp_path / "a.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [2, 2, 1, 1]
    assert len(NectarFile(tmp_path / "a.parquet")) == 6


def test_how_rows_arrive_changes_no_byte(tmp_path: Path) -> None:
    rows = [ROWS[i % 3] for i in range(9000)]
    write_nectar(tmp_path / "a.parquet", rows, extra=True)
    with NectarWriter(tmp_path / "b.parquet", extra=True) as writer:
        for row in rows:
            writer.write(row)
    assert writer.rows == 9000
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert pq.ParquetFile(tmp_path / "a.parquet").num_row_groups == 3


def test_the_file_is_a_view_that_can_be_read_again(tmp_path: Path) -> None:
    write_nectar(tmp_path / "a.parquet", ROWS, extra=True)
    file = NectarFile(tmp_path / "a.parquet")
    assert (len(file), list(file), list(file)) == (3, read_nectar(file.path), read_nectar(file.path))
    assert in_train(ROWS[2]) in file
    assert ROWS[2].model_copy(update={"good_natured": True}) not in file


def test_an_error_leaves_no_file(tmp_path: Path) -> None:
    def breaking() -> Iterator[RankedPrompt]:
        yield ROWS[0]
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_nectar(tmp_path / "a.parquet", breaking())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({"answers": (RankedAnswer(answer="a\ud83d", model="m", rank=1), ROWS[0].answers[1])}, "surrogate"),
        ({"prompt": Prompt.make((Message(role="user", content="x\n\nHuman: y"),), ())}, "marker of a Nectar transcript"),
    ],
)
def test_a_row_that_cannot_be_written_is_named(tmp_path: Path, broken: dict[str, Any], said: str) -> None:
    rows = [ROWS[0]] * 5000 + [ROWS[0].model_copy(update=broken)]
    with pytest.raises(InputError, match=rf"{said}.*row 5001 of .*a\.parquet"):
        write_nectar(tmp_path / "a.parquet", rows)
    assert list(tmp_path.iterdir()) == []


def test_reading_names_the_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(NECTAR) + "\n" + json.dumps({**NECTAR, "prompt": "Hi"}) + "\n")
    with pytest.raises(InputError, match=r"a\.jsonl, row 2"):
        read_nectar(path)
    path.write_text("nonsense\n")
    with pytest.raises(InputError, match=r"not_json.*a\.jsonl, row 1"):
        read_nectar(path)


def test_a_file_that_is_missing_or_half_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        NectarFile(tmp_path / "a.parquet")
    write_nectar(tmp_path / "a.parquet", ROWS)
    (tmp_path / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-20])
    with pytest.raises(InputError, match="half written"):
        NectarFile(tmp_path / "a.parquet")
