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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import isfinite
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from starling.errors import InputError
from starling.evaluate.reward_benchmarks.items import Benchmark, Item, Reading, Scored
from starling.evaluate.reward_benchmarks.rewardbench import TIES, first_of, measure, own_id, right_of
from starling.records import Message, Messages, content_hash, prompt_id
from starling.rows import read_rows

MODEL_TYPE = "Seq. Classifier"
"""What the public result files call a reward model with a scalar head."""


@dataclass(frozen=True)
class Result:
    """A result file: accuracies by subset."""

    model: str
    subsets: Mapping[str, float]
    model_type: str = MODEL_TYPE
    chat_template: str = ""
    other: Mapping[str, Any] = field(default_factory=dict)
    """Fields that are neither: kept, so that a file survives reading and writing."""


# ── items ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def read(path: Path, reading: Reading) -> Iterator[tuple[Item, tuple[float, ...] | None]]:
    """The items of either version's data file (without scores) or score file (with them), in order.

    Right answers come first. In a score file a text is the whole conversation, mostly through a template, from which the answer
    alone cannot be told: it then stands as the answer of an item without messages. The prompt is common to an item's texts, so
    which one is longer is still known.

    Raises:
        InputError: the file cannot be read, or holds no item at all.
    """
    seen: set[str] = set()
    for number, row in _rows(path, reading):
        found = _pair(row, number)
        if isinstance(found, str):
            reading.left_out[found] += 1
        elif found[0].id in seen:
            reading.left_out["id_twice"] += 1
        else:
            seen.add(found[0].id)
            yield found
    if not seen:
        reasons = ", ".join(f"{n} {reason}" for reason, n in reading.left_out.items())
        raise InputError(
            f"No row is an item of RewardBench: {reasons or 'the file is empty'}",
            where=str(path),
            cure="give the split `filtered` or reward-bench-2 (prompt, chosen, rejected, subset, id), or eval-set-scores",
        )


def _rows(path: Path, reading: Reading) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Rows of a data file, of the command's outputs, or of an object of columns."""
    if path.name.endswith(".json") and path.is_file() and _begins_with_brace(path):
        yield from enumerate(_column_rows(_object(path), path), start=1)
        return
    for row in read_rows(path):
        if row.value is None:
            reading.left_out[row.problem] += 1
        else:
            yield row.number, row.value


def _begins_with_brace(path: Path) -> bool:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return file.read(4096).lstrip()[:1] == "{"


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


def _pair(row: Mapping[str, Any], number: int) -> tuple[Item, tuple[float, ...] | None] | str:
    """One row as an item and its scores, or the reason why it is none."""
    subset, name = row.get("subset", row.get("subsets")), row.get("id")
    if not isinstance(subset, str) or not subset:
        return "no_subset"
    texts = _texts(row)
    if isinstance(texts, str):
        return texts
    messages, answers, right = texts
    scores: tuple[float, ...] | None = None
    if "scores" in row or "scores_chosen" in row:
        raw = row["scores"] if "scores" in row else [row["scores_chosen"], row.get("scores_rejected")]
        known = [_score(value) for value in raw] if isinstance(raw, list) else []
        scores = tuple(s for s in known if s is not None)
        if len(known) < 2 or len(scores) < len(known):
            return "no_score"
        answers = answers or ("",) * len(scores)
        if len(scores) != len(answers):
            return "other_number_of_scores"
    if len(answers) < 2:
        return "answer_is_no_text"
    if not isinstance(right, int) or not 0 < right <= len(answers):
        return "num_correct_is_no_number_of_answers"
    name = f"{subset}/{number if name is None else name}"
    cluster = prompt_id(messages) if messages else content_hash(name, 16)
    truth = tuple(float(k < right) for k in range(len(answers)))
    return Item(id=name, cluster=cluster, subset=subset, messages=messages, answers=answers, truth=truth), scores


def _texts(row: Mapping[str, Any]) -> tuple[Messages, tuple[str, ...], Any] | str:
    """Conversation, answers (none where a score file has no texts) and the number of right ones; or the reason why not."""
    if "chosen" in row and "rejected" in row:
        return _asked(row)
    if not any(key in row for key in ("scores", "scores_chosen")):
        return "no_chosen_or_rejected"
    pair = [row.get("text_chosen"), row.get("text_rejected")]
    texts, right = (row.get("text"), row.get("num_correct", 1)) if "scores" in row else (pair, 1)
    if isinstance(texts, list) and texts and all(_is_conversation(text) for text in texts):
        messages, answers = _messages(texts[0][:-1]), tuple(_answer(text) for text in texts)
        if messages is not None and None not in answers:
            return messages, tuple(a for a in answers if a is not None), right
    if isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts):
        return (), tuple(texts), right
    return (), (), right


def _asked(row: Mapping[str, Any]) -> tuple[Messages, tuple[str, ...], Any] | str:
    """The same of a row of data."""
    chosen, rejected = row["chosen"], row["rejected"]
    if isinstance(chosen, list) and not _is_conversation(chosen):
        answers: list[Any] = [*chosen, *rejected] if isinstance(rejected, list) else [None]
        right, prompt = len(chosen), row.get("prompt")
        if row.get("num_correct", right) != right:
            return "num_correct_is_not_the_number_of_chosen"
    else:
        answers, right = [_answer(chosen), _answer(rejected)], 1
        prompt = chosen[:-1] if isinstance(chosen, list) else row.get("prompt")
    messages = _messages(prompt)
    if messages is None:
        return "no_prompt"
    if not right or not all(isinstance(answer, str) for answer in answers):
        return "answer_is_no_text"
    return messages, tuple(answers), right


def _is_conversation(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(turn, Mapping) for turn in value)


def _answer(value: Any) -> str | None:
    """The last turn of a conversation, or a text."""
    if _is_conversation(value):
        value = value[-1].get("content")
    return value if isinstance(value, str) else None


def _messages(prompt: Any) -> Messages | None:
    """A prompt that is a text or a conversation; None for anything else."""
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if not _is_conversation(prompt):
        return None
    try:
        return tuple(Message(role=turn.get("role"), content=turn.get("content")) for turn in prompt)
    except ValidationError:
        return None


def _score(value: Any) -> float | None:
    """A finite number, also alone in a list, as some of the public code's models write it."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        return None
    return float(value)


# ── scores ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def score_columns(items: Sequence[Scored], model: str, *, version: int, template: str = "") -> dict[str, Any]:
    """The object of an eval-set-scores file.

    Args:
        items: each with its scores, one per answer.
        version: 1 (pairs) or 2 (several answers; Ties have no result of their own, the public file says null).
    """

    shared = {"subset": [s.item.subset for s in items], "id": [_number(own_id(s.item)) for s in items]}
    named = {"model": model, "model_type": MODEL_TYPE, "chat_template": template}
    if version == 1:
        columns: dict[str, Any] = {
            "text_chosen": [_text(s.item, 0) for s in items], "text_rejected": [_text(s.item, 1) for s in items],
            "results": [int(s.scores[0] > s.scores[1]) for s in items], "scores_chosen": [s.scores[0] for s in items],
            "scores_rejected": [s.scores[1] for s in items],
        }  # fmt: skip
    else:
        columns = {
            "text": [[_text(s.item, k) for k in range(len(s.scores))] for s in items], "scores": [list(s.scores) for s in items],
            "results": [None if s.item.subset.lower() == TIES.lower() else first_of(s.scores) for s in items],
            "num_correct": [right_of(s.item) for s in items],
        }  # fmt: skip
    return columns | shared | named


def _text(item: Item, k: int) -> list[dict[str, str]] | str:
    """The conversation that ends with answer k; only the text where it came so from a score file."""
    if not item.messages:
        return item.answers[k]
    return [m.model_dump() for m in item.messages] + [{"role": "assistant", "content": item.answers[k]}]


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


def write_public(root: Path, items: Sequence[Scored], result: Result, *, version: int) -> list[Path]:
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


def write_command(root: Path, items: Sequence[Scored], result: Result) -> list[Path]:
    """<model>.json and <model>_outputs.jsonl below `root`, as the public command `rewardbench` writes them; version 1 only."""
    at = _model_path(result.model)
    columns = score_columns(items, result.model, version=1)
    rows = []
    for i, scored in enumerate(items):
        row = {name: columns[name][i] for name in ("results", "scores_chosen", "scores_rejected", "text_chosen", "text_rejected")}
        turns = scored.item.messages
        prompt = turns[0].content if len(turns) == 1 else [m.model_dump() for m in turns]
        rows.append({"prompt": prompt, **row, "id": columns["id"][i], "subset": scored.item.subset})
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
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"The file cannot be read as JSON: {str(error).splitlines()[0]}",
            where=str(path),
            cure="check the path, or copy it again",
        ) from None
    if not isinstance(found, dict):
        raise InputError("The file is no JSON object", where=str(path), cure="give a file of eval-set/ or eval-set-scores/")
    return found


# ── the benchmarks ───────────────────────────────────────────────────────────────────────────────────────────────────

REWARDBENCH = Benchmark(
    name="rewardbench",
    asks="RewardBench 1: is the chosen answer scored above the rejected one, in chat, hard chat, safety and reasoning?",
    file="the split `filtered` as .parquet, .json or .jsonl: prompt, chosen, rejected, subset, id; or an eval-set-scores file",
    source="huggingface.co/datasets/allenai/reward-bench, ODC-BY; its subsets keep their own licences",
    read=read,
    measure=partial(measure, version=1),
)
REWARDBENCH_2 = Benchmark(
    name="rewardbench-2",
    asks="RewardBench 2: is the right answer scored above three wrong ones, and are equally right answers scored alike?",
    file="the split `test` as .parquet, .json or .jsonl: prompt, chosen [texts], rejected [texts], num_correct, subset, id; or "
    "an eval-set-scores file",
    source="huggingface.co/datasets/allenai/reward-bench-2, ODC-BY",
    read=read,
    measure=partial(measure, version=2),
)
BENCHMARKS = (REWARDBENCH, REWARDBENCH_2)
