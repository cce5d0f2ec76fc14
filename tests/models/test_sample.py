"""The decode loop against a plain forward pass, transformers' generate, and its own laws."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from starling.models.encode import Encoded, Encoder, pad_right
from starling.models.load import load_causal, load_tokenizer
from starling.models.logprobs import token_logprobs
from starling.models.drawing import draw
from starling.models.sample import Sampler, cut_at, row_seed
from starling.records import Sampling

PROMPTS = [(3, 40, 50), (3, 41), (3, 60, 61, 62, 63, 64), (3, 99, 17, 30)]


@pytest.fixture(params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest, backbone: Callable[..., Path]) -> Any:
    return load_causal(backbone(request.param))


def test_greedy_equals_generate_row_by_row(model: Any) -> None:
    mine = Sampler(model, end_ids=[2], batch=4).generate(PROMPTS, Sampling(temperature=0, max_tokens=12), [0] * 4)
    for prompt, one in zip(PROMPTS, mine, strict=True):
        theirs = model.generate(
            torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=2, pad_token_id=0, bos_token_id=None
        )[0, len(prompt) :].tolist()
        assert list(one.ids) == theirs
        assert one.finished == (theirs[-1] == 2)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_equal_a_fresh_forward(model: Any, temperature: float) -> None:
    drawn = Sampler(model, end_ids=[2], batch=3).generate(PROMPTS, Sampling(temperature=temperature, max_tokens=10), [5, 6, 7, 8])
    for prompt, one in zip(PROMPTS, drawn, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *one.ids]])).logits[0, len(prompt) - 1 : -1].float()
        logprobs = torch.log_softmax(logits / temperature, -1)[range(len(one.ids)), list(one.ids)]
        assert torch.allclose(torch.tensor(one.logprobs), logprobs, atol=1e-5)


def test_token_logprobs_equal_the_sampled_ones(model: Any) -> None:
    drawn = Sampler(model, end_ids=[2], batch=4).generate(PROMPTS, Sampling(max_tokens=9), [1, 2, 3, 4])
    padded = pad_right([Encoded((*p, *d.ids), len(p)) for p, d in zip(PROMPTS, drawn, strict=True)], 0)
    mask_BT = padded.reply_mask_BT[:, 1:]
    with torch.no_grad():
        logprobs_BT, entropy_BT = token_logprobs(model, padded, mask_BT, entropy=True)
    for row, mask, one in zip(logprobs_BT, mask_BT, drawn, strict=True):
        assert torch.allclose(row[mask], torch.tensor(one.logprobs), atol=1e-5)
        assert (row[~mask] == 0).all()
    assert entropy_BT is not None
    assert (entropy_BT[mask_BT] > 0).all()


def test_a_reply_does_not_depend_on_its_neighbours(model: Any) -> None:
    settings = Sampling(max_tokens=10)
    together = Sampler(model, end_ids=[2], batch=4).generate(PROMPTS, settings, [11, 12, 13, 14])
    alone = [
        Sampler(model, end_ids=[2], batch=1).generate([p], settings, [s])[0]
        for p, s in zip(PROMPTS, [11, 12, 13, 14], strict=True)
    ]
    assert [r.ids for r in together] == [r.ids for r in alone]
    reversed_ = Sampler(model, end_ids=[2], batch=2).generate(PROMPTS[::-1], settings, [14, 13, 12, 11])[::-1]
    assert [r.ids for r in together] == [r.ids for r in reversed_]


def test_finished_rows_end_with_the_end_token_and_nothing_after() -> None:
    # 40 draws from the same prompt with an end token of probability > 0: some end early, all obey the rule.
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, pad_token_id=0
        )
    )
    drawn = Sampler(model, end_ids=[2, 3], batch=40).generate([(4, 5)] * 40, Sampling(max_tokens=6), list(range(40)))
    assert {r.finished for r in drawn} == {True, False}
    for r in drawn:
        assert len(r.ids) == len(r.logprobs)
        assert not set(r.ids[:-1]) & {2, 3}
        assert r.finished == (r.ids[-1] in (2, 3))
        assert r.finished or len(r.ids) == 6


def test_stop_strings_and_seeds() -> None:
    assert cut_at("a STOP b", ["STOP", "b"]) == ("a ", True)
    assert cut_at("nothing", ["STOP"]) == ("nothing", False)
    assert row_seed("k", 0) != row_seed("k", 1) != row_seed("j", 1)


def test_decode_reply_drops_the_end(backbone: Callable[..., Path]) -> None:
    encoder = Encoder(load_tokenizer(backbone("llama")), 128)
    assert encoder.decode_reply(encoder.reply_ids("a cat", finished=True)) == "a cat"
