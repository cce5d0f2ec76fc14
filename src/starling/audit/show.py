"""An audit as tables and sentences for people, on the terminal and on the page. It reads the JSON form and measures nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from starling.audit.measure import SHARES
from starling.judge.verdict import LETTERS

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Section:
    """One table with its heading and a sentence on how to read it."""

    title: str
    about: str
    rows: tuple[dict[str, str], ...]


# ── one pass ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def position_rows(found: Json) -> list[dict[str, str]]:
    """The table by position: one row per position shown."""
    columns = (found["first_share"], found["first_share_ci"], found["mean_rank"], found["mean_rank_ci"])
    return [
        {
            "shown": LETTERS[i],
            "first": f"{first:.3f}",
            "95 % of first": _span(first_ci, 3),
            "mean rank": f"{rank:.2f}",
            "95 % of rank": _span(rank_ci, 2),
        }
        for i, (first, first_ci, rank, rank_ci) in enumerate(zip(*columns, strict=True))
    ]


def share_rows(found: Json) -> list[dict[str, str]]:
    """The table of single figures of one pass: those that there is something to say about."""
    return _figures(found, SHARES)


def lines(found: Json) -> list[str]:
    """What no table holds: how many calls ended how, what was left out, and the tests."""
    said = [f"{found['calls']} calls: " + _counts(found["outcomes"])]
    if found["unparsed_reasons"]:
        said.append("unparsed: " + _counts(found["unparsed_reasons"]))
    if len(found["sizes"]) > 1:
        others = ", ".join(f"{count} of {size}" for size, count in found["sizes"].items() if size != str(found["k"]))
        said.append(f"figures are over rankings of {found['k']} answers; left out: {others}")
    for what, name in (("first places", "first_chi_square"), ("mean ranks", "rank_chi_square")):
        test = found[name]
        if test is not None:
            said.append(
                f"{what} equal over positions? chi-square {test['statistic']:.1f}, {test['dof']} degrees, p = {test['p']:.2g}"
            )
    if found["position_slope"] is not None:
        span = _span(found["position_slope_ci"], 3)
        said.append(f"ranks lost per place further down: {found['position_slope']:.3f} ({span}); 0 without fault")
    return said


# ── a live audit ─────────────────────────────────────────────────────────────────────────────────────────────────────

_AGREEMENT: dict[str, tuple[str, float | None]] = {
    "tau": ("Kendall's τ", 1.0),
    "top1": ("same best answer", 1.0),
    "flips": ("pairs that change sides", 0.0),
    "kappa": ("Cohen's κ over pairs", 1.0),
}
_VOTES: dict[str, tuple[str, float | None]] = {
    "agreement": ("judge and a person say the same", None),
    "people": ("two people say the same", None),
    "agreement_decided": ("judge and a person, no ties", None),
    "people_decided": ("two people, no ties", None),
    "kappa": ("Cohen's κ, judge and a person", None),
    "kappa_decided": ("the same, no ties", None),
    "majority": ("judge says what most people say", None),
    "majority_kappa": ("Cohen's κ, judge and most people", None),
    "alpha_people": ("Krippendorff's α among people", None),
    "alpha_people_ordinal": ("the same, tie between the sides", None),
    "alpha_with_judge": ("α with the judge as one more voter", None),
    "judge_ties": ("ties of the judge", None),
    "people_ties": ("ties of people", None),
    "judge_a": ("judge's decided verdicts for side a", None),
    "people_a": ("people's decided votes for side a", None),
}
_ASKED: dict[str, tuple[str, float | None]] = {
    "consistent": ("same verdict in both orders", 1.0),
    "first_shown": ("verdicts for the answer shown first", 0.5),
}
_CANARIES: dict[str, tuple[str, float | None]] = {
    "twins_adjacent": ("equal texts next to each other", 1.0),
    "twins_first_shown": ("of equal texts, the one shown first above", 0.5),
    "empty_last": ("empty answer last", 1.0),
    "aside_last": ("answer to another question last", 1.0),
}


def sections(found: Json) -> list[Section]:
    """Everything beyond one pass that the audit holds, in the order to read it."""
    listed = []
    if "stability" in found:
        listed.append(_consistency(found))
        listed.append(_quality(found))
    if "votes" in found:
        listed += votes_sections(found["votes"])
    if "canaries" in found:
        about = f"Asked: {_counts(found['canaries']['outcomes'])}. Hosts are resampled, {found['canaries']['hosts']} of them."
        listed.append(Section("Canaries", about, tuple(_figures(found["canaries"], _CANARIES))))
    if "attacks" in found:
        listed.append(_attacks(found["attacks"]))
    if "modes" in found:
        listed.append(_modes(found))
    if "parts" in found:
        listed.append(_costs(found))
    return [replace(section, rows=_without_empty(section.rows)) for section in listed if section.rows]


def _without_empty(rows: tuple[dict[str, str], ...]) -> tuple[dict[str, str], ...]:
    """The rows without columns that are empty in all of them."""
    filled = {name for row in rows for name, cell in row.items() if cell}
    return tuple({name: cell for name, cell in row.items() if name in filled} for row in rows)


def _consistency(found: Json) -> Section:
    rows = []
    for name, what in (("stability", "asked again"), ("reordered", "another order")):
        rows += [{"compared": what, **row} for row in _figures(found[name], _AGREEMENT)]
        key = f"good_natured_{'stable' if name == 'stability' else name}"
        rows += [{"compared": what, **row} for row in _figures(found, {key: ("same view of the request", 1.0)})]
    effect = {"tau": ("τ, another order minus again", 0.0), "top1": ("same best, another order minus again", 0.0)}
    rows += [{"compared": "order alone", **row} for row in _figures(found["order_effect"], effect)]
    if found["reference"] is not None:
        about = {**_AGREEMENT, "good_natured": ("same view of the request", None)}
        rows += [{"compared": found["reference"]["judge"], **row} for row in _figures(found["reference"], about, ideal=False)]
    compared = {"Asked again": found["stability"], "another order": found["reordered"]}
    text = ", ".join(f"{name}: {part['prompts']} prompts ({part['left_out']} left out)" for name, part in compared.items())
    return Section("Consistency", f"{text}. What the order does is what it takes away beyond mere repetition.", tuple(rows))


def _quality(found: Json) -> Section:
    about: dict[str, tuple[str, float | None]] = {
        "longer_wins_close": ("longer wins, pairs close in the other order", 0.5),
        "longer_wins_equal": ("longer wins, pairs of equal true quality", 0.5),
    }
    rows = _figures(found, about)
    if found["reference"] is not None:
        rows += _figures(found["reference"], {"longer_wins_close": ("longer wins, pairs close for the reference", 0.5)})
    if found["accuracy"] is not None:
        truth = {"pairs": ("pairs in their true order", 1.0), "top1": ("best answer truly best", 1.0)}
        rows += _figures(found["accuracy"], truth)
    return Section("Length and truth", "Length among answers that are about equally good; truth where it is known.", tuple(rows))


def votes_sections(found: Json) -> list[Section]:
    """Agreement with people, and by how many of them voted."""
    about = f"{found['pairs']} pairs, {found['votes']} votes of people."
    if found["left_out"]:
        about += f" Left out: {_counts(found['left_out'])}."
    rows = _figures(found, _VOTES)
    if "asked" in found:
        about += f" Judge calls: {_counts(found['asked']['outcomes'])}."
        rows += _figures(found["asked"], _ASKED)
    by_raters = tuple(
        {
            "people": str(row["raters"]),
            "pairs": str(row["pairs"]),
            "with a majority": str(row["with_majority"]),
            "judge agrees": _value(row["agreement"]),
            "95 %": _span(row.get("agreement_ci"), 3),
        }
        for row in found["by_raters"]
    )
    return [Section("People's votes", about, tuple(rows)), Section("By people per pair", "Judge and majority.", by_raters)]


def _attacks(found: Json) -> Section:
    names = ("attempts", "not_ranked", "parse_affected")
    total = {"family": "all", "not_ranked": found["attempts"] - found["outcomes"].get("ranked", 0)} | {
        name: found[name] for name in ("attempts", "parse_affected", "gain", "gain_ci", "first", "first_ci")
    }
    rows = tuple(
        {
            "attack": row["family"],
            **{name.replace("_", " "): str(row[name]) for name in names},
            "places won": _value(row["gain"], 2, signed=True),
            "95 %": _span(row.get("gain_ci"), 2),
            "first": _value(row["first"]),
            "95 % of first": _span(row.get("first_ci"), 3),
        }
        for row in (*found["families"], total)
    )
    about = (
        f"{found['attempts']} attempts by answers that should be last; first without an attack: {_value(found['first_before'])}. "
        "Parse affected counts attempts that reached the frame or the parser; it must be 0."
    )
    return Section("Attacks", about, rows)


def _modes(found: Json) -> Section:
    rows = tuple(
        {
            "mode": row["mode"],
            "ranked": str(row["ranked"]),
            "ranks a place": _value(row["position_slope"], 2, signed=True),
            "p of firsts": "–" if row["first_p"] is None else f"{row['first_p']:.1g}",
            "first wins": _value(row["first_named_win"]),
            "contradicts": _value(row["contradiction"]),
            "order on τ": _value(row["order_effect"], 3, signed=True),
            "95 % of it": _span(row.get("order_effect_ci"), 3),
            "stable τ": _value(row["stability"]),
            "pairs right": _value(row["pair_accuracy"]),
            "95 % of pairs": _span(row.get("pair_accuracy_ci"), 3),
            "best right": _value(row["top1_accuracy"]),
            "calls": _value(row["calls"], 0),
            "tokens": f"{_value(row['prompt_tokens'], 0)} + {_value(row['completion_tokens'], 0)}",
            "$ per 1,000": "–" if row["dollars"] is None else f"{1000 * row['dollars']:,.2f}",
        }
        for row in found["modes"]
    )
    return Section("Ways of asking", found["modes_about"], rows)


def _costs(found: Json) -> Section:
    rows = tuple(
        {
            "part": name,
            "calls": f"{cost['calls']:,}",
            "prompt tokens": f"{cost['prompt_tokens']:,}",
            "reply tokens": f"{cost['completion_tokens']:,}",
            "dollars": "–" if cost["dollars"] is None else f"{cost['dollars']:,.2f}",
            "seconds a call": "–" if not cost["seconds"] else f"{cost['seconds'] / cost['calls']:.2f}",
        }
        for name, cost in found["parts"].items()
    )
    estimated = sum(cost["estimated"] for cost in found["parts"].values())
    about = "Tokens are the servers' own counts." if not estimated else f"Tokens of {estimated:,} calls are estimated."
    if "cost" in found:
        each = found["cost"]["per_ranking"]
        tokens = f"{each['prompt_tokens']:,.0f} + {each['completion_tokens']:,.0f}"
        about += f" One ranking: {each['calls']:.1f} calls, {tokens} tokens."
    return Section("Cost", about, rows)


# ── cells ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _figures(found: Json, about: Mapping[str, tuple[str, float | None]], *, ideal: bool = True) -> list[dict[str, str]]:
    """One row per figure that has a value."""
    return [
        {
            "figure": said,
            "value": _value(found[name]),
            "95 %": _span(found.get(f"{name}_ci"), 3),
            "of": str(found.get(f"{name}_n", "")),
            "without fault": "" if perfect is None or not ideal else f"{perfect:g}",
        }
        for name, (said, perfect) in about.items()
        if found.get(name) is not None
    ]


def _value(value: float | None, digits: int = 3, *, signed: bool = False) -> str:
    return "–" if value is None else f"{value:{'+' if signed else ''},.{digits}f}"


def _span(interval: Any, digits: int) -> str:
    return "" if interval is None else f"{interval[0]:.{digits}f} to {interval[1]:.{digits}f}"


def _counts(found: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in found.items()) or "none"
