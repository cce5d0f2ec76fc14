"""A whole MT-Bench against scripted models: contexts, temperatures, protocols, failures, files, and going on after a kill."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from starling.call import Failure, Reply, Request, failed_reply
from starling.config import MTBenchSection
from starling.endpoint import ScriptedEndpoint
from starling.errors import BudgetError, ConfigError, InputError
from starling.evaluate.mt_bench import Rules, from_files, judged, run
from starling.evaluate.results import Job, Result
from starling.journal import Budget, Journal
from starling.judge.rubric import read_prompt, read_rubric
from starling.judge.verdict import FORMS, Verdict, write_reply
from starling.progress import SILENT
from starling.records import ModelRef
from tests.evaluate.mt_bench import making
from tests.evaluate.mt_bench.making import write

Says = Callable[[Request], str | Reply]


def echo(name: str) -> Says:
    """Says who it is, what it was asked last, and after how many messages."""
    return lambda request: f"{name} on <{request.messages[-1].content}> after {len(request.messages) - 1}"


def by_length(request: Request) -> str:
    """A judge of Starling's prompts: a grade by the answer's first digit, the longer of two answers."""
    material, grammar = read_prompt(request.messages), read_rubric(request.messages).grammar
    if FORMS[grammar].score:
        return write_reply(Verdict((0,), True, (), score=1 + len(material.answers[0]) % 10), grammar)
    order = (0, 1) if len(material.answers[0]) >= len(material.answers[1]) else (1, 0)
    return write_reply(Verdict(order, True, tuple((a, b, order[0]) for a, b in material.pairs)), grammar)


class World:
    """A folder with questions and references, scripted models, a judge, and a journal."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.questions = write(folder / "question.jsonl", making.questions())
        self.references = write(folder / "reference.jsonl", [making.answer(101, "gpt-4", "published 1", "published 2")])
        self.asked: dict[str, list[Request]] = {}
        self.models: dict[str, Says] = {"m": echo("model m"), "nn": echo("model number nn")}
        self.judge: Says = by_length
        self.budget = Budget()
        self.resamples = 100

    def run(self, out: str = "out", systems: dict[str, str] | None = None, **settings: Any) -> Result:
        section = MTBenchSection.model_validate({"questions": self.questions, "references": self.references} | settings)
        self.asked = {}
        (self.folder / out).mkdir(exist_ok=True)
        with Journal(self.folder / "journal.sqlite", self.budget) as journal:
            job = Job(
                models={name: self._endpoint(name, says, journal) for name, says in self.models.items()}, systems=systems or {},
                judge=self._endpoint("judge", self.judge, journal), judge_price=(1.0, 2.0), resamples=self.resamples,
                folder=self.folder / out, progress=SILENT,
            )  # fmt: skip
            return run(section, job)

    def _endpoint(self, name: str, says: Says, journal: Journal) -> ScriptedEndpoint:
        def answer(request: Request) -> str | Reply:
            self.asked.setdefault(name, []).append(request)
            return says(request)

        return ScriptedEndpoint(ModelRef(provider="scripted", name=name), answer, journal)

    def rows(self, name: str, out: str = "out") -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / out / name).read_text().splitlines()]

    def bytes(self, out: str) -> dict[str, bytes]:
        base = self.folder / out
        return {str(p.relative_to(base)): p.read_bytes() for p in sorted(base.rglob("*")) if p.is_file()}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


# ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_two_turns_in_context_at_the_temperatures_of_the_categories(world: World) -> None:
    world.questions = write(
        world.questions,
        [*making.questions(), making.question(161, "knitting"), making.question(301, "math", 1, required_temperature=0.4)],
    )
    world.references = write(world.references, [making.answer(101, "g", "r", "r"), making.answer(301, "g", "r")])
    world.run(systems={"m": "Be brief."}, temperatures={"stem": 0.25})
    first, second = world.asked["m"][:5], world.asked["m"][5:]
    assert [(r.model.sampling.temperature, r.model.sampling.max_tokens) for r in first] == [
        (t, 1024) for t in (0.7, 0.0, 0.25, 0.7, 0.4)
    ]
    assert [r.model.sampling.temperature for r in second] == [0.7, 0.0, 0.25, 0.7]  # the question of one turn is over
    assert [(m.role, m.content) for m in second[0].messages] == [
        ("system", "Be brief."),
        ("user", "question 81, turn 1?"),
        ("assistant", "model m on <question 81, turn 1?> after 1"),
        ("user", "question 81, turn 2?"),
    ]
    assert [m.role for m in world.asked["nn"][5].messages] == ["user", "assistant", "user"]
    (row,) = [row for row in world.rows("model_answer/nn.jsonl") if row["question_id"] == 81]
    assert row["choices"] == [
        {
            "index": 0,
            "turns": ["model number nn on <question 81, turn 1?> after 0", "model number nn on <question 81, turn 2?> after 2"],
        }
    ]
    assert world.rows("question.jsonl") == [json.loads(line) for line in world.questions.read_text().splitlines()]


def test_a_failed_turn_is_counted_by_name_and_the_next_is_not_asked(world: World) -> None:
    def says(request: Request) -> str | Reply:
        last = request.messages[-1].content
        if last in ("question 81, turn 1?", "question 141, turn 2?"):
            return failed_reply(request.key, "busy", Failure.rate_limited)
        return "fine"

    world.models = {"m": says, "nn": echo("nn")}
    result = world.run()
    m = next(m for m in result.models if m.model == "m")
    assert dict(m.outcomes) == {"no_answer": 3, "ranked": 3}
    assert m.overall.n == 3
    assert [len(r.messages) for r in world.asked["m"]] == [1, 1, 1, 3, 3]
    turns = {row["question_id"]: row["choices"][0]["turns"] for row in world.rows("model_answer/m.jsonl")}
    assert turns == {81: ["$ERROR$", "$ERROR$"], 101: ["fine", "fine"], 141: ["fine", "$ERROR$"]}
    assert "m: turns without an answer, not judged: 3 rate_limited." in result.notes
    assert len([r for r in world.rows("model_judgment/judge_single.jsonl") if r["model"] == "m"]) == 3


# ── single grading ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_grades_by_our_protocol_and_the_files_give_the_same_figures(world: World) -> None:
    result = world.run(protocol="starling")
    assert (result.benchmark, result.unit, len(world.asked["judge"])) == ("mt-bench", "points of 10", 12)
    material = [read_prompt(r.messages) for r in world.asked["judge"]]
    second = next(x for x in material if x.messages[-1].content == "question 101, turn 2?" and "model m" in x.answers[0])
    assert [m.content for m in second.messages[:2]] == ["question 101, turn 1?", "model m on <question 101, turn 1?> after 0"]
    assert {x.messages[-1].content: x.reference for x in material} == {
        "question 81, turn 1?": None, "question 81, turn 2?": None, "question 141, turn 1?": None, "question 141, turn 2?": None,
        "question 101, turn 1?": "published 1", "question 101, turn 2?": "published 2",
    }  # fmt: skip
    m = next(m for m in result.models if m.model == "m")
    lengths = [len(f"model m on <question {q}, turn {t}?> after {2 * t - 2}") for q in (81, 101, 141) for t in (1, 2)]
    assert m.overall.score == pytest.approx(sum(1 + n % 10 for n in lengths) / 6)
    assert result.judge is not None
    assert (result.judge.calls, result.judge.repeat_spread, result.judge.unparsed_share) == (12, None, 0)
    assert result.judge.dollars is not None
    row = world.rows("model_judgment/judge_single.jsonl")[0]
    assert row["user_prompt"] == world.asked["judge"][0].messages[-1].content
    assert (row["judge"], row["judgment"]) == (["judge", "starling-single"], by_length(world.asked["judge"][0]))
    again = from_files(
        [world.folder / "out" / "model_judgment"], questions=world.questions, answers=world.folder / "out" / "model_answer",
        rules=Rules(resamples=100),
    )[0].result  # fmt: skip
    assert again.models == result.models
    assert again.differences == result.differences


def test_repeated_judging_has_a_spread_and_official_rule_counts_rows(world: World) -> None:
    def moody(request: Request) -> str:
        return write_reply(Verdict((0,), True, (), score=4 + 2 * request.sample), read_rubric(request.messages).grammar)

    world.judge = moody
    result = world.run(repeats=3)
    m = result.models[0]
    assert (m.overall.score, m.overall.n) == (6, 18)
    assert m.more["repeat_spread"] == pytest.approx((4 / 6) ** 0.5)  # 4, 6, 8: variance 4, six places
    assert result.judge is not None
    assert (result.judge.repeats, result.judge.calls) == (3, 36)
    assert result.judge.repeat_spread == pytest.approx((4 / 6) ** 0.5)
    again = from_files([world.folder / "out" / "model_judgment"], rules=Rules(resamples=100))[0].result
    assert again.models[0].more["repeat_spread"] == pytest.approx((4 / 6) ** 0.5)


def test_a_judge_that_cannot_be_read_is_no_number(world: World) -> None:
    def judge(request: Request) -> str | Reply:
        last = read_prompt(request.messages).messages[-1].content
        return (
            "ten out of ten"
            if "81" in last
            else failed_reply(request.key, "down", Failure.server_error)
            if "141" in last
            else by_length(request)
        )

    world.judge = judge
    result = world.run()
    for model in result.models:
        assert dict(model.outcomes) == {"provider_error": 2, "ranked": 2, "unparsed": 2}
        assert (model.overall.n, model.parts["writing"].score) == (2, None)
    rows = world.rows("model_judgment/judge_single.jsonl")
    assert {r["judgment"] for r in rows if r["question_id"] == 81} == {"ten out of ten"}
    assert {(r["judgment"], r["score"]) for r in rows if r["question_id"] == 141} == {("$ERROR$", -1)}
    assert result.judge is not None
    assert result.judge.outcomes["unparsed"] == 8  # each was asked for once more


# ── references ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_corrections_go_before_and_wrong_references_are_named(world: World) -> None:
    world.questions = write(
        world.questions, [making.question(104, "reasoning"), making.question(105, "reasoning"), making.question(106, "reasoning")]
    )
    published = [making.answer(q, "g", f"old {q}", "old") for q in (104, 105, 106)]
    world.references = write(world.references, published)
    noted = [note for note in world.run().notes if "are wrong" in note]
    assert len(noted) == 1
    assert "of 2 questions are wrong (104, 105;" in noted[0]
    corrected = write(world.folder / "better.jsonl", [making.answer(104, "me", "new 104", "new")])
    result = world.run(corrections=corrected)
    assert any("of 1 questions are wrong (105;" in note for note in result.notes)
    shown = {read_prompt(r.messages).reference for r in world.asked["judge"]}
    assert shown == {"new 104", "new"}  # the others were judged before, with the same references
    kept = {row["question_id"]: row["choices"][0]["turns"][0] for row in world.rows("reference_answer/judge.jsonl")}
    assert kept == {104: "new 104", 105: "old 105", 106: "old 106"}


def test_without_references_that_is_said_and_a_missing_one_stops(world: World) -> None:
    assert any("judged without a reference answer" in note for note in world.run(references=None).notes)
    write(world.references, [making.answer(101, "g", "only one turn")])
    with pytest.raises(InputError, match=r"question 101 .* no whole reference"):
        world.run()
    assert world.asked == {}
    assert world.run(reference_categories=[]).models


# ── FastChat's protocol ──────────────────────────────────────────────────────────────────────────────────────────────


def templates(folder: Path) -> Path:
    """Prompts with the fields and formats of FastChat's; the words are ours."""
    rows = []
    for name in ("single-v1", "single-math-v1"):
        ref = "R {ref_answer_1} " if "math" in name else ""
        rows.append(
            {
                "name": name,
                "type": "single",
                "system_prompt": "s1",
                "prompt_template": ref + "Q {question} A {answer}",
                "output_format": "[[rating]]",
            }
        )
        ref = "R {ref_answer_1} {ref_answer_2} " if ref else ""
        rows.append(
            rows[-1]
            | {
                "name": name + "-multi-turn",
                "system_prompt": "s2",
                "prompt_template": ref + "{question_1}|{answer_1}|{question_2}|{answer_2}",
            }
        )
    for name in ("pair-v2", "pair-math-v1"):
        rows.append(
            {
                "name": name,
                "type": "pairwise",
                "system_prompt": "p1",
                "prompt_template": "{question} A:{answer_a} B:{answer_b}",
                "output_format": "[[A]]",
            }
        )
        rows.append(
            rows[-1]
            | {
                "name": name + "-multi-turn",
                "prompt_template": "{question_2} A:{answer_a_1}/{answer_a_2} B:{answer_b_1}/{answer_b_2}",
            }
        )
    return write(folder / "judge_prompts.jsonl", rows)


def test_the_official_protocol_asks_and_reads_as_fastchat_does(world: World) -> None:
    said = {
        "question 81, turn 1?": "[[85]]",
        "question 81, turn 2?": "Rating: 8",
        "question 101, turn 1?": "see [2], but [[7.5]]",
    }

    def judge(request: Request) -> str:
        return next(
            (
                text
                for question, text in said.items()
                if question in request.messages[-1].content.split("|")[-2 if "|" in request.messages[-1].content else 0]
            ),
            "[[6]]",
        )

    world.models = {"m": echo("m")}
    world.judge = judge
    result = world.run(protocol="official", judge_prompts=templates(world.folder))
    asked = world.asked["judge"]
    assert {(r.model.sampling.temperature, r.model.sampling.max_tokens) for r in asked} == {(0.0, 2048)}
    first = next(r for r in asked if "101, turn 1" in r.messages[1].content and "|" not in r.messages[1].content)
    assert [(m.role, m.content) for m in first.messages] == [
        ("system", "s1"), ("user", "R published 1 Q question 101, turn 1? A m on <question 101, turn 1?> after 0"),
    ]  # fmt: skip
    rows = {(r["question_id"], r["turn"]): r for r in world.rows("model_judgment/judge_single.jsonl")}
    assert {place: r["score"] for place, r in rows.items()} == {
        (81, 1): 85,
        (81, 2): -1,
        (101, 1): 7.5,
        (101, 2): 6,
        (141, 1): 6,
        (141, 2): 6,
    }
    assert {r["judge"][1] for r in rows.values()} == {
        "single-v1",
        "single-v1-multi-turn",
        "single-math-v1",
        "single-math-v1-multi-turn",
    }
    assert rows[101, 2]["user_prompt"].startswith("R published 1 published 2 question 101, turn 1?|m on")
    (m,) = result.models
    assert dict(m.outcomes) == {"out_of_range": 1, "ranked": 4, "unparsed": 1}
    assert m.overall.score == pytest.approx((7.5 + 6 + 6 + 6) / 4)
    assert m.more["score_official"] == pytest.approx((85 + 7.5 + 6 + 6 + 6) / 5)
    official = world.run("second", protocol="official", judge_prompts=templates(world.folder), official_rule=True)
    assert official.models[0].overall.score == pytest.approx((85 + 7.5 + 6 + 6 + 6) / 5)
    assert "judge" not in world.asked  # everything was in the journal


def test_official_prompts_are_checked_before_anything_is_asked(world: World) -> None:
    path = write(world.folder / "few.jsonl", [json.loads(line) for line in templates(world.folder).read_text().splitlines()][:3])
    with pytest.raises(InputError, match="single-math-v1-multi-turn"):
        world.run(protocol="official", judge_prompts=path)
    assert world.asked == {}
    with pytest.raises(ConfigError, match="reference answer, and there are none"):
        world.run(protocol="official", judge_prompts=templates(world.folder), references=None)


def test_official_pairs_swap_the_sides_and_map_the_second_game_back(world: World) -> None:
    world.judge = lambda request: (
        "[[A]]"
        if "turn 1?" in request.messages[-1].content.split(" A:")[0]
        else "[[B]] or [[C]]"
        if " A:m on" in request.messages[-1].content
        else "none"
    )
    world.models = {"m": echo("m"), "n": echo("n")}
    world.run(mode="pairwise_all", protocol="official", judge_prompts=templates(world.folder))
    rows = world.rows("model_judgment/judge_pair.jsonl")
    assert {(r["turn"], r["model_1"], r["model_2"], r["g1_winner"], r["g2_winner"]) for r in rows} == {
        (1, "m", "n", "model_1", "model_2"), (2, "m", "n", "model_2", "error"),
    }  # fmt: skip
    first = rows[0]
    assert (
        first["g1_user_prompt"]
        == "question 81, turn 1? A:m on <question 81, turn 1?> after 0 B:n on <question 81, turn 1?> after 0"
    )
    assert (
        first["g2_user_prompt"]
        == "question 81, turn 1? A:n on <question 81, turn 1?> after 0 B:m on <question 81, turn 1?> after 0"
    )


@pytest.mark.parametrize(
    ("mode", "protocol"),
    [("single", "starling"), ("pairwise_all", "starling"), ("single", "official"), ("pairwise_all", "official")],
)
def test_our_own_files_tell_which_answer_was_judged(world: World, mode: str, protocol: str) -> None:
    """Also where the old answer is a part of the new one, and at the second turn after another first answer."""
    if protocol == "official":
        world.judge = lambda request: "[[7]] [[A]]"
    # templates whose answers stand as in FastChat's prompts
    prompts = [json.loads(line) for line in templates(world.folder).read_text().splitlines()]
    for row in prompts:
        row["prompt_template"] = re.sub(r"\{(answer\w*)\}", r"\n### Assistant A:\n{\1}\n", row["prompt_template"])
    world.run(mode=mode, protocol=protocol, judge_prompts=write(world.folder / "marked.jsonl", prompts))
    folder = world.folder / "out"
    judged_files, answers = [folder / "model_judgment"], folder / "model_answer"
    same = from_files(judged_files, answers=answers, rules=Rules(resamples=100))[0].result
    assert {m.model: dict(m.outcomes) for m in same.models} == {"m": {"ranked": 6}, "nn": {"ranked": 6}}
    rows = world.rows("model_answer/m.jsonl")
    rows[0]["choices"][0]["turns"][0] = rows[0]["choices"][0]["turns"][0].removeprefix("model ")
    write(answers / "m.jsonl", rows)
    other = from_files(judged_files, answers=answers, rules=Rules(resamples=100))[0].result
    assert dict(next(m for m in other.models if m.model == "m").outcomes) == {"other_answer": 2, "ranked": 4}


# ── pairs by our protocol ────────────────────────────────────────────────────────────────────────────────────────────


def test_all_pairs_by_our_protocol(world: World) -> None:
    world.models["same"] = world.models["m"]
    result = world.run(mode="pairwise_all")
    assert {m.model: m.overall.score for m in result.models} == {"nn": 100, "m": 25, "same": 25}  # the longer answer wins
    # m and same say the same: nobody is asked which is better, and against nn both are one question
    assert len(world.asked["judge"]) == 2 * 6
    rows = world.rows("model_judgment/judge_pair.jsonl")
    assert len(rows) == 18
    assert {
        (r["g1_winner"], r["g2_winner"], r["g1_judgment"]) for r in rows if {r["model_1"], r["model_2"]} == {"m", "same"}
    } == {("tie", "tie", "identical answers")}
    second = next(
        read_prompt(r.messages) for r in world.asked["judge"] if "81, turn 2" in read_prompt(r.messages).messages[-1].content
    )
    assert [m.role for m in second.messages] == ["user", "assistant", "user"]
    assert "model m on <question 81, turn 1?>" in second.answers[0] + second.answers[1]
    assert "turn 1" not in second.messages[1].content
    (mark,) = re.findall(r"lines that begin with \[(\w+)\]", second.messages[1].content)
    for said in second.answers:
        assert said.startswith(f"[{mark}] answer to message 1 of the user\nmodel ")
        assert said.count(f"\n[{mark}] answer to message 2 of the user\nmodel ") == 1
    assert result.judge is not None
    assert (result.judge.position_gap, result.judge.calls) == (0, 24)


def test_a_baseline_from_a_file_and_a_judge_that_takes_the_first(world: World) -> None:
    base = write(world.folder / "base.jsonl", [making.answer(q, "b", "short", "short") for q in making.CATEGORIES])

    def first(request: Request) -> str:
        material, grammar = read_prompt(request.messages), read_rubric(request.messages).grammar
        return write_reply(Verdict((0, 1), True, tuple((a, b, 0) for a, b in material.pairs)), grammar)

    world.judge = first
    result = world.run(mode="pairwise_baseline", baseline="base", answers=[base])
    assert {m.model: m.overall.score for m in result.models} == {"m": 50, "nn": 50}
    assert result.judge is not None
    assert (result.judge.position_gap, result.judge.position_gap_ci) == (1, (1, 1))
    assert "base" not in world.asked
    assert (world.folder / "out" / "model_answer" / "base.jsonl").is_file()


def test_answer_files_alone_are_judged_and_nobody_is_asked(world: World) -> None:
    world.models = {}
    texts = {"old.v1": "x" * 4, "new": "x" * 7}
    given = [
        write(world.folder / f"{name}.jsonl", [making.answer(q, "", text, text) for q in making.CATEGORIES])
        for name, text in texts.items()
    ]
    result = world.run(answers=given)
    assert {m.model: m.overall.score for m in result.models} == {"new": 8, "old.v1": 5}
    assert set(world.asked) == {"judge"}
    section = {"questions": "q.jsonl", "references": "r.jsonl"}
    assert MTBenchSection.model_validate(section).asks_own
    assert not MTBenchSection.model_validate(section | {"answers": ["new.jsonl"]}).asks_own


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"mode": "pairwise_baseline", "baseline": "nobody"}, "none of the models: m, nn"),
        ({"answers": ["m.jsonl"]}, "is to be asked and has answers in a file"),
    ],
)
def test_settings_that_do_not_fit_the_models(world: World, settings: dict[str, Any], said: str) -> None:
    write(world.folder / "m.jsonl", [making.answer(81, "m", "a", "b")])
    given = settings | ({"answers": [world.folder / name for name in settings["answers"]]} if "answers" in settings else {})
    with pytest.raises(ConfigError, match=said):
        world.run(**given)
    assert world.asked == {}


@pytest.mark.parametrize(
    "settings",
    [
        {"mode": "pairwise_baseline"},
        {"baseline": "m"},
        {"protocol": "official"},
        {"references": None, "corrections": "x"},
        {"repeats": 0},
        {"temperatures": {"math": -1}},
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        MTBenchSection.model_validate({"questions": "q.jsonl", "references": "r.jsonl"} | settings)


@pytest.mark.parametrize("settings", [{}, {"mode": "pairwise_all"}, {"mode": "pairwise_baseline", "baseline": "nn"}])
def test_where_no_model_answers_there_is_a_table_without_scores(world: World, settings: dict[str, Any]) -> None:
    world.models = dict.fromkeys(world.models, lambda request: failed_reply(request.key, "no", Failure.connection))
    result = world.run(**settings)
    assert all(m.overall.score is None and dict(m.outcomes) == {"no_answer": 6} for m in result.models)
    assert {m.model for m in result.models} == {"m", "nn"} - {settings.get("baseline")}
    assert "judge" not in world.asked
    assert result.judge is not None
    assert (result.judge.unparsed_share, result.judge.position_gap) == (None, None)


@pytest.mark.parametrize("mode", ["single", "pairwise_all"])
@pytest.mark.parametrize("protocol", ["starling", "official"])
def test_the_judge_is_asked_in_blocks_that_change_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, mode: str, protocol: str
) -> None:
    settings = {"mode": mode, "protocol": protocol, "judge_prompts": templates(world.folder), "repeats": 2}
    world.judge = (
        by_length if protocol == "starling" else lambda r: f"[[{'ABC'[len(r.messages[1].content) % 3]}]] [[{r.sample + 3}]]"
    )
    whole = world.run("whole", **settings)
    monkeypatch.setattr(judged, "BLOCK", 5)
    parts = world.run("parts", **settings)
    assert parts.models == whole.models
    assert (parts.judge, parts.notes) == (whole.judge, whole.notes)
    assert world.bytes("parts") == world.bytes("whole")


# ── going on ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("mode", ["single", "pairwise_all"])
def test_a_run_that_was_stopped_goes_on_and_ends_alike(world: World, mode: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    undisturbed = World(tmp_path_factory.mktemp("undisturbed"))
    wanted = undisturbed.run(mode=mode)
    total = sum(map(len, undisturbed.asked.values()))
    asked = 0
    for most in (4, 11, total - 1, None):  # stopped among the answers, then among the verdicts, then one call before the end
        world.budget = Budget(calls=most)
        try:
            result = world.run(mode=mode)
        except BudgetError:
            asked += sum(map(len, world.asked.values()))
            continue
        asked += sum(map(len, world.asked.values()))
    assert asked == total  # nothing was asked twice
    assert result.models == wanted.models
    assert world.bytes("out") == undisturbed.bytes("out")
    again = world.run("again", mode=mode)
    assert world.asked == {}
    assert (again.models, world.bytes("again")) == (result.models, world.bytes("out"))
