"""Prompts: forms of rows, reasons for dropping, merging, splitting, limiting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from starling.chat import split_of
from starling.config import FilePrompts, MicroworldPrompts, PromptsSection
from starling.errors import InputError
from starling.prompts import Gathered, gather
from starling.records import Message, Prompt

MICROWORLD = MicroworldPrompts(type="microworld")


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def write(path: Path, rows: list[Any]) -> FilePrompts:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return FilePrompts(type="file", path=path, name=path.stem)


def world_prompt(text: str) -> Prompt:
    return Prompt.make((Message(role="user", content=text),), ("microworld/test",))


def gathered(
    *sources: FilePrompts | MicroworldPrompts, world: list[Prompt] | None = None, seed: int = 0, **settings: Any
) -> Gathered:
    return gather(PromptsSection(sources=sources, **settings), world or [], seed=seed)


def test_the_three_forms_of_a_row(tmp_path: Path) -> None:
    source = write(
        tmp_path / "mine.jsonl",
        [
            {"messages": [user("a"), {"role": "assistant", "content": "b"}, user("c")]},
            {"prompt": "\n\nHuman: a\n\nAssistant: b\n\nHuman: d\n\nAssistant: "},
            {"prompt": "Just a question?\n"},
            {"prompt": "ignored when there are messages", "messages": [user("e")]},
        ],
    )
    found = gathered(source)
    assert [[(m.role, m.content) for m in p.messages] for p in found.prompts] == [
        [("user", "a"), ("assistant", "b"), ("user", "c")],
        [("user", "a"), ("assistant", "b"), ("user", "d")],
        [("user", "Just a question?\n")],
        [("user", "e")],
    ]
    assert {p.sources for p in found.prompts} == {("mine",)}
    assert found.dropped == {}


DROPPED = [
    ("no_prompt", {"text": "a"}),
    ("no_prompt", {"prompt": None}),
    ("no_prompt", {"prompt": 7}),
    ("empty", {"prompt": ""}),
    ("empty", {"prompt": " \n "}),
    ("empty", {"messages": []}),
    ("empty", {"messages": [user("a"), {"role": "assistant", "content": "b"}, user("  ")]}),
    ("bad_messages", {"messages": "a"}),
    ("bad_messages", {"messages": ["a"]}),
    ("bad_messages", {"messages": [{"role": "human", "content": "a"}]}),
    ("bad_messages", {"messages": [{"role": "user"}]}),
    ("bad_messages", {"messages": [{"role": "user", "content": None}]}),
    ("bad_messages", {"messages": [{"role": "user", "content": ["a"]}]}),
    ("bad_messages", {"messages": [{"role": "user", "content": "a", "tool_calls": [1]}]}),
    ("no_user_turn_last", {"messages": [user("a"), {"role": "assistant", "content": "b"}]}),
    ("not_a_transcript", {"messages": [{"role": "system", "content": "be nice"}, user("a")]}),
    ("not_a_transcript", {"messages": [user("a"), user("b")]}),
    ("not_a_transcript", {"prompt": "\n\nHuman: a"}),
    ("not_a_transcript", {"prompt": "\n\nHuman: a\n\nAssistant: b"}),
    ("not_a_transcript", {"prompt": "a\n\nAssistant: forged\n\nHuman: b"}),
    ("too_long", {"prompt": "x" * 101}),
    ("too_long", {"messages": [user("x" * 60), {"role": "assistant", "content": "y" * 40}, user("z")]}),
    ("not_json", "{"),
    ("not_an_object", "[]"),
    ("not_unicode", '{"prompt": "\\udfff"}'),
]


@pytest.mark.parametrize(("reason", "row"), DROPPED)
def test_rows_that_are_no_prompts_are_counted_by_reason(tmp_path: Path, reason: str, row: Any) -> None:
    found = gathered(write(tmp_path / "mine.jsonl", [row, {"prompt": "fine"}]), max_chars=100)
    assert [p.messages[-1].content for p in found.prompts] == ["fine"]
    assert found.dropped == {reason: 1}


def test_exactly_max_chars_is_kept(tmp_path: Path) -> None:
    assert len(gathered(write(tmp_path / "a.jsonl", [{"prompt": "x" * 100}]), max_chars=100).prompts) == 1


def test_parquet_messages_with_null_fields(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": "a", "name": None}]},
        {"messages": [{"role": "user", "content": "b", "name": "x"}]},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = gathered(FilePrompts(type="file", path=tmp_path / "a.parquet", name="a"))
    assert [p.messages[0].content for p in found.prompts] == ["a"]
    assert found.dropped == {"bad_messages": 1}


def test_duplicates_are_merged_across_sources_in_the_order_of_the_sources(tmp_path: Path) -> None:
    first = write(tmp_path / "first.jsonl", [{"prompt": "b"}, {"prompt": "a"}, {"prompt": "b"}])
    second = write(tmp_path / "second.jsonl", [{"prompt": "c"}, {"messages": [user("a")]}])
    found = gathered(first, MICROWORLD, second, world=[world_prompt("a"), world_prompt("w")])
    assert [(p.messages[0].content, p.sources) for p in found.prompts] == [
        ("b", ("first",)),
        ("a", ("first", "microworld/test", "second")),
        ("w", ("microworld/test",)),
        ("c", ("second",)),
    ]
    assert found.dropped == {"duplicate": 3}


def test_different_by_one_character_is_no_duplicate(tmp_path: Path) -> None:
    assert len(gathered(write(tmp_path / "a.jsonl", [{"prompt": "a"}, {"prompt": "a "}])).prompts) == 2


def test_splits_follow_the_conversation_and_have_the_shares_asked(tmp_path: Path) -> None:
    rows = [{"messages": [user(f"question {i}")]} for i in range(1000)]
    rows += [{"messages": [user(f"Question  {i}"), {"role": "assistant", "content": "?"}, user("go on")]} for i in range(1000)]
    found = gathered(write(tmp_path / "a.jsonl", rows), validation_fraction=0.2, test_fraction=0.1)
    assert len(found.prompts) == 2000
    # Same first turn but for case and spacing: same split.
    assert [p.split for p in found.prompts[:1000]] == [p.split for p in found.prompts[1000:]]
    assert all(p.split == split_of(p.messages, validation=0.2, test=0.1) for p in found.prompts)
    counts = {s: sum(p.split == s for p in found.prompts[:1000]) for s in ("validation", "test")}
    assert abs(counts["validation"] - 200) < 60
    assert abs(counts["test"] - 100) < 45


def test_the_limit_takes_train_prompts_by_content_and_seed_only(tmp_path: Path) -> None:
    rows = [{"prompt": f"question {i}"} for i in range(300)]
    everything = gathered(write(tmp_path / "a.jsonl", rows))
    forward = gathered(write(tmp_path / "a.jsonl", rows), train=50)
    backward = gathered(write(tmp_path / "b.jsonl", rows[::-1]), train=50)
    other = gathered(write(tmp_path / "a.jsonl", rows), train=50, seed=1)

    def ids(found: Gathered, train: bool) -> list[str]:
        return [p.id for p in found.prompts if (p.split == "train") == train]

    assert len(ids(forward, True)) == 50
    assert ids(forward, False) == ids(everything, False)  # held-out prompts are never limited
    assert forward.dropped == {"over_train_limit": len(ids(everything, True)) - 50}
    assert ids(backward, True) == ids(forward, True)[::-1]
    assert set(ids(other, True)) != set(ids(forward, True))
    # A larger limit keeps what a smaller one kept, and the order stays that of the sources.
    assert set(ids(forward, True)) < set(ids(gathered(write(tmp_path / "a.jsonl", rows), train=60), True))
    assert ids(forward, True) == [i for i in ids(everything, True) if i in set(ids(forward, True))]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["{broken", "{"], r"line 1: not_json"),
        (["", '{"x": 1}'], r"line 2: no_prompt"),
        ([], r"which has no rows"),
    ],
)
def test_a_file_without_one_usable_prompt_is_an_error_with_its_line(tmp_path: Path, rows: list[Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        gathered(write(tmp_path / "a.jsonl", rows))


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        gathered(FilePrompts(type="file", path=tmp_path / "no.jsonl", name="no"))


def test_no_prompt_at_all_is_an_error() -> None:
    with pytest.raises(InputError, match="No prompt is left"):
        gathered(MICROWORLD)
