"""The comparison of policy tuning with TRL: same prompts and models, work is counted, ratios are right. Needs no TRL."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import policy_vs_trl as versus
from benchmarks.versus_trl import counting, data, tuning, tuning_ours, tuning_theirs
from starling.models.encode import Encoder
from starling.models.load import load_causal, load_tokenizer

TINY = data.Shape(hidden=16, layers=2, heads=2, inner=24, vocab=64)
MADE = tuning.Made(prompts=4, least=5, most=9, vocab=64, seed=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What both sides read, of a tiny case whose replies never end."""
    return tuning.write(tmp_path_factory.mktemp("case"), TINY, tuning.make_prompts(MADE), ends=tuning.NEVER, seed=3)


def arguments(*words: str) -> Any:
    return versus.arguments(["--prompts", "4", "--samples", "2", "--iterations", "2", *words])


TINY_CASE = versus.Case("tiny", epochs=1, minibatches=2, reply=6)

# ── the same prompts and models on both sides ────────────────────────────────────────────────────────────────────────


def test_prompts_have_the_lengths_asked_for_and_follow_from_the_seed() -> None:
    made = tuning.Made(prompts=60, least=5, most=9, vocab=64, seed=3)
    prompts = tuning.make_prompts(made)
    encoder = Encoder(data.make_tokenizer(64), max_length=100)
    lengths = [len(encoder.prompt_ids(p.messages)) for p in prompts]
    assert (min(lengths), max(lengths)) == (5, 9)
    assert prompts == tuning.make_prompts(made)
    assert not {p.id for p in prompts} & {p.id for p in tuning.make_prompts(tuning.Made(60, 5, 9, 64, seed=4))}


def test_both_sides_read_the_same_prompts(folder: Path) -> None:
    prompts = tuning.read_prompts(folder)
    assert prompts == tuning.make_prompts(MADE)
    given = [json.loads(line)["prompt"] for line in (folder / "messages.jsonl").read_text().splitlines()]
    tokenizer = load_tokenizer(folder / "base")
    theirs = [[tokenizer.apply_chat_template(p, add_generation_prompt=True, return_dict=True)["input_ids"]] for p in given]
    assert tuning_theirs.digest(theirs) == tuning_ours.checks(folder)["digest"]
    assert tuning_theirs.REPLY == tuning.REPLY


@pytest.mark.parametrize("chance", [tuning.NEVER, 1 / 64, 1 / 3])
def test_a_reply_ends_with_the_chance_asked_for(tmp_path: Path, chance: float) -> None:
    tuning.write(tmp_path, data.SHAPES["1M"], tuning.make_prompts(MADE), ends=chance, seed=1)
    model, tokenizer = load_causal(tmp_path / "base"), load_tokenizer(tmp_path / "base")
    read = torch.randint(len(data.SPECIAL), 1024, (4, 200), generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        chances = model(input_ids=read).logits.softmax(-1)
    mean = float(chances[..., tokenizer.eos_token_id].mean())
    assert mean < 1e-12 if chance == tuning.NEVER else mean == pytest.approx(chance, rel=0.1)
    never = [tokenizer.pad_token_id, tokenizer.unk_token_id]
    assert float(chances[..., never].max()) < 1e-12


def test_a_comparison_of_different_things_is_refused() -> None:
    same = {"digest": "a", "first_scores": [0.5, 1.0]}
    versus.same_start(same, {"digest": "a", "first_scores": [0.5, 1.00001]})
    with pytest.raises(SystemExit, match="different prompts"):
        versus.same_start(same, {**same, "digest": "b"})
    with pytest.raises(SystemExit, match="different models"):
        versus.same_start(same, {**same, "first_scores": [0.5, 1.01]})


def test_different_work_is_refused() -> None:
    case, ragged = versus.CASES[1], versus.CASES[2]
    assert (case.epochs * case.minibatches, ragged.ends) == (8, 1 / 64)

    def did(steps: float, generated: float) -> dict[str, Any]:
        return {"work": {"optimizer_steps": steps}, "generated": generated}

    versus.same_work(case, did(8, 6144), did(8, 6144))
    with pytest.raises(SystemExit, match=r"\[8, 4\] optimiser steps"):
        versus.same_work(case, did(8, 6144), did(4, 6144))
    with pytest.raises(SystemExit, match="6000 tokens"):
        versus.same_work(case, did(8, 6000), did(8, 6144))
    versus.same_work(ragged, did(1, 3400), did(1, 3600))  # drawn anew by each side
    with pytest.raises(SystemExit, match="3400 tokens"):
        versus.same_work(ragged, did(1, 3400), did(1, 6000))


# ── the same work ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_their_names_for_the_same_work() -> None:
    spec = versus.request(Path("x"), versus.Case("c", epochs=2, minibatches=4), versus.arguments([]), batch=8)
    assert tuning_theirs.shares(spec) == {
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 2,  # a step of 16 of 64 replies
        "steps_per_generation": 8,
        "num_iterations": 2,
        "max_steps": 2 * 4 * (1 + 3),
    }
    with pytest.raises(ValueError, match="batches of 32 do not make 4 steps"):
        tuning_theirs.shares({**spec, "batch": 32})


def test_batches_that_divide_a_step() -> None:
    args = versus.arguments([])
    assert versus.batches(versus.CASES[0], args) == [4, 8, 16, 32, 64]
    assert versus.batches(versus.CASES[1], args) == [4, 8, 16]
    with pytest.raises(SystemExit, match="divides an optimiser step of 2 replies"):
        versus.batches(versus.CASES[1], arguments("--batches", "4"))


def test_tokens_and_steps_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.functional, "embedding", torch.nn.functional.embedding)  # put back afterwards
    counter = counting.Counter()
    table = torch.nn.Embedding(8, 4)
    optimizer = torch.optim.SGD(table.parameters(), lr=0.1)
    counter.mark()
    for _ in range(2):
        with torch.no_grad():
            table(torch.zeros(3, 5, dtype=torch.long))
        table(torch.zeros(2, 4, dtype=torch.long)).sum().backward()
        optimizer.step()
        counter.mark()
    with torch.inference_mode():
        table(torch.zeros(7, dtype=torch.long))
    counter.mark()
    assert counter.found(0, 2) == {"optimizer_steps": 1, "read_with_gradient": 8, "read_without": 15}
    assert counter.found(2, 3) == {"optimizer_steps": 0, "read_with_gradient": 0, "read_without": 7}


def test_our_side_tunes_and_reports(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.functional, "embedding", torch.nn.functional.embedding)
    spec = versus.request(folder, TINY_CASE, arguments(), algorithm={"type": "apa"})
    tuning_ours.main(json.dumps(spec))
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["generated"] == 8 * 6  # no reply ended before its last token
    assert found["work"]["optimizer_steps"] >= 2  # the critic's may be steps of their own
    assert found["work"]["read_with_gradient"] >= 8 * 5
    assert len(found["cpu_s_by_step"]) == 1 + 2 + 1
    assert found["rankings"] == 2  # iterations that count


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="needs trl, of the bench extra")
@pytest.mark.parametrize("trainer", versus.TRAINERS)
def test_their_side_tunes_and_reports(folder: Path, trainer: str) -> None:
    args = arguments()
    found = versus.run_side("tuning_theirs", versus.request(folder, TINY_CASE, args, trainer=trainer, batch=4), args)
    assert (found["generated"], found["work"]["optimizer_steps"]) == (48, 2)
    assert found["first_scores"] == pytest.approx(tuning_ours.checks(folder)["first_scores"], abs=1e-4)


# ── the answer ───────────────────────────────────────────────────────────────────────────────────────────────────────


def run_of(rate: float, **more: Any) -> dict[str, Any]:
    work = {"optimizer_steps": 1.0, "read_with_gradient": 100.0, "read_without": 200.0}
    cost = {"cpu_s": 6144 / rate, "wall_s": 1.0, "peak_mib": 500.0}
    return {"rate": rate, "generated": 6144.0, "work": work, **cost, **more}


def test_ratios_by_hand() -> None:
    ours = {"rloo": [run_of(r) for r in (900.0, 1200.0, 1000.0)], "apa": [run_of(500.0)]}
    theirs = {
        "rloo": {8: [run_of(300.0)], 16: [run_of(r) for r in (400.0, 500.0, 250.0)]},
        "grpo": {8: [run_of(r) for r in (320.0, 350.0, 310.0)], 16: [run_of(200.0)]},
    }
    found = versus.line(ours, theirs)
    assert found["ratios"] == {"rloo": 2.5, "grpo": 3.12}  # 1000 / 400 and 1000 / 320: medians, each at its best batch
    assert found["sides"]["TRL rloo"]["by_batch"] == {"8": 300.0, "16": 400.0}
    assert (found["sides"]["TRL rloo"]["batch"], found["sides"]["TRL grpo"]["batch"]) == (16, 8)
    assert (found["sides"]["Starling rloo"]["least"], found["sides"]["Starling rloo"]["most"]) == (900.0, 1200.0)


def test_quick_answers_with_the_two_ratios(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The harness on figures given, and only the sides are replaced."""
    asked = []

    def side(name: str, spec: dict[str, Any], args: Any) -> dict[str, Any]:
        asked.append((name, spec["trainer"], spec["batch"]))
        rate = 1000.0 if name == "tuning_ours" else {"rloo": 250.0, "grpo": 200.0}[spec["trainer"]] + spec["batch"]
        return run_of(rate, digest="d", first_scores=[1.0])

    monkeypatch.setattr(versus, "run_side", side)
    versus.main(["--quick", "--json"])
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["ratios"] == {"rloo": 3.18, "grpo": 3.79}  # 1000 / 314, 1000 / 264
    assert [(trainer, batch) for name, trainer, batch in asked if name == "tuning_theirs"] == [
        ("rloo", 16), ("rloo", 64), ("grpo", 16), ("grpo", 64),
    ]  # fmt: skip
    assert "Starling rloo" in err
    table = versus.table(found)
    assert "| one step | TRL rloo, batch 64 | 314 [314, 314] | **3.2** |" in table
    assert "| one step | Starling rloo | 1000 [1000, 1000] |  |" in table
