"""Ranking: which responses reach the judge, and what is counted instead."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import get_args

import pytest

from starling.artifacts import RecordFile, read_records, write_records
from starling.config import RankingMode, RankingSection
from starling.endpoint import Request, ScriptedEndpoint
from starling.errors import ArtifactError
from starling.journal import Journal
from starling.judge.rubric import read_prompt, read_rubric
from starling.judge.verdict import FORMS, Verdict, write_reply
from starling.ranking import Panels, rank
from starling.records import Finish, Judgment, Message, ModelRef, Outcome, Prompt, Response

SETTINGS = RankingSection(judge="j")
PROMPTS = [Prompt.make((Message(role="user", content=text),), ("test",)) for text in ("one", "two", "three")]


def shortest_first(request: Request) -> str:
    seen, rubric = read_prompt(request.messages), read_rubric(request.messages)
    order = sorted(range(len(seen.answers)), key=lambda i: len(seen.answers[i]))
    asked = seen.pairs or (tuple(combinations(range(len(order)), 2)) if FORMS[rubric.grammar].pairs else ())
    pairs = tuple((a, b, min(a, b, key=order.index)) for a, b in asked)
    return write_reply(Verdict(tuple(order), True, pairs, score=10 - len(seen.answers[0])), rubric.grammar)


@pytest.fixture
def judge(tmp_path: Path) -> Iterator[ScriptedEndpoint]:
    with Journal(tmp_path / "j.sqlite") as journal:
        yield ScriptedEndpoint(ModelRef(provider="scripted", name="judge"), shortest_first, journal)


def response(prompt: Prompt, model: str, text: str, finish: Finish = Finish.stop) -> Response:
    return Response(id=f"{prompt.id}-{model}", prompt_id=prompt.id, model=model, text=text, finish=finish, call_id="c")


def three_each() -> list[Response]:
    return [response(p, m, t) for p in PROMPTS for m, t in (("long", "xxx"), ("short", "x"), ("mid", "xx"))]


def test_one_judgment_per_prompt_in_prompt_order(judge: ScriptedEndpoint) -> None:
    found = rank(PROMPTS, three_each(), judge, SETTINGS, 0)
    assert [j.prompt_id for j in found.judgments] == [r.prompt_id for r in found.rankings] == [p.id for p in PROMPTS]
    for prompt, judgment, ranking in zip(PROMPTS, found.judgments, found.rankings, strict=True):
        assert judgment.ranking == tuple(f"{prompt.id}-{m}" for m in ("short", "mid", "long"))
        assert ranking.tiers == tuple((i,) for i in judgment.ranking)
        assert ranking.calls == (judgment.call_id,)
    assert found.left_out == {}
    assert found.outcomes == {"ranked": 3}
    assert found.metrics == {"calls": 3, "calls_by_outcome": {"ranked": 3}, "asked_again": 0, "contested": 0}


def test_failed_responses_and_lonely_prompts_are_counted(judge: ScriptedEndpoint) -> None:
    responses = [
        *(response(PROMPTS[0], m, "x" * i) for i, m in enumerate("abc")),
        response(PROMPTS[1], "a", "x"),
        response(PROMPTS[1], "b", "", Finish.error),
        response(PROMPTS[1], "c", "", Finish.error),
    ]
    found = rank(PROMPTS, responses, judge, SETTINGS, 0)
    assert [j.prompt_id for j in found.judgments] == [r.prompt_id for r in found.rankings] == [PROMPTS[0].id]
    assert found.left_out == {"fewer_than_2_responses": 2, "response_error": 2}
    assert found.outcomes == {"ranked": 1, "fewer_than_2_responses": 2, "response_error": 2}


def test_cut_refused_equal_and_empty_responses_are_all_shown(judge: ScriptedEndpoint) -> None:
    responses = [
        response(PROMPTS[0], "a", "same"),
        response(PROMPTS[0], "b", "same"),
        response(PROMPTS[0], "c", "cut off", Finish.length),
        response(PROMPTS[0], "d", "", Finish.refusal),
    ]
    [judgment] = rank(PROMPTS[:1], responses, judge, SETTINGS, 0).judgments
    assert judgment.outcome is Outcome.ranked
    assert len(judgment.shown) == 4


def test_responses_that_were_set_aside_are_counted_and_not_shown(judge: ScriptedEndpoint) -> None:
    responses = [response(PROMPTS[0], m, m * 2) for m in "abcd"]
    responses[1] = responses[1].model_copy(update={"set_aside": "duplicate"})
    responses[3] = responses[3].model_copy(update={"set_aside": "empty"})
    found = rank(PROMPTS[:1], responses, judge, SETTINGS, 0)
    assert sorted(found.judgments[0].shown) == [f"{PROMPTS[0].id}-a", f"{PROMPTS[0].id}-c"]
    assert found.left_out == {"response_duplicate": 1, "response_empty": 1}


def test_the_same_response_twice_is_shown_once(judge: ScriptedEndpoint) -> None:
    responses = [response(PROMPTS[0], m, m) for m in ("a", "b", "a")]
    found = rank(PROMPTS[:1], responses, judge, SETTINGS, 0)
    assert [len(j.shown) for j in found.judgments] == [2]
    assert found.left_out == {"response_repeated": 1}


def test_responses_of_another_run_are_refused(judge: ScriptedEndpoint, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="belongs to a prompt that is not there"):
        rank(PROMPTS[:1], [response(PROMPTS[1], "a", "x")], judge, SETTINGS, 0)
    with pytest.raises(ArtifactError, match="out of the order of the prompts"):
        rank(PROMPTS, [response(p, m, "x") for m in "ab" for p in PROMPTS], judge, SETTINGS, 0, folder=tmp_path)
    assert [p.name for p in tmp_path.iterdir() if p.suffix not in (".sqlite", ".sqlite-wal", ".sqlite-shm")] == []


def test_from_files_to_files_gives_the_same_as_lists(judge: ScriptedEndpoint, tmp_path: Path) -> None:
    write_records(tmp_path / "prompts.parquet", PROMPTS, Prompt)
    write_records(tmp_path / "responses.parquet", three_each(), Response)
    prompts, responses = RecordFile(tmp_path / "prompts.parquet", Prompt), RecordFile(tmp_path / "responses.parquet", Response)
    for mode in get_args(RankingMode):
        settings = RankingSection(judge="j", mode=mode, orders=2)
        folder = tmp_path / mode
        folder.mkdir()
        filed = rank(prompts, responses, judge, settings, 0, folder=folder)
        listed = rank(PROMPTS, three_each(), judge, settings, 0)
        assert sorted(p.name for p in folder.iterdir()) == ["judgments.parquet", "rankings.parquet"]
        assert list(filed.judgments) == list(listed.judgments) == read_records(folder / "judgments.parquet", Judgment)
        assert list(filed.rankings) == list(listed.rankings)
        assert (filed.outcomes, filed.metrics) == (listed.outcomes, listed.metrics)
        assert [r.tiers for r in filed.rankings] == [tuple((f"{p.id}-{m}",) for m in ("short", "mid", "long")) for p in PROMPTS]
        again = tmp_path / f"{mode}-again"
        again.mkdir()
        rank(prompts, responses, judge, settings, 0, folder=again)
        for name in ("judgments.parquet", "rankings.parquet"):
            assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_counts_are_of_prompts_and_of_calls(tmp_path: Path) -> None:
    asked: list[str] = []

    def breaks(request: Request) -> str:
        asked.append(request.key)
        return "no verdict" if len(asked) in (1, 2, 4) else shortest_first(request)

    with Journal(tmp_path / "j.sqlite") as journal:
        endpoint = ScriptedEndpoint(ModelRef(provider="scripted", name="judge"), breaks, journal)
        found = rank(PROMPTS, three_each(), endpoint, SETTINGS, 0)
    # The first and the second prompt's replies break; asked again, the first one's breaks once more.
    assert found.outcomes == {"ranked": 2, "unparsed": 1}
    assert found.metrics == {"calls": 5, "calls_by_outcome": {"ranked": 2, "unparsed": 3}, "asked_again": 2, "contested": 0}
    assert [(j.attempt, j.outcome.value) for j in found.judgments] == [
        (0, "unparsed"),
        (1, "unparsed"),
        (0, "unparsed"),
        (1, "ranked"),
        (0, "ranked"),
    ]
    assert [r.outcome.value for r in found.rankings] == ["unparsed", "ranked", "ranked"]
    assert [r.reason.partition(":")[0] for r in found.rankings] == ["no good-natured line", "", ""]


def test_panels_count_what_they_leave_out_in_every_pass() -> None:
    panels = Panels(PROMPTS, [response(PROMPTS[1], m, "x") for m in "aab"])
    for _ in range(2):
        assert [[r.model for r in p.responses] for p in panels] == [["a", "b"]]
        assert panels.left_out == {"fewer_than_2_responses": 2, "response_repeated": 1}
