"""FastChat's own rules, as its code has them: prompts from templates, grades and verdicts from replies, show_result's figures.

Source: fastchat/llm_judge (common.py, gen_judgment.py, show_result.py) of the package fschat 0.2.36. Pure functions. The rules
are kept with their faults, which is what makes figures comparable: a grade may lie off the scale, a text with "[[A]]" anywhere is
a verdict for A even if it ends in "[[B]]", a judgment without a grade is −1 and then leaves the average, and a judgment that
stands in the file twice counts twice. `starling.evaluate.mt_bench.singles` and `pairs` have ours.

Departure: the templates are the user's own file; only the fields that FastChat fills are filled, by plain substitution.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from string import Formatter

from starling.errors import InputError
from starling.evaluate.mt_bench.files import NO_GRADE, Pair, Single
from starling.records import Message, Messages, Sampling

JUDGE_SAMPLING = Sampling(temperature=0.0, max_tokens=2048)
REFERENCE_CATEGORIES = ("math", "reasoning", "coding")
"""NEED_REF_CATS: categories whose judge sees a reference answer."""
TEMPERATURES = {
    "writing": 0.7, "roleplay": 0.7, "extraction": 0.0, "math": 0.0, "coding": 0.0, "reasoning": 0.0, "stem": 0.1,
    "humanities": 0.1,
}  # fmt: skip
OTHER_TEMPERATURE = 0.7
"""Of a category that is not among TEMPERATURES."""
TIE_DELTA = 0.1
"""Two grades this close are a tie."""
WRONG_REFERENCES = frozenset({104, 105, 109, 111, 113, 114, 120, 122, 124, 125, 126, 128, 130})
"""Questions whose published gpt-4 reference answer is wrong (github.com/lm-sys/FastChat/pull/3158): 13 of 30."""

_GRADE = re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]")
_TEMPLATE_FIELDS = frozenset(
    ["question", "answer", "answer_a", "answer_b"]
    + [f"{name}_{turn}" for name in ("question", "answer", "ref_answer", "answer_a", "answer_b") for turn in (1, 2)]
)


# ── asking ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def prompt_name(kind: str, *, reference: bool, turn: int) -> str:
    """Which of the judge's prompts FastChat takes.

    >>> prompt_name("single", reference=True, turn=2)
    'single-math-v1-multi-turn'
    >>> prompt_name("pair", reference=False, turn=1)
    'pair-v2'
    """
    version = "math-v1" if reference else {"single": "v1", "pair": "v2"}[kind]
    return f"{kind}-{version}{'-multi-turn' if turn == 2 else ''}"


def prompt_of(prompts: Mapping[str, Mapping[str, str]], name: str) -> Mapping[str, str]:
    """The prompt of that name.

    Raises:
        InputError: there is none, or it wants a reply in another form than FastChat reads.
    """
    wanted = "[[rating]]" if name.startswith("single") else "[[A]]"
    if name not in prompts or prompts[name]["output_format"] != wanted:
        raise InputError(
            f"The judge's prompt '{name}' with the output format {wanted} is not there",
            where="evaluate.mt_bench.judge_prompts",
            cure="use FastChat's judge_prompts.jsonl",
        )
    return prompts[name]


def fill(prompt: Mapping[str, str], values: Mapping[str, str], where: str) -> Messages:
    """The system and the user message of a judge's prompt; braces in the values stay what they are.

    Raises:
        InputError: the template wants a field that is not there, or is none.
    """
    parts: list[str] = []
    try:
        for text, name, spec, conversion in Formatter().parse(prompt["prompt_template"]):
            parts.append(text)
            if name is not None:
                if spec or conversion or name not in _TEMPLATE_FIELDS:
                    raise ValueError(f"it has the unknown field {{{name}}}")
                if name not in values:
                    raise ValueError(f"it wants {{{name}}}, which this kind of question does not have")
                parts.append(values[name])
    except ValueError as error:
        raise InputError(
            f"The template of the judge's prompt '{prompt['name']}' cannot be filled: {error}",
            where=where,
            cure="use FastChat's judge_prompts.jsonl, or its fields only",
        ) from None
    return (Message(role="system", content=prompt["system_prompt"]), Message(role="user", content="".join(parts)))


def values_of(
    questions: Sequence[str], answers: Mapping[str, Sequence[str]], references: Sequence[str], turn: int
) -> dict[str, str]:
    """The fields of a template for one turn.

    Args:
        questions: what the user says, turn by turn.
        answers: suffix of the field ("", "_a", "_b") → answers turn by turn.
        references: reference answers turn by turn; empty without.
        turn: 1 or 2; at 2 the fields end in _1 and _2.
    """
    if turn == 1:
        found = {"question": questions[0]} | {f"answer{side}": texts[0] for side, texts in answers.items()}
    else:
        found = {f"question_{t + 1}": questions[t] for t in (0, 1)}
        found |= {f"answer{side}_{t + 1}": texts[t] for side, texts in answers.items() for t in (0, 1)}
    return found | {f"ref_answer_{t + 1}": references[t] for t in range(min(turn, len(references)))}


# ── reading replies ──────────────────────────────────────────────────────────────────────────────────────────────────


def grade_of(judgment: str) -> float:
    """The grade in a judgment, −1 when there is none.

    >>> grade_of("Rating: [[7.5]]"), grade_of("see [1]. Rating: [[9]]"), grade_of("[8]"), grade_of("Rating: 8")
    (7.5, 9, 8, -1)
    """
    for pattern in _GRADE:
        if match := pattern.search(judgment):
            text = match[1]
            return float(text) if "." in text else int(text)
    return NO_GRADE


def verdict_of(judgment: str) -> str:
    """ "A", "B", "tie" or "error": the first of [[A]], [[B]], [[C]], in this order, that occurs anywhere.

    >>> verdict_of("not [[B]] but [[A]]"), verdict_of("[[B]]"), verdict_of("[[C]]"), verdict_of("A wins")
    ('A', 'B', 'tie', 'error')
    """
    return next((found for mark, found in (("[[A]]", "A"), ("[[B]]", "B"), ("[[C]]", "tie")) if mark in judgment), "error")


def winner_by_grades(score_1: float, score_2: float) -> str:
    """The winner of two grades by the rule of pair files that were made from single grades.

    >>> winner_by_grades(7, 7.1), winner_by_grades(8, 7), winner_by_grades(7, 8)
    ('tie', 'model_1', 'model_2')
    """
    if abs(score_1 - score_2) <= TIE_DELTA:
        return "tie"
    return "model_1" if score_1 > score_2 else "model_2"


def final_winner(g1: str, g2: str) -> str:
    """What both games together say: a winner only where both agree.

    >>> final_winner("model_1", "model_1"), final_winner("model_1", "model_2"), final_winner("tie", "model_2")
    ('model_1', 'tie', 'tie')
    """
    return "tie" if g1 == "tie" or g1 != g2 else g1


# ── show_result ──────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What show_result prints of one model under single grading; None where it has no row."""

    average: float | None
    turns: dict[int, float]
    rows: int


def show_single(rows: Iterable[Single]) -> dict[str, Shown]:
    """Means over rows with a score other than −1, whatever they are about and however often they stand there."""
    scores: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        of = scores.setdefault(row.model, {})
        if row.score != NO_GRADE:
            of.setdefault(row.turn, []).append(row.score)
    found = {}
    for model, of in scores.items():
        every = [score for listed in of.values() for score in listed]
        found[model] = Shown(
            average=sum(every) / len(every) if every else None,
            turns={turn: sum(listed) / len(listed) for turn, listed in sorted(of.items())},
            rows=len(every),
        )
    return found


@dataclass(frozen=True, kw_only=True)
class Tally:
    """What show_result prints of one model in a pairwise mode."""

    win: int
    loss: int
    tie: int

    @property
    def total(self) -> int:
        return self.win + self.loss + self.tie

    @property
    def win_rate(self) -> float:
        return self.win / self.total

    @property
    def loss_rate(self) -> float:
        return self.loss / self.total

    @property
    def win_rate_adjusted(self) -> float:
        """A tie is half a win and half a loss."""
        return (self.win + 0.5 * self.tie) / self.total


def show_pairs(rows: Iterable[Pair], *, baseline: str | None = None) -> dict[str, Tally]:
    """Wins, losses and ties over rows without an error in either game.

    Args:
        rows: the comparisons.
        baseline: keep its games only and leave itself out (pairwise-baseline); all games when None (pairwise-all).
    """
    counts: dict[str, Counter[str]] = {}
    for row in rows:
        if "error" in (row.g1, row.g2):
            continue
        if baseline is not None and baseline not in (row.model_1, row.model_2):
            continue
        winner = final_winner(row.g1, row.g2)
        for side, name in (("model_1", row.model_1), ("model_2", row.model_2)):
            counts.setdefault(name, Counter())["tie" if winner == "tie" else "win" if winner == side else "loss"] += 1
    return {name: Tally(win=c["win"], loss=c["loss"], tie=c["tie"]) for name, c in counts.items() if name != baseline}
