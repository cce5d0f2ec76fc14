"""Votes from every kind of file, by hand; the same votes from any order of files and sides; malformed rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from starling.errors import InputError
from starling.evaluate.pairwise.votes import Verdict, Votes, VotesBuilder, read_votes
from starling.records import Comparison, Message, Outcome, prompt_id


def file_of(folder: Path, rows: list[Any], name: str = "votes.jsonl") -> Path:
    path = folder / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def listed(votes: Votes) -> list[tuple[str, str, str, float | None, int, str, int]]:
    """(prompt, a, b, preference, first, outcome, meeting) of each vote."""
    names = [o.value for o in Outcome]
    return [
        (
            votes.prompts[votes.prompt_N[n]], votes.models[votes.a_N[n]], votes.models[votes.b_N[n]],
            None if np.isnan(votes.preference_b_N[n]) else float(votes.preference_b_N[n]), int(votes.first_N[n]),
            names[votes.outcome_N[n]], int(votes.meeting_N[n]),
        )
        for n in range(len(votes.a_N))
    ]  # fmt: skip


def test_fastchat_pairs_are_one_meeting_with_both_orders(tmp_path: Path) -> None:
    by = {"judge": ["gpt-4", "pair-v2"], "turn": 1}
    rows = [
        {"question_id": 81, "model_1": "zeta", "model_2": "alpha", "g1_winner": "model_1", "g2_winner": "tie", **by},
        {"question_id": 82, "model_1": "alpha", "model_2": "zeta", "g1_winner": "error", "g2_winner": "model_2", **by},
    ]
    found = read_votes([file_of(tmp_path, rows)])
    assert listed(found) == [
        ("81", "alpha", "zeta", 0.5, 1, "ranked", 0),  # game 2 showed model_2 = alpha first
        ("81", "alpha", "zeta", 1.0, 2, "ranked", 0),
        ("82", "alpha", "zeta", None, 1, "unparsed", 1),
        ("82", "alpha", "zeta", 1.0, 2, "ranked", 1),
    ]
    assert found.voters == ("gpt-4 turn 1",)


def test_comparisons_come_in_twos_and_peoples_votes_alone(tmp_path: Path) -> None:
    def row(winner: str | None, by: str, outcome: str = "ranked", a: str = "base", b: str = "tuned") -> dict[str, Any]:
        return Comparison.model_validate(
            {"prompt_id": "p", "a": a, "b": b, "winner": winner, "by": by, "outcome": outcome}
        ).model_dump(mode="json")

    rows = [row("b", "judge"), row(None, "judge", "refused"), row("a", "human"), row("tie", "human"), row("a", "judge")]
    assert sorted(listed(read_votes([file_of(tmp_path, rows)])), key=str) == sorted(
        [
            ("p", "base", "tuned", 0.0, 0, "ranked", 0),
            ("p", "base", "tuned", 0.5, 0, "ranked", 1),
            ("p", "base", "tuned", 1.0, 1, "ranked", 2),
            ("p", "base", "tuned", None, 2, "refused", 2),
            ("p", "base", "tuned", 0.0, 1, "ranked", 3),  # the other order never came
        ],
        key=str,
    )


def test_the_second_of_two_comparisons_showed_the_other_side_whatever_it_calls_its_sides(tmp_path: Path) -> None:
    def rows(second: dict[str, str]) -> list[Any]:
        return [
            {"prompt_id": "p", "a": "y", "b": "x", "winner": "a", "by": "judge", "outcome": "ranked"},
            second | {"prompt_id": "p"},
        ]

    same = rows({"a": "y", "b": "x", "winner": "b", "by": "judge", "outcome": "ranked"})
    turned = rows({"a": "x", "b": "y", "winner": "a", "by": "judge", "outcome": "ranked"})
    expected = [("p", "x", "y", 0.0, 1, "ranked", 0), ("p", "x", "y", 1.0, 2, "ranked", 0)]
    assert listed(read_votes([file_of(tmp_path, same)])) == expected
    assert listed(read_votes([file_of(tmp_path, turned)])) == expected


def test_battles_alpaca_arena_hard_and_ours(tmp_path: Path) -> None:
    say = prompt_id((Message(role="user", content="Say hi"),))
    rows = [
        {"model_a": "x", "model_b": "y", "winner": "tie (bothbad)", "judge": "u1", "question_id": "q"},
        {"model_x": 7, "model_y": 8, "left": "y", "right": "x", "winner": "left", "prompt": 3, "worker": 5},
        {"instruction": "Say hi", "generator_1": "x", "generator_2": "y", "preference": 1.25, "annotator": "g"},
        {"instruction": "Say hi", "generator_1": "x", "generator_2": "y", "preference": None, "annotator": "g"},
        {
            "uid": "u",
            "category": "c",
            "judge": "j",
            "model": "y",
            "baseline": "x",
            "games": [{"score": "B>>A"}, {"score": "A=B"}],
        },
        {"prompt_id": "o", "a": "y", "b": "x", "preference_b": 0.25, "outcome": "ranked", "first": "a", "repeat": 0, "by": "j"},
        {"prompt_id": "o", "a": "y", "b": "x", "preference_b": 0.75, "outcome": "ranked", "first": "b", "repeat": 0, "by": "j"},
    ]
    assert [row[:5] for row in listed(read_votes([file_of(tmp_path, rows)]))] == sorted(
        [
            ("3", "x", "y", 1.0, 2), (say, "x", "y", 0.25, 0), (say, "x", "y", None, 0), ("o", "x", "y", 0.25, 1),
            ("o", "x", "y", 0.75, 2), ("q", "x", "y", 0.5, 1), ("u", "x", "y", 0.5, 2), ("u", "x", "y", 1.0, 1),
        ],
        key=lambda row: (row[0], row[4], row[3] is None, row[3]),
    )  # fmt: skip


def test_neither_order_of_files_nor_of_sides_matters(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names, rows = ["m3", "m1", "m2"], []
    for p in range(30):
        for _ in range(3):
            a, b = rng.permutation(names)[:2]
            rows.append(
                {"question_id": f"q{p}", "model_a": a, "model_b": b, "winner": str(rng.choice(["model_a", "model_b", "tie"]))}
            )
    flip = {"model_a": "model_b", "model_b": "model_a", "tie": "tie"}
    turned = [{**row, "model_a": row["model_b"], "model_b": row["model_a"], "winner": flip[row["winner"]]} for row in rows]
    one = read_votes([file_of(tmp_path, rows[:40], "1.jsonl"), file_of(tmp_path, rows[40:], "2.jsonl")])
    two = read_votes([file_of(tmp_path, turned[40:][::-1], "3.jsonl"), file_of(tmp_path, turned[:40], "4.jsonl")])
    assert one.models == two.models == ("m1", "m2", "m3")
    for column in ("prompt_N", "a_N", "b_N", "repeat_N"):
        assert (getattr(one, column) == getattr(two, column)).all()
    # who stood on the left is part of a battle, and turning the sides of a row turns that, too
    assert sorted(row[:4] for row in listed(one)) == sorted(row[:4] for row in listed(two))


def test_what_is_no_vote_is_counted(tmp_path: Path) -> None:
    rows = [
        "{broken", "[1]", {"model_a": "x", "model_b": "x", "winner": "tie"}, {"model_a": "x", "winner": "tie"},
        {"model_a": "x", "model_b": "y", "winner": "x"},
        {"instruction": "i", "generator_1": "x", "generator_2": "y", "preference": 3},
        {"prompt_id": "p", "a": "x", "b": "y", "winner": None, "by": "judge", "outcome": "ranked"},
        {"prompt_id": "p", "a": "x", "b": "y", "preference_b": 2, "outcome": "ranked", "first": "a"},
        {"prompt_id": "p", "a": "x", "b": "y", "preference_b": None, "outcome": "ranked", "first": "a"},
        {"question_id": 1, "model_1": "x", "model_2": "y", "g1_winner": "x", "g2_winner": "tie"},
        {"uid": "u", "model": "x", "games": []},
        {"model_a": "x", "model_b": "y", "winner": "tie"},
    ]  # fmt: skip
    found = read_votes([file_of(tmp_path, rows)])
    assert len(found.a_N) == 1
    assert found.left_out == {
        "games_missing": 1, "model_missing": 1, "not_an_object": 1, "not_json": 1, "preference_unknown": 1, "same_model": 1,
        "vote_unknown": 2, "winner_unknown": 3,
    }  # fmt: skip
    with pytest.raises(InputError, match=r"no vote .*1 winner_unknown"):
        read_votes([file_of(tmp_path, [{"model_a": "x", "model_b": "y", "winner": ""}])])


def test_meetings_stay_together_when_votes_are_sorted() -> None:
    builder = VotesBuilder()
    builder.add("p", "a", "b", [Verdict(1.0, "b"), Verdict(0.0, "a")])
    builder.add("p", "a", "b", [Verdict(0.5, "a"), Verdict(None, "b", "refused")])
    found = listed(builder.build())
    meetings = [{row[3] for row in found if row[6] == m} for m in (0, 1)]
    assert meetings in ([{1.0, 0.0}, {0.5, None}], [{0.5, None}, {1.0, 0.0}])
