"""Answers of other tools' files, matched by prompt; malformed rows; labels."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from starling.chat import to_transcript
from starling.errors import InputError
from starling.evaluate.pairwise.answers import Prompts, named_files, read_answers, read_prompts
from starling.evaluate.pairwise.head_to_head import from_files
from starling.records import Message, prompt_id

HELLO = (Message(role="user", content="Say hello"),)
LONG = (Message(role="user", content="Hi"), Message(role="assistant", content="Yes?"), Message(role="user", content="Go on"))


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_one_prompt_has_one_name_in_every_form(tmp_path: Path) -> None:
    questions = lines(tmp_path / "question.jsonl", [{"question_id": 81, "category": "x", "turns": ["Say hello", "Again"]}])
    alpaca = tmp_path / "model_outputs.json.gz"
    alpaca.write_bytes(gzip.compress(json.dumps([{"instruction": "Say hello", "output": "one", "generator": "g"}]).encode()))
    turns = [{"role": "user", "content": "Say hello"}]
    forms: dict[str, tuple[list[dict[str, Any]], str]] = {
        "fastchat": ([{"question_id": 81, "model_id": "m", "choices": [{"index": 0, "turns": ["two", "never"]}]}], "two"),
        "old arena": ([{"question_id": 81, "model_id": "m", "choices": [{"turns": [{"content": "three"}]}]}], "three"),
        "arena": (
            [{"uid": "u", "model": "m", "messages": [*turns, {"role": "assistant", "content": {"answer": "four"}}]}],
            "four",
        ),
        "chat": ([{"messages": [*turns, {"role": "assistant", "content": "five"}]}], "five"),
        "plain": ([{"prompt": "Say hello", "response": "six"}], "six"),
        "transcript": ([{"prompt": to_transcript(HELLO), "answer": "seven"}], "seven"),
        "messages": ([{"messages": turns, "completion": "eight"}], "eight"),
    }
    prompts = read_prompts(questions)
    assert read_answers("a", alpaca, prompts).texts == {prompt_id(HELLO): "one"}
    for name, (rows, text) in forms.items():
        found = read_answers("a", lines(tmp_path / f"{name}.jsonl", rows), prompts)
        assert found.texts == {prompt_id(HELLO): text}, name
    assert prompts.aliases == {"81": prompt_id(HELLO), "u": prompt_id(HELLO)}
    alone = read_answers("a", tmp_path / "fastchat.jsonl", Prompts())
    assert alone.texts == {"81": "two"}


def test_conversations_and_splits(tmp_path: Path) -> None:
    rows = [
        {"messages": [m.model_dump() for m in LONG], "split": "test"},
        {"messages": [m.model_dump() for m in HELLO], "split": "train"},
    ]
    path = lines(tmp_path / "prompts.jsonl", rows)
    assert read_prompts(path, split="test").messages == {prompt_id(LONG): LONG}
    assert list(read_prompts(path).messages) == [prompt_id(LONG), prompt_id(HELLO)]
    with pytest.raises(InputError, match="no prompt in the file"):
        read_prompts(path, split="validation")


def test_what_is_no_answer_is_counted(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "p", "response": "r"}, {"prompt": "p", "response": "again"}, {"prompt": "q", "response": " "}, {"prompt": "q"},
        {"response": "r"}, {"messages": [{"role": "user", "content": "x"}]},
    ]  # fmt: skip
    found = read_answers("a", lines(tmp_path / "a.jsonl", rows), Prompts())
    assert list(found.texts.values()) == ["r"]
    assert found.left_out == {"empty": 1, "no_answer": 2, "no_prompt": 1, "repeated": 1}
    with pytest.raises(InputError, match=r"no answer \(1 no_answer\)"):
        read_answers("a", lines(tmp_path / "b.jsonl", [{"prompt": "q"}]), Prompts())


def test_a_file_of_several_models_needs_the_name_of_one(tmp_path: Path) -> None:
    rows = [{"instruction": f"i{n % 2}", "output": f"o{n}", "generator": "xy"[n // 2]} for n in range(4)]
    path = lines(tmp_path / "both.jsonl", rows)
    assert list(read_answers("y", path, Prompts()).texts.values()) == ["o2", "o3"]
    with pytest.raises(InputError, match=r"2 models, and none is called 'z'.*x, y"):
        read_answers("z", path, Prompts())


def test_labels() -> None:
    assert named_files(["a=x=y.json"], "--answers") == {"a": Path("x=y.json")}
    for given in (["a.json"], ["=a.json"], ["a="], ["a=1", "a=2"]):
        with pytest.raises(InputError, match=r"label"):
            named_files(given, "--answers")


def test_votes_find_their_answers_by_number_instruction_and_id(tmp_path: Path) -> None:
    questions = lines(tmp_path / "question.jsonl", [{"question_id": n, "turns": [f"Question {n}"]} for n in (1, 2, 3)])
    answers = {
        name: lines(tmp_path / f"{name}.jsonl", [{"instruction": f"Question {n}", "output": text} for n in (1, 2, 3)])
        for name, text in (("x", "short"), ("y", "long answer"))
    }
    votes = lines(
        tmp_path / "votes.jsonl",
        [
            {"question_id": 1, "model_1": "x", "model_2": "y", "g1_winner": "model_2", "g2_winner": "model_2", "judge": "j"},
            {"instruction": "Question 2", "generator_1": "x", "generator_2": "y", "preference": 2},
            {
                "prompt_id": prompt_id((Message(role="user", content="Question 3"),)),
                "a": "x",
                "b": "y",
                "winner": "a",
                "by": "human",
            },
        ],
    )
    found = from_files([votes], answers=answers, questions=[questions], resamples=100)
    assert any(note.startswith("The longer answer scores 66.7 %") and "3 meetings" in note for note in found.notes)
    lost = from_files([votes], answers={"z": answers["x"]}, resamples=100)
    assert "None of the votes is about an answer in the files." in lost.notes
