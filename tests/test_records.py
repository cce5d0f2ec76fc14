"""Records: their laws, their identities, and what they refuse."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from starling.records import (
    Comparison,
    Finish,
    Judgment,
    MergedRanking,
    Message,
    ModelRef,
    Outcome,
    PairVerdict,
    Prompt,
    RankedAnswer,
    RankedPair,
    RankedPrompt,
    Record,
    Response,
    Sampling,
    Score,
    canonical_json,
    content_hash,
    prompt_id,
)


def user(text: str) -> Message:
    return Message(role="user", content=text)


def test_canonical_json_is_one_text_for_one_value() -> None:
    assert canonical_json({"b": [1, 2.5, None, True], "a": "é\n"}) == '{"a":"é\\n","b":[1,2.5,null,true]}'
    with pytest.raises(ValueError, match="Out of range"):
        canonical_json(float("nan"))


def test_hashes_are_pinned() -> None:
    """Golden: ids of older runs must keep their meaning. The first is `printf '{"a":1}' | sha256sum`."""
    assert content_hash({"a": 1}) == "015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862"
    assert content_hash({"a": 1}, 8) == "015abd7f"
    assert len(content_hash("\ud800")) == 64


def test_log_probabilities_are_in_a_text_only_where_they_are_asked_for() -> None:
    """Keys of calls and fingerprints of settings from before there were any stay what they were."""
    plain = '{"max_tokens":512,"stop":[],"temperature":1.0,"top_p":1.0}'
    assert canonical_json(Sampling().model_dump(mode="json")) == canonical_json(Sampling().model_dump()) == plain
    inside = ModelRef(provider="p", name="n", sampling=Sampling(top_logprobs=5)).model_dump(mode="json")
    assert inside["sampling"]["top_logprobs"] == 5
    assert ModelRef.model_validate(inside).sampling == Sampling(top_logprobs=5) != Sampling()
    assert Sampling.model_validate_json(Sampling().model_dump_json()) == Sampling()
    for wrong in (-1, 21):
        with pytest.raises(ValidationError):
            Sampling(top_logprobs=wrong)


def test_a_prompts_id_depends_on_roles_and_contents_only() -> None:
    one = Prompt.make((user("a"),), ("x",), "train")
    assert one.id == prompt_id((user("a"),)) == Prompt.make((user("a"),), ("y", "z"), "test").id
    others = [
        prompt_id((user("b"),)),
        prompt_id((user("a"), user("a"))),
        prompt_id((Message(role="assistant", content="a"),)),
        prompt_id((user("a"), Message(role="assistant", content=""), user("a"))),
    ]
    assert len({one.id, *others}) == 5
    assert len(one.id) == 16


@pytest.mark.parametrize("messages", [(), (Message(role="assistant", content="a"),), (user(" \n"),)])
def test_a_prompt_waits_for_a_reply(messages: tuple[Message, ...]) -> None:
    with pytest.raises(ValidationError, match="user turn"):
        Prompt.make(messages, ("x",))


def test_records_are_frozen_and_refuse_unknown_fields() -> None:
    with pytest.raises(ValidationError):
        user("a").content = "b"  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Message.model_validate({"role": "user", "content": "a", "name": "x"})
    with pytest.raises(ValidationError):
        Message.model_validate({"role": "tool", "content": "a"})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_are_finite(value: float) -> None:
    for make in (
        lambda: Sampling(temperature=value),
        lambda: Score(id="a", reward=value, outcome="scored"),
        lambda: RankedAnswer(answer="a", model="m", rank=value),
    ):
        with pytest.raises(ValidationError):
            make()


# ── judgments ────────────────────────────────────────────────────────────────────────────────────────────────────────


def judgment(**changes: Any) -> Judgment:
    given: dict[str, Any] = {
        "prompt_id": "p", "rubric": "r", "judge": "j", "shown": ("x", "y", "z"), "pair_order": (), "outcome": "ranked",
        "ranking": ("z", "x", "y"), "good_natured": None, "pair_verdicts": (), "call_id": "c",
    }  # fmt: skip
    return Judgment.model_validate(given | changes)


@given(st.lists(st.sampled_from("xyzw"), max_size=4))
def test_ranked_means_a_permutation_of_what_was_shown(ranking: list[str]) -> None:
    if sorted(ranking) == ["x", "y", "z"]:
        assert judgment(ranking=ranking).ranking == tuple(ranking)
    else:
        with pytest.raises(ValidationError, match="permutation"):
            judgment(ranking=ranking)


def test_an_answer_shown_twice_cannot_be_ranked() -> None:
    with pytest.raises(ValidationError, match="permutation"):
        judgment(shown=("x", "x"), ranking=("x", "x"))


@pytest.mark.parametrize("outcome", [o for o in Outcome if o is not Outcome.ranked])
def test_other_outcomes_have_no_ranking(outcome: Outcome) -> None:
    assert judgment(outcome=outcome, ranking=None).ranking is None
    with pytest.raises(ValidationError, match="exactly when"):
        judgment(outcome=outcome)


def test_ranked_has_a_ranking() -> None:
    with pytest.raises(ValidationError, match="exactly when"):
        judgment(ranking=None)


@pytest.mark.parametrize(("first", "second", "winner"), [("x", "x", "x"), ("x", "y", "z"), ("x", "v", "x")])
def test_a_pairs_winner_is_one_of_two(first: str, second: str, winner: str) -> None:
    with pytest.raises(ValidationError, match="different members"):
        judgment(pair_verdicts=(PairVerdict(first=first, second=second, winner=winner),))


# ── ranked prompts, comparisons, scores ──────────────────────────────────────────────────────────────────────────────


def ranked(*ranks: float) -> RankedPrompt:
    answers = tuple(RankedAnswer(answer=str(r), model="m", rank=r) for r in ranks)
    return RankedPrompt(prompt=Prompt.make((user("a"),), ("x",)), answers=answers, good_natured=None)


def test_answers_are_best_first_and_tied_ones_share_a_rank() -> None:
    assert [a.rank for a in ranked(1, 2, 3).answers] == [1.0, 2.0, 3.0]
    assert not ranked(1, 2, 3).tied
    assert [ranked(*r).tied for r in ((1, 1), (1, 2, 2, 4), (1, 1, 3))] == [True, True, True]
    for ranks in ((1,), (), (2, 1), (1, 3), (0, 1), (1, 2.5), (1, 1, 2), (1, 2, 2, 3), (2, 2)):
        with pytest.raises(ValidationError, match=r"two answers|best first"):
            ranked(*ranks)


def test_pairs_of_a_ranked_prompt_name_answers_that_are_there() -> None:
    row = ranked(1, 2)
    pair = RankedPair(better=0, worse=1, confidence=0.75, weight=4)
    assert row.model_copy(update={"pairs": (pair,)}).pairs[0].confidence == 0.75
    for better, worse in ((0, 2), (1, 1)):
        broken = pair.model_dump() | {"better": better, "worse": worse}
        with pytest.raises(ValidationError, match="not there"):
            RankedPrompt.model_validate(row.model_dump() | {"pairs": (broken,)})


def test_verdicts_of_a_ranked_prompt_name_answers_that_are_there() -> None:
    row = ranked(1, 2).model_dump()
    assert RankedPrompt.model_validate(row | {"verdicts": ({"first": 1, "second": 0, "winner": 0},)}).verdicts[0].winner == 0
    tie = {"first": 1, "second": 0, "winner": None}
    assert RankedPrompt.model_validate(row | {"verdicts": (tie,)}).verdicts[0].winner is None
    for first, second, winner in ((0, 2, 0), (1, 1, 1), (0, 1, 2), (1, 1, None)):
        with pytest.raises(ValidationError, match=r"not there|different members"):
            RankedPrompt.model_validate(row | {"verdicts": ({"first": first, "second": second, "winner": winner},)})


def merged(**changes: Any) -> MergedRanking:
    given: dict[str, Any] = {
        "prompt_id": "p", "outcome": "ranked", "tiers": (("a",), ("b", "c")), "good_natured": True,
        "pairs": ({"better": "a", "worse": "b", "support": 2.5, "weight": 3},), "contested": False, "calls": ("k",),
    }  # fmt: skip
    return MergedRanking.model_validate(given | changes)


def test_a_merged_ranking_has_tiers_exactly_when_it_is_ranked() -> None:
    assert merged().tiers == (("a",), ("b", "c"))
    assert merged(outcome="unparsed", tiers=(), pairs=()).tiers == ()
    for tiers, outcome in (((), "ranked"), ((("a",), ()), "ranked"), ((("a",),), "refused"), ((("a",), ("a",)), "ranked")):
        with pytest.raises(ValidationError, match=r"tiers|twice"):
            merged(tiers=tiers, outcome=outcome)


@pytest.mark.parametrize(("winner", "swapped"), [("a", "b"), ("b", "a"), ("tie", "tie"), (None, None)])
def test_swapping_sides_flips_the_winner(winner: Any, swapped: Any) -> None:
    outcome = Outcome.ranked if winner else Outcome.unparsed
    one = Comparison(prompt_id="p", a="new", b="old", winner=winner, by="judge", outcome=outcome)
    two = one.swap()
    assert (two.a, two.b, two.winner) == ("old", "new", swapped)
    assert two.swap() == one


def test_no_verdict_is_not_a_tie() -> None:
    for winner, outcome in ((None, "ranked"), ("tie", "refused")):
        with pytest.raises(ValidationError, match="exactly when"):
            Comparison.model_validate({"prompt_id": "p", "a": "a", "b": "b", "winner": winner, "by": "human", "outcome": outcome})


def test_a_score_or_a_reason() -> None:
    assert Score(id="a", reward=0.0, outcome="scored").reward == 0.0
    for reward, outcome in ((None, "scored"), (0.0, "empty")):
        with pytest.raises(ValidationError, match="exactly when"):
            Score.model_validate({"id": "a", "reward": reward, "outcome": outcome})


def test_enumerations_are_plain_strings_in_json() -> None:
    made = Response(id="i", prompt_id="p", model="m", text="", finish=Finish.length, call_id="c")
    assert json.loads(made.model_dump_json())["finish"] == "length"
    assert Response.model_validate_json(made.model_dump_json()) == made


def test_every_record_explains_itself() -> None:
    classes = [cls for cls in Record.__subclasses__() if cls.__module__ == "starling.records"]
    assert len(classes) > 8
    assert all(cls.__doc__ for cls in classes)
