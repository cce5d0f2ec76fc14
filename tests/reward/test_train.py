"""Reward training: it learns, micro-batches change nothing, a killed run ends in the same bytes."""

import json
import os
import signal
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from starling.config import OptimizerSection, RewardSection
from starling.errors import ConfigError, InputError, TrainingError, UsageError
from starling.losses.ranking import plackett_luce
from starling.models.encode import Encoder
from starling.models.load import load_backbone_as_scalar, load_scalar, load_tokenizer
from starling.models.scorer import score_conversations
from starling.models.tree import tree_tokens
from starling.records import RankedAnswer, RankedPair, RankedPrompt
from starling.reward import train as module
from starling.reward.batches import build_store
from starling.reward.train import train
from starling.training import checkpoint
from starling.training.trainer import Trainer

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


def test_metrics_do_not_depend_on_micro_batches_where_all_is_one_tie(backbone: Make, make_rankings: Make, tmp_path: Path) -> None:
    """Bradley–Terry with `tied_pairs` learns from such a ranking too, but it has no pair to be right about."""
    rows = make_rankings(8)
    tied = [r.model_copy(update={"answers": tuple(a.model_copy(update={"rank": 1}) for a in r.answers)}) for r in rows[:5]]
    loss = {"type": "bradley_terry", "tied_pairs": True}
    for name, tokens in (("one", 10**9), ("many", 1)):
        run(tmp_path, backbone("llama"), [*tied, *rows[5:]], [], name=name, micro_tokens=tokens, loss=loss)
    one, many = (rows_of(tmp_path / name)[0] for name in ("one", "many"))
    for key in ("loss", "pair_accuracy", "top1", "margin"):
        assert many[key] == pytest.approx(one[key], rel=1e-4, abs=1e-5)
    assert one["pair_accuracy"] * 18 == pytest.approx(round(one["pair_accuracy"] * 18))  # of three rankings with six pairs


def test_what_pairs_cost(backbone: Make, make_rankings: Make, tmp_path: Path) -> None:
    encoder = Encoder(load_tokenizer(backbone("llama")), 128)
    store = build_store(tmp_path / "store", make_rankings(6, k=5) + make_rankings(2, k=2, seed=3), encoder, settings())
    for i, ranking in enumerate(store):
        pairs = [(a, b) for n, a in enumerate(ranking.answers) for b in ranking.answers[:n]]
        most = max(tree_tokens([a.ids, b.ids]) for a, b in pairs)
        assert most <= module.costs(store, "shared_prefix", 2)[i] <= min(store.shared[i], 2 * ranking.longest)
        assert module.costs(store, "sequences", 2)[i] == module.costs(store, "all_pairs", 2)[i] == 2 * ranking.longest
        assert module.costs(store, "sequences")[i] == len(ranking.answers) * ranking.longest


@pytest.mark.parametrize("kill_at", [2, 4, 6, 7])
def test_killed_and_resumed_ends_in_the_same_bytes(
    kill_at: int, backbone: Make, make_rankings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, held_out = make_rankings(32), make_rankings(4, seed=9)  # 8 steps of 8 in two epochs, checkpoints after 3, 6, 8
    run(tmp_path, backbone("gpt2"), rows, held_out, epochs=2)

    class KilledError(Exception):
        pass

    original = Trainer._step

    def dies(self: Any, step: int) -> None:
        if step == kill_at:
            raise KilledError
        original(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", dies)
        with pytest.raises(KilledError):
            run(tmp_path, backbone("gpt2"), rows, held_out, name="again", epochs=2)
    assert not (tmp_path / "again").exists()
    torch.rand(3)
    first_step: list[int] = []

    def counted(self: Any, step: int) -> None:
        first_step.append(step)
        original(self, step)

    monkeypatch.setattr(Trainer, "_step", counted)
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
    original = module.score_groups

    def score(head: Any, groups: Any, pad_id: int, layout: Any) -> Any:
        scores_BK, present_BK = original(head, groups, pad_id, layout)
        return scores_BK * (torch.nan if bad in groups else 1.0), present_BK

    encoder = Encoder(load_tokenizer(backbone("llama")), 128)
    bad = tuple(encoder.conversation(rows[5].prompt.messages, a.answer) for a in rows[5].answers)
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
        assert metrics["rankings/dropped"] == 1
        assert metrics["rankings/shortened"] == 1

    def test_raised(self, backbone: Make, make_rankings: Make, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="more than max_length = 64"):
            run(tmp_path, backbone("llama"), self.rows(make_rankings), [], max_length=64, over_long="raise")

    def test_nothing_left(self, backbone: Make, make_rankings: Make, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="No ranking is left"):
            run(tmp_path, backbone("llama"), make_rankings(4), [], max_length=5, over_long="drop")

    def test_positions_of_the_model_are_a_limit_too(self, backbone: Make, make_rankings: Make, tmp_path: Path) -> None:
        metrics = run(tmp_path, backbone("roberta"), make_rankings(8), [], max_length=2048)
        assert metrics["max_length"] == 129  # 130 positions, the first one after pad id 0


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


class TestWhenThingsHappen:
    def test_a_line_of_the_log_is_the_mean_of_its_steps(self, backbone: Make, make_rankings: Make, tmp_path: Path) -> None:
        rows = make_rankings(32)  # 4 steps
        for name, log_steps in (("each", 1), ("threes", 3)):
            run(tmp_path, backbone("llama"), rows, [], name=name, log_steps=log_steps)
        each, threes = rows_of(tmp_path / "each"), rows_of(tmp_path / "threes")
        assert [row["step"] for row in threes] == [3, 4]
        for key in ("loss", "grad_norm", "learning_rate", "margin"):
            assert threes[0][key] == pytest.approx(sum(row[key] for row in each[:3]) / 3)
            assert threes[1][key] == each[3][key]

    def test_neither_checkpoints_nor_kills_show_in_a_long_line(
        self, backbone: Make, make_rankings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rows = make_rankings(40)  # 5 steps
        run(tmp_path, backbone("llama"), rows, [], log_steps=4, checkpoint_steps=100)
        original = Trainer._step

        def dies(self: Any, step: int) -> None:
            if step == 4:
                raise ZeroDivisionError
            original(self, step)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "_step", dies)
            with pytest.raises(ZeroDivisionError):
                run(tmp_path, backbone("llama"), rows, [], name="again", log_steps=4)
        run(tmp_path, backbone("llama"), rows, [], name="again", log_steps=4, checkpoint_steps=1)  # may change meanwhile
        assert contents(tmp_path / "out") == contents(tmp_path / "again")

    def evaluations(self, monkeypatch: pytest.MonkeyPatch, values: list[float], weights: list[torch.Tensor]) -> None:
        """Evaluations say `values`, one after the other; what the weights were is kept in `weights`."""
        original = module._Rankings.evaluate
        said = iter(values)

        def evaluate(self: Any, model: Any, engine: Any) -> dict[str, float]:
            weights.append(engine.module.model.score.weight.detach().clone())
            return {**original(self, model, engine), "top1": next(said), "loss": -1.0}

        monkeypatch.setattr(module._Rankings, "evaluate", evaluate)

    def test_it_stops_early_and_keeps_the_best(
        self, backbone: Make, make_rankings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        weights: list[torch.Tensor] = []
        self.evaluations(monkeypatch, [0.1, 0.5, 0.5, 0.4], weights)
        metrics = run(
            tmp_path, backbone("llama"), make_rankings(48), make_rankings(4, seed=9),
            eval_steps=1, keep="best", metric="top1", patience=2,
        )  # fmt: skip
        assert len(weights) == 4  # of 6: the third is no better than the second, nor is the fourth
        assert metrics["best_step"] == 2
        assert metrics["steps"] == 4
        assert metrics["validation/top1"] == 0.5
        saved = load_scalar(tmp_path / "out")
        assert torch.equal(saved.model.score.weight.detach(), weights[1])
        assert not torch.equal(weights[1], weights[3])
        best = next(row["validation"] for row in rows_of(tmp_path / "out") if row["step"] == 2 and "validation" in row)
        assert saved.statistics == {"mean": best["score_mean"], "std": best["score_std"]}

    def test_a_stopped_one_stays_stopped(
        self, backbone: Make, make_rankings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        values, kept = [0.3, 0.2, 0.1], {"eval_steps": 1, "metric": "top1", "patience": 2, "checkpoint_steps": 100}
        rows, held_out = make_rankings(48), make_rankings(4, seed=9)
        self.evaluations(monkeypatch, values, [])
        first = run(tmp_path, backbone("llama"), rows, held_out, **kept)
        assert first["validation/top1"] == 0.1
        self.evaluations(monkeypatch, [], [])  # would raise StopIteration
        assert run(tmp_path, backbone("llama"), rows, held_out, **kept) == first

    def test_the_smallest_loss_is_the_best(
        self, backbone: Make, make_rankings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        values = iter([0.7, 0.6, 0.65])
        monkeypatch.setattr(
            module._Rankings, "evaluate",
            lambda *_: {"loss": next(values), "score_mean": 0.0, "score_std": 1.0},
        )  # fmt: skip
        metrics = run(
            tmp_path, backbone("llama"), make_rankings(24), make_rankings(4, seed=9), eval_steps=1, keep="best", metric="loss"
        )
        assert metrics["best_step"] == 2

    def test_the_best_outlives_a_kill(
        self, backbone: Make, make_rankings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Better ones came after the checkpoint and are gone with the kill; this time (rounding) they are not better."""
        rows, held_out = make_rankings(64), make_rankings(4, seed=9)  # 8 steps
        kept = {"eval_steps": 1, "keep": "best", "metric": "top1", "checkpoint_steps": 2}
        weights: list[torch.Tensor] = []
        self.evaluations(monkeypatch, [0.1, 0.5, 0.6, 0.7, *[0.0] * 6], weights)
        original = checkpoint.save

        def dies(folder: Path, step: int, *args: Any, **named: Any) -> Path:
            if folder.name == "checkpoints" and step == 4:
                raise ZeroDivisionError
            return original(folder, step, *args, **named)

        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "save", dies)
            with pytest.raises(ZeroDivisionError):
                run(tmp_path, backbone("llama"), rows, held_out, **kept)
        self.evaluations(monkeypatch, [0.3, 0.2, 0.1, 0.1, 0.1, 0.1], [])
        metrics = run(tmp_path, backbone("llama"), rows, held_out, **kept)
        assert metrics["best_step"] == 2
        assert torch.equal(load_scalar(tmp_path / "out").model.score.weight.detach(), weights[1])

    def test_a_shortened_log_is_not_filled_up(self, backbone: Make, make_rankings: Make, tmp_path: Path) -> None:
        run(tmp_path, backbone("llama"), make_rankings(8), [])
        (tmp_path / "work-out" / "log.jsonl").write_bytes(b"")
        with pytest.raises(TrainingError, match="Lines of the log are gone"):
            run(tmp_path, backbone("llama"), make_rankings(8), [])

    def test_confidence_that_nobody_gave_is_not_taken_for_certainty(
        self, backbone: Make, make_rankings: Make, tmp_path: Path
    ) -> None:
        plain = make_rankings(8)
        known = plain[0].model_copy(update={"pairs": (RankedPair(better=0, worse=1, confidence=0.75, weight=4.0),)})
        loss: dict[str, Any]
        for loss in ({"type": "plackett_luce", "weights": "confidence"}, {"type": "bradley_terry", "soft_labels": True}):
            with pytest.raises(InputError, match="how sure its judge was"):
                run(tmp_path, backbone("llama"), plain, [], loss=loss)
            metrics = run(tmp_path, backbone("llama"), [known, *plain[1:]], [], name=loss["type"], loss=loss)
            assert metrics["rankings/without_confidence"] == 7

    def test_without_validation_there_is_no_best(self, backbone: Make, make_rankings: Make, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no validation rankings"):
            run(tmp_path, backbone("llama"), make_rankings(8), [], keep="best")
        with pytest.raises(InputError, match="no validation rankings"):
            run(tmp_path, backbone("llama"), make_rankings(8), [], patience=1)

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_signal_finishes_the_step_and_saves(
        self, number: int, backbone: Make, make_rankings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rows, held_out = make_rankings(32), make_rankings(4, seed=9)
        run(tmp_path, backbone("llama"), rows, held_out)
        original = Trainer._step
        before = signal.getsignal(number)

        def hit(self: Any, step: int) -> None:
            if step == 2:
                os.kill(os.getpid(), number)
            original(self, step)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "_step", hit)
            with pytest.raises(KeyboardInterrupt):
                run(tmp_path, backbone("llama"), rows, held_out, name="again")
        assert signal.getsignal(number) is before
        assert [p.name for p in (tmp_path / "work-again" / "checkpoints").iterdir()] == ["step-00000002"]
        run(tmp_path, backbone("llama"), rows, held_out, name="again")
        assert contents(tmp_path / "out") == contents(tmp_path / "again")


class TestWhatIsTrained:
    def weights(self, folder: Path) -> dict[str, torch.Tensor]:
        return dict(load_scalar(folder).model.state_dict())

    @pytest.mark.parametrize(("name", "layers", "moves"), [
        ("llama", 0, ("score.",)), ("llama", 1, ("score.", "model.layers.1.")),
        ("bert", 1, ("classifier.", "bert.pooler.", "bert.encoder.layer.1.")),
    ])  # fmt: skip
    def test_last_layers_leave_the_others_bitwise_untouched(
        self, name: str, layers: int, moves: tuple[str, ...], backbone: Make, make_rankings: Make, tmp_path: Path
    ) -> None:
        run(tmp_path, backbone(name), make_rankings(16), [], trained={"type": "last_layers", "layers": layers})
        before = load_backbone_as_scalar(backbone(name), 1).model.state_dict()
        after = self.weights(tmp_path / "out")
        assert before.keys() == after.keys()
        moved = {key for key, value in before.items() if not torch.equal(value, after[key])}
        assert moved == {key for key in before if key.startswith(moves)}

    def test_more_layers_than_there_are(self, backbone: Make, make_rankings: Make, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="has 2 layers, 3 are to be trained"):
            run(tmp_path, backbone("llama"), make_rankings(8), [], trained={"type": "last_layers", "layers": 3})

    @pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
    def test_a_merged_model_scores_as_its_adapter(self, name: str, backbone: Make, make_rankings: Make, tmp_path: Path) -> None:
        rows, held_out = make_rankings(16), make_rankings(4, seed=9)
        lora = {"type": "lora", "rank": 4, "alpha": 8.0}
        for save in ("merged", "adapter"):
            run(tmp_path, backbone(name), rows, held_out, name=save, trained={**lora, "save": save})
        merged = load_scalar(tmp_path / "merged").model.eval()
        tokenizer = load_tokenizer(tmp_path / "adapter")
        base = AutoModelForSequenceClassification.from_pretrained(backbone(name), num_labels=1)
        untouched = {key: value.clone() for key, value in base.state_dict().items()}
        adapter = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
        batch = tokenizer(["the cat sat", "a dog and a cat"], return_tensors="pt", padding=True)
        adapter.base_model.model.config.pad_token_id = tokenizer.pad_token_id
        ours, theirs = merged(**batch).logits, adapter(**batch).logits
        torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)
        plain = load_backbone_as_scalar(backbone(name), 1).model(**batch).logits
        assert (plain - ours).abs().max() > 1e-3  # both halves of the claim: it was trained
        assert self.weights(tmp_path / "merged").keys() == untouched.keys()
        stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
        assert all("lora_" in key or "score" in key or "classifier" in key or "pooler" in key for key in stored)
        statistics = json.loads((tmp_path / "adapter" / "starling.json").read_text())
        assert statistics == load_scalar(tmp_path / "merged").statistics
        assert load_scalar(tmp_path / "adapter").statistics == statistics
        assert load_scalar(tmp_path / "merged").statistics["std"] > 0

    def test_a_killed_lora_training_saves_and_resumes_the_adapter_alone(
        self, backbone: Make, make_rankings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rows = make_rankings(32)
        lora = {"type": "lora", "rank": 4, "dropout": 0.2}  # drawn anew in each step, from seed and step
        run(tmp_path, backbone("llama"), rows, [], trained=lora)
        original = Trainer._step

        def dies(self: Any, step: int) -> None:
            if step == 4:
                raise ZeroDivisionError
            original(self, step)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "_step", dies)
            with pytest.raises(ZeroDivisionError):
                run(tmp_path, backbone("llama"), rows, [], name="again", trained=lora)
        saved = load_file(tmp_path / "work-again" / "checkpoints" / "step-00000003" / "weights.safetensors")
        assert all("lora_" in name or name == "model.score.weight" for name in saved)
        run(tmp_path, backbone("llama"), rows, [], name="again", trained=lora)
        assert contents(tmp_path / "out") == contents(tmp_path / "again")

    def test_what_a_step_drops_follows_from_seed_and_step(
        self, backbone: Make, make_rankings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Other processes' generators are in no checkpoint, so nothing may depend on what was drawn before."""
        rows, lora = make_rankings(16), {"type": "lora", "rank": 4, "dropout": 0.2}
        run(tmp_path, backbone("llama"), rows, [], trained=lora)
        original = Trainer._step

        def drawn_before(self: Any, step: int) -> None:
            torch.rand(step)
            original(self, step)

        monkeypatch.setattr(Trainer, "_step", drawn_before)
        run(tmp_path, backbone("llama"), rows, [], name="again", trained=lora)
        assert contents(tmp_path / "out") == contents(tmp_path / "again")

    def test_an_unknown_module_is_named(self, backbone: Make, make_rankings: Make, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"no linear layer named w_proj.*choose from down_proj, gate_proj"):
            run(tmp_path, backbone("llama"), make_rankings(8), [], trained={"type": "lora", "target_modules": ["w_proj"]})

    def test_gradient_checkpointing_changes_nothing(self, backbone: Make, make_rankings: Make, tmp_path: Path) -> None:
        rows = make_rankings(16)
        run(tmp_path, backbone("llama"), rows, [], name="off", gradient_checkpointing="off")
        run(tmp_path, backbone("llama"), rows, [], name="on", gradient_checkpointing="on")
        for key, value in self.weights(tmp_path / "off").items():
            torch.testing.assert_close(self.weights(tmp_path / "on")[key], value, atol=1e-6, rtol=1e-6)

    def test_bf16_is_near_fp32_and_not_it(self, backbone: Make, make_rankings: Make, tmp_path: Path) -> None:
        rows = make_rankings(16)
        run(tmp_path, backbone("llama"), rows, [], name="full", precision="fp32")
        run(tmp_path, backbone("llama"), rows, [], name="half", precision="bf16")
        full, half = rows_of(tmp_path / "full"), rows_of(tmp_path / "half")
        assert half[0]["loss"] == pytest.approx(full[0]["loss"], rel=0.02)
        assert half[0]["loss"] != full[0]["loss"]


class TestTrackers:
    def test_they_are_shown_the_log(
        self, backbone: Make, make_rankings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shown: list[tuple[int, dict[str, float]]] = []
        ended: list[bool] = []
        run_of = types.SimpleNamespace(log=lambda numbers, step: shown.append((step, numbers)), finish=lambda: ended.append(True))
        fake = types.ModuleType("wandb")
        started: list[dict[str, Any]] = []
        fake.init = lambda **given: started.append(given) or run_of  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "wandb", fake)
        monkeypatch.delenv("WANDB_MODE", raising=False)
        run(tmp_path, backbone("llama"), make_rankings(16), make_rankings(4, seed=9), trackers=("wandb",), eval_steps=2)
        assert os.environ["WANDB_MODE"] == "offline"
        assert started[0]["dir"] == str(tmp_path / "tracking")
        assert started[0]["config"]["rankings_per_step"] == 8
        log = rows_of(tmp_path / "out")
        assert [step for step, _ in shown] == [1, 2, 2]
        assert shown[0][1]["loss"] == log[0]["loss"]
        assert shown[0][1]["tokens_per_second"] > 0
        assert shown[2][1]["validation/top1"] == log[2]["validation"]["top1"]
        assert ended == [True]
        assert contents(tmp_path / "out").keys() >= {"log.jsonl", "model.safetensors"}
        assert "tokens_per_second" not in log[0]

    @pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
    def test_one_that_is_not_installed_is_named(
        self, name: str, backbone: Make, make_rankings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard" if name == "tensorboard" else name, None)
        with pytest.raises(UsageError, match=rf"{name} is not installed.*pip install {name}"):
            run(tmp_path, backbone("llama"), make_rankings(8), [], trackers=(name,))
        assert not (tmp_path / "work-out").exists()  # before hours of tokenising

    def test_they_are_closed_when_a_signal_stops_the_training(
        self, backbone: Make, make_rankings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ended: list[bool] = []
        shown = types.SimpleNamespace(log=lambda numbers, step: None, close=lambda: ended.append(True))
        monkeypatch.setattr(module, "open_trackers", lambda *_: [shown])
        original = Trainer._step

        def hit(self: Any, step: int) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            original(self, step)

        monkeypatch.setattr(Trainer, "_step", hit)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, backbone("llama"), make_rankings(8), [])
        assert ended == [True]
