"""What a user asks to be measured: which benchmarks, from which files, by a model or from scores; and where results are kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from starling.errors import InputError, UsageError
from starling.evaluate.reward_benchmarks.gold_answers import with_gold
from starling.evaluate.reward_benchmarks.items import Reading
from starling.evaluate.reward_benchmarks.registry import BENCHMARKS, benchmark
from starling.evaluate.reward_benchmarks.scores import ScoredSet, read_scores, write_scores


@dataclass(frozen=True)
class Wanted:
    """Law: either `model` and `data` for every benchmark, or `scores` for every benchmark."""

    model: Path | None
    data: dict[str, Path]
    scores: dict[str, Path]


def understand(
    names: Sequence[str], model: Path | None, data: Sequence[str], scores: Sequence[str], save_scores: Path | None
) -> Wanted:
    """The wish behind the options.

    Args:
        names: benchmarks; they may also be named by the files alone.
        data, scores: each FILE, where there is one benchmark, or NAME=FILE.

    Raises:
        UsageError: an unknown benchmark, a file too many or missing, or options that contradict each other.
    """
    for name in names:
        benchmark(name)
    if model is None and not scores:
        raise UsageError(
            "Nothing says where the scores come from",
            where="--model, --scores",
            cure="give --model PATH with --data FILE, or --scores FILE; `starling evaluate reward --list` shows the benchmarks",
        )
    if scores and (model is not None or data):
        raise UsageError(
            "A file of scores holds the answers, too: there is nothing to read or to score beside it",
            where="--scores with --model or --data",
            cure="leave out --scores, or --model and --data",
        )
    option, given = ("--data", data) if model is not None else ("--scores", scores)
    files = _named(names, given, option)
    if save_scores is not None and (model is None or len(files) != 1):
        raise UsageError(
            "There is not exactly one benchmark scored by a model",
            where="--save-scores",
            cure="give --model and one --benchmark; --out keeps the scores of several",
        )
    return Wanted(model, files, {}) if model is not None else Wanted(None, {}, files)


def _named(names: Sequence[str], given: Sequence[str], option: str) -> dict[str, Path]:
    """Benchmark → file, in the order of the names."""
    found: dict[str, Path] = {}
    for value in given:
        name, equals, path = value.partition("=")
        if not equals or name not in BENCHMARKS:  # a path, which may have an = in it
            if len(set(names)) != 1:
                raise UsageError(
                    f"It is not said which benchmark the file {value} is of",
                    where=option,
                    cure=f"write {option} NAME={value}, NAME being one of {', '.join(names or BENCHMARKS)}",
                )
            name, path = names[0], value
        if name in found:
            raise UsageError(
                f"The benchmark '{name}' has two files", where=option, cure="give one file, or run the command twice"
            )
        found[name] = Path(path)
    if not found and not names:
        raise UsageError("No benchmark is named", where="--benchmark", cure="name one; --list shows them")
    for name in names:
        if name not in found:
            raise UsageError(
                f"There is no file for the benchmark '{name}'",
                where=option,
                cure=f"give {option} {name}=FILE. File: {BENCHMARKS[name].file}. Source: {BENCHMARKS[name].source}",
            )
    extra = [name for name in found if names and name not in names]
    if extra:
        raise UsageError(
            f"There is a file for '{extra[0]}', which is not asked for", where=option, cure=f"add --benchmark {extra[0]}"
        )
    return {name: found[name] for name in dict.fromkeys(names or found)}


def against_gold(found: Sequence[ScoredSet], gold: Path) -> ScoredSet:
    """The scored answers of one benchmark with a second model's scores of the same answers for the truth; best-of-n is measured.

    Raises:
        UsageError: there is not exactly one benchmark.
        InputError: the gold file cannot be read, is of another benchmark, or has no answer in common.
    """
    if len(found) != 1:
        raise UsageError("A gold model can judge one benchmark at a time", where="--gold", cure="name one --benchmark")
    proxy, reading = found[0], Reading()
    items = with_gold(proxy.items, read_scores(benchmark(proxy.benchmark), gold).items, reading)
    if not items:
        raise InputError(
            "The two files of scores have no answers in common",
            where=f"{proxy.data}, {gold}",
            cure="score the same benchmark's file with both models",
        )
    left_out = dict(reading.left_out + Counter(proxy.left_out))
    return replace(proxy, benchmark="best_of_n", items=tuple(items), left_out=left_out)


def keeping_place(save_scores: Path | None, out: Path | None) -> Path | None:
    """Where scores are kept while they are made: beside where they will stand; None where nothing is written."""
    if save_scores is not None:
        return save_scores.with_name(f".{save_scores.name}.scoring")
    return None if out is None else out / ".scoring"


def keep_scores(folder: Path, found: Sequence[ScoredSet]) -> None:
    """Write the scores of each benchmark as NAME.scores.jsonl.gz; older ones are replaced."""
    for one in found:
        write_scores(folder / f"{one.benchmark}.scores.jsonl.gz", one)
