"""A reward model's scores of benchmarks' answers: each conversation once, kept as they come, so that a killed run goes on.

The model is a `models.scorer.Scorer`, so a score is the one that `starling score` gives, whatever else is scored beside it on a
CPU. What is scored is kept in a file of lines [conversation's hash, score, cut] under a first line that names the model; a later
run with the same model takes from it what it needs, for any benchmark.

A conversation that the model's template refuses has no score: its item is left out and counted. One that is longer than the model
can read is cut on the left, as in training, and counted as `cut`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starling.errors import InputError
from starling.evaluate.reward_benchmarks.items import Benchmark, Item, Reading, Scored
from starling.evaluate.reward_benchmarks.scores import ScoredSet, counted
from starling.progress import SILENT, Progress
from starling.records import Messages, content_hash

if TYPE_CHECKING:
    from starling.models.encode import Encoded
    from starling.models.scorer import Scorer

Found = tuple[float | None, bool]
"""A conversation's score, None where the template refuses it, and whether it was cut."""


def read_items(benchmark: Benchmark, path: Path) -> tuple[list[Item], Reading]:
    """A benchmark's items without scores.

    Raises:
        InputError: the file is not the benchmark's; see `reading.items_of`.
    """
    reading = Reading()
    return [item for item, _ in benchmark.read(path, reading)], reading


class Kept:
    """Scores on disk while they are made.

    Args:
        path: the file; made when missing.
        model: names the model and how it is used; scores of another one are thrown away.
    """

    def __init__(self, path: Path, model: str) -> None:
        self._path, self._model = path, model
        self.found: dict[str, Found] = {}
        """By the conversation's hash."""
        whole = self._read()
        path.parent.mkdir(parents=True, exist_ok=True)
        if whole:
            with path.open("r+b") as file:
                file.truncate(whole)
        else:
            path.write_text(json.dumps({"model": model}) + "\n", encoding="utf-8")

    def _read(self) -> int:
        """Take in what is there; returns how many bytes of it are whole lines, 0 when it is another model's."""
        whole = 0
        lines = self._path.read_bytes().splitlines(keepends=True) if self._path.is_file() else []
        for number, line in enumerate(lines):
            try:
                value = json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n") or (number == 0 and value != {"model": self._model}):
                break  # broken off in the middle, or of another model
            if number:
                self.found[value[0]] = (value[1], value[2])
            whole += len(line)
        return whole

    def add(self, rows: Mapping[str, Found]) -> None:
        """Keep these, too; they are on their way to the disk when this returns."""
        self.found.update(rows)
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps([key, score, cut]) + "\n" for key, (score, cut) in rows.items())

    def drop(self) -> None:
        """The scores stand elsewhere now."""
        self._path.unlink(missing_ok=True)


def score_all(
    model: Callable[[], Scorer],
    name: str,
    wanted: Mapping[str, tuple[Path, Sequence[Item], Reading]],
    progress: Progress = SILENT,
    kept: Kept | None = None,
) -> list[ScoredSet]:
    """Scores of the items of several benchmarks in one go: the model is loaded once and reads each conversation once.

    Args:
        model: loads the model; not called where everything is kept already.
        name: what the results call it.
        wanted: benchmark's name → (its file, its items, what reading it left out); the last gains the reason `template_refuses`.
        kept: where scores are kept while they are made.

    Raises:
        InputError: the folder holds no reward model, it gives a score that is no number, or its template refuses every item.
    """
    conversations = {
        _key(item.messages, answer): (item.messages, answer)
        for _, items, _ in wanted.values()
        for item in items
        for answer in item.answers
    }
    found: dict[str, Found] = {} if kept is None else dict(kept.found)
    todo = [key for key in conversations if key not in found]
    progress.start("scoring answers", len(todo))
    if todo:
        scorer = model()
        for window in _windows(todo, scorer.rows_at_once):
            rows = _scores(scorer, name, {key: conversations[key] for key in window}, progress)
            found.update(rows)
            if kept is not None:
                kept.add(rows)
    progress.finish()
    return [_set(benchmark, name, *of, found) for benchmark, of in wanted.items()]


def _set(benchmark: str, name: str, path: Path, items: Sequence[Item], reading: Reading, found: Mapping[str, Found]) -> ScoredSet:
    rows, cut = [], 0
    for item in items:
        of_item = [found[_key(item.messages, answer)] for answer in item.answers]
        scores = [score for score, _ in of_item if score is not None]
        if len(scores) < len(of_item):
            reading.left_out["template_refuses"] += 1
            continue
        cut += sum(was_cut for _, was_cut in of_item)
        rows.append(Scored(item, tuple(scores)))
    if not rows:
        raise InputError(
            "The model's chat template refuses every item of the benchmark",
            where=f"{name}, {path}",
            cure="score another model, or give it a template that takes these turns",
        )
    return ScoredSet(benchmark=benchmark, model=name, data=path.name, items=tuple(rows), left_out=counted(reading), cut=cut)


def _key(messages: Messages, answer: str) -> str:
    return content_hash([*([m.role, m.content] for m in messages), answer], 32)


def _windows(keys: Iterable[str], size: int) -> Iterator[list[str]]:
    source = iter(keys)
    while window := list(islice(source, size)):
        yield window


def _scores(scorer: Scorer, name: str, window: Mapping[str, tuple[Messages, str]], progress: Progress) -> dict[str, Found]:
    encoded = _encoded(scorer, window)
    keys = [key for key, row in encoded.items() if row is not None]
    fitted = [scorer.encoder.fit(row, "truncate_left") for row in encoded.values() if row is not None]
    rewards = scorer.score([row for row, _ in fitted if row is not None], progress.advance)
    progress.advance(len(window) - len(keys))
    found: dict[str, Found] = dict.fromkeys(window, (None, False))
    for key, reward, (_, fit) in zip(keys, rewards, fitted, strict=True):
        if not isfinite(reward):
            raise InputError(
                f"The model gives a score that is no finite number: {reward}",
                where=f"{name}, answer {window[key][1][:60]!r}",
                cure="check the model: its training may have diverged, or its weights may be incomplete",
            )
        found[key] = (reward, fit != "whole")
    return found


def _encoded(scorer: Scorer, window: Mapping[str, tuple[Messages, str]]) -> dict[str, Encoded | None]:
    """Token ids; None for what the template refuses."""

    def encode(*conversations: tuple[Messages, str]) -> list[Any]:
        return list(scorer.encoder.conversations([(messages, answer, True) for messages, answer in conversations]))

    try:
        return dict(zip(window, encode(*window.values()), strict=True))
    except InputError:  # one of them is refused: find which
        found: dict[str, Encoded | None] = {}
        for key, conversation in window.items():
            try:
                found[key] = encode(conversation)[0]
            except InputError:
                found[key] = None
        return found
