"""`starling evaluate safety`: refusals of safe and of unsafe prompts, from files of replies or asked live."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from starling.cli.common import AsJson, Overrides, complain, load, print_json, print_table
from starling.cli.evaluate import evaluate_app

if TYPE_CHECKING:
    from starling.evaluate.results import Result
    from starling.evaluate.safety import Measured
    from starling.evaluate.safety.agreement import Agreement
    from starling.stats import Interval

Labels = Literal["human", "classifier", "string-match", "judge"]


@evaluate_app.command("safety")
def evaluate_safety(
    config: Annotated[
        Path | None, typer.Argument(metavar="CONFIG", help="Settings with [evaluate.safety]: ask the models live.")
    ] = None,
    completions: Annotated[
        list[Path] | None,
        typer.Option("--completions", metavar="FILE", help="XSTest's completions (csv), or outputs of models; may be repeated."),
    ] = None,
    prompts: Annotated[
        list[Path] | None,
        typer.Option(
            "--prompts", metavar="FILE", help="A set's own file (XSTest, HarmBench, StrongREJECT, AdvBench); may be repeated."
        ),
    ] = None,
    labels: Annotated[
        Labels | None,
        typer.Option(
            "--labels", help="Whose labels: the offline classifier (default), people or a judge in the files, or prefixes."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Write result.json, matrix.csv and the labelled replies here.")
    ] = None,
    set_: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Over-refusal of safe prompts and attack success of unsafe ones, side by side, with intervals and people's agreement."""
    from starling.errors import UsageError

    if (config is None) == (not completions):
        raise UsageError(
            "Safety needs either replies or a settings file, not both",
            where="starling evaluate safety",
            cure="give --completions FILE for replies that exist, or CONFIG to ask the models",
        )
    if config is not None:
        if prompts or labels:
            raise UsageError(
                "With CONFIG everything but --out, --set and --json is a setting",
                where="starling evaluate safety CONFIG",
                cure="set it in [evaluate.safety], e.g. --set evaluate.safety.labels=judge",
            )
        _print(_live(config, set_, out), None, as_json)
        return
    if set_:
        raise UsageError("--set needs a settings file", where="starling evaluate safety", cure="give CONFIG, or leave it out")
    from starling.evaluate.safety import from_files

    found = from_files(completions or [], prompts=prompts or [], labels=labels or "classifier")
    if out is not None:
        _keep(found, out)
    _print(found.result, found, as_json)


def _live(config: Path, set_: list[str] | None, out: Path | None) -> Result:
    """Ask; the result stays with the run, and a copy of its files goes to `out`."""
    from starling import benchmarks
    from starling.evaluate.registry import benchmark
    from starling.progress import RichProgress

    return benchmarks.run(load(config, set_), [benchmark("safety")], RichProgress(), complain, out)[0]


def _keep(found: Measured, out: Path) -> None:
    from starling.evaluate.result_files import RESULT_FILE, write_result
    from starling.evaluate.safety.live import write_files

    out.mkdir(parents=True, exist_ok=True)
    write_files(out, found.labelled)
    write_result(out / RESULT_FILE, found.result)
    complain(f"result: {out / RESULT_FILE}")


# ── what is shown ────────────────────────────────────────────────────────────────────────────────────────────────────


def _print(result: Result, found: Measured | None, as_json: bool) -> None:
    from starling.cli.benchmark_tables import print_result
    from starling.evaluate.result_files import as_json as plain

    if as_json:
        print_json(plain(result) | (found.as_dict() if found else {}))
        return
    print_result(result)
    if found is None:
        return
    print()
    print_table(row.as_dict() for row in found.matrix if not row.subset)
    if found.agreement:
        print()
        print_table(_agreement_rows(found.agreement))


def _agreement_rows(agreed: tuple[Agreement, ...]) -> Iterator[dict[str, Any]]:
    for one in agreed:
        yield {
            "agreement with people": one.model,
            "prompts": one.prompts,
            "n": one.n,
            "refusal or not": _percent(one.refusal),
            "kappa": _kappa(one.kappa),
            "three labels": _percent(one.three),
            "prefix match": _percent(one.string_match),
            "p": f"{one.p:.2g}",
            "two people": _percent(one.people),
            "their kappa": _kappa(one.people_kappa),
            "on three": "" if one.people_three is None else f"{100 * one.people_three.mean:.1f}",
        }


def _percent(found: Interval | None) -> str:
    return "" if found is None else f"{100 * found.mean:.1f} ({100 * found.low:.1f} to {100 * found.high:.1f})"


def _kappa(found: Interval | None) -> str:
    return "" if found is None else f"{found.mean:.2f}"
