"""Each benchmark from its file: what becomes an item, what is left out, what is an error; and its numbers by hand."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from starling.errors import InputError
from starling.evaluate.reward_benchmarks import BENCHMARKS, Item, Reading, Scored, benchmark, read_scores, truth
from starling.evaluate.reward_benchmarks.truth import mc1

USER = [{"role": "user", "content": "hi"}]


def write(path: Path, *rows: dict[str, Any]) -> Path:
    text = json.dumps(rows) if ".json" in path.suffixes else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def ab(**fields: Any) -> dict[str, Any]:
    row = {
        "question_id": "q1",
        "prompt": "hi",
        "response_a": "long answer",
        "response_b": "short",
        "score_a": 2.0,
        "score_b": 1.0,
    }
    return {name: value for name, value in {**row, **fields}.items() if value is not None}


def items(name: str, path: Path) -> tuple[list[Item], dict[str, int]]:
    reading = Reading()
    found = [item for item, _ in benchmark(name).read(path, reading)]
    return found, {reason: n for reason, n in reading.left_out.items() if n}


def result(name: str, path: Path) -> dict[str, Any]:
    return benchmark(name).measure(read_scores(benchmark(name), path).items, 100, 0)


# ── a and b ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("suffix", ["json", "json.gz", "jsonl", "jsonl.gz"])
def test_human_preference_counts_ties_of_people(tmp_path: Path, suffix: str) -> None:
    path = write(
        tmp_path / f"rows.{suffix}",
        ab(winner="model_a"),
        ab(question_id="q2", winner="model_b"),
        ab(question_id="q3", winner="model_b", score_a=0.5),
        ab(question_id="q4", winner="tie (bothbad)"),
        ab(question_id="q5", winner="tie"),
        ab(question_id="q6", winner="model_a", response_b="long answer"),
    )
    found = read_scores(benchmark("human_preference"), path)
    assert found.left_out == {"tie": 2, "equal_answers": 1}
    assert [row.item.truth for row in found.items] == [(1.0, 0.0), (0.0, 1.0), (0.0, 1.0)]
    assert result("human_preference", path)["accuracy"] == pytest.approx(2 / 3)


def test_parquet_is_read_as_well(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(
        pa.Table.from_pylist([ab(winner="model_b"), ab(question_id="q2", winner="model_a")]), tmp_path / "rows.parquet"
    )
    assert result("human_preference", tmp_path / "rows.parquet")["accuracy"] == 0.5


def test_swapping_the_answers_and_the_winner_changes_nothing(tmp_path: Path) -> None:
    rows = [
        ab(question_id=str(i), score_a=float(i % 5), score_b=2.0, winner="model_a" if i % 3 else "model_b") for i in range(20)
    ]
    swapped = [
        {
            **row,
            "response_a": row["response_b"], "response_b": row["response_a"],
            "score_a": row["score_b"], "score_b": row["score_a"],
            "winner": "model_b" if row["winner"] == "model_a" else "model_a",
        }
        for row in rows
    ]  # fmt: skip
    first, second = (result("human_preference", write(tmp_path / f"{n}.jsonl", *r)) for n, r in enumerate((rows, swapped)))
    assert first == second
    assert 0 < first["ties"] < 20


def test_items_of_one_prompt_are_one_cluster_whatever_its_case_and_spacing(tmp_path: Path) -> None:
    path = write(
        tmp_path / "rows.jsonl",
        ab(winner="model_a"),
        ab(question_id="q2", prompt=" HI ", winner="model_a"),
        ab(question_id="q3", prompt="\n\nHuman: hi\n\nAssistant: ", winner="model_a"),
        ab(question_id="q4", prompt=USER, winner="model_b"),
        ab(question_id="q5", prompt="other", winner="model_a"),
    )
    assert result("human_preference", path)["clusters"] == 2


def test_safety_preference_reads_the_safer_answer_in_place_of_a_winner(tmp_path: Path) -> None:
    path = write(
        tmp_path / "rows.json",
        ab(safer_response_id=0, better_response_id=1),
        ab(question_id="q2", safer_response_id=1, better_response_id=1),
        ab(question_id="q3", safer_response_id=1, better_response_id=0, score_b=3.0),
    )
    found = result("safety_preference", path)
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert {name: (p["accuracy"], p["n"]) for name, p in found["parts"].items()} == {
        "safer is better": (0.0, 1),
        "safer is not better": (1.0, 2),
    }
    hub = write(tmp_path / "hub.jsonl", {"prompt": "hi", "response_0": "x", "response_1": "yy", "safer_response_id": 1})
    assert items("safety_preference", hub)[0][0].truth == (0.0, 1.0)


def test_verbosity_prefers_the_short_one(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", ab(), ab(question_id="q2", score_b=9.0))
    found = result("verbosity", path)
    assert (found["accuracy"], found["baselines"]["shortest"], found["baselines"]["longest"]) == (0.5, 1.0, 0.0)


@pytest.mark.parametrize(
    ("name", "row", "said"),
    [
        ("human_preference", ab(), "no field 'winner'"),
        ("human_preference", ab(winner="a"), "the winner is 'a'"),
        ("human_preference", ab(winner="model_a", prompt=None), "there is no prompt"),
        (
            "human_preference",
            ab(winner="model_a", prompt=[{"role": "assistant", "content": "x"}]),
            "does not end with a user turn",
        ),
        ("human_preference", ab(winner="model_a", response_b=None), "no field 'response_b'"),
        ("human_preference", ab(winner="model_a", response_a=3), "the field 'response_a' is int"),
        ("human_preference", ab(winner="model_a", score_b=float("nan")), "'score_b' is nan"),
        ("human_preference", ab(winner="model_a", score_a=float("-inf")), "'score_a' is -inf"),
        ("human_preference", ab(winner="model_a", score_b=None), "'score_b' is None"),
        ("human_preference", ab(winner="model_a", score_b="2.0"), "'score_b' is '2.0'"),
        ("human_preference", ab(winner="model_a", score_b=True), "'score_b' is True"),
        ("safety_preference", ab(), "no field 'safer_response_id'"),
        ("safety_preference", ab(safer_response_id=2), "'safer_response_id' is 2, not 0 or 1"),
        ("safety_preference", ab(safer_response_id=True), "'safer_response_id' is True"),
        ("truthful_qa", ab(), "no field 'response_c'"),
    ],
)
def test_a_broken_row_of_a_published_benchmark_is_an_error(tmp_path: Path, name: str, row: dict[str, Any], said: str) -> None:
    good = ab(question_id="q0", winner="model_a", safer_response_id=0, response_c="c", score_c=1.0)
    with pytest.raises(InputError, match="row 2") as caught:
        read_scores(benchmark(name), write(tmp_path / "rows.jsonl", good, row))
    assert said in str(caught.value)


def test_a_line_that_is_no_json_is_an_error_with_its_number(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(ab(winner="model_a")) + "\n{oops\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"not_json.*row 2"):
        items("human_preference", tmp_path / "rows.jsonl")


@pytest.mark.parametrize("name", ["human_preference", "pairs"])
def test_an_id_twice_is_an_error(tmp_path: Path, name: str) -> None:
    rows = [ab(winner="model_a", id="q1", chosen="x", rejected="y"), ab(winner="model_b", id="q1", chosen="x", rejected="z")]
    with pytest.raises(InputError, match=r"'q1' comes twice.*row 2"):
        items(name, write(tmp_path / "rows.jsonl", *rows))


def test_no_score_and_no_row_are_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no score.*item q1"):
        read_scores(
            benchmark("human_preference"), write(tmp_path / "rows.jsonl", ab(winner="model_a", score_a=None, score_b=None))
        )
    with pytest.raises(InputError, match="no usable row"):
        items("human_preference", write(tmp_path / "empty.jsonl"))
    with pytest.raises(InputError, match=r"no usable row in the file \(1 tie\)"):
        items("human_preference", write(tmp_path / "ties.jsonl", ab(winner="tie")))
    with pytest.raises(InputError, match="does not exist"):
        items("human_preference", tmp_path / "none.jsonl")


# ── chosen and rejected ──────────────────────────────────────────────────────────────────────────────────────────────


def test_every_form_of_a_preference_pair(tmp_path: Path) -> None:
    chosen, rejected = {"role": "assistant", "content": "yes"}, {"role": "assistant", "content": "no"}
    path = write(
        tmp_path / "rows.jsonl",
        {"prompt": "hi", "chosen": "yes", "rejected": "no"},
        {"prompt": USER, "chosen": "yes", "rejected": "no"},
        {"prompt": "hi", "chosen": [chosen], "rejected": [rejected]},
        {"chosen": [*USER, chosen], "rejected": [*USER, rejected]},
        {"prompt": "hi", "chosen": [*USER, chosen], "rejected": [*USER, rejected]},
        {"chosen": "\n\nHuman: hi\n\nAssistant: yes", "rejected": "\n\nHuman: hi\n\nAssistant: no"},
    )
    found, left_out = items("pairs", path)
    assert left_out == {}
    assert {(item.messages[0].content, *item.answers, item.truth) for item in found} == {("hi", "yes", "no", (1.0, 0.0))}
    assert len({item.cluster for item in found}) == 1
    assert len({item.id for item in found}) == 6


def test_a_system_turn_stays_before_the_answers(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "be brief"}, *USER]
    row = {"chosen": [*turns, {"role": "assistant", "content": "y"}], "rejected": [*turns, {"role": "assistant", "content": "n"}]}
    assert [m.role for m in items("pairs", write(tmp_path / "rows.jsonl", row))[0][0].messages] == ["system", "user"]


def test_broken_rows_of_a_users_file_are_counted(tmp_path: Path) -> None:
    path = write(
        tmp_path / "rows.jsonl",
        {"prompt": "hi", "chosen": "yes", "rejected": "no", "subset": "s"},
        {"prompt": "hi", "chosen": "yes"},
        {"prompt": "hi", "chosen": "same", "rejected": "same"},
        {"chosen": "\n\nHuman: hi\n\nAssistant: yes", "rejected": "\n\nHuman: ho\n\nAssistant: no"},
        {"chosen": "\n\nHuman: hi\n\nAssistant: yes\n\nAssistant: no", "rejected": "\n\nHuman: hi\n\nAssistant: no"},
        {"chosen": [*USER], "rejected": [*USER]},
        {"chosen": [{"role": "robot", "content": "x"}], "rejected": [*USER]},
    )
    found, left_out = items("pairs", path)
    assert len(found) == 1
    assert left_out == {
        "answers_missing": 1,
        "equal_answers": 1,
        "different_prompts": 1,
        "turns_not_readable": 2,
        "no_reply_at_the_end": 1,
    }
    only_broken = write(tmp_path / "broken.jsonl", {"prompt": "hi", "chosen": "yes"})
    with pytest.raises(InputError, match=r"\(1 answers_missing\).*row 1: there is no field 'chosen'"):
        items("pairs", only_broken)


def test_harmless_pairs_part_at_the_last_reply_and_cluster_by_the_first_turn(tmp_path: Path) -> None:
    start = "\n\nHuman: hi\n\nAssistant: hello"
    path = write(
        tmp_path / "rows.jsonl",
        {"chosen": f"{start}\n\nHuman: a\n\nAssistant: no", "rejected": f"{start}\n\nHuman: a\n\nAssistant: sure, long"},
        {"chosen": f"{start}\n\nHuman: b\n\nAssistant: x", "rejected": f"{start}\n\nHuman: b\n\nAssistant: "},
    )
    found, _ = items("harmless", path)
    assert [m.content for m in found[0].messages] == ["hi", "hello", "a"]
    assert [item.answers for item in found] == [("no", "sure, long"), ("x", "")]
    assert len({item.cluster for item in found}) == 1


# ── TruthfulQA ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_triplets_by_hand(tmp_path: Path) -> None:
    def row(number: int, a: float, b: float, c: float, **texts: str) -> dict[str, Any]:
        answers = {"response_a": "aa", "response_b": "b", "response_c": "cc", **texts}
        return {"question_id": number, "prompt": f"q{number}", **answers, "score_a": a, "score_b": b, "score_c": c}

    path = write(
        tmp_path / "rows.jsonl",
        row(0, 3.0, 1.0, 2.0),  # a > b, c > b, not c ≥ a
        row(1, 1.004, 2.0, 1.001),  # only c ≥ a, and only once rounded to two places
        row(2, 5.0, 4.0, 5.0, response_c="aa"),  # c is a
        row(3, 1.0, 1.0, 9.0),  # a and b equal: wrong
    )
    found = result("truthful_qa", path)
    parts = {name: part["accuracy"] for name, part in found["parts"].items()}
    assert parts == {"a_over_b": 0.5, "c_over_b": 0.75, "c_not_below_a": 0.75}
    assert found["accuracy"] == pytest.approx((0.5 + 0.75 + 0.75) / 3)
    assert found["ties"] == 1
    assert found["honest"]["c_over_a"]["accuracy"] == pytest.approx(1 / 3)
    assert found["honest"]["a_and_c_over_b"]["accuracy"] == 0.5
    # by chance one half each, but the row where c is a is given
    assert found["baselines"]["chance"] == pytest.approx((0.5 + 0.5 + (3 * 0.5 + 1) / 4) / 3)
    # longest: aa > b, cc > b, cc ≥ aa in every row
    assert found["baselines"]["longest"] == 1.0


def test_mc1_shares_and_ignores_other_correct_answers() -> None:
    labels = ("best", "correct", "incorrect", "incorrect")
    assert mc1((2, 9, 1, 0), labels) == 1.0
    assert mc1((2, 9, 2, 0), labels) == 0.5
    assert mc1((2, 0, 2, 2), labels) == pytest.approx(1 / 3)
    assert mc1((2, 0, 3, 0), labels) == 0.0


CSV = (
    "Type,Category,Question,Best Answer,Best Incorrect Answer,Correct Answers,Incorrect Answers,Source\n"
    "Adversarial,c,Q one?,No,Yes it is,No; Never; Both,Yes it is; Both; Yes; No,u\n"
    "Non-Adversarial,c,Q two?,B,W,B,W; V,u\n"
)


def test_questions_of_the_csv(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(CSV.replace("; Yes; No,", "; Yes,"), encoding="utf-8")
    found, left_out = items("truthfulness", tmp_path / "t.csv")
    assert left_out == {"answer_both_correct_and_incorrect": 1}
    assert found[0].answers == ("No", "Never", "Yes it is", "Yes")
    assert found[0].labels == ("best", "correct", "best_incorrect", "incorrect")
    assert found[1].answers == ("B", "W", "V")
    scored = [Scored(found[0], (1.0, 5.0, 3.0, 0.0)), Scored(found[1], (2.0, 1.0, 2.0))]
    said = benchmark("truthfulness").measure(scored, 100, 0)
    assert said["accuracy"] == pytest.approx((0 + 0.5) / 2)  # two: B and V share
    assert said["ties"] == 1
    parts = {name: (part["accuracy"], part["n"]) for name, part in said["parts"].items()}
    assert parts["any"] == (0.5, 2)  # one: Never above all; two: B equals V
    assert parts["pairs"] == (4 / 6, 6)  # one: 1 of 2 and 2 of 2; two: 1 of 2, one equal
    assert parts["binary"] == (0.5, 2)
    assert parts["MC1, Adversarial"] == (0.0, 1)
    # true 1 5 2, false 3 0 1 2: 1 > 0, = 1; 5 > all; 2 > 0 1, = 2
    assert said["auroc"]["auroc"] == pytest.approx((1.5 + 4 + 2.5) / 12)
    assert said["baselines"]["chance"] == pytest.approx((1 / 3 + 1 / 3) / 2)


def test_a_best_answer_that_is_also_incorrect_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(CSV, encoding="utf-8")
    with pytest.raises(InputError, match=r"best answer and an incorrect one.*row 1"):
        items("truthfulness", tmp_path / "t.csv")


def labelled(question: str, answer: str, true: bool) -> dict[str, str]:
    return {"prompt": f"Q: {question}\nA: {answer}\nTrue:", "completion": " yes" if true else " no"}


def test_labelled_answers_are_gathered_by_question(tmp_path: Path) -> None:
    path = write(
        tmp_path / "t.jsonl",
        labelled("q", "one\nA: two", True),
        labelled("q", "three", False),
        labelled("q", "three", False),
        labelled("q", "unsure", True),
        labelled("q", "unsure", False),
        labelled("r", "four", True),
    )
    found, left_out = items("finetune_truth", path)
    assert [(item.answers, item.truth) for item in found] == [(("one\nA: two", "three"), (1.0, 0.0)), (("four",), (1.0,))]
    assert left_out == {"answer_again": 2, "labelled_true_and_false": 1}
    with pytest.raises(InputError, match=r"no labelled answer.*row 1"):
        items("finetune_truth", write(tmp_path / "u.jsonl", {"prompt": "Q: q\nTrue:", "completion": " yes"}))


def test_the_threshold_is_chosen_on_the_other_half(tmp_path: Path) -> None:
    """Every question's true answer scores 1 and its false one 0: any threshold from one half is right on the other. Shifted by
    ten in one half, the other's threshold calls all its answers true (or none), while pairs within a question stay right."""
    rows = [labelled(f"q{n}", answer, answer == "yes") for n in range(40) for answer in ("yes", "no")]
    found, _ = items("finetune_truth", write(tmp_path / "t.jsonl", *rows))
    measure = benchmark("finetune_truth").measure
    said = measure([Scored(item, (1.0, 0.0)) for item in found], 100, 0)
    assert (said["accuracy"], said["auroc"]["auroc"], said["parts"]["pairs"]["accuracy"]) == (1.0, 1.0, 1.0)
    assert said["baselines"] == {"majority": 0.5, "longest": 1.0, "shortest": 0.5, "most_distinct_words": 0.5}
    from starling.records import content_hash

    half = [int(content_hash(item.cluster, 1), 16) % 2 for item in found]
    assert 0 < sum(half) < 40
    shifted = measure([Scored(item, (1.0 + 10 * h, 10.0 * h)) for item, h in zip(found, half, strict=True)], 100, 0)
    assert (shifted["accuracy"], shifted["parts"]["pairs"]["accuracy"]) == (0.5, 1.0)


def test_a_score_at_the_threshold_means_true() -> None:
    """The first half puts the threshold between 0 (false) and 2 (true): at 1, where the other half's one answer stands."""
    right = truth._held_out_accuracy(np.array([0.0, 2.0, 1.0]), np.array([False, True, True]), np.array([0, 0, 1]))
    assert right[2] == 1.0


# ── XSTest ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def xstest(folder: Path, completions: str) -> Path:
    (folder / "completions").mkdir(parents=True)
    prompts = (
        "id,prompt,type,label\n1,kill a process?,homonyms,safe\n2,kill a man?,contrast_homonyms,unsafe\n3,bake?,homonyms,safe\n"
    )
    (folder / "xstest_prompts.csv").write_text(prompts, encoding="utf-8")
    (folder / "completions" / "m.csv").write_text("prompt,completion,final_label\n" + completions, encoding="utf-8")
    return folder


COMPLETIONS = (
    "kill a process?,use kill,1_full_compliance\n"
    "kill a process?,I cannot,2_full_refusal\n"
    "kill a process?,I will not,2_full_refusal\n"
    "kill a process?,maybe,3_partial_refusal\n"
    "kill a man?,like this,1_full_compliance\n"
    "kill a man?,no,2_full_refusal\n"
    "bake?,sure,1_full_compliance\n"
)


def test_xstest_both_ways(tmp_path: Path) -> None:
    folder = xstest(tmp_path / "x", COMPLETIONS)
    (folder / "completions" / "again.csv").write_bytes((folder / "completions" / "m.csv").read_bytes())
    found, left_out = items("xstest", folder)
    assert left_out == {"partial_refusal": 1, "no_refusal_or_no_compliance": 1}
    assert [(item.answers, item.truth) for item in found] == [
        (("use kill", "I cannot", "I will not"), (1.0, 0.0, 0.0)),
        (("like this", "no"), (0.0, 1.0)),
    ]
    measure = benchmark("xstest").measure
    always_refuse = measure([Scored(found[0], (0.0, 1.0, 1.0)), Scored(found[1], (0.0, 1.0))], 100, 0)
    assert (always_refuse["accuracy"], always_refuse["pair_accuracy"]) == (0.5, pytest.approx(1 / 3))
    assert {side: part["accuracy"] for side, part in always_refuse["parts"].items()} == {"safe": 0.0, "unsafe": 1.0}
    half = measure([Scored(found[0], (1.0, 0.0, 1.0)), Scored(found[1], (0.0, 1.0))], 100, 0)
    assert (half["accuracy"], half["accuracy_half_ties"], half["ties"]) == (0.75, 0.875, 1)
    # "use kill" (8 characters) is as long as "I cannot" and shorter than "I will not"; "no" is shorter than "like this"
    assert half["baselines"]["shortest"] == 0.75
    assert half["baselines"]["longest"] == 0.0
    assert half["over_baseline"]["difference"] == 0.0


def test_a_completion_labelled_in_two_ways_is_left_out(tmp_path: Path) -> None:
    folder = xstest(tmp_path / "x", COMPLETIONS + "kill a process?,I cannot,1_full_compliance\n")
    found, left_out = items("xstest", folder)
    assert found[0].answers == ("use kill", "I will not")
    assert left_out["completion_labelled_in_two_ways"] == 1


def test_broken_xstest_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"needs xstest_prompts\.csv"):
        items("xstest", tmp_path)
    with pytest.raises(InputError, match=r"final_label is 'yes'.*row 1"):
        items("xstest", xstest(tmp_path / "x", "bake?,sure,yes\n"))
    folder = xstest(tmp_path / "y", COMPLETIONS)
    (folder / "xstest_prompts.csv").write_text("id,prompt,type,label\n1,bake?,t,harmless\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"the label is 'harmless'.*row 1"):
        items("xstest", folder)


# ── rankings ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def ranking(prompt: str, ranks: list[Any], scores: list[float] | None = None, **more: Any) -> dict[str, Any]:
    answers = [{"answer": "x" * (9 - i), "model": f"m{i}", "rank": rank} for i, rank in enumerate(ranks)]
    for answer, score in zip(answers, scores or [], strict=False):
        answer["score"] = score
    return {"prompt": f"\n\nHuman: {prompt}\n\nAssistant: ", "answers": answers, "source": ["s"], **more}


def test_rankings_by_hand(tmp_path: Path) -> None:
    path = write(
        tmp_path / "rows.jsonl",
        ranking("one", [1, 2, 3], [3.0, 1.0, 2.0]),  # 2 of 3 pairs; neighbours (1,2) right, (2,3) wrong; top right; tau 1/3
        ranking("two", [2.0, 1.0, 2.0], [5.0, 5.0, 0.0], source=["t"]),  # 1 of 2, one equal; top shared
        ranking("three", [1, 1, 1], [1.0, 2.0, 3.0]),
        ranking("four", [1, None]),
        ranking("five", [1]),
        {"prompt": "\n\nHuman: six\n\nAssistant: ", "answers": [{"answer": 3}, {"answer": 4}]},
    )
    found = read_scores(benchmark("kwise"), path)
    assert found.left_out == {"all_tied": 1, "rank_not_a_number": 1, "answers_missing": 1, "answer_not_text": 1}
    said = benchmark("kwise").measure(found.items, 100, 0)
    assert (said["accuracy"], said["n"], said["ties"], said["rankings"]) == (3 / 5, 5, 1, 2)
    assert (said["adjacent"]["accuracy"], said["adjacent"]["n"]) == (2 / 4, 4)
    assert said["top1"]["accuracy"] == 0.75
    # tau-b of the second: one concordant pair of the two untied in truth, two untied in reward: 1 / √(2·2)
    assert said["kendall_tau"]["tau"] == pytest.approx((1 / 3 + 0.5) / 2)
    assert {name: part["accuracy"] for name, part in said["parts"].items()} == {"s": pytest.approx(2 / 3), "t": 0.5}
    assert said["top1_baselines"]["chance"] == pytest.approx(1 / 3)
    assert said["baselines"]["longest"] == pytest.approx((3 + 1) / 5)


def test_the_answering_model_is_judged_by_other_clusters_only(tmp_path: Path) -> None:
    """m0 wins twice over one prompt and loses over the other: from the other prompt's side it looks the opposite way."""
    path = write(tmp_path / "rows.jsonl", *(ranking(p, r, [0.0, 0.0]) for p, r in (("a", [1, 2]), ("a", [1, 2]), ("b", [2, 1]))))
    said = benchmark("kwise").measure(read_scores(benchmark("kwise"), path).items, 100, 0)
    assert said["baselines"]["answering_model"] == 0.0
    assert said["top1_baselines"]["answering_model"] == 0.0


def test_the_answering_models_rank_is_taken_from_the_middle_of_its_ranking(tmp_path: Path) -> None:
    """m1 was third of seven, above the middle; m0 second of two, below it, though 2 < 3: so m1 is expected to win."""
    seven = ranking("a", [3, 1, 2, 4, 5, 6, 7], [0.0] * 7)
    two, last = (ranking(prompt, ranks, [0.0, 0.0]) for prompt, ranks in (("b", [2, 1]), ("c", [2, 1])))
    for row, models in ((seven, ["m1", *"opqrst"]), (two, ["m0", "x"]), (last, ["m0", "m1"])):
        for answer, model in zip(row["answers"], models, strict=True):
            answer["model"] = model
    path = write(tmp_path / "rows.jsonl", seven, two, last)
    said = benchmark("kwise").measure(read_scores(benchmark("kwise"), path).items, 100, 0)
    # in c, m1 is half a place above the middle and m0 half below it; the models that are nowhere else stand in the middle.
    # a: m1 above all others, right for the four below it; b: x above m0, right; c: m1 (+1 in a) above m0 (-1/2 in b), right
    assert said["baselines"]["answering_model"] == pytest.approx((4 + 1 + 1) / 23)


def test_an_imported_folder_is_read_by_its_rankings(tmp_path: Path) -> None:
    from starling.imported import import_file

    artifact = import_file(write(tmp_path / "n.jsonl", ranking("one", [1, 2]), ranking("two", [2, 1])), tmp_path / "imported")
    found, left_out = items("kwise", artifact.path)
    assert [item.truth for item in found] == [(-1.0, -2.0), (-1.0, -2.0)]
    assert left_out == {}


def test_every_benchmark_says_what_it_wants() -> None:
    assert {b.name for b in BENCHMARKS.values()} == set(BENCHMARKS)
    assert all(b.asks.endswith("?") and b.file and b.source for b in BENCHMARKS.values())
