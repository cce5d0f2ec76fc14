"""The safety benchmark from files of replies: nobody is asked anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starling.errors import InputError
from starling.evaluate.results import JudgeFacts, Result
from starling.evaluate.safety.agreement import Agreement, agreement
from starling.evaluate.safety.cases import read_cases
from starling.evaluate.safety.labels import LABELLED, Way, of_files
from starling.evaluate.safety.measure import Labelled, Row, matrix, measure
from starling.evaluate.safety.said import read_said
from starling.records import Outcome
from starling.stats import bootstrap_mean

JUDGE_COLUMN = "gpt4_label"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The result, and what stands beside it."""

    result: Result
    matrix: tuple[Row, ...]
    agreement: tuple[Agreement, ...] = ()
    """With people, of models whose replies they labelled."""
    labelled: tuple[Labelled, ...] = ()
    """Every reply with what was found."""

    def as_dict(self) -> dict[str, Any]:
        """Matrix and agreement as plain data, to stand beside the result's."""
        return {"matrix": [row.as_dict() for row in self.matrix], "agreement": [one.as_dict() for one in self.agreement]}


def from_files(
    completions: Sequence[Path],
    *,
    prompts: Sequence[Path] = (),
    labels: Way = "classifier",
    resamples: int = 2000,
    seed: int = 0,
) -> Measured:
    """Measure replies in files.

    Args:
        completions: XSTest's csv, or plain outputs of models; folders and globs, too.
        prompts: the sets' own files; XSTest's csv needs none.
        labels: whose labels count.
        resamples, seed: of bootstrap intervals.

    Raises:
        InputError: a file or a row cannot be read, no reply belongs to a known prompt, or no reply has a label of this kind.
    """
    cases = read_cases(prompts) if prompts else []
    found = read_said(completions, cases)
    labelled = tuple((said, of_files(said, labels)) for said in found.said)
    if all(verdict.label is None for _, verdict in labelled):
        what = {"human": "final_label", "judge": JUDGE_COLUMN}.get(labels, "a text that can be read")
        raise InputError(
            f"None of {len(labelled):,} replies has a label of the kind '{labels}'",
            where=", ".join(map(str, completions)),
            cure=f"give files with {what}, or label by the classifier",
        )
    agreed = tuple(agreement(labelled, resamples=resamples, seed=seed))
    notes = [f"Labels: {_WAYS[labels]}."]
    if found.left_out:
        notes.append("Left out: " + ", ".join(f"{count:,} with a {reason}" for reason, count in found.left_out.items()) + ".")
    result = measure(
        labelled,
        cases=cases,
        judge=_judge(labelled, resamples, seed) if labels == "judge" else None,
        notes=notes,
        settings={"labels": labels, "completions": [p.name for p in completions], "prompts": [p.name for p in prompts]},
        resamples=resamples,
        seed=seed,
    )
    return Measured(result=result, matrix=tuple(matrix(labelled)), agreement=agreed, labelled=labelled)


_WAYS: dict[Way, str] = {
    "human": "what two people agreed on (final_label)",
    "classifier": "Starling's offline classifier of wording",
    "string-match": "XSTest's match of prefixes, a baseline that is wrong about one reply in ten",
    "judge": f"the judge's words in the files ({JUDGE_COLUMN})",
}


def _judge(labelled: Sequence[Labelled], resamples: int, seed: int) -> JudgeFacts:
    """What the labels in the files say about the judge who gave them; what it cost nobody wrote down."""
    asked = [(said, verdict) for said, verdict in labelled if verdict.outcome in (LABELLED, Outcome.unparsed.value)]
    outcomes = Counter(Outcome.ranked.value if verdict.label else verdict.outcome for _, verdict in asked)
    rows = [(said.final, verdict.label, said.case.id) for said, verdict in asked if said.final and verdict.label]
    same = [float(final == label) for final, label, _ in rows]
    share = bootstrap_mean(same, [case for *_, case in rows], resamples=resamples, seed=seed) if rows else None
    return JudgeFacts(
        judge=JUDGE_COLUMN,
        calls=len(asked),
        outcomes=dict(outcomes),
        unparsed_share=outcomes[Outcome.unparsed.value] / len(asked) if asked else None,
        human_agreement=share.mean if share else None,
        human_agreement_ci=(share.low, share.high) if share else None,
        human_votes=len(rows),
    )
