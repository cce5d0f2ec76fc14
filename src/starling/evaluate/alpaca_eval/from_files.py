"""AlpacaEval from the files that the official tool leaves: no model is asked and nothing is fetched.

The official code fetches two inputs of its length control from a hub; here the user names their files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from starling.errors import InputError, UsageError
from starling.evaluate.alpaca_eval import files
from starling.evaluate.alpaca_eval.measure import Inputs, Measured, measure, of_baseline
from starling.evaluate.alpaca_eval.table import differences, judge_facts, result
from starling.evaluate.results import Result


@dataclass(frozen=True, kw_only=True)
class Files:
    """Which files there are."""

    annotations: Sequence[Path]
    outputs: Sequence[Path] = ()
    baseline: Path | None = None
    difficulty: Path | None = None
    gamed: Path | None = None


def inputs_of(given: Files, settings: Inputs) -> Inputs:
    """The settings with what stands in the files.

    Raises:
        InputError: a file is missing or is not what it should be.
    """
    return replace(
        settings,
        baseline=files.read_outputs(given.baseline) if given.baseline else None,
        difficulty=files.read_difficulty(given.difficulty) if given.difficulty else None,
        gamed=files.read_gamed(given.gamed) if given.gamed else None,
    )


def evaluate(given: Files, settings: Inputs, against: str = "") -> tuple[list[Measured], Result]:
    """Every model of the annotations, in their order, and the table.

    Args:
        against: another of these models, over which the length-controlled rates are predicted.

    Raises:
        InputError: a file is not what it should be, two files hold the same model, or outputs belong to no annotations.
        UsageError: the options do not go together.
    """
    inputs = inputs_of(given, settings)
    judged = [one for path in given.annotations for one in files.read_annotations(path)]
    names = [one.model for one in judged]
    for name in names:
        if names.count(name) > 1:
            raise InputError(
                f"There are two sets of annotations of '{name}'",
                where=", ".join(str(one.path) for one in judged if one.model == name),
                cure="give one of them; two runs of one model need two names in the field generator_2",
            )
    outputs = _outputs(given.outputs, judged)
    if inputs.baseline is not None:
        _check_baseline(inputs.baseline, judged)
    lines = [measure(one, inputs, outputs.get(one.model)) for one in judged]
    gaps = differences(lines, resamples=inputs.resamples, seed=inputs.seed)
    if against:
        if inputs.difficulty is None:
            raise UsageError("Another baseline needs the instructions' difficulties", where="--against", cure="give --difficulty")
        lines = [of_baseline(line, lines, against, inputs.difficulty) for line in lines]
        gaps = []
    told: dict[str, Any] = {
        "annotations": [str(path) for path in given.annotations], "lc": settings.control, "c": settings.c,
        "difficulty_by": settings.difficulty_by, "against": against or None, "resamples": settings.resamples,
        "seed": settings.seed,
    }  # fmt: skip
    facts = judge_facts(lines, judged, resamples=inputs.resamples, seed=inputs.seed)
    return lines, result(lines, settings=told, judge=facts, differences=gaps)


def _outputs(paths: Sequence[Path], judged: Sequence[files.Judged]) -> dict[str, files.Outputs]:
    """The outputs by model."""
    found: dict[str, files.Outputs] = {}
    names = [one.model for one in judged]
    for path in paths:
        outputs = files.read_outputs(path)
        name = outputs.generator if outputs.generator or len(names) > 1 else names[0]
        if name not in names or name in found:
            what = "twice" if name in found else f"of a model that has no annotations here (these have: {', '.join(names[:4])})"
            raise InputError(
                f"The outputs of '{name}' are {what}",
                where=f"{path}, field generator",
                cure="give the outputs of the judged models",
            )
        found[name] = outputs
    return found


def _check_baseline(baseline: files.Outputs, judged: Sequence[files.Judged]) -> None:
    for one in judged:
        if one.baseline and baseline.generator and one.baseline != baseline.generator:
            raise InputError(
                f"'{one.model}' was compared with '{one.baseline}', but these are the outputs of '{baseline.generator}'",
                where=f"{one.path} and {baseline.path}",
                cure="give the outputs of the baseline in the annotations (generator_1)",
            )


def write_leaderboard(path: Path, lines: Sequence[Measured], known: Path | None = None) -> None:
    """A leaderboard.csv of these models, among those of another leaderboard if there is one; theirs are replaced by name."""
    rows = files.read_leaderboard(known) if known is not None else {}
    for line in lines:
        mode = rows.get(line.model, {}).get("mode") or "community"
        rows[line.model] = line.leaderboard_row(mode)
    files.write_leaderboard(path, rows)
