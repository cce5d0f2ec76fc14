"""Stage 1: gather prompts from all sources, drop what cannot be used by name and count, merge duplicates, mix, split.

    formats        a row of somebody's file → prompts and the answers that came with them
    filters        lengths, turns, language
    contamination  overlap with benchmarks
    duplicates     the same, and nearly the same
    mixing         how many of each source
    gathering      all of it, in bounded memory

Source: Nectar merged five prompt sets and united the sources and answers of equal prompts. Departures stand in each module.
"""

from __future__ import annotations

from starling.prompts.gathering import Gathered, GatheredRow, check, gather

__all__ = ["Gathered", "GatheredRow", "check", "gather"]
