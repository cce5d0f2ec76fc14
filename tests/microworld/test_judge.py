"""The scripted judge reads the real prompt and answers in the real grammar; its errors have the size that the settings say."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from starling.config import MicroworldJudge, RankingSection
from starling.endpoint import Reply, Request, ScriptedEndpoint
from starling.journal import Journal
from starling.judge.given import Duel, compare_many
from starling.judge.judge import Panel, rank_many
from starling.judge.rubric import RUBRICS, STARLING, GivenKind, Rubric, build_prompt, read_prompt, rubric_as_given, rubric_of
from starling.judge.verdict import FORMS, Failure, Grammar, Verdict, parse, preference
from starling.microworld import judge as microworld_judge
from starling.microworld import world
from starling.records import Finish, Message, Messages, ModelRef, Outcome, Prompt, Response

MODEL = ModelRef(provider="microworld-judge", name="rubric")
EXACT = MicroworldJudge(type="microworld-judge", noise=0, position_bias=0, malformed=0)
QUESTION: Messages = (Message(role="user", content="How good?"),)


@dataclass(frozen=True)
class _Gold:
    score: float


@pytest.fixture
def numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A world in which an answer's text is its gold score and every request is good natured."""
    monkeypatch.setattr(world, "gold", lambda messages, text: _Gold(float(text)))
    monkeypatch.setattr(world, "good_natured", lambda messages: "harm" not in messages[-1].content)


def request(
    answers: list[str], messages: Messages = QUESTION, nonce: str = "0123456789abcdef", rubric: Rubric = STARLING
) -> Request:
    k = len(answers)
    pairs = [(b, a) for a in range(k) for b in range(a + 1, k)] if rubric.lists_pairs else []
    reference = "a reference" if rubric.reference else None
    return Request(model=MODEL, messages=build_prompt(rubric, messages, answers, pairs, nonce, reference))


def verdict(
    answers: list[str],
    settings: MicroworldJudge = EXACT,
    seed: int = 0,
    nonce: str = "0123456789abcdef",
    rubric: Rubric = STARLING,
) -> Verdict:
    found = parse(
        microworld_judge.answer(request(answers, QUESTION, nonce, rubric), settings, seed), len(answers), rubric.grammar
    )
    assert isinstance(found, Verdict)
    return found


@pytest.mark.usefixtures("numbers")
def test_without_errors_it_ranks_by_gold_and_answers_the_pairs_as_asked() -> None:
    found = verdict(["0.2", "0.9", "0.5"])
    assert found == Verdict((1, 2, 0), True, ((1, 0, 1), (2, 0, 2), (2, 1, 1)))


@pytest.mark.usefixtures("numbers")
def test_it_says_when_a_request_is_not_good_natured() -> None:
    asked = request(["0.1", "0.2"], (Message(role="user", content="do harm"),))
    assert microworld_judge.answer(asked, EXACT, 0).startswith("Good natured: no\n")


@pytest.mark.usefixtures("numbers")
def test_the_same_request_and_seed_give_the_same_reply_and_others_do_not() -> None:
    noisy = EXACT.model_copy(update={"noise": 0.5})
    answers = [str(i / 7) for i in range(7)]
    assert verdict(answers, noisy, 1) == verdict(answers, noisy, 1)
    assert len({verdict(answers, noisy, seed).ranking for seed in range(10)}) > 5
    assert len({verdict(answers, noisy, 1, f"nonce{i}").ranking for i in range(10)}) > 5


@pytest.mark.usefixtures("numbers")
def test_equal_answers_are_ordered_by_a_coin() -> None:
    firsts = Counter(verdict(["0.5", "0.5"], EXACT, seed).ranking[0] for seed in range(400))
    assert abs(firsts[0] - 200) < 50  # sd 10


@pytest.mark.usefixtures("numbers")
def test_noise_flips_as_often_as_two_normals_do() -> None:
    # Quality gap 0.1, noise 0.1 on each answer: P(flip) = Φ(−0.1 / (0.1·√2)) = Φ(−0.7071) = 0.2398; n = 2,000, sd 0.0095.
    noisy = EXACT.model_copy(update={"noise": 0.1})
    flips = sum(verdict(["0.5", "0.6"], noisy, seed).ranking[0] == 0 for seed in range(2000))
    assert abs(flips / 2000 - 0.2398) < 0.04


@pytest.mark.usefixtures("numbers")
def test_position_bias_falls_linearly_from_first_to_last() -> None:
    # Bonus 0.3 · (1, 2/3, 1/3, 0) makes 0.50, 0.55, 0.61, 0.65 into 0.80, 0.75, 0.71, 0.65.
    biased = EXACT.model_copy(update={"position_bias": 0.3})
    answers = ["0.50", "0.55", "0.61", "0.65"]
    assert verdict(answers, biased).ranking == (0, 1, 2, 3)
    assert verdict(answers).ranking == (3, 2, 1, 0)
    seen = microworld_judge.perceived(read_prompt(request(answers).messages), biased, lambda: 0.25)
    assert [q for q, _ in seen] == pytest.approx([0.80, 0.75, 0.71, 0.65])


@pytest.mark.usefixtures("numbers")
def test_every_mode_is_answered_as_its_rubric_asks() -> None:
    answers = ["0.22", "0.95", "0.28", "0.51"]  # 3, 10, 3 and 6 in ten steps
    listed = ((1, 0, 1), (2, 0, 2), (3, 0, 3), (2, 1, 1), (3, 1, 1), (3, 2, 3))
    every = ((0, 1, 1), (0, 2, 2), (0, 3, 3), (1, 2, 1), (1, 3, 1), (2, 3, 3))
    order = (1, 3, 2, 0)
    assert verdict(answers) == Verdict(order, True, listed)
    assert verdict(answers, rubric=rubric_of("internal_unlisted")) == Verdict(order, True, every)
    assert verdict(answers, rubric=rubric_of("rank_only")) == Verdict(order, True)
    assert verdict(answers[:2], rubric=rubric_of("pairwise")) == Verdict((1, 0), True, ((0, 1, 1),))
    assert verdict(answers[2:3], rubric=rubric_of("pointwise")) == Verdict((0,), True, score=3)
    untied = tuple(v for v in listed if v != (2, 0, 2))
    tied = Verdict(order, True, untied, ties=((2, 0),), tied=(1, 1, 2))
    assert verdict(answers, rubric=rubric_of("internal_random", True)) == tied
    assert verdict(answers, rubric=rubric_of("rank_only", True)) == Verdict(order, True, tied=(1, 1, 2))
    pair = verdict([answers[0], answers[2]], rubric=rubric_of("pairwise_both", True))
    assert (pair.pairs, pair.ties, pair.tied) == ((), ((0, 1),), (2,))


@pytest.mark.parametrize(
    ("seen", "score"), [(-0.2, 1), (0.0, 1), (0.099, 1), (0.1, 2), (0.55, 6), (0.899, 9), (0.9, 10), (1.0, 10), (1.3, 10)]
)
def test_scores_are_ten_equal_steps(seen: float, score: int) -> None:
    assert microworld_judge.score_of(seen) == score


@pytest.mark.usefixtures("numbers")
def test_the_bias_is_for_the_first_of_two_and_for_none_alone() -> None:
    biased = EXACT.model_copy(update={"position_bias": 0.3})
    pair, one = rubric_of("pairwise"), rubric_of("pointwise")
    assert verdict(["0.5", "0.7"], biased, rubric=pair).ranking == (0, 1)
    assert verdict(["0.5", "0.81"], biased, rubric=pair).ranking == (1, 0)
    assert verdict(["0.55"], biased, rubric=one).score == verdict(["0.55"], rubric=one).score == 6


def soft(request: Request, settings: MicroworldJudge = EXACT, seed: int = 0, top: int = 20) -> Reply:
    sampling = MODEL.sampling.model_copy(update={"max_tokens": 1, "top_logprobs": top})
    asked = replace(request, model=MODEL.model_copy(update={"sampling": sampling}))
    return microworld_judge.reply(asked, settings, seed)


LETTER = rubric_as_given("letter")


@pytest.mark.usefixtures("numbers")
def test_it_writes_a_letter_and_knows_how_sure_it_is_of_it() -> None:
    assert verdict(["0.2", "0.9"], rubric=LETTER) == Verdict((1, 0), None)
    assert preference(soft(request(["0.2", "0.9"], rubric=LETTER)).first_token) == 1.0
    assert preference(soft(request(["0.5", "0.5"], rubric=LETTER)).first_token) == pytest.approx(0.5)
    # Bonus 0.1 for the first, noise 0.1 on each: Φ((0.6 − 0.5 − 0.1) / 0.1414) = 0.5 and Φ(−2 · 0.7071) = 0.0786.
    settings = EXACT.model_copy(update={"noise": 0.1, "position_bias": 0.1})
    orders = (["0.5", "0.6"], ["0.6", "0.5"])
    chances = [preference(soft(request(texts, rubric=LETTER), settings).first_token) for texts in orders]
    assert chances == pytest.approx([0.5, 0.0786], abs=1e-4)


@pytest.mark.usefixtures("numbers")
def test_its_letters_are_as_frequent_as_it_says() -> None:
    noisy = EXACT.model_copy(update={"noise": 0.1})
    asked = request(["0.5", "0.6"], rubric=LETTER)
    said = preference(soft(asked, noisy).first_token)
    letters = Counter(microworld_judge.answer(asked, noisy, seed) for seed in range(2000))
    assert set(letters) == {"A", "B"}
    assert isinstance(said, float)
    assert abs(letters["B"] / 2000 - said) < 0.04  # sd 0.0095
    assert soft(asked, noisy, seed=1).first_token == soft(asked, noisy, seed=2).first_token


@pytest.mark.usefixtures("numbers")
def test_the_first_token_is_that_of_the_text_and_is_there_when_asked_for() -> None:
    reply = soft(request(["0.55"], rubric=rubric_as_given("pointwise")))
    assert reply.first_token[0][0] == "Good"
    assert reply.text == "Good natured: yes\nScore: 6"
    assert soft(request(["0.2", "0.9"], rubric=LETTER), top=0).first_token == ()
    assert len(soft(request(["0.5", "0.5"], rubric=LETTER), top=2).first_token) == 2
    broken = EXACT.model_copy(update={"malformed": 1.0})
    for seed in range(40):
        reply = soft(request(["0.2", "0.9"], rubric=LETTER), broken, seed)
        assert isinstance(preference(reply.first_token), Failure)
        assert isinstance(parse(reply.text, 2, LETTER.grammar), Failure)


@pytest.mark.usefixtures("numbers")
def test_a_reference_changes_nothing_to_a_judge_that_knows_the_truth() -> None:
    kinds: list[GivenKind] = ["internal", "pointwise", "letter"]
    for kind in kinds:
        texts = ["0.3"] if kind == "pointwise" else ["0.3", "0.7"]
        assert verdict(texts, rubric=rubric_as_given(kind, reference=True)) == verdict(texts, rubric=rubric_as_given(kind))


BROKEN = [
    (grammar, k, broken)
    for grammar, several in microworld_judge.BREAKS.items()
    for broken in several
    for k in (1, 2, 3, 7, 12)
    if FORMS[grammar].sizes[0] <= k <= FORMS[grammar].sizes[1]
]


@pytest.mark.usefixtures("numbers")
@pytest.mark.parametrize(("grammar", "k", "broken"), BROKEN, ids=lambda x: getattr(x, "__name__", str(x)))
def test_every_way_of_breaking_a_grammar_is_a_failure(grammar: Grammar, k: int, broken: object) -> None:
    for rubric in (r for r in RUBRICS.values() if r.grammar is grammar):
        for answers in ([str(i / 12) for i in range(k)], ["0.5"] * k):
            good = microworld_judge.answer(request(answers, rubric=rubric), EXACT, 0)
            assert isinstance(parse(good, k, grammar), Verdict)
            assert isinstance(parse(broken(good), k, grammar), Failure)  # type: ignore[operator]


def test_every_grammar_of_ours_can_be_broken() -> None:
    assert set(microworld_judge.BREAKS) == {r.grammar for r in RUBRICS.values()}


@pytest.mark.usefixtures("numbers")
def test_the_share_of_malformed_replies_is_the_setting() -> None:
    settings = EXACT.model_copy(update={"malformed": 0.2})
    asked = request(["0.1", "0.2", "0.3"])
    failures = [f for s in range(1000) if isinstance(f := parse(microworld_judge.answer(asked, settings, s), 3), Failure)]
    assert abs(len(failures) - 200) < 60  # sd 12.6
    assert len({f.reason for f in failures}) >= 4


def test_what_is_no_judge_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="no judge prompt"):
        microworld_judge.answer(Request(model=MODEL, messages=QUESTION), EXACT, 0)


def test_through_the_real_path_with_the_real_world(tmp_path: Path) -> None:
    """Prompt → judge prompt → endpoint → journal → parser: an errorless judge gives the gold order and the two-way winner."""
    prompts = world.all_prompts(validation=0, test=0)[::97]
    ranking = RankingSection(judge="j")
    texts = (
        "I like turtles.",
        "yes",
        "Sorry, I cannot help with that because it could hurt someone.",
        "7",
        "Hello! How can I help you?",
    )
    panels = [Panel(p, tuple(_response(p, i, t) for i, t in enumerate(texts))) for p in prompts]
    with Journal(tmp_path / "journal.sqlite") as journal:
        endpoint = ScriptedEndpoint(MODEL, lambda r: microworld_judge.answer(r, EXACT, 0), journal)
        judgments = [calls[-1] for calls in rank_many(panels, endpoint, ranking, seed=0)]
        duels = [Duel(p, "a", "b", texts[2], texts[3]) for p in prompts]
        comparisons = compare_many(duels, endpoint, ranking, seed=0)
    assert len(judgments) > 10
    for prompt, judgment in zip(prompts, judgments, strict=True):
        assert judgment.outcome is Outcome.ranked
        assert judgment.good_natured == world.good_natured(prompt.messages)
        scores = [world.gold(prompt.messages, texts[int(i)]).score for i in judgment.ranking or ()]
        assert scores == sorted(scores, reverse=True)
    for prompt, comparison in zip(prompts, comparisons, strict=True):
        a, b = (world.gold(prompt.messages, t).score for t in texts[2:4])
        assert a == b or comparison.winner == ("a" if a > b else "b")


def _response(prompt: Prompt, index: int, text: str) -> Response:
    return Response(id=str(index), prompt_id=prompt.id, model=f"m{index}", text=text, finish=Finish.stop, call_id="")
