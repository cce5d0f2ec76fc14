"""Contamination: overlaps by hand, against a slow comparison of sets, on benchmarks' own files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starling.config import DecontaminationSection
from starling.errors import InputError
from starling.prompts.contamination import Benchmarks, Overlap, words_of
from starling.records import Message


def benchmarks(folder: Path, *items: str, ngram: int = 13) -> Benchmarks:
    file = folder / "bench.json"
    file.write_text(json.dumps([{"instruction": item} for item in items]))
    return Benchmarks(DecontaminationSection(sets=[{"name": "bench", "path": file}], ngram=ngram))


def user(*texts: str) -> tuple[Message, ...]:
    return tuple(Message(role="assistant" if i % 2 else "user", content=t) for i, t in enumerate(texts))


LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"


@pytest.mark.parametrize(
    ("item", "text", "words"),
    [
        (LONG, f"well, {LONG.upper()}!", " ".join(LONG.split()[:13])),
        (LONG, "two, three; four five SIX seven eight nine ten eleven twelve thirteen fourteen", " ".join(LONG.split()[1:])),
        (LONG, " ".join(LONG.split()[:12]), None),
        (LONG, LONG.replace("seven", "7"), None),
        ("What happens if you eat seeds?", "Tell me: what happens, if you eat seeds, to me?", "what happens if you eat seeds"),
        ("What happens if you eat seeds?", "What happens if you eat the seeds?", None),
        ("Are vampires real?", "are  VAMPIRES real", "are vampires real"),
        ("Are vampires real?", "Are vampires real? I ask.", None),
        ("Don't you know what time it is?", "don’t you know what time it is", "don t you know what time it is"),
        ("你们知道这是什么吗", "请问你们知道这是什么吗？", "你 们 知 道 这 是 什 么 吗"),
        ("???", "!!!", None),
    ],
)
def test_overlaps_by_hand(tmp_path: Path, item: str, text: str, words: str | None) -> None:
    found = benchmarks(tmp_path, "nothing like the others at all", item).overlap(user(text))
    assert found == (Overlap("bench", "row 2", words) if words is not None else None)


def test_every_turn_is_looked_at_and_none_is_joined_to_the_next(tmp_path: Path) -> None:
    looked = benchmarks(tmp_path, "What happens if you eat seeds?")
    assert looked.overlap(user("a", "b", "c", "what happens if you eat seeds?", "d")) is not None
    assert looked.overlap(user("what happens if", "you eat seeds")) is None


def test_a_shorter_ngram_finds_more(tmp_path: Path) -> None:
    part = user(" ".join(LONG.split()[3:11]))
    assert benchmarks(tmp_path, LONG).overlap(part) is None
    assert benchmarks(tmp_path, LONG, ngram=8).overlap(part) is not None


vocabulary = st.lists(st.sampled_from("abc"), max_size=30)


@given(items=st.lists(vocabulary, min_size=1, max_size=4), text=vocabulary, ngram=st.integers(5, 9))
def test_it_agrees_with_a_comparison_of_everything_with_everything(
    tmp_path_factory: pytest.TempPathFactory, items: list[list[str]], text: list[str], ngram: int
) -> None:
    if not any(items):
        return

    def runs(words: list[str], length: int) -> set[tuple[str, ...]]:
        return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}

    expected = any(
        item == text if len(item) < 5 else bool(runs(item, min(ngram, len(item))) & runs(text, min(ngram, len(item))))
        for item in items
        if item
    )
    looked = benchmarks(tmp_path_factory.mktemp("b"), *(" ".join(item) for item in items), ngram=ngram)
    found = looked.overlap(user(" ".join(text)))
    assert (found is not None) == expected
    if found is not None:
        item = words_of(" ".join(items[int(found.item.removeprefix("row ")) - 1]))
        assert f" {found.words} " in f" {' '.join(item)} "
        assert f" {found.words} " in f" {' '.join(text)} "


def sets(tmp_path: Path, name: str, text: str, **given: Any) -> Benchmarks:
    (tmp_path / name).write_text(text)
    return Benchmarks(DecontaminationSection(sets=[{"name": "b", "path": tmp_path / name, **given}]))


def test_the_files_of_the_known_benchmarks(tmp_path: Path) -> None:
    question = "What happens if you eat seeds?"
    files = [
        ("question.jsonl", json.dumps({"question_id": 81, "turns": ["First do this, please, now.", question]}), "81 turn 2"),
        ("alpaca_eval.json", json.dumps([{"instruction": question, "output": "x"}]), "row 1"),
        ("TruthfulQA.csv", f'Type,Category,Question,Best Answer\nAdversarial,"a, b",{question},none', "row 1"),
        ("mine.jsonl", json.dumps({"id": "m-1", "prompt": question}), "m-1"),
    ]
    for name, text, item in files:
        assert sets(tmp_path, name, text).overlap(user(question)) == Overlap("b", item, "what happens if you eat seeds")


def test_rows_without_a_text_are_counted_and_a_file_without_any_is_an_error(tmp_path: Path) -> None:
    assert sets(tmp_path, "a.jsonl", '{"instruction": "a b c d e"}\n{"x": 1}\nbroken\n').unusable == 2
    with pytest.raises(InputError, match=r"Not one row.*set 'b', column question.*name the column"):
        sets(tmp_path, "b.jsonl", '{"instruction": "a"}\n', column="question")
    with pytest.raises(InputError, match="does not exist"):
        Benchmarks(DecontaminationSection(sets=[{"name": "b", "path": tmp_path / "no.csv"}]))
