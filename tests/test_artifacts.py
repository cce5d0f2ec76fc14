"""Artifacts: records come back equal, bytes are the same every time, and a folder is there whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from starling import artifacts
from starling import records as rec
from starling.artifacts import arrow_type, drop_work, new_artifact, open_artifact, read_records, work_dir, write_records
from starling.errors import ArtifactError, InputError
from starling.records import Record

USER = rec.Message(role="user", content="Wie viel ist 2 × 3? 🐱\x00\r\n")
PROMPT = rec.Prompt.make((rec.Message(role="system", content=""), USER), ("a", "b"), "test")
SUPPORT = rec.PairSupport(better="x", worse="y", support=0.5, weight=2)
PAIR = rec.RankedPair(better=0, worse=1, confidence=0.25, weight=2)
VERDICT = rec.PairVerdict(first="x", second="y", winner="y")
PLACED = rec.PlacedVerdict(first=1, second=0, winner=0)


def judgment(**changes: Any) -> rec.Judgment:
    given: dict[str, Any] = {
        "prompt_id": "p", "rubric": "r", "judge": "j", "shown": ("x", "y"), "pair_order": (("x", "y"), ("y", "x")),
        "outcome": "ranked", "ranking": ("y", "x"), "good_natured": False, "pair_verdicts": (VERDICT,), "call_id": "c",
    }  # fmt: skip
    return rec.Judgment.model_validate(given | changes)


def ranked(**changes: Any) -> rec.RankedPrompt:
    answers = (rec.RankedAnswer(answer="", model="m", rank=1), rec.RankedAnswer(answer="b", model="n", rank=2))
    given = {"prompt": PROMPT, "answers": answers, "good_natured": None, "lineage": {"judge": "j", "call": "é"}}
    return rec.RankedPrompt.model_validate(given | changes)


SAMPLES: dict[type[Record], list[Record]] = {
    rec.Message: [USER],
    rec.Prompt: [PROMPT],
    rec.Sampling: [rec.Sampling(temperature=0.1, stop=("\n", "")), rec.Sampling()],
    rec.ModelRef: [rec.ModelRef(provider="p", name="n")],
    rec.Response: [
        *(rec.Response(id="i", prompt_id="p", model="m", text="", finish=f, call_id="c") for f in rec.Finish),
        rec.Response(id="i", prompt_id="p", model="m", text="t", finish=rec.Finish.stop, call_id="", source="s"),
        rec.Response(id="i", prompt_id="p", model="m", text=" ", finish=rec.Finish.stop, call_id="c", set_aside="empty"),
    ],
    rec.FoundAnswer: [rec.FoundAnswer(prompt_id="p", model="m", text="t", source="s")],
    rec.PairVerdict: [VERDICT],
    rec.Judgment: [judgment(), judgment(outcome="unparsed", ranking=None, good_natured=None, pair_verdicts=(), reason="?")],
    rec.RankedAnswer: [rec.RankedAnswer(answer="a", model="m", rank=0.1)],
    rec.PairSupport: [SUPPORT],
    rec.MergedRanking: [
        rec.MergedRanking(
            prompt_id="p", outcome=rec.Outcome.ranked, tiers=(("x",), ("y", "z")), good_natured=None, pairs=(SUPPORT,),
            contested=True, calls=("c", "d"),
        ),
        rec.MergedRanking(
            prompt_id="p", outcome=rec.Outcome.refused, tiers=(), good_natured=None, pairs=(), contested=False, calls=(),
            reason="?",
        ),
    ],
    rec.RankedPair: [PAIR],
    rec.PlacedVerdict: [PLACED],
    rec.RankedPrompt: [
        ranked(), ranked(good_natured=True, lineage={}), ranked(pairs=(PAIR,)),
        ranked(verdicts=(PLACED,), contested=True, judge_calls=3),
    ],
    rec.Comparison: [
        rec.Comparison(prompt_id="p", a="a", b="b", winner="tie", by="human", outcome=rec.Outcome.ranked),
        rec.Comparison(prompt_id="p", a="a", b="b", winner=None, by="judge", outcome=rec.Outcome.refused),
    ],
    rec.Score: [rec.Score(id="a", reward=-1e300, outcome="scored"), rec.Score(id="b", reward=None, outcome="empty")],
}


def test_every_record_class_is_tried() -> None:
    defined = {c for c in vars(rec).values() if isinstance(c, type) and issubclass(c, Record) and c is not Record}
    assert defined == set(SAMPLES)


@pytest.mark.parametrize("cls", SAMPLES, ids=lambda c: c.__name__)
def test_records_come_back_equal_and_bytes_are_the_same(tmp_path: Path, cls: type[Record]) -> None:
    for rows in (SAMPLES[cls], []):
        write_records(tmp_path / "a.parquet", rows, cls)
        write_records(tmp_path / "b.parquet", [cls.model_validate(r.model_dump()) for r in rows], cls)
        assert read_records(tmp_path / "a.parquet", cls) == rows
        assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(st.text(), min_size=1, max_size=4), pairs=st.dictionaries(st.text(), st.text(), max_size=4))
def test_any_text_comes_back(tmp_path_factory: pytest.TempPathFactory, texts: list[str], pairs: dict[str, str]) -> None:
    path = tmp_path_factory.mktemp("t") / "x.parquet"
    rows = [ranked(lineage=pairs, answers=[{"answer": t, "model": t, "rank": i} for i, t in enumerate([*texts, "z"], 1)])]
    try:
        write_records(path, rows, rec.RankedPrompt)
    except InputError:
        assert any("\ud800" <= c <= "\udfff" for t in (*texts, *pairs, *pairs.values()) for c in t)
        return
    assert read_records(path, rec.RankedPrompt) == rows


def test_reading_a_file_row_by_row_holds_a_small_part_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four readers stand at the last row of a file of forty groups: together they hold less than the file."""
    monkeypatch.setattr(artifacts, "ROWS_PER_GROUP", 128)
    path, rows = tmp_path / "x.parquet", 40 * 128
    texts = (hashlib.shake_256(str(i).encode()).hexdigest(400) for i in range(rows))
    write_records(path, (rec.Message(role="user", content=text) for text in texts), rec.Message)
    before = pa.total_allocated_bytes()
    readers = [iter(artifacts.RecordFile(path, rec.Message)) for _ in range(4)]
    for reader in readers:
        for _ in range(rows - 1):
            next(reader)
    assert pa.total_allocated_bytes() - before < path.stat().st_size
    assert [len(list(reader)) for reader in readers] == [1] * 4


def test_order_of_a_dictionary_does_not_matter(tmp_path: Path) -> None:
    write_records(tmp_path / "a", [ranked(lineage={"a": "1", "b": "2"})], rec.RankedPrompt)
    write_records(tmp_path / "b", [ranked(lineage={"b": "2", "a": "1"})], rec.RankedPrompt)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_more_rows_than_one_group(tmp_path: Path) -> None:
    rows = [rec.Score(id=str(i), reward=i / 3, outcome="scored") for i in range(9001)]
    write_records(tmp_path / "a", rows, rec.Score)
    assert read_records(tmp_path / "a", rec.Score) == rows
    assert pq.ParquetFile(tmp_path / "a").num_row_groups == 3


def test_long_texts_make_smaller_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "CHARS_PER_GROUP", 100)
    rows = [rec.Message(role="user", content="x" * n) for n in (10, 200, 40, 40, 40, 1)]
    write_records(tmp_path / "a", rows, rec.Message)
    assert read_records(tmp_path / "a", rec.Message) == rows
    file = pq.ParquetFile(tmp_path / "a")
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [2, 3, 1]


def test_half_a_character_is_named_with_its_row(tmp_path: Path) -> None:
    rows = [rec.RankedAnswer(answer=t, model="m", rank=1) for t in ("a", "b\ud83d", "c")]
    with pytest.raises(InputError, match="surrogate") as caught:
        write_records(tmp_path / "a", rows, rec.RankedAnswer)
    assert "row 1 " in caught.value.where
    assert not (tmp_path / "a").exists()


class Colour(StrEnum):
    red = "red"


class Every(Record):
    text: str
    number: int
    real: float
    yes: bool
    maybe: int | None
    colour: Colour
    word: Literal["a", "b"] | None
    items: tuple[int, ...]
    pair: tuple[str, str]
    listed: list[float]
    nested: rec.Message
    nested_maybe: rec.Message | None
    deep: tuple[tuple[rec.Message, ...], ...]
    table: dict[str, str]


@pytest.mark.parametrize("full", [True, False])
def test_every_kind_of_field(tmp_path: Path, full: bool) -> None:
    always = {"text": "t", "number": -(2**63), "real": 0.1, "yes": True, "colour": Colour.red, "pair": ("x", "y"), "nested": USER}
    some = {
        "maybe": 2**63 - 1, "word": "a", "items": (1, 2), "listed": [1.5], "nested_maybe": USER, "deep": ((USER,), ()),
        "table": {"b": "1", "a": ""},
    }  # fmt: skip
    none = {"maybe": None, "word": None, "items": (), "listed": [], "nested_maybe": None, "deep": (), "table": {}}
    row = Every.model_validate(always | (some if full else none))
    write_records(tmp_path / "a", [row], Every)
    assert read_records(tmp_path / "a", Every) == [row]


def test_a_number_that_does_not_fit(tmp_path: Path) -> None:
    class Big(Record):
        number: int

    with pytest.raises(InputError, match="cannot be stored"):
        write_records(tmp_path / "a", [Big(number=2**63)], Big)


@pytest.mark.parametrize("kind", [set[str], int | str, dict[str, int], tuple[int, str], Any, bytes])
def test_kinds_without_a_column_type(kind: Any) -> None:
    with pytest.raises(TypeError):
        arrow_type(kind)


def test_schema_of_prompts_is_pinned() -> None:
    message = pa.struct([pa.field("role", pa.string(), nullable=False), pa.field("content", pa.string(), nullable=False)])
    assert arrow_type(rec.Prompt) == pa.struct(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("messages", pa.list_(message), nullable=False),
            pa.field("sources", pa.list_(pa.string()), nullable=False),
            pa.field("split", pa.string(), nullable=False),
        ]
    )


# ── files that cannot be used ────────────────────────────────────────────────────────────────────────────────────────


def test_half_written_parquet_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    write_records(path, SAMPLES[rec.Judgment], rec.Judgment)
    whole = path.read_bytes()
    for content in (whole[:-20], whole[:50], b"", b"PAR1" + b"\x00" * 30 + b"PAR1", b"hello"):
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match="no whole parquet file") as caught:
            read_records(path, rec.Judgment)
        assert str(path) in caught.value.where
        assert "run the stage" in caught.value.cure


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist"):
        read_records(tmp_path / "no.parquet", rec.Score)
    with pytest.raises(ArtifactError):
        read_records(tmp_path, rec.Score)


def test_records_of_another_class(tmp_path: Path) -> None:
    write_records(tmp_path / "a", SAMPLES[rec.Score], rec.Score)
    differ = "answer, content, file, id, outcome, problem, reward, role, row differ"
    with pytest.raises(ArtifactError, match=f"does not hold Message records: {differ}"):
        read_records(tmp_path / "a", rec.Message)


def test_a_row_that_breaks_its_law(tmp_path: Path) -> None:
    write_records(tmp_path / "a", SAMPLES[rec.Score], rec.Score)
    table = pq.ParquetFile(tmp_path / "a").read()
    pq.write_table(table.set_column(1, table.schema.field(1), pa.array([None, 2.0])), tmp_path / "a")
    with pytest.raises(ArtifactError, match="a reward exactly when") as caught:
        read_records(tmp_path / "a", rec.Score)
    assert caught.value.where.startswith("row 0")


# ── folders ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def make(run: Path, stage: str = "prompts", *, text: str = "a", key: str = "k", **metrics: Any) -> None:
    with new_artifact(run, stage, key=key, inputs={"world": "f"}, config={"models": ("a", "b")}) as draft:
        write_records(draft.path / "rows.parquet", [rec.RankedAnswer(answer=text, model="m", rank=1)], rec.RankedAnswer)
        (draft.path / "sub").mkdir()
        (draft.path / "sub" / "log.jsonl").write_text("{}\n")
        draft.rows, draft.outcomes, draft.metrics = 1, {"ranked": 1, "unparsed": 0}, metrics


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_what_a_manifest_says(tmp_path: Path) -> None:
    make(tmp_path, loss=0.5, by_step={2: 1.0, 10: 2.0})
    artifact = open_artifact(tmp_path, "prompts", verify=True)
    assert artifact.path == tmp_path / "prompts"
    assert (artifact.stage, artifact.key, artifact.rows) == ("prompts", "k", 1)
    assert artifact.outcomes == {"ranked": 1, "unparsed": 0}
    assert artifact.inputs == {"world": "f"}
    assert artifact.config == {"models": ["a", "b"]}
    assert artifact.metrics == {"loss": 0.5, "by_step": {"2": 1.0, "10": 2.0}}
    assert set(artifact.files) == {"rows.parquet", "sub/log.jsonl"}
    assert artifact.files["sub/log.jsonl"]["bytes"] == 3
    assert artifact.schema_version == rec.SCHEMA_VERSION
    assert sorted(p.name for p in tmp_path.iterdir()) == ["prompts"]


def test_equal_content_has_equal_fingerprints_and_nothing_else_has(tmp_path: Path) -> None:
    def fingerprint(name: str, **changes: Any) -> str:
        make(tmp_path / name, **changes)
        return open_artifact(tmp_path / name, "prompts").fingerprint

    first = fingerprint("a")
    time.sleep(0.01)
    assert fingerprint("b") == first
    others = [fingerprint("c", text="b"), fingerprint("d", key="other"), fingerprint("e", loss=1.0)]
    assert len({first, *others}) == 4
    written = {name: json.loads((tmp_path / name / "prompts" / "manifest.json").read_text()) for name in "ab"}
    assert written["a"] | {"seconds": 0} == written["b"] | {"seconds": 0}


def test_a_new_one_replaces_the_old_one_whole(tmp_path: Path) -> None:
    with new_artifact(tmp_path, "prompts", key="old", inputs={}, config={}) as draft:
        (draft.path / "left_over.txt").write_text("x")
    make(tmp_path)
    assert set(tree(tmp_path / "prompts")) == {"manifest.json", "rows.parquet", "sub/log.jsonl"}


def test_an_exception_leaves_the_old_one(tmp_path: Path) -> None:
    make(tmp_path)
    before = tree(tmp_path)
    with pytest.raises(InputError):
        make(tmp_path, text="\ud800", key="new")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, Path("x")])
def test_metrics_that_are_no_json(tmp_path: Path, value: Any) -> None:
    with pytest.raises(ArtifactError, match="JSON"):
        make(tmp_path, loss=value)
    assert list(tmp_path.iterdir()) == []


def test_links_are_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(ArtifactError, match="link"),
        new_artifact(tmp_path / "run", "prompts", key="k", inputs={}, config={}) as draft,
    ):
        (draft.path / "x").symlink_to("/etc/hostname")


def test_missing_artifact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no finished output") as caught:
        open_artifact(tmp_path, "ranking")
    assert "ranking" in caught.value.cure
    (tmp_path / "ranking").mkdir()
    (tmp_path / "ranking" / "rows.parquet").write_bytes(b"x")
    with pytest.raises(ArtifactError, match="no finished output"):
        open_artifact(tmp_path, "ranking")


def test_altered_files_are_named(tmp_path: Path) -> None:
    make(tmp_path)
    path = tmp_path / "prompts" / "sub" / "log.jsonl"
    path.write_text("[]\n")  # the same size: only the hash tells
    open_artifact(tmp_path, "prompts")
    with pytest.raises(ArtifactError, match="altered") as caught:
        open_artifact(tmp_path, "prompts", verify=True)
    assert str(path) in caught.value.where
    path.write_text("")
    with pytest.raises(ArtifactError, match="altered or is half-written"):
        open_artifact(tmp_path, "prompts")
    path.unlink()
    with pytest.raises(ArtifactError, match="missing") as caught:
        open_artifact(tmp_path, "prompts")
    assert "run the stage 'prompts' again" in caught.value.cure


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "{}", '{"fingerprint": "x", "seconds": 1}', "\udcff"])
def test_manifests_that_cannot_be_read(tmp_path: Path, content: str) -> None:
    make(tmp_path)
    (tmp_path / "prompts" / "manifest.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ArtifactError, match="manifest"):
        open_artifact(tmp_path, "prompts")


@pytest.mark.parametrize(("name", "value"), [("rows", 2), ("key", "z"), ("outcomes", {}), ("extra", 1), ("fingerprint", "0")])
def test_an_edited_manifest_is_noticed(tmp_path: Path, name: str, value: Any) -> None:
    make(tmp_path)
    path = tmp_path / "prompts" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    with pytest.raises(ArtifactError, match="altered after"):
        open_artifact(tmp_path, "prompts")


def test_another_schema_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "SCHEMA_VERSION", 0)
    make(tmp_path)
    monkeypatch.undo()
    with pytest.raises(ArtifactError, match="schema version 0"):
        open_artifact(tmp_path, "prompts")


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_death_at_every_step_of_the_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int) -> None:
    """Die before the old one steps aside, between the two renames, and after both: always the whole old or the whole new one."""
    make(tmp_path, text="old")
    old = open_artifact(tmp_path, "prompts").fingerprint
    left, real = [renames], os.rename

    def rename(*paths: Any) -> None:
        if left[0] == 0:
            os._exit(9)
        left[0] -= 1
        real(*paths)

    def drop(*_: Any) -> None:
        os._exit(9)

    child = os.fork()
    if child == 0:
        artifacts.os.rename = rename  # type: ignore[assignment]
        artifacts._drop = drop
        with new_artifact(tmp_path, "prompts", key="new", inputs={}, config={}) as draft:
            (draft.path / "new").write_text("x")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    found = open_artifact(tmp_path, "prompts", verify=True)
    assert (found.fingerprint == old) == (renames < 2)
    make(tmp_path, text="newer")
    assert (tmp_path / "prompts" / "rows.parquet").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["prompts"]


DRAFTING = """
import sys, time
from pathlib import Path
from starling.artifacts import new_artifact
with new_artifact(Path(sys.argv[1]), "prompts", key="new", inputs={}, config={}) as draft:
    (draft.path / "half").write_text("x")
    print("drafting", flush=True)
    time.sleep(60)
"""


def test_sigkill_while_drafting_leaves_the_old_one(tmp_path: Path) -> None:
    make(tmp_path)
    before = tree(tmp_path / "prompts")
    process = subprocess.Popen([sys.executable, "-c", DRAFTING, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"drafting\n"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert tree(tmp_path / "prompts") == before
    open_artifact(tmp_path, "prompts", verify=True)
    make(tmp_path, text="new")
    assert "half" not in tree(tmp_path / "prompts")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["prompts"]


def test_scratch_folders(tmp_path: Path) -> None:
    one, two = work_dir(tmp_path, "reward", "k1"), work_dir(tmp_path, "reward", "k2")
    other = work_dir(tmp_path, "policy", "k1")
    (one / "step").write_text("1")
    assert work_dir(tmp_path, "reward", "k1") == one
    assert (one / "step").exists()
    drop_work(tmp_path, "reward")
    assert not one.exists()
    assert not two.exists()
    assert other.exists()
    drop_work(tmp_path, "policy")
    assert list(tmp_path.iterdir()) == []
