"""Score files, scores of a real (tiny) model, and laws that every benchmark keeps."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from starling.errors import InputError
from starling.evaluate import reward_benchmarks as benchmarks
from starling.evaluate.reward_benchmarks import BENCHMARKS, Item, Reading, Scored, ScoredSet, benchmark
from starling.records import Message


def item(number: int, answers: tuple[str, ...], truth: tuple[float, ...], labels: tuple[str, ...] = (), subset: str = "") -> Item:
    return Item(
        id=str(number),
        cluster=f"c{number // 2}",
        subset=subset,
        messages=(Message(role="user", content=f"question {number}"),),
        answers=answers,
        truth=truth,
        labels=labels,
    )


SHAPES: dict[str, Callable[[int], Item]] = {
    "human_preference": lambda n: item(n, ("aaa", "b"), (1.0, 0.0)),
    "safety_preference": lambda n: item(n, ("aaa", "b"), (0.0, 1.0), subset="x" if n % 2 else "y"),
    "verbosity": lambda n: item(n, ("aaa", "b"), (0.0, 1.0)),
    "harmless": lambda n: item(n, ("aaa", "b"), (1.0, 0.0), ("chosen", "rejected")),
    "pairs": lambda n: item(n, ("aaa", "b"), (1.0, 0.0), ("chosen", "rejected")),
    "truthful_qa": lambda n: item(n, ("aaa", "b", "cc"), (1.0, 0.0, 1.0), ("correct", "incorrect", "best")),
    "truthfulness": lambda n: item(
        n, ("a", "bb", "c", "dd"), (1.0, 1.0, 0.0, 0.0), ("best", "correct", "best_incorrect", "incorrect"), "Adversarial"
    ),
    "finetune_truth": lambda n: item(n, ("a", "bb", "ccc"), (1.0, 0.0, 1.0)),
    "xstest": lambda n: item(n, ("a", "bb", "ccc"), (1.0, 0.0, 0.0), subset="safe: x" if n % 2 else "unsafe: y"),
    "kwise": lambda n: item(n, ("a", "bb", "ccc", "d"), (-1.0, -2.0, -2.0, -4.0), ("m", "n", "o", "p"), "s"),
}


def scored(name: str, change: Callable[[float], float] = lambda score: score) -> list[Scored]:
    """Forty items with whole-number scores, equal ones among them."""
    rng = random.Random(7)
    rows = [SHAPES[name](n) for n in range(40)]
    return [Scored(row, tuple(change(float(rng.randint(0, 6))) for _ in row.answers)) for row in rows]


def numbers(found: Any, path: str = "") -> dict[str, float]:
    """Every number of a result by its place, but for the loss, which depends on the scale."""
    if isinstance(found, dict):
        return {k: v for name, part in found.items() if name != "loss" for k, v in numbers(part, f"{path}/{name}").items()}
    if isinstance(found, list):
        return {k: v for i, part in enumerate(found) for k, v in numbers(part, f"{path}/{i}").items()}
    return {path: found} if isinstance(found, int | float) else {}


NAMES = [name for name in BENCHMARKS if name in SHAPES]


# ── laws ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_shape_is_a_benchmark() -> None:
    assert sorted(NAMES) == sorted(SHAPES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "change", [lambda s: s - 12.0, lambda s: 2 * s + 3, lambda s: s**3 + s], ids=["constant", "scale", "increasing map"]
)
def test_an_increasing_map_of_all_scores_changes_no_share(name: str, change: Callable[[float], float]) -> None:
    plain, changed = (numbers(benchmark(name).measure(rows, 100, 0)) for rows in (scored(name), scored(name, change)))
    assert len(plain) > 10
    assert changed == pytest.approx(plain)


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_the_items_changes_no_point_estimate(name: str) -> None:
    rows = scored(name)
    plain, turned = (numbers(benchmark(name).measure(r, 100, 0)) for r in (rows, rows[::-1]))
    assert {k: v for k, v in turned.items() if "ci/" not in k} == pytest.approx(
        {k: v for k, v in plain.items() if "ci/" not in k}
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_result_has_the_common_fields_and_is_plain_data(name: str) -> None:
    found = benchmark(name).measure(scored(name), 100, 0)
    assert {"accuracy", "ci", "n", "clusters", "ties", "parts", "baselines", "over_baseline"} <= set(found)
    assert found["ci"][0] <= found["accuracy"] <= found["ci"][1]
    assert found["clusters"] == 20
    assert all(set(part) == {"accuracy", "ci", "n"} for part in found["parts"].values())
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.parametrize("name", NAMES)
def test_a_perfect_reward_is_perfect_and_its_opposite_is_not(name: str) -> None:
    rows = [Scored(row.item, row.item.truth) for row in scored(name)]
    opposite = [Scored(row.item, tuple(-t for t in row.item.truth)) for row in rows]
    one, other = (benchmark(name).measure(r, 100, 0)["accuracy"] for r in (rows, opposite))
    assert one == 1.0
    # truthful_qa's c is not below a when both are equal; a threshold that calls all true is right for two of three
    assert other == pytest.approx({"truthful_qa": 1 / 3, "finetune_truth": 2 / 3}.get(name, 0.0))


# ── score files ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("file", ["s.jsonl", "s.jsonl.gz"])
def test_a_score_file_gives_the_same_result_as_the_scores(tmp_path: Path, name: str, file: str) -> None:
    found = ScoredSet(benchmark=name, model="m", data="d.json", items=tuple(scored(name, lambda s: s / 3)), left_out={"tie": 3})
    benchmarks.write_scores(tmp_path / "new" / file, found)
    assert benchmarks.read_scores(benchmark(name), tmp_path / "new" / file) == found
    assert [p.name for p in (tmp_path / "new").iterdir()] == [file]
    assert benchmarks.measure(found)["left_out"] == {"tie": 3}


def test_the_same_scores_are_the_same_bytes(tmp_path: Path) -> None:
    found = ScoredSet(benchmark="pairs", model="m", data="d", items=tuple(scored("pairs")), left_out={})
    for name in ("a.jsonl.gz", "b.jsonl.gz", "b.jsonl.gz"):  # an older file is replaced
        benchmarks.write_scores(tmp_path / name, found)
    data = (tmp_path / "a.jsonl.gz").read_bytes()
    assert data == (tmp_path / "b.jsonl.gz").read_bytes()
    assert data[3:8] == bytes(5), "neither name nor time"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"scores": [1.0]}, "2 answers have 1 scores"),
        ({"scores": [1.0, float("nan")]}, "'scores' is nan"),
        ({"scores": None}, "must be lists"),
        ({"truth": [1.0]}, "truth"),
        ({"labels": ["x"]}, "labels"),
        ({"answers": ["x", 3]}, "must be lists"),
        ({"messages": 5}, "no prompt"),
    ],
)
def test_damaged_score_files(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    found = ScoredSet(benchmark="pairs", model="m", data="d", items=tuple(scored("pairs")), left_out={})
    benchmarks.write_scores(tmp_path / "s.jsonl", found)
    lines = (tmp_path / "s.jsonl").read_text("utf-8").splitlines()
    lines[2] = json.dumps({**json.loads(lines[2]), **change})
    (tmp_path / "s.jsonl").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(InputError, match="row 3") as caught:
        benchmarks.read_scores(benchmark("pairs"), tmp_path / "s.jsonl")
    assert said in str(caught.value)


def test_a_score_file_of_another_benchmark_is_refused(tmp_path: Path) -> None:
    found = ScoredSet(benchmark="pairs", model="m", data="d", items=tuple(scored("pairs")), left_out={})
    benchmarks.write_scores(tmp_path / "s.jsonl", found)
    with pytest.raises(InputError, match=r"'pairs', not of 'harmless'.*pairs="):
        benchmarks.read_scores(benchmark("harmless"), tmp_path / "s.jsonl")
    (tmp_path / "s.jsonl").write_text(json.dumps({"benchmark": "pairs", "model": "", "data": "", "left_out": {"tie": "x"}}))
    with pytest.raises(InputError, match="first line"):
        benchmarks.read_scores(benchmark("pairs"), tmp_path / "s.jsonl")


def test_items_refuse_what_does_not_belong_together() -> None:
    for answers, truth, labels in (
        ((), (), ()),
        (("a",), (1.0, 0.0), ()),
        (("a",), (math.nan,), ()),
        (("a",), (1.0,), ("x", "y")),
    ):
        with pytest.raises(ValueError, match="item 1"):
            item(1, answers, truth, labels)
    for scores in ((1.0,), (1.0, math.inf)):
        with pytest.raises(ValueError, match="item 1"):
            Scored(item(1, ("a", "b"), (1.0, 0.0)), scores)


# ── a model ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def reward_model(backbone: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    from starling.models.load import load_backbone_as_scalar, load_tokenizer, save_folder

    folder = tmp_path_factory.mktemp("reward")
    tokenizer = load_tokenizer(backbone("llama"))
    save_folder(folder, load_backbone_as_scalar(backbone("llama"), 0, tokenizer), tokenizer)
    return folder


def test_a_models_scores_are_those_of_score_and_each_stands_at_its_answer(reward_model: Path) -> None:
    from starling.models.scorer import score_conversations

    pairs = [item(n, ("a cat", "", "a dog and a cow")[: 2 + n % 2], (2.0, 1.0, 0.0)[: 2 + n % 2]) for n in range(5)]
    triplets = [SHAPES["truthful_qa"](n) for n in range(3)]
    wanted = {"pairs": (Path("p.jsonl"), pairs, Reading()), "truthful_qa": (Path("t.json"), triplets, Reading())}
    found = benchmarks.score_all(reward_model, wanted)
    assert [(one.benchmark, one.data, one.model, len(one.items)) for one in found] == [
        ("pairs", "p.jsonl", str(reward_model), 5),
        ("truthful_qa", "t.json", str(reward_model), 3),
    ]
    for one in found:
        for row in one.items:
            alone = score_conversations(reward_model, [(row.item.messages, answer, True) for answer in row.item.answers])
            assert row.scores == pytest.approx(alone, abs=1e-5)
            assert len(set(row.scores)) == len(row.scores)


def test_a_model_that_gives_no_numbers_is_an_error(reward_model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    broken.mkdir()
    for file in reward_model.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    weights = load_file(broken / "model.safetensors")
    save_file(
        {k: v * float("nan") if "score" in k else v for k, v in weights.items()}, broken / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(InputError, match=r"no finite number.*pairs, item 0"):
        benchmarks.score_all(broken, {"pairs": (Path("p"), [SHAPES["pairs"](0)], Reading())})
