"""What passes cost: arithmetic, memory, time; pure formulas over the shape of a model and the data sheet of a device.

Sources: arXiv 2001.08361 (two per weight and token forward, twice that backward), arXiv 2205.05198 (activations); what autograd
keeps in a layer is counted in the tests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from starling.config import FullTraining, LastLayers, LoRA, Trained
from starling.shapes import Shape

SHARE_OF_PEAK = 0.4
"""Of a device's arithmetic in forward and backward passes; 0.35 to 0.55 is what large trainings report (arXiv 2204.02311)."""
SHARE_OF_BANDWIDTH = 0.5
"""Of a device's memory bandwidth while decoding; our guess."""
SECONDS_PER_LAYER = 5e-4
"""Least time of one layer in one decoding step, for launching its kernels one by one from Python; our guess."""
SHARE_OF_MEMORY = 0.9
"""A device holds what needs no more than this share of it: the rest is the allocator's and the libraries'."""
LOGITS_AT_ONCE = 1 << 26
"""Of the language-model head, which goes tile by tile over the tokens of replies."""
BYTES_PER_LOGIT = 12
"""Three fp32 tensors of a tile: logits, their softmax, the gradient."""
PROCESSES = (1, 2, 4, 8, 16, 32, 64)
TOO_SMALL = 50_000_000
"""Parameters below which a GPU waits for its host: no hours are given."""


@dataclass(frozen=True)
class Device:
    """A GPU as its data sheet has it."""

    name: str
    gigabytes: float
    tflops: float
    """Dense bf16, 10¹² per second."""
    bandwidth: float
    """10⁹ bytes per second."""


DEVICES = (
    Device("H100 SXM", 80, 989, 3350),
    Device("A100 SXM", 80, 312, 2039),
    Device("L40S", 48, 362, 864),
    Device("RTX 4090", 24, 165, 1008),
)
"""NVIDIA's data sheets; the 4090's figure is the one with fp32 accumulation."""


@dataclass(frozen=True)
class Fact:
    """A number of a training, e.g. Fact("replies sampled", 140_224, 140_224)."""

    what: str
    expected: float
    most: float


@dataclass(frozen=True)
class Held:
    """Something in a GPU's memory."""

    what: str
    bytes: float
    """Of it all; of one row where it has `rows`."""
    spread: bool = False
    """Whether FSDP2 shares it out."""
    when: Literal["always", "sampling", "update"] = "always"
    several: bool | None = None
    """True: only with several processes; False: only with one; None: either way."""
    rows: tuple[int, int] | None = None
    """Most rows on one process, and rows of all processes together."""

    def on_each(self, processes: int) -> float:
        """Bytes per GPU."""
        if self.several is not None and self.several != (processes > 1):
            return 0.0
        if self.rows is not None:
            return self.bytes * min(self.rows[0], math.ceil(self.rows[1] / processes))
        return self.bytes / processes if self.spread else self.bytes


@dataclass(frozen=True)
class Decoding:
    """Replies drawn token by token."""

    rounds: int
    """How often replies are drawn."""
    replies: int
    """In each round, over all processes."""
    rows: int
    """Most replies decoded together on one process."""
    prompt: float
    reply: float
    longest: int
    shape: Shape

    def seconds(self, device: Device, processes: int) -> float:
        """On each of `processes` devices: a round lasts until the longest reply is over; finished rows are filled again."""
        each = math.ceil(self.replies / processes)
        rows = min(self.rows, each)
        steps = each * self.reply / rows + max(0.0, self.longest - self.reply)
        seen = self.prompt + self.reply / 2
        read = 2.0 * self.shape.causal + rows * seen * self.shape.cache_bytes(2)
        flops = self.shape.layers * self.shape.layer_flops(rows, rows * seen) + self.shape.head_flops(rows)
        step = max(
            read / (device.bandwidth * 1e9 * SHARE_OF_BANDWIDTH),
            flops / (device.tflops * 1e12 * SHARE_OF_PEAK),
            self.shape.layers * SECONDS_PER_LAYER,
        )
        return self.rounds * steps * step


@dataclass(frozen=True)
class Needs:
    """What one training needs."""

    stage: str
    facts: tuple[Fact, ...]
    flops: tuple[float, float]
    """Of all passes together, expected and at most; decoding left out."""
    decoding: tuple[tuple[Decoding, ...], tuple[Decoding, ...]]
    """Expected and at most."""
    held: tuple[Held, ...]
    basis: str
    """Where the lengths and the number of items come from."""
    parameters: int
    """Of the model that is trained."""
    unchecked: float
    """Bytes of activations if gradient_checkpointing were "off"."""

    def bytes(self, processes: int) -> float:
        """Per GPU at the worst moment."""
        total = {
            when: sum(h.on_each(processes) for h in self.held if h.when == when) for when in ("always", "sampling", "update")
        }
        return total["always"] + max(total["sampling"], total["update"])

    def hours(self, device: Device, processes: int) -> tuple[float, float]:
        """From start to end, expected and at most."""
        passes = [f / (device.tflops * 1e12 * SHARE_OF_PEAK) / processes for f in self.flops]
        drawn = [sum(d.seconds(device, processes) for d in one) for one in self.decoding]
        return (passes[0] + drawn[0]) / 3600, (passes[1] + drawn[1]) / 3600

    def fits_on(self, device: Device) -> int | None:
        """Least number of such devices that hold it; None when no number in PROCESSES does."""
        room = device.gigabytes * 1e9 * SHARE_OF_MEMORY
        return next((p for p in PROCESSES if self.bytes(p) <= room), None)


# ── passes ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def trained_parameters(shape: Shape, trained: Trained, head: int) -> int:
    """How many weights are trained; `head` of them lie outside the trunk and always are, unless tied to the embeddings."""
    if isinstance(trained, FullTraining):
        return shape.trunk + head
    if isinstance(trained, LastLayers):
        return trained.layers * shape.layer + head
    return shape.lora(trained.rank, trained.target_modules) + head


def pass_flops(shape: Shape, trained: Trained | None, again: bool, tokens: float, pairs: float) -> float:
    """Of the trunk: a forward pass (`trained` None), or one with its backward pass; `again`: with checkpointing."""
    forward = shape.layer_flops(tokens, pairs)
    if trained is None:
        return shape.layers * forward
    if isinstance(trained, LastLayers):
        return (shape.layers + min(trained.layers, shape.layers) * (2 + again)) * forward
    return shape.layers * (1 + (1 if isinstance(trained, LoRA) else 2) + again) * forward


def layer_bytes(shape: Shape, bf16: bool) -> int:
    """What autograd keeps per token inside one layer of a Llama: inputs of norms, linear layers, attention and activation.

    Under autocast the residual stream and the norms stay fp32, and every linear layer keeps its own bf16 copy of its input.
    """
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    if bf16:
        return 26 * shape.hidden + 4 * queries + 4 * keys + 8 * shape.inner
    return 24 * shape.hidden + 8 * queries + 8 * keys + 16 * shape.inner


def activation_bytes(shape: Shape, trained: Trained, tokens: int, *, bf16: bool, again: bool) -> float:
    """Of a micro-batch: all trained layers' inside, or with checkpointing their inputs and the inside of one."""
    layers = min(trained.layers, shape.layers) if isinstance(trained, LastLayers) else shape.layers
    if not layers:
        return 0.0
    inside = layer_bytes(shape, bf16)
    return float(tokens * (4 * shape.hidden * layers + inside) if again else tokens * layers * inside)
