"""FastChat's rules as they are, faults included."""

from __future__ import annotations

import pytest

from starling.errors import InputError
from starling.evaluate.mt_bench import files, official
from tests.evaluate.mt_bench import making


@pytest.mark.parametrize(
    ("judgment", "grade"),
    [
        ("Rating: [[7]]", 7),
        ("Rating: [[7.5]]", 7.5),
        ("[[7.]]", 7.0),
        ("first [[3]], then [[9]]", 3),  # the first, not the last
        ("a list [1], Rating: [[9]]", 9),  # double brackets go before single ones, wherever they stand
        ("see [2] and [8]", 2),
        ("Rating: [[85]]", 85),  # no check of the range
        ("Rating: [[-3]]", -1),
        ("Rating: [[8/10]]", -1),
        ("Rating: [[ 8 ]]", -1),
        ("Rating: 8", -1),
        ("$ERROR$", -1),
        ("", -1),
    ],
)
def test_grades(judgment: str, grade: float) -> None:
    assert official.grade_of(judgment) == grade


@pytest.mark.parametrize(
    ("judgment", "winner"),
    [
        ("[[A]]", "A"),
        ("[[B]]", "B"),
        ("[[C]]", "tie"),
        ("[[B]] … no, [[A]]", "A"),
        ("[[C]] or [[B]]", "B"),
        ("[[a]]", "error"),
        ("", "error"),
    ],
)
def test_verdicts(judgment: str, winner: str) -> None:
    assert official.verdict_of(judgment) == winner


def test_final_winner_needs_both_games() -> None:
    words = ("model_1", "model_2", "tie")
    agreed = {(a, b): official.final_winner(a, b) for a in words for b in words}
    assert {k for k, v in agreed.items() if v != "tie"} == {("model_1", "model_1"), ("model_2", "model_2")}


@pytest.mark.parametrize(
    ("one", "two", "winner"), [(7, 7, "tie"), (7.1, 7, "tie"), (7.2, 7, "model_1"), (6.8, 7, "model_2"), (1.1, 1.0, "model_1")]
)
def test_winners_by_grades(one: float, two: float, winner: str) -> None:
    """1.1 − 1.0 is a little more than 0.1 in binary: FastChat calls it a win, and so do we."""
    assert official.winner_by_grades(one, two) == winner


PROMPT = {
    "name": "single-v1",
    "system_prompt": "sys",
    "prompt_template": "Q {question} A {answer}",
    "output_format": "[[rating]]",
}


def test_templates_are_filled_and_nothing_in_a_text_is() -> None:
    system, user = official.fill(PROMPT, {"question": "{answer} {0} {{", "answer": "a}"}, "here")
    assert (system.role, system.content, user.role) == ("system", "sys", "user")
    assert user.content == "Q {answer} {0} {{ A a}"


@pytest.mark.parametrize(
    "template", ["{question.__class__}", "{question!r}", "{question:>9}", "{other}", "{", "{answer_1}", "{0}"]
)
def test_templates_with_other_fields_are_refused(template: str) -> None:
    with pytest.raises(InputError, match="single-v1"):
        official.fill(PROMPT | {"prompt_template": template}, {"question": "q", "answer": "a"}, "here")


def test_fields_of_a_template_are_those_of_fastchat() -> None:
    said = {"": ["a1", "a2"]}
    assert official.values_of(["q1", "q2"], said, [], 1) == {"question": "q1", "answer": "a1"}
    assert official.values_of(["q1", "q2"], {"_a": ["a1"], "_b": ["b1"]}, ["r1", "r2"], 1) == {
        "question": "q1", "answer_a": "a1", "answer_b": "b1", "ref_answer_1": "r1",
    }  # fmt: skip
    assert official.values_of(["q1", "q2"], said, ["r1", "r2"], 2) == {
        "question_1": "q1", "question_2": "q2", "answer_1": "a1", "answer_2": "a2", "ref_answer_1": "r1", "ref_answer_2": "r2",
    }  # fmt: skip


def test_show_single_counts_rows_and_drops_minus_one(tmp_path) -> None:  # type: ignore[no-untyped-def]
    rows = [
        making.single(81, 1, 10),
        making.single(81, 1, 4),
        making.single(81, 2, -1),
        making.single(101, 2, 3),
        making.single(81, 1, -1, "n"),
        making.single(81, 1, 0, "k"),  # a grade like any other here
    ]
    shown = official.show_single(files.read_judgments([making.write(tmp_path / "s.jsonl", rows)]).singles)
    assert shown["m"] == official.Shown(average=17 / 3, turns={1: 7.0, 2: 3.0}, rows=3)
    assert shown["k"] == official.Shown(average=0.0, turns={1: 0.0}, rows=1)
    assert shown["n"] == official.Shown(average=None, turns={}, rows=0)


def test_show_pairs(tmp_path) -> None:  # type: ignore[no-untyped-def]
    rows = [
        making.pair(81, 1, "model_1", "model_1"),  # m
        making.pair(81, 2, "model_2", "model_2"),  # n
        making.pair(101, 1, "model_1", "model_2"),  # tie
        making.pair(101, 2, "tie", "model_1"),  # tie
        making.pair(141, 1, "error", "model_1"),  # dropped
        making.pair(141, 2, "model_1", "model_1", ("n", "k")),  # n
    ]
    read = files.read_judgments([making.write(tmp_path / "p.jsonl", rows)]).pairs
    found = official.show_pairs(read)
    assert {name: (t.win, t.loss, t.tie) for name, t in found.items()} == {"m": (1, 1, 2), "n": (2, 1, 2), "k": (0, 1, 0)}
    assert (found["n"].win_rate, found["n"].loss_rate, found["n"].win_rate_adjusted) == (0.4, 0.2, 0.6)
    against = official.show_pairs(read, baseline="m")
    assert {name: (t.win, t.loss, t.tie) for name, t in against.items()} == {"n": (1, 1, 2)}


def test_prompt_names_are_those_of_the_published_file() -> None:
    names = {official.prompt_name(k, reference=r, turn=t) for k in ("single", "pair") for r in (False, True) for t in (1, 2)}
    assert names == {
        "single-v1", "single-math-v1", "single-v1-multi-turn", "single-math-v1-multi-turn", "pair-v2", "pair-math-v1",
        "pair-v2-multi-turn", "pair-math-v1-multi-turn",
    }  # fmt: skip
