"""Formats: each public form by a row made by hand, recognised by its columns and by name; what is no prompt in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from starling.config import FilePrompts
from starling.prompts.formats import Dropped, Found, read, recognise, user_texts

Turns = list[tuple[str, str]]


def source(**settings: Any) -> FilePrompts:
    return FilePrompts(type="file", path=Path("x.jsonl"), name="mine", **settings)


def flat(found: Found) -> tuple[list[str], list[tuple[str, str]], tuple[str, ...]]:
    assert [m.role for m in found.messages] == [("user", "assistant")[i % 2] for i in range(len(found.messages))]
    return [m.content for m in found.messages], list(found.answers), found.sources


def said(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": t} for i, t in enumerate(texts)]


ROWS: list[tuple[str, dict[str, Any], list[str], list[tuple[str, str]], tuple[str, ...]]] = [
    ("plain", {"messages": [{"role": "user", "content": "a"}]}, ["a"], [], ("mine",)),
    ("plain", {"prompt": "a", "language": "English"}, ["a"], [], ("mine",)),
    ("plain", {"prompt": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: "}, ["a", "b", "c"], [], ("mine",)),
    (
        "nectar",
        {
            "prompt": "\n\nHuman: a\n\nAssistant: ",
            "answers": [{"answer": "1", "model": "gpt-4", "rank": 1.0}, {"answer": "2", "model": None, "rank": 2.0}],
            "source": ["lmsys-chat-1m", "sharegpt"],
        },
        ["a"],
        [("gpt-4", "1"), ("unknown", "2")],
        ("lmsys-chat-1m", "sharegpt"),
    ),
    ("nectar", {"prompt": "a", "answers": [], "source": None}, ["a"], [], ("mine",)),
    (
        "hh-rlhf",
        {
            "chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d",
            "rejected": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: e\n\ne",
        },
        ["a", "b", "c"],
        [("anthropic", "d"), ("anthropic", "e\n\ne")],
        ("mine",),
    ),
    (  # the two part before their last answers
        "hh-rlhf",
        {
            "chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d",
            "rejected": "\n\nHuman: a\n\nAssistant: x\n\nHuman: c\n\nAssistant:",
        },
        ["a"],
        [("anthropic", "b"), ("anthropic", "x")],
        ("mine",),
    ),
    (  # and here in a user turn: one answer is all they share
        "hh-rlhf",
        {
            "chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d",
            "rejected": "\n\nHuman: a\n\nAssistant: b\n\nHuman: e\n\nAssistant: d",
        },
        ["a"],
        [("anthropic", "b"), ("anthropic", "b")],
        ("mine",),
    ),
    (
        "lmsys-chat",
        {
            "conversation_id": "1", "model": "vicuna-13b", "language": "English",
            "conversation": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        },
        ["a"],
        [("vicuna-13b", "b")],
        ("mine",),
    ),
    ("sharegpt", {"id": "x", "conversations": said("a", "b", "c", "d")}, ["a", "b", "c"], [("unknown", "d")], ("mine",)),
    (
        "sharegpt",
        {"conversations": [{"user": "human", "text": "a"}, {"role": "chatgpt", "content": "b"}]},
        ["a"],
        [("unknown", "b")],
        ("mine",),
    ),
    ("sharegpt", {"items": said("a")}, ["a"], [], ("mine",)),
    (
        "ultrafeedback",
        {
            "source": "evol_instruct", "instruction": "a", "models": ["bard"], "correct_answers": [],
            "completions": [{"model": "bard", "response": "b", "annotations": {}}],
        },
        ["a"],
        [("bard", "b")],
        ("evol_instruct",),
    ),
    ("evol-instruct", {"instruction": "a", "output": "b"}, ["a"], [("unknown", "b")], ("mine",)),
    ("evol-instruct", {"instruction": "a", "input": "about", "output": "b"}, ["a\n\nabout"], [("unknown", "b")], ("mine",)),
    ("evol-instruct", {"instruction": "a"}, ["a"], [], ("mine",)),
    ("flan", {"inputs": "a", "targets": "b", "task": "t"}, ["a"], [("unknown", "b")], ("mine",)),
    ("flan", {"question": "a", "answer": "b"}, ["a"], [("unknown", "b")], ("mine",)),
    ("flan", {"question": "a", "response": "b", "system_prompt": ""}, ["a"], [("unknown", "b")], ("mine",)),
    ("llama-instruct", {"text": "<s>[INST]\na\n[/INST]\n b </s>"}, ["a"], [("llama-2-70b-chat", "b")], ("mine",)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "messages", "answers", "sources"), ROWS)
def test_every_form_is_recognised_and_read(
    name: str, row: dict[str, Any], messages: list[str], answers: list[tuple[str, str]], sources: tuple[str, ...]
) -> None:
    assert recognise(row) == name
    by_columns, by_name = list(read(row, source())), list(read(row, source(format=name)))
    assert by_columns == by_name
    assert [flat(found) for found in by_columns] == [(messages, answers, sources)]


def test_evol_instruct_v2_has_the_form_of_sharegpt() -> None:
    [found] = read({"conversations": said("a", "b")}, source(format="evol-instruct", model="gpt-4"))
    assert flat(found) == (["a"], [("gpt-4", "b")], ("mine",))


def test_which_turns_become_prompts_is_a_setting() -> None:
    row = {"conversations": said("a", "b", "c", "d", "e")}
    expected = {
        "first": [(["a"], [("unknown", "b")])],
        "last": [(["a", "b", "c", "d", "e"], [])],
        "every": [(["a"], [("unknown", "b")]), (["a", "b", "c"], [("unknown", "d")]), (["a", "b", "c", "d", "e"], [])],
    }
    for turns, prompts in expected.items():
        assert [flat(found)[:2] for found in read(row, source(turns=turns))] == prompts


def test_llama_instruct_of_several_turns() -> None:
    row = {"text": "[INST]\na\n[/INST]\nb\n[INST]\nc\n[/INST]\nd\n"}
    assert [flat(f)[:2] for f in read(row, source(turns="first"))] == [(["a"], [("llama-2-70b-chat", "b")])]
    assert [flat(f)[:2] for f in read(row, source(model="m"))] == [(["a", "b", "c"], [("m", "d")])]


def test_the_language_column() -> None:
    row = {"conversation": [{"role": "user", "content": "a"}], "language": "English"}
    assert len(list(read(row, source(language="English")))) == 1
    for other in (row | {"language": "German"}, {"prompt": "a"}):
        with pytest.raises(Dropped, match="other_language"):
            read(other, source(language="English"))


BAD = [
    ("no_prompt", "auto", {}),
    ("no_prompt", "auto", {"text": "no markers"}),
    ("no_prompt", "ultrafeedback", {"instruction": None, "completions": []}),
    ("no_prompt", "flan", {"inputs": None, "question": 3}),
    ("no_prompt", "evol-instruct", {"output": "b"}),
    ("no_prompt", "llama-instruct", {"text": None}),
    ("no_prompt", "sharegpt", {"messages": []}),
    ("bad_messages", "auto", {"conversations": "a"}),
    ("bad_messages", "auto", {"conversations": [["human", "a"]]}),
    ("bad_messages", "auto", {"conversations": [{"from": "tool", "value": "a"}]}),
    ("bad_messages", "auto", {"conversations": [{"from": ["human"], "value": "a"}]}),
    ("bad_messages", "auto", {"conversations": [{"from": "human", "value": None}]}),
    ("empty", "auto", {"conversations": []}),
    ("empty", "auto", {"conversations": [{"from": "gpt", "value": "a"}]}),
    ("bad_answers", "auto", {"instruction": "a", "completions": "b"}),
    ("bad_answers", "auto", {"instruction": "a", "completions": [{"model": "m", "response": None}]}),
    ("bad_answers", "nectar", {"prompt": "a"}),
    ("not_a_transcript", "auto", {"text": "before [INST] a [/INST] b"}),
    ("not_a_transcript", "auto", {"text": "[INST] <<SYS>>be nice<</SYS>> a [/INST] b"}),
    ("not_a_transcript", "auto", {"chosen": "Human: a", "rejected": "\n\nHuman: a\n\nAssistant: b"}),
    ("not_a_transcript", "auto", {"chosen": "\n\nHuman: a\n\nHuman: b", "rejected": "\n\nHuman: a\n\nAssistant: b"}),
    ("not_a_transcript", "hh-rlhf", {"chosen": "\n\nHuman: a\n\nAssistant: b"}),
    ("no_common_prompt", "auto", {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: b"}),
]


@pytest.mark.parametrize(("reason", "name", "row"), BAD)
def test_what_is_no_prompt_has_a_reason(reason: str, name: str, row: dict[str, Any]) -> None:
    with pytest.raises(Dropped, match=f"^{reason}$"):
        list(read(row, source(format=name)))


ITEMS = [
    ({"question_id": 81, "turns": ["a", "b"], "category": "writing"}, None, [("turn 1", "a"), ("turn 2", "b")]),
    ({"dataset": "koala", "instruction": "a", "output": "no", "generator": "gpt4"}, None, [("", "a")]),
    ({"Type": "Adversarial", "Category": "x", "Question": "a", "Best Answer": "no"}, None, [("", "a")]),
    ({"prompt": "\n\nHuman: a\n\nAssistant: no\n\nHuman: b\n\nAssistant: "}, None, [("turn 1", "a"), ("turn 2", "b")]),
    ({"Behavior": "a", "instruction": "no"}, "Behavior", [("", "a")]),
    ({"conversations": said("a", "no", "b")}, None, [("turn 1", "a"), ("turn 2", "b")]),
]


@pytest.mark.parametrize(("row", "column", "texts"), ITEMS)
def test_what_a_benchmark_asks(row: dict[str, Any], column: str | None, texts: Turns) -> None:
    assert user_texts(json.loads(json.dumps(row)), column) == texts


@pytest.mark.parametrize(
    ("row", "column"), [({"Behavior": "a"}, "behaviour"), ({"turns": [1]}, None), ({"turns": []}, "turns"), ({}, None)]
)
def test_a_benchmark_row_without_a_text(row: dict[str, Any], column: str | None) -> None:
    with pytest.raises(Dropped):
        user_texts(row, column)
