"""RewardBench's own files: its data sets, score files and result files, read and written as the public tools do.

    data          allenai/reward-bench (`filtered`), preference-test-sets, allenai/reward-bench-2 as .parquet, .json or .jsonl:
                  version 1   prompt, chosen, rejected, subset, id
                  version 2   prompt, chosen [texts], rejected [texts], num_correct, subset, id
    scores        eval-set-scores/<org>/<model>.json, one object of columns: text_chosen, text_rejected, scores_chosen,
                  scores_rejected, results, subset, id (version 2: text, scores, num_correct), model, model_type, chat_template
    results       eval-set/<org>/<model>.json: {"model", "model_type", "chat_template", "<subset>": accuracy}
    command       <model>.json {accuracy, num_prompts, model, ref_model, tokenizer, chat_template, extra_results} and
                  <model>_outputs.jsonl, one row per pair

Source: allenai/reward-bench at 05a9005 (scripts/run_rm.py, scripts/run_v2.py, rewardbench/rewardbench.py, utils.save_to_hub).
Where texts are conversations we write message lists, as the public code does for models without a template; it reads both. A
row that cannot be used is counted under a name.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from starling.errors import InputError
from starling.evaluate.reward_benchmarks.rewardbench import TIES, Scored, first_of
from starling.records import Message, Messages, content_hash, prompt_id
from starling.rows import read_rows

MODEL_TYPE = "Seq. Classifier"
"""What the public result files call a reward model with a scalar head."""


@dataclass(frozen=True)
class Question:
    """One item of either version: a conversation, its answers with the right ones first, and how many are right."""

    id: str
    cluster: str
    """Hash of the conversation: items with the same prompt, also in different subsets, are resampled together."""
    subset: str
    messages: Messages
    answers: tuple[str, ...]
    right: int = 1


@dataclass(frozen=True)
class Data:
    """A data file: its items, and the rows that are none by reason."""

    items: tuple[Question, ...]
    left_out: Mapping[str, int]


@dataclass(frozen=True)
class ScoreFile:
    """A score file: scored items with the lengths of their texts (the prompt's included), and the rows that have no score."""

    model: str
    items: tuple[Scored, ...]
    lengths: tuple[tuple[int, ...], ...]
    left_out: Mapping[str, int]
    model_type: str = MODEL_TYPE
    chat_template: str = ""


@dataclass(frozen=True)
class Result:
    """A result file: accuracies by subset."""

    model: str
    subsets: Mapping[str, float]
    model_type: str = MODEL_TYPE
    chat_template: str = ""
    other: Mapping[str, Any] = field(default_factory=dict)
    """Fields that are neither: kept, so that a file survives reading and writing."""


# ── data ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def read_data(path: Path) -> Data:
    """The items of either version's data file, in order; rows are told apart by whether `chosen` is a list of texts.

    Raises:
        InputError: the file cannot be read, or holds no item at all.
    """
    items, left_out, seen = [], Counter[str](), set[tuple[str, str]]()
    for row in read_rows(path):
        found = row.problem if row.value is None else _question(row.value, row.number)
        if isinstance(found, str):
            left_out[found] += 1
        elif (found.subset, found.id) in seen:
            left_out["id_twice"] += 1
        else:
            seen.add((found.subset, found.id))
            items.append(found)
    if not items:
        raise InputError(
            "No row is an item of RewardBench: " + (", ".join(f"{n} {k}" for k, n in left_out.items()) or "the file is empty"),
            where=str(path),
            cure="give the file of the split `filtered` (or of reward-bench-2): prompt, chosen, rejected, subset, id",
        )
    return Data(tuple(items), dict(left_out))


def _question(row: Mapping[str, Any], number: int) -> Question | str:
    """One row as an item, or the reason why it is none."""
    subset = row.get("subset")
    if not isinstance(subset, str) or not subset:
        return "no_subset"
    if "chosen" not in row or "rejected" not in row:
        return "no_chosen_or_rejected"
    chosen, rejected = row["chosen"], row["rejected"]
    if isinstance(chosen, list) and not _is_conversation(chosen):
        answers, right, messages = _texts(chosen, rejected), len(chosen), _messages(row.get("prompt"))
        if row.get("num_correct", right) != right:
            return "num_correct_is_not_the_number_of_chosen"
    else:
        ends = _answer(chosen), _answer(rejected)
        answers, right = (None if None in ends else ends), 1  # type: ignore[assignment]
        messages = _messages(chosen[:-1] if isinstance(chosen, list) else row.get("prompt"))
    if messages is None:
        return "no_prompt"
    if answers is None or len(answers) < 2 or not right:
        return "answer_is_no_text"
    name = row.get("id")
    name = str(number) if name is None else str(name)
    return Question(name, prompt_id(messages), subset, messages, answers, right)


def _is_conversation(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(turn, Mapping) for turn in value)


def _texts(chosen: Any, rejected: Any) -> tuple[str, ...] | None:
    if not isinstance(rejected, list) or not all(isinstance(text, str) for text in [*chosen, *rejected]):
        return None
    return (*chosen, *rejected)


def _answer(value: Any) -> str | None:
    """The last turn of a conversation, or a text."""
    if _is_conversation(value):
        value = value[-1].get("content")
    return value if isinstance(value, str) else None


def _messages(prompt: Any) -> Messages | None:
    """A prompt that is a text, or a conversation ending with the user; None for anything else."""
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if not _is_conversation(prompt):
        return None
    try:
        return tuple(Message(role=turn.get("role"), content=turn.get("content")) for turn in prompt)
    except ValidationError:
        return None


# ── scores ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def read_scores(path: Path) -> ScoreFile:
    """A column file of either version, or the rows of the command's `_outputs.jsonl`.

    Raises:
        InputError: the file cannot be read or is neither.
    """
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        rows: Iterable[Mapping[str, Any] | None] = (row.value for row in read_rows(path))
        head: Mapping[str, Any] = {"model": path.name.split("_outputs.jsonl")[0]}
    else:
        head = _object(path)
        rows = _column_rows(head, path)
    items, lengths, left_out = [], [], Counter[str]()
    for number, row in enumerate(rows, start=1):
        found = "not_an_object" if row is None else _scored(row, number)
        if isinstance(found, str):
            left_out[found] += 1
        else:
            items.append(found[0])
            lengths.append(found[1])
    if not items:
        raise InputError(
            "No row has a score: " + (", ".join(f"{n} {k}" for k, n in left_out.items()) or "the file is empty"),
            where=str(path),
            cure="give a file of eval-set-scores/ (columns scores_chosen, scores_rejected or scores) or an _outputs.jsonl",
        )
    texts = (str(head.get(key) or default) for key, default in (("model_type", MODEL_TYPE), ("chat_template", "")))
    return ScoreFile(str(head.get("model") or path.stem), tuple(items), tuple(lengths), dict(left_out), *texts)


def _column_rows(columns: Mapping[str, Any], path: Path) -> Iterator[Mapping[str, Any]]:
    """An object of equally long lists as rows; what is no list belongs to the whole file."""
    lists = {name: value for name, value in columns.items() if isinstance(value, list)}
    sizes = {len(value) for value in lists.values()}
    if len(sizes) != 1:
        raise InputError(
            f"The columns are not equally long: {', '.join(f'{name} {len(value)}' for name, value in lists.items()) or 'none'}",
            where=str(path),
            cure="give a whole score file: one JSON object of columns",
        )
    for i in range(sizes.pop()):
        yield {name: value[i] for name, value in lists.items()}


def _scored(row: Mapping[str, Any], number: int) -> tuple[Scored, tuple[int, ...]] | str:
    subset = row.get("subset", row.get("subsets"))
    if not isinstance(subset, str) or not subset:
        return "no_subset"
    if "scores" in row:
        raw, texts, right = row["scores"], row.get("text"), row.get("num_correct", 1)
    else:
        raw, right = [row.get("scores_chosen"), row.get("scores_rejected")], 1
        texts = [row.get("text_chosen"), row.get("text_rejected")]
    scores = [_score(value) for value in raw] if isinstance(raw, list) else []
    if len(scores) < 2 or None in scores:
        return "no_score"
    if not isinstance(right, int) or not 0 < right <= len(scores):
        return "num_correct_is_no_number_of_answers"
    texts = texts if isinstance(texts, list) and len(texts) == len(scores) else [None] * len(scores)
    name = str(row.get("id", number))
    # A text is the whole conversation, mostly through a template; the answer alone cannot be told from it. The prompt is common
    # to an item's texts, so which one is longer is still known.
    return Scored(name, _cluster(texts, subset, name), subset, tuple(s for s in scores if s is not None), right), _lengths(texts)


def _cluster(texts: Sequence[Any], subset: str, name: str) -> str:
    """The prompt's hash where the texts are conversations; otherwise the item stands for itself."""
    messages = _messages(texts[0][:-1]) if _is_conversation(texts[0]) else None
    return prompt_id(messages) if messages else content_hash([subset, name], 16)


def _lengths(texts: Sequence[Any]) -> tuple[int, ...]:
    return tuple(
        sum(len(str(turn.get("content") or "")) for turn in text) if _is_conversation(text) else len(str(text or ""))
        for text in texts
    )


def _score(value: Any) -> float | None:
    """A finite number, also alone in a list, as some of the public code's models write it."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        return None
    return float(value)


def score_columns(
    items: Sequence[tuple[Question, Sequence[float]]], model: str, *, version: int, template: str = ""
) -> dict[str, Any]:
    """The object of an eval-set-scores file.

    Args:
        items: each with its scores, one per answer.
        version: 1 (pairs) or 2 (several answers; Ties have no result of their own, the public file says null).
    """

    def text(item: Question, answer: str) -> list[dict[str, str]]:
        turns = [{"role": m.role, "content": m.content} for m in item.messages]
        return [*turns, {"role": "assistant", "content": answer}]

    shared = {"subset": [i.subset for i, _ in items], "id": [_number(i.id) for i, _ in items]}
    named = {"model": model, "model_type": MODEL_TYPE, "chat_template": template}
    if version == 1:
        columns: dict[str, Any] = {
            "text_chosen": [text(i, i.answers[0]) for i, _ in items], "text_rejected": [text(i, i.answers[1]) for i, _ in items],
            "results": [int(s[0] > s[1]) for _, s in items], "scores_chosen": [s[0] for _, s in items],
            "scores_rejected": [s[1] for _, s in items],
        }  # fmt: skip
    else:
        columns = {
            "text": [[text(i, a) for a in i.answers] for i, _ in items], "scores": [list(s) for _, s in items],
            "results": [None if i.subset.lower() == TIES.lower() else first_of(s) for i, s in items],
            "num_correct": [i.right for i, _ in items],
        }  # fmt: skip
    return columns | shared | named


def _number(name: str) -> int | str:
    return int(name) if name.isdecimal() and str(int(name)) == name else name


# ── results ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def read_result(path: Path) -> Result:
    """A file of eval-set/ or pref-sets/, or the command's <model>.json (its extra_results).

    Raises:
        InputError: the file is no such object or names no accuracy.
    """
    found = _object(path)
    source = found["extra_results"] if isinstance(found.get("extra_results"), Mapping) else found
    known = {"accuracy", "num_prompts"}
    subsets = {k: s for k, v in source.items() if k not in known and (s := _score(v)) is not None}
    if not subsets or not isinstance(found.get("model"), str):
        raise InputError(
            "The file is no result of RewardBench: it needs a model and accuracies by subset",
            where=str(path),
            cure="give a file of eval-set/<org>/<model>.json",
        )
    texts = {key: str(found.get(key) or default) for key, default in (("model_type", MODEL_TYPE), ("chat_template", ""))}
    other = {k: v for k, v in found.items() if k not in {*subsets, *texts, "model", "extra_results"}}
    return Result(found["model"], subsets, other=other, **texts)


def result_object(result: Result) -> dict[str, Any]:
    """The object of an eval-set file."""
    named = {"model": result.model, "model_type": result.model_type, "chat_template": result.chat_template}
    return {**result.other, **named, **result.subsets}


def write_public(root: Path, items: Sequence[tuple[Question, Sequence[float]]], result: Result, *, version: int) -> list[Path]:
    """eval-set/<model>.json and eval-set-scores/<model>.json below `root`, as the public scripts lay them out.

    Raises:
        InputError: the model's name is no relative path of plain parts.
    """
    at = _model_path(result.model)
    columns = score_columns(items, result.model, version=version, template=result.chat_template)
    return [
        _write(root / "eval-set" / at, json.dumps(result_object(result), indent=4, sort_keys=True)),
        _write(root / "eval-set-scores" / at, json.dumps(columns, indent=4, sort_keys=True)),
    ]


def write_command(root: Path, items: Sequence[tuple[Question, Sequence[float]]], result: Result) -> list[Path]:
    """<model>.json and <model>_outputs.jsonl below `root`, as the public command `rewardbench` writes them; version 1 only."""
    at = _model_path(result.model)
    columns = score_columns(items, result.model, version=1)
    rows = []
    for i, (item, _) in enumerate(items):
        row = {name: columns[name][i] for name in ("results", "scores_chosen", "scores_rejected", "text_chosen", "text_rejected")}
        prompt = item.messages[0].content if len(item.messages) == 1 else [m.model_dump() for m in item.messages]
        rows.append({"prompt": prompt, **row, "id": columns["id"][i], "subset": item.subset})
    summary = {
        "accuracy": sum(columns["results"]) / len(items), "num_prompts": len(items), "model": result.model, "ref_model": None,
        "tokenizer": result.model, "chat_template": result.chat_template, "extra_results": dict(result.subsets),
    }  # fmt: skip
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return [
        _write(root / at, json.dumps(summary)),
        _write(root / at.with_name(at.name.removesuffix(".json") + "_outputs.jsonl"), lines),
    ]


def _model_path(model: str) -> PurePosixPath:
    """<org>/<model>.json for a model's name, which may be a local path: then its last two parts."""
    parts = [part for part in PurePosixPath(model).parts if part not in ("/", ".", "..")]
    if not parts:
        raise InputError(f"'{model}' is no name for a file", where="the model's name", cure="give it as org/model")
    return PurePosixPath(*parts[-2:-1], parts[-1] + ".json")


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".tmp")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
    return path


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"The file cannot be read as JSON: {str(error).splitlines()[0]}",
            where=str(path),
            cure="check the path, or copy it again",
        ) from None
    if not isinstance(found, dict):
        raise InputError("The file is no JSON object", where=str(path), cure="give a file of eval-set/ or eval-set-scores/")
    return found
