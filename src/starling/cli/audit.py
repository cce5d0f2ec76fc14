"""Commands that measure a judge."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from starling.cli.common import OPTIONS, AsJson, print_json, print_table

if TYPE_CHECKING:
    from starling.audit import Audit

audit_app = typer.Typer(name="audit", help="Measure a judge's bias and consistency on what it has said.", **OPTIONS)

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
        print_json(found.as_json())
        return
    for rows in (audit.position_rows(found), audit.share_rows(found)):
        if rows:
            print_table(rows)
            print()
    for line in audit.lines(found):
        print(line)
