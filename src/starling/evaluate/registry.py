"""The benchmarks of models, in the order in which they are run and shown: word of the command, section of the settings, code.

A benchmark's package is imported when it is asked for, so that `starling --help` and a page of results need none of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from starling.artifacts import open_artifact
from starling.config import Config
from starling.config.benchmarks import JudgedSection
from starling.errors import ArtifactError, UsageError
from starling.evaluate.result_files import read_result
from starling.evaluate.results import Job, Result
from starling.lineage import BENCHMARKS_FOLDER

Run = Callable[[Any, Job], Result]
"""(its section of the settings, the job) → its result; asks models and judge, writes its official files into the job's folder."""


@dataclass(frozen=True)
class Benchmark:
    """One benchmark, e.g. Benchmark("mt-bench", "mt_bench", "starling.evaluate.mt_bench")."""

    word: str
    """On the command line, in results, and the name of its folder."""
    section: str
    """Its section under [evaluate]."""
    module: str
    """Where its `run` is."""

    def settings(self, config: Config) -> JudgedSection | None:
        """Its section; None where the settings have none, and it is not run."""
        evaluate = config.evaluate
        found: dict[str, JudgedSection | None] = {
            "mt_bench": evaluate.mt_bench,
            "alpaca_eval": evaluate.alpaca_eval,
            "arena_hard": evaluate.arena_hard,
            "head_to_head": evaluate.head_to_head,
            "safety": evaluate.safety,
        }
        return found[self.section]

    def run(self) -> Run:
        """The function that does the work; imports it."""
        found: Run = import_module(self.module).run
        return found


BENCHMARKS: dict[str, Benchmark] = {
    one.word: one
    for one in (
        Benchmark("mt-bench", "mt_bench", "starling.evaluate.mt_bench"),
        Benchmark("alpaca-eval", "alpaca_eval", "starling.evaluate.alpaca_eval"),
        Benchmark("arena-hard", "arena_hard", "starling.evaluate.pairwise.arena_hard"),
        Benchmark("head-to-head", "head_to_head", "starling.evaluate.pairwise.head_to_head"),
        Benchmark("safety", "safety", "starling.evaluate.safety"),
    )
}


def benchmark(word: str) -> Benchmark:
    """The benchmark of that word.

    Raises:
        UsageError: there is none.
    """
    if word not in BENCHMARKS:
        raise UsageError(
            f"There is no benchmark '{word}'", where="the name of a benchmark", cure=f"use one of {', '.join(BENCHMARKS)}"
        )
    return BENCHMARKS[word]


def configured(config: Config) -> list[Benchmark]:
    """Those that the settings have a section for."""
    return [one for one in BENCHMARKS.values() if one.settings(config) is not None]


def finished(run_dir: Path) -> list[Result]:
    """The results of all benchmarks that a run has finished, in the registry's order; what cannot be read is left out.

    Raises:
        InputError: a finished benchmark's result is none.
    """
    found = []
    for word in BENCHMARKS:
        try:
            artifact = open_artifact(run_dir / BENCHMARKS_FOLDER, word)
        except ArtifactError:
            continue
        found.append(read_result(artifact.path))
    return found
