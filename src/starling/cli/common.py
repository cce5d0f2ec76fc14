"""What the commands share: option types, tables, reading the settings."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from starling.config import Config

OPTIONS: dict[str, Any] = {"rich_markup_mode": None, "add_completion": False, "no_args_is_help": True}
app = typer.Typer(name="starling", help="Align a language model with AI feedback.", pretty_exceptions_enable=False, **OPTIONS)

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="Settings file in TOML.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting; may be repeated.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Until = Annotated[str | None, typer.Option("--until", metavar="STAGE", help="Stop after this stage.")]


def complain(text: str) -> None:
    print(text, file=sys.stderr)


def load(config: Path, overrides: list[str] | None) -> Config:
    from starling.config import load_config

    return load_config(config, tuple(overrides or ()))


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(rows: Iterable[dict[str, Any]]) -> None:
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
