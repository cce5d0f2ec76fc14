"""Verdicts between two models, from whatever file they were saved in, as columns of numbers: eleven million fit in a gigabyte.

A *vote* is one verdict on two answers to one prompt. A *meeting* is what belongs together: the votes of one judge on the same two
answers, usually one in each order. Forms read, by their columns:

    ours          prompt_id, a, b, preference_b, outcome, first, repeat, by: what a live head to head writes
    Comparison    prompt_id, a, b, winner a | b | tie, by, outcome: the chain's head to head, where a judge's rows come in twos,
                  side a shown first and then side b, and the votes of people
    FastChat      question_id, model_1, model_2, g1_winner, g2_winner, judge, turn: `*_pair.jsonl`, model_1 first in game 1
    Arena-Hard    uid, model, baseline, games: see `arena_hard_files`
    AlpacaEval    instruction, generator_1, generator_2, preference 1 … 2: `annotations.json`; the order is not stored
    battles       model_a, model_b, winner model_a | model_b | tie | tie (bothbad); also model_x | left and right

Departures: a verdict that is none has a name and a count, and so has a row that cannot be read. Whatever order the files or the
two sides come in, the same votes give the same `Votes`. A battle without a prompt is a prompt of its own.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from starling.errors import InputError
from starling.evaluate.pairwise import arena_hard_files
from starling.records import Message, Outcome, Record, prompt_id
from starling.rows import read_rows

First = Literal["a", "b", ""]
"""The side that was shown first; empty when nobody knows."""
_FIRSTS: tuple[First, ...] = ("", "a", "b")
_OUTCOMES = tuple(o.value for o in Outcome)


class Verdict(NamedTuple):
    """One vote of a meeting, e.g. Verdict(1.0, "a", "ranked"): side a was shown first and side b won."""

    preference_b: float | None
    """0 = a is better, 1 = b is, .5 = a tie; soft verdicts lie between. None exactly when the outcome is not ranked."""
    first: First = ""
    outcome: str = Outcome.ranked.value


class PairVote(Record):
    """One vote as a live head to head writes it, a line of votes.jsonl."""

    prompt_id: str
    a: str
    b: str
    preference_b: float | None
    outcome: Outcome
    first: First
    repeat: int
    by: str
    reason: str
    call_id: str


@dataclass(frozen=True, kw_only=True)
class Votes:
    """Votes sorted by prompt, sides, voter and repeat; side a comes before side b in `models`, which are sorted by name.

    Shape suffix: N votes.
    """

    models: tuple[str, ...]
    prompts: tuple[str, ...]
    voters: tuple[str, ...]
    prompt_N: NDArray[np.int32]
    a_N: NDArray[np.int32]
    b_N: NDArray[np.int32]
    by_N: NDArray[np.int32]
    repeat_N: NDArray[np.int32]
    preference_b_N: NDArray[np.float64]
    """NaN where there is no verdict."""
    first_N: NDArray[np.int8]
    """0 unknown, 1 side a was shown first, 2 side b."""
    outcome_N: NDArray[np.int8]
    """Number in `Outcome`."""
    meeting_N: NDArray[np.int64]
    """Votes of one meeting have the same number and stand together; numbers count from 0."""
    left_out: Mapping[str, int]
    """Rows that are no vote, by reason."""

    def outcomes(self) -> dict[str, int]:
        """Votes by outcome."""
        counts = np.bincount(self.outcome_N, minlength=len(_OUTCOMES))
        return {name: int(n) for name, n in zip(_OUTCOMES, counts, strict=True) if n}


class VotesBuilder:
    """Collects meetings; about 40 bytes per vote and the names once."""

    def __init__(self) -> None:
        self._numbers: tuple[dict[str, int], dict[str, int], dict[str, int]] = ({}, {}, {})
        self._whole = {name: array("i") for name in ("prompt", "a", "b", "by", "repeat", "meeting")}
        self._preference = array("d")
        self._small = {name: array("b") for name in ("first", "outcome")}
        self._meetings = 0
        self.left_out: Counter[str] = Counter()

    def add(self, prompt: str, a: str, b: str, verdicts: Sequence[Verdict], *, by: str = "", repeat: int = 0) -> None:
        """One meeting of a and b. A meeting that cannot be one is left out under a name: same_model, model_missing."""
        if not a or not b or a == b:
            self.left_out["same_model" if a and a == b else "model_missing"] += 1
            return
        models, prompts, voters = self._numbers
        row = {
            "prompt": prompts.setdefault(prompt, len(prompts)), "a": models.setdefault(a, len(models)),
            "b": models.setdefault(b, len(models)), "by": voters.setdefault(by, len(voters)), "repeat": repeat,
            "meeting": self._meetings,
        }  # fmt: skip
        self._meetings += 1
        for verdict in verdicts:
            for name, value in row.items():
                self._whole[name].append(value)
            self._preference.append(float("nan") if verdict.preference_b is None else verdict.preference_b)
            self._small["first"].append(_FIRSTS.index(verdict.first))
            self._small["outcome"].append(_OUTCOMES.index(verdict.outcome))

    def build(self) -> Votes:
        """All that was added.

        Raises:
            InputError: nothing was.
        """
        if not self._preference:
            reasons = ", ".join(f"{n:,} {reason}" for reason, n in sorted(self.left_out.items())) or "no rows"
            raise InputError(
                f"There is no vote between two models here ({reasons})",
                where="the votes given",
                cure="give saved comparisons, FastChat's pair judgments, Arena-Hard judgments or a battle log",
            )
        whole = {name: np.frombuffer(column, dtype=np.int32) for name, column in self._whole.items()}
        small = {name: np.frombuffer(column, dtype=np.int8) for name, column in self._small.items()}
        preference = np.frombuffer(self._preference, dtype=np.float64)
        (models, a_b), (prompts, prompt), (voters, by) = (
            _sorted_names(numbers, columns)
            for numbers, columns in zip(
                self._numbers, ((whole["a"], whole["b"]), (whole["prompt"],), (whole["by"],)), strict=True
            )
        )
        a, b = a_b
        turned = a > b
        a, b = np.where(turned, b, a), np.where(turned, a, b)
        preference = np.where(turned, 1 - preference, preference)
        first = np.where(turned & (small["first"] > 0), 3 - small["first"], small["first"]).astype(np.int8)
        # Votes of one meeting stay together: it comes where the first of its votes would come by its own values.
        lead = np.lexsort((whole["meeting"], np.nan_to_num(preference, nan=2), first, whole["repeat"], by[0], b, a, prompt[0]))
        place = np.full(self._meetings, len(lead), dtype=np.int64)
        np.minimum.at(place, whole["meeting"][lead], np.arange(len(lead)))
        order = np.lexsort((np.nan_to_num(preference, nan=2), first, place[whole["meeting"]]))
        starts = np.diff(place[whole["meeting"]][order], prepend=-1) != 0
        return Votes(
            models=models, prompts=prompts, voters=voters, prompt_N=prompt[0][order], a_N=a[order], b_N=b[order],
            by_N=by[0][order], repeat_N=whole["repeat"][order], preference_b_N=preference[order], first_N=first[order],
            outcome_N=small["outcome"][order], meeting_N=np.cumsum(starts) - 1, left_out=dict(sorted(self.left_out.items())),
        )  # fmt: skip


def _sorted_names(
    numbers: Mapping[str, int], columns: Sequence[NDArray[np.int32]]
) -> tuple[tuple[str, ...], list[NDArray[np.int32]]]:
    """The names in their order, and the columns with the numbers that they then have."""
    names = sorted(numbers)
    number = np.empty(len(names), dtype=np.int32)
    number[[numbers[name] for name in names]] = np.arange(len(names))
    return tuple(names), [number[column] for column in columns]


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def read_votes(paths: Iterable[Path], aliases: Mapping[str, str] | None = None) -> Votes:
    """The votes of files, each in one of the forms above.

    Args:
        aliases: other names of prompts (question numbers, uids) → the name under which their answers are known.

    Raises:
        InputError: a file cannot be read, or there is no vote in any.
    """
    reader = _Reader(aliases or {})
    for path in paths:
        for row in read_rows(path):
            if row.value is None:
                reader.builder.left_out[row.problem] += 1
            else:
                reader.read(row.value, str(path), row.number)
        reader.end_of_file()
    return reader.builder.build()


Value = Mapping[str, Any]
_WINNERS: dict[str, float] = {
    "a": 0.0, "model_a": 0.0, "model_1": 0.0, "left": 0.0, "b": 1.0, "model_b": 1.0, "model_2": 1.0, "right": 1.0,
    "tie": 0.5, "tie (bothbad)": 0.5, "both_bad": 0.5,
}  # fmt: skip
_SIDES = (("model_a", "model_b"), ("left", "right"), ("model_x", "model_y"))
_PROMPTS = ("prompt_id", "question_id", "uid", "prompt", "instruction")
_VOTERS = ("worker", "judge", "annotator", "by")


class _Reader:
    """Rows in, meetings out; verdicts wait for the other order of theirs."""

    def __init__(self, aliases: Mapping[str, str]) -> None:
        self.builder = VotesBuilder()
        self._aliases = aliases
        self._waiting: dict[tuple[str, str, str, str, int], list[Verdict]] = {}
        self._met: Counter[tuple[str, str, str]] = Counter()

    def read(self, value: Value, file: str, number: int) -> None:
        """One row; what is no vote is counted."""
        forms: tuple[tuple[tuple[str, ...], Callable[[Value], str]], ...] = (
            (("preference_b",), self._ours),
            (("g1_winner", "g2_winner"), self._fastchat),
            (("games", "model"), self._arena_hard),
            (("generator_1", "generator_2", "preference"), self._alpaca_eval),
            (("prompt_id", "a", "b", "winner"), self._comparison),
        )
        for columns, form in forms:
            if all(name in value for name in columns):
                problem = form(value)
                break
        else:
            problem = self._battle(value, f"{file}:{number}")
        if problem:
            self.builder.left_out[problem] += 1

    def end_of_file(self) -> None:
        """Verdicts whose other order did not come are meetings of their own."""
        for (prompt, a, b, by, repeat), verdicts in self._waiting.items():
            self.builder.add(prompt, a, b, verdicts, by=by, repeat=repeat)
        self._waiting.clear()

    def _in_twos(self, key: tuple[str, str, str, str, int], verdict: Verdict) -> None:
        waiting = self._waiting.setdefault(key, [])
        waiting.append(verdict)
        if len(waiting) == 2:
            self.builder.add(*key[:3], self._waiting.pop(key), by=key[3], repeat=key[4])

    def _prompt(self, value: Value) -> str:
        """The prompt's id; a text becomes the id that a prompt of this one user turn has. Empty when the row names none."""
        for name in _PROMPTS:
            found = value.get(name)
            if isinstance(found, int | str) and found != "":
                known = self._aliases.get(str(found))
                text = isinstance(found, str) and name in ("prompt", "instruction")
                return known or (prompt_id((Message(role="user", content=str(found)),)) if text else str(found))
        return ""

    # ── forms ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _ours(self, value: Value) -> str:
        preference, outcome, first = value["preference_b"], str(value.get("outcome", "ranked")), str(value.get("first") or "")
        repeat = value.get("repeat", 0)
        if outcome not in _OUTCOMES or first not in _FIRSTS or (preference is None) == (outcome == "ranked"):
            return "vote_unknown"
        if not isinstance(repeat, int) or (preference is not None and not _share(preference)):
            return "vote_unknown"
        key = (self._prompt(value), str(value.get("a") or ""), str(value.get("b") or ""), str(value.get("by") or ""), repeat)
        self._in_twos(key, Verdict(preference, first, outcome))
        return ""

    def _comparison(self, value: Value) -> str:
        winner, outcome = value["winner"], str(value.get("outcome", "ranked"))
        preference = None if winner is None else _WINNERS.get(str(winner).lower())
        if outcome not in _OUTCOMES or (preference is None) == (outcome == "ranked"):
            return "winner_unknown"
        prompt, a, b, by = self._prompt(value), str(value["a"]), str(value["b"]), str(value.get("by") or "judge")
        if by == "human":
            self.builder.add(prompt, a, b, [Verdict(preference, "", outcome)], by=by)
            return ""
        turned = a > b
        if turned:
            a, b, preference = b, a, None if preference is None else 1 - preference
        repeat, half = divmod(self._met[prompt, a, b], 2)
        self._met[prompt, a, b] += 1
        key = (prompt, a, b, by, repeat)
        if half:  # the other side was shown first, however this row calls its sides
            first: First = "b" if self._waiting[key][0].first == "a" else "a"
        else:
            first = "b" if turned else "a"
        self._in_twos(key, Verdict(preference, first, outcome))
        return ""

    def _fastchat(self, value: Value) -> str:
        verdicts = []
        for column, first in (("g1_winner", "a"), ("g2_winner", "b")):
            said = str(value[column])
            if said != "error" and said not in ("model_1", "model_2", "tie"):
                return "winner_unknown"
            failed = said == "error"
            verdicts.append(Verdict(None if failed else _WINNERS[said], cast(First, first), "unparsed" if failed else "ranked"))
        judge, turn = value.get("judge"), value.get("turn", 1)
        by = f"{judge[0] if isinstance(judge, list) and judge else judge or ''} turn {turn}"
        self.builder.add(self._prompt(value), str(value.get("model_1") or ""), str(value.get("model_2") or ""), verdicts, by=by)
        return ""

    def _arena_hard(self, value: Value) -> str:
        judged = arena_hard_files.judged(value)
        if isinstance(judged, str):
            return judged
        verdicts = [
            Verdict(None if score is None else 1 - score, first, outcome) for score, _, first, outcome in judged.verdicts()
        ]
        prompt = self._aliases.get(judged.uid, judged.uid)
        self.builder.add(prompt, judged.model, judged.baseline, verdicts, by=judged.judge)
        return ""

    def _alpaca_eval(self, value: Value) -> str:
        preference = value["preference"]
        if preference is None or preference != preference:  # NaN
            verdict = Verdict(None, "", "unparsed")
        elif isinstance(preference, int | float) and (preference == 0 or 1 <= preference <= 2):
            verdict = Verdict(0.5 if preference == 0 else preference - 1, "")  # 0 is the old word for a draw
        else:
            return "preference_unknown"
        by = str(value.get("annotator") or "")
        self.builder.add(self._prompt(value), str(value["generator_1"]), str(value["generator_2"]), [verdict], by=by)
        return ""

    def _battle(self, value: Value, place: str) -> str:
        preference = _WINNERS.get(str(value.get("winner", "")).strip().lower())
        named = ((value.get(a), value.get(b)) for a, b in _SIDES)
        sides = next((pair for pair in named if None not in pair and "" not in pair), None)
        if preference is None:
            return "winner_unknown"
        if sides is None:
            return "model_missing"
        by = next((str(value[n]) for n in _VOTERS if isinstance(value.get(n), str | int)), "")
        # Battles show side a on the left. Several people may have voted on one pair: each is a meeting.
        self.builder.add(self._prompt(value) or place, str(sides[0]), str(sides[1]), [Verdict(preference, "a")], by=by)
        return ""


def _share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
