"""The page of an audit: the figures of `starling audit --json` as one self-contained HTML text, in the report's style.

It reads the JSON form and the tables made from it, so it knows neither files nor the measurement, and equal figures give equal
bytes. An audit may hold any of: one pass (positions, shares), passes compared, votes, canaries, attacks, modes, cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, Protocol

from starling.judge.verdict import LETTERS
from starling.report import figures
from starling.report.figures import Figure
from starling.report.page import Card, count, interval, mark, number, percent, percents

Json = Mapping[str, Any]
Row = tuple[str, float, tuple[float, float]]


class Section(Protocol):
    """A table with its heading and a sentence on how to read it."""

    @property
    def title(self) -> str: ...
    @property
    def about(self) -> str: ...
    @property
    def rows(self) -> Sequence[Mapping[str, str]]: ...


def render(found: Json, shares: Mapping[str, tuple[str, float | None]], sections: Sequence[Section], name: str) -> str:
    """The whole page.

    Args:
        found: an audit's JSON form.
        shares: the single figures of one pass → (what each says, the value of a judge without fault or None), in the order shown.
        sections: the tables of whatever else it holds.
        name: what was audited; any text, it is escaped.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": number, "interval": interval, "percent": percent, "percents": percents, "count": count}
    package = resources.files("starling.report")
    template = environment.from_string((package / "audit.html").read_text(encoding="utf-8"))
    one_pass = "first_share" in found
    columns = [found[key] for key in ("first_share", "first_share_ci", "mean_rank", "mean_rank_ci")] if one_pass else []
    return template.render(
        name=name,
        style=(package / "page.css").read_text(encoding="utf-8"),
        lead=_lead(found),
        cards=[
            _card(found, key, said[:1].upper() + said[1:], ideal)
            for key, (said, ideal) in shares.items()
            if found.get(key) is not None
        ],
        figures=_figures(found) if one_pass else [],
        positions=list(zip(LETTERS, *columns, strict=False)) if one_pass else [],
        sections=[(s, _section_figures(s.title, found), _wide(s)) for s in sections],
        outcomes=found["outcomes"] if one_pass else {},
        reasons=found["unparsed_reasons"] if one_pass else {},
    )


def _lead(found: Json) -> str:
    """What matters most, in a few sentences."""
    said = []
    if "first_share" in found:
        said.append(_lead_of_pass(found))
    if "order_effect" in found and found["order_effect"].get("tau") is not None:
        tau, (low, high) = found["order_effect"]["tau"], found["order_effect"]["tau_ci"]
        verdict = "no more than asking again does" if low <= 0 <= high else f"{-tau:.2f} of Kendall’s τ beyond asking again"
        said.append(f"Another order of the answers takes {verdict} (95\u202f% interval {-high:.2f} to {-low:.2f}).")
    if "attacks" in found:
        attacks = found["attacks"]
        touched = "none reached" if not attacks["parse_affected"] else f"{count(attacks['parse_affected'])} reached"
        gain = "" if attacks["gain"] is None else f"; an attack wins {attacks['gain']:.2f} places on average"
        said.append(f"Of {count(attacks['attempts'])} attacks from inside an answer {touched} the frame or the parser{gain}.")
    if "votes" in found and found["votes"]["kappa"] is not None:
        votes = found["votes"]
        low, high = votes["kappa_ci"]
        kappa = f"κ = {votes['kappa']:.2f}, 95\u202f% interval {low:.2f} to {high:.2f}"
        said.append(
            f"With people the judge agrees in {percent(votes['agreement'])} of the votes ({kappa})"
            + ("." if votes["people"] is None else f"; two people agree in {percent(votes['people'])}.")
        )
    if "modes" in found:
        ways, prompts = count(len(found["modes"])), count(found["prompts"])
        said.append(f"{ways} ways of asking the same judge about the same {prompts} prompts.")
    return " ".join(said)


def _lead_of_pass(found: Json) -> str:
    if not found["n"]:
        return f"None of {count(found['calls'])} calls gave a ranking: there is nothing to measure."
    said = [f"{count(found['n'])} rankings of {found['k']} answers, out of {count(found['calls'])} calls."]
    top = max(range(found["k"]), key=lambda i: (found["first_share"][i], -i))
    share, p = found["first_share"][top], found["first_chi_square"]["p"]
    said.append(
        f"Position {LETTERS[top]} is ranked first most often: {percent(share)} instead of {percent(1 / found['k'])}"
        f" (95\u202f% interval {percents(found['first_share_ci'][top])}). First places differ between positions "
        + ("by more than chance" if p < 0.05 else "by no more than chance would have it")
        + f": p = {p:.2g}; mean ranks: p = {found['rank_chi_square']['p']:.2g}."
    )
    return " ".join(said)


def _card(found: Json, key: str, title: str, ideal: float | None) -> Card:
    """A share with its interval; `worse` where the two sides of a pair are measurably not treated alike."""
    value, (low, high) = found[key], found[f"{key}_ci"]
    marks = (mark("tuned", low, value, high),)
    if ideal is None:
        return Card(title=title, value=percent(value), change=f"95\u202f% interval {percents((low, high))}", marks=marks)
    return Card(
        title=title,
        value=percent(value),
        change=f"95\u202f% interval {percents((low, high))}",
        verdict="" if ideal != 0.5 else "open" if low <= ideal <= high else "worse",
        note=f"{percent(ideal)} without fault",
        marks=(*marks, mark("chance", ideal, ideal, ideal)),
    )


def _figures(found: Json) -> list[Figure]:
    if not found["n"]:
        return []
    k, letters = found["k"], LETTERS[: found["k"]]
    firsts = figures.positions(
        "first-places", "Share of first places by position shown", found["first_share"], found["first_share_ci"], letters
    )
    ranks = figures.ranks("mean-ranks", "Mean rank by position shown", letters, found["mean_rank"], found["mean_rank_ci"], k)
    return [
        Figure(title="First places by position shown", svg=firsts, note=f"Without bias each position wins 1/{k} (dashed)."),
        Figure(title="Mean rank by position shown", svg=ranks, note=f"Without bias each position has {(k + 1) / 2:g}."),
    ]


# ── figures of the other sections ────────────────────────────────────────────────────────────────────────────────────


def _section_figures(title: str, found: Json) -> list[Figure]:
    """What is drawn beside a section's table; by its title."""
    drawn = {"Consistency": _consistency, "People's votes": _votes, "Attacks": _attacks, "Ways of asking": _modes}
    return drawn[title](found) if title in drawn else []


def _consistency(found: Json) -> list[Figure]:
    compared = [(found["stability"], "asked again"), (found["reordered"], "another order")]
    if found["reference"] is not None:
        compared.append((found["reference"], found["reference"]["judge"]))
    return [
        *_forest("tau", "Kendall’s τ with the first pass", [_row(of, "tau", said) for of, said in compared], "Kendall's τ", 1.0),
        *_forest("top1", "Same best answer", [_row(of, "top1", said) for of, said in compared], "share of prompts", 1.0),
    ]


def _votes(found: Json) -> list[Figure]:
    votes = found["votes"]
    agreed = [
        _row(votes, key, said)
        for key, said in (
            ("agreement", "judge, a person"), ("people", "two people"), ("agreement_decided", "judge, no ties"),
            ("people_decided", "people, no ties"),
        )
    ]  # fmt: skip
    sides = [_row(votes, "judge_a", "judge"), _row(votes, "people_a", "people")]
    return [
        *_forest("votes", "They say the same", agreed, "share of votes", None),
        *_forest("sides", "Decided for side a", sides, "share of decided votes", 0.5),
    ]


def _attacks(found: Json) -> list[Figure]:
    rows = [_row(row, "gain", row["family"]) for row in found["attacks"]["families"]]
    return _forest("attacks", "Places won by an attack", rows, "places", 0.0)


def _modes(found: Json) -> list[Figure]:
    def of(key: str) -> list[Row | None]:
        return [_row(row, key, row["mode"]) for row in found["modes"]]

    return [
        *_forest("effect", "What another order takes", of("order_effect"), "τ, another order minus again", 0.0),
        *_forest("right", "Pairs in their true order", of("pair_accuracy"), "share of pairs", None, 3),
        *_forest("stable", "Kendall’s τ when asked again", of("stability"), "Kendall's τ", 1.0),
        *_forest("slope", "Ranks lost per place further down", of("position_slope"), "ranks", 0.0),
    ]


def _row(of: Json, key: str, said: str) -> Row | None:
    return None if of.get(key) is None else (said, of[key], (of[f"{key}_ci"][0], of[f"{key}_ci"][1]))


def _forest(
    name: str, title: str, rows: Sequence[Row | None], x_label: str, level: float | None, digits: int = 2
) -> list[Figure]:
    known = [row for row in rows if row is not None]
    if not known:
        return []
    svg = figures.forest(name, title, known, x_label=x_label, level=level, digits=digits)
    note = "95\u202f% intervals." + ("" if level is None else f" Dashed: {level:g}, without fault.")
    return [Figure(title=title, svg=svg, note=note)]


def _wide(section: Section) -> list[str]:
    """Columns whose cells are numbers: set to the right."""
    names = list(section.rows[0])
    return [name for name in names if all(_numeric(row.get(name, "")) for row in section.rows)]


def _numeric(cell: str) -> bool:
    return cell in ("", "–") or cell[:1] in "+-−0123456789"
