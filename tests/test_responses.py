"""Responses: order, labels, failures kept."""

from __future__ import annotations

from pathlib import Path

from starling.endpoint import Reply, Request, ScriptedEndpoint
from starling.journal import Journal
from starling.records import Finish, Message, ModelRef, Prompt
from starling.responses import collect

PROMPTS = [Prompt.make((Message(role="user", content=text),), ("test",)) for text in ("one", "two")]


def endpoint(name: str, journal: Journal, ending: str = "!") -> ScriptedEndpoint:
    return ScriptedEndpoint(ModelRef(provider="scripted", name=name), lambda r: r.messages[-1].content + ending, journal)


def test_prompt_order_then_pool_order(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.sqlite") as journal:
        # The pool's own order counts, not the alphabet.
        responses = collect(PROMPTS, {"zeta": endpoint("z", journal, "?"), "alpha": endpoint("a", journal)})
    assert [(r.prompt_id, r.model, r.text) for r in responses] == [
        (PROMPTS[0].id, "zeta", "one?"),
        (PROMPTS[0].id, "alpha", "one!"),
        (PROMPTS[1].id, "zeta", "two?"),
        (PROMPTS[1].id, "alpha", "two!"),
    ]
    assert len({r.id for r in responses}) == 4
    assert all(r.finish is Finish.stop and r.call_id for r in responses)


def test_equal_texts_of_two_models_are_two_responses(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.sqlite") as journal:
        a, b = collect(PROMPTS[:1], {"a": endpoint("a", journal), "b": endpoint("b", journal)})
    assert a.text == b.text
    assert a.id != b.id


def test_a_failed_call_is_a_response_without_text(tmp_path: Path) -> None:
    def answer(request: Request) -> Reply | str:
        if request.messages[-1].content == "one":
            return Reply("", Finish.error, request.key, "HTTP 500")
        return Reply("cut o", Finish.length, request.key)

    with Journal(tmp_path / "j.sqlite") as journal:
        failed, cut = collect(PROMPTS, {"a": ScriptedEndpoint(ModelRef(provider="scripted", name="a"), answer, journal)})
    assert (failed.text, failed.finish) == ("", Finish.error)
    assert (cut.text, cut.finish) == ("cut o", Finish.length)


def test_nothing_in_nothing_out(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.sqlite") as journal:
        assert collect([], {"a": endpoint("a", journal)}) == []
