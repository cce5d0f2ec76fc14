"""Head to head and Arena-Hard live, with scripted models and a scripted judge: who is asked what, what is written, what fails."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from starling.config import ArenaHardSection, HeadToHeadSection
from starling.endpoint import Reply, Request, ScriptedEndpoint
from starling.errors import ConfigError, InputError, UsageError
from starling.evaluate.pairwise import arena_hard, head_to_head
from starling.evaluate.pairwise.arena_hard_scores import Rules
from starling.evaluate.results import Job, ModelResult, Result
from starling.journal import Journal
from starling.judge.rubric import read_prompt, read_rubric
from starling.judge.verdict import FORMS, Verdict, write_reply
from starling.progress import SILENT
from starling.records import Finish, ModelRef

QUALITY = {"good": 2, "fair": 1, "poor": 0}


def speaker(text: str) -> Callable[[Request], str | Reply]:
    """Says `text` and repeats the question's number; cannot answer question 3 when it is poor."""

    def answer(request: Request) -> str | Reply:
        question = request.messages[-1].content
        if text == "poor" and "3" in question:
            return Reply("", Finish.error, request.key, "no such luck")
        return f"{text} {question}" if "4" not in question else "the same"

    return answer


def quality(text: str) -> int:
    return QUALITY.get(text.split()[0], 0)


def judge(bias: bool = False) -> Callable[[Request], str | Reply]:
    """Prefers by the first word; with the bias, whoever comes first on question 0."""

    def answer(request: Request) -> str | Reply:
        material = read_prompt(request.messages)
        grammar = read_rubric(request.messages).grammar
        first = quality(material.answers[0]) >= quality(material.answers[1]) or (bias and "0" in material.messages[-1].content)
        if request.model.sampling.top_logprobs:
            likely = (("A", math.log(0.9 if first else 0.3)), ("B", math.log(0.1 if first else 0.7)))
            return Reply("A", Finish.length, request.key, "", 9, 1, first_token=likely)
        order = (0, 1) if first else (1, 0)
        pairs = tuple((a, b, order[0]) for a, b in material.pairs) if FORMS[grammar].pairs else ()
        return write_reply(Verdict(order, True, pairs), grammar)

    return answer


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "journal.sqlite") as opened:
        yield opened


def job_of(journal: Journal, folder: Path, models: tuple[str, ...], judged: Callable[[Request], str | Reply]) -> Job:
    folder.mkdir(exist_ok=True)
    return Job(
        models={
            name: ScriptedEndpoint(ModelRef(provider="scripted", name=name), speaker(name), journal) for name in models
        },
        systems={}, judge=ScriptedEndpoint(ModelRef(provider="scripted", name="the/judge"), judged, journal), seed=0,
        resamples=200, folder=folder, progress=SILENT,
    )  # fmt: skip


def prompts_file(folder: Path, n: int = 6) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Question {i}"}) + "\n" for i in range(n)))
    return path


def line(result: Result, model: str) -> ModelResult:
    return next(m for m in result.models if m.model == model)


def test_head_to_head_asks_both_orders_and_leaves_files_that_say_the_same(tmp_path: Path, journal: Journal) -> None:
    settings = HeadToHeadSection(models=("good", "poor"), prompts=prompts_file(tmp_path))
    found = head_to_head.run(settings, job_of(journal, tmp_path / "out", ("good", "poor"), judge(bias=True)))
    good = line(found, "good")
    # 0: the bias, a tie; 1, 2, 5 won; 3 has no answer; 4 is the same text, a tie without a call
    assert (good.more["won"], good.more["tied"], good.more["lost"]) == (3, 2, 0)
    assert good.overall.score == 80
    assert found.judge is not None
    assert found.judge.calls == 8
    assert found.judge.outcomes == {"ranked": 8}
    assert found.judge.position_gap == pytest.approx(2 / 8)
    assert any(note.startswith("poor: no answer to 1 prompts: 1 failed calls") for note in found.notes)
    assert any("1 of 5 pairs have identical answers" in note for note in found.notes)
    again = head_to_head.from_files(
        [tmp_path / "out" / "votes.jsonl"],
        answers={m: tmp_path / "out" / "answers" / f"{m}.json" for m in ("good", "poor")}, resamples=200,
    )  # fmt: skip
    assert [m.overall for m in again.models] == [m.overall for m in found.models]
    assert again.differences == found.differences
    assert again.judge is not None
    assert again.judge.position_gap_ci == found.judge.position_gap_ci
    assert line(again, "good").more == good.more


def test_a_second_run_asks_nothing_and_writes_the_same_bytes(tmp_path: Path, journal: Journal) -> None:
    settings = HeadToHeadSection(models=("good", "poor"), prompts=prompts_file(tmp_path))
    calls: list[str] = []

    def counting(request: Request) -> str | Reply:
        calls.append(request.key)
        return judge()(request)

    first = head_to_head.run(settings, job_of(journal, tmp_path / "one", ("good", "poor"), counting))
    asked = len(calls)
    second = head_to_head.run(settings, job_of(journal, tmp_path / "two", ("good", "poor"), counting))
    assert len(calls) == asked == 8
    assert first.models == second.models
    for name in ("votes.jsonl", "answers/good.json", "answers/poor.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_soft_votes_baseline_and_answers_from_a_file(tmp_path: Path, journal: Journal) -> None:
    prompts = prompts_file(tmp_path, 3)
    other = tmp_path / "file.json"
    other.write_text(json.dumps([{"instruction": f"Question {i}", "output": f"fair {i}", "generator": "x"} for i in range(3)]))
    settings = HeadToHeadSection(
        models=("good", "poor"), prompts=prompts, answers={"filed": other}, baseline="filed", votes="soft", repeats=2
    )
    found = head_to_head.run(settings, job_of(journal, tmp_path / "out", ("good", "poor"), judge()))
    # good first: 1 − .1; good second: .7
    assert line(found, "good").overall.score == pytest.approx(100 * (0.9 + 0.7) / 2)
    assert line(found, "poor").overall.score == pytest.approx(100 * (0.3 + 0.1) / 2)
    assert line(found, "filed").overall.score == 50
    assert "against good" not in line(found, "poor").parts
    assert found.judge is not None
    assert (found.judge.calls, found.judge.repeats, found.judge.repeat_spread) == (24, 2, 0.0)


def test_only_files_can_be_compared_without_a_model(tmp_path: Path, journal: Journal) -> None:
    files = {}
    for name in ("good", "poor"):
        files[name] = tmp_path / f"{name}.jsonl"
        files[name].write_text("".join(json.dumps({"prompt": f"Question {i}", "response": f"{name} x"}) + "\n" for i in range(3)))
    settings = HeadToHeadSection(prompts=prompts_file(tmp_path, 3), answers=files)
    assert not settings.asks_own
    found = head_to_head.run(settings, job_of(journal, tmp_path / "out", (), judge()))
    assert line(found, "good").overall.score == 100


def test_what_head_to_head_cannot_do_is_said(tmp_path: Path, journal: Journal) -> None:
    job = job_of(journal, tmp_path / "out", ("good", "poor"), judge())
    with pytest.raises(ConfigError, match="no prompts"):
        head_to_head.run(HeadToHeadSection(models=("good", "poor")), job)
    with pytest.raises(UsageError, match="needs two models, and there is 1"):
        head_to_head.run(HeadToHeadSection(prompts=prompts_file(tmp_path)), job_of(journal, tmp_path / "out", ("good",), judge()))
    with pytest.raises(ConfigError, match="'who' does not take part"):
        head_to_head.run(HeadToHeadSection(prompts=prompts_file(tmp_path), baseline="who"), job)
    empty = tmp_path / "none.jsonl"
    empty.write_text('{"nothing": 1}\n')
    with pytest.raises(InputError, match=r"no prompt.*none.jsonl:1"):
        head_to_head.run(HeadToHeadSection(prompts=empty), job)


# ── Arena-Hard ───────────────────────────────────────────────────────────────────────────────────────────────────────


def arena_files(folder: Path) -> tuple[Path, Path]:
    questions, base = folder / "question.jsonl", folder / "base.jsonl"
    rows = [{"uid": f"u{i}", "category": "hard_prompt", "subcategory": "math", "prompt": f"Question {i}"} for i in range(6)]
    questions.write_text("".join(json.dumps(r) + "\n" for r in rows))
    answers = [
        {"uid": r["uid"], "model": "fair-1", "messages": [{"role": "user", "content": r["prompt"]},
         {"role": "assistant", "content": {"answer": f"fair {r['prompt']}"}}]}
        for r in rows[:5]
    ]  # fmt: skip
    base.write_text("".join(json.dumps(a) + "\n" for a in answers))
    return questions, base


def test_arena_hard_by_our_rubric(tmp_path: Path, journal: Journal) -> None:
    questions, base = arena_files(tmp_path)
    settings = ArenaHardSection(models=("good", "poor"), questions=questions, baseline_answers={"all": base})
    found = arena_hard.run(settings, job_of(journal, tmp_path / "out", ("good", "poor"), judge(bias=True)))
    good, poor = line(found, "good"), line(found, "poor")
    # question 0: the bias, 1 of 2; 4: "the same" has quality 0 and loses; 5: the baseline has no answer
    assert good.overall.score == pytest.approx(100 * (1 + 2 * 3 + 0) / 10)
    assert poor.overall.score == pytest.approx(100 * 1 / 8)  # 0: the bias; 3: no answer
    assert any("no answer to 1 of 6 questions" in note for note in found.notes)
    assert found.judge is not None
    assert found.judge.calls == 18
    rows = [json.loads(x) for x in (tmp_path / "out" / "model_judgment" / "the_judge" / "good.jsonl").read_text().splitlines()]
    assert [[g["score"] for g in r["games"]] for r in rows] == [["A>B", "A>B"], *[["B>A", "A>B"]] * 3, ["A>B", "B>A"]]
    assert {(r["judge"], r["model"], r["baseline"]) for r in rows} == {("the/judge", "good", "base")}
    again = arena_hard.from_files(
        [tmp_path / "out" / "model_judgment" / "the_judge" / f"{m}.jsonl" for m in ("good", "poor")], Rules(resamples=200),
        questions=questions, answers={m: tmp_path / "out" / "model_answer" / f"{m}.jsonl" for m in ("good", "poor")},
    )  # fmt: skip
    assert again.models == found.models
    assert again.differences == found.differences


def test_arena_hard_by_the_users_own_prompt(tmp_path: Path, journal: Journal) -> None:
    questions, base = arena_files(tmp_path)
    prompt = tmp_path / "prompt.toml"
    prompt.write_text('prompt_template = "{QUESTION}\\n<A>{ANSWER_A}</A>\\n<B>{ANSWER_B}</B>"\nsystem_prompt = "Judge."\n')

    def official(request: Request) -> str | Reply:
        text = request.messages[-1].content
        assert request.messages[0].content == "Judge."
        if "Question 1" in text:
            return Reply("", Finish.error, request.key, "down")
        if "Question 2" in text:
            return Reply("I think that", Finish.length, request.key)
        a, b = (quality(text.split(f"<{side}>")[1]) for side in "AB")
        return "Mine: [[A=B]]. Verdict: " + ("[[A>>B]]" if a > b else "[[B>>A]]" if a < b else "[[A=B]]")

    settings = ArenaHardSection(
        models=("good",), questions=questions, baseline_answers={"all": base}, protocol="official", prompt_file=prompt
    )
    found = arena_hard.run(settings, job_of(journal, tmp_path / "out", ("good",), official))
    good = line(found, "good")
    assert good.overall.score == pytest.approx(100 * (6 + 6 + 0) / 18)  # 0 and 3 won, 4 lost, all strongly
    assert good.outcomes == {"provider_error": 2, "ranked": 6, "truncated": 2}
    rows = [json.loads(x) for x in (tmp_path / "out" / "model_judgment" / "the_judge" / "good.jsonl").read_text().splitlines()]
    assert [g["score"] for g in rows[0]["games"]] == ["B>>A", "A>>B"]
    assert rows[0]["games"][0]["prompt"][1]["content"] == "Question 0\n<A>fair Question 0</A>\n<B>good Question 0</B>"
    assert rows[2]["games"][0] == rows[2]["games"][0] | {"score": None, "outcome": "truncated"}


def test_a_category_needs_a_baseline(tmp_path: Path, journal: Journal) -> None:
    questions, base = arena_files(tmp_path)
    settings = ArenaHardSection(models=("good",), questions=questions, baseline_answers={"creative_writing": base})
    with pytest.raises(InputError, match="'hard_prompt' has no baseline"):
        arena_hard.run(settings, job_of(journal, tmp_path / "out", ("good",), judge()))
