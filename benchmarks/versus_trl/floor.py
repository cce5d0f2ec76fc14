"""The least a ranking can cost: every different token once through every matrix, at the speed this machine multiplies.

    FLOPs = 3 · ( 2 · T · Σ in·out  +  4 · A · width · layers )

T are the ranking's different tokens (its prompt once, every answer once), Σ runs over the linear layers of the blocks, A are
the attended pairs (each token with itself and what stands before it in its own conversation; one such pair costs two
products of `width` = heads · head size), and 3 = forward + gradients of inputs + gradients of weights. Norms, activations,
softmax, positions, the embedding, the loss and the optimiser count as nothing: no program reaches the floor.

The speed is measured in the same process and with the same threads as the training: forward and both backward products of
each linear shape of the model, at T rows, on CPU-seconds, by torch's own products and by those that Starling's linear layers use
(oneDNN's). The faster of the two counts, else a program could fall below the floor by multiplying faster than it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.versus_trl.meter import cpu_seconds


@dataclass(frozen=True)
class Work:
    """What one ranking asks for."""

    tokens: int
    attended: int


def work_of(prompt: int, responses: Sequence[int]) -> Work:
    """Of a prompt of `prompt` tokens and answers of these many tokens behind it."""
    attended = prompt * (prompt + 1) // 2 + sum(r * prompt + r * (r + 1) // 2 for r in responses)
    return Work(prompt + sum(responses), attended)


def work_of_ids(ranking: Sequence[Sequence[int]]) -> Work:
    """The same from token ids: the prompt is what all conversations begin with."""
    prompt = 0
    while all(len(ids) > prompt and ids[prompt] == ranking[0][prompt] for ids in ranking):
        prompt += 1
    return work_of(prompt, [len(ids) - prompt for ids in ranking])


def flops(work: Work, linears: Sequence[tuple[int, int]], width: int, layers: int) -> float:
    """Forward and backward. `linears`: (in, out) of every linear layer in all blocks."""
    return 3.0 * (2.0 * work.tokens * sum(i * o for i, o in linears) + 4.0 * work.attended * width * layers)


def linears_of(model: Any) -> list[tuple[int, int]]:
    """(in, out) of the linear layers inside the blocks of a transformers model (a block's name holds its number)."""
    import torch

    return [
        (module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and any(part.isdigit() for part in name.split("."))
    ]


def matmul_rate(linears: Sequence[tuple[int, int]], rows: int, repeats: int = 5) -> float:
    """FLOPs per CPU-second of the model's own products at `rows` tokens, forward and backward, in the fastest way that there is
    in this process; median of `repeats`."""
    import torch

    from starling.models.cpu_linear import add_products, product

    def by_torch(x: Any, w: Any, g: Any, sum_: Any) -> None:
        torch.nn.functional.linear(x, w)
        g @ w
        g.T @ x

    def by_starling(x: Any, w: Any, g: Any, sum_: Any) -> None:
        product(x, w)
        product(g, w.T)
        add_products(sum_, g, x)

    shapes = Counter(linears)
    made = {
        # input, weight, gradient of the output, sum of gradients of the weight
        (i, o): (torch.randn(rows, i), torch.randn(o, i), torch.randn(rows, o), torch.zeros(o, i))
        for i, o in shapes
    }
    seconds: dict[Any, list[float]] = {by_torch: [], by_starling: []}
    with torch.no_grad():
        for _ in range(repeats + 1):
            for products, found in seconds.items():
                began = cpu_seconds()
                for shape, count in shapes.items():
                    for _ in range(count):
                        products(*made[shape])
                found.append(cpu_seconds() - began)
    return 6.0 * rows * sum(i * o for i, o in linears) / min(median(found[1:]) for found in seconds.values())
