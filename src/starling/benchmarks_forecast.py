"""What the benchmarks of a run will ask, before anything is spent, by the very code that asks: models that say something of a
usual length, and a judge behind a dry tap (`starling.metering`), which counts and lets nothing through. Nothing is written.

    calls               exact, but for a judge's second questions after replies that do not parse
    prompt tokens       estimate, at four characters a token, with answers of ASSUMED_REPLY_TOKENS
    completion tokens   of models as assumed; of the judge at most
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starling import benchmarks
from starling.config import Config, ServerModel
from starling.endpoint import Endpoint, Reply, Request
from starling.endpoint.limits import CHARS_PER_TOKEN
from starling.endpoint.wire import model_ref
from starling.errors import StarlingError
from starling.evaluate.registry import Benchmark, configured
from starling.evaluate.results import Job
from starling.forecast import ASSUMED_REPLY_TOKENS
from starling.metering import Meter, Tap
from starling.progress import SILENT, Progress
from starling.records import Finish, ModelRef, Sampling


@dataclass(frozen=True)
class Line:
    """What one benchmark asks of one model."""

    benchmark: str
    model: str
    asks_for: str
    """answers or verdicts."""
    calls: int
    prompt_tokens: int
    completion_tokens: int
    dollars: float | None


@dataclass(frozen=True)
class Forecast:
    """What all benchmarks that are not done will ask, as if the journal had nothing of it yet."""

    lines: tuple[Line, ...]
    unknown: dict[str, str]
    """Benchmark → why it could not be counted, e.g. that a file is missing."""


def forecast(config: Config) -> Forecast:
    """Count the calls of the benchmarks that are not done."""
    lines: list[Line] = []
    unknown = {}
    for one, here in zip(configured(config), benchmarks.states(config), strict=True):
        if here.state == "done":
            continue
        try:
            lines += _lines(config, one)
        except StarlingError as error:
            unknown[one.word] = f"{error.what} ({error.where})"
    return Forecast(tuple(lines), unknown)


def _lines(config: Config, one: Benchmark) -> Iterator[Line]:
    names, judge = benchmarks.names(config, one), benchmarks.judge_of(config, one)
    meters = {name: Meter(benchmarks.price(config, name)) for name in names}
    with tempfile.TemporaryDirectory() as folder:
        job = Job(
            models={name: Tap(_Imagined(_ref(config, name)), meters[name]) for name in names},
            systems={name: system for name, system in config.systems.items() if name in names},
            judge=Tap(_Imagined(_ref(config, judge)), Meter(), dry=True) if judge else None,
            judge_price=benchmarks.price(config, judge),
            ranking=config.ranking,
            seed=config.run.seed,
            resamples=2,  # there is nothing to resample
            folder=Path(folder),
            progress=SILENT,
        )
        one.run()(one.settings(config), job)
    for name, meter in meters.items():
        yield _line(one.word, name, "answers", meter)
    if isinstance(job.judge, Tap):
        yield _line(one.word, judge, "verdicts", job.judge.meter)


def _line(word: str, model: str, asks_for: str, meter: Meter) -> Line:
    cost = meter.cost()
    return Line(word, model, asks_for, cost.calls, cost.prompt_tokens, cost.completion_tokens, cost.dollars)


def _ref(config: Config, name: str) -> ModelRef:
    settings = config.models.get(name)
    if isinstance(settings, ServerModel):
        return model_ref(settings)
    sampling = getattr(settings, "sampling", config.policy.sampling)
    return ModelRef(provider="local", name=name, sampling=sampling if isinstance(sampling, Sampling) else Sampling())


class _Imagined(Endpoint):
    """A model whose every reply is another text of a usual length."""

    def __init__(self, model: ModelRef) -> None:
        self.model = model

    def ask_all(self, requests: Collection[Request], progress: Progress = SILENT) -> Iterator[Reply]:
        return (self._reply(request) for request in requests)

    def complete_all(self, requests: Collection[Request], progress: Progress = SILENT) -> list[Reply]:
        return list(self.ask_all(requests, progress))

    def seconds(self, keys: Iterable[str]) -> float:
        return 0.0

    def _reply(self, request: Request) -> Reply:
        chars = CHARS_PER_TOKEN * min(ASSUMED_REPLY_TOKENS, request.model.sampling.max_tokens)
        return Reply(f"{request.key} ".ljust(chars, "x")[:chars], Finish.stop, request.key)


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def rows(found: Forecast) -> list[dict[str, Any]]:
    """One row per line, and the total where there are several: for a table."""
    listed = [_row(line.benchmark, line.model, line.asks_for, [line]) for line in found.lines]
    return [*listed, _row("total", "", "", found.lines)] if len(listed) > 1 else listed


def _row(benchmark: str, model: str, asks_for: str, lines: Sequence[Line]) -> dict[str, Any]:
    dollars = [line.dollars for line in lines if line.dollars is not None]
    return {
        "benchmark": benchmark,
        "model": model,
        "asked for": asks_for,
        "calls": sum(line.calls for line in lines),
        "prompt tokens": sum(line.prompt_tokens for line in lines),
        "reply tokens": sum(line.completion_tokens for line in lines),
        "dollars": f"{sum(dollars):,.2f}" if dollars else "",
    }


def as_json(found: Forecast) -> dict[str, Any]:
    """The forecast as plain data."""
    return {"lines": [vars(line) for line in found.lines], "unknown": found.unknown}
