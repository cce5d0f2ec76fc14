"""The dataset: assembling, the exact public schema, and the import of what others wrote."""

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

from starling.config import DatasetSection
from starling.errors import ArtifactError, InputError
from starling.nectar import assemble, from_nectar, import_nectar, read_nectar, to_nectar, write_nectar
from starling.records import (
    Finish,
    Judgment,
    Message,
    Outcome,
    Prompt,
    RankedAnswer,
    RankedPrompt,
    Response,
)

DATA = Path(os.environ.get("STARLING_DATA", "../shared/data")) / "nectar_like" / "train.jsonl.gz"
PROMPT = Prompt.make((Message(role="user", content="Hi"),), ("a", "b"), "validation")


def response(model: str, text: str | None = None, prompt: Prompt = PROMPT) -> Response:
    return Response(
        id=f"id-{model}", prompt_id=prompt.id, model=model, text=text or f"I am {model}", finish=Finish.stop, call_id="c"
    )


def judgment(ranking: tuple[str, ...] | None, outcome: Outcome = Outcome.ranked, prompt: Prompt = PROMPT) -> Judgment:
    shown = tuple(sorted(ranking or ("id-x", "id-y")))
    return Judgment(
        prompt_id=prompt.id, rubric="rubric", judge="judge", shown=shown, pair_order=(), outcome=outcome, ranking=ranking,
        good_natured=False, pair_verdicts=(), call_id="call",
    )  # fmt: skip


# ── assembling ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_ranked_judgment_becomes_a_row_best_first() -> None:
    found = assemble(
        [PROMPT], [response("x"), response("y"), response("z")], [judgment(("id-y", "id-z", "id-x"))], DatasetSection()
    )
    [row] = found.rows
    assert [(a.model, a.answer, a.rank) for a in row.answers] == [
        ("y", "I am y", 1.0),
        ("z", "I am z", 2.0),
        ("x", "I am x", 3.0),
    ]
    assert row.prompt == PROMPT
    assert row.good_natured is False
    assert row.lineage == {"judge": "judge", "rubric": "rubric", "call": "call"}
    assert found.left_out == {}


def test_what_is_not_in_the_dataset_is_counted() -> None:
    system = Prompt.make((Message(role="system", content="be nice"), Message(role="user", content="Hi")), ("a",))
    judgments = [
        judgment(None, Outcome.unparsed),
        judgment(None, Outcome.unparsed),
        judgment(None, Outcome.too_long),
        judgment(("id-x", "id-y")),
        judgment(("id-x", "id-y", "id-z"), prompt=system),
        judgment(("id-x", "id-y", "id-z")),
    ]
    responses = [response("x"), response("y"), response("z")]
    found = assemble([PROMPT, system], responses, judgments, DatasetSection(min_answers=3))
    assert len(found.rows) == 1
    assert found.left_out == {"no_transcript": 1, "too_few_answers": 1, "too_long": 1, "unparsed": 2}


@pytest.mark.parametrize(("prompts", "responses"), [([], ["x", "y"]), ([PROMPT], ["x"])])
def test_judgments_of_another_run_are_refused(prompts: list[Prompt], responses: list[str]) -> None:
    with pytest.raises(ArtifactError, match="which is not there"):
        assemble(prompts, [response(m) for m in responses], [judgment(("id-y", "id-x"))], DatasetSection())


# ── the public schema ────────────────────────────────────────────────────────────────────────────────────────────────

ROWS = [
    RankedPrompt(
        prompt=PROMPT,
        answers=(RankedAnswer(answer="best", model="x", rank=1), RankedAnswer(answer="", model="y", rank=2)),
        good_natured=True,
        lineage={"judge": "judge"},
    ),
    RankedPrompt(
        prompt=Prompt.make(
            (Message(role="user", content="é\n\nü"), Message(role="assistant", content=" b "), Message(role="user", content="c")),
            ("s",),
        ),
        answers=tuple(RankedAnswer(answer=f"😀{i}", model="m", rank=i) for i in range(1, 13)),
        good_natured=None,
    ),
]


def test_to_nectar_is_the_public_row() -> None:
    assert to_nectar(ROWS[0]) == {
        "prompt": "\n\nHuman: Hi\n\nAssistant: ",
        "answers": [{"answer": "best", "model": "x", "rank": 1.0}, {"answer": "", "model": "y", "rank": 2.0}],
        "turns": 1,
        "num_responses": 2,
        "source": ["a", "b"],
        "good_natured": True,
    }
    two_turns = to_nectar(ROWS[1])
    assert (two_turns["turns"], two_turns["num_responses"]) == (2, 12)
    assert two_turns["prompt"] == "\n\nHuman: é\n\nü\n\nAssistant:  b \n\nHuman: c\n\nAssistant: "


def test_writing_and_reading_back_loses_only_split_and_lineage(tmp_path: Path) -> None:
    write_nectar(tmp_path / "a.parquet", ROWS)
    back = read_nectar(tmp_path / "a.parquet")
    assert back == [r.model_copy(update={"lineage": {}, "prompt": r.prompt.model_copy(update={"split": "train"})}) for r in ROWS]
    write_nectar(tmp_path / "b.parquet", back)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_the_schema_on_disk_is_exactly_the_public_one(tmp_path: Path) -> None:
    write_nectar(tmp_path / "a.parquet", ROWS)
    schema = pq.read_schema(tmp_path / "a.parquet")
    assert schema.names == ["prompt", "answers", "turns", "num_responses", "source", "good_natured"]
    answers = schema.field("answers").type.value_type
    assert [(f.name, f.type) for f in answers] == [("answer", pa.string()), ("model", pa.string()), ("rank", pa.float64())]
    assert [schema.field(n).type for n in ("prompt", "turns", "num_responses", "good_natured")] == [
        pa.string(),
        pa.int64(),
        pa.int64(),
        pa.bool_(),
    ]
    assert schema.field("source").type.value_type == pa.string()


def test_datasets_opens_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="the library `datasets` is not installed")
    write_nectar(tmp_path / "a.parquet", ROWS)
    loaded = datasets.load_dataset("parquet", data_files=str(tmp_path / "a.parquet"), cache_dir=str(tmp_path / "cache"))["train"]
    assert loaded.column_names == ["prompt", "answers", "turns", "num_responses", "source", "good_natured"]
    assert loaded[0] == to_nectar(ROWS[0])
    assert loaded[1] == to_nectar(ROWS[1])


NECTAR = to_nectar(ROWS[0])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"answers": [{"answer": "a", "model": "x", "rank": 1.0}]}, "at least two answers"),
        ({"answers": NECTAR["answers"][::-1]}, "best first"),
        ({"answers": [{"answer": "a", "model": "x", "rank": "1"}] * 2}, "valid number"),
        ({"answers": [{"answer": "a", "model": "x", "rank": math.nan}] * 2}, "finite number"),
        ({"good_natured": "yes"}, "valid boolean"),
        ({"source": None}, "not iterable"),
        ({"prompt": "Hi"}, "no Nectar transcript"),
    ],
)
def test_from_nectar_is_strict(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        from_nectar({**NECTAR, **change})


def test_a_missing_column_is_named() -> None:
    with pytest.raises(InputError, match="has no 'source'"):
        from_nectar({k: v for k, v in NECTAR.items() if k != "source"})


def test_reading_names_the_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(NECTAR) + "\n" + json.dumps({**NECTAR, "prompt": "Hi"}) + "\n")
    with pytest.raises(InputError, match=r"a\.jsonl, row 2"):
        read_nectar(path)
    path.write_text("nonsense\n")
    with pytest.raises(InputError, match=r"not_json.*a\.jsonl, row 1"):
        read_nectar(path)


# ── importing ────────────────────────────────────────────────────────────────────────────────────────────────────────


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
        ([30, -1.5, 7], [1, 2, 0], {"answers_sorted": 1, "ranks_renumbered": 1}),
        (list(range(1, 21)), list(range(20)), {}),
    ],
)
def test_strict_ranks_are_imported_best_first(
    tmp_path: Path, ranks: list[float], best_first: list[int], changed: dict[str, int]
) -> None:
    rows, report = import_nectar(write(tmp_path / "a.jsonl", plain(ranks)))
    assert [a.answer for a in rows[0].answers] == [f"text {i}" for i in best_first]
    assert [a.rank for a in rows[0].answers] == [float(i) for i in range(1, len(ranks) + 1)]
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
    ("tied", plain([1, 2, 2.0])),
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
