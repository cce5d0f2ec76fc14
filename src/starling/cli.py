"""The command `starling`: parses and calls, nothing more.

Results go to stdout, progress to stderr. Exit codes: 0 done, 1 failed, 2 used wrongly, 130 interrupted. Settings have no flags of
their own: `--set section.key=value`. Whatever a command needs is imported inside it, so that `starling --help` answers at
once; rich's help pages are switched off for the same reason.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from starling.errors import ConfigError, StarlingError, UsageError

if TYPE_CHECKING:
    from starling.audit import Audit
    from starling.config import Config
    from starling.lineage import Status

OPTIONS: dict[str, Any] = {"rich_markup_mode": None, "add_completion": False, "no_args_is_help": True}
app = typer.Typer(name="starling", help="Align a language model with AI feedback.", pretty_exceptions_enable=False, **OPTIONS)
config_app = typer.Typer(name="config", help="Settings: check a file, show it resolved, list all settings.", **OPTIONS)
import_app = typer.Typer(name="import", help="Take in datasets that others made.", **OPTIONS)
audit_app = typer.Typer(name="audit", help="Measure a judge's bias and consistency on what it has said.", **OPTIONS)

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="Settings file in TOML.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting; may be repeated.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Until = Annotated[str | None, typer.Option("--until", metavar="STAGE", help="Stop after this stage.")]

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


def _show_version(asked: bool) -> None:
    if asked:
        from starling import __version__

        print(f"starling {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Align a language model with AI feedback."""


def main() -> None:
    """Entry point of the command."""
    # torch's OpenMP threads wait for each other by spinning. Beside any other work on the same cores that costs a factor of
    # ten (measured on two cores: 0.2–0.5 instead of 1.9 steps/s); short spinning costs nothing on a quiet machine. GNU's
    # library reads this once, when torch is loaded; a user's own value stays.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    sys.exit(call(sys.argv[1:]))


def call(arguments: Sequence[str]) -> int:
    """Run one command line; returns the exit code, and says on stderr what went wrong."""
    try:
        code = app(args=list(arguments), prog_name="starling", standalone_mode=False)
    except StarlingError as error:
        _complain(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:  # the reader of our output, e.g. head, has had enough
        sys.stdout = None  # type: ignore[assignment]
        return 1
    except OSError as error:
        place = error.filename or "this machine"
        _complain(f"The operating system refuses: {error.strerror or error}. Where: {place}. What to do: mend that, start again.")
        return 1
    except Exception as error:
        said = getattr(error, "format_message", None)
        if said is None:
            return _report_defect()
        if type(error).__name__ == "NoArgsIsHelpError":  # a command group without a command: its help, as it is laid out
            _complain(said())
            return 2
        # typer's own complaints about the command line; it exports no class for them
        command = getattr(getattr(error, "ctx", None), "command_path", "starling")
        text = " ".join(said().split()).rstrip(".")
        _complain(f"{text}. Where: the command line. What to do: see `{command} --help`.")
        return 2
    if code == 130:
        _complain("Interrupted. What is finished stays, answered model calls too; the same command goes on from here.")
    return int(code or 0)


def _complain(text: str) -> None:
    print(text, file=sys.stderr)


def _report_defect() -> int:
    import platform
    import traceback

    from starling import __version__

    traceback.print_exc()
    _complain(
        f"This is a defect of Starling {__version__} (Python {platform.python_version()}, {platform.system()}). Please report it "
        "with the lines above, the command and the settings file; what is finished in the run directory stays usable."
    )
    return 1


def _load(config: Path, overrides: list[str] | None) -> Config:
    from starling.config import load_config

    return load_config(config, tuple(overrides or ()))


# ── output ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def _print_table(rows: Iterable[dict[str, Any]]) -> None:
    """Columns of plain text, numbers to the right."""
    rows = list(rows)
    if not rows:
        return
    numeric = {k for row in rows for k, v in row.items() if isinstance(v, int | float)}
    listed = [{k: _cell(v) for k, v in row.items()} for row in rows]
    names = list(listed[0])
    width = {n: max(len(n), *(len(row[n]) for row in listed)) for n in names}
    for row in [dict(zip(names, names, strict=True)), {n: "─" * width[n] for n in names}, *listed]:
        print("  ".join(row[n].rjust(width[n]) if n in numeric else row[n].ljust(width[n]) for n in names).rstrip())


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int | float) else str(value)


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


# ── the chain ────────────────────────────────────────────────────────────────────────────────────────────────────────


@app.command()
def run(config: ConfigFile, until: Until = None, set_: Overrides = None, as_json: AsJson = False) -> None:
    """Run the chain; what is done already is not done again."""
    _run(_load(config, set_), until, as_json)


def _run(settings: Config, until: str | None, as_json: bool) -> None:
    from starling import pipeline
    from starling.progress import RichProgress

    states = pipeline.run(settings, until, RichProgress(), tell=_complain)
    summary_file = settings.run.dir / pipeline.SUMMARY_FILE
    evaluated = any(s.stage == "evaluate" for s in states)
    summary = json.loads(summary_file.read_text("utf-8")) if evaluated else None
    report = next((s.artifact.path / "report.html" for s in states if s.stage == "report" and s.artifact), None)
    if as_json:
        _print_json({"stages": _stage_rows(states), "summary": summary, "report": str(report) if report else None})
        return
    _print_table([{k: v for k, v in row.items() if k != "why"} for row in _stage_rows(states)])
    for line in _summary_lines(summary or {}):
        print(line)
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
        _run(_load(config, set_), stage, as_json)


for _name, _stage in STAGE_COMMANDS.items():
    _add_stage_command(_name, _stage)


@app.command()
def status(config: ConfigFile, set_: Overrides = None, as_json: AsJson = False) -> None:
    """Show which stages are done, stale or missing, and why."""
    from starling import pipeline

    rows = _stage_rows(pipeline.status(_load(config, set_)))
    _print_json(rows) if as_json else _print_table(rows)


@app.command()
def plan(config: ConfigFile, until: Until = None, set_: Overrides = None, as_json: AsJson = False) -> None:
    """Say what a run would do and cost, before anything is spent: stages, model calls, tokens."""
    from starling import pipeline
    from starling import plan as planning

    settings = _load(config, set_)
    wanted = [s.name for s in pipeline.needed(settings, until)]
    states = [s for s in pipeline.status(settings) if s.stage in wanted]
    todo = [s.stage for s in states if s.state != "done"]
    planning.check(settings, todo)
    calls = planning.as_rows(planning.plan(settings, todo))
    if as_json:
        _print_json({"stages": _stage_rows(states), "calls": calls})
        return
    _print_table([{"stage": s.stage, "state": s.state, "does": pipeline.BY_NAME[s.stage].does} for s in states])
    if calls:
        print()
        _print_table(calls)
        print("\nprompt_tokens: estimate at 4 characters a token; completion_tokens: upper bound.")
        print("Only models of the kind openai can cost money.")
        print(f"Calls answered before come from {settings.run.dir}/journal.sqlite and are not asked again.")


# ── data in ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@import_app.callback()
def _imports() -> None:
    pass


@import_app.command("nectar")
def import_nectar(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Nectar-schema .parquet, .jsonl or .jsonl.gz.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to make; reward.data may name it.")],
    as_json: AsJson = False,
) -> None:
    """Read rankings in the Nectar schema, mend what can be mended, reject the rest by name and count."""
    from starling import imported

    artifact = imported.import_file(file, out)
    found = {"rows": artifact.rows, **artifact.outcomes, "folder": str(artifact.path)}
    _print_json(found) if as_json else _print_table([{"what": k, "count": v} for k, v in found.items()])


# ── the judge ────────────────────────────────────────────────────────────────────────────────────────────────────────

HtmlFile = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a self-contained page with figures, too.")]


@audit_app.command("replies")
def audit_replies(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Saved replies: .parquet, .jsonl or .jsonl.gz.")],
    html: HtmlFile = None,
    as_json: AsJson = False,
) -> None:
    """Audit saved replies, each parsed anew: `answers` in the order shown, `rating_text`, optional `ranking_order`."""
    from starling import audit

    _audited(audit.measure(audit.from_replies(file)), file.name, html, as_json)


@audit_app.command("run")
def audit_run(
    path: Annotated[Path, typer.Argument(metavar="CONFIG_OR_RUNDIR", help="Settings file, or a run directory.")],
    html: HtmlFile = None,
    as_json: AsJson = False,
) -> None:
    """Audit the judge of a run on its finished ranking."""
    from starling import audit

    folder = audit.run_folder(path)
    _audited(audit.measure(audit.from_run(folder)), folder.resolve().name, html, as_json)


def _audited(found: Audit, name: str, html: Path | None, as_json: bool) -> None:
    from starling import audit

    if html is not None:
        from starling.report import audit_page

        html.parent.mkdir(parents=True, exist_ok=True)
        html.write_text(audit_page.render(found.as_json(), audit.SHARES, name), encoding="utf-8")
    if as_json:
        _print_json(found.as_json())
        return
    for rows in (audit.position_rows(found), audit.share_rows(found)):
        if rows:
            _print_table(rows)
            print()
    for line in audit.lines(found):
        print(line)


# ── using what was made ──────────────────────────────────────────────────────────────────────────────────────────────


@app.command()
def chat(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A causal model's folder, or a run directory.")],
    greedy: Annotated[bool, typer.Option("--greedy", help="Most likely reply instead of a sampled one.")] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the sampled replies.")] = 0,
) -> None:
    """Talk to a policy: one line of stdin is one turn, an empty line starts a new conversation."""
    from starling import interact
    from starling.records import Sampling

    folder = interact.model_folder(path, "policy")
    sampling = Sampling(temperature=0.0 if greedy else 1.0)
    talk = interact.Conversation(folder, sampling, seed)
    asks = sys.stdin.isatty()
    while True:
        if asks:
            print("you> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            print(talk.say(line.strip()), flush=True)
        else:
            talk.messages = ()


@app.command()
def score(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A reward model's folder, or a run directory.")],
) -> None:
    """Read conversations from stdin (jsonl) and print their rewards (jsonl), in the same order."""
    from starling import interact

    for found in interact.score_lines(interact.model_folder(path, "reward"), sys.stdin.buffer):
        print(found.model_dump_json())


@app.command()
def show(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="Folder of a finished stage, e.g. runs/tiny/ranking.")],
    outcome: Annotated[str | None, typer.Option("--outcome", metavar="NAME", help="Only rows with this outcome.")] = None,
    rows: Annotated[int, typer.Option("--rows", min=0, help="How many rows to print.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Show an artifact: where it came from, counts and failures, rows; judgments with the judge's raw reply."""
    from starling import interact

    found = interact.open_folder(artifact)
    about = {
        "stage": found.stage, "fingerprint": found.fingerprint, "rows": found.rows, "seconds": found.seconds,
        "outcomes": found.outcomes, "inputs": found.inputs, "metrics": found.metrics, "config": found.config,
    }  # fmt: skip
    listed = interact.artifact_rows(found, outcome, rows)
    if as_json:
        _print_json({**about, "sample": listed})
        return
    for name, value in about.items():
        print(f"{name}: {json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value}")
    for row in listed:
        print()
        _print_json(row)


# ── settings and machine ─────────────────────────────────────────────────────────────────────────────────────────────


@config_app.command("check")
def config_check(config: ConfigFile, set_: Overrides = None) -> None:
    """Validate a settings file and say which stages it is enough for."""
    from starling import pipeline

    settings = _load(config, set_)
    enough, lacking = [], []
    for stage in pipeline.STAGES:
        try:
            pipeline.needed(settings, stage.name)
            enough.append(stage.name)
        except ConfigError as error:
            lacking.append(error.what)
    if not enough:
        raise UsageError("The settings are enough for no stage", where=str(config), cure=f"first lack: {lacking[0]}")
    print(f"{config} is valid; enough for: {', '.join(enough)}")


@config_app.command("show")
def config_show(config: ConfigFile, set_: Overrides = None) -> None:
    """Print all settings as JSON, defaults included."""
    _print_json(_load(config, set_).model_dump(mode="json"))


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON schema of the settings, with a sentence and the default of each."""
    from starling.config import Config

    _print_json(Config.model_json_schema())


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what is installed here and whether it is enough; exit code 1 if something that every command needs is missing."""
    from starling import machine

    rows = machine.describe()
    _print_json(rows) if as_json else _print_table(rows)
    if any(row["state"] == "missing" and row["needed for"] == "everything" for row in rows):
        raise typer.Exit(1)


app.add_typer(import_app)
app.add_typer(audit_app)
app.add_typer(config_app)
