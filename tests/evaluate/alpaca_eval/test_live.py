"""AlpacaEval asked live: scripted models and judges in place of servers; the files it leaves give the same figures again."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from starling.config import AlpacaEvalSection
from starling.endpoint import Endpoint, Reply, Request, ScriptedEndpoint
from starling.errors import InputError, UsageError
from starling.evaluate import result_files
from starling.evaluate.alpaca_eval import files, from_files, live, run
from starling.evaluate.alpaca_eval.from_files import Files
from starling.evaluate.alpaca_eval.measure import Inputs
from starling.evaluate.judging import Vote
from starling.evaluate.results import Job, Result
from starling.journal import Journal
from starling.judge.verdict import Verdict, write_reply
from starling.progress import Silent
from starling.records import Finish, ModelRef, Outcome
from tests.evaluate.alpaca_eval.making import write
from tests.evaluate.alpaca_eval.test_official import PROMPT

INSTRUCTIONS = [f"question {i}?" for i in range(8)]
GOOD, BAD = "a good answer", "bad"


def first_good(request: Request) -> bool:
    """Whether the good answer stands first in a judge's prompt."""
    text = "\n".join(m.content for m in request.messages)
    return text.index(GOOD) < text.index(BAD)


def soft(request: Request) -> Reply:
    """.9 for the good answer, and a tenth of the rest for whatever stands first."""
    first, second = ("A", "B") if "Q: " not in request.messages[-1].content else ("m", "M")
    share = 0.95 if first_good(request) else 0.15
    likely = ((first, math.log(share)), (second, math.log(1 - share)))
    return Reply(first, Finish.length, request.key, "", 100, 1, first_token=likely)


def hard(request: Request) -> str:
    winner = 0 if first_good(request) else 1
    return write_reply(Verdict((winner, 1 - winner), True, ((0, 1, winner),)))


def always_first(request: Request) -> str:
    return write_reply(Verdict((0, 1), True, ((0, 1, 0),)))


@dataclass
class Place:
    """A run directory with scripted endpoints, and how many calls they answered."""

    folder: Path
    journal: Journal
    asked: list[str] = field(default_factory=list)

    def endpoint(self, name: str, answer: Callable[[Request], str | Reply]) -> Endpoint:
        def said(request: Request) -> str | Reply:
            self.asked.append(name)
            return answer(request)

        return ScriptedEndpoint(ModelRef(provider="scripted", name=name), said, self.journal)

    def job(self, judge: Callable[[Request], str | Reply], out: str = "out", **models: Callable[[Request], str | Reply]) -> Job:
        folder = self.folder / out
        folder.mkdir(exist_ok=True)
        return Job(
            models={name: self.endpoint(name, answer) for name, answer in models.items()}, systems={},
            judge=self.endpoint("judge", judge), judge_price=(10.0, 30.0), seed=1, resamples=200, folder=folder,
            progress=Silent(),
        )  # fmt: skip

    def settings(self, **changes: Any) -> AlpacaEvalSection:
        given: dict[str, Any] = {
            "instructions": write(self.folder, "instructions.json", [{"instruction": text} for text in INSTRUCTIONS]),
            "baseline": write(
                self.folder,
                "base.json",
                [{"instruction": text, "output": BAD, "generator": "base"} for text in INSTRUCTIONS],
            ),
        }
        return AlpacaEvalSection.model_validate(given | changes)

    def official(self, **changes: Any) -> AlpacaEvalSection:
        return self.settings(protocol="official", prompt=write(self.folder, "clf.txt", PROMPT), **changes)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with Journal(tmp_path / "journal.sqlite") as journal:
        yield Place(tmp_path, journal)


def good(request: Request) -> str:
    return GOOD


def rows(job: Job, model: str, name: str = live.ANNOTATIONS_FILE) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((job.folder / model / name).read_text("utf-8"))
    return found


def only(result: Result) -> Any:
    (model,) = result.models
    return model


def test_both_orders_softly(place: Place) -> None:
    job = place.job(soft, cand=good)
    found = run(place.settings(soft=True), job)
    # shown first .95, shown second .85
    assert only(found).overall.score == pytest.approx(90)
    assert found.judge is not None
    assert found.judge.position_gap == pytest.approx(0.1)
    assert found.judge.calls == 16
    assert found.judge.outcomes == {"ranked": 16}
    assert found.judge.prompt_tokens == 1600
    assert found.judge.dollars == pytest.approx((1600 * 10 + 16 * 30) / 1e6)
    row = rows(job, "cand")[0]
    assert row["preference"] == pytest.approx(1.9)
    assert (row[files.WHEN_FIRST], row[files.WHEN_SECOND]) == (pytest.approx(1.95), pytest.approx(1.85))
    assert (row["generator_1"], row["generator_2"], row["output_1"], row["output_2"]) == ("base", "cand", BAD, GOOD)
    assert row["annotator"] == "starling both orders, soft: judge"
    assert sum(r["price_per_example"] for r in rows(job, "cand")) == pytest.approx(found.judge.dollars)


def test_both_orders_by_written_verdicts(place: Place) -> None:
    found = run(place.settings(), place.job(hard, cand=good))
    assert only(found).overall.score == 100
    assert found.judge is not None
    assert found.judge.position_gap == 0


def test_written_verdicts_must_agree_and_soft_ones_are_averaged() -> None:
    won, tied = (Vote(share, Outcome.ranked, "", "key") for share in (1.0, 0.5))
    lost = Vote(None, Outcome.refused, "no", "key")
    assert live._of_votes([(won, tied)], soft=False).preference == 1.5
    assert live._of_votes([(won, tied)], soft=True).preference == 1.75
    half = live._of_votes([(won, lost), (won, won)], soft=True)
    assert (half.preference, half.rounds, half.outcome) == (2.0, (None, 2.0), Outcome.ranked)
    none = live._of_votes([(won, lost)], soft=True)
    assert (none.preference, none.outcome, none.when_second) == (None, Outcome.refused, None)


def test_a_judge_that_takes_the_first_decides_nothing(place: Place) -> None:
    found = run(place.settings(), place.job(always_first, cand=good))
    assert only(found).overall.score == 50
    assert found.judge is not None
    assert found.judge.position_gap == 1


def test_the_official_protocol(place: Place) -> None:
    job = place.job(soft, cand=good)
    found = run(place.official(), job)
    first = [files.shown_first(text) for text in INSTRUCTIONS]
    assert 0 < sum(first) < 8
    assert only(found).overall.score == pytest.approx(100 * sum(0.95 if one else 0.85 for one in first) / 8)
    assert found.judge is not None
    assert found.judge.position_gap == pytest.approx(0.1)
    assert found.judge.position_gap_ci == pytest.approx((0.1, 0.1))
    assert found.judge.calls == 8
    assert rows(job, "cand")[0]["annotator"] == "clf: judge"
    assert any("one order" in note for note in found.notes)


def test_version_1_reads_a_python_list(place: Place) -> None:
    def ranks(request: Request) -> str:
        better = 1 if first_good(request) else 2
        return f"[{{'model': 'model_1', 'rank': {better}}}, {{'model': 'model_2', 'rank': {3 - better}}}]"

    found = run(place.official(version=1), place.job(ranks, cand=good))
    assert only(found).overall.score == 100


def test_the_files_give_the_same_figures_again(place: Place) -> None:
    job = place.job(soft, cand=lambda r: GOOD + "!" * (len(r.key) % 3 + int(r.key, 16) % 5))
    found = run(place.settings(soft=True), job)
    folder = job.folder / "cand"
    given = Files(annotations=(folder / live.ANNOTATIONS_FILE,), outputs=(folder / live.OUTPUTS_FILE,))
    (line,), again = from_files.evaluate(given, Inputs(resamples=200, seed=1))
    assert again.models[0].overall == only(found).overall
    assert again.models[0].parts == only(found).parts
    assert files.read_leaderboard(job.folder / live.LEADERBOARD_FILE)["cand"]["win_rate"] == line.plain.win_rate
    result_files.write_result(job.folder / "result.json", found)
    assert result_files.read_result(job.folder / "result.json") == found


def test_going_on_asks_nothing_again(place: Place) -> None:
    settings = place.settings(soft=True)
    once = run(settings, place.job(soft, "a", cand=good))
    before = len(place.asked)
    twice = run(settings, place.job(soft, "b", cand=good))
    assert len(place.asked) == before == 8 + 16
    assert twice == once
    for name in (live.OUTPUTS_FILE, live.ANNOTATIONS_FILE):
        assert (place.folder / "a" / "cand" / name).read_bytes() == (place.folder / "b" / "cand" / name).read_bytes()


def test_equal_answers_are_draws_without_a_call(place: Place) -> None:
    for settings in (place.settings(), place.official()):
        place.asked.clear()
        found = run(settings, place.job(hard, settings.protocol, cand=lambda r: BAD))
        assert only(found).overall.score == 50
        assert place.asked.count("judge") == 0


def test_lost_answers_and_verdicts_are_named(place: Place) -> None:
    def down(request: Request) -> str | Reply:
        lost = "question 3?" in request.messages[-1].content
        return Reply("", Finish.error, request.key, "down") if lost else GOOD

    def mumbles(request: Request) -> str | Reply:
        if any("question 5?" in m.content for m in request.messages):
            return "I cannot say"
        return hard(request)

    job = place.job(mumbles, cand=down)
    found = run(place.settings(), job)
    assert only(found).outcomes == {"ranked": 6, "unparsed": 1, "not_answered": 1}
    assert (only(found).overall.score, only(found).overall.n) == (100, 6)
    assert len(rows(job, "cand", live.OUTPUTS_FILE)) == 7
    lost = next(row for row in rows(job, "cand") if row["instruction"] == "question 5?")
    assert (lost["preference"], lost["outcome"]) == (None, "unparsed")
    assert found.judge is not None
    assert found.judge.unparsed_share is not None
    assert found.judge.unparsed_share > 0


def test_a_model_that_never_answers_is_in_the_table_without_a_score(place: Place) -> None:
    def dead(request: Request) -> Reply:
        return Reply("", Finish.error, request.key, "down")

    job = place.job(hard, cand=good, dead=dead)
    found = run(place.settings(), job)
    assert [(m.model, m.overall.score) for m in found.models] == [("cand", 100), ("dead", None)]
    assert found.models[1].outcomes == {"not_answered": 8}
    result_files.write_result(job.folder / "result.json", found)


def test_a_model_as_baseline(place: Place) -> None:
    job = place.job(hard, cand=good, other=lambda r: BAD)
    found = run(place.settings(baseline=None, baseline_model="other"), job)
    assert [(m.model, m.overall.score) for m in found.models] == [("cand", 100)]
    assert rows(job, "cand")[0]["generator_1"] == "other"
    assert not (job.folder / "other" / live.ANNOTATIONS_FILE).exists()


def test_repeats_measure_the_judges_noise(place: Place) -> None:
    def wavers(request: Request) -> str:
        winner = request.sample % 2
        return write_reply(Verdict((winner, 1 - winner), True, ((0, 1, winner),)))

    found = run(
        place.official(version=1, repeats=2),
        place.job(lambda r: f"[{{'model': 'model_1', 'rank': {1 + r.sample}}}]", cand=good, same=lambda r: BAD),
    )
    assert found.judge is not None
    first = sum(files.shown_first(text) for text in INSTRUCTIONS)
    rates = (100 * first / 8, 100 * (8 - first) / 8)
    assert found.judge.repeat_spread == pytest.approx(abs(rates[0] - rates[1]) / 2**0.5)
    assert found.judge.repeats == 2
    assert {m.model: m.overall.score for m in found.models} == {"cand": 50, "same": 50}
    steady = run(place.settings(repeats=2), place.job(wavers, "b", cand=good))
    assert steady.judge is not None
    assert steady.judge.repeat_spread == 0  # in both orders the first, or the second, wins: ties each time


def test_own_instructions_are_controlled_minimally(place: Place) -> None:
    def likes_length(request: Request) -> Reply:
        text = request.messages[-1].content
        share = min(0.99, 0.5 + 0.01 * text.count("x"))
        first, second = (share, 1 - share) if first_good(request) else (1 - share, share)
        return Reply("A", Finish.length, request.key, first_token=(("A", math.log(first)), ("B", math.log(second))))

    lengths = iter((1, 5, 9, 2, 7, 3, 8, 4))
    found = run(place.settings(soft=True), place.job(likes_length, cand=lambda r: GOOD + "x" * next(lengths)))
    assert any("not the official instructions" in note for note in found.notes)
    assert only(found).parts["length-controlled"].score is not None


def test_what_does_not_fit_is_refused_before_anything_is_asked(place: Place) -> None:
    job = place.job(hard, cand=good)
    other = write(place.folder, "o.json", [{"instruction": "another", "output": "x", "generator": "base"}])
    with pytest.raises(UsageError, match="not one of the models"):
        run(place.settings(baseline=None, baseline_model="nobody"), job)
    with pytest.raises(InputError, match="no answer to any"):
        run(place.settings(baseline=other), job)
    with pytest.raises(InputError, match="does not begin"):
        run(place.settings(protocol="official", prompt=other), job)
    assert place.asked == []


@pytest.mark.parametrize(
    "change",
    [
        {"baseline": None},
        {"baseline_model": "x"},
        {"protocol": "official"},
        {"prompt": "p.txt"},
        {"protocol": "official", "prompt": "p.txt", "soft": True},
        {"baseline": None, "baseline_model": "x", "models": ("y",)},
        {"repeats": 0},
    ],
)
def test_settings_that_contradict_each_other(place: Place, change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        place.settings(**change)


def test_folders_of_two_models_are_never_the_same(tmp_path: Path) -> None:
    names = ["a/b", "a_b", "a b", "..", "a\\b", "gpt-4.1+x"]
    found = [live.place(tmp_path, name) for name in names]
    assert len(set(found)) == len(names)
    assert all(one.parent == tmp_path and one.name not in (".", "..") for one in found)
    assert found[1].name == "a_b"
