"""Commands about settings and machine."""

from __future__ import annotations

import typer

from starling.cli.common import OPTIONS, AsJson, ConfigFile, Overrides, app, load, print_json, print_table
from starling.errors import ConfigError, UsageError

config_app = typer.Typer(name="config", help="Settings: check a file, show it resolved, list all settings.", **OPTIONS)


@config_app.command("check")
def config_check(config: ConfigFile, set_: Overrides = None) -> None:
    """Validate a settings file and say which stages it is enough for."""
    from starling import pipeline

    settings = load(config, set_)
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
    print_json(load(config, set_).model_dump(mode="json"))


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON schema of the settings, with a sentence and the default of each."""
    from starling.config import Config

    print_json(Config.model_json_schema())


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what is installed here and whether it is enough; exit code 1 if something that every command needs is missing."""
    from starling import machine

    rows = machine.describe()
    print_json(rows) if as_json else print_table(rows)
    if any(row["state"] == "missing" and row["needed for"] == "everything" for row in rows):
        raise typer.Exit(1)
