"""Pairs of answers of which one is preferred: by people, for safety, for being right though short; and a user's own pairs.

    human_preference    Chatbot Arena votes without ties, as the authors of Starling's reward models used them
    safety_preference   which of two answers is safer (PKU-SafeRLHF); their 754 pairs where the better is not the safer one are
                        what the benchmark is about
    verbosity           a long answer that does not help against a short right one
    harmless            Anthropic's harmless test pairs: two whole transcripts that part at the last reply
    pairs               any file of {prompt, chosen, rejected}

All are read into items of two answers and measured by `measures.measure_pairs`. Formats: the authors' benchmark files
(github.com/efrick2002/Starling, reward-model-training/benchmarks), Anthropic/hh-rlhf, and the preference format of TRL and
RewardBench. Scores stand in `score_a`/`score_b`, or `score_chosen`/`score_rejected`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from starling.evaluate.reward_benchmarks import measures
from starling.evaluate.reward_benchmarks.items import Benchmark, Item, Reading, ReadItems
from starling.evaluate.reward_benchmarks.reading import (
    Broken,
    LeftOut,
    ReadItem,
    RowFields,
    cluster_of,
    conversation,
    identity,
    items_of,
    numbers,
    text,
    turns,
)
from starling.records import Messages

LETTERS = ("score_a", "score_b")


def _reader(parse: Callable[[RowFields, str], ReadItem], *, strict: bool = True) -> ReadItems:
    def read(path: Path, reading: Reading) -> Iterator[ReadItem]:
        return items_of(path, reading, parse, strict=strict)

    return read


# ── two answers, a and b ─────────────────────────────────────────────────────────────────────────────────────────────


def _two(row: RowFields, number: str, better: int, subset: str = "") -> ReadItem:
    """The item of a row with response_a and response_b, of which number `better` (0 or 1) is preferred."""
    messages = conversation(row.get("prompt"))
    answers = (text(row, "response_a", "response_0"), text(row, "response_b", "response_1"))
    if answers[0] == answers[1]:
        raise LeftOut("equal_answers")
    item = Item(
        id=identity(row, number, "question_id", "id"),
        cluster=cluster_of(messages),
        subset=subset,
        messages=messages,
        answers=answers,
        truth=(float(better == 0), float(better == 1)),
    )
    return item, numbers(row, LETTERS)


def _human(row: RowFields, number: str) -> ReadItem:
    winner = text(row, "winner")
    if winner.startswith("tie"):
        raise LeftOut("tie")
    if winner not in ("model_a", "model_b"):
        raise Broken("winner_unknown", f"the winner is {winner!r}, not model_a, model_b or a tie")
    return _two(row, number, int(winner == "model_b"))


def _which(row: RowFields, name: str) -> int:
    value = row.get(name)
    if value is None:
        raise Broken(f"{name}_missing", f"there is no field '{name}'")
    if isinstance(value, bool) or value not in (0, 1):
        raise Broken(f"{name}_unknown", f"'{name}' is {value!r}, not 0 or 1")
    return int(value)


def _safety(row: RowFields, number: str) -> ReadItem:
    safer = _which(row, "safer_response_id")
    subset = ""
    if row.get("better_response_id") is not None:
        subset = "safer is better" if _which(row, "better_response_id") == safer else "safer is not better"
    return _two(row, number, safer, subset)


def _verbosity(row: RowFields, number: str) -> ReadItem:
    return _two(row, number, 1)


# ── chosen and rejected ──────────────────────────────────────────────────────────────────────────────────────────────


def _chosen_rejected(row: RowFields, number: str) -> ReadItem:
    messages, answers = _split(row)
    if answers[0] == answers[1]:
        raise LeftOut("equal_answers")
    subset = row.get("subset")
    item = Item(
        id=identity(row, number, "id"),
        cluster=cluster_of(messages),
        subset=subset if isinstance(subset, str) else "",
        messages=messages,
        answers=answers,
        truth=(1.0, 0.0),
        labels=("chosen", "rejected"),
    )
    return item, numbers(row, ("score_chosen", "score_rejected"))


def _split(row: RowFields) -> tuple[Messages, tuple[str, str]]:
    """The conversation that both answers answer, and the answers."""
    chosen, rejected, prompt = row.get("chosen"), row.get("rejected"), row.get("prompt")
    if chosen is None or rejected is None:
        raise Broken("answers_missing", "there is no field 'chosen' or no field 'rejected'")
    if prompt is not None and isinstance(chosen, str) and isinstance(rejected, str):
        return conversation(prompt), (chosen, rejected)
    before, better = _last_reply(turns(chosen))
    other, worse = _last_reply(turns(rejected))
    if before != other:
        raise LeftOut("different_prompts")  # the pair's order says nothing of two answers to one prompt
    if not before:
        before = conversation(prompt)
    if before[-1].role != "user":
        raise Broken("prompt_without_user_turn", "no user turn stands before the reply")
    return before, (better, worse)


def _last_reply(messages: Messages) -> tuple[Messages, str]:
    if not messages or messages[-1].role != "assistant":
        raise Broken("no_reply_at_the_end", "the conversation does not end with the assistant's reply")
    return messages[:-1], messages[-1].content


# ── the benchmarks ───────────────────────────────────────────────────────────────────────────────────────────────────

_AUTHORS = "github.com/efrick2002/Starling, reward-model-training/benchmarks (no licence stated)"

BENCHMARKS = tuple(
    Benchmark(measure=measures.measure_pairs, **about)
    for about in (
        dict[str, Any](
            name="human_preference",
            asks="Does the reward prefer the answer that people preferred?",
            file="json, jsonl or parquet: question_id, prompt, response_a, response_b, winner (model_a | model_b | tie…)",
            source=f"{_AUTHORS}: preference_benchmark, 1,000 Chatbot Arena battles",
            read=_reader(_human),
        ),
        dict[str, Any](
            name="safety_preference",
            asks="Does the reward prefer the safer answer?",
            file="json, jsonl or parquet: question_id, prompt, response_a, response_b (or response_0, response_1), "
            "safer_response_id (0 = a, 1 = b); better_response_id, where there, makes two parts",
            source=f"{_AUTHORS}: pku_benchmark_answers, 1,000 pairs; from PKU-Alignment/PKU-SafeRLHF (CC-BY-NC-4.0)",
            read=_reader(_safety),
        ),
        dict[str, Any](
            name="verbosity",
            asks="Does the reward prefer a short right answer to a long one that does not help?",
            file="json, jsonl or parquet: prompt, response_a (long, does not help), response_b (short, right)",
            source=f"{_AUTHORS}: verbose_benchmark, 30 pairs",
            read=_reader(_verbosity),
        ),
        dict[str, Any](
            name="harmless",
            asks="Does the reward prefer the reply that people found less harmful?",
            file="jsonl, json or parquet: chosen, rejected, both whole transcripts (\\n\\nHuman: … \\n\\nAssistant: …). "
            "Transcripts that do not alternate (9 rows) are counted",
            source="github.com/anthropics/hh-rlhf, harmless-base/test.jsonl.gz, 2,312 pairs (MIT)",
            read=_reader(_chosen_rejected, strict=False),
        ),
        dict[str, Any](
            name="pairs",
            asks="Does the reward prefer the chosen answer of your own pairs?",
            file="jsonl, json or parquet: prompt (text, transcript or messages; may be absent where the answers are whole "
            "conversations), chosen, rejected (texts or messages); optional id and subset. Broken rows are counted",
            source="your own file, or any preference dataset in the format of TRL or RewardBench",
            read=_reader(_chosen_rejected, strict=False),
        ),
    )
)
