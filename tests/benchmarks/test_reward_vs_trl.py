"""The comparison with TRL: both sides read the same, floor and ratios are right, the answer has its shape. Needs no TRL."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from benchmarks import reward_vs_trl as versus
from benchmarks.versus_trl import accuracy, curve, data, floor, meter, ours, theirs
from starling.config import RewardSection
from starling.models.encode import Encoded, Encoder
from starling.models.load import load_backbone_as_scalar, load_tokenizer
from starling.models.score import score_rows
from starling.reward.batches import encode_rankings

TINY = data.Shape(hidden=16, layers=2, heads=2, inner=24, vocab=64)
MADE = data.Made(rankings=6, answers=3, prompt=10, response=8, vocab=64, seed=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What both sides read, of a tiny case."""
    rows, unseen = data.make_rankings(MADE), data.make_rankings(replace(MADE, rankings=4, part="unseen"))
    return data.write(tmp_path_factory.mktemp("case"), TINY, rows, seed=5, unseen=unseen)


# ── the same data and the same model on both sides ───────────────────────────────────────────────────────────────────


def test_their_token_ids_are_what_our_training_reads(folder: Path) -> None:
    rows = data.read_records(folder / "train.jsonl")
    assert rows == data.make_rankings(MADE)
    encoder = Encoder(load_tokenizer(folder / "backbone"), max_length=ours.WHOLE)
    counts: Counter[str] = Counter()
    read_by_ours = list(encode_rankings(rows, encoder, RewardSection(max_length=ours.WHOLE), counts))
    read_by_theirs = theirs.read_ids(folder / "train.ids.jsonl")
    assert [[list(answer.ids) for answer in ranking.answers] for ranking in read_by_ours] == read_by_theirs
    assert (counts["answers/whole"], counts["rankings/read"], counts["rankings/shortened"]) == (18, 6, 0)
    assert theirs.digest(read_by_theirs) == data.digest(data.token_ids(encoder.tokenizer, rows))


def test_the_digest_sees_a_moved_boundary() -> None:
    assert data.digest([[[1, 2], [3]]]) != data.digest([[[1], [2, 3]]])


def test_all_pairs_the_better_one_chosen() -> None:
    found = theirs.pairs([[[1], [2], [3]], [[4], [5]]])
    assert list(zip(found["chosen_ids"], found["rejected_ids"], strict=True)) == [
        ([1], [2]), ([1], [3]), ([2], [3]), ([4], [5]),
    ]  # fmt: skip
    assert len(theirs.pairs([[[i] for i in range(7)]])["chosen_ids"]) == versus.PAIRS


def test_both_sides_start_from_the_same_scores(folder: Path) -> None:
    """Ours from the bare backbone and the seed; theirs by transformers' own pooling of the folder they are given."""
    from transformers import AutoModelForSequenceClassification

    head = load_backbone_as_scalar(folder / "backbone", 5)
    given = AutoModelForSequenceClassification.from_pretrained(folder / "start", num_labels=1, dtype=torch.float32)
    for ranking in theirs.read_ids(folder / "train.ids.jsonl"):
        with torch.no_grad():
            wanted = score_rows(head, [Encoded(tuple(ids), 0) for ids in ranking], 0)
        assert torch.tensor(theirs.scores(given, ranking)) == pytest.approx(wanted, abs=1e-6)


def test_a_comparison_of_different_things_is_refused() -> None:
    same = {"digest": "a", "first_scores": [0.5, 1.0]}
    versus.same_start(same, {"digest": "a", "first_scores": [0.5, 1.00001]})
    with pytest.raises(SystemExit, match="different token ids"):
        versus.same_start(same, {**same, "digest": "b"})
    with pytest.raises(SystemExit, match="different models"):
        versus.same_start(same, {**same, "first_scores": [0.5, 1.01]})


def test_lengths_are_those_asked_for(folder: Path) -> None:
    tokenizer = load_tokenizer(folder / "backbone")
    user, assistant, eos = (tokenizer.convert_tokens_to_ids(t) for t in ("<user>", "<assistant>", "<eos>"))
    prompts, responses = [], []
    for ranking in data.token_ids(tokenizer, data.make_rankings(replace(MADE, rankings=150))):
        prompt = ranking[0][: ranking[0].index(assistant) + 1]
        prompts.append(len(prompt))
        for ids in ranking:
            assert ids[: len(prompt)] == prompt
            assert (ids[0], ids[-1]) == (user, eos)
            responses.append(len(ids) - len(prompt))
    assert (min(prompts), max(prompts)) == (5, 15)
    assert (min(responses), max(responses)) == (4, 12)
    assert sum(prompts) / len(prompts) == pytest.approx(10, abs=1)
    assert sum(responses) / len(responses) == pytest.approx(8, abs=0.6)


def test_parts_and_seeds_differ_and_nothing_else_does() -> None:
    rows = data.make_rankings(MADE)
    assert rows == data.make_rankings(MADE)
    for other in (replace(MADE, seed=6), replace(MADE, part="unseen")):
        assert not {r.prompt.id for r in rows} & {r.prompt.id for r in data.make_rankings(other)}


def test_the_planted_rule_is_what_ranks_and_the_same_in_both_parts() -> None:
    """Good words are found by counting in one part; they order the other part."""
    made = data.Made(rankings=300, answers=4, prompt=10, response=60, vocab=64, seed=1, rule=data.Rule.topics)
    worth: Counter[tuple[str, str]] = Counter()
    for row in data.make_rankings(made):
        topic = row.prompt.messages[0].content.split()[0]
        for sign, answer in ((1, row.answers[0]), (-1, row.answers[-1])):
            for word in answer.answer.split():
                worth[topic, word] += sign
    right = []
    for row in data.make_rankings(replace(made, rankings=60, part="unseen")):
        topic = row.prompt.messages[0].content.split()[0]
        scores = [sum(worth[topic, w] > 0 for w in a.answer.split()) / len(a.answer.split()) for a in row.answers]
        right.append(theirs_pair_accuracy(scores))
    assert sum(right) / len(right) > 0.85
    assert len({t for t, _ in worth}) == data.TOPICS


def theirs_pair_accuracy(scores: list[float]) -> float:
    """Of one ranking, through the function that judges TRL's model."""
    model = FixedScores(scores)
    return theirs.pair_accuracy(model, [[[i] for i in range(len(scores))]])


class FixedScores(torch.nn.Module):
    """Answer [i] has the i-th score."""

    config = type("Config", (), {"pad_token_id": 0})

    def __init__(self, scores: list[float]) -> None:
        super().__init__()
        self.scores = torch.tensor(scores)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return type("Output", (), {"logits": self.scores[input_ids[:, :1]]})


def test_their_accuracy_counts_ties_as_half() -> None:
    assert theirs_pair_accuracy([3.0, 2.0, 1.0]) == 1.0
    assert theirs_pair_accuracy([1.0, 2.0, 2.0]) == pytest.approx((0 + 0 + 0.5) / 3)


# ── the floor ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_work_by_hand() -> None:
    # prompt: 1 + 2; answer of one token: sees 2 and itself; answer of three: 3 + 4 + 5
    assert floor.work_of(2, [1, 3]) == floor.Work(tokens=6, attended=3 + 3 + 12)


def test_work_equals_a_counted_mask() -> None:
    prompt, responses = 5, [3, 1, 4]
    segment = torch.tensor([-1] * prompt + [i for i, r in enumerate(responses) for _ in range(r)])
    place = torch.arange(len(segment))
    sees = (place[:, None] >= place) & ((segment == -1) | (segment == segment[:, None]))
    assert floor.work_of(prompt, responses) == floor.Work(len(segment), int(sees.sum()))


def test_work_of_ids_finds_the_prompt() -> None:
    assert floor.work_of_ids([[7, 8, 1], [7, 8, 2, 3, 4]]) == floor.work_of(2, [1, 3])


def test_flops_by_hand() -> None:
    work = floor.Work(tokens=10, attended=55)
    assert floor.flops(work, [(4, 8), (8, 4)], width=4, layers=2) == 3 * (2 * 10 * 64 + 4 * 55 * 4 * 2)


def test_linears_are_those_of_the_blocks(folder: Path) -> None:
    found = Counter(floor.linears_of(load_backbone_as_scalar(folder / "backbone", 0).model))
    assert found == {(16, 16): 8, (16, 24): 4, (24, 16): 2}  # q k v o, gate up, down; twice


def test_the_rate_is_work_over_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floor, "cpu_seconds", ticking(0.5))
    assert floor.matmul_rate([(4, 8), (4, 8), (8, 2)], rows=10) == 6 * 10 * (32 + 32 + 16) / 0.5


def ticking(step: float) -> Any:
    ticks: Iterator[int] = iter(range(1000))
    return lambda: next(ticks) * step


# ── what is measured ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_pause_and_the_first_steps_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "cpu_seconds", ticking(1.0))
    watched = meter.Meter()
    watched.begin()  # 0
    watched.step()  # 1
    watched.step()  # 2
    with watched.paused():  # 3 … 5
        meter.cpu_seconds()
    watched.step()  # 6, less the pause
    watched.step()  # 7, less the pause
    found = watched.found(per_step=3, first=1, last=3)
    assert found["cpu_s_by_step"] == [1, 2, 4, 5]
    assert (found["rankings"], found["cpu_s"]) == (6, pytest.approx((4 - 1) / 6))
    assert watched.found(per_step=3)["cpu_s"] == pytest.approx(5 / 12)
    assert found["peak_mib"] >= found["before_mib"] > 0


def test_our_side_trains_and_reports(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = versus.arguments(["--per-step", "2", "--seed", "5"])
    ours.main(json.dumps(versus.request(folder, args, floor=True, stop=2)))
    found = json.loads(capsys.readouterr().out)
    assert (found["rankings"], len(found["cpu_s_by_step"])) == (2, 3)
    assert found["cpu_s_by_step"] == sorted(found["cpu_s_by_step"])
    assert found["digest"] == theirs.digest(theirs.read_ids(folder / "train.ids.jsonl"))
    assert found["floor"]["tokens"] == pytest.approx(34, abs=12)  # 10 + 3 · 8 on average
    assert found["floor"]["cpu_s"] == pytest.approx(found["floor"]["gflop"] / found["floor"]["gflop_per_cpu_s"])


def test_evaluations_of_our_side_change_nothing_but_the_log(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = versus.arguments(["--per-step", "2", "--seed", "5"])
    weights = []
    for every in (0, 1):  # after every step the log has an accuracy; without, it has none
        ours.main(json.dumps(versus.request(folder, args, rate=1e-2, every=every)))
        found = json.loads(capsys.readouterr().out.splitlines()[-1])
        weights.append((folder / "ours" / "model.safetensors").read_bytes())
        assert [step for step, _ in found["accuracy"]] == ([1, 2, 3] if every else [])
    assert weights[0] == weights[1]


def test_our_layouts_learn_the_same(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = versus.arguments(["--per-step", "2", "--seed", "5"])
    weights = []
    for layout in versus.LAYOUTS:
        ours.main(json.dumps(versus.request(folder, args, rate=1e-3, reward={"layout": layout})))
        assert json.loads(capsys.readouterr().out)["cpu_s"] > 0
        weights.append(load_file(folder / "ours" / "model.safetensors"))
    for other in weights[1:]:
        for name, tensor in weights[0].items():
            torch.testing.assert_close(tensor, other[name], atol=1e-4, rtol=0)  # AdamW turns rounding into part of a step


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="needs trl, of the bench extra")
def test_their_side_trains_and_reports(folder: Path) -> None:
    args = versus.arguments(["--per-step", "2", "--seed", "5"])
    found = versus.run_side("theirs", versus.request(folder, args, accumulate=2, stop=2), args)
    assert (found["rankings"], len(found["cpu_s_by_step"]), found["pairs_per_ranking"]) == (2, 2, 3)


def test_a_step_of_the_peer_has_as_many_rankings() -> None:
    assert [versus.accumulation(21, 4, batch) for batch in (2, 3, 4)] == [42, 28, 21]
    assert versus.accumulation(21, 1, 4) == 5  # 20 pairs: the cost is counted per pair, so nothing is lost


def run_of(cpu_s: float, peak: float, **more: Any) -> dict[str, Any]:
    return {"cpu_s": cpu_s, "wall_s": cpu_s, "peak_mib": peak, "before_mib": 100.0, **more}


def test_ratios_by_hand() -> None:
    fast = [run_of(s, 400.0, floor={"cpu_s": 0.25}) for s in (0.5, 0.4, 0.6)]
    line = versus.cost_line(fast, {2: [run_of(9.0, 700.0)], 3: [run_of(s, 1100.0) for s in (7.0, 6.0, 5.0)]})
    assert (line["ratio"], line["trl_batch"], line["times_floor"]) == (12.0, 3, 2.0)
    assert (line["memory_ratio"], line["memory_ratio_steps_alone"]) == (0.364, 0.3)
    assert line["trl_cpu_s_by_batch"] == {"2": 9.0, "3": 6.0}


def test_quick_answers_with_the_two_ratios(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The harness on figures given, and only the sides are replaced."""
    asked = []

    def side(name: str, spec: dict[str, Any], args: Any) -> dict[str, Any]:
        asked.append((name, spec["batch"], spec["floor"]))
        same = {"digest": theirs.digest(theirs.read_ids(Path(spec["folder"]) / "train.ids.jsonl")), "first_scores": [1.0]}
        return run_of(0.5, 400.0, floor={"cpu_s": 0.4}, **same) if name == "ours" else run_of(5 + spec["batch"], 1000.0, **same)

    monkeypatch.setattr(versus, "run_side", side)
    versus.main(["--quick", "--json"])
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["ratios"] == {"200/150": 14.0, "600/200": 14.0}
    assert found["memory_ratios"] == {"200/150": 0.4, "600/200": 0.4}
    assert [name for name, _, _ in asked] == 6 * ["theirs", "ours"]
    assert [batch for name, batch, _ in asked if name == "theirs"] == 2 * [2, 3, 4]
    assert all(measured == (name == "ours") for name, _, measured in asked)
    assert "Starling" in err
    assert "| 200/150 | 7.00 (2) | 0.500 | **14.0** |" in versus.cost_table(found)


# ── time to an accuracy ──────────────────────────────────────────────────────────────────────────────────────────────


def test_the_first_step_that_passes_the_mark() -> None:
    found = accuracy.reached([(2, 0.6), (4, 0.8), (6, 0.7)], [1.0, 2.0, 3.0, 4.5, 5.0, 6.0], mark=0.8, per_step=2)
    assert (found["cpu_s"], found["rankings"], found["all_cpu_s"], found["best"]) == (4.5, 8, 6.0, 0.8)
    missed = accuracy.reached([(2, 0.6)], [1.0, 2.0], mark=0.8, per_step=2)
    assert (missed["cpu_s"], missed["rankings"]) == (None, None)
    assert accuracy.ratio(found, missed) is None
    assert accuracy.ratio(found, {**found, "cpu_s": 45.0}) == 10.0
    table = accuracy.table([{"seed": 1, "trl": missed, "starling": found, "ratio": None}])
    assert "| 1 | not reached (best 0.600) |" in table
    assert "No ratio" in table


def test_tuning_takes_the_cheapest_that_passes() -> None:
    one, two, three = accuracy.settings([1e-3, 3e-3, 1e-2], [4])
    missed = {"cpu_s": None, "best": 0.7}
    assert accuracy.best({one: missed, two: {"cpu_s": 5.0, "best": 0.8}, three: {"cpu_s": 4.0, "best": 0.8}}) == three
    with pytest.raises(SystemExit, match="No setting passes"):
        accuracy.best({one: missed})


# ── the curve ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_points_of_the_curve(tmp_path: Path) -> None:
    asked = []

    def run(model: str, point: dict[str, int]) -> dict[str, Any]:
        asked.append((model, point["answers"], point["prompt"]))
        return {"cpu_s": 3.0 * len(asked), "floor": {"tokens": 100.0, "cpu_s": 2.0 * len(asked), "gflop_per_cpu_s": 50.0}}

    lines = curve.measure(["5M"], 2, run)
    assert len(asked) == 2 * len(lines)
    assert {k for _, k, p in asked if p == 200} == {2, 3, 4, 5, 7, 9, 12}
    assert {p for _, k, p in asked if k == 7} == {64, 128, 200, 256, 512, 1024, 2000}
    assert all(line["times_floor"] == 1.5 for line in lines)
    assert "| 5M | 12 | 200 | 100 |" in curve.table(lines)
    curve.figure(lines, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"
