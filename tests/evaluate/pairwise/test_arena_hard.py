"""Arena-Hard: labels, scores and rules by hand; the official algorithms written out independently; files; malformed rows."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from starling.errors import InputError
from starling.evaluate.pairwise import arena_hard, arena_hard_files, arena_hard_scores
from starling.evaluate.pairwise.arena_hard_files import Judged, Question, judged, label_of, read_judgments
from starling.evaluate.pairwise.arena_hard_prompt import read_judge_prompt
from starling.evaluate.pairwise.arena_hard_scores import Rules, games, measure, official, official_old, rating
from starling.evaluate.results import ModelResult, Result


def row(uid: str, one: str | None, two: str | None, model: str = "m", **more: Any) -> dict[str, Any]:
    base = {"uid": uid, "category": "hard_prompt", "judge": "j", "model": model, "baseline": "b"}
    return base | {"games": [{"score": one, "judgment": {"answer": ""}}, {"score": two, "judgment": {"answer": ""}}]} | more


def read(rows: list[dict[str, Any]]) -> list[Judged]:
    found = [judged(value) for value in rows]
    assert all(isinstance(one, Judged) for one in found)
    return found  # type: ignore[return-value]


def line(result: Result, model: str) -> ModelResult:
    return next(m for m in result.models if m.model == model)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("My final verdict is: [[A>B]]", "A>B"),
        ("[[A>B]] … no, [[B>>A]]", "B>>A"),
        ("[[a=b]]", "A=B"),
        ("verdict [B>A] in single brackets", "B>A"),
        ("[A>B] is what others say, I say [[B>A]]", "B>A"),
        ("no label, A>B", None),
        ("[[C]]", None),
        ("[[A]]", "A"),  # no known label: unparsed later
    ],
)
def test_labels_by_the_official_expressions(text: str, label: str | None) -> None:
    assert label_of(text) == label


HAND = [
    row("1", "B>>A", "A>>B"),  # the model wins both strongly: 6 points of 6
    row("2", "A>B", "A>B"),  # 0 of 1, 1 of 1
    row("3", "A=B", "B>>A"),  # ½ of 1, 0 of 3
    row("4", "A>>B", None),  # v2.0: left out; v0.1: 0 of 3
]


def test_score_and_weights_by_hand() -> None:
    found = line(measure(read(HAND), Rules()), "m")
    assert found.overall.score == pytest.approx(100 * (6 + 1 + 0.5) / (6 + 2 + 4))
    assert found.more["weight_1"] == pytest.approx(100 * (2 + 1 + 0.5) / 6)
    assert (found.more["won"], found.more["tied"], found.more["lost"]) == (3, 1, 2)
    assert found.outcomes == {"other_game_failed": 1, "ranked": 6, "unparsed": 1}
    assert (found.overall.n, found.overall.clusters) == (6, 3)
    assert found.more["order_disagreement"] == pytest.approx(2 / 3)
    old = line(measure(read(HAND), Rules(rule="v0.1")), "m")
    assert old.overall.score == pytest.approx(100 * 7.5 / (12 + 3))
    assert old.more["rating"] == pytest.approx(1000)  # 7.5 of 15 is even
    assert line(measure(read(HAND), Rules(strong_weight=1)), "m").overall.score == pytest.approx(found.more["weight_1"])


def test_position_gap_by_hand() -> None:
    found = measure(read(HAND), Rules()).judge
    assert found is not None
    # leans to the first shown, game 1 and 2: −1+1, +1+1, 0−1; the fourth has one game only
    assert found.position_gap == pytest.approx((0 + 2 - 1) / 6)
    assert found.outcomes == {"ranked": 7, "unparsed": 1}


def test_swapping_model_and_baseline_mirrors_the_score() -> None:
    flip = {"A>>B": "B>>A", "B>>A": "A>>B", "A>B": "B>A", "B>A": "A>B", "A=B": "A=B"}
    rng = np.random.default_rng(0)
    labels = list(flip)
    rows = [row(str(i), *rng.choice(labels, 2).tolist()) for i in range(50)]
    turned = [row(str(i), flip[r["games"][0]["score"]], flip[r["games"][1]["score"]]) for i, r in enumerate(rows)]
    one, two = (line(measure(read(r), Rules()), "m").overall for r in (rows, turned))
    assert one.score == pytest.approx(100 - (two.score or 0))
    assert one.ci is not None
    assert two.ci is not None
    assert one.ci == pytest.approx((100 - two.ci[1], 100 - two.ci[0]))


def test_the_official_interval_has_the_distribution_of_the_original() -> None:
    """show_result.py makes copies of strong verdicts and resamples single ones; written out here with plain numpy."""
    rng = np.random.default_rng(1)
    rows = [
        row(str(i), *rng.choice(["A>>B", "A>B", "A=B", "B>A", "B>>A"], 2, p=[0.1, 0.3, 0.1, 0.3, 0.2]).tolist())
        for i in range(150)
    ]
    to_score = {"A>B": [1.0], "A>>B": [1.0] * 3, "A=B": [0.5], "B>A": [0.0], "B>>A": [0.0] * 3}
    exploded = np.array(
        [s for r in rows for s in to_score[r["games"][1]["score"]] + [1 - s for s in to_score[r["games"][0]["score"]]]]
    )
    means = np.array([rng.choice(exploded, len(exploded)).mean() for _ in range(4000)])
    found = games(read(rows), {str(i): i for i in range(150)}, "v2.0")
    ours = official(found, rounds=4000, seed=2)
    assert ours is not None
    assert ours.score == pytest.approx(100 * exploded.mean(), abs=0.2)
    assert ours.low == pytest.approx(100 * np.quantile(means, 0.05), abs=0.25)
    assert ours.high == pytest.approx(100 * np.quantile(means, 0.95), abs=0.25)
    shown = line(measure(read(rows), Rules(official=True)), "m")
    assert shown.overall.ci is not None
    assert shown.overall.ci == (shown.more["official_low"], shown.more["official_high"])


def test_the_old_leaderboard_is_the_logistic_regression_it_stands_for() -> None:
    """v0.1 fits r_m − r_b by logistic regression on all battles, each twice; the maximum per model in closed form."""
    from scipy.optimize import minimize

    rng = np.random.default_rng(4)
    rows = [
        row(str(i), *rng.choice(["A>>B", "A>B", "A=B", "B>A"], 2).tolist(), model=model)
        for model in ("m", "n")
        for i in range(40)
    ]
    to_score = {"A>B": [1.0], "A>>B": [1.0] * 3, "A=B": [0.5], "B>A": [0.0]}
    battles = [
        ("mn".index(r["model"]), s)
        for r in rows
        for s in to_score[r["games"][1]["score"]] + [1 - s for s in to_score[r["games"][0]["score"]]]
    ]

    def loss(r: np.ndarray[Any, Any]) -> float:
        return sum(s * math.log1p(math.exp(-r[m])) + (1 - s) * math.log1p(math.exp(r[m])) for m, s in battles)

    fitted = minimize(loss, np.zeros(2), method="BFGS", options={"gtol": 1e-9}).x
    numbers = {str(i): i for i in range(40)}
    table = official_old({m: games(read([r for r in rows if r["model"] == m]), numbers, "v0.1") for m in "mn"}, rounds=50)
    for model, strength in zip("mn", fitted, strict=True):
        assert table[model].score == pytest.approx(100 / (1 + math.exp(-strength)), abs=1e-4)
        assert rating(table[model].score) == pytest.approx(1000 + 400 * strength / math.log(10), abs=1e-2)
        assert table[model].low < table[model].score < table[model].high


def test_categories_subcategories_and_what_was_never_judged() -> None:
    questions = [Question("1", "hard_prompt", "coding", "?"), Question("2", "hard_prompt", "math", "?"),
                 Question("3", "creative_writing", "", "?"), Question("9", "hard_prompt", "math", "?")]  # fmt: skip
    rows = [row("1", "B>A", "A>B"), row("2", "A>B", "B>A"), row("3", "A=B", "A=B", category="creative_writing", baseline="c"),
            row("8", "A=B", "A=B")]  # fmt: skip
    found = measure(read(rows), Rules(), questions=questions)
    scores = {name: part.score for name, part in line(found, "m").parts.items()}
    assert scores == {"creative_writing": 50, "hard_prompt": 50, "hard_prompt/coding": 100, "hard_prompt/math": 0}
    assert any("1 judgments are of prompts" in note for note in found.notes)
    assert any(note == "m: 1 of 4 prompts have no judgment." for note in found.notes)
    assert any("baselines of their own" in note for note in found.notes)


def test_two_models_are_compared_on_the_prompts_that_both_have() -> None:
    rows = [row(str(i), "B>A", "A>B", model="m") for i in range(10)]
    rows += [row(str(i), "B>A" if i < 4 else "A>B", "A>B" if i < 4 else "B>A", model="n") for i in range(8)]
    found = {(d.first, d.second): d for d in measure(read(rows), Rules()).differences}
    assert set(found) == {("m", "b"), ("n", "b"), ("m", "n")}
    assert found["m", "n"].difference == pytest.approx(50)
    assert found["m", "n"].p == pytest.approx(2 / 2**4)
    assert found["m", "b"].difference == pytest.approx(50)


def test_judges_are_pooled_and_repeats_give_the_spread() -> None:
    two = [row("1", "B>A", "A>B"), row("1", "A>B", "B>A", judge="k")]
    assert line(measure(read(two), Rules()), "m").overall.score == 50
    again = [row("1", "B>A", "A>B"), row("1", "A>B", "A>B", repeat=1)]
    found = measure(read(again), Rules()).judge
    assert found is not None
    assert found.repeats == 2
    assert found.repeat_spread == pytest.approx(np.std([100, 50], ddof=1))


def test_old_files_bad_rows_and_repetitions(tmp_path: Path) -> None:
    old = {
        "question_id": "q",
        "model": "org/m",
        "judge": "j",
        "games": [{"user_prompt": "", "judgment": "", "score": "A>B"}, {"score": "A"}],
    }
    rows = [old, old, {"model": "m", "games": []}, {"uid": "u", "games": []}, {"uid": "u", "model": "m", "games": [None]},
            row("w", None, "A>B") | {"games": [None, {"score": "A>B"}]}]  # fmt: skip
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows) + "{\n")
    found, left_out = read_judgments([path])
    assert found[0] == Judged(
        "q", "arena-hard-v0.1", "j", "m", "gpt-4-0314",
        (arena_hard_files.Game("A>B", "ranked"), arena_hard_files.Game(None, "unparsed")),
    )  # fmt: skip
    assert [g.outcome for g in found[1].games] == ["provider_error", "ranked"]
    assert left_out == {"games_missing": 1, "model_missing": 1, "not_json": 1, "repeated": 1, "uid_missing": 1}
    path.write_text("{}\n")
    with pytest.raises(InputError, match="no Arena-Hard judgment here"):
        read_judgments([path])


def test_questions_of_both_layouts_and_a_bad_one(tmp_path: Path) -> None:
    path = tmp_path / "question.jsonl"
    path.write_text(
        '{"uid": "a", "category": "hard_prompt", "subcategory": "math", "prompt": "1+1?"}\n'
        '{"question_id": "b", "category": "arena-hard-v0.1", "cluster": "Sums", "turns": [{"content": "2+2?"}]}\n'
    )
    assert arena_hard_files.read_questions(path) == [
        Question("a", "hard_prompt", "math", "1+1?"), Question("b", "arena-hard-v0.1", "Sums", "2+2?")
    ]  # fmt: skip
    path.write_text('{"uid": "a", "prompt": "x"}\n{"uid": "a", "prompt": "y"}\n')
    with pytest.raises(InputError, match=r"uid a comes twice.*question.jsonl:2"):
        arena_hard_files.read_questions(path)


def test_style_counts_leave_code_out() -> None:
    text = "# Head\n\n- **bold** one\n1. two\n```py\n# no head\n- no list\n```\n__also__\n"
    assert arena_hard_files.style_of(text) == {
        "token_len": -(-len(text) // 4),
        "header_count": {"h1": 1, "h2": 0, "h3": 0, "h4": 0, "h5": 0, "h6": 0},
        "list_count": {"ordered": 1, "unordered": 1}, "bold_count": {"**": 1, "__": 1},
    }  # fmt: skip


def test_style_control_takes_the_worth_of_length_out(tmp_path: Path) -> None:
    """Both models are as good as the baseline but for length, for which the judge has a taste: their answers are longer."""
    rng = np.random.default_rng(7)
    questions, rows = [], []
    texts: dict[str, dict[str, str]] = {"m": {}, "n": {}, "b": {}}
    for i in range(400):
        uid = f"u{i}"
        questions.append({"uid": uid, "category": "hard_prompt", "subcategory": "", "prompt": f"Question {i}?"})
        for name, shift in (("b", 0.0), ("m", 0.5), ("n", 0.0)):
            length = int(400 * math.exp(rng.normal(shift, 0.5)))
            marks = "# h\n" * rng.integers(0, 4) + "- l\n" * rng.integers(0, 6) + "**b** " * rng.integers(0, 6)
            texts[name][uid] = marks + "x" * length
        for name in ("m", "n"):
            ours, theirs = len(texts[name][uid]), len(texts["b"][uid])
            p = 1 / (1 + math.exp(-3 * (ours - theirs) / (ours + theirs)))
            labels = ["B>A" if rng.random() < p else "A>B", "A>B" if rng.random() < p else "B>A"]
            rows.append(row(uid, *labels, model=name))
    files = {}
    for name, of in texts.items():
        files[name] = tmp_path / f"{name}.jsonl"
        arena_hard_files.write_rows(
            files[name],
            (arena_hard_files.answer_row(Question(q["uid"], "", "", q["prompt"]), name, of[q["uid"]]) for q in questions),
        )
    arena_hard_files.write_rows(tmp_path / "question.jsonl", questions)
    arena_hard_files.write_rows(tmp_path / "judged.jsonl", rows)
    found = arena_hard.from_files(
        [tmp_path / "judged.jsonl"], Rules(resamples=200), questions=tmp_path / "question.jsonl", answers=files, style=True
    )
    m = line(found, "m")
    assert (m.overall.score or 0) > 60
    assert m.more["style_controlled"] == pytest.approx(50, abs=5)
    assert (m.more["style_controlled_low"] or 0) < 50 < (m.more["style_controlled_high"] or 0)
    assert m.more["avg_length"] == pytest.approx(np.mean([len(t) for t in texts["m"].values()]))
    assert any(note.startswith("Style in hard_prompt") for note in found.notes)
    with pytest.raises(InputError, match="has both answers"):
        arena_hard.from_files([tmp_path / "judged.jsonl"], Rules(), answers={"m": files["m"]}, style=True)


def test_style_scores_are_those_of_the_original_fit_up_to_its_centring() -> None:
    """show_result.py's model, maximised by scipy: standardised features, one strength per model, the baseline's 0."""
    from scipy.optimize import minimize

    from starling.evaluate.pairwise.arena_hard_style import style_scores

    rng = np.random.default_rng(9)
    texts: dict[str, dict[str, str]] = {"b": {}, "m": {}, "n": {}}
    rows = []
    for i in range(120):
        for name in texts:
            texts[name][f"u{i}"] = (
                "# h\n" * rng.integers(0, 4)
                + "- l\n" * rng.integers(0, 6)
                + "**b** " * rng.integers(0, 6)
                + "x" * rng.integers(200, 3000)
            )
        rows += [row(f"u{i}", *rng.choice(["A>>B", "A>B", "B>A", "A=B"], 2).tolist(), model=name) for name in "mn"]
    to_score = {"A>B": [1.0], "A>>B": [1.0] * 3, "A=B": [0.5], "B>A": [0.0]}
    x, model, outcome = [], [], []
    for r in rows:
        metas = [arena_hard_files.style_of(texts[name][r["uid"]]) for name in (r["model"], "b")]
        (la, *da), (lb, *db) = (
            [m["token_len"], *(sum(m[k].values()) / (m["token_len"] + 1) for k in ("header_count", "list_count", "bold_count"))]
            for m in metas
        )
        features = [(la - lb) / (la + lb + 1), *((p - q) / (p + q + 1) for p, q in zip(da, db, strict=True))]
        for s in to_score[r["games"][1]["score"]] + [1 - s for s in to_score[r["games"][0]["score"]]]:
            x.append(features)
            model.append("mn".index(r["model"]))
            outcome.append(s)
    x_NF, y_N = np.array(x), np.array(outcome)
    z_NF = (x_NF - x_NF.mean(0)) / x_NF.std(0)
    one_hot = np.eye(2)[model]

    def loss(theta: np.ndarray[Any, Any]) -> float:
        logit = one_hot @ theta[:2] + z_NF @ theta[2:]
        return float((np.logaddexp(0, logit) - y_N * logit).sum())

    fitted = minimize(loss, np.zeros(6), method="BFGS", options={"gtol": 1e-7}).x
    found = style_scores(read(rows), texts, category="hard_prompt", weight=3)
    level = fitted[2:] @ (x_NF.mean(0) / x_NF.std(0))
    for name, strength in zip("mn", fitted[:2], strict=True):
        assert found.official[name] == pytest.approx(100 / (1 + math.exp(-strength)), abs=0.01)
        assert found.scores[name][0] == pytest.approx(100 / (1 + math.exp(-(strength - level))), abs=0.01)


def test_judge_prompt_is_filled_once(tmp_path: Path) -> None:
    path = tmp_path / "prompt.toml"
    path.write_text('prompt_template = "{QUESTION}|{ANSWER_A}|{ANSWER_B}|{{x}}"\n[system_prompt]\nmath = "M"\n')
    prompt = read_judge_prompt(path)
    system, user = prompt.messages("math", "q {ANSWER_A}", "a {ANSWER_B}", "b {QUESTION}")
    assert (system.role, system.content) == ("system", "M")
    assert user.content == "q {ANSWER_A}|a {ANSWER_B}|b {QUESTION}|{x}"
    with pytest.raises(InputError, match="no system_prompt for the category 'coding'"):
        prompt.messages("coding", "", "", "")
    for text, problem in (
        ("prompt_template = 1", "lacks its template"),
        ('prompt_template = "x"\nsystem_prompt = "s"', "no place for"),
        ("=", "cannot be read"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=problem):
            read_judge_prompt(path)


def test_the_official_weight_has_to_be_whole() -> None:
    found = measure(read(HAND), Rules(strong_weight=2.5))
    assert line(found, "m").more["official"] is None
    assert line(found, "m").overall.score == pytest.approx(100 * (5 + 1 + 0.5) / (5 + 2 + 3.5))
    assert arena_hard_scores.OFFICIAL_ROUNDS == 100
