"""How often a judge and people, or people among themselves, say the same about two answers: FastChat's compute_agreement.

Votes are keyed by turn, question and the two models in the order of their names; every vote of one side is compared with every
vote of the other. Setup S1 counts all votes, a tie of any kind being equal to any other tie; setup S2 leaves out pairs of votes
in which either is a tie. Source: arXiv 2306.05685, section 4.2, and FastChat's compute_agreement.py, with its names: votes of
"expert_…" are people's, those of "author_…" stand aside. Departures: intervals, clustered by question; a judge with several votes
on a key is compared by all of them (FastChat stops); a judge that grades single answers votes by which grade is higher, a tie
within 0.1.

Votes of people: {question_id, model_a, model_b, winner, judge, turn}, as in the published mt_bench_human_judgments, in json,
jsonl or parquet; `winner` is model_a, model_b or anything with "tie" in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from starling import stats
from starling.errors import InputError
from starling.evaluate.mt_bench import official, pairs, singles
from starling.evaluate.mt_bench.files import Pair, Single
from starling.rows import read_rows
from starling.stats import Interval

PEOPLE = "expert"
Key = tuple[int, int, str, str]
"""Turn, question, and the two models by name."""
Votes = dict[Key, list[str]]
"""Key → votes: "a" for the model that comes first by name, "b" for the other, "tie"."""


@dataclass(frozen=True, kw_only=True)
class HumanVotes:
    """Votes of people, and what of their file could not be used."""

    votes: Votes
    left_out: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """One line: who is compared, on which turn (0 = both), under which setup."""

    between: str
    turn: int
    setup: str
    agree: int
    total: int
    share: Interval


def read_votes(path: Path) -> HumanVotes:
    """Votes of people.

    Raises:
        InputError: the file cannot be read, or holds no vote of an expert.
    """
    votes: Votes = {}
    left_out: Counter[str] = Counter()
    for row in read_rows(path):
        value = row.value or {}
        problem = row.problem
        if not problem:
            judge = value.get("judge")
            if not isinstance(judge, str) or not judge.startswith(PEOPLE):
                problem = "not_an_expert"
            elif not _is_vote(value):
                problem = "not_a_vote"
        if problem:
            left_out[problem] += 1
            continue
        word = value["winner"]
        first = "tie" if "tie" in word else "a" if word == "model_a" else "b"
        add(votes, value["turn"], value["question_id"], value["model_a"], value["model_b"], first)
    if not votes:
        raise InputError(
            f"The file holds no vote of an expert: {dict(left_out)}",
            where=str(path),
            cure="give rows of question_id, model_a, model_b, winner, judge (expert_…), turn",
        )
    return HumanVotes(votes=votes, left_out=dict(left_out))


def _is_vote(value: Mapping[str, object]) -> bool:
    texts = [value.get(name) for name in ("model_a", "model_b", "winner")]
    if not all(isinstance(text, str) for text in texts) or texts[0] == texts[1]:
        return False
    whole = all(isinstance(value.get(k), int) and not isinstance(value.get(k), bool) for k in ("question_id", "turn"))
    return whole and value["turn"] in (1, 2) and (texts[2] in ("model_a", "model_b") or "tie" in str(texts[2]))


def add(votes: Votes, turn: int, question: int, model_a: str, model_b: str, winner: str) -> None:
    """Add a vote; `winner` is "a", "b" or "tie" as the models are given."""
    if model_b < model_a:
        model_a, model_b, winner = model_b, model_a, {"a": "b", "b": "a"}.get(winner, winner)
    votes.setdefault((turn, question, model_a, model_b), []).append(winner)


def votes_of_pairs(rows: Iterable[Pair]) -> Votes:
    """A judge's votes from its comparisons; those without a verdict have none."""
    votes: Votes = {}
    for row in rows:
        if pairs.outcome_of(row) == "ranked":
            said = official.final_winner(row.g1, row.g2)
            add(votes, row.turn, row.question, row.model_1, row.model_2, {"model_1": "a", "model_2": "b"}.get(said, "tie"))
    return votes


def votes_of_singles(rows: Iterable[Single]) -> Votes:
    """A judge's votes from its grades, the mean of repeats, for every two models graded on the same turn of a question."""
    grades: dict[tuple[int, int], dict[str, list[float]]] = {}
    for row in rows:
        if singles.outcome_of(row) == "ranked":
            grades.setdefault((row.turn, row.question), {}).setdefault(row.model, []).append(row.score)
    votes: Votes = {}
    for (turn, question), of in grades.items():
        for a, b in combinations(sorted(of), 2):
            said = official.winner_by_grades(sum(of[a]) / len(of[a]), sum(of[b]) / len(of[b]))
            add(votes, turn, question, a, b, {"model_1": "a", "model_2": "b"}.get(said, "tie"))
    return votes


def with_people(judge: Votes, people: Votes, *, resamples: int, seed: int) -> list[Agreement]:
    """A judge against people, per turn and setup and over both turns."""
    compared = [(k, [(j, p) for j in judge[k] for p in people[k]]) for k in judge if k in people]
    return _table("judge and people", compared, resamples, seed)


def among_people(people: Votes, *, resamples: int, seed: int) -> list[Agreement]:
    """People against people: every two votes on the same key."""
    return _table("people", [(k, list(combinations(said, 2))) for k, said in people.items()], resamples, seed)


def _table(between: str, compared: Sequence[tuple[Key, Sequence[tuple[str, str]]]], resamples: int, seed: int) -> list[Agreement]:
    found = []
    for turn in (0, 1, 2):
        for setup in ("S1", "S2"):
            same: dict[int, int] = {}
            total: dict[int, int] = {}
            for (at, question, *_), votes in compared:
                for one, other in votes if turn in (0, at) else ():
                    if setup == "S1" or "tie" not in (one, other):
                        same[question] = same.get(question, 0) + (one == other)
                        total[question] = total.get(question, 0) + 1
            if total:
                share = stats.ratio_interval(list(same.values()), list(total.values()), resamples=resamples, seed=seed)
                found.append(
                    Agreement(
                        between=between, turn=turn, setup=setup, agree=sum(same.values()), total=sum(total.values()), share=share
                    )
                )
    return found
