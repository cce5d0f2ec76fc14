"""Agreement with people under both setups, worked by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from starling.errors import InputError
from starling.evaluate.mt_bench import agreement, files
from tests.evaluate.mt_bench.making import pair, single, write


def vote(question: int, turn: int, winner: str, judge: str = "expert_1", a: str = "m", b: str = "n") -> dict[str, Any]:
    return {"question_id": question, "model_a": a, "model_b": b, "winner": winner, "judge": judge, "turn": turn}


VOTES = [
    vote(81, 1, "model_a"), vote(81, 1, "model_b", "expert_2", "n", "m"),  # both say m
    vote(81, 1, "tie", "expert_3"),
    vote(81, 2, "tie (bothbad)"),
    vote(101, 1, "model_b"), vote(101, 1, "model_b", "expert_2"),
    vote(141, 1, "model_a"),  # the judge gave no verdict here
    vote(81, 1, "model_a", "author_1"),
    {"question_id": 81, "model_a": "m", "model_b": "n", "winner": "model_a", "judge": ["gpt-4", "pair-v2"], "turn": 1},
    vote(81, 3, "model_a"),
    vote(81, 1, "model_c"),
    vote(81, 1, "model_a", a="m", b="m"),
]  # fmt: skip


def lines(found: list[agreement.Agreement]) -> dict[tuple[int, str], tuple[int, int]]:
    return {(one.turn, one.setup): (one.agree, one.total) for one in found}


def test_a_judge_with_people(tmp_path: Path) -> None:
    people = agreement.read_votes(write(tmp_path / "votes.jsonl", VOTES))
    assert dict(people.left_out) == {"not_an_expert": 2, "not_a_vote": 3}
    rows = [
        pair(81, 1, "model_1", "model_1"),  # m: agrees with two, not with the tie
        pair(81, 2, "model_1", "model_2"),  # tie: agrees with the tie of another sort
        pair(101, 1, "model_1", "model_1"),  # m: agrees with neither
        pair(141, 1, "error", "model_1"),
    ]
    judge = agreement.votes_of_pairs(files.read_judgments([write(tmp_path / "p.jsonl", rows)]).pairs)
    found = agreement.with_people(judge, people.votes, resamples=200, seed=0)
    assert lines(found) == {(0, "S1"): (3, 6), (0, "S2"): (2, 4), (1, "S1"): (2, 5), (1, "S2"): (2, 4), (2, "S1"): (1, 1)}
    assert (found[0].share.mean, found[0].share.clusters) == (0.5, 2)


def test_people_among_themselves(tmp_path: Path) -> None:
    people = agreement.read_votes(write(tmp_path / "votes.jsonl", VOTES))
    # question 81 turn 1: m, m, tie → 1 of 3 (S2: 1 of 1); question 101: 1 of 1
    found = agreement.among_people(people.votes, resamples=200, seed=0)
    assert lines(found) == {(0, "S1"): (2, 4), (0, "S2"): (2, 2), (1, "S1"): (2, 4), (1, "S2"): (2, 2)}


def test_grades_are_votes_by_which_is_higher(tmp_path: Path) -> None:
    rows = [
        single(81, 1, 8), single(81, 1, 6), single(81, 1, 7, "n"),  # mean 7 = 7: tie
        single(101, 1, 9), single(101, 1, 2, "n"),
        single(101, 2, 9), single(101, 2, -1, "n"),
        single(141, 1, 3), single(141, 1, 5, "a"),
    ]  # fmt: skip
    votes = agreement.votes_of_singles(files.read_judgments([write(tmp_path / "s.jsonl", rows)]).singles)
    assert votes == {(1, 81, "m", "n"): ["tie"], (1, 101, "m", "n"): ["a"], (1, 141, "a", "m"): ["a"]}


def test_a_json_array_is_read_too_and_a_file_without_an_expert_stops(tmp_path: Path) -> None:
    path = tmp_path / "votes.json"
    path.write_text(json.dumps(VOTES[:2]))
    assert agreement.read_votes(path).votes == {(1, 81, "m", "n"): ["a", "a"]}
    with pytest.raises(InputError, match="no vote of an expert"):
        agreement.read_votes(write(tmp_path / "none.jsonl", [vote(81, 1, "tie", "author_2"), "x"]))
