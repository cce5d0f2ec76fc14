"""The command `starling ratings`: a table of models from any file of votes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from starling.cli.common import AsJson, app, complain, print_json, print_table

if TYPE_CHECKING:
    from starling.ratings.cleaning import Rules
    from starling.ratings.reading import Votes
    from starling.ratings.standings import Table, Wanted

METHODS, INTERVALS, CLUSTERS = ("bradley-terry", "elo"), ("sandwich", "bootstrap", "none"), ("prompt", "judge")
PARTS, RIDGES = ("category", "language", "turn"), ("none", "coefficients", "fastchat")


Files = Annotated[
    list[Path],
    typer.Argument(metavar="FILE...", help="Votes: FastChat battles, pair judgments, left/right csv, comparisons; or folders."),
]
Method = Annotated[str, typer.Option("--method", metavar="NAME", help="bradley-terry, or elo (online).")]
Interval = Annotated[
    str | None,
    typer.Option("--interval", metavar="NAME", help="sandwich, bootstrap or none. Default: sandwich; of elo bootstrap."),
]
Rounds = Annotated[int, typer.Option("--rounds", min=2, help="Bootstrap rounds.")]
Seed = Annotated[int, typer.Option("--seed", help="Of the bootstrap.")]
Cluster = Annotated[
    str | None, typer.Option("--cluster", metavar="NAME", help="prompt or judge: votes that share it are not independent.")
]
Anchor = Annotated[
    str | None, typer.Option("--anchor", metavar="MODEL=RATING", help="Move the table so that the model has the rating.")
]
RelativeTo = Annotated[
    str, typer.Option("--relative-to", metavar="MODEL", help="What counts as fixed in the intervals: the mean, or a model.")
]
By = Annotated[str | None, typer.Option("--by", metavar="NAME", help="A table for each category, language or turn as well.")]
Prompts = Annotated[
    Path | None,
    typer.Option("--prompts", metavar="FILE", help="Categories of prompts: rows {question_id, category} or {id, type}."),
]
Saved = Annotated[
    Path | None,
    typer.Option("--ratings", metavar="FILE", help="What --json printed before: its ratings stay, only new models are fitted."),
]
Ridge = Annotated[float, typer.Option("--ridge", min=0, help="Penalty that gives ratings where models are on no common scale.")]
Matrix = Annotated[bool, typer.Option("--matrix", help="Battles, win rates and predicted win rates of every pair.")]
Style = Annotated[
    str | None,
    typer.Option("--style", metavar="NAMES", help="Hold style equal: all, or some of length,headers,lists,bold."),
]
StyleRidge = Annotated[str, typer.Option("--style-ridge", metavar="NAME", help="none, fastchat or coefficients (arena-rank's).")]
Anonymous = Annotated[bool, typer.Option("--anonymous", help="Only votes cast without seeing the models' names.")]
Language = Annotated[
    list[str] | None, typer.Option("--language", metavar="NAME", help="Only votes in this language; may be repeated.")
]
KnownLanguage = Annotated[bool, typer.Option("--known-language", help="Only votes whose language is known.")]
Without = Annotated[list[str] | None, typer.Option("--without", metavar="MODEL", help="Leave a model out; may be repeated.")]
NoTies = Annotated[bool, typer.Option("--no-ties", help="Leave ties out; otherwise they are half wins.")]
DailyCap = Annotated[
    int | None, typer.Option("--daily-cap", min=1, metavar="N", help="At most N votes of a judge and day (UTC).")
]
DropOutliers = Annotated[
    bool, typer.Option("--drop-outliers", help="Leave out judges whose votes are unlike the others' (p < .05).")
]
K = Annotated[float, typer.Option("--k", min=0, help="Elo: points that a sure winner's loss costs.")]
Initial = Annotated[float, typer.Option("--initial", help="Mean rating, and where Elo begins.")]
Points = Annotated[float, typer.Option("--scale", min=1e-9, help="Points that make odds of --base to 1.")]
Base = Annotated[float, typer.Option("--base", min=1.000001, help="See --scale.")]


@app.command("ratings")
def ratings(
    files: Files,
    method: Method = "bradley-terry",
    interval: Interval = None,
    rounds: Rounds = 1000,
    seed: Seed = 0,
    cluster: Cluster = None,
    anchor: Anchor = None,
    relative_to: RelativeTo = "mean",
    by: By = None,
    prompts: Prompts = None,
    saved: Saved = None,
    ridge: Ridge = 0.0,
    matrix: Matrix = False,
    style: Style = None,
    style_ridge: StyleRidge = "none",
    anonymous: Anonymous = False,
    language: Language = None,
    known_language: KnownLanguage = False,
    without: Without = None,
    no_ties: NoTies = False,
    daily_cap: DailyCap = None,
    drop_outliers: DropOutliers = False,
    k: K = 4.0,
    initial: Initial = 1000.0,
    scale: Points = 400.0,
    base: Base = 10.0,
    as_json: AsJson = False,
) -> None:
    """Rate models from votes: a table with ranks and 95 % intervals, from battle logs, human votes or judgments."""
    # Many small solves: threads gain nothing on them, and beside other work on the same cores they cost a factor of ten and more.
    # numpy's library reads this once, when it is loaded; a user's own value stays.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from starling.errors import UsageError
    from starling.ratings.battles import STYLE_FEATURES
    from starling.ratings.bradley_terry import Scale
    from starling.ratings.cleaning import Rules
    from starling.ratings.standings import Wanted

    for option, value, known in (
        ("--method", method, METHODS), ("--interval", interval, INTERVALS), ("--cluster", cluster, CLUSTERS),
        ("--by", by, PARTS), ("--style-ridge", style_ridge, RIDGES),
    ):  # fmt: skip
        _one_of(option, value, known)
    wanted = Wanted(
        method=method,  # type: ignore[arg-type]
        interval=interval or ("bootstrap" if method == "elo" else "sandwich"),  # type: ignore[arg-type]
        rounds=rounds,
        seed=seed,
        cluster=cluster,  # type: ignore[arg-type]
        ridge=ridge,
        k=k,
        scale=Scale(points=scale, base=base, initial=initial),
        anchor=_anchor(anchor),
        relative_to=relative_to,
        style=() if style is None else STYLE_FEATURES if style == "all" else tuple(style.split(",")),
        style_ridge=style_ridge,  # type: ignore[arg-type]
    )
    for name in wanted.style:
        _one_of("--style", name, STYLE_FEATURES)
    if style_ridge != "none" and not wanted.style:
        raise UsageError(
            "--style-ridge is a penalty of --style", where="the command line", cure="add --style all, or use --ridge"
        )
    rules = Rules(
        anonymous=anonymous,
        languages=tuple(language or ()),
        known_language=known_language,
        without=tuple(without or ()),
        ties=not no_ties,
        daily=daily_cap,
        outliers=drop_outliers,
    )
    _run(files, wanted, rules, by=by, prompts=prompts, saved=saved, matrix=matrix, as_json=as_json)


def _run(
    files: Sequence[Path],
    wanted: Wanted,
    rules: Rules,
    *,
    by: str | None,
    prompts: Path | None,
    saved: Path | None,
    matrix: bool,
    as_json: bool,
) -> None:
    from starling.progress import RichProgress
    from starling.ratings import standings
    from starling.ratings.bradley_terry import pair_sums
    from starling.ratings.cleaning import clean
    from starling.ratings.newcomers import read_known
    from starling.ratings.reading import read_categories, read_votes

    known = None
    if saved is not None:
        standings.check_against(wanted, by)
        known = read_known(saved)
    categories = None if prompts is None else read_categories(prompts)
    votes = read_votes(files, wanted=_columns(wanted, rules, by), categories=categories, progress=RichProgress())
    battles, removed = clean(votes.battles, rules)
    table = standings.rate(battles, wanted) if known is None else standings.rate_against(battles, known, wanted)
    parts = {} if by is None else standings.rate_parts(battles, by, wanted)
    pairs = standings.win_matrix(battles, table, pair_sums(battles)) if matrix else None
    if not as_json:
        _show(table, parts, pairs)
        _show_counts(votes, removed)
        return
    found = table.as_json() | {"rows": votes.rows, "outcomes": votes.outcomes, "removed": removed}
    if by is not None:
        found["parts"] = {n: {"reason": part} if isinstance(part, str) else part.as_json() for n, part in parts.items()}
    if pairs is not None:
        found["matrix"] = pairs
    print_json(found)


def _columns(wanted: Wanted, rules: Rules, by: str | None) -> frozenset[str]:
    """The columns of the votes that these options need."""
    needed = {
        "judge": wanted.cluster == "judge" or rules.daily is not None or rules.outliers,
        "prompt": wanted.cluster == "prompt",
        "language": bool(rules.languages) or rules.known_language or by == "language",
        "category": by == "category",
        "turn": by == "turn",
        "time": wanted.method == "elo" or rules.daily is not None,
        "anonymous": rules.anonymous,
        "style": bool(wanted.style),
    }
    return frozenset(name for name, need in needed.items() if need)


def _one_of(option: str, value: str | None, known: Sequence[str]) -> None:
    from starling.errors import UsageError

    if value is not None and value not in known:
        raise UsageError(f"There is no {value!r} for {option}", where="the command line", cure=f"use {', '.join(known)}")


def _anchor(text: str | None) -> tuple[str, float] | None:
    from starling.errors import UsageError

    if text is None:
        return None
    model, _, rating = text.rpartition("=")
    try:
        points = float(rating)
    except ValueError:
        points = float("nan")
    if not model or not isfinite(points):
        raise UsageError(f"{text!r} is no anchor", where="--anchor", cure="write MODEL=RATING, e.g. gpt-4=1200")
    return model, points


# ── what is shown ────────────────────────────────────────────────────────────────────────────────────────────────────


def _show(table: Table, parts: Mapping[str, Table | str], pairs: Mapping[str, Any] | None) -> None:
    _show_table(table)
    for name, part in parts.items():
        print(f"\n{name}")
        if isinstance(part, str):
            print(f"not rated: {part}")
        else:
            _show_table(part)
    if pairs is not None:
        print("\nwin rate of the row's model in %, and what its rating predicts")
        print_table(_pair_rows(pairs))


def _show_table(table: Table) -> None:
    print_table(
        {
            "rank": "" if one.rank_ci is None else "–".join(str(rank) for rank in dict.fromkeys(one.rank_ci)),
            "model": one.model,
            "rating": round(one.rating, 1),
            "95 % interval": "" if one.ci is None else f"[{one.ci[0]:,.1f}, {one.ci[1]:,.1f}]",
            **({"without style": round(one.without_style, 1)} if one.without_style is not None else {}),
            "battles": one.battles,
            "win rate": _percent(one.win_rate),
            "expected": _percent(one.expected_win_rate),
            **({"saved": "yes" if one.known else "new"} if any(o.known for o in table.standings) else {}),
        }
        for one in table.standings
    )
    if table.style:
        print()
        print_table(
            {
                "style": one["feature"],
                "points per spread": round(one["points"], 1),
                "95 % interval": f"[{one['ci'][0]:.1f}, {one['ci'][1]:.1f}]",
                "spread": round(one["spread"], 3),
            }
            for one in table.style
        )
    unit = "" if table.clusters is None else f" from {table.clusters:,} {table.cluster or 'battle'}s"
    relative = (
        "" if table.interval == "none" else f", {table.interval} intervals relative to {_reference(table.relative_to)}{unit}"
    )
    print(f"\n{table.method}: {table.battles:,} battles, {len(table.standings)} models{relative}")
    for note in table.notes:
        print(f"note: {note}")


def _reference(name: str) -> str:
    return "the mean" if name == "mean" else name


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def _pair_rows(pairs: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for i, model in enumerate(pairs["models"]):
        row: dict[str, Any] = {"model": model}
        for j, other in enumerate(pairs["models"]):
            won = pairs["won"][i][j]
            row[other] = "" if i == j else f"{'–' if won is None else f'{100 * won:.0f}'}/{100 * pairs['predicted'][i][j]:.0f}"
        rows.append(row)
    return rows


def _show_counts(votes: Votes, removed: Mapping[str, int]) -> None:
    if len(votes.outcomes) > 1 or "rated" not in votes.outcomes:
        complain(f"of {votes.rows:,} rows: " + ", ".join(f"{n:,} {name}" for name, n in votes.outcomes.items()))
    if votes.unknown_winners:
        complain(f"unknown winners such as {', '.join(map(repr, votes.unknown_winners))}")
    if removed:
        complain("removed: " + ", ".join(f"{n:,} {name}" for name, n in removed.items()))
