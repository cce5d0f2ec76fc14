"""Commands that compare models in pairs: head to head, Arena-Hard, and the size that a comparison needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from starling.cli.common import AsJson, Overrides, complain, load, print_json, print_table
from starling.cli.evaluate import evaluate_app
from starling.errors import UsageError

if TYPE_CHECKING:
    from starling.config import ArenaHardSection, Config, HeadToHeadSection
    from starling.evaluate.pairwise.planning import Measure, Spread
    from starling.evaluate.results import Result

Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Write result.json here; live, the official files too.")]
Answers = Annotated[
    list[str] | None,
    typer.Option("--answers", metavar="LABEL=FILE", help="A model's answers; may be repeated. Kinds: docs/head-to-head.md."),
]
WIDE = 8
"""Models up to which a win matrix fits a terminal."""


def _config(help_: str) -> Any:
    return typer.Argument(metavar="[CONFIG]", help=help_, show_default=False)


# ── head to head ─────────────────────────────────────────────────────────────────────────────────────────────────────


@evaluate_app.command("head-to-head")
def evaluate_head_to_head(
    config: Annotated[Path | None, _config("Settings with [evaluate.head_to_head]: ask models and judge.")] = None,
    votes: Annotated[
        list[Path] | None,
        typer.Option("--votes", metavar="FILE", help="Saved verdicts of any kind, instead of CONFIG; may be repeated."),
    ] = None,
    answers: Answers = None,
    questions: Annotated[
        list[Path] | None,
        typer.Option("--questions", metavar="FILE", help="What the prompts' numbers stand for, so that votes and answers meet."),
    ] = None,
    people: Annotated[
        Path | None, typer.Option("--people", metavar="FILE", help="Votes of people on the same pairs: the judge's agreement.")
    ] = None,
    baseline: Annotated[str, typer.Option("--baseline", metavar="MODEL", help="Compare all models with this one.")] = "",
    soft: Annotated[bool, typer.Option("--soft", help="Average the two orders, instead of: a win needs both of them.")] = False,
    set_: Overrides = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Compare any models in pairs: win matrix, paired tests, what the two orders disagree on; from votes or live."""
    if (config is None) == (not votes):
        raise UsageError(
            "Give either --votes or a settings file" if config is None else "--votes and a settings file exclude each other",
            where="starling evaluate head-to-head",
            cure="--votes FILE measures saved verdicts; CONFIG with [evaluate.head_to_head] asks models and judge",
        )
    if config is not None:
        _refuse(
            {"--questions": questions, "--people": people, "--baseline": baseline, "--soft": soft},
            "they are for saved votes; live, the settings of [evaluate.head_to_head] say it",
        )
        settings = load(config, set_)
        settings = _with_answers(settings, "head_to_head", settings.evaluate.head_to_head, answers)
        _finish(_live(settings, "head-to-head", out), None, as_json)
        return
    from starling.evaluate.pairwise.answers import named_files
    from starling.evaluate.pairwise.head_to_head import from_files

    _refuse({"--set": set_}, "it overrides a settings file, and there is none")
    result = from_files(
        votes or [], answers=named_files(answers or [], "--answers"), questions=questions or [], people=people, soft=soft,
        baseline=baseline,
    )  # fmt: skip
    _finish(result, out, as_json)


# ── Arena-Hard ───────────────────────────────────────────────────────────────────────────────────────────────────────


@evaluate_app.command("arena-hard")
def evaluate_arena_hard(
    config: Annotated[Path | None, _config("Settings with [evaluate.arena_hard]: ask models and judge.")] = None,
    judgments: Annotated[
        list[Path] | None,
        typer.Option("--judgments", metavar="FILE", help="model_judgment files or a folder of them, instead of CONFIG."),
    ] = None,
    questions: Annotated[
        Path | None, typer.Option("--questions", metavar="FILE", help="question.jsonl: subcategories, and what is missing.")
    ] = None,
    answers: Answers = None,
    strong_weight: Annotated[
        float, typer.Option("--strong-weight", metavar="W", help="What a verdict >> counts; 3 is the official rule.")
    ] = 3.0,
    rule: Annotated[
        str, typer.Option("--rule", metavar="VERSION", help="Which official rule: v2.0, or v0.1 with its rating.")
    ] = "v2.0",
    official: Annotated[
        bool, typer.Option("--official", help="Score and interval as officially computed (100 resamples, 5 and 95 %).")
    ] = False,
    style: Annotated[
        bool, typer.Option("--style", help="Also hold style equal; needs --answers of all, the baseline too.")
    ] = False,
    set_: Overrides = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Arena-Hard's scores against its baseline, by the official rules and by ours; from judgment files or live."""
    if (config is None) == (not judgments):
        raise UsageError(
            "Give either --judgments or a settings file, not both" if config else "Give --judgments or a settings file",
            where="starling evaluate arena-hard",
            cure="--judgments FILE measures judgment files; CONFIG with [evaluate.arena_hard] asks models and judge",
        )
    if config is not None:
        _refuse(
            {"--questions": questions, "--official": official, "--style": style, "--strong-weight": strong_weight != 3,
             "--rule": rule != "v2.0"},
            "they are for judgment files; live, [evaluate.arena_hard] says it, and the files can be measured after",
        )  # fmt: skip
        settings = load(config, set_)
        settings = _with_answers(settings, "arena_hard", settings.evaluate.arena_hard, answers)
        _finish(_live(settings, "arena-hard", out), None, as_json)
        return
    from starling.evaluate.pairwise.answers import named_files
    from starling.evaluate.pairwise.arena_hard import from_files
    from starling.evaluate.pairwise.arena_hard_scores import Rules
    from starling.rows import files_of

    _refuse({"--set": set_}, "it overrides a settings file, and there is none")
    if rule not in ("v2.0", "v0.1"):
        raise UsageError(f"There is no rule '{rule}'", where="--rule", cure="use v2.0 or v0.1")
    if strong_weight < 1 or (official and strong_weight != int(strong_weight)):
        raise UsageError(
            f"A strong verdict cannot count {strong_weight:g} times",
            where="--strong-weight",
            cure="use 1 or more; the official interval needs a whole number",
        )
    rules = Rules(strong_weight=strong_weight, rule=rule, official=official)  # type: ignore[arg-type]
    files = named_files(answers or [], "--answers")
    _finish(from_files(files_of(judgments or []), rules, questions=questions, answers=files, style=style), out, as_json)


# ── sizes ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@evaluate_app.command("plan-size")
def evaluate_plan_size(
    difference: Annotated[
        float, typer.Option("--difference", metavar="D", help="The smallest true difference that matters, in points.")
    ] = 2.0,
    measure: Annotated[
        str, typer.Option("--measure", metavar="WHAT", help="win-rate (of 100), points (MT-Bench, of 10) or accuracy (of 100).")
    ] = "win-rate",
    from_: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="Measure the spread here: votes, or the result.json of any benchmark."),
    ] = None,
    pair: Annotated[str, typer.Option("--pair", metavar="A,B", help="With --from: the two models to look at.")] = "",
    sd: Annotated[
        float | None, typer.Option("--sd", metavar="SD", help="Assume this spread of one verdict (or difference), in points.")
    ] = None,
    ties: Annotated[float, typer.Option("--ties", metavar="SHARE", help="win-rate: share of verdicts that are ties.")] = 0.0,
    discordant: Annotated[
        float, typer.Option("--discordant", metavar="SHARE", help="accuracy: share of items that only one of the two gets right.")
    ] = 0.2,
    verdicts: Annotated[
        int, typer.Option("--verdicts", metavar="N", help="win-rate: verdicts on a prompt that are averaged; both orders are 2.")
    ] = 2,
    correlation: Annotated[
        float, typer.Option("--correlation", metavar="R", help="win-rate: of two verdicts on one prompt.")
    ] = 0.5,
    power: Annotated[float, typer.Option("--power", metavar="P", help="Chance to see the difference.")] = 0.8,
    alpha: Annotated[float, typer.Option("--alpha", metavar="A", help="Chance of a false alarm, two-sided.")] = 0.05,
    as_json: AsJson = False,
) -> None:
    """How many prompts a comparison needs, and what a number of prompts can see: two models, same prompts, two-sided test."""
    from starling.evaluate.pairwise import planning

    if measure not in planning.UNITS:
        raise UsageError(f"There is no measure '{measure}'", where="--measure", cure=f"use one of {', '.join(planning.UNITS)}")
    try:
        spread = _spread(
            measure, from_, pair, sd=sd, ties=ties, discordant=discordant, verdicts=verdicts, correlation=correlation
        )
        found = planning.plan(measure, spread, difference, alpha=alpha, power=power)
    except ValueError as error:
        raise UsageError(
            str(error), where="starling evaluate plan-size", cure="see `starling evaluate plan-size --help`"
        ) from None
    if as_json:
        print_json(found.as_json())
        return
    print(
        f"{found.needed:,} prompts see a difference of {difference:g} {found.unit} (power {power:g}, alpha {alpha:g}, two-sided)"
    )
    print(f"spread of one prompt: {found.sd:.4g} {found.unit}; {found.source}\n")
    print_table({found.unit: f"{row['difference']:g}", "prompts": int(row["needed"])} for row in found.by_difference)
    print()
    print_table({"prompts": int(row["n"]), "difference seen": f"{row['detectable']:.2f}"} for row in found.by_size)


def _spread(measure: Measure, from_: Path | None, pair: str, **assumptions: Any) -> Spread:
    from starling.evaluate.pairwise import planning

    names = tuple(pair.split(",")) if pair else None
    if names is not None and (len(names) != 2 or from_ is None):
        raise UsageError("--pair wants two models, and --from", where="--pair", cure="write --from FILE --pair A,B")
    if from_ is None:
        return planning.assumed(measure, **assumptions)
    if assumptions["sd"] is not None:
        raise UsageError("--sd and --from exclude each other", where="--sd", cure="leave one of them out")
    return planning.measured(from_, pair=None if names is None else (names[0], names[1]))


# ── what they share ──────────────────────────────────────────────────────────────────────────────────────────────────


def _refuse(given: dict[str, Any], why: str) -> None:
    """Options that mean nothing here."""
    names = [name for name, value in given.items() if value]
    if names:
        raise UsageError(f"{', '.join(names)} cannot be used here", where="the command line", cure=f"leave it out: {why}")


def _with_answers(
    settings: Config, name: str, section: HeadToHeadSection | ArenaHardSection | None, answers: Sequence[str] | None
) -> Config:
    """The settings with the files of --answers added to the section's."""
    from starling.evaluate.pairwise.answers import named_files

    if not answers or section is None:
        return settings
    files = {**section.answers, **named_files(answers, "--answers")}
    evaluate = settings.evaluate.model_copy(update={name: section.model_copy(update={"answers": files})})
    return settings.model_copy(update={"evaluate": evaluate})


def _live(settings: Config, word: str, out: Path | None) -> Result:
    """Ask models and judge; the result stays with the run, and a copy of its files goes to `out`."""
    from starling import benchmarks
    from starling.evaluate.registry import benchmark
    from starling.progress import RichProgress

    return benchmarks.run(settings, [benchmark(word)], RichProgress(), complain, out)[0]


def _finish(result: Result, out: Path | None, as_json: bool) -> None:
    """Keep the result where asked for, and print it."""
    from starling.evaluate.result_files import RESULT_FILE, write_result
    from starling.evaluate.result_files import as_json as plain

    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_result(out / RESULT_FILE, result)
        complain(f"written: {out / RESULT_FILE}")
    if as_json:
        print_json(plain(result))
        return
    from dataclasses import replace

    from starling.cli.benchmark_tables import print_result

    matrix = _win_matrix(result)
    if len(result.models) > WIDE:
        complain(f"{len(result.models)} models: pairs are in --json and result.json")
        result = replace(result, differences=())
    print_result(replace(result, models=tuple(replace(m, parts={} if matrix else m.parts) for m in result.models)))
    if matrix and len(result.models) <= WIDE:
        print("\nshare of meetings that the row's model won against the column's, %\n")
        print_table(matrix)


def _win_matrix(result: Result) -> list[dict[str, Any]]:
    """Rows of a head to head's parts as a matrix; empty for other results."""
    if result.benchmark != "head-to-head":
        return []
    names = [m.model for m in result.models]

    def cell(row: Any, column: str) -> str:
        part = row.parts.get(f"against {column}")
        return "" if part is None or part.score is None else f"{part.score:.1f}"

    return [{"": m.model, **{name: cell(m, name) for name in names}} for m in result.models]
