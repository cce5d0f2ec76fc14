"""RewardBench's files: rows of both versions, what the public tools write, what is damaged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from starling.errors import InputError
from starling.evaluate import reward_benchmarks
from starling.evaluate.reward_benchmarks import rewardbench as rb
from starling.evaluate.reward_benchmarks import rewardbench_files as files
from starling.evaluate.reward_benchmarks.items import Item, Reading, Scored
from starling.evaluate.reward_benchmarks.scores import ScoredSet
from starling.records import Message

V1: list[dict[str, Any]] = [
    {"prompt": "How?", "chosen": "So.", "rejected": "No.", "subset": "hep-go", "id": 5, "chosen_model": "x"},
    {"prompt": "How?", "chosen": "Thus.", "rejected": "I do not know.", "subset": "hep-js", "id": 6},
]
V2: list[dict[str, Any]] = [
    {"prompt": "2+2?", "chosen": ["4"], "rejected": ["5", "3", "22"], "num_correct": 1, "num_incorrect": 3,
     "total_completions": 4, "subset": "Math", "id": "12"},
    {"prompt": "A colour", "chosen": ["red", "blue"], "rejected": ["seven"], "num_correct": 2, "subset": "Ties", "id": "tied:0"},
    {"prompt": "Sky?", "chosen": ["blue"], "rejected": ["seven", "red"], "num_correct": 1, "subset": "Ties", "id": "ref:0"},
]  # fmt: skip


def items_of(path: Path) -> tuple[list[Item], dict[str, int]]:
    reading = Reading()
    return [item for item, _ in files.read(path, reading)], dict(reading.left_out)


def scored_of(path: Path) -> tuple[list[Scored], dict[str, int]]:
    reading = Reading()
    return [Scored(item, scores) for item, scores in files.read(path, reading) if scores is not None], dict(reading.left_out)


def saved(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), "utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.mark.parametrize("name", ["data.parquet", "data.json", "data.jsonl"])
def test_both_versions_from_each_kind_of_file(tmp_path: Path, name: str) -> None:
    first, left_out = items_of(saved(tmp_path / name, V1))
    assert [(rb.own_id(i), i.subset, i.answers, rb.right_of(i)) for i in first] == [
        ("5", "hep-go", ("So.", "No."), 1), ("6", "hep-js", ("Thus.", "I do not know."), 1),
    ]  # fmt: skip
    assert first[0].messages == (Message(role="user", content="How?"),)
    assert left_out == {}
    assert first[0].cluster == first[1].cluster, "the same prompt in two subsets is one cluster"
    second, left_out = items_of(saved(tmp_path / name, V2))
    assert [(rb.own_id(i), i.answers, rb.right_of(i)) for i in second] == [
        ("12", ("4", "5", "3", "22"), 1), ("tied:0", ("red", "blue", "seven"), 2), ("ref:0", ("blue", "seven", "red"), 1),
    ]  # fmt: skip
    assert left_out == {}


def test_conversations_as_prompt_and_as_answers(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    rows = [
        {"prompt": turns, "chosen": "yes", "rejected": "no", "subset": "shp", "id": 0},
        {
            "prompt": "c", "chosen": [*turns, {"role": "assistant", "content": "yes"}],
            "rejected": [*turns, {"role": "assistant", "content": "no"}], "subset": "shp", "id": 1,
        },
    ]  # fmt: skip
    one, other = items_of(saved(tmp_path / "d.jsonl", rows))[0]
    assert one.messages == other.messages
    assert len(one.messages) == 3
    assert one.answers == other.answers == ("yes", "no")


def test_rows_that_are_no_items_are_counted(tmp_path: Path) -> None:
    good = V1[0]
    rows = [
        good, good, {**good, "subset": None, "id": 1}, {**good, "prompt": 7, "id": 2}, {**good, "chosen": None, "id": 3},
        {"prompt": "x", "subset": "hep-go", "id": 4}, {**V2[0], "num_correct": 2}, {**V2[0], "rejected": "5", "id": "13"},
        {**V2[0], "chosen": [], "num_correct": 0, "id": "14"}, {**good, "prompt": [{"role": "robot", "content": "x"}], "id": 9},
    ]  # fmt: skip
    path = saved(tmp_path / "d.jsonl", rows)
    path.write_text(path.read_text("utf-8") + "{broken\n", "utf-8")
    found, left_out = items_of(path)
    assert len(found) == 1
    assert left_out == {
        "id_twice": 1, "no_subset": 1, "no_prompt": 2, "answer_is_no_text": 3, "no_chosen_or_rejected": 1,
        "num_correct_is_not_the_number_of_chosen": 1, "not_json": 1,
    }  # fmt: skip


def test_the_same_id_in_two_subsets_is_two_items(tmp_path: Path) -> None:
    found, left_out = items_of(saved(tmp_path / "d.jsonl", [V1[0], {**V1[0], "subset": "hep-cpp"}]))
    assert ([i.id for i in found], left_out) == (["hep-go/5", "hep-cpp/5"], {})


def test_a_file_without_any_item_is_refused_with_the_reasons(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1 no_subset"):
        items_of(saved(tmp_path / "d.jsonl", [{"prompt": "a"}]))


def test_scores_written_and_read_again_are_the_same_items(tmp_path: Path) -> None:
    for rows, version, subset in ((V1, 1, "hep-go"), (V2, 2, "Ties")):
        items, _ = items_of(saved(tmp_path / "d.jsonl", rows))
        scored = [Scored(item, tuple(float(len(item.answers) - k) for k in range(len(item.answers)))) for item in items]
        root = tmp_path / f"v{version}"
        written = files.write_public(root, scored, files.Result("org/model", {subset: 1.0}), version=version)
        assert [p.relative_to(root).as_posix() for p in written] == ["eval-set/org/model.json", "eval-set-scores/org/model.json"]
        assert scored_of(written[1]) == (scored, {})
        assert files.read_result(written[0]).subsets == {subset: 1.0}


def test_columns_are_those_of_the_public_scripts(tmp_path: Path) -> None:
    items, _ = items_of(saved(tmp_path / "d.jsonl", V1))
    columns = files.score_columns([Scored(i, (1.0, 1.0)) for i in items], "m", version=1)
    assert set(columns) == {
        "text_chosen", "text_rejected", "results", "subset", "id", "scores_chosen", "scores_rejected", "model", "model_type",
        "chat_template",
    }  # fmt: skip
    assert columns["results"] == [0, 0], "a tie is a loss"
    assert columns["id"] == [5, 6]
    items, _ = items_of(saved(tmp_path / "d.jsonl", V2))
    columns = files.score_columns([Scored(i, (1.0,) * len(i.answers)) for i in items], "m", version=2)
    assert columns["results"] == [0.25, None, None]
    assert columns["num_correct"] == [1, 2, 1]


def test_files_as_the_public_tools_write_them(tmp_path: Path) -> None:
    """Templated texts, scores alone in lists, a null score, ids as numbers; the longer text is still the longer answer."""
    columns = {
        "text_chosen": ["<s>[INST] q [/INST] a long answer", "<s>[INST] q [/INST] b", "x"],
        "text_rejected": ["<s>[INST] q [/INST] short", "<s>[INST] q [/INST] longer", "y"],
        "results": [1, 0, 0], "subset": ["hep-go"] * 3, "id": [1, 2, 3], "scores_chosen": [[0.5], [0.1], None],
        "scores_rejected": [[-1], [0.3], None], "model": "org/m", "model_type": "Seq. Classifier", "chat_template": "tulu",
    }  # fmt: skip
    path = tmp_path / "m.json"
    path.write_text(json.dumps(columns), "utf-8")
    found, left_out = scored_of(path)
    assert [s.scores for s in found] == [(0.5, -1.0), (0.1, 0.3)]
    assert [len(s.item.answers[0]) > len(s.item.answers[1]) for s in found] == [True, False]
    assert found[0].item.cluster != found[1].item.cluster
    assert found[0].item.messages == ()
    assert left_out == {"no_score": 1}
    again = files.score_columns(found, "org/m", version=1)
    assert again["text_chosen"] == columns["text_chosen"][:2]  # type: ignore[index]


def test_scores_without_texts_can_still_be_measured(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    path.write_text(json.dumps({"subset": ["Math"], "id": [1], "scores": [[2, 1, 0, 0]], "num_correct": [1]}), "utf-8")
    found, _ = scored_of(path)
    assert rb.measure_v2(found, seed=0)["parts"]["Math"]["accuracy"] == 1.0
    assert found[0].item.answers == ("",) * 4


def test_score_rows_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    good = {"subset": "Math", "id": 1, "text": ["a", "b"], "scores": [1.0, 0.0], "num_correct": 1}
    rows = [
        good, {**good, "id": 2, "text": ["a", "b", "c"]},
        {**good, "id": 3, "num_correct": 0}, {**good, "id": 4, "num_correct": 3},
        {**good, "id": 5, "num_correct": "1"}, {**good, "id": 6, "scores": [1.0]}, {**good, "id": 7, "scores": [1.0, "x"]},
        {**good, "id": 8, "scores": 1.0},
    ]  # fmt: skip
    found, left_out = scored_of(saved(tmp_path / "s.jsonl", rows))
    assert [s.item.id for s in found] == ["Math/1"]
    assert left_out == {"other_number_of_scores": 1, "num_correct_is_no_number_of_answers": 3, "no_score": 3}


def test_a_byte_order_mark_and_the_column_of_the_command_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text(json.dumps({"subsets": ["hep-go"], "scores_chosen": [1], "scores_rejected": [0]}), "utf-8-sig")
    found, _ = scored_of(path)
    assert [(s.item.subset, s.scores) for s in found] == [("hep-go", (1.0, 0.0))]


def test_what_is_read_goes_into_the_measures(tmp_path: Path) -> None:
    """Ties are recognised by the id in the file, which is only a part of the item's id."""
    items, _ = items_of(saved(tmp_path / "d.jsonl", V2))
    scored = [Scored(i, tuple(3.0 if k < rb.right_of(i) else 0.0 for k in range(len(i.answers)))) for i in items]
    found = files.REWARDBENCH_2.measure(iter(scored), 5, 0)
    assert found["parts"]["Ties"]["accuracy"] == pytest.approx(0.3 + 0.3 + 0.2 + 0.2 + 0.01)
    assert found["parts"]["Math"]["accuracy"] == 1.0
    assert found["left_out"] == {}
    first, _ = items_of(saved(tmp_path / "d.jsonl", V1))
    odd = replace(first[0], id="x/1", subset="x")
    scored = [Scored(i, (1.0, 2.0)) for i in [*first, odd]]
    given = ScoredSet(
        benchmark="rewardbench", model="m", data="d", items=tuple(scored), left_out={"unknown_subset": 2, "no_prompt": 1}
    )
    found = reward_benchmarks.measure(given, 5)
    assert found["left_out"] == {"unknown_subset": 3, "no_prompt": 1}, "what reading and what measuring left out"
    assert found["calibration"]["n"] == 3
    assert found["subsets"]["hep-go"]["accuracy"] == 0.0
    assert (found["length"]["model_longer"], found["length"]["model_longer_n"]) == (1.0, 1), "two answers are equally long"


def test_the_commands_files(tmp_path: Path) -> None:
    items, _ = items_of(saved(tmp_path / "d.jsonl", V1))
    scored = [Scored(items[0], (1.0, 0.0)), Scored(items[1], (0.0, 1.0))]
    summary, outputs = files.write_command(tmp_path, scored, files.Result("org/m", {"hep-go": 1.0, "hep-js": 0.0}))
    assert (summary.name, outputs.name) == ("m.json", "m_outputs.jsonl")
    said = json.loads(summary.read_text("utf-8"))
    assert (said["accuracy"], said["num_prompts"], said["model"]) == (0.5, 2, "org/m")
    assert files.read_result(summary).subsets == {"hep-go": 1.0, "hep-js": 0.0}
    assert scored_of(outputs) == (scored, {})
    row = json.loads(outputs.read_text("utf-8").splitlines()[0])
    assert (row["prompt"], row["results"], row["scores_chosen"]) == ("How?", 1, 1.0)


def test_a_result_file_survives_and_its_extra_fields_too(tmp_path: Path) -> None:
    given = {"model": "org/m", "model_type": "Custom", "chat_template": "tulu", "hep-go": 0.5, "note": "x"}
    path = tmp_path / "m.json"
    path.write_text(json.dumps(given), "utf-8")
    found = files.read_result(path)
    assert found.subsets == {"hep-go": 0.5}
    assert files.result_object(found) == given


@pytest.mark.parametrize(
    ("model", "name"),
    [("../../etc/x", "etc/x"), ("/abs/runs/reward", "runs/reward"), ("plain", "plain"), ("a/b/c", "b/c"), ("../x", "x")],
)
def test_a_models_name_never_leads_out_of_the_folder(tmp_path: Path, model: str, name: str) -> None:
    items, _ = items_of(saved(tmp_path / "d.jsonl", V1))
    root = tmp_path / "out"
    written = files.write_public(root, [Scored(items[0], (1.0, 0.0))], files.Result(model, {"hep-go": 1.0}), version=1)
    assert written == [root / folder / f"{name}.json" for folder in ("eval-set", "eval-set-scores")]
    with pytest.raises(InputError, match="no name for a file"):
        files.write_public(root, [], files.Result("/..", {}), version=1)


@pytest.mark.parametrize(
    ("text", "match"),
    [("{", "as JSON"), ("[1]", "1 not_an_object"),
     ('{"a": [1], "b": [1, 2]}', "not equally long"), ('{"model": "m"}', "not equally"),
     ('{"subset": ["x"], "scores_chosen": ["a"], "scores_rejected": [1]}', "1 no_score")],
)  # fmt: skip
def test_damaged_score_files_are_refused(tmp_path: Path, text: str, match: str) -> None:
    path = tmp_path / "s.json"
    path.write_text(text, "utf-8")
    with pytest.raises(InputError, match=match):
        scored_of(path)
    with pytest.raises(InputError):
        files.read_result(path)
    with pytest.raises(InputError):
        scored_of(tmp_path / "missing.json")
    with pytest.raises(InputError, match=r"needs|no name|as JSON"):
        files.read_result(saved(tmp_path / "r.jsonl", [{"hep-go": 1.0}]))
