"""Linear layers through oneDNN: the same numbers, and everything as before afterwards."""

import pytest
import torch
from torch import nn

from starling.models import cpu_linear
from starling.models.cpu_linear import faster_linears

needs_onednn = pytest.mark.skipif(cpu_linear._linear is None, reason="torch without oneDNN")


@needs_onednn
@pytest.mark.parametrize("shape", [(9, 24), (4, 5, 24), (1, 24), (128, 1, 24)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_same_numbers(shape: tuple[int, ...], bias: bool) -> None:
    layer = nn.Sequential(nn.Linear(24, 40, bias=bias))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        plain = layer(x)
        with faster_linears(layer):
            assert "forward" in vars(layer[0])
            fast = layer(x)
            with torch.no_grad():
                layer[0].weight.mul_(2)  # weights that change are seen: nothing is packed
            doubled = layer(x)
    assert fast.shape == plain.shape
    assert torch.allclose(fast, plain, atol=1e-5)
    assert not torch.allclose(doubled, fast, atol=1e-2)
    assert not vars(layer[0]).get("forward")


def test_what_is_not_a_plain_fp32_linear_is_left_alone() -> None:
    class Own(nn.Linear):
        pass

    wrapped = nn.Linear(4, 4)
    wrapped.forward = lambda x: x  # type: ignore[method-assign]
    model = nn.ModuleList([Own(4, 4), nn.Linear(4, 4).bfloat16(), wrapped])
    with faster_linears(model):
        assert ["forward" in vars(m) for m in model] == [False, False, True]
    assert "forward" in vars(wrapped)
