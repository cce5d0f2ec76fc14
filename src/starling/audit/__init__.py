"""How far a judge can be trusted: bias, consistency, agreement with people, canaries, attacks, cost.

    measure.py      one judge's calls → position bias, contradiction, cycles, length (pure)
    saved.py        calls from saved replies or a finished run
    consistency.py  the same prompts ranked twice: stability, position consistency, agreement of two judges (pure)
    live.py         asks the configured judge about a sample of a run, several times
    votes.py        pairwise votes of people and of judges: files, and their agreement
    hosts.py        our own conversations with good and bad answers, for the two below
    canaries.py     answers whose place is known beforehand: twins, an empty one, one beside the point
    attacks.py      answers that talk to the judge or to the parser
    modes.py        every way of asking, compared in one table
    show.py         all of it as tables for people

What is measured and how: docs/audit.md. Nothing here changes a run; live calls go through the run's own endpoints and journal.
"""

from starling.audit.measure import SHARES, Audit, Call, ChiSquare, measure
from starling.audit.saved import from_replies, from_run, of_judgment, run_folder
from starling.audit.show import lines, position_rows, share_rows

__all__ = [
    "SHARES", "Audit", "Call", "ChiSquare", "from_replies", "from_run", "lines", "measure", "of_judgment", "position_rows",
    "run_folder", "share_rows",
]  # fmt: skip
