"""AlpacaEval 1 and 2: answers to single instructions, judged in pairs against one baseline's; win rates, also length-controlled.

    files            model_outputs.json, annotations.json, leaderboard.csv
    length_control   the length-controlled win rate, exactly the official model
    measure          win rates, intervals, position gap of one model
    table            the table of many
    from_files       all of that from official files, without asking anybody
    official         the official prompt, its order and the readings of its replies
    live             models and judge asked; writes the official files and measures them

Source: tatsu-lab/alpaca_eval 0.6.6 (Li et al. 2023; Dubois et al. 2024, arXiv 2404.04475).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starling.config import AlpacaEvalSection
    from starling.evaluate.results import Job, Result

__all__ = ["run"]


def run(settings: AlpacaEvalSection, job: Job) -> Result:
    """See `live.run`; imported here only when it is called, because figures from files need no judge."""
    from starling.evaluate.alpaca_eval import live

    return live.run(settings, job)
