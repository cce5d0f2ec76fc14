"""Ranking: which responses reach the judge, and what is counted instead."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from starling.config import RankingSection
from starling.endpoint import Request, ScriptedEndpoint
from starling.errors import ArtifactError
from starling.journal import Journal
from starling.judge.rubric import read_prompt
from starling.judge.verdict import Verdict, write_reply
from starling.ranking import rank
from starling.records import Finish, Message, ModelRef, Outcome, Prompt, Response

SETTINGS = RankingSection(judge="j")
PROMPTS = [Prompt.make((Message(role="user", content=text),), ("test",)) for text in ("one", "two", "three")]


def shortest_first(request: Request) -> str:
    seen = read_prompt(request.messages)
    order = sorted(range(len(seen.answers)), key=lambda i: len(seen.answers[i]))
    return write_reply(Verdict(tuple(order), True, tuple((a, b, min(a, b, key=order.index)) for a, b in seen.pairs)))


@pytest.fixture
def judge(tmp_path: Path) -> Iterator[ScriptedEndpoint]:
    with Journal(tmp_path / "j.sqlite") as journal:
        yield ScriptedEndpoint(ModelRef(provider="scripted", name="judge"), shortest_first, journal)


def response(prompt: Prompt, model: str, text: str, finish: Finish = Finish.stop) -> Response:
    return Response(id=f"{prompt.id}-{model}", prompt_id=prompt.id, model=model, text=text, finish=finish, call_id="c")


def test_one_judgment_per_prompt_in_prompt_order(judge: ScriptedEndpoint) -> None:
    # Responses may come in any order.
    responses = [response(p, m, t) for m, t in (("long", "xxx"), ("short", "x"), ("mid", "xx")) for p in reversed(PROMPTS)]
    found = rank(PROMPTS, responses, judge, SETTINGS, 0)
    assert [j.prompt_id for j in found.judgments] == [p.id for p in PROMPTS]
    for prompt, judgment in zip(PROMPTS, found.judgments, strict=True):
        assert judgment.ranking == tuple(f"{prompt.id}-{m}" for m in ("short", "mid", "long"))
    assert found.left_out == {}
    assert found.outcomes == {"ranked": 3}


def test_failed_responses_and_lonely_prompts_are_counted(judge: ScriptedEndpoint) -> None:
    responses = [
        *(response(PROMPTS[0], m, "x" * i) for i, m in enumerate("abc")),
        response(PROMPTS[1], "a", "x"),
        response(PROMPTS[1], "b", "", Finish.error),
        response(PROMPTS[1], "c", "", Finish.error),
    ]
    found = rank(PROMPTS, responses, judge, SETTINGS, 0)
    assert [j.prompt_id for j in found.judgments] == [PROMPTS[0].id]
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
    assert len(found.judgments[0].shown) == 2
    assert found.left_out == {"response_repeated": 1}


def test_responses_of_another_run_are_refused(judge: ScriptedEndpoint) -> None:
    with pytest.raises(ArtifactError, match="belongs to a prompt that is not there"):
        rank(PROMPTS[:1], [response(PROMPTS[1], "a", "x")], judge, SETTINGS, 0)
