"""Real sets and real benchmarks; skipped where the data is not there (none of it belongs to the project)."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from starling.chat import read_turns
from starling.config import FilePrompts, PromptsSection
from starling.prompts import Gathered, gather
from starling.rows import read_rows

DATA = Path(os.environ.get("STARLING_DATA", "../shared/data"))
HH = "hh_rlhf/harmless-base.test.jsonl.gz"
BENCHMARKS = {
    "mt_bench": "mt_bench/question.jsonl",
    "alpaca_eval": "alpaca_eval_ref/gpt4_1106_preview.model_outputs.json.gz",
    "truthful_qa": "truthfulqa/TruthfulQA_817.csv",
}


def real(name: str) -> Path:
    if not (DATA / name).exists():
        pytest.skip(f"the public data is not at {DATA / name}; set STARLING_DATA")
    return DATA / name


def gathered(*names: str, **settings: Any) -> Gathered:
    sources = tuple(FilePrompts(type="file", path=real(name), name=name.split("/")[0]) for name in names)
    return gather(PromptsSection(sources=sources, **settings), [])


def all_benchmarks() -> dict[str, Any]:
    return {"decontamination": {"sets": [{"name": name, "path": real(path)} for name, path in BENCHMARKS.items()]}}


def test_hh_rlhf_keeps_the_prompt_and_both_answers() -> None:
    found = gathered(HH)
    assert found.dropped == {"duplicate": 3, "not_a_transcript": 9}
    assert len(found.prompts) == 2300
    answers = list(found.answers)
    assert (len(answers), {a.model for a in answers}) == (4602, {"anthropic"})
    by_prompt: dict[str, list[str]] = {}
    for answer in answers:
        by_prompt.setdefault(answer.prompt_id, []).append(answer.text)
    assert list(by_prompt) == [p.id for p in found.prompts if p.id in by_prompt], "in the order of the prompts"
    first = next(iter(read_rows(real(HH))))
    assert first.value is not None
    chosen, rejected = read_turns(first.value["chosen"]), read_turns(first.value["rejected"])
    prompt = next(iter(found.prompts))
    assert prompt.messages == chosen[:-1] == rejected[:-1]
    assert by_prompt[prompt.id] == [chosen[-1].content, rejected[-1].content]


def test_every_truthful_qa_question_is_caught_and_no_harmless_prompt() -> None:
    found = gathered("reward_benchmarks/truthful_qa.json.gz", HH, **all_benchmarks())
    assert found.dropped["contaminated"] == 817
    assert len(found.prompts) == 2300
    rows = [r for r in found.rows if r.outcome == "contaminated"]
    assert Counter(r.benchmark for r in rows) == {"truthful_qa": 816, "alpaca_eval": 1}, "one question is in both"
    assert sorted(r.row for r in rows) == list(range(1, 818))


def test_every_prompt_from_alpaca_eval_is_caught() -> None:
    found = gathered("nectar_like/train.jsonl.gz", HH, **all_benchmarks())
    assert found.dropped["contaminated"] == 5066
    assert {s for p in found.prompts for s in p.sources} == {"hh_rlhf"}
    assert {r.benchmark for r in found.rows if r.outcome == "contaminated"} <= {"alpaca_eval", "mt_bench"}


def test_the_language_filter_keeps_english_sets() -> None:
    found = gathered(HH, languages=["en"])
    assert len(found.prompts) >= 0.99 * 2300
