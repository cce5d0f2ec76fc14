"""MT-Bench: 80 two-turn questions in eight categories, graded by a judge singly or in pairs, in FastChat's formats.

    files       question, answer, reference and judgment files, read and written
    official    FastChat's rules as they are: prompts, grades, verdicts, the figures of show_result
    cells       values by question and turn: means, clustered intervals, paired differences
    singles     the score from grades, by our rule and FastChat's
    pairs       win rates from comparisons in both orders, the position gap
    agreement   judge and people, people among themselves
    table       all of it as results
    answering   two-turn answers of models
    judged      the judge asked, by our protocol or with FastChat's prompts
    live        `run`: a whole benchmark

Source: arXiv 2306.05685 and FastChat's llm_judge. Where the figures depart from FastChat's, both are given.
"""

from __future__ import annotations

from starling.evaluate.mt_bench.live import run
from starling.evaluate.mt_bench.table import RESAMPLES, Measured, Rules, from_files

__all__ = ["RESAMPLES", "Measured", "Rules", "from_files", "run"]
