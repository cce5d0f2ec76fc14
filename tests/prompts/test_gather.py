"""Gathering: reasons for dropping, merging, answers, splitting, mixing, and what is reported row by row."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from starling.chat import split_of
from starling.config import FilePrompts, MicroworldPrompts, PromptsSection
from starling.errors import InputError
from starling.prompts import GatheredRow, gather
from starling.records import FoundAnswer, Message, Prompt

MICROWORLD = MicroworldPrompts(type="microworld")


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def write(path: Path, rows: list[Any]) -> FilePrompts:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return FilePrompts(type="file", path=path, name=path.stem)


def world_prompt(text: str) -> Prompt:
    return Prompt.make((Message(role="user", content=text),), ("microworld/test",))


@dataclass(frozen=True)
class Whole:
    """A `Gathered` read into memory."""

    prompts: list[Prompt]
    dropped: dict[str, int]
    noted: dict[str, int]
    answers: list[FoundAnswer]
    rows: list[GatheredRow]
    contaminated: list[GatheredRow]

    @property
    def texts(self) -> list[str]:
        return [p.messages[-1].content for p in self.prompts]


def gathered(
    *sources: FilePrompts | MicroworldPrompts, world: list[Prompt] | None = None, seed: int = 0, **settings: Any
) -> Whole:
    found = gather(PromptsSection(sources=sources, **settings), world or [], seed=seed)
    assert list(found.prompts) == list(found.prompts), "it can be read again"
    assert len(found.prompts) == len(list(found.prompts))
    rows = list(found.rows)
    assert {o: sum(r.outcome == o for r in rows) for o in {r.outcome for r in rows}} == found.dropped, "each drop is a row"
    return Whole(list(found.prompts), found.dropped, found.noted, list(found.answers), rows, list(found.contaminated))


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


def test_a_folder_a_glob_and_a_list_are_read_shard_by_shard(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    for name, text in (("b.jsonl", "2"), ("a.jsonl", "1"), ("c.jsonl.part", "no")):
        write(tmp_path / "shards" / name, [{"prompt": text}])
    (tmp_path / "d.json").write_text(json.dumps([{"prompt": "3"}, {"prompt": "4"}]))
    (tmp_path / "e.csv").write_text('prompt,x\n"5, ""6""\nand 7",\n')

    def texts(*paths: str) -> list[str]:
        return gathered(FilePrompts(type="file", path=tuple(tmp_path / p for p in paths), name="n")).texts

    assert texts("shards") == ["1", "2"]
    assert texts("shards/*.jsonl", "d.json", "e.csv") == ["1", "2", "3", "4", '5, "6"\nand 7']
    with pytest.raises(InputError, match="no data file here"):
        texts("shards/*.parquet")


def test_one_shard_may_lack_usable_rows(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"x": 1}])
    write(tmp_path / "b.jsonl", [{"prompt": "fine"}])
    found = gathered(FilePrompts(type="file", path=tmp_path, name="n"))
    assert (found.texts, found.dropped) == (["fine"], {"no_prompt": 1})


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


SAME = [
    ("characters", "a", "a ", False),
    ("words", "Why  is\nthat?", "why is that", True),
    ("words", "What is 3 + 4?", "What is 3 - 4?", False),
    ("words", "ab c", "a bc", False),
    ("letters", "What is 3 + 4?", "What is 3 - 4?", True),
    ("letters", "ab c", "A bc!", True),
    ("letters", "ab c", "abd", False),
]


@pytest.mark.parametrize(("rule", "first", "second", "same"), SAME)
def test_what_makes_two_prompts_the_same_is_a_setting(tmp_path: Path, rule: str, first: str, second: str, same: bool) -> None:
    found = gathered(write(tmp_path / "a.jsonl", [{"prompt": first}, {"prompt": second}]), duplicates=rule)
    assert found.texts == ([first] if same else [first, second])


def test_a_duplicate_is_reported_with_its_row_and_the_prompt_that_took_it_in(tmp_path: Path) -> None:
    first = write(tmp_path / "first.jsonl", [{"prompt": "Tell me a joke."}, "", {"text": 1}])
    second = write(tmp_path / "second.jsonl", [{"prompt": "Fine"}, {"prompt": "tell me  a joke"}])
    found = gathered(first, second)
    joke, fine = found.prompts
    assert (joke.sources, fine.sources) == (("first", "second"), ("second",))
    assert found.rows == [
        GatheredRow(source="first", file="first.jsonl", row=3, outcome="no_prompt"),
        GatheredRow(
            source="second", file="second.jsonl", row=2, outcome="duplicate", merged_into=joke.id,
            prompt_id=Prompt.make((Message(role="user", content="tell me  a joke"),), ()).id,
        ),
    ]  # fmt: skip


# ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def answered(prompt: str, *answers: str) -> dict[str, Any]:
    return {"instruction": prompt, "completions": [{"model": f"m{i}", "response": a} for i, a in enumerate(answers)]}


def test_answers_come_in_the_order_of_the_prompts_and_those_of_duplicates_are_united(tmp_path: Path) -> None:
    first = write(
        tmp_path / "first.jsonl", [answered("a", "1", "2"), answered("b", "3"), answered("c"), answered("A!", "4", "1")]
    )
    second = write(tmp_path / "second.jsonl", [answered("b", " \n", "5"), answered("a", "2", "6")])
    found = gathered(first, second)
    ids = {p.messages[0].content: p.id for p in found.prompts}
    assert list(ids) == ["a", "b", "c"]
    assert [(a.prompt_id, a.model, a.text, a.source) for a in found.answers] == [
        (ids["a"], "m0", "1", "first"),
        (ids["a"], "m1", "2", "first"),
        (ids["a"], "m0", "4", "first"),
        (ids["a"], "m1", "6", "second"),
        (ids["b"], "m0", "3", "first"),
        (ids["b"], "m1", "5", "second"),
    ]
    assert found.noted == {"answer_empty": 1, "answer_repeated": 2}
    assert found.dropped == {"duplicate": 3}


def test_too_few_different_answers_over_all_sources(tmp_path: Path) -> None:
    first = write(tmp_path / "first.jsonl", [answered("a", "1"), answered("b", "1", "1"), answered("c", "1", "2")])
    second = write(tmp_path / "second.jsonl", [answered("a", "2"), answered("d", "1")])
    found = gathered(first, second, min_answers=2)
    assert found.texts == ["a", "c"]
    assert found.dropped == {"duplicate": 1, "too_few_answers": 2}
    assert [(r.source, r.row) for r in found.rows if r.outcome == "too_few_answers"] == [("first", 2), ("second", 2)]
    assert {a.prompt_id for a in found.answers} == {p.id for p in found.prompts}, "answers of dropped prompts go with them"
    # Of one source only: a prompt belongs to the first source it was found in.
    assert gathered(first, second.model_copy(update={"min_answers": 2})).texts == ["a", "b", "c"]


# ── splits ───────────────────────────────────────────────────────────────────────────────────────────────────────────


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

    def ids(found: Whole, train: bool) -> list[str]:
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


# ── leaks ────────────────────────────────────────────────────────────────────────────────────────────────────────────

NEAR = {"near_duplicates": {"threshold": 0.8}, "validation_fraction": 0.3, "test_fraction": 0.3}
TOPICS = ["bread", "cheese", "butter", "yoghurt", "sourdough", "pancakes", "noodles", "dumplings", "omelettes", "porridge"]


def versions(topic: str) -> tuple[str, str]:
    """Two wordings whose shingles agree by more than 0.8, and that a hash puts into the same split only by chance."""
    text = f"Explain how {topic} is made, how {topic} is kept, and what else one can make of {topic} at home without an oven"
    return text, text + " now"


def turns(*texts: str) -> dict[str, Any]:
    return {"messages": [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(texts)]}


def test_later_turns_of_a_merged_prompt_stay_in_the_split_of_the_one_that_took_it_in(tmp_path: Path) -> None:
    rows = [turns(versions(t)[0]) for t in TOPICS] + [turns(versions(t)[1]) for t in TOPICS]
    rows += [turns(versions(t)[1], "Mix it.", f"And what goes with {t}?") for t in TOPICS]
    found = gathered(write(tmp_path / "a.jsonl", rows), **NEAR)
    assert found.dropped == {"near_duplicate": len(TOPICS)}
    assert [p.split for p in found.prompts[: len(TOPICS)]] == [p.split for p in found.prompts[len(TOPICS) :]]
    alone = [split_of(p.messages, validation=0.3, test=0.3) for p in found.prompts]
    assert alone[: len(TOPICS)] != alone[len(TOPICS) :], "by their own openings some would straddle"
    assert {p.split for p in found.prompts} == {"train", "validation", "test"}


def test_conversations_that_open_nearly_alike_share_a_split_though_nothing_is_merged(tmp_path: Path) -> None:
    rows = [turns(v, "Mix it.", f"{t} {i}?") for t in TOPICS for i, v in enumerate(versions(t))]
    found = gathered(write(tmp_path / "a.jsonl", rows), **NEAR)
    assert found.dropped == {}
    assert [p.split for p in found.prompts[::2]] == [p.split for p in found.prompts[1::2]]


@pytest.mark.parametrize("rule", ["letters", "words"])
def test_later_turns_of_an_exact_duplicate_stay_in_its_split(tmp_path: Path, rule: str) -> None:
    other = "How do I make {}: at home?" if rule == "words" else "How do I make {} atho-me?"
    rows = [turns(f"How do I make {t} at home") for t in TOPICS] + [turns(other.format(t)) for t in TOPICS]
    rows += [turns(other.format(t), "Mix it.", "And then?") for t in TOPICS]
    found = gathered(write(tmp_path / "a.jsonl", rows), duplicates=rule, validation_fraction=0.3, test_fraction=0.3)
    assert found.dropped == {"duplicate": len(TOPICS)}
    assert [p.split for p in found.prompts[: len(TOPICS)]] == [p.split for p in found.prompts[len(TOPICS) :]]


def test_what_was_merged_never_straddles_even_where_the_openings_were_not_found_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MinHash may miss a pair of openings and yet find the whole conversations."""
    monkeypatch.setattr("starling.prompts.duplicates.NearDuplicates.join_openings", lambda self, groups: self._index.close())
    rows = [turns(versions(t)[0]) for t in TOPICS] + [turns(versions(t)[1]) for t in TOPICS]
    rows += [turns(versions(t)[1], "Mix it.", f"And what goes with {t}?") for t in TOPICS]
    found = gathered(write(tmp_path / "a.jsonl", rows), **NEAR)
    assert [p.split for p in found.prompts[: len(TOPICS)]] == [p.split for p in found.prompts[len(TOPICS) :]]


def test_splits_do_not_depend_on_the_order_of_the_rows(tmp_path: Path) -> None:
    rows = [turns(v, *rest) for t in TOPICS for v in versions(t) for rest in ((), ("Mix it.", f"{t} {v[-3:]}?"))]
    forward = gathered(write(tmp_path / "a.jsonl", rows), **NEAR)
    backward = gathered(write(tmp_path / "b.jsonl", rows[::-1]), **NEAR)
    by_topic = [
        {t: {p.split for p in found.prompts if t in p.messages[0].content} for t in TOPICS} for found in (forward, backward)
    ]
    assert by_topic[0] == by_topic[1]
    assert all(len(splits) == 1 for splits in by_topic[0].values())


def test_near_duplicates_unite_sources_and_answers(tmp_path: Path) -> None:
    one, other = versions("bread")
    first, second = (
        write(tmp_path / "first.jsonl", [answered(one, "x")]),
        write(tmp_path / "second.jsonl", [answered(other, "x", "y")]),
    )
    found = gathered(first, second, **NEAR)
    assert [(p.messages[0].content, p.sources) for p in found.prompts] == [(one, ("first", "second"))]
    assert [(a.text, a.source) for a in found.answers] == [("x", "first"), ("y", "second")]
    [row] = found.rows
    assert (row.source, row.row, row.outcome, row.merged_into) == ("second", 1, "near_duplicate", found.prompts[0].id)


def test_the_microworld_is_neither_filtered_nor_nearly_duplicate(tmp_path: Path) -> None:
    world = [world_prompt(v) for v in versions("bread")]
    found = gathered(MICROWORLD, world=world, max_chars=5, **NEAR)
    assert [p.id for p in found.prompts] == [p.id for p in world]
    assert [p.split for p in found.prompts] == [split_of(p.messages, validation=0.3, test=0.3) for p in world]


# ── contamination ────────────────────────────────────────────────────────────────────────────────────────────────────


def keep_out(tmp_path: Path, *questions: str, **settings: Any) -> dict[str, Any]:
    write(tmp_path / "bench.jsonl", [{"question_id": 7 + i, "turns": [q]} for i, q in enumerate(questions)])
    return {"decontamination": {"sets": [{"name": "bench", "path": tmp_path / "bench.jsonl"}], **settings}}


def test_contaminated_prompts_go_with_their_later_turns_and_duplicates(tmp_path: Path) -> None:
    question = "What happens if you swallow a cherry stone?"
    rows = [
        turns("Fine"),
        turns(question),
        turns(question, "Nothing.", "Sure?"),
        turns(question.upper()),
        turns("Fine", "x", question),
    ]
    found = gathered(write(tmp_path / "a.jsonl", rows), **keep_out(tmp_path, "Who?", question))
    assert found.texts == ["Fine"]
    assert found.dropped == {"contaminated": 4}
    words = "what happens if you swallow a cherry stone"
    assert {(r.row, r.benchmark, r.item, r.words) for r in found.rows} == {(n, "bench", "8", words) for n in (2, 3, 4, 5)}
    assert all(r.prompt_id for r in found.rows)


def test_a_contaminated_wording_is_no_home_for_clean_near_duplicates(tmp_path: Path) -> None:
    one, other = versions("bread")
    bench = NEAR | keep_out(tmp_path, " ".join(other.split()[-13:]))
    for rows in ([turns(one), turns(other)], [turns(other), turns(one)]):
        found = gathered(write(tmp_path / "a.jsonl", rows), **bench)
        assert (found.texts, found.dropped) == ([one], {"contaminated": 1}), "in either order"


def test_marking_keeps_them_and_lists_them(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [turns("Fine"), turns("What is  gremolata"), turns("what is gremolata?")])
    found = gathered(source, **keep_out(tmp_path, "What is gremolata?", action="mark"))
    assert len(found.prompts) == 2
    assert (found.dropped, found.noted) == ({"duplicate": 1}, {"contaminated_kept": 1})
    [row] = found.contaminated
    assert (row.row, row.outcome, row.prompt_id, row.item) == (2, "contaminated_kept", found.prompts[1].id, "7")


# ── mixing ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_take_and_weights_choose_by_seed_and_content_whatever_the_order(tmp_path: Path) -> None:
    rows = {name: [{"prompt": f"{name} {i}"} for i in range(60)] for name in "ab"}

    def take(
        turn: int, seed: int = 0, a: dict[str, Any] | None = None, b: dict[str, Any] | None = None, **settings: Any
    ) -> Whole:
        sources = [
            write(tmp_path / f"{n}.jsonl", rows[n][::turn]).model_copy(update=given or {}) for n, given in (("a", a), ("b", b))
        ]
        return gathered(*sources[::turn], seed=seed, **settings)

    def of(found: Whole, name: str) -> set[str]:
        return {t for t in found.texts if t.startswith(name)}

    few = {"a": {"take": 20}}
    assert (len(of(take(1, **few), "a")), len(of(take(1, **few), "b"))) == (20, 60)
    assert take(1, **few).dropped == {"over_take": 40}
    assert set(take(1, **few).texts) == set(take(-1, **few).texts) != set(take(1, seed=1, **few).texts)
    assert of(take(1, **few), "a") < of(take(1, a={"take": 21}), "a")
    weighted = {"a": {"weight": 1.0}, "b": {"weight": 3.0}, "total": 40}
    assert (len(of(take(1, **weighted), "a")), len(of(take(1, **weighted), "b"))) == (10, 30)
    assert take(1, **weighted).dropped == {"over_total": 80}
    assert set(take(1, **weighted).texts) == set(take(-1, **weighted).texts)
    assert len(take(1, total=30).texts) == 30
    assert len(of(take(1, total=30), "a")) == 15
    assert take(1, total=500).dropped == {}


def test_weights_need_a_total_and_all_sources() -> None:
    one = {"type": "file", "path": "a.jsonl", "name": "a"}
    with pytest.raises(ValueError, match=r"prompts\.total, which is not given"):
        PromptsSection(sources=[{**one, "weight": 1}])
    with pytest.raises(ValueError, match="all sources have a weight or none"):
        PromptsSection(sources=[{**one, "weight": 1}, one], total=5)
