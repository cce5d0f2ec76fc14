"""FastChat's files: what is read, what is a named problem, and that what is written is read again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from starling.errors import InputError
from starling.evaluate.mt_bench import files
from starling.records import Message, Outcome
from tests.evaluate.mt_bench import making
from tests.evaluate.mt_bench.making import pair, single, write


def without(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return {k: v for k, v in row.items() if k not in names}


SINGLES: list[tuple[Any, str]] = [
    (single(81, 1, "8"), "score_not_a_number"),
    (single(81, 1, None), "score_not_a_number"),
    (single(81, 1, True), "score_not_a_number"),
    (single(81, 1, float("nan")), "score_not_a_number"),
    (without(single(81, 1, 8), "turn"), "missing_field"),
    (without(single(81, 1, 8), "judge"), "missing_field"),
    (without(single(81, 1, 8), "model"), "missing_field"),
    (single(81, 3, 8), "wrong_turn"),
    (single(81, 0, 8), "wrong_turn"),
    (single(81, "1", 8), "wrong_turn"),
    (single("81", 1, 8), "wrong_type"),
    (single(81, 1, 8, judge=["gpt-4"]), "wrong_type"),
    (single(999, 1, 8), "unknown_question"),
    (single(301, 2, 8), "wrong_turn"),  # a question of one turn
    ('{"question_id": 81', "not_json"),
    ("[1]", "not_an_object"),
    (pair(81, 1, "A", "B"), "wrong_winner"),
    (pair(81, 1, "tie", "tie", ("m", "m")), "against_itself"),
    (without(pair(81, 1, "tie", "tie"), "turn"), "missing_field"),
]


@pytest.mark.parametrize(("row", "problem"), SINGLES, ids=[f"{i}-{p}" for i, (_, p) in enumerate(SINGLES)])
def test_a_broken_row_is_a_named_problem_with_a_place(tmp_path: Path, row: Any, problem: str) -> None:
    asked = files.read_questions(write(tmp_path / "question.jsonl", [*making.questions(), making.question(301, "writing", 1)]))
    path = write(tmp_path / "j.jsonl", [single(81, 1, 7), row])
    found = files.read_judgments([path], asked)
    assert (len(found.singles), len(found.pairs), dict(found.problems)) == (1, 0, {problem: 1})
    assert found.places == {problem: f"{path}, line 2"}
    named = {row[k] for k in ("model", "model_1", "model_2") if k in row} if isinstance(row, dict) else set()
    assert {m: dict(c) for m, c in found.by_model.items()} == {m: {problem: 1} for m in named}


def test_without_questions_any_id_and_both_turns_pass(tmp_path: Path) -> None:
    found = files.read_judgments([write(tmp_path / "j.jsonl.gz", [single(999, 2, 8), pair(999, 1, "tie", "error")])])
    assert (found.singles[0].score, found.singles[0].judge, found.singles[0].prompt) == (8, "gpt-4", "single-v1")
    assert (found.pairs[0].outcome_1, found.pairs[0].outcome_2) == (Outcome.ranked, Outcome.unparsed)


def test_pairs_made_of_single_grades_have_no_turn(tmp_path: Path) -> None:
    row = without(pair(81, 1, "tie", "tie", m1_score=7, m2_score=7), "turn")
    assert [one.turn for one in files.read_judgments([write(tmp_path / "j.jsonl", [row])]).pairs] == [1]


def test_minus_one_is_no_grade_and_an_error_of_the_server_another_outcome(tmp_path: Path) -> None:
    rows = [single(81, 1, -1, judgment="I cannot say."), single(81, 2, -1, judgment="$ERROR$"), single(101, 1, 0)]
    found = files.read_judgments([write(tmp_path / "j.jsonl", rows)]).singles
    assert [one.outcome for one in found] == [Outcome.unparsed, Outcome.provider_error, Outcome.ranked]


def test_a_row_that_stands_there_twice_is_a_copy_and_a_second_judgment_is_not(tmp_path: Path) -> None:
    row = single(81, 1, 8)
    path = write(tmp_path / "j.jsonl", [row, row, {**row, "tstamp": 99.0}])
    assert [one.copy for one in files.read_judgments([path]).singles] == [False, True, False]
    assert [one.copy for one in files.read_judgments([path, path]).singles] == [False, True, False, True, True, True]


def prompt_of(*answers: str) -> str:
    return "".join(f"### User:\nq\n\n### Assistant A:\n{text}\n\n" for text in answers)


def test_judgments_of_another_answer_are_marked(tmp_path: Path) -> None:
    answers = files.read_answers(write(tmp_path / "m.jsonl.gz", [making.answer(81, "whatever", "Yes.", "No.")]))
    rows = [
        single(81, 1, 8, user_prompt="[The Start of Assistant's Answer]\nYes.\n"),
        single(81, 1, 8, user_prompt="[The Start of Assistant's Answer]\nIs it so? Yes.\n"),  # part of another one
        single(81, 2, 8, user_prompt=prompt_of("Yes.", "No.")),
        single(81, 2, 8, user_prompt=prompt_of("Perhaps.", "No.")),  # the same second answer after another first one
        single(81, 1, 8, user_prompt=""),
        single(81, 1, 8, user_prompt="x", model="not in the files"),
        pair(81, 1, "tie", "tie", g1_user_prompt="[The Start of Assistant A's Answer]\nYes.\n"),
        pair(81, 1, "tie", "tie", g1_user_prompt="[The Start of Assistant A's Answer]\nNo.\n"),
    ]
    found = files.read_judgments([write(tmp_path / "j.jsonl", rows)], None, answers)
    assert [one.other for one in found.singles] == [False, True, False, True, False, False]
    assert [one.other for one in found.pairs] == [False, True]


def test_a_second_attempt_of_ours_is_the_same_text_under_another_marker(tmp_path: Path) -> None:
    from starling.judge.rubric import build_prompt, rubric_as_given

    ask = (Message(role="user", content="Hello?"),)
    rubric = rubric_as_given("pointwise", ties=False, reference=False)
    prompts = [
        build_prompt(rubric, ask, (text,), (), mark)[-1].content
        for mark, text in (("aa11", "Hi."), ("bb22", "Hi."), ("aa11", "No."))
    ]
    rows = [single(81, 1, 8, user_prompt=prompt) for prompt in prompts]
    shown = [one.shown for one in files.read_judgments([write(tmp_path / "j.jsonl", rows)]).singles]
    assert shown[0] == shown[1] != shown[2]


# ── questions, answers, prompts ──────────────────────────────────────────────────────────────────────────────────────


def test_questions_keep_their_order_turns_and_own_temperature(tmp_path: Path) -> None:
    rows = [making.question(141), making.question(81, required_temperature=0.3), making.question(301, "writing", 1)]
    found = files.read_questions(write(tmp_path / "q.jsonl", rows))
    assert [(q.id, q.category, len(q.turns), q.temperature) for q in found.values()] == [
        (141, "stem", 2, None), (81, "writing", 2, 0.3), (301, "writing", 1, None),
    ]  # fmt: skip
    assert [files.question_row(q) for q in found.values()] == rows


@pytest.mark.parametrize(
    "row",
    [
        {"question_id": "81", "category": "writing", "turns": ["a"]},
        {"question_id": 81, "turns": ["a"]},
        {"question_id": 81, "category": "writing", "turns": []},
        {"question_id": 81, "category": "writing", "turns": "a"},
        {"question_id": 81, "category": "writing", "turns": ["a"], "required_temperature": "hot"},
        "not json",
    ],
)
def test_a_broken_question_stops(tmp_path: Path, row: Any) -> None:
    with pytest.raises(InputError, match="line 2"):
        files.read_questions(write(tmp_path / "q.jsonl", [making.question(141), row]))


def test_a_question_twice_and_no_question_stop(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="81 stands twice"):
        files.read_questions(write(tmp_path / "q.jsonl", [making.question(81), making.question(81)]))
    with pytest.raises(InputError, match="no question"):
        files.read_questions(write(tmp_path / "q.jsonl", []))


def test_answers_the_last_row_and_the_first_choice_count_and_errors_are_none(tmp_path: Path) -> None:
    rows = [making.answer(81, "x", "old", "old"), making.answer(81, "x", "new", "$ERROR$")]
    rows[1]["choices"].append({"index": 1, "turns": ["second choice", "y"]})
    write(tmp_path / "a" / "m.jsonl", rows)
    write(tmp_path / "a" / "n.jsonl.gz", [making.answer(81, "x", "n", "n")])
    found = files.read_answers(tmp_path / "a")
    assert found["m"] == {81: files.Answer(question=81, model="m", turns=("new", None))}
    assert set(found) == {"m", "n"}
    again = write(tmp_path / "again.jsonl", [files.answer_row(found["m"][81], 7)])
    assert files.read_answers(again)["again"][81].turns == ("new", None)
    assert json.loads(again.read_text())["tstamp"] == 7.0


@pytest.mark.parametrize(
    "row", [{"question_id": 81, "model_id": "m", "choices": []}, {"question_id": 81, "choices": [{"turns": ["a", 2]}]}, {}]
)
def test_a_broken_answer_stops(tmp_path: Path, row: Any) -> None:
    with pytest.raises(InputError, match="line 1"):
        files.read_answers(write(tmp_path / "m.jsonl", [row]))


def test_a_broken_prompt_stops(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no prompt of a judge"):
        files.read_judge_prompts(write(tmp_path / "p.jsonl", [{"name": "single-v1"}]))


@pytest.mark.parametrize(
    ("model", "name"), [("gpt-4", "gpt-4"), ("org/model:7b", "org_model_7b"), ("../../etc", "_.._etc"), ("..", "_"), ("", "_")]
)
def test_a_name_is_no_path(model: str, name: str) -> None:
    assert files.file_name(model) == name


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    grade = files.Single(question=81, turn=2, model="m", judge="j", prompt="p", score=7, outcome=Outcome.ranked)
    row = files.single_row(grade, user_prompt="über", judgment="[[7]]", number=3)
    assert list(row) == ["question_id", "model", "judge", "user_prompt", "judgment", "score", "turn", "tstamp"]
    duel = files.Pair(
        question=81, turn=1, model_1="m", model_2="n", judge="j", prompt="p", g1="model_1", g2="error", outcome_1=Outcome.ranked,
        outcome_2=Outcome.unparsed,
    )  # fmt: skip
    both = files.pair_row(duel, prompts=("p1", "p2"), judgments=("j1", "j2"), number=4)
    assert list(both) == [
        "question_id", "model_1", "model_2", "g1_winner", "g2_winner", "judge", "g1_user_prompt", "g1_judgment", "g2_user_prompt",
        "g2_judgment", "turn", "tstamp",
    ]  # fmt: skip
    files.write_rows(tmp_path / "new" / "j.jsonl", [row, both])
    found = files.read_judgments([tmp_path / "new" / "j.jsonl"])
    assert (found.singles[0].score, found.singles[0].turn, found.pairs) == (7, 2, [duel])
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["j.jsonl"]
