"""Votes of people and of judges: forms of files, orientation, agreement by hand, a live judge in both orders, real votes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from starling.audit.votes import LABELS, Vote, VotedPair, Votes, ask, compare, read_pairs, read_votes
from starling.config import RankingSection
from starling.endpoint import Request, ScriptedEndpoint
from starling.errors import InputError
from starling.journal import Journal
from starling.judge.rubric import read_prompt
from starling.judge.verdict import Verdict, write_reply
from starling.records import Message, ModelRef, Prompt

DATA = Path(os.environ.get("STARLING_DATA", "../shared/data"))


def of(*votes: tuple[str, str], by: str = "") -> Votes:
    return Votes(tuple(Vote(pair, winner, pair, by=by) for pair, winner in votes), {})  # type: ignore[arg-type]


def mean(one: Any) -> float:
    assert one is not None
    return float(one.mean)


def test_agreement_by_hand() -> None:
    """w: people a a b, judge a. x: a tie, judge b. y: b b, judge tie. z: nobody's vote; v: no verdict."""
    people = of(("w", "a"), ("w", "a"), ("w", "b"), ("x", "a"), ("x", "tie"), ("y", "b"), ("y", "b"), ("v", "a"))
    found = compare(of(("w", "a"), ("x", "b"), ("y", "tie"), ("z", "a")), people, resamples=20)
    assert (found.pairs, found.votes) == (3, 7)
    assert found.left_out == {"pairs_without_judge": 1, "pairs_without_votes": 1}
    assert mean(found.agreement) == pytest.approx(2 / 7)
    assert mean(found.agreement_decided) == pytest.approx(2 / 4)
    assert mean(found.majority) == pytest.approx(1 / 2)  # w and y have a majority
    assert mean(found.people) == pytest.approx((1 + 0 + 2) / 7)  # w: one pair of three agrees, weight 3
    assert mean(found.people_decided) == pytest.approx((1 + 2) / 5)
    assert (mean(found.judge_ties), mean(found.people_ties)) == (pytest.approx(1 / 3), pytest.approx(1 / 7))
    assert (mean(found.judge_a), mean(found.people_a)) == (pytest.approx(1 / 2), pytest.approx(3 / 6))
    # Table of votes (judge, person): a–a 2, a–b 1, b–a 1, b–tie 1, tie–b 2. Chance: (3·3 + 2·1 + 2·3) / 49.
    assert mean(found.kappa) == pytest.approx((2 / 7 - 17 / 49) / (1 - 17 / 49))
    assert [(row["raters"], row["pairs"], row["with_majority"]) for row in found.by_raters] == [(2, 2, 1), (3, 1, 1)]


def test_a_judge_that_says_what_people_say() -> None:
    votes = of(*((str(i), LABELS[i % 3]) for i in range(30)))
    found = compare(votes, votes, resamples=20)
    assert (mean(found.agreement), mean(found.kappa), mean(found.alpha_with_judge)) == (1, 1, 1)
    assert (found.people, found.alpha_people) == (None, None), "one person a pair cannot disagree"


def test_sides_are_read_as_people_saw_them() -> None:
    def vote(winner: str, *sides: str) -> Votes:
        return Votes((Vote("p", winner, "p", sides),), {})  # type: ignore[arg-type]

    assert mean(compare(vote("b", "M", "N"), vote("a", "N", "M"), resamples=5).agreement) == 1
    assert mean(compare(vote("tie", "M", "N"), vote("tie", "N", "M"), resamples=5).agreement) == 1
    other = compare(vote("a", "M", "Q"), vote("a", "M", "N"), resamples=5)
    assert (other.pairs, other.agreement, other.left_out) == (0, None, {"sides_differ": 1})


def test_verdicts_of_a_judge_that_differ_are_a_tie() -> None:
    assert mean(compare(of(("p", "a"), ("p", "b")), of(("p", "tie")), resamples=5).agreement) == 1


@pytest.mark.parametrize("name", ["votes.csv", "votes.json", "votes.jsonl"])
def test_forms_of_files(tmp_path: Path, name: str) -> None:
    rows = [
        {"id": "1", "winner": "left", "worker": "w1", "left": "M", "right": "N", "prompt": "8"},
        {"id": "2", "winner": "model_b", "worker": "", "left": "", "right": "", "prompt": ""},
        {"id": "3", "winner": "tie (bothbad)", "worker": "w2", "left": "", "right": "", "prompt": "a long text " * 20},
        {"id": "4", "winner": "both", "worker": "", "left": "", "right": "", "prompt": ""},
        {"id": "", "winner": "a", "worker": "", "left": "", "right": "", "prompt": ""},
    ]
    path = tmp_path / name
    if name.endswith("csv"):
        lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
        path.write_text("\n".join(lines))
    else:
        path.write_text(json.dumps(rows) if name.endswith(".json") else "\n".join(map(json.dumps, rows)))
    found = read_votes(path)
    assert found.left_out == {"id_missing": 1, "winner_unknown": 1}
    assert [(v.pair, v.winner, v.by, v.sides) for v in found.votes] == [
        ("1", "a", "w1", ("M", "N")), ("2", "b", "", ("", "")), ("3", "tie", "w2", ("", "")),
    ]  # fmt: skip
    assert [v.prompt for v in found.votes][:2] == ["8", "2"]
    assert len(found.votes[2].prompt) == 16


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "object.json").write_text("{}")
    (tmp_path / "broken.json").write_text("[")
    (tmp_path / "latin.csv").write_bytes(b"id,winner\n1,\xff\n")
    (tmp_path / "none.csv").write_text("id,winner\n1,maybe\n")
    (tmp_path / "half.csv.gz").write_bytes(b"\x1f\x8b\x08")
    for name in ("object.json", "broken.json", "latin.csv", "none.csv", "half.csv.gz", "missing.csv", "x.txt"):
        with pytest.raises(InputError):
            read_votes(tmp_path / name)
    (tmp_path / "votes.jsonl").write_text('{"id": 1, "winner": "a"}')
    with pytest.raises(InputError, match="no pair"):
        read_pairs(tmp_path / "votes.jsonl")


def test_texts_of_pairs(tmp_path: Path) -> None:
    rows = [
        {"id": 1, "prompt": 8, "text": "Hi", "result_x": "x", "result_y": "y"},
        {"question_id": "q", "prompt": "\n\nHuman: Hi\n\nAssistant: ", "response_a": "x", "response_b": ""},
        {"id": 3, "prompt": "no answers"},
        {"id": 4, "prompt": " ", "response_a": "x", "response_b": "y"},
    ]
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps(rows))
    found = read_pairs(path)
    assert set(found) == {"1", "q"}
    assert found["q"].prompt.messages == found["1"].prompt.messages == (Message(role="user", content="Hi"),)
    assert (found["q"].a, found["q"].b) == ("x", "")


def test_a_live_judge_in_both_orders(tmp_path: Path) -> None:
    """A judge that prefers "good" and otherwise the answer shown first: one pair in three depends on the order."""

    def answer(request: Request) -> str:
        texts = read_prompt(request.messages).answers
        best = texts.index("good") if "good" in texts else 0
        return write_reply(Verdict((best, 1 - best), True, ((0, 1, best),)))

    prompt = Prompt.make((Message(role="user", content="?"),), ("test",))
    pairs = [VotedPair(str(i), prompt, a, b) for i, (a, b) in enumerate([("good", "x"), ("x", "good"), ("x", "y")])]
    with Journal(tmp_path / "journal.sqlite") as journal:
        judge = ScriptedEndpoint(ModelRef(provider="scripted", name="j"), answer, journal)
        found = ask(pairs, judge, RankingSection(judge="j"), 0, resamples=20)
    assert [v.winner for v in found.votes] == ["a", "b", "tie"]
    assert (found.outcomes, mean(found.consistent), mean(found.first_shown)) == ({"ranked": 6}, pytest.approx(2 / 3), 4 / 6)


@pytest.mark.skipif(not (DATA / "human_votes_llmfao").exists(), reason=f"no public votes in {DATA}; set STARLING_DATA")
def test_real_votes() -> None:
    """Counted apart with the standard library: GPT-4 and the crowd say the same in 3,705 of 8,931 votes, GPT-3.5 in 3,355."""
    folder = DATA / "human_votes_llmfao"
    people = read_votes(folder / "crowd-comparisons.csv")
    for name, same in (("gpt4", 3705), ("gpt3", 3355)):
        found = compare(read_votes(folder / f"{name}-crowd-comparisons.csv"), people, resamples=20)
        assert (found.pairs, found.votes, found.left_out) == (2139, 8931, {})
        assert mean(found.agreement) == pytest.approx(same / 8931)
    assert len(read_pairs(folder / "pairs-crowd.jsonl.gz")) == 2139
    arena = DATA / "reward_benchmarks" / "human_preference.json.gz"
    assert len(read_pairs(arena)) == len(read_votes(arena).votes) == 1000
