"""Stage 9: one self-contained page about a run, made from its artifacts only.

    gather.py    artifacts → tables
    figures.py   tables → inline SVG
    page.py      headline, figures and settings → page.html with page.css inside

The page needs nothing from outside: no script, no font, no picture. It follows the reader's light or dark setting, fits a
phone and prints. It holds neither times nor the run's folder, so two equal runs give the same bytes.
"""

from __future__ import annotations

from pathlib import Path

from starling.report.gather import gather
from starling.report.page import render

REPORT_FILE = "report.html"


def write(run_dir: Path, out: Path) -> Path:
    """Write report.html into the folder `out` and return its path.

    Raises:
        ArtifactError: no stage of the run has finished, or an artifact is damaged.
    """
    text = render(gather(run_dir))
    out.mkdir(parents=True, exist_ok=True)
    path = out / REPORT_FILE
    path.write_text(text, encoding="utf-8")
    return path
