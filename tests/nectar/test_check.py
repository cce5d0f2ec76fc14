"""The columnar check: it suspects exactly the rows that `from_nectar` refuses, on good rows, on broken ones, in any batch."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from starling.errors import InputError
from starling.nectar import check, check_nectar, from_nectar, read_nectar
from starling.nectar.schema import nectar_schema

SCHEMA = nectar_schema(extra=True)


def row(ranks: tuple[float, ...] = (1.0, 2.0, 3.0), **changes: Any) -> dict[str, Any]:
    good = {
        "prompt": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: é?\n\nAssistant: ",
        "answers": [{"answer": f"text {i}", "model": "m", "rank": rank} for i, rank in enumerate(ranks)],
        "turns": 2,
        "num_responses": len(ranks),
        "source": ["a", "b"],
        "good_natured": True,
        "pair_confidence": [{"better": 0, "worse": 1, "confidence": 0.5, "weight": 2.0}],
        "pair_verdicts": [{"first": 1, "second": 0, "winner": 0}],
        "contested": False,
        "judge_calls": 1,
    }
    return good | changes


def accepted(value: dict[str, Any]) -> bool:
    try:
        from_nectar(value)
    except InputError:
        return False
    return True


def table(*rows: dict[str, Any], schema: pa.Schema = SCHEMA) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=schema)


def assert_agrees(*rows: dict[str, Any]) -> None:
    [batch] = table(*rows).to_batches()
    assert check.suspects(batch).tolist() == [not accepted(value) for value in batch.to_pylist()]
    for start in range(len(rows)):  # offsets into the arrays must not matter
        part = batch.slice(start, 2)
        assert check.suspects(part).tolist() == [not accepted(value) for value in part.to_pylist()]


GOOD = [
    row(),
    row((1, 1)),
    row((1, 2, 2, 4)),
    row((1, 1, 3, 3, 5)),
    row(tuple(float(i) for i in range(1, 13))),
    row(source=[], good_natured=None, contested=None, judge_calls=None, pair_confidence=None, pair_verdicts=None),
    row(pair_confidence=[], pair_verdicts=[]),
    row(pair_verdicts=[{"first": 2, "second": 0, "winner": None}, {"first": 0, "second": 2, "winner": 2}]),
    row(prompt="\n\nHuman: x\n\nAssistant:", turns=1),
]
PAIR = {"better": 0, "worse": 1, "confidence": 0.5, "weight": 2.0}
BROKEN = [
    *(row(r) for r in ((), (1,), (2, 1), (1, 3), (0, 1), (1, 2.5), (1, 1, 2), (1, 2, 2, 3), (2, 2))),
    *(row((1, r)) for r in (math.nan, math.inf)),
    *(row((1, 2), answers=[{"answer": "a", "model": "m", "rank": 1.0}, last]) for last in (
        None,
        {"answer": None, "model": "m", "rank": 2.0},
        {"answer": "b", "model": None, "rank": 2.0},
        {"answer": "b", "model": "m", "rank": None},
    )),
    *(row(answers=a) for a in (None, [])),
    *(row(prompt=p) for p in (None, "", "Hi", "\n\nHuman: x", "\n\nHuman: \n\nAssistant: ", "\n\nAssistant: x\n\nAssistant: ")),
    *(row(turns=t) for t in (None, 0, 1, 3, -1)),
    *(row(num_responses=n) for n in (None, 0, 2, 4)),
    *(row(source=s) for s in (None, [None], ["a", None])),
    *(row(pair_confidence=[PAIR | change]) for change in (
        {"better": None}, {"worse": None}, {"confidence": None}, {"weight": None}, {"better": 1}, {"worse": 3}, {"better": -1},
        {"confidence": -0.1}, {"confidence": 1.1}, {"confidence": math.nan}, {"weight": 0.0}, {"weight": math.inf},
        {"weight": math.nan},
    )),
    row(pair_confidence=[PAIR, None]),
    *(row(pair_verdicts=[{"first": f, "second": s, "winner": w}]) for f, s, w in (
        (0, 0, 0), (0, 1, 2), (0, 3, 0), (3, 0, 3), (-1, 0, 0), (None, 1, 1), (0, None, 0), (None, None, None), (0, 1, -1),
    )),
    row(pair_verdicts=[None]),
    *(row(judge_calls=c) for c in (0, -2)),
]  # fmt: skip


@pytest.mark.parametrize("value", GOOD)
def test_good_rows_are_not_suspected(value: dict[str, Any]) -> None:
    assert accepted(value)
    assert_agrees(value, value)


@pytest.mark.parametrize("value", BROKEN)
def test_each_broken_law_is_seen_and_only_in_its_row(value: dict[str, Any]) -> None:
    [batch] = table(row(), value, row((1, 1))).to_batches()
    assert not accepted(batch.to_pylist()[1])
    assert check.suspects(batch).tolist() == [False, True, False]
    assert_agrees(row(), value, row((1, 1)))


def test_a_tie_does_not_reach_into_the_row_before() -> None:
    """The first rank of the second row is the last one of the first: no tie, and not 1."""
    [batch] = table(row((1, 2)), row((2, 2)), row((1, 1)), row((1, 2))).to_batches()
    assert check.suspects(batch).tolist() == [False, True, False, False]


ranks = st.lists(st.sampled_from([0.0, 1.0, 2.0, 3.0, 4.0, 2.5, math.nan, math.inf, None]), max_size=5)
rising = st.lists(st.booleans(), max_size=6)
place = st.one_of(st.none(), st.integers(-1, 4))
texts = st.sampled_from(
    ["\n\nHuman: a\n\nAssistant: ", "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: ", "Hi", "", None]
)


@st.composite
def rows(draw: st.DrawFn) -> dict[str, Any]:
    """Any row the columns can hold; half of the time with ranks that are right, so that the other laws matter too."""
    found = copy.deepcopy(row())
    if draw(st.booleans()):
        tied = draw(rising)
        chosen: list[float | None] = [1.0]
        for number, same in enumerate(tied, start=2):
            chosen.append(chosen[-1] if same else float(number))
    else:
        chosen = draw(ranks)
    text = st.one_of(st.none(), st.text(max_size=3)) if draw(st.integers(0, 9)) == 0 else st.text(max_size=3)
    found["answers"] = [{"answer": draw(text), "model": draw(text), "rank": r} for r in chosen]
    found["num_responses"] = draw(st.sampled_from([len(chosen), len(chosen), len(chosen), 2, None]))
    found["prompt"] = draw(texts)
    found["turns"] = draw(st.sampled_from([1, 2, None]))
    found["source"] = draw(st.one_of(st.just(["a"]), st.none(), st.lists(st.one_of(st.none(), st.text(max_size=2)), max_size=3)))
    number = st.one_of(st.none(), st.floats(-1, 2), st.just(math.nan))
    pair = st.fixed_dictionaries({"better": place, "worse": place, "confidence": number, "weight": number})
    verdict = st.fixed_dictionaries({"first": place, "second": place, "winner": place})
    found["pair_confidence"] = draw(st.one_of(st.none(), st.lists(st.one_of(st.none(), pair), max_size=2)))
    found["pair_verdicts"] = draw(st.one_of(st.none(), st.lists(st.one_of(st.none(), verdict), max_size=2)))
    found["judge_calls"] = draw(st.one_of(st.none(), st.integers(-1, 2)))
    return found


@settings(max_examples=80, deadline=None)
@given(st.lists(rows(), min_size=1, max_size=6))
def test_it_agrees_with_the_row_by_row_reader(values: list[dict[str, Any]]) -> None:
    assert_agrees(*values)


# ── whole files ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_good_file_is_counted(tmp_path: Path) -> None:
    pq.write_table(table(*(GOOD * 600)), tmp_path / "a.parquet")
    assert check_nectar(tmp_path / "a.parquet") == len(GOOD) * 600


def test_the_first_broken_row_is_named_as_the_reader_names_it(tmp_path: Path) -> None:
    pq.write_table(table(*[row()] * 3000, row((2, 1)), row((1,))), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"best first.*a\.parquet, row 3001") as checked:
        check_nectar(tmp_path / "a.parquet")
    with pytest.raises(InputError) as read:
        read_nectar(tmp_path / "a.parquet")
    assert str(checked.value) == str(read.value)


def test_columns_of_other_types_are_read_row_by_row(tmp_path: Path) -> None:
    """Whole numbers as ranks and large strings are no schema of ours, but rows that `from_nectar` accepts."""
    answer = pa.struct([("answer", pa.large_string()), ("model", pa.string()), ("rank", pa.int32())])
    fields = [pa.field("answers", pa.list_(answer)) if f.name == "answers" else f for f in SCHEMA]
    whole = pa.schema(fields)
    pq.write_table(table(row((1, 2)), row((1, 1)), schema=whole), tmp_path / "a.parquet")
    [batch] = pq.read_table(tmp_path / "a.parquet").to_batches()
    assert check.suspects(batch).all()
    assert check_nectar(tmp_path / "a.parquet") == 2
    pq.write_table(table(row((1, 2)), row((2, 1)), schema=whole), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="row 2"):
        check_nectar(tmp_path / "a.parquet")


def test_a_text_that_is_no_utf8_is_named(tmp_path: Path) -> None:
    [batch] = table(row((1, 2)), row((1, 2)), row((1, 2))).to_batches()
    raw = pa.array([b"a", b"b", b"c", b"\xff", b"e", b"f"], pa.binary())
    texts = pa.StringArray.from_buffers(6, raw.buffers()[1], raw.buffers()[2])
    answers = batch.column("answers")
    kind = SCHEMA.field("answers").type
    flat = answers.flatten()
    structs = pa.StructArray.from_arrays([texts, flat.field(1), flat.field(2)], fields=list(kind.value_type))
    lists = pa.ListArray.from_arrays(pa.array([0, 2, 4, 6], pa.int32()), structs, type=kind)
    broken = batch.set_column(1, SCHEMA.field("answers"), lists)
    assert check.suspects(broken).all()
    pq.write_table(pa.Table.from_batches([broken]), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"not_utf8.*row 2"):
        check_nectar(tmp_path / "a.parquet")


@pytest.mark.parametrize("name", ["prompt", "answers", "turns", "num_responses", "source", "good_natured"])
def test_a_missing_column_is_named(tmp_path: Path, name: str) -> None:
    pq.write_table(table(row()).drop_columns([name]), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=f"has no '{name}'"):
        check_nectar(tmp_path / "a.parquet")


@pytest.mark.parametrize("name", ["pair_confidence", "pair_verdicts", "contested", "judge_calls"])
def test_each_extra_column_may_be_missing(tmp_path: Path, name: str) -> None:
    pq.write_table(table(*GOOD).drop_columns([name]), tmp_path / "a.parquet")
    assert check_nectar(tmp_path / "a.parquet") == len(GOOD)
    pq.write_table(table(*GOOD, row((2, 1))).drop_columns([name]), tmp_path / "b.parquet")
    [batch] = pq.read_table(tmp_path / "b.parquet").to_batches()
    assert np.flatnonzero(check.suspects(batch)).tolist() == [len(GOOD)]
