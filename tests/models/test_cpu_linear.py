"""Linear layers through oneDNN: the numbers and gradients of `F.linear`, with whatever is done to a model."""

import copy
import gc
import io
import pickle
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from starling.models import cpu_linear
from starling.models.cpu_linear import add_products, linear, product, use_onednn
from starling.models.load import load_causal, save_folder

pytestmark = pytest.mark.skipif(cpu_linear._linear is None, reason="torch without oneDNN")


@pytest.fixture(autouse=True)
def small_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_linear, "_LEAST_WORK", 1)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for every product that oneDNN did, and what it did is done."""
    done: list[int] = []
    operator = cpu_linear._linear
    assert operator is not None

    def counted(*given: Any) -> Any:
        done.append(len(given[0]))
        return operator(*given)

    monkeypatch.setattr(cpu_linear, "_linear", counted)
    return done


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def gradients(f: Callable[..., Tensor], *given: Tensor | None) -> list[Tensor | None]:
    """The result, and the gradients of a weighted sum of it."""
    leaves = [None if x is None else x.detach().clone().requires_grad_(x.requires_grad) for x in given]
    y = f(*leaves)
    (y * torch.cos(torch.arange(y.numel()).view_as(y))).sum().backward()  # type: ignore[no-untyped-call]
    return [y.detach(), *(None if x is None else x.grad for x in leaves)]


def assert_alike(ours: list[Tensor | None], torchs: list[Tensor | None]) -> None:
    for a, b in zip(ours, torchs, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert a.shape == b.shape
            assert (a - b).norm() <= 1e-6 * b.norm()


# ── the numbers ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(24,), *((n, 24) for n in (1, 7, 8, 511, 512, 513, 5000)), (3, 5, 24), (128, 1, 24)])
def test_the_numbers_and_gradients_of_torch(shape: tuple[int, ...], bias: bool, calls: list[int]) -> None:
    given = [random(*shape), random(40, 24, seed=1), random(40, seed=2) if bias else None]
    for x in given:
        _ = x is not None and x.requires_grad_()
    ours = gradients(linear, *given)
    rows = given[0].numel() // 24
    # forward, and the gradients by the input and by the weight, whose rows are the layer's outputs
    at_once = [count for _, count in cpu_linear._pieces(rows)]
    assert Counter(calls) == Counter(2 * at_once + [40] * len(at_once))
    assert_alike(ours, gradients(F.linear, *given))
    with torch.no_grad():
        assert_alike([linear(*given)], [F.linear(*given)])


def test_pieces_by_hand() -> None:
    assert [cpu_linear._pieces(n) for n in (0, 7, 8, 64, 72)] == [[], [], [(0, 8)], [(0, 64)], [(0, 64), (64, 8)]]
    assert cpu_linear._pieces(1024 + 3 * 64 + 5 * 8 + 1) == [(0, 512), (512, 512), (1024, 192), (1216, 40)]


def test_few_numbers_of_rows_whatever_comes() -> None:
    """oneDNN keeps a kernel for each."""
    assert len({count for n in range(5000) for _, count in cpu_linear._pieces(n)}) == 15


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)])
def test_what_is_frozen_gets_no_gradient_and_keeps_nothing(wanted: tuple[int, ...]) -> None:
    given = [random(9, 24), random(40, 24, seed=1), random(40, seed=2)]
    for i in wanted:
        given[i].requires_grad_()
    kept: dict[Any, list[int]] = {linear: [], F.linear: []}
    found = []
    for f, sizes in kept.items():
        with torch.autograd.graph.saved_tensors_hooks(lambda x, to=sizes: to.append(x.numel()) or x, lambda x: x):
            y = f(*given)
        found.append(y)
        assert y.requires_grad
    assert sorted(kept[linear]) == sorted(kept[F.linear])
    assert_alike(gradients(linear, *given), gradients(F.linear, *given))


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.T.contiguous().T,  # transposed in memory
        lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]],  # a part of wider rows
        lambda x: torch.cat([x, x])[::2],
        lambda x: x[:1].expand(len(x), -1),
        lambda x: F.pad(x.flatten(), (1, 0))[1:].view_as(x),  # at an odd address
    ],
)
def test_any_strides(change: Callable[[Tensor], Tensor]) -> None:
    x, w, g = random(70, 24), random(40, 24, seed=1), random(70, 40, seed=2)
    for a, b, c in [(change(x), w, g), (x, change(w), g), (x, w, change(g))]:
        leaves = [a.detach().requires_grad_(), b.detach().requires_grad_()]
        ours = torch.autograd.grad(linear(*leaves), leaves, c)
        assert_alike([linear(a, b), *ours], [F.linear(a, b), *torch.autograd.grad(F.linear(*leaves), leaves, c)])
        assert_alike([product(a, b)], [a @ b.T])
        total = torch.ones(40, 24)
        add_products(total, c, a)
        assert_alike([total], [1 + c.T @ a])


def test_a_gradient_that_is_one_number_everywhere() -> None:
    w = random(40, 24).requires_grad_()
    linear(random(70, 24, seed=1), w).sum().backward()  # type: ignore[no-untyped-call]
    assert w.grad is not None
    assert_alike([w.grad], [random(70, 24, seed=1).sum(0).expand(40, 24)])


def test_a_gradient_of_a_gradient_is_refused() -> None:
    x, w = random(9, 24).requires_grad_(), random(40, 24).requires_grad_()
    (grad,) = torch.autograd.grad(linear(x, w).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()  # type: ignore[no-untyped-call]


def test_the_same_bits_every_time() -> None:
    given = [random(1500, 48).requires_grad_(), random(40, 48, seed=1).requires_grad_(), None]
    first, again = gradients(linear, *given), gradients(linear, *given)
    assert all(torch.equal(a, b) for a, b in zip(first[:3], again[:3], strict=True) if a is not None and b is not None)


# ── where torch computes ─────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_not_plain_fp32_on_a_cpu_is_torchs(calls: list[int]) -> None:
    class Own(Tensor):
        pass

    x, w = random(9, 24), random(40, 24)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(x, w).dtype is torch.bfloat16
    assert linear(x.bfloat16(), w.bfloat16()).dtype is torch.bfloat16
    assert linear(x.double(), w.double()).dtype is torch.float64
    assert linear(x.to("meta"), w.to("meta")).device.type == "meta"
    assert isinstance(linear(x, w.as_subclass(Own)), Own)
    assert linear(random(0, 24), w).shape == (0, 40)
    with pytest.raises(RuntimeError, match="dtype"):
        linear(x, w.double())
    with pytest.raises(RuntimeError, match="shape"):
        linear(random(9, 23), w)
    assert not calls


def test_little_work_is_torchs(calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_linear, "_LEAST_WORK", 9 * 24 * 40)
    assert torch.equal(linear(random(8, 24), random(40, 24)), F.linear(random(8, 24), random(40, 24)))
    assert not calls
    linear(random(9, 24), random(40, 24))
    assert calls == [8]


def test_layers_of_somebody_else_are_left_alone() -> None:
    class Own(nn.Linear):
        pass

    wrapped = nn.Linear(4, 4)
    wrapped.forward = lambda x: x  # type: ignore[method-assign]
    model = nn.ModuleList([Own(4, 4), wrapped, nn.Linear(4, 4)])
    use_onednn(model)
    use_onednn(model)
    assert ["forward" in vars(m) for m in model] == [False, True, True]
    assert wrapped(1) == 1


# ── models ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_gpt2s_layer(calls: list[int]) -> None:
    layer = Conv1D(40, 24)
    plain = copy.deepcopy(layer)
    use_onednn(layer)
    x = random(3, 5, 24)
    for one in (plain, layer):
        one(x).square().sum().backward()
    assert len(calls) == 2
    assert_alike([layer.weight.grad, layer.bias.grad], [plain.weight.grad, plain.bias.grad])


def test_a_copy_computes_with_its_own_weights() -> None:
    model = nn.Sequential(nn.Linear(24, 40), nn.Linear(40, 8))
    use_onednn(model)
    x, before = random(9, 24), model(random(9, 24))
    stored = io.BytesIO()
    torch.save(model, stored)
    stored.seek(0)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(stored, weights_only=False)]
    shared = copy.deepcopy(model, {id(model[0].weight): model[0].weight})  # as the reference policy is made
    with torch.no_grad():
        for one in copies:
            assert torch.equal(one(x), before)
            one[0].weight.zero_()
            assert not torch.equal(one(x), before)
            assert torch.equal(model(x), before)
        model[1].weight.zero_()
        assert torch.equal(shared(x), before)
        model[0].weight.zero_()
        assert torch.equal(shared(x), shared[1](model[0].bias.expand(9, -1)))


def test_weights_go_when_the_model_goes() -> None:
    model = nn.Sequential(nn.Linear(24, 40))
    use_onednn(model)
    weight = weakref.ref(model[0].weight)
    gc.disable()
    try:
        del model
        assert weight() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(reentrant: bool, calls: list[int]) -> None:
    layer = nn.Linear(24, 40)
    use_onednn(layer)
    x = random(1500, 24).requires_grad_()
    checkpoint(layer, x, use_reentrant=reentrant).square().sum().backward()  # type: ignore[no-untyped-call]
    assert len(calls) == 2 * 4 + 4 + 4  # twice forward, backward by both
    want = torch.autograd.grad(F.linear(x, layer.weight, layer.bias).square().sum(), [x, layer.weight, layer.bias])
    assert_alike([x.grad, layer.weight.grad, layer.bias.grad], list(want))


def test_layers_under_adapters(calls: list[int]) -> None:
    from peft import LoraConfig, LoraModel

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 40), nn.Linear(40, 8))
    use_onednn(model)
    adapted = LoraModel(model, {"default": LoraConfig(r=2, target_modules=["0"], init_lora_weights=False)}, "default")
    x = random(9, 24)
    before = adapted(x)
    before.sum().backward()
    base = adapted.model[0].base_layer
    assert calls == [8, 8, 8]  # both layers forward, by the input of the second: nothing but adapters is trained
    assert base.weight.grad is None
    merged = adapted.merge_and_unload()
    assert merged[0] is base
    assert "forward" in vars(base)
    assert torch.allclose(merged(x), before, atol=1e-5)


def test_a_loaded_model_computes_so_and_saves_the_same_bytes(tmp_path: Path, decoder_tokenizer: Any, calls: list[int]) -> None:
    torch.manual_seed(0)
    plain = tf.LlamaForCausalLM(
        tf.LlamaConfig(vocab_size=300, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    ).eval()
    save_folder(tmp_path / "a", plain, decoder_tokenizer)
    loaded = load_causal(tmp_path / "a")
    assert {type(m) for m in loaded.modules()} == {type(m) for m in plain.modules()}
    assert list(loaded.state_dict()) == list(plain.state_dict())
    save_folder(tmp_path / "b", loaded, decoder_tokenizer)
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    ids = torch.arange(60).view(2, 30)
    with torch.no_grad():
        assert torch.allclose(loaded(input_ids=ids).logits, plain(input_ids=ids).logits, atol=1e-5)
    assert calls == [56] * (2 * 7 + 1)  # of 60 rows


# ── packed weights ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("layer", [nn.Linear(24, 40), nn.Linear(24, 40, bias=False), Conv1D(40, 24)])
@pytest.mark.parametrize("shape", [(7, 24), (8, 24), (32, 1, 24), (1, 77, 24), (24,)])
@torch.no_grad()
def test_packed_weights_give_the_same_bits(layer: nn.Module, shape: tuple[int, ...], calls: list[int]) -> None:
    layer = nn.Sequential(copy.deepcopy(layer))
    use_onednn(layer)
    x = random(*shape)
    before = layer(x)
    del calls[:]
    with cpu_linear.packed(layer):
        found = layer(x)
        assert calls == [n for _, n in cpu_linear._pieces(x.numel() // 24)] or calls == [shape[0]]
        assert all(f.packed is not None for f in forwards(layer))
    assert torch.equal(found, before)
    assert all(f.packed is None for f in forwards(layer))


def test_packed_weights_are_for_passes_without_gradients(calls: list[int]) -> None:
    """A pass with gradients takes the weights themselves, so it sees that they have changed."""
    model = nn.Sequential(nn.Linear(24, 40))
    use_onednn(model)
    x = random(8, 24)
    with cpu_linear.packed(model):
        with torch.no_grad():
            stale = model(x)
            model[0].weight.add_(1)  # type: ignore[operator]
            assert torch.equal(model(x), stale)
        assert torch.allclose(model(x), F.linear(x, model[0].weight, model[0].bias), atol=1e-5)  # type: ignore[arg-type]
    with torch.no_grad():
        assert not torch.equal(model(x), stale)


def test_packed_weights_go_after_an_error_and_are_not_made_for_large_models(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(24, 40), nn.Linear(40, 8))
    use_onednn(model)
    with pytest.raises(KeyError), cpu_linear.packed(model):
        raise KeyError
    assert all(f.packed is None for f in forwards(model))
    monkeypatch.setattr(cpu_linear, "_MOST_PACKED", 4 * (24 * 40 + 40 * 8) - 1)
    with cpu_linear.packed(model):
        assert all(f.packed is None for f in forwards(model))


def forwards(model: nn.Module) -> list[cpu_linear._Forward]:
    return [vars(m)["forward"] for m in model.modules() if "forward" in vars(m)]
