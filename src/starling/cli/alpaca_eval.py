"""The command `starling evaluate alpaca-eval`: from official files, or live by a settings file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast, get_args

import typer

from starling.cli.benchmark_tables import print_result
from starling.cli.common import AsJson, Overrides, complain, load, print_json
from starling.cli.evaluate import evaluate_app
from starling.errors import UsageError

if TYPE_CHECKING:
    from starling.evaluate.alpaca_eval.measure import Measured
    from starling.evaluate.results import Result

LEADERBOARD_FILE = "leaderboard.csv"
MOST_COMPARED = 6
"""Models up to which all pairs and intervals of parts are printed; --json and result.json have them always."""
By = Literal["row", "instruction"]

_LiveConfig = Annotated[
    Path | None, typer.Argument(metavar="[CONFIG]", help="Settings with [evaluate.alpaca_eval]: ask models and judge live.")
]
_Annotations = Annotated[
    list[Path] | None,
    typer.Option("--annotations", metavar="FILE", help="annotations.json (.gz), or a compact table; may be repeated."),
]
_Outputs = Annotated[
    list[Path] | None,
    typer.Option("--outputs", metavar="FILE", help="A judged model's model_outputs.json (.gz); may be repeated."),
]
_Baseline = Annotated[
    Path | None, typer.Option("--baseline", metavar="FILE", help="The baseline's model_outputs.json: the set in order.")
]
_Difficulty = Annotated[
    Path | None, typer.Option("--difficulty", metavar="FILE", help="instruction_difficulty.csv, for the length control.")
]
_Gamed = Annotated[Path | None, typer.Option("--gamed", metavar="FILE", help="df_gamed.csv, for the length control.")]
_DifficultyBy = Annotated[
    str,
    typer.Option("--difficulty-by", metavar="HOW", help="row (as officially, wrong after a missing row) or instruction (right)."),
]
_Control = Annotated[
    str,
    typer.Option(
        "--lc",
        metavar="VARIANT",
        help="Length control: auto, full (the official one), noreg (no --gamed), minimal (nor --difficulty), none.",
    ),
]
_C = Annotated[float | None, typer.Option("--c", metavar="C", help="Fix the fit's C instead of cross-validating it.")]
_Against = Annotated[
    str, typer.Option("--against", metavar="MODEL", help="Predict length-controlled rates over another of the judged models.")
]
_Leaderboard = Annotated[
    Path | None, typer.Option("--leaderboard", metavar="FILE", help="A leaderboard.csv whose models go into --out's, too.")
]
_Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Write result.json and leaderboard.csv here; live all files."),
]


@evaluate_app.command("alpaca-eval")
def evaluate_alpaca_eval(
    config: _LiveConfig = None,
    annotations: _Annotations = None,
    outputs: _Outputs = None,
    baseline: _Baseline = None,
    difficulty: _Difficulty = None,
    gamed: _Gamed = None,
    difficulty_by: _DifficultyBy = "row",
    lc: _Control = "auto",
    c: _C = None,
    against: _Against = "",
    leaderboard: _Leaderboard = None,
    out: _Out = None,
    set_: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """AlpacaEval: win rates, plain and length-controlled, from official files without a network or live by a settings file."""
    if config is not None:
        of_files = (annotations, outputs, baseline, difficulty, gamed, c is not None, against, leaderboard)
        if any(of_files) or difficulty_by != "row" or lc != "auto":
            raise UsageError(
                "With CONFIG everything but --out, --set and --json is a setting",
                where="starling evaluate alpaca-eval CONFIG",
                cure="set it in [evaluate.alpaca_eval], e.g. --set evaluate.alpaca_eval.protocol=official",
            )
        _live(config, set_, out, as_json)
        return
    from starling.evaluate.alpaca_eval import from_files
    from starling.evaluate.alpaca_eval.measure import Control, Inputs

    for option, value, allowed in (("--difficulty-by", difficulty_by, get_args(By)), ("--lc", lc, get_args(Control))):
        if value not in allowed:
            raise UsageError(f"There is no '{value}'", where=option, cure=f"write one of {', '.join(allowed)}")
    if c is not None and not 0 < c < float("inf"):
        raise UsageError(f"C must be above 0, not {c:g}", where="--c", cure="leave it out to have it cross-validated")
    if set_:
        raise UsageError(
            "--set needs a settings file", where="starling evaluate alpaca-eval", cure="give CONFIG, or leave it out"
        )
    if not annotations:
        raise UsageError("There is nothing to evaluate", where="the command line", cure="give --annotations FILE, or CONFIG")
    if leaderboard is not None and out is None:
        raise UsageError("The leaderboard has no place to be written", where="--leaderboard", cure="give --out DIR too")
    given = from_files.Files(
        annotations=annotations, outputs=outputs or (), baseline=baseline, difficulty=difficulty, gamed=gamed
    )
    how = Inputs(difficulty_by=cast(By, difficulty_by), control=cast(Control, lc), c=c)
    lines, result = from_files.evaluate(given, how, against)
    if out is not None:
        _keep(out, lines, result, leaderboard)
    _print(lines, result, as_json)


def _keep(out: Path, lines: Sequence[Measured], result: Result, leaderboard: Path | None) -> None:
    from starling.evaluate.alpaca_eval import from_files
    from starling.evaluate.result_files import RESULT_FILE, write_result

    out.mkdir(parents=True, exist_ok=True)
    from_files.write_leaderboard(out / LEADERBOARD_FILE, lines, leaderboard)
    write_result(out / RESULT_FILE, result)
    complain(f"written: {out / RESULT_FILE}, {out / LEADERBOARD_FILE}")


def _print(lines: Sequence[Measured], result: Result, as_json: bool) -> None:
    if as_json:
        found = [line.as_json() for line in lines]
        gaps = [asdict(gap) for gap in result.differences]
        print_json(found[0] if len(found) == 1 else {"models": found, "differences": gaps})
        return
    if len(lines) > MOST_COMPARED:
        result = replace(result, differences=(), models=tuple(replace(one, parts={}) for one in result.models))
    print_result(result)


def _live(config: Path, set_: list[str] | None, out: Path | None, as_json: bool) -> None:
    """Ask models and judge; the result stays with the run, and a copy of its files goes to `out`."""
    from starling import benchmarks
    from starling.evaluate import result_files
    from starling.evaluate.registry import benchmark
    from starling.progress import RichProgress

    (result,) = benchmarks.run(load(config, set_), [benchmark("alpaca-eval")], RichProgress(), complain, out)
    print_json(result_files.as_json(result)) if as_json else print_result(result)
