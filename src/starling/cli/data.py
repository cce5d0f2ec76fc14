"""Commands that take in what others made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from starling.cli.common import OPTIONS, AsJson, print_json, print_table

import_app = typer.Typer(name="import", help="Take in datasets that others made.", **OPTIONS)


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
    print_json(found) if as_json else print_table([{"what": k, "count": v} for k, v in found.items()])
