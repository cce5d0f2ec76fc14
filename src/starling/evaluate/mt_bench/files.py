"""FastChat's MT-Bench files, read and written: questions, answers, references, judge prompts, judgments.

    question.jsonl                        question_id, category, turns, required_temperature?
    model_answer/MODEL.jsonl              question_id, answer_id, model_id, choices [{index, turns}], tstamp
    reference_answer/JUDGE.jsonl          the same fields
    model_judgment/JUDGE_single.jsonl     question_id, model, judge [model, prompt], user_prompt, judgment, score, turn, tstamp
    model_judgment/JUDGE_pair.jsonl       question_id, model_1, model_2, g1_winner, g2_winner, judge, g1_user_prompt,
                                          g1_judgment, g2_user_prompt, g2_judgment, turn, tstamp
    judge_prompts.jsonl                   name, type, system_prompt, prompt_template, …

Source: FastChat's llm_judge (arXiv 2306.05685), commit 0e6d3e4 and the package fschat 0.2.36. Departures: a row of judgments that
cannot be used is a named problem with a count and a place (FastChat stops, or averages whatever pandas makes of it); every file
may end in .gz; texts of judgments are not kept in memory, a hash of what the judge saw is, which tells a repeated judgment from a
judgment of another answer.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from starling.errors import InputError
from starling.records import Outcome, content_hash
from starling.rows import files_of, read_rows

API_ERROR = "$ERROR$"
"""What FastChat writes in place of an answer or a judgment when the server gave none."""
NO_GRADE = -1
"""FastChat's score of a judgment in which it finds no grade."""
WINNERS = ("model_1", "model_2", "tie", "error")
_BEFORE_ANSWERS = (
    "Answer]\n", "### Assistant A:\n", "### Assistant B:\n",
    " answer A begins\n", " answer B begins\n", " turn of the assistant\n", " of the user\n",
)  # fmt: skip
"""After what an answer begins, in FastChat's prompts and in ours; anywhere else a short answer could be a part of another."""
_MARKER = re.compile(r"The marker of this call is (\w+)\n")
_CURE = "write it as FastChat's llm_judge does; docs/mt-bench.md lists the fields"


@dataclass(frozen=True, kw_only=True)
class Question:
    """One task: what the user says first, and what then."""

    id: int
    category: str
    turns: tuple[str, ...]
    temperature: float | None = None
    """Its own temperature (`required_temperature`), whatever its category's is."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One model's answers to one question, turn by turn; None where it has none."""

    question: int
    model: str
    turns: tuple[str | None, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Single:
    """One graded answer."""

    question: int
    turn: int
    model: str
    judge: str
    prompt: str
    """Name of the judge's prompt, e.g. "single-v1"."""
    score: float
    """As it stands in the file; −1 is FastChat's "no grade"."""
    outcome: Outcome
    """`ranked` when the judgment has a grade."""
    shown: str = ""
    """Hash of what the judge saw; empty when the file does not say."""
    copy: bool = False
    """The very same row stood in the files before."""
    other: bool = False
    """The answer judged is not the one in the answer file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Two answers compared in both orders: game 1 shows model_1's first, game 2 model_2's."""

    question: int
    turn: int
    model_1: str
    model_2: str
    judge: str
    prompt: str
    g1: str
    """Who won game 1: one of WINNERS."""
    g2: str
    outcome_1: Outcome
    outcome_2: Outcome
    copy: bool = False
    other: bool = False


@dataclass(kw_only=True)
class Judgments:
    """What judgment files hold; rows that cannot be used by problem."""

    singles: list[Single] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    problems: Counter[str] = field(default_factory=Counter)
    """Problem → rows, e.g. {"wrong_turn": 3}."""
    by_model: dict[str, Counter[str]] = field(default_factory=dict)
    """The same for the rows whose model can be read."""
    places: dict[str, str] = field(default_factory=dict)
    """Problem → the first place where it was seen, for messages."""


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def read_questions(path: Path) -> dict[int, Question]:
    """The questions by id, in the order of the file.

    Raises:
        InputError: the file cannot be read, a row is no question, or an id stands twice; with the line.
    """
    found: dict[int, Question] = {}
    for number, row in _strict_rows(path):
        turns, own = row.get("turns"), row.get("required_temperature")
        if not _whole(row.get("question_id")) or not isinstance(row.get("category"), str) or not _texts(turns) or not turns:
            raise InputError(
                "A row is no question: question_id, category or turns is missing or wrong", where=_at(path, number), cure=_CURE
            )
        if own is not None and (not _number(own) or own < 0):
            raise InputError(f"required_temperature is {own!r}", where=_at(path, number), cure="give a number of at least 0")
        if row["question_id"] in found:
            raise InputError(
                f"The question {row['question_id']} stands twice", where=_at(path, number), cure="keep one of the two"
            )
        found[row["question_id"]] = Question(id=row["question_id"], category=row["category"], turns=tuple(turns), temperature=own)
    if not found:
        raise InputError("The file holds no question", where=str(path), cure=_CURE)
    return found


def read_answers(path: Path | Sequence[Path]) -> dict[str, dict[int, Answer]]:
    """Answers by model and question, from files or a folder of them. As with FastChat the model is what the file is called, the
    first of several choices is taken, and of several rows for one question the last.

    Raises:
        InputError: no such file, or a row is no answer; with the line.
    """
    found: dict[str, dict[int, Answer]] = {}
    for file in files_of(path):
        model = file.name.removesuffix(".gz").removesuffix(".jsonl")
        for number, row in _strict_rows(file):
            try:
                turns = row["choices"][0]["turns"]
            except (KeyError, IndexError, TypeError):
                turns = None
            if not _whole(row.get("question_id")) or not _texts(turns) or not turns:
                raise InputError(
                    "A row is no answer: question_id or choices[0].turns is missing or wrong", where=_at(file, number), cure=_CURE
                )
            texts = tuple(None if text == API_ERROR else text for text in turns)
            found.setdefault(model, {})[row["question_id"]] = Answer(question=row["question_id"], model=model, turns=texts)
    return found


def read_judge_prompts(path: Path) -> dict[str, dict[str, str]]:
    """The judge's prompts by name.

    Raises:
        InputError: a row is no prompt; with the line.
    """
    found: dict[str, dict[str, str]] = {}
    for number, row in _strict_rows(path):
        if not all(isinstance(row.get(k), str) for k in ("name", "type", "system_prompt", "prompt_template", "output_format")):
            raise InputError("A row is no prompt of a judge", where=_at(path, number), cure=_CURE)
        found[row["name"]] = row
    return found


def read_judgments(
    paths: Sequence[Path],
    questions: Mapping[int, Question] | None = None,
    answers: Mapping[str, Mapping[int, Answer]] | None = None,
) -> Judgments:
    """Every judgment of the files, single and pair, in their order.

    Args:
        paths: judgment files.
        questions: when given, a row about another question, or about a turn that its question does not have, is a problem.
        answers: when given, a row that judges another text than the model's answer is marked `other`.

    Raises:
        InputError: a file cannot be read at all.
    """
    found, seen = Judgments(), set[str]()
    for path in paths:
        for row in read_rows(path):
            value, problem = row.value, row.problem
            if value is not None:
                problem = _problem(value, questions)
            if value is None or problem:
                found.problems[problem] += 1
                found.places.setdefault(problem, _at(path, row.number))
                for name in _models(value or {}):
                    found.by_model.setdefault(name, Counter())[problem] += 1
                continue
            key = content_hash(value, 32)
            if "model" in value:
                found.singles.append(_single(value, copy=key in seen, answers=answers or {}))
            else:
                found.pairs.append(_pair(value, copy=key in seen, answers=answers or {}))
            seen.add(key)
    return found


def _problem(row: Mapping[str, Any], questions: Mapping[int, Question] | None) -> str:
    """Why a row is no judgment; "" when it is one. docs/mt-bench.md explains every word."""
    single = "model" in row
    names = ("model",) if single else ("model_1", "model_2")
    fields = ("question_id", *names, "judge", *(("score", "turn") if single else ("g1_winner", "g2_winner")))
    if any(name not in row for name in fields) or not (single or "turn" in row or "m1_score" in row):
        return "missing_field"
    judge = row["judge"]
    if not _whole(row["question_id"]) or not all(isinstance(row[name], str) for name in names):
        return "wrong_type"
    if not isinstance(judge, str) and not (_texts(judge) and len(judge) == 2):
        return "wrong_type"
    if single and not _number(row["score"]):
        return "score_not_a_number"
    if not single and not (row["g1_winner"] in WINNERS and row["g2_winner"] in WINNERS):
        return "wrong_winner"
    if not single and row["model_1"] == row["model_2"]:
        return "against_itself"
    question = questions.get(row["question_id"]) if questions is not None else None
    if questions is not None and question is None:
        return "unknown_question"
    turn = row.get("turn", 1)
    most = len(question.turns) if question is not None else 2
    return "" if _whole(turn) and 1 <= turn <= most else "wrong_turn"


def _models(row: Mapping[str, Any]) -> set[str]:
    return {row[k] for k in ("model", "model_1", "model_2") if isinstance(row.get(k), str)}


def _judge(row: Mapping[str, Any]) -> tuple[str, str]:
    said = row["judge"]
    return (said, "") if isinstance(said, str) else (said[0], said[1])


def _single(row: Mapping[str, Any], *, copy: bool, answers: Mapping[str, Mapping[int, Answer]]) -> Single:
    judge, prompt = _judge(row)
    shown = _unmarked(row.get("user_prompt") or "")
    outcome = Outcome.ranked if row["score"] != NO_GRADE else _failure(row.get("judgment"))
    return Single(
        question=row["question_id"], turn=row["turn"], model=row["model"], judge=judge, prompt=prompt, score=row["score"],
        outcome=outcome, shown=content_hash(shown, 16) if shown else "", copy=copy,
        other=_other(shown, row["model"], row["question_id"], row["turn"], answers),
    )  # fmt: skip


def _pair(row: Mapping[str, Any], *, copy: bool, answers: Mapping[str, Mapping[int, Answer]]) -> Pair:
    judge, prompt = _judge(row)
    shown, turn = row.get("g1_user_prompt") or "", row.get("turn", 1)
    failed = [_failure(row.get(f"{g}_judgment")) if row[f"{g}_winner"] == "error" else Outcome.ranked for g in ("g1", "g2")]
    return Pair(
        question=row["question_id"], turn=turn, model_1=row["model_1"], model_2=row["model_2"], judge=judge, prompt=prompt,
        g1=row["g1_winner"], g2=row["g2_winner"], outcome_1=failed[0], outcome_2=failed[1], copy=copy,
        other=any(_other(shown, row[k], row["question_id"], turn, answers) for k in ("model_1", "model_2")),
    )  # fmt: skip


def _unmarked(shown: str) -> str:
    """A prompt without the marker that `starling.judge.rubric` makes for each call, so that a second attempt is no other text."""
    found = _MARKER.match(shown)
    return shown.replace(found[1], "") if found else shown


def _failure(judgment: object) -> Outcome:
    return Outcome.provider_error if judgment == API_ERROR else Outcome.unparsed


def _other(shown: str, model: str, question: int, turn: int, answers: Mapping[str, Mapping[int, Answer]]) -> bool:
    """Whether a prompt shows another text than the answer file has; what cannot be told passes for the same."""
    answer = answers.get(file_name(model), {}).get(question)
    if not shown or answer is None or turn > len(answer.turns):
        return False
    before = [mark for mark in _BEFORE_ANSWERS if mark in shown] or [""]
    return any(text is not None and all(mark + text not in shown for mark in before) for text in answer.turns[:turn])


def _strict_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for row in read_rows(path):
        if row.value is None:
            raise InputError(f"A row cannot be read: {row.problem}", where=_at(path, row.number), cure=_CURE)
        yield row.number, row.value


def _at(path: Path, number: int) -> str:
    return f"{path}, line {number}"


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


# ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def file_name(model: str) -> str:
    """A model's name as a file's, without what a path could be made of. FastChat takes a model's name from its answer file."""
    return "".join("_" if c in '/\\:*?"<>|' or ord(c) < 32 else c for c in model).lstrip(".") or "_"


class RowWriter:
    """Writes one JSON object a line; the file is there, whole, when the block ends without an error. Folders are made.

    `tstamp` counts the rows of a file: when a model was asked stands in the journal, the same run gives the same bytes, and equal
    judgments of two repeats differ in it, so that they are not taken for one row copied.
    """

    def __init__(self, path: Path) -> None:
        self.rows = 0
        """Written so far."""
        self._path, self._draft = path, path.with_name(path.name + ".tmp")

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._out = self._draft.open("w", encoding="utf-8")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._out.close()
        if kind is None:
            os.replace(self._draft, self._path)
        else:
            self._draft.unlink(missing_ok=True)

    def write(self, row: Mapping[str, Any]) -> None:
        """Add a row."""
        self._out.write(json.dumps(row) + "\n")
        self.rows += 1


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """A whole file, see `RowWriter`."""
    with RowWriter(path) as file:
        for row in rows:
            file.write(row)


def question_row(question: Question) -> dict[str, Any]:
    """A row of question.jsonl."""
    row: dict[str, Any] = {"question_id": question.id, "category": question.category, "turns": list(question.turns)}
    return row if question.temperature is None else {**row, "required_temperature": question.temperature}


def answer_row(answer: Answer, number: int) -> dict[str, Any]:
    """A row of model_answer or reference_answer; a failed turn is FastChat's $ERROR$. `number` is the row's, see `RowWriter`."""
    turns = [API_ERROR if text is None else text for text in answer.turns]
    return {
        "question_id": answer.question, "answer_id": content_hash([answer.model, answer.question, turns], 22),
        "model_id": answer.model, "choices": [{"index": 0, "turns": turns}], "tstamp": float(number),
    }  # fmt: skip


def single_row(grade: Single, *, user_prompt: str, judgment: str, number: int) -> dict[str, Any]:
    """A row of a single-grading file."""
    return {
        "question_id": grade.question, "model": grade.model, "judge": [grade.judge, grade.prompt], "user_prompt": user_prompt,
        "judgment": judgment, "score": grade.score, "turn": grade.turn, "tstamp": float(number),
    }  # fmt: skip


def pair_row(pair: Pair, *, prompts: tuple[str, str], judgments: tuple[str, str], number: int) -> dict[str, Any]:
    """A row of a pairwise file."""
    return {
        "question_id": pair.question, "model_1": pair.model_1, "model_2": pair.model_2, "g1_winner": pair.g1,
        "g2_winner": pair.g2, "judge": [pair.judge, pair.prompt], "g1_user_prompt": prompts[0], "g1_judgment": judgments[0],
        "g2_user_prompt": prompts[1], "g2_judgment": judgments[1], "turn": pair.turn, "tstamp": float(number),
    }  # fmt: skip
