"""Log-probabilities, entropies and their gradients tile by tile, against torch's own over all logits at once."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers as tf
from torch.utils._python_dispatch import TorchDispatchMode

from starling.errors import InputError
from starling.models import lm_head
from starling.models.lm_head import LogitsRule, check_logits, token_logprobs


def make(vocab: int = 61, size: int = 8, kind: Any = tf.LlamaForCausalLM, **more: Any) -> Any:
    wide = {"vocab_size": vocab, "hidden_size": size, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(kind.config_class(**wide, **{"pad_token_id": 0, **more}))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


def states(n: int, size: int = 8, vocab: int = 61) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, size, generator=generator), torch.randint(vocab, (n,), generator=generator)


def own(model: Any, hidden_ND: torch.Tensor, taken_N: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    rule = LogitsRule.of(model)
    logits = model.lm_head(hidden_ND) * rule.scale
    if rule.softcap is not None:
        logits = rule.softcap * torch.tanh(logits / rule.softcap)
    all_NV = torch.log_softmax(logits / temperature, -1)
    return all_NV.gather(1, taken_N[:, None])[:, 0], torch.distributions.Categorical(logits=all_NV).entropy()


def with_gradients(model: Any, compute: Any, n: int = 23, entropy: bool = True) -> list[torch.Tensor]:
    hidden_ND, taken_N = states(n)
    hidden_ND.requires_grad_()
    model.zero_grad()
    logprobs_N, entropy_N = compute(model, hidden_ND, taken_N)
    loss = (logprobs_N * torch.linspace(-1, 2, n)).sum()
    if entropy:
        loss = loss + (entropy_N * torch.linspace(1, -3, n)).sum()
    loss.backward()
    grads = [p.grad for p in model.lm_head.parameters()]
    return [logprobs_N, *([entropy_N] if entropy else []), hidden_ND.grad, *grads]


MODELS = {
    "llama": lambda: make(),
    "gemma2, soft-capped": lambda: make(
        kind=tf.Gemma2ForCausalLM, final_logit_softcapping=1.5, tie_word_embeddings=False, head_dim=4, num_key_value_heads=1
    ),
    "phi, with a bias": lambda: make(kind=tf.PhiForCausalLM),
    "cohere": lambda: make(kind=tf.CohereForCausalLM, logit_scale=0.25, tie_word_embeddings=False),
    "granite": lambda: make(kind=tf.GraniteForCausalLM, logits_scaling=3.0, tie_word_embeddings=False),
}


@pytest.mark.parametrize("entropy", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_values_and_gradients_are_those_of_torch(name: str, entropy: bool) -> None:
    model = MODELS[name]()
    expected = with_gradients(model, lambda m, h, t: own(m, h, t, 0.7), entropy=entropy)
    for tile in (1 << 26, 61 * 5, 1):

        def tiled(m: Any, h: torch.Tensor, t: torch.Tensor, tile: int = tile) -> Any:
            return token_logprobs(m, h, t, temperature=0.7, entropy=entropy, tile_logits=tile)

        ours = with_gradients(model, tiled, entropy=entropy)
        assert len(ours) == len(expected)
        for mine, theirs in zip(ours, expected, strict=True):
            assert float((mine - theirs).detach().norm() / theirs.detach().norm()) < 3e-6


def test_the_size_of_a_tile_changes_nothing() -> None:
    model = make()
    whole = with_gradients(model, lambda m, h, t: token_logprobs(m, h, t, entropy=True))
    for rows in (1, 2, 7, 22, 23, 24):
        tiled = with_gradients(model, lambda m, h, t, r=rows: token_logprobs(m, h, t, entropy=True, tile_logits=61 * r))
        for mine, theirs in zip(tiled, whole, strict=True):
            assert float((mine - theirs).detach().norm() / theirs.detach().norm()) < 1e-6


def test_a_head_that_is_not_trained_gets_no_gradient() -> None:
    model = make()
    model.lm_head.weight.requires_grad_(False)
    hidden_ND, taken_N = states(5)
    token_logprobs(model, hidden_ND.requires_grad_(), taken_N)[0].sum().backward()
    assert model.lm_head.weight.grad is None
    assert hidden_ND.grad is not None
    model.lm_head.weight.requires_grad_(True)
    token_logprobs(model, hidden_ND.detach(), taken_N)[0].sum().backward()
    assert float(model.lm_head.weight.grad.norm()) > 0
    with torch.no_grad():
        assert not token_logprobs(model, hidden_ND, taken_N)[0].requires_grad


def test_entropy_alone_has_a_gradient_and_none_unless_asked_for() -> None:
    model = make()
    hidden_ND, taken_N = states(5)
    hidden_ND.requires_grad_()
    _, entropy_N = token_logprobs(model, hidden_ND, taken_N, entropy=True)
    assert entropy_N is not None
    entropy_N.sum().backward()
    ours = hidden_ND.grad.clone()  # type: ignore[union-attr]
    hidden_ND.grad = None
    own(model, hidden_ND, taken_N, 1.0)[1].sum().backward()
    torch.testing.assert_close(ours, hidden_ND.grad, rtol=1e-5, atol=1e-6)
    assert token_logprobs(model, hidden_ND, taken_N)[1] is None


def test_the_gradient_can_be_taken_twice() -> None:
    model = make()
    hidden_ND, taken_N = states(5)
    hidden_ND.requires_grad_()
    loss = token_logprobs(model, hidden_ND, taken_N, entropy=True)[0].sum()
    loss.backward(retain_graph=True)
    once = hidden_ND.grad.clone()  # type: ignore[union-attr]
    loss.backward()
    torch.testing.assert_close(hidden_ND.grad, 2 * once)


def test_softmax_is_fp32_in_half_precision() -> None:
    model = make()
    hidden_ND, taken_N = states(40)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        ours, entropy_N = token_logprobs(model, hidden_ND, taken_N, entropy=True, tile_logits=61 * 7)
        all_NV = torch.log_softmax(model.lm_head(hidden_ND).float(), -1)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, all_NV.gather(1, taken_N[:, None])[:, 0], rtol=0, atol=1e-5)
    torch.testing.assert_close(entropy_N, -(all_NV.exp() * all_NV).sum(-1), rtol=0, atol=1e-5)


def test_gradients_in_half_precision_keep_the_weights_precision() -> None:
    model = make()
    exact = with_gradients(model, lambda m, h, t: token_logprobs(m, h, t, entropy=True))
    with torch.autocast("cpu", torch.bfloat16):
        half = with_gradients(model, lambda m, h, t: token_logprobs(m, h, t, entropy=True, tile_logits=61 * 5))
    for mine, theirs in zip(half, exact, strict=True):
        assert mine.dtype == torch.float32
        assert float((mine - theirs).detach().norm() / theirs.norm()) < 0.02


# ── memory ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class Alive(TorchDispatchMode):
    """Bytes of all tensors made inside that are alive, and the most there ever were; `outside` tensors do not count."""

    def __init__(self, *outside: torch.Tensor) -> None:
        super().__init__()
        self.now = self.most = 0
        self.seen = {tensor.untyped_storage().data_ptr() for tensor in outside}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.count(tensor.untyped_storage())
        return out

    def count(self, storage: Any) -> None:
        address, size = storage.data_ptr(), storage.nbytes()
        if address in self.seen or not size:
            return
        self.seen.add(address)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self.gone, address, size)

    def gone(self, address: int, size: int) -> None:
        self.seen.discard(address)
        self.now -= size


@contextmanager
def hooks(model: Any) -> Iterator[list[int]]:
    calls: list[int] = []
    handle = model.lm_head.register_forward_pre_hook(lambda *_: calls.append(1))
    yield calls
    handle.remove()


@pytest.mark.parametrize("entropy", [True, False])
def test_memory_is_that_of_a_few_tiles(entropy: bool) -> None:
    vocab, size, n, rows = 100_000, 4, 64, 6
    model = make(vocab, size, kind=tf.Gemma2ForCausalLM, final_logit_softcapping=5.0, head_dim=2, num_key_value_heads=1)
    hidden_ND, taken_N = states(n, size, vocab)
    hidden_ND.requires_grad_()
    tile, weights = 4 * rows * vocab, 4 * size * vocab
    with Alive(model.lm_head.weight, hidden_ND, taken_N) as forward:
        logprobs_N, entropy_N = token_logprobs(model, hidden_ND, taken_N, entropy=entropy, tile_logits=rows * vocab)
        kept = forward.now
    with Alive(model.lm_head.weight, hidden_ND, taken_N) as backward:
        ((logprobs_N + entropy_N) if entropy_N is not None else logprobs_N).sum().backward()
    assert tile < forward.most < 3.2 * tile
    assert kept < 0.01 * tile
    assert tile < backward.most < 3.2 * tile + weights  # the head's gradient
    assert 4 * n * vocab > 3.2 * tile + weights  # all logits at once would not fit in either bound


def test_logits_that_fit_in_a_tile_are_computed_once() -> None:
    model = make()
    hidden_ND, taken_N = states(6)
    products: list[int] = []
    original = lm_head._logits
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lm_head, "_logits", lambda *given: products.append(1) or original(*given))
        token_logprobs(model, hidden_ND.requires_grad_(), taken_N)[0].sum().backward()
        assert len(products) == 1
        products.clear()
        token_logprobs(model, hidden_ND, taken_N, tile_logits=61 * 3)[0].sum().backward()
        assert len(products) == 4


# ── the module ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_head_is_entered_through_its_module() -> None:
    model = make()
    hidden_ND, taken_N = states(6)
    own_forward = model.lm_head.forward
    with hooks(model) as calls:
        token_logprobs(model, hidden_ND, taken_N)
        assert calls == [1]
        assert model.lm_head.forward == own_forward
        assert model.lm_head(hidden_ND).shape == (6, 61)
        model.lm_head.forward = lambda hidden: hidden[:, :2]  # somebody else's wrapper stays
        token_logprobs(model, hidden_ND, taken_N)
        assert model.lm_head(hidden_ND).shape == (6, 2)
        del model.lm_head.forward
        with pytest.raises(RuntimeError):
            token_logprobs(model, hidden_ND, taken_N + 61)
        assert model.lm_head.forward == own_forward


# ── the check ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", MODELS)
def test_the_check_knows_what_classes_do_to_their_logits(name: str) -> None:
    check_logits(MODELS[name]())
    check_logits(MODELS[name]().to(torch.bfloat16))


def test_the_check_finds_what_is_not_known() -> None:
    model = make(kind=tf.GraniteForCausalLM, logits_scaling=3.0)
    original = model.forward

    def stranger(**given: Any) -> Any:
        out = original(**given)
        out.logits = out.logits * 1.2
        return out

    model.forward = stranger
    with pytest.raises(InputError, match="GraniteForCausalLM does something to its logits"):
        check_logits(model)


def test_a_head_that_is_no_linear_layer_is_refused() -> None:
    model = make()
    model.lm_head = torch.nn.Sequential(model.lm_head)
    with pytest.raises(InputError, match="no linear layer as its language-model head"):
        check_logits(model)
