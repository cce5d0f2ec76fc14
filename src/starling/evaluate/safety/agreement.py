"""Do the labels in use say what people say? Per model: agreement and kappa with the final label, and between two people.

As in XSTest, what counts first is whether a reply is a full compliance or not; all three labels are there, too. Beside them
stands XSTest's prefix match on the same replies, with an exact paired test (McNemar's, which is the sign test on the replies that
only one of both labels rightly).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from starling import stats
from starling.evaluate.safety.measure import Labelled
from starling.refusals import Label, string_match
from starling.stats import Interval
from starling.stats_agreement import kappa_interval
from starling.stats_comparisons import sign_flip_p


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Of one model's replies, those with a final label of people and a label of ours; intervals are of 95 %."""

    model: str
    prompts: str
    """Which of them: all, safe, unsafe."""
    n: int
    refusal: Interval
    """Share on which both call it a refusal (whole or in part), or both do not."""
    three: Interval
    """Share with the very same of the three labels."""
    kappa: Interval | None
    """Cohen's, of refusal or not."""
    string_match: Interval
    """Share on which the prefix match is right about refusal or not."""
    p: float
    """Of the paired test against the prefix match."""
    people: Interval | None
    """Share on which two people agree about refusal or not; None where the files have no two labels."""
    people_three: Interval | None
    people_kappa: Interval | None
    confusion: dict[str, dict[str, int]]
    """People's label → ours → replies."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data, shares with their 95 % intervals."""
        plain = {
            name: None if found is None else {"mean": found.mean, "ci": [found.low, found.high], "n": found.n}
            for name, found in (
                ("refusal_or_not", self.refusal), ("three_labels", self.three), ("kappa", self.kappa),
                ("string_match", self.string_match), ("people", self.people),
                ("people_three_labels", self.people_three), ("people_kappa", self.people_kappa),
            )
        }  # fmt: skip
        return {
            "model": self.model,
            "prompts": self.prompts,
            "n": self.n,
            **plain,
            "p_string_match": self.p,
            "confusion": self.confusion,
        }


def agreement(labelled: Iterable[Labelled], *, resamples: int = 2000, seed: int = 0) -> list[Agreement]:
    """Per model the replies that people labelled: all, those to safe, and those to unsafe prompts."""
    by_model: dict[str, list[Labelled]] = {}
    for one in labelled:
        if one[0].final is not None and one[1].label is not None:
            by_model.setdefault(one[0].model, []).append(one)
    found = []
    for model, rows in by_model.items():
        sides = {side: [row for row in rows if row[0].case.safe is (side == "safe")] for side in ("safe", "unsafe")}
        found += [_of(model, side, some, resamples, seed) for side, some in {"all": rows, **sides}.items() if some]
    return found


def _of(model: str, prompts: str, rows: Sequence[Labelled], resamples: int, seed: int) -> Agreement:
    def share(one: Sequence[Hashable], other: Sequence[Hashable], cases: Sequence[str]) -> Interval:
        return _share(one, other, cases, resamples, seed)

    cases = [said.case.id for said, _ in rows]
    final, ours = [said.final for said, _ in rows], [verdict.label for _, verdict in rows]
    refused, found = [_refused(label) for label in final], [_refused(label) for label in ours]
    matched = [_refused(string_match(said.text)) for said, _ in rows]
    right = [(float(a == truth), float(b == truth)) for a, b, truth in zip(found, matched, refused, strict=True)]
    twice = [said for said, _ in rows if len(said.people) == 2]
    first, second = [said.people[0] for said in twice], [said.people[1] for said in twice]
    refused_1, refused_2, asked = [_refused(a) for a in first], [_refused(b) for b in second], [said.case.id for said in twice]
    return Agreement(
        model=model,
        prompts=prompts,
        n=len(rows),
        refusal=share(found, refused, cases),
        three=share(ours, final, cases),
        kappa=kappa_interval(found, refused, cases, resamples=resamples, seed=seed),
        string_match=share(matched, refused, cases),
        p=sign_flip_p([a - b for a, b in right], seed=seed),
        people=share(refused_1, refused_2, asked) if twice else None,
        people_three=share(first, second, asked) if twice else None,
        people_kappa=kappa_interval(refused_1, refused_2, asked, resamples=resamples, seed=seed) if twice else None,
        confusion=_confusion(final, ours),
    )


def _confusion(final: Sequence[Label | None], ours: Sequence[Label | None]) -> dict[str, dict[str, int]]:
    counts = Counter(zip(final, ours, strict=True))
    return {label.value: {other.value: counts[label, other] for other in Label} for label in Label}


def _refused(label: Label | None) -> bool:
    return label is not Label.FULL_COMPLIANCE


def _share(one: Sequence[Hashable], other: Sequence[Hashable], prompts: Sequence[str], resamples: int, seed: int) -> Interval:
    """Share of equal labels: Wilson's interval where every prompt comes once, else a bootstrap of prompts."""
    same = [float(a == b) for a, b in zip(one, other, strict=True)]
    if len(set(prompts)) < len(prompts):
        return stats.bootstrap_mean(same, prompts, resamples=resamples, seed=seed)
    low, high = stats.wilson_interval(sum(same), len(same))
    return Interval(sum(same) / len(same), low, high, len(same), len(same))
