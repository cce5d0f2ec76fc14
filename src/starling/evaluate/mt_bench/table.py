"""From judgments to results: one table per kind of grading and judge, whether the judgments come from files or were just made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from starling.errors import InputError
from starling.evaluate.mt_bench import agreement, files, official, pairs, singles
from starling.evaluate.mt_bench.agreement import Agreement, HumanVotes, Votes
from starling.evaluate.mt_bench.files import Judgments, Pair, Question, Single
from starling.evaluate.results import JudgeFacts, Result
from starling.rows import files_of

BENCHMARK = "mt-bench"
RESAMPLES = 2000
"""As in `evaluate.bootstrap`."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How judgments become figures."""

    official: bool = False
    """FastChat's rules make the scores; ours otherwise. Both are in the table."""
    baseline: str = ""
    """Pairwise: only games against this model count."""
    resamples: int = RESAMPLES
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One table, and how the judge agrees with people where votes of theirs were given."""

    result: Result
    agreement: tuple[Agreement, ...] = ()

    def agreement_json(self) -> list[dict[str, Any]]:
        """As plain data."""
        return [
            {
                "between": one.between, "turn": one.turn or "both", "setup": one.setup, "agree": one.agree, "total": one.total,
                "share": one.share.mean, "ci": [one.share.low, one.share.high],
            }
            for one in self.agreement
        ]  # fmt: skip


def from_files(
    judgments: Sequence[Path],
    *,
    questions: Path | None = None,
    answers: Path | None = None,
    human: Path | None = None,
    rules: Rules = Rules(),
) -> list[Measured]:
    """Tables of judgment files: single grading first, then pairwise, each judge for itself.

    Args:
        judgments: FastChat's files of either kind, .gz or not; folders mean all their files.
        questions: question.jsonl: adds categories, finds what is missing and what is not a question.
        answers: a folder of model_answer files: judgments of other texts than these are left out.
        human: votes of people on the same pairs.
        rules: which figures are the scores.

    Raises:
        InputError: a file cannot be read, no row is a judgment, or the baseline has no game.
    """
    asked = files.read_questions(questions) if questions else None
    read = files.read_judgments(files_of(list(judgments)), asked, files.read_answers(answers) if answers else None)
    if not read.singles and not read.pairs:
        lost = ", ".join(f"{n:,} {problem} ({read.places[problem]})" for problem, n in sorted(read.problems.items()))
        raise InputError(
            f"There is no judgment in the files{': ' + lost if lost else ''}",
            where=", ".join(map(str, judgments)),
            cure="give FastChat's model_judgment files; docs/mt-bench.md lists their fields",
        )
    people = agreement.read_votes(human) if human else None
    found: list[Measured] = []
    for judge in dict.fromkeys(row.judge for row in read.singles):
        rows = [row for row in read.singles if row.judge == judge]
        found.append(single_table(rows, judge, asked, rules, further=_further(read, judge, read.singles), people=people))
    for judge in dict.fromkeys(row.judge for row in read.pairs):
        games = [row for row in read.pairs if row.judge == judge]
        _check_baseline(rules.baseline, games, judge)
        found.append(pair_table(games, judge, asked, rules, further=_further(read, judge, read.pairs), people=people))
    notes = tuple(_file_notes(read))
    given = {
        "judgments": [str(path) for path in judgments], "questions": str(questions or ""), "answers": str(answers or ""),
        "human": str(human or ""), "official": rules.official, "baseline": rules.baseline,
    }  # fmt: skip
    return [replace(m, result=replace(m.result, notes=m.result.notes + notes, settings=given)) for m in found]


def single_table(
    rows: Sequence[Single],
    judge: str,
    questions: Mapping[int, Question] | None,
    rules: Rules,
    *,
    further: Mapping[str, Mapping[str, int]] | None = None,
    people: HumanVotes | None = None,
) -> Measured:
    """One judge's grades as a result; see `singles.measure`."""
    table = singles.measure(
        rows, questions=questions, official=rules.official, further=further, resamples=rules.resamples, seed=rules.seed
    )
    return _measured(
        table, f"MT-Bench, single answers graded by {judge}", singles.UNIT, singles.facts(table, judge),
        agreement.votes_of_singles(rows), people, rules,
    )  # fmt: skip


def pair_table(
    rows: Sequence[Pair],
    judge: str,
    questions: Mapping[int, Question] | None,
    rules: Rules,
    *,
    further: Mapping[str, Mapping[str, int]] | None = None,
    people: HumanVotes | None = None,
) -> Measured:
    """One judge's comparisons as a result; see `pairs.measure`."""
    table = pairs.measure(
        rows, baseline=rules.baseline, questions=questions, official=rules.official, further=further, resamples=rules.resamples,
        seed=rules.seed,
    )  # fmt: skip
    against = f" against {rules.baseline}" if rules.baseline else ""
    return _measured(
        table, f"MT-Bench, pairs{against} compared by {judge}", pairs.UNIT,
        pairs.facts(table, judge, rows, resamples=rules.resamples, seed=rules.seed), agreement.votes_of_pairs(rows), people,
        rules,
    )  # fmt: skip


def _check_baseline(baseline: str, rows: Sequence[Pair], judge: str) -> None:
    known = dict.fromkeys(name for row in rows for name in (row.model_1, row.model_2))
    if baseline and baseline not in known:
        raise InputError(
            f"The baseline '{baseline}' is in none of {judge}'s comparisons",
            where="--baseline",
            cure=f"name one of {', '.join(known)}",
        )


def _measured(
    table: singles.Table, title: str, unit: str, facts: JudgeFacts, votes: Votes, people: HumanVotes | None, rules: Rules
) -> Measured:
    agreed: list[Agreement] = []
    notes: list[str] = []
    if people is not None:
        agreed = agreement.with_people(votes, people.votes, resamples=rules.resamples, seed=rules.seed)
        if agreed:
            facts = replace(
                facts, human_agreement=agreed[0].share.mean, human_agreement_ci=(agreed[0].share.low, agreed[0].share.high),
                human_votes=agreed[0].total,
            )  # fmt: skip
        else:
            notes.append("None of the people's votes is on a pair of answers that this judge judged.")
        agreed += agreement.among_people(people.votes, resamples=rules.resamples, seed=rules.seed)
        notes += [_agreement_note(one) for one in agreed if one.turn]
        if people.left_out:
            notes.append(f"Of the votes of people, not counted: {_listed(people.left_out)}.")
    result = Result(
        benchmark=BENCHMARK, title=title, unit=unit, models=table.models, differences=table.differences, judge=facts,
        notes=(*table.notes, *notes),
    )  # fmt: skip
    return Measured(result=result, agreement=tuple(agreed))


def _agreement_note(one: Agreement) -> str:
    ties = "ties count" if one.setup == "S1" else "without ties"
    return (
        f"Agreement of {one.between}, turn {one.turn}, {one.setup} ({ties}): {100 * one.share.mean:.1f} % "
        f"[{100 * one.share.low:.1f}, {100 * one.share.high:.1f}] of {one.total:,}."
    )


def _further(read: Judgments, judge: str, rows: Sequence[Single] | Sequence[Pair]) -> dict[str, dict[str, int]]:
    """Problems of rows of the models that this judge judged. A broken row does not say who judged it, so with several judges each
    of them is told."""
    known: set[str] = set()
    for row in rows:
        if row.judge == judge:
            known |= {row.model} if isinstance(row, Single) else {row.model_1, row.model_2}
    return {model: dict(problems) for model, problems in read.by_model.items() if model in known}


def _file_notes(read: Judgments) -> list[str]:
    notes = [
        f"Rows that are no judgment: {n:,} {problem}, the first at {read.places[problem]}."
        for problem, n in sorted(read.problems.items())
    ]
    if copied := sum(one.copy for one in read.singles) + sum(two.copy for two in read.pairs):
        notes.append(f"{copied:,} rows stand in the files twice, letter by letter, and count once; FastChat counts them again.")
    return notes


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n:,} {name}" for name, n in sorted(counts.items()))


def warn_of_references(shown: set[int], corrected: set[int]) -> str:
    """A sentence about reference answers that are known to be wrong; "" when none of them is used.

    Args:
        shown: questions whose judge sees a reference.
        corrected: those whose reference comes from the corrections.
    """
    wrong = sorted(official.WRONG_REFERENCES & shown - corrected)
    if not wrong:
        return ""
    return (
        f"The published reference answers of {len(wrong)} questions are wrong ({', '.join(map(str, wrong))}; FastChat pull "
        "request 3158), and the judge is shown them: name a file with better ones in evaluate.mt_bench.corrections."
    )
