"""How a benchmark's table is to be read: which differences may be believed, and what the judge's noise and bias are, in words.

One place for terminal, page and comparison, so that none of them can show a score without what speaks against it. A difference
counts when its interval, adjusted for all pairs of the table, excludes 0 *and* it is larger than the spread of the judge's own
repeated verdicts (FastChat reports 0.16 points on MT-Bench from nothing but asking again); everything else is open. The texts
are plain: minus signs and thousands are set by whoever shows them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from starling.evaluate.results import Difference, JudgeFacts, Result
from starling.records import Finish, Outcome

ALPHA = 0.05
FAILURES = frozenset({*(o.value for o in Outcome if o is not Outcome.ranked), Finish.error.value, "response_error"})
"""Outcomes that are no verdict and no answer."""

Standing = Literal["first", "second", "open"]


def digits(unit: str) -> int:
    """Decimals of a score: one of percentages, two of points."""
    return 1 if "%" in unit else 2


def score_text(score: float | None, unit: str) -> str:
    """A score in its unit; a dash where nothing could be measured."""
    return "–" if score is None else f"{score:.{digits(unit)}f}"


def interval_text(ci: Sequence[float] | None, places: int) -> str:
    """Both ends, e.g. "6.92 to 7.60"; empty without an interval."""
    return "" if ci is None else f"{ci[0]:.{places}f} to {ci[1]:.{places}f}"


def standing(difference: float, ci: tuple[float, float], p_adjusted: float, spread: float | None) -> tuple[Standing, str]:
    """Which of two models is better, and why not when that is open.

    Args:
        difference: first − second, higher is better.
        ci: its 95 % interval.
        p_adjusted: for all pairs that are looked at.
        spread: standard deviation of the score when the judge is asked again, None where it was asked once.

    >>> standing(0.10, (0.02, 0.18), 0.03, 0.16)
    ('open', "within the judge's repeat spread")
    """
    if ci[0] <= 0 <= ci[1]:
        return "open", "the interval includes 0"
    if p_adjusted >= ALPHA:
        return "open", "not after adjustment for all pairs"
    if spread is not None and abs(difference) <= spread:
        return "open", "within the judge's repeat spread"
    return ("first", "") if difference > 0 else ("second", "")


def standing_of(one: Difference, result: Result) -> tuple[Standing, str]:
    """`standing` of a row of a result's own differences; where lower is better, the other model is."""
    found, why = standing(one.difference, one.ci, one.p_adjusted, result.judge.repeat_spread if result.judge else None)
    if result.higher_is_better or found == "open":
        return found, why
    return ("second" if found == "first" else "first"), why


def verdict_text(one: Difference, result: Result) -> str:
    """What follows from a difference, in words."""
    found, why = standing_of(one, result)
    return f"not distinguishable: {why}" if found == "open" else f"{one.first if found == 'first' else one.second} is better"


def finding(result: Result) -> tuple[str, str]:
    """A benchmark in half a sentence: is the best model better than the next one?

    Returns:
        The words, and better, open, worse (nothing was measured) or "" (there is one model only).
    """
    measured = [m for m in result.models if m.overall.score is not None]
    if not measured:
        return "nothing could be measured", "worse"
    best = measured[0]
    if len(measured) == 1:
        return f"{best.model}: {score_text(best.overall.score, result.unit)} {result.unit}", ""
    pair = next((d for d in result.differences if {d.first, d.second} == {best.model, measured[1].model}), None)
    if pair is None:
        return f"{best.model} has the best score; no paired test", "open"
    standing, why = standing_of(pair, result)
    if standing == "open":
        return f"{best.model} and {measured[1].model} are not distinguishable: {why}", "open"
    winner, other = (pair.first, pair.second) if standing == "first" else (pair.second, pair.first)
    return f"{winner} is better than {other}", "better"


def p_text(p: float) -> str:
    return "< 0.0001" if p < 0.0001 else f"{p:.2g}" if p < 0.01 else f"{p:.3f}"


# ── the judge ────────────────────────────────────────────────────────────────────────────────────────────────────────


def judge_facts(result: Result) -> list[tuple[str, str]]:
    """Everything that is known about the judge of a table, as (what, said); what is not known is said, too."""
    judge = result.judge
    if judge is None:
        return [("judge", "none: a fixed rule decides, so there is neither order nor mood to measure")]
    return [
        ("judge", judge.judge),
        ("position", _position(judge)),
        ("asked again", _repeats(judge, result.unit)),
        ("no verdict", _unparsed(judge)),
        ("people", _people(judge)),
        ("cost", _cost(judge)),
    ]


def noise_text(result: Result) -> str:
    """The judge's noise and bias in one cell of a table."""
    judge = result.judge
    if judge is None:
        return "a fixed rule"
    gap = "order not measured" if judge.position_gap is None else f"order {100 * judge.position_gap:+.1f}"
    spread = "asked once" if judge.repeat_spread is None else f"again ± {judge.repeat_spread:.{digits(result.unit) + 1}f}"
    lost = "" if judge.unparsed_share is None else f", {100 * judge.unparsed_share:.1f} % without a verdict"
    return f"{gap}, {spread}{lost}"


def _position(judge: JudgeFacts) -> str:
    if judge.position_gap is None:
        return "not measured: one answer at a time, or in one order only"
    gap, ci = judge.position_gap, judge.position_gap_ci
    bounds = "" if ci is None else f" [{100 * ci[0]:+.1f}, {100 * ci[1]:+.1f}]"
    said = f"gap {100 * gap:+.1f} points{bounds} for the answer shown first"
    if ci is not None:
        side = "first" if ci[0] > 0 else "second" if ci[1] < 0 else ""
        said += f": it favours the {side}" if side else ": no order is favoured measurably"
    return said


def _repeats(judge: JudgeFacts, unit: str) -> str:
    if judge.repeat_spread is None:
        return "no: how far the table would move is not known"
    places = digits(unit) + 1
    return f"{judge.repeats} times, spread {judge.repeat_spread:.{places}f} {unit}; smaller differences are noise"


def _unparsed(judge: JudgeFacts) -> str:
    share = "" if judge.unparsed_share is None else f"{100 * judge.unparsed_share:.1f} % of calls"
    return (
        f"{share}{' (' if share else ''}{outcomes_text(judge.outcomes)}{')' if share else ''}" if judge.outcomes else share or "–"
    )


def outcomes_text(outcomes: Mapping[str, int]) -> str:
    """Counts by name, e.g. "ranked 1,592, unparsed 8"."""
    return ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in outcomes.items())


def _people(judge: JudgeFacts) -> str:
    if judge.human_agreement is None:
        return "no votes of people on these answers"
    ci = judge.human_agreement_ci
    bounds = "" if ci is None else f" [{100 * ci[0]:.1f}, {100 * ci[1]:.1f}]"
    return f"say the same in {100 * judge.human_agreement:.1f} %{bounds} of {judge.human_votes:,} votes"


def _cost(judge: JudgeFacts) -> str:
    said = [f"{judge.calls:,} calls", f"{judge.prompt_tokens:,} + {judge.completion_tokens:,} tokens"]
    if judge.estimated:
        said[-1] += f" (of {judge.estimated:,} calls estimated)"
    said.append("dollars not known" if judge.dollars is None else f"${judge.dollars:,.2f}")
    if judge.seconds is not None:
        said.append(f"{duration(judge.seconds)} of waiting, summed")
    return ", ".join(said)


def duration(seconds: float) -> str:
    """Seconds in the unit that a person would use.

    >>> duration(5400)
    '1.5 h'
    """
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
