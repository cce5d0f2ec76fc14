"""Training the speakers on a very small scale: ordinary folders, exact resume, no held-out conversation in the batches."""

from pathlib import Path

import pytest

from starling.chat import split_of
from starling.config import MicroworldSection
from starling.microworld import speakers
from starling.microworld.world import tasks
from starling.models.encode import Encoder
from starling.models.load import load_causal

TINY = MicroworldSection(hidden=16, layers=1, heads=2, vocab=400, steps=6, batch=10, tune_steps=2)


def build(folder: Path) -> None:
    speakers.build(folder / "out", folder / "work", TINY, seed=1, validation=0.1, test=0.14)


def test_folders_open_and_a_killed_run_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speakers, "CHECKPOINT_STEPS", 2)
    build(tmp_path / "whole")
    real, steps = speakers._Trainer._step, 0

    def dies(self: speakers._Trainer, *args: object) -> float:
        nonlocal steps
        steps += 1
        if steps in (4, 7):  # once in the base, once while tuning
            raise KeyboardInterrupt
        return real(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(speakers._Trainer, "_step", dies)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path / "halves")
    build(tmp_path / "halves")
    weights = set()
    for name in speakers.SPEAKERS:
        whole = tmp_path / "whole" / "out" / name
        for file in sorted(p.name for p in whole.iterdir()):
            assert (whole / file).read_bytes() == (tmp_path / "halves" / "out" / name / file).read_bytes(), (name, file)
        weights.add((whole / "model.safetensors").read_bytes())
        assert load_causal(whole).config.model_type == "llama"
    assert len(weights) == len(speakers.SPEAKERS)  # five different states


def test_the_tokenizer_round_trips_and_ends_replies() -> None:
    corpus = list(tasks().values())[::7]
    tokenizer = speakers.train_tokenizer(corpus, 600)
    encoder = Encoder(tokenizer, 256)
    for text in ("3 + 4 = 7.", "Hello Tom! How can I help you?", "naïve – 猫 <|end|>"):
        ids = encoder.reply_ids(text, finished=True)
        assert ids[-1] == tokenizer.convert_tokens_to_ids("<|end|>") == encoder.end_ids[0]
        assert tokenizer.decode(ids[:-1]) == text
    prompt = tokenizer.decode(encoder.prompt_ids(corpus[0].messages))
    assert prompt == f"<|user|>{corpus[0].messages[0].content}<|end|><|assistant|>"


def test_no_held_out_conversation_is_trained_on() -> None:
    corpus = [t for t in tasks().values() if split_of(t.messages, validation=0.1, test=0.14) == "train"]
    assert 0.7 < len(corpus) / len(tasks()) < 0.82
    held_out = {t.messages[0].content for t in tasks().values()} - {t.messages[0].content for t in corpus}
    assert held_out
    trainer = speakers._Trainer(None, speakers.train_tokenizer(corpus, 400), corpus, TINY, 0, None)  # type: ignore[arg-type]
    for step in range(20):
        for row in trainer.batch(speakers._Phase("base", 6, 0.6, 0.1, 1e-3), step):
            prompt = trainer.encoder.tokenizer.decode(row.ids[: row.prompt_length])
            assert prompt.split("<|user|>")[1].split("<|end|>")[0] not in held_out
