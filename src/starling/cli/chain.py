"""Commands of the chain: run it whole or up to a stage, see where it stands and what it will cost."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from starling.cli.benchmark_tables import print_result
from starling.cli.common import AsJson, ConfigFile, Overrides, Until, app, complain, load, print_json, print_table

if TYPE_CHECKING:
    from starling.benchmarks_forecast import Forecast as BenchmarkCosts
    from starling.config import Config
    from starling.forecast import Forecast
    from starling.lineage import Status
    from starling.training_plan import Needs, Unknown

STAGE_COMMANDS = {
    "prompts": "prompts",
    "respond": "responses",
    "rank": "ranking",
    "dataset": "dataset",
    "train-reward": "reward",
    "train-policy": "policy",
    "evaluate": "evaluate",
    "report": "report",
    "publish": "publish",
}
"""Command → stage; the world stage runs where another one needs it."""


def _stage_rows(states: Sequence[Status]) -> list[dict[str, Any]]:
    return [
        {
            "stage": s.stage,
            "state": s.state,
            "rows": s.artifact.rows if s.artifact else None,
            "seconds": round(s.artifact.seconds, 1) if s.artifact else None,
            "why": s.why,
        }
        for s in states
    ]


@app.command()
def run(config: ConfigFile, until: Until = None, set_: Overrides = None, as_json: AsJson = False) -> None:
    """Run the chain; what is done already is not done again."""
    run_to(load(config, set_), until, as_json)


def run_to(settings: Config, until: str | None, as_json: bool) -> None:
    """Run the chain up to a stage, and the benchmarks of the settings after the evaluation; print what came of it."""
    from starling import benchmarks, pipeline
    from starling.progress import RichProgress
    from starling.rundir import launched

    states, results = benchmarks.run_with_chain(settings, until, RichProgress(), tell=complain)
    if not launched().first:
        return
    summary_file = settings.run.dir / pipeline.SUMMARY_FILE
    evaluated = any(s.stage == "evaluate" for s in states)
    summary = json.loads(summary_file.read_text("utf-8")) if evaluated else None
    report = next((s.artifact.path / "report.html" for s in states if s.stage == "report" and s.artifact), None)
    outcomes = next((s.artifact.outcomes for s in states if s.stage == until and s.artifact), {})
    if as_json:
        shown = {"stages": _stage_rows(states), "summary": summary, "report": str(report) if report else None}
        shown |= {"benchmarks": benchmarks.as_rows(results)} if results else {}
        print_json(shown | ({"outcomes": outcomes} if until is not None else {}))
        return
    print_table([{k: v for k, v in row.items() if k != "why"} for row in _stage_rows(states)])
    if outcomes:  # what became of the rows of the stage that was asked for
        print()
        print_table([{"outcome": name, "count": count} for name, count in outcomes.items()])
    for line in _summary_lines(summary or {}):
        print(line)
    for result in results:
        print()
        print_result(result)
    if results:
        print(f"\nbenchmarks: {benchmarks.page_of(settings)}")
    print(f"report: {report}" if report else f"run directory: {settings.run.dir}")


def _summary_lines(summary: dict[str, Any]) -> Iterable[str]:
    """What got better, in a few lines."""
    if "gold" in summary:
        yield ""
        for side in ("base", "tuned"):
            part = summary["gold"][side]
            low, high = part["ci"]
            yield f"{side:>6}: gold score {part['mean']:.3f} [{low:.3f}, {high:.3f}], greedy {part['greedy']:.3f}"
    if summary.get("reward", {}).get("pair_accuracy") is not None:
        part = summary["reward"]
        low, high = part["ci"]
        yield f"reward: orders {part['pair_accuracy']:.3f} [{low:.3f}, {high:.3f}] of the pairs of unseen prompts rightly"
    if "seconds" in summary:
        yield f"  time: {summary['seconds']:.0f} s over all stages ({summary['policy']['algorithm'].upper()})"


def _add_stage_command(name: str, stage: str) -> None:
    @app.command(name=name, help=f"Run the chain up to the stage '{stage}'.")
    def stage_command(config: ConfigFile, set_: Overrides = None, as_json: AsJson = False) -> None:
        run_to(load(config, set_), stage, as_json)


for _name, _stage in STAGE_COMMANDS.items():
    if _name != "evaluate":  # it has other commands beside this one: starling.cli.evaluate
        _add_stage_command(_name, _stage)


@app.command()
def status(config: ConfigFile, set_: Overrides = None, as_json: AsJson = False) -> None:
    """Show which stages are done, stale or missing, and why."""
    from starling import benchmarks, pipeline

    settings = load(config, set_)
    rows = _stage_rows([*pipeline.status(settings), *benchmarks.states(settings)])
    print_json(rows) if as_json else print_table(rows)


@app.command()
def plan(config: ConfigFile, until: Until = None, set_: Overrides = None, as_json: AsJson = False) -> None:
    """Say what a run would do and cost, before anything is spent: stages, model calls, tokens, dollars, hours; of trainings
    steps, memory and GPU-hours. Models and files may still be missing: the plan names them."""
    from starling import benchmarks, pipeline
    from starling import benchmarks_forecast as benchmark_costs
    from starling import forecast as costs
    from starling import plan as planning
    from starling import training_plan as trainings
    from starling.progress import RichProgress

    settings = load(config, set_)
    wanted = [] if benchmarks.alone(settings, until) else [s.name for s in pipeline.needed(settings, until)]
    states = [s for s in pipeline.status(settings) if s.stage in wanted]
    todo = [s.stage for s in states if s.state != "done"]
    absent = planning.absent(settings, todo)
    planning.check(settings, todo, absent)
    blind = planning.lacks_prompts(absent)
    prompts = [] if blind else planning.asked_prompts(settings, todo, RichProgress())
    found = costs.forecast(settings, ["prompts"] if blind else todo, RichProgress(), prompts)
    needs = trainings.plan_trainings(settings, todo, prompts)
    counted = benchmark_costs.forecast(settings) if until in (None, "evaluate", "report", "publish") else None
    if as_json:
        forecast = costs.as_json(found)
        missing = [{"what": gone.what, "where": gone.where} for gone in absent]
        stages = {"stages": _stage_rows(states), "missing": missing, "forecast": forecast.pop("stages")}
        asked = {"benchmarks": benchmark_costs.as_json(counted)} if counted and (counted.lines or counted.unknown) else {}
        print_json({**stages, **forecast, "trainings": trainings.as_json(needs), **asked})
        return
    print_table({"stage": s.stage, "state": s.state, "does": pipeline.BY_NAME[s.stage].does} for s in states)
    if found.lines:
        print()
        print_table(costs.rows(found))
        for line in _plan_notes(found):
            print(line)
    _print_trainings(needs)
    if counted is not None:
        _print_benchmarks(counted)
    for gone in absent:
        print(f"! not there yet: {gone.what} ({gone.where})")
    if blind and (settings.responses or settings.ranking):
        print("! without the prompts, calls of models are not counted")


def _print_benchmarks(found: BenchmarkCosts) -> None:
    """What the benchmarks will ask, and what of it is not known."""
    from starling import benchmarks_forecast, forecast

    if found.lines:
        print()
        print_table(benchmarks_forecast.rows(found))
        print(
            f"\nBenchmarks, as if the journal had none of it: answers of {forecast.ASSUMED_REPLY_TOKENS} tokens, verdicts as long"
            " as allowed, 4 characters a token; a verdict that does not parse is asked for again."
        )
    for word, why in found.unknown.items():
        print(f"! {word}: its calls are not counted: {why}")


def _print_trainings(found: Sequence[Needs | Unknown]) -> None:
    """Numbers, memory and hours of each training, and what they rest on."""
    from starling import training_plan as trainings

    for needs in found:
        print()
        if isinstance(needs, trainings.Unknown):
            print(f"! {needs.stage}: {needs.why}")
            continue
        print_table(trainings.fact_rows(needs))
        for rows in (trainings.memory_rows(needs), trainings.time_rows(needs)):
            if rows:
                print()
                print_table(rows)
    planned = [needs for needs in found if isinstance(needs, trainings.Needs)]
    if planned:
        print()
        for line in trainings.notes(planned):
            print(line)


def _plan_notes(found: Forecast) -> Iterable[str]:
    """What the numbers of a plan mean, and what stands in the run's way."""
    from starling import forecast as costs

    yield ""
    yield "Tokens, dollars and hours are for what is left: calls that the run's journal answers are not made again."
    yield (
        "Expected: replies as long as those in the journal so far, or as assumed: answers of "
        f"{costs.ASSUMED_REPLY_TOKENS} tokens, the judge's of {costs.ASSUMED_VERDICT_TOKENS}, "
        f"{costs.ASSUMED_SECONDS:g} s + {costs.ASSUMED_TOKENS_PER_SECOND:g} tokens/s; 4 characters a token."
    )
    if any(line.stage != line.stage.partition(" ")[0] for line in found.lines):
        yield f"Contested: calls if every prompt were contested; {100 * costs.ASSUMED_CONTESTED:.0f} % are expected."
    yield "Most: every reply as long as allowed, every call that may be repeated repeated."
    if any(line.expected.hours is not None for line in found.lines):
        yield "Hours: calls x seconds / in_flight, the models of one stage at the same time; rate limits of a server come on top."
    else:
        yield "These models answer on this machine: no dollars; how long it takes is for the machine to say."
    for warning in found.warnings:
        yield f"! {warning}"
