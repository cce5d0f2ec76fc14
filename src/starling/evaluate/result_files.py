"""A benchmark's table as a file: `result.json`, what every benchmark leaves and all that page and comparison read.

    {"starling_result": 1, "benchmark": "mt-bench", "title": …, "models": [{"model": …, "overall": {…}, …}], …}

The fields are those of `Result`, by their names. Reading is strict: a field that is missing, unknown or of another kind, a number
that is none, or a model that stands twice is an error that names the field, never a table with a hole in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from starling.errors import InputError
from starling.evaluate.results import Part, Result

RESULT_FILE = "result.json"
VERSION_KEY = "starling_result"
VERSION = 1
"""Raised when a field changes its meaning; a file of another version is refused."""

_CURE = "give a file that a `starling evaluate` command wrote, or run that command again"


def as_json(result: Result) -> dict[str, Any]:
    """The result as plain data, what `--json` prints and `write_result` writes; numpy's numbers and paths become plain ones."""
    plain = to_jsonable_python(result, fallback=lambda value: value.item() if hasattr(value, "item") else str(value))
    return {VERSION_KEY: VERSION, **plain}


def write_result(path: Path, result: Result) -> None:
    """Write one result, atomically; the same result gives the same bytes.

    Args:
        path: the file; its folder must exist. By custom it is called RESULT_FILE.
        result: what the benchmark found.

    Raises:
        ValueError: the result cannot be read back: a number that is not finite, a model twice. A defect of the benchmark.
    """
    plain = as_json(result)
    text = json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if problem := _problem(_parse(text)):
        raise ValueError(f"the result of {result.benchmark} has {problem}")
    draft = path.with_name(path.name + ".tmp")
    draft.write_bytes(text.encode("utf-8", "surrogatepass"))
    draft.replace(path)


def read_result(path: Path) -> Result:
    """Read what `write_result` wrote.

    Args:
        path: the file, or the folder it lies in under the name RESULT_FILE.

    Raises:
        InputError: it is missing, is no JSON, or is not a result as this version of Starling writes it; names the field.
    """
    if path.is_dir():
        path = path / RESULT_FILE
    try:
        text = path.read_bytes().decode("utf-8", "surrogatepass")
    except FileNotFoundError:
        raise InputError("There is no result of a benchmark here", where=str(path), cure=_CURE) from None
    except (OSError, ValueError) as error:
        raise InputError(f"The result cannot be read: {error}", where=str(path), cure=_CURE) from None
    try:
        return parse_result(text)
    except ValueError as error:
        raise InputError(f"The file holds no result of a benchmark: {error}", where=str(path), cure=_CURE) from None


def parse_result(text: str) -> Result:
    """A result from its JSON text.

    Raises:
        ValueError: it is not a result; says which field is wrong and how.
    """
    result = _parse(text)
    if problem := _problem(result):
        raise ValueError(f"it has {problem}")
    return result


# ── checks ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _parse(text: str) -> Result:
    try:
        raw = json.loads(text, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(raw, dict) or VERSION_KEY not in raw:
        raise ValueError(f"it has no field '{VERSION_KEY}'")
    version = raw.pop(VERSION_KEY)
    if version != VERSION or isinstance(version, bool):
        raise ValueError(f"its version is {version!r}, this Starling knows {VERSION}")
    try:
        # Strict as JSON is: a list may be a tuple, a whole number may be a score, but "0.5" is no number and 1 no truth.
        result = _adapter().validate_json(json.dumps(raw), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc'])) or 'the whole'}: {first['msg'].lower()}") from None
    if unknown := _unknown(raw, result):
        raise ValueError(f"the field '{unknown}' is not known")
    return result


@cache
def _adapter() -> TypeAdapter[Result]:
    return TypeAdapter(Result)


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number in JSON")


def _unknown(raw: Any, read: Any, at: str = "") -> str:
    """The first field of `raw` that the records it was read into do not have; a typing error in an optional field would else
    pass for its absence."""
    if is_dataclass(read):
        known = {f.name: getattr(read, f.name) for f in fields(read)}
        for name, value in raw.items():
            if name not in known:
                return f"{at}{name}"
            if found := _unknown(value, known[name], f"{at}{name}."):
                return found
    elif isinstance(read, tuple) and isinstance(raw, list):
        for number, (value, one) in enumerate(zip(raw, read, strict=True)):
            if found := _unknown(value, one, f"{at}{number}."):
                return found
    elif isinstance(read, Mapping) and isinstance(raw, dict):
        for name, value in raw.items():
            if is_dataclass(read[name]) and (found := _unknown(value, read[name], f"{at}{name}.")):
                return found
    return ""


def _problem(result: Result) -> str:
    """What contradicts itself in a result, as the end of a sentence; "" when nothing does."""
    names = [m.model for m in result.models]
    if not result.benchmark:
        return "an empty name of its benchmark"
    known = set(names)
    if len(known) < len(names):
        return f"the model '{next(name for name in names if names.count(name) > 1)}' twice"
    for model in result.models:
        for what, part in {"overall": model.overall, **model.parts}.items():
            if problem := _part_problem(part):
                return f"{problem} in '{what}' of '{model.model}'"
        if any(count < 0 for count in model.outcomes.values()):
            return f"a negative count of outcomes of '{model.model}'"
    for d in result.differences:
        if d.first not in known or d.second not in known:
            return f"a difference of '{d.first}' and '{d.second}', which are not both in its table"
        if not (0 <= d.p <= 1 and 0 <= d.p_adjusted <= 1):
            return f"a p value outside 0 … 1 for '{d.first}' and '{d.second}'"
        if d.ci[0] > d.ci[1]:
            return f"an interval that ends before it begins for '{d.first}' and '{d.second}'"
    if result.judge is not None:
        return _judge_problem(result.judge.outcomes, result.judge.unparsed_share)
    return ""


def _part_problem(part: Part) -> str:
    if part.n < 0 or part.clusters < 0:
        return "a negative count"
    if part.score is None and part.ci is not None:
        return "an interval without a score"
    return "an interval that ends before it begins" if part.ci is not None and part.ci[0] > part.ci[1] else ""


def _judge_problem(outcomes: Mapping[str, int], unparsed: float | None) -> str:
    if any(count < 0 for count in outcomes.values()):
        return "a negative count of the judge's outcomes"
    return "an unparsed share outside 0 … 1" if unparsed is not None and not 0 <= unparsed <= 1 else ""
