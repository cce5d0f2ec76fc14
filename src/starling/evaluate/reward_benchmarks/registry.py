"""Every benchmark by name; a module that adds one ends with its `BENCHMARKS` and is named here."""

from __future__ import annotations

from collections.abc import Mapping

from starling.errors import UsageError
from starling.evaluate.reward_benchmarks import gold_answers, preference, ranked, rewardbench_files, truth, xstest
from starling.evaluate.reward_benchmarks.items import Benchmark

BENCHMARKS: Mapping[str, Benchmark] = {
    benchmark.name: benchmark
    for module in (preference, truth, xstest, ranked, gold_answers, rewardbench_files)
    for benchmark in module.BENCHMARKS
}  # fmt: skip


def benchmark(name: str) -> Benchmark:
    """The benchmark of this name.

    Raises:
        UsageError: there is none.
    """
    if name not in BENCHMARKS:
        raise UsageError(f"There is no benchmark '{name}'", where="--benchmark", cure=f"use one of {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]
