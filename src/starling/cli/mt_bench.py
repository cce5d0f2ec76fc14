"""`starling evaluate mt-bench`: FastChat's judgment files measured, or a whole MT-Bench asked live."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from starling.cli.common import AsJson, Overrides, complain, load, print_json
from starling.cli.evaluate import evaluate_app

if TYPE_CHECKING:
    from starling.evaluate.mt_bench import Measured


@evaluate_app.command("mt-bench")
def evaluate_mt_bench(
    config: Annotated[
        Path | None, typer.Argument(metavar="CONFIG", help="Settings with [evaluate.mt_bench]: ask models and judge live.")
    ] = None,
    judgments: Annotated[
        list[Path] | None,
        typer.Option("--judgments", metavar="FILE", help="FastChat's model_judgment file, single or pair; may be repeated."),
    ] = None,
    questions: Annotated[
        Path | None, typer.Option("--questions", metavar="FILE", help="question.jsonl: categories, and what is missing.")
    ] = None,
    answers: Annotated[
        Path | None,
        typer.Option("--answers", metavar="DIR", help="model_answer files: judgments of other texts are left out."),
    ] = None,
    human: Annotated[
        Path | None, typer.Option("--human", metavar="FILE", help="Votes of people on the same pairs, for agreement.")
    ] = None,
    baseline: Annotated[
        str, typer.Option("--baseline", metavar="MODEL", help="Pairs: count games against this model only.")
    ] = "",
    official: Annotated[
        bool, typer.Option("--official", help="FastChat's rules make the scores: every row but −1 counts, repeats too.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Write result.json here; live also FastChat's files.")
    ] = None,
    set_: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """MT-Bench: scores per model, turn and category, with intervals and the judge's noise, from FastChat's files or live."""
    from starling.errors import UsageError

    if (config is None) == (not judgments):
        raise UsageError(
            "MT-Bench needs either judgments or a settings file, not both",
            where="starling evaluate mt-bench",
            cure="give --judgments FILE for judgments that exist, or CONFIG to make them",
        )
    if config is not None:
        if questions or answers or human or baseline or official:
            raise UsageError(
                "With CONFIG everything but --out, --set and --json is a setting",
                where="starling evaluate mt-bench CONFIG",
                cure="set it in [evaluate.mt_bench], e.g. --set evaluate.mt_bench.official_rule=true",
            )
        _print([_live(config, set_, out)], as_json)
        return
    if set_:
        raise UsageError("--set needs a settings file", where="starling evaluate mt-bench", cure="give CONFIG, or leave it out")
    from starling.evaluate.mt_bench import Rules, from_files

    rules = Rules(official=official, baseline=baseline)
    found = from_files(judgments or [], questions=questions, answers=answers, human=human, rules=rules)
    if out is not None:
        _keep(found, out)
    _print(found, as_json)


def _keep(found: list[Measured], out: Path) -> None:
    """Write the results; of several, each into a folder of its own."""
    from starling.evaluate.result_files import RESULT_FILE, write_result

    for number, one in enumerate(found, start=1):
        folder = out if len(found) == 1 else out / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        write_result(folder / RESULT_FILE, one.result)
        complain(f"result: {folder / RESULT_FILE}")


def _print(found: list[Measured], as_json: bool) -> None:
    from starling.cli.benchmark_tables import print_result
    from starling.evaluate.result_files import as_json as plain

    if as_json:
        every = [plain(one.result) | ({"agreement": one.agreement_json()} if one.agreement else {}) for one in found]
        print_json(every[0] if len(every) == 1 else {"results": every})
        return
    for number, one in enumerate(found):
        if number:
            print()
        print_result(one.result)


def _live(config: Path, set_: list[str] | None, out: Path | None) -> Measured:
    """Ask models and judge; the result stays with the run, and a copy of its files goes to `out`."""
    from starling import benchmarks
    from starling.evaluate.mt_bench import Measured
    from starling.evaluate.registry import benchmark
    from starling.progress import RichProgress

    settings = load(config, set_)
    return Measured(result=benchmarks.run(settings, [benchmark("mt-bench")], RichProgress(), complain, out)[0])
