"""Reward models of eight architectures: our score is transformers' own, in memory, from disk and through its pipeline."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from starling.errors import InputError
from starling.models.encode import Encoder, pad_right
from starling.models.load import load_backbone_as_scalar, load_causal, load_scalar, load_tokenizer, save_folder
from starling.models.scalar_head import ScalarHead
from starling.models.score import score_rows, similar_lengths
from starling.models.scorer import score_conversations
from starling.records import Message

DECODERS = ("llama", "gpt2", "qwen2", "opt")
ENCODERS = ("bert", "distilbert", "modernbert", "roberta")
CONVERSATIONS = [
    ((Message(role="user", content="hello there"),), "a cat, a dog and a cow", True),
    ((Message(role="user", content="what is the sum of two and three"),), "two", True),
    ((Message(role="user", content="name three animals"),), "how", False),
]


def saved(backbone: Callable[..., Path], name: str, folder: Path) -> ScalarHead:
    tokenizer = load_tokenizer(backbone(name))
    head = load_backbone_as_scalar(backbone(name), 3, tokenizer)
    head.set_statistics(0.5, 2.0)
    with torch.no_grad():  # a fresh head has small weights: its scores would hardly differ
        for part, weight in head.model.named_parameters():
            if part.startswith(("score", "classifier", "pre_classifier")) and weight.ndim == 2:
                weight *= 20
    save_folder(folder, head, tokenizer)
    return head


@pytest.mark.parametrize("name", [*DECODERS, *ENCODERS])
def test_same_score_as_transformers(name: str, backbone: Callable[..., Path], tmp_path: Path) -> None:
    head = saved(backbone, name, tmp_path)
    assert head.is_decoder == (name in DECODERS)
    tokenizer = load_tokenizer(tmp_path)
    encoder = Encoder(tokenizer, 128)
    padded = pad_right(encoder.conversations(CONVERSATIONS), encoder.pad_id)
    ours = head.rewards(padded.ids_BT, padded.mask_BT, padded.last_B)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    logits = theirs(input_ids=padded.ids_BT, attention_mask=padded.mask_BT.long()).logits[:, 0]
    torch.testing.assert_close(ours, logits, atol=2e-5, rtol=1e-5)
    assert ours.std() > 0.01, "the test would pass with constant scores"

    pipe = transformers.pipeline("text-classification", model=str(tmp_path), device="cpu")
    texts = [encoder.render(*c) for c in CONVERSATIONS]
    for options in ({"function_to_apply": "none"}, {}):  # regression: no sigmoid by default either
        assert [r["score"] for r in pipe(texts, **options)] == pytest.approx(ours.tolist(), abs=2e-5)
    assert score_conversations(tmp_path, CONVERSATIONS) == pytest.approx(ours.tolist(), abs=2e-5)


@pytest.mark.parametrize("name", DECODERS)
def test_values_at_the_last_token_are_the_reward(name: str, backbone: Callable[..., Path], tmp_path: Path) -> None:
    head = saved(backbone, name, tmp_path)
    encoder = Encoder(load_tokenizer(tmp_path), 128)
    padded = pad_right(encoder.conversations(CONVERSATIONS), encoder.pad_id)
    values_BT = head.values(padded.ids_BT, padded.mask_BT)
    rewards_B = head.rewards(padded.ids_BT, padded.mask_BT, padded.last_B)
    torch.testing.assert_close(values_BT[torch.arange(3), padded.last_B], rewards_B)
    assert torch.all(values_BT[~padded.mask_BT] == 0)


def test_encoders_have_no_values(backbone: Callable[..., Path]) -> None:
    head = load_backbone_as_scalar(backbone("bert"), 0)
    with pytest.raises(InputError, match="no per-token values"):
        head.values(torch.ones(1, 3, dtype=torch.long), torch.ones(1, 3, dtype=torch.bool))


def test_pad_id_inside_the_text_does_not_move_the_score(backbone: Callable[..., Path], tmp_path: Path) -> None:
    head = saved(backbone, "llama", tmp_path)
    ids = torch.tensor([[5, 6, 0, 0]])
    mask = torch.ones_like(ids, dtype=torch.bool)
    last = head.rewards(ids, mask, torch.tensor([3]))
    torch.testing.assert_close(last, head.values(ids, mask)[:, 3])
    assert not torch.allclose(last, head.values(ids, mask)[:, 1])


def test_statistics_travel_with_the_folder(backbone: Callable[..., Path], tmp_path: Path) -> None:
    saved(backbone, "llama", tmp_path)
    assert load_scalar(tmp_path).statistics == {"mean": 0.5, "std": 2.0}
    assert load_backbone_as_scalar(backbone("llama"), 0).statistics == {}


def test_same_seed_same_bytes(backbone: Callable[..., Path], tmp_path: Path) -> None:
    for folder in ("a", "b"):
        torch.rand(1)
        saved(backbone, "llama", tmp_path / folder)
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert names == sorted(p.name for p in (tmp_path / "b").iterdir())
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
        assert str(tmp_path).encode() not in (tmp_path / "a" / name).read_bytes(), f"{name} holds a local path"
    other = load_backbone_as_scalar(backbone("llama"), 4)
    assert not torch.equal(other.model.score.weight, load_scalar(tmp_path / "a").model.score.weight)


def test_loading_leaves_the_random_state_alone(backbone: Callable[..., Path]) -> None:
    before = torch.get_rng_state()
    load_backbone_as_scalar(backbone("llama"), 0)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("pad", [None, "<|end|>"])
def test_a_tokenizer_without_a_pad_of_its_own_gets_one(pad: str | None, backbone: Callable[..., Path], tmp_path: Path) -> None:
    tokenizer = copy.deepcopy(load_tokenizer(backbone("llama")))
    tokenizer.pad_token = pad
    save_folder(tmp_path / "base", load_causal(backbone("llama")), tokenizer)
    tokenizer = load_tokenizer(tmp_path / "base")
    head = load_backbone_as_scalar(tmp_path / "base", 0, tokenizer)
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    assert head.model.config.pad_token_id == tokenizer.pad_token_id
    assert head.model.get_input_embeddings().num_embeddings == len(tokenizer)
    save_folder(tmp_path / "rm", head, tokenizer)
    ours = score_conversations(tmp_path / "rm", CONVERSATIONS)
    pipe = transformers.pipeline("text-classification", model=str(tmp_path / "rm"), device="cpu", function_to_apply="none")
    encoder = Encoder(load_tokenizer(tmp_path / "rm"), 128)
    texts = [encoder.render(*c) for c in CONVERSATIONS]
    assert [r["score"] for r in pipe(texts, batch_size=3)] == pytest.approx(ours, abs=2e-5)  # padded by the pipeline


def test_dropout_is_off_in_training_mode(backbone: Callable[..., Path]) -> None:
    for name in ("gpt2", "bert", "modernbert"):
        head = load_backbone_as_scalar(backbone(name), 0).train()
        args = torch.tensor([[3, 4, 5]]), torch.ones(1, 3, dtype=torch.bool), torch.tensor([2])
        assert torch.equal(head.rewards(*args), head.rewards(*args))


def test_bad_folders(backbone: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load_causal(tmp_path / "nowhere")
    with pytest.raises(InputError, match="cannot be loaded"):
        load_causal(tmp_path)
    with pytest.raises(InputError, match="no reward head"):
        load_scalar(backbone("llama"))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(backbone("llama"), num_labels=3)
    with pytest.raises(InputError, match="one output, this one has 3"):
        ScalarHead(model)


def test_scores_do_not_depend_on_order_or_batches(backbone: Callable[..., Path], tmp_path: Path) -> None:
    head = saved(backbone, "llama", tmp_path)
    encoder = Encoder(load_tokenizer(tmp_path), 128)
    conversations = [
        ((Message(role="user", content="hello " * (i % 7 + 1)),), "cat " * (i * 5 % 13 + 1), True) for i in range(40)
    ]
    rows = encoder.conversations(conversations)
    alone = [score_rows(head, [row], encoder.pad_id).item() for row in rows]
    for budget in (None, 60, 400):
        assert score_rows(head, rows, encoder.pad_id, budget).tolist() == pytest.approx(alone, abs=1e-5)
    assert score_rows(head, rows[::-1], encoder.pad_id).tolist() == pytest.approx(alone[::-1], abs=1e-5)
    assert score_conversations(tmp_path, conversations + conversations[:3], batch_tokens=300) == pytest.approx(
        alone + alone[:3], abs=1e-5
    )


def test_passes_of_similar_length() -> None:
    lengths = [30, 500, 480, 20, 300, 290, 30]
    passes = similar_lengths(lengths)
    assert sorted(i for p in passes for i in p) == list(range(len(lengths)))
    # 300 is shorter than 0.8 · 500, but two rows of 500 are fewer than 1,024 tokens: it joins; with it there are enough
    assert [[lengths[i] for i in p] for p in passes] == [[500, 480, 300], [290, 30, 30, 20]]
    assert all(len(p) * lengths[p[0]] <= 600 for p in similar_lengths(lengths, 600))
    assert similar_lengths([500], 100) == [[0]]


def test_equal_rows_are_computed_once_and_share_their_gradient(backbone: Callable[..., Path], tmp_path: Path) -> None:
    head = saved(backbone, "llama", tmp_path)
    encoder = Encoder(load_tokenizer(tmp_path), 128)
    a, b = encoder.conversations([((Message(role="user", content="hello"),), t, True) for t in ("a cat", "a dog and a cow")])
    seen: list[int] = []
    head.register_forward_pre_hook(lambda _, batch: seen.append(len(batch[0].ids_BT)))
    weight = head.model.score.weight
    together = torch.autograd.grad(
        (score_rows(head, [a, b, a, a], encoder.pad_id) * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum(), weight
    )[0]
    assert sum(seen) == 2
    alone = sum(
        torch.autograd.grad(factor * score_rows(head, [row], encoder.pad_id).sum(), weight)[0]
        for row, factor in ((a, 1.0), (b, 2.0), (a, 3.0), (a, 4.0))
    )
    assert torch.allclose(together, alone, atol=1e-4)
