"""Arena-Hard's files, read and written as arena-hard-auto does: questions, answers, judgments of v2.0 and of v0.1.

    question.jsonl                   {uid, category, subcategory, prompt}; v0.1 has a cluster instead of a subcategory, and in its
                                     first layout {question_id, category, cluster, turns: [{content}]}
    model_answer/MODEL.jsonl         {uid, ans_id, model, messages: [{role, content}, {role, content: {answer}}], tstamp,
                                     metadata: {token_len, header_count, list_count, bold_count}}
    model_judgment/JUDGE/MODEL.jsonl {uid, category, judge, model, baseline, games: [{score, judgment: {answer}, prompt}, {…}]}
                                     v0.1: {question_id, model, judge, games: [{user_prompt, judgment, score}, {…}]}

Game 1 shows the baseline as A, game 2 the model. Source: github lmarena/arena-hard-auto, gen_judgment.py, show_result.py,
utils/add_markdown_info.py.

Departures: a label that is none of the ten known (a plain "A", say, at which show_result.py stops) is unparsed. Files that we
write have no clock in them (tstamp 0, ids are hashes): the same run writes the same bytes. Their token_len is a quarter of the
characters; the original counts with a tokenizer that has to be downloaded.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from starling.errors import InputError
from starling.records import content_hash
from starling.rows import read_rows

LABELS = {
    "A>>B": (1.0, True), "A>B": (1.0, False), "A=B": (0.5, False), "B=A": (0.5, False), "B>A": (0.0, False), "B>>A": (0.0, True),
    "A<<B": (0.0, True), "A<B": (0.0, False), "B<A": (1.0, False), "B<<A": (1.0, True),
}  # fmt: skip
"""Label → score of the answer shown as A, and whether the verdict is a strong one."""
PATTERNS = (r"\[\[([AB<>=]+)\]\]", r"\[([AB<>=]+)\]")
"""The official expressions; the second is tried where the first finds nothing."""
OLD_BASELINE = "gpt-4-0314"
"""v0.1's judgments do not name it."""


def label_of(judgment: str) -> str | None:
    """The label of a judge's reply: the last match, upper-cased; None when there is none.

    >>> label_of("First [[A>B]], but on reflection [[b>>a]]")
    'B>>A'
    """
    for pattern in PATTERNS:
        found: list[str] = re.findall(pattern, judgment.upper())
        if found:
            return found[-1]
    return None


@dataclass(frozen=True)
class Question:
    """One prompt of the benchmark."""

    uid: str
    category: str
    subcategory: str
    prompt: str


@dataclass(frozen=True)
class Game:
    """What a judge said about two answers: the label, or why there is none."""

    label: str | None
    outcome: str
    """`ranked` exactly when there is a label."""


@dataclass(frozen=True)
class Judged:
    """One judgment row: both games of a model against the baseline on one prompt."""

    uid: str
    category: str
    judge: str
    model: str
    baseline: str
    games: tuple[Game, ...]
    repeat: int = 0
    """Which of several askings of the same judge it is; files of the original have one."""

    def verdicts(self) -> Iterator[tuple[float | None, bool, Literal["a", "b"], str]]:
        """Per game: the model's score (1, ½, 0 or None), whether the verdict is strong, who was shown first (a = the model,
        b = the baseline), and the outcome."""
        for number, game in enumerate(self.games):
            first: Literal["a", "b"] = "b" if number == 0 else "a"
            if game.label is None:
                yield None, False, first, game.outcome
                continue
            score, strong = LABELS[game.label]
            yield (1 - score if number == 0 else score), strong, first, game.outcome


def judged(value: Mapping[str, Any]) -> Judged | str:
    """A row of a judgment file, or why it is none: uid_missing, model_missing, games_missing."""
    uid, model, games = value.get("uid", value.get("question_id")), value.get("model"), value.get("games")
    if not isinstance(uid, str | int) or uid == "":
        return "uid_missing"
    if not isinstance(model, str) or not model:
        return "model_missing"
    if not isinstance(games, list) or len(games) != 2:
        return "games_missing"
    return Judged(
        str(uid), str(value.get("category") or "arena-hard-v0.1"), str(value.get("judge") or ""), model.split("/")[-1],
        str(value.get("baseline") or OLD_BASELINE).split("/")[-1], tuple(_game(game) for game in games),
        value["repeat"] if isinstance(value.get("repeat"), int) else 0,
    )  # fmt: skip


def _game(game: Any) -> Game:
    if not isinstance(game, dict):
        return Game(None, "provider_error")
    score, outcome = game.get("score"), game.get("outcome")
    label = score.strip().upper() if isinstance(score, str) else None
    if label in LABELS:
        return Game(label, "ranked")
    return Game(None, outcome if isinstance(outcome, str) and outcome != "ranked" else "unparsed")


def read_judgments(paths: Iterable[Path]) -> tuple[list[Judged], dict[str, int]]:
    """The rows of judgment files, and what could not be read by reason. A model's second judgment of a prompt by the same judge
    is left out as `repeated`.

    Raises:
        InputError: a file cannot be read, or no file holds a judgment.
    """
    found: list[Judged] = []
    left_out: Counter[str] = Counter()
    seen: set[tuple[str, str, str, str, int]] = set()
    where = ""
    for path in paths:
        where = str(path)
        for row in read_rows(path):
            one = row.problem if row.value is None else judged(row.value)
            if isinstance(one, str):
                left_out[one] += 1
                continue
            key = (one.judge, one.model, one.baseline, one.uid, one.repeat)
            if key in seen:
                left_out["repeated"] += 1
                continue
            seen.add(key)
            found.append(one)
    if not found:
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in sorted(left_out.items())) or "no rows"
        raise InputError(
            f"There is no Arena-Hard judgment here ({reasons})",
            where=where or "--judgments",
            cure="give model_judgment/JUDGE/MODEL.jsonl with rows {uid, category, judge, model, baseline, games}",
        )
    return found, dict(sorted(left_out.items()))


def read_questions(path: Path) -> list[Question]:
    """The questions in their order.

    Raises:
        InputError: the file cannot be read, a row is no question, or a uid comes twice; names the line.
    """
    found: dict[str, Question] = {}
    for row in read_rows(path):
        question = None if row.value is None else _question(row.value)
        if question is None or question.uid in found:
            raise InputError(
                "A row is no question of Arena-Hard" if question is None else f"The uid {question.uid} comes twice",
                where=f"{path}:{row.number}",
                cure="give rows {uid, category, subcategory, prompt} as in question.jsonl",
            )
        found[question.uid] = question
    return list(found.values())


def _question(value: Mapping[str, Any]) -> Question | None:
    uid, prompt, turns = value.get("uid", value.get("question_id")), value.get("prompt"), value.get("turns")
    if prompt is None and isinstance(turns, list) and turns and isinstance(turns[0], dict):
        prompt = turns[0].get("content")
    if not isinstance(uid, str | int) or uid == "" or not isinstance(prompt, str) or not prompt.strip():
        return None
    category, sub = value.get("category") or "arena-hard-v0.1", value.get("subcategory") or value.get("cluster") or ""
    return Question(str(uid), str(category), str(sub), prompt)


# ── style ────────────────────────────────────────────────────────────────────────────────────────────────────────────

_CODE = re.compile("```([^`]*)```")
_MARKS = {
    "header_count": {f"h{n}": re.compile(rf"^#{{{n}}}\s", re.MULTILINE) for n in range(1, 7)},
    "list_count": {
        "ordered": re.compile(r"^\s*\d+\.\s", re.MULTILINE), "unordered": re.compile(r"^\s*[-*+]\s", re.MULTILINE)
    },
    "bold_count": {"**": re.compile(r"\*\*[^*\n]+\*\*"), "__": re.compile(r"__[^_\n]+__")},
}  # fmt: skip


def style_of(text: str) -> dict[str, Any]:
    """The `metadata` of an answer: marks are counted outside blocks of code, as in add_markdown_info.py."""
    prose = _CODE.sub("", text)
    counts = {name: {kind: len(mark.findall(prose)) for kind, mark in kinds.items()} for name, kinds in _MARKS.items()}
    return {"token_len": -(-len(text) // 4), **counts}


# ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def answer_row(question: Question, model: str, text: str) -> dict[str, Any]:
    """A line of model_answer/MODEL.jsonl."""
    messages = [{"role": "user", "content": question.prompt}, {"role": "assistant", "content": {"answer": text}}]
    return {
        "uid": question.uid, "ans_id": content_hash([question.uid, model, text], 22), "model": model, "messages": messages,
        "tstamp": 0.0, "metadata": style_of(text),
    }  # fmt: skip


def judgment_row(
    question: Question, judge: str, model: str, baseline: str, games: Sequence[Mapping[str, Any]], repeat: int = 0
) -> dict[str, Any]:
    """A line of model_judgment/JUDGE/MODEL.jsonl; games are {score, judgment: {answer}, prompt} and, ours, the outcome."""
    row = {
        "uid": question.uid, "category": question.category, "judge": judge, "model": model, "baseline": baseline,
        "games": [dict(game) for game in games],
    }  # fmt: skip
    return row | ({"repeat": repeat} if repeat else {})


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a jsonl file, whole or not at all; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".tmp")
    with draft.open("w", encoding="utf-8", errors="surrogatepass") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    draft.replace(path)
