"""Reward training: it learns, micro-batches change nothing, a killed run ends in the same bytes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from starling.config import OptimizerSection, RewardSection
from starling.errors import InputError, TrainingError
from starling.losses.ranking import plackett_luce
from starling.models.load import load_scalar, load_tokenizer
from starling.models.score import score_conversations
from starling.records import RankedAnswer, RankedPrompt
from starling.reward import train as module
from starling.reward.train import train

Make = Callable[..., Any]


def settings(**changes: Any) -> RewardSection:
    base: dict[str, Any] = {
        "backbone": "x", "optimizer": OptimizerSection(learning_rate=3e-3), "epochs": 1, "rankings_per_step": 8,
        "micro_tokens": 800, "max_length": 128, "checkpoint_steps": 3, "eval_steps": 3,
    }  # fmt: skip
    return RewardSection(**{**base, **changes})


def run(folder: Path, backbone: Path, rows: Any, held_out: Any, name: str = "out", **changes: Any) -> dict[str, float]:
    return train(
        rows, held_out, backbone=backbone, out=folder / name, work=folder / f"work-{name}", settings=settings(**changes), seed=1
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


@pytest.mark.parametrize("name", ["llama", "bert"])
@pytest.mark.parametrize("loss", ["plackett_luce", "bradley_terry"])
def test_it_learns(name: str, loss: str, backbone: Make, make_rankings: Make, tmp_path: Path) -> None:
    metrics = run(tmp_path, backbone(name), make_rankings(96), make_rankings(16, seed=9), epochs=5, loss=loss)
    assert metrics["validation/pair_accuracy"] > 0.9
    assert metrics["rankings/train"] == 96
    assert metrics["answers/whole"] == 96 * 4
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    steps = [row for row in lines if "loss" in row]
    assert [row["step"] for row in steps] == list(range(1, 61))
    assert [row["step"] for row in lines if "validation" in row] == list(range(3, 61, 3))
    assert lines[-1]["validation"]["pair_accuracy"] == metrics["validation/pair_accuracy"]
    assert steps[-1]["loss"] < steps[0]["loss"]


def test_saved_model_has_the_validation_statistics(backbone: Make, make_rankings: Make, tmp_path: Path) -> None:
    held_out = make_rankings(6, seed=9)
    metrics = run(tmp_path, backbone("llama"), make_rankings(16), held_out)
    scores = torch.tensor(
        score_conversations(tmp_path / "out", [(r.prompt.messages, a.answer, True) for r in held_out for a in r.answers])
    )
    statistics = load_scalar(tmp_path / "out").statistics
    assert statistics["mean"] == pytest.approx(scores.mean().item(), abs=1e-5)
    assert statistics["std"] == pytest.approx(scores.std(correction=0).item(), abs=1e-5)
    outputs = plackett_luce(scores.reshape(6, 4))
    assert metrics["validation/loss"] == pytest.approx(outputs.loss.item(), abs=1e-5)
    assert metrics["validation/top1"] == pytest.approx(outputs.metrics["top1"].item())
    assert load_tokenizer(tmp_path / "out").chat_template is not None


def test_micro_tokens_do_not_change_the_result(backbone: Make, make_rankings: Make, tmp_path: Path) -> None:
    rows = make_rankings(12) + make_rankings(6, k=2, seed=3) + make_rankings(6, k=7, seed=4)
    # one long step sequence of plain updates: Adam would blow rounding up where a gradient is nearly 0
    for name, tokens in (("one", 10**9), ("many", 1), ("some", 900)):
        run(tmp_path, backbone("llama"), rows, [], name=name, micro_tokens=tokens, rankings_per_step=12, epochs=1)
    logs = [[json.loads(line) for line in (tmp_path / n / "log.jsonl").read_text().splitlines()] for n in ("one", "many", "some")]
    for row, other, third in zip(*logs, strict=True):
        for key in ("loss", "grad_norm", "pair_accuracy", "top1", "margin"):
            assert other[key] == pytest.approx(row[key], rel=1e-4, abs=1e-5)
            assert third[key] == pytest.approx(row[key], rel=1e-4, abs=1e-5)
    heads = [load_scalar(tmp_path / n).state_dict() for n in ("one", "many", "some")]
    for other in heads[1:]:
        for key, value in heads[0].items():
            torch.testing.assert_close(other[key], value, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kill_at", [2, 4, 6, 7])
def test_killed_and_resumed_ends_in_the_same_bytes(
    kill_at: int, backbone: Make, make_rankings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, held_out = make_rankings(32), make_rankings(4, seed=9)  # 8 steps of 8 in two epochs, checkpoints after 3, 6, 8
    run(tmp_path, backbone("gpt2"), rows, held_out, epochs=2)

    class KilledError(Exception):
        pass

    original = module._Trainer._step

    def dies(self: Any, step: int) -> Any:
        if step == kill_at:
            raise KilledError
        return original(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(module._Trainer, "_step", dies)
        with pytest.raises(KilledError):
            run(tmp_path, backbone("gpt2"), rows, held_out, name="again", epochs=2)
    assert not (tmp_path / "again").exists()
    torch.rand(3)
    first_step: list[int] = []

    def counted(self: Any, step: int) -> Any:
        first_step.append(step)
        return original(self, step)

    monkeypatch.setattr(module._Trainer, "_step", counted)
    run(tmp_path, backbone("gpt2"), rows, held_out, name="again", epochs=2)
    assert first_step[0] == (kill_at - 1) // 3 * 3 + 1  # nothing before the last checkpoint is done again
    assert contents(tmp_path / "out") == contents(tmp_path / "again")


def test_finished_work_is_only_written_again(backbone: Make, make_rankings: Make, tmp_path: Path) -> None:
    rows, held_out = make_rankings(8), make_rankings(4, seed=9)
    first = run(tmp_path, backbone("llama"), rows, held_out)
    before = contents(tmp_path / "out")
    assert run(tmp_path, backbone("llama"), rows, held_out) == first
    assert contents(tmp_path / "out") == before


def test_checkpoint_of_other_data_is_refused(backbone: Make, make_rankings: Make, tmp_path: Path) -> None:
    run(tmp_path, backbone("llama"), make_rankings(8), [])
    with pytest.raises(TrainingError, match="other settings or data"):
        run(tmp_path, backbone("llama"), make_rankings(8, seed=5), [])
    with pytest.raises(TrainingError, match="other settings or data"):
        run(tmp_path, backbone("llama"), make_rankings(8), [], epochs=2)


def test_non_finite_loss_names_the_prompts(
    backbone: Make, make_rankings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = make_rankings(8)
    encoded: dict[str, Any] = {}
    originals = module.encode_rankings, module.score_groups

    def encode(*args: Any) -> Any:
        rankings = originals[0](*args)
        encoded.update({r.prompt_id: r.answers for r in rankings})
        return rankings

    def score(head: Any, groups: Any, pad_id: int) -> Any:
        scores_BK, present_BK = originals[1](head, groups, pad_id)
        return scores_BK * (torch.nan if encoded[rows[5].prompt.id] in groups else 1.0), present_BK

    monkeypatch.setattr(module, "encode_rankings", encode)
    monkeypatch.setattr(module, "score_groups", score)
    with pytest.raises(TrainingError, match=r"The loss is nan.*step 1"):
        run(tmp_path, backbone("llama"), rows, [], micro_tokens=1)
    assert json.loads((tmp_path / "work-out" / "non_finite.json").read_text()) == {"step": 1, "prompt_ids": [rows[5].prompt.id]}
    assert not (tmp_path / "out").exists()


class TestOverLong:
    def rows(self, make_rankings: Make) -> list[RankedPrompt]:
        rows: list[RankedPrompt] = make_rankings(8, k=3)
        long = RankedAnswer(answer="dog " * 60, model="m0", rank=1.0)
        pair = RankedPrompt(prompt=rows[1].prompt, answers=(long, rows[1].answers[1]), good_natured=None)
        return [RankedPrompt(prompt=rows[0].prompt, answers=(long, *rows[0].answers[1:]), good_natured=None), pair, *rows[2:]]

    def test_truncated_and_counted(self, backbone: Make, make_rankings: Make, tmp_path: Path) -> None:
        metrics = run(tmp_path, backbone("llama"), self.rows(make_rankings), [], max_length=64)
        assert metrics["answers/answer_cut"] == 2
        assert metrics["answers/whole"] == 3 * 8 - 1 - 2
        assert metrics["rankings/train"] == 8

    def test_dropped_and_counted(self, backbone: Make, make_rankings: Make, tmp_path: Path) -> None:
        metrics = run(tmp_path, backbone("llama"), self.rows(make_rankings), [], max_length=64, over_long="drop")
        assert metrics["answers/dropped"] == 2
        assert metrics["rankings/train"] == 7  # the pair lost one of two and is no ranking any more

    def test_raised(self, backbone: Make, make_rankings: Make, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="more than max_length = 64"):
            run(tmp_path, backbone("llama"), self.rows(make_rankings), [], max_length=64, over_long="raise")

    def test_nothing_left(self, backbone: Make, make_rankings: Make, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="No ranking is left"):
            run(tmp_path, backbone("llama"), make_rankings(4), [], max_length=5, over_long="drop")

    def test_positions_of_the_model_are_a_limit_too(self, backbone: Make, make_rankings: Make, tmp_path: Path) -> None:
        metrics = run(tmp_path, backbone("roberta"), make_rankings(8), [], max_length=2048)
        assert metrics["max_length"] == 129  # 130 positions, the first one after pad id 0
