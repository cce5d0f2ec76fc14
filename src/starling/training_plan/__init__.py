"""What the two trainings of a run need before a GPU is touched: parameters, steps, tokens, memory, GPU-hours.

Counts of parameters, steps and replies are exact. The rest are sums from the shapes (`shapes`), in this way:

arithmetic   forward = 2 per weight and token + 4 · width of the heads per pair of a token and one it sees (arXiv 2001.08361's
             count with attention); backward through a trained layer twice that, through one with adapters once; one more forward
             where activations are computed again. The language-model head runs on reply tokens only.
memory       weights, gradients and AdamW's two moments in fp32, bf16 copies of what is trained; activations as autograd
             keeps them in one layer of Llama (measured in the tests); keys and values in bf16.
hours        arithmetic at SHARE_OF_PEAK of the device's bf16 peak; a decoding step as long as reading weights and cache at
             SHARE_OF_BANDWIDTH takes, or the arithmetic, or launching its kernels.

The shares are assumptions, no measurements: expect an error of a factor of two in hours, of a quarter in memory.

`expected` takes replies of the length that `forecast` assumes, `most` of the longest allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from starling.config import Config
from starling.errors import InputError
from starling.forecast import ASSUMED_REPLY_TOKENS
from starling.records import Prompt
from starling.training_plan.cost import (
    DEVICES,
    SECONDS_PER_LAYER,
    SHARE_OF_BANDWIDTH,
    SHARE_OF_MEMORY,
    SHARE_OF_PEAK,
    TOO_SMALL,
    Fact,
    Needs,
)
from starling.training_plan.stages import policy_needs, reward_needs

__all__ = ["Needs", "Unknown", "as_json", "fact_rows", "memory_rows", "notes", "plan_trainings", "time_rows"]


@dataclass(frozen=True)
class Unknown:
    """A training whose needs cannot be told, and why."""

    stage: str
    why: str


def plan_trainings(config: Config, todo: Sequence[str], prompts: Sequence[Prompt]) -> list[Needs | Unknown]:
    """What the trainings among the stages `todo` need; one that cannot be planned says why.

    Args:
        config: the settings.
        todo: stages still to do.
        prompts: those of the run, as far as they are known.
    """
    makers: dict[str, Callable[[Config, Sequence[Prompt]], Needs]] = {"reward": reward_needs, "policy": policy_needs}
    found: list[Needs | Unknown] = []
    for stage, make in makers.items():
        if stage in todo:
            try:
                found.append(make(config, prompts))
            except InputError as error:
                found.append(Unknown(stage, f"{error.what} ({error.where}); {error.cure}"))
    return found


# ── rows ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def fact_rows(needs: Needs) -> list[dict[str, Any]]:
    """One row per number, for a table."""
    passes = Fact("PFLOP, decoding left out", needs.flops[0] / 1e15, needs.flops[1] / 1e15)
    return [
        {"stage": needs.stage, "what": fact.what, "expected": _whole(fact.expected), "most": _whole(fact.most)}
        for fact in (*needs.facts, passes)
    ]


def notes(found: Sequence[Needs]) -> Iterable[str]:
    """What the numbers rest on, in words."""
    for needs in found:
        yield f"{needs.stage}: {needs.basis}."
    large = [needs for needs in found if needs.parameters >= TOO_SMALL]
    yield f"Expected: replies of {ASSUMED_REPLY_TOKENS} tokens where no others are known; most: as long as allowed."
    if large:
        yield (
            "Memory: weights and optimiser in fp32, passes in bf16, several GPUs as FSDP2 (with DDP each holds what one does); "
            f"it fits where it takes {100 * SHARE_OF_MEMORY:.0f} % of a GPU at most."
        )
        yield "Hours: " + ", ".join(
            f"{d.name} {SHARE_OF_PEAK * d.tflops:.0f} TFLOP/s and {SHARE_OF_BANDWIDTH * d.bandwidth:,.0f} GB/s" for d in DEVICES
        )
        yield (
            f"({100 * SHARE_OF_PEAK:.0f} and {100 * SHARE_OF_BANDWIDTH:.0f} % of the data sheets), no layer of a decoding step "
            f"in less than {1e3 * SECONDS_PER_LAYER:g} ms. Assumptions: expect a factor of two."
        )
    small = [needs.stage for needs in found if needs.parameters < TOO_SMALL]
    if small:
        yield f"No hours and memory for {', '.join(small)}: so small a model waits for its host, not for arithmetic."


def memory_rows(needs: Needs) -> list[dict[str, Any]]:
    """Gigabytes (10⁹ bytes) per GPU by part, on one GPU (or each one of DDP) and spread over 8; none for a tiny model."""
    if needs.parameters < TOO_SMALL:
        return []
    held: list[tuple[str, str, float, float]]
    held = [(h.what, h.when, h.on_each(1), h.on_each(8)) for h in needs.held if h.on_each(1) or h.on_each(8)]
    held.append(("at the worst moment", "", needs.bytes(1), needs.bytes(8)))
    held.append(("(activations without checkpointing)", "", needs.unchecked, needs.unchecked))
    return [
        {"stage": needs.stage, "memory in GB per GPU": what, "when": when, "1 GPU": _gb(one), "8 GPUs": _gb(eight)}
        for what, when, one, eight in held
    ]


def time_rows(needs: Needs) -> list[dict[str, Any]]:
    """Per device: the least number that holds the training, and 8; hours and GPU-hours there."""
    if needs.parameters < TOO_SMALL:
        return []
    rows: list[dict[str, Any]] = []
    nothing = dict.fromkeys(("stage", "device", "GB per GPU", "hours", "GPU-hours", "most hours"))
    for device in DEVICES:
        least = needs.fits_on(device)
        if least is None:
            rows.append({**nothing, "stage": needs.stage, "device": f"{device.name} {device.gigabytes:g} GB: too small"})
            continue
        for processes in sorted({least, max(least, 8)}):
            expected, most = needs.hours(device, processes)
            rows.append(
                {
                    "stage": needs.stage, "device": f"{processes} x {device.name} {device.gigabytes:g} GB",
                    "GB per GPU": _gb(needs.bytes(processes)), "hours": _hours(expected),
                    "GPU-hours": _hours(expected * processes), "most hours": _hours(most),
                }
            )  # fmt: skip
    return rows


def as_json(found: Sequence[Needs | Unknown]) -> dict[str, Any]:
    """By stage: everything above as plain JSON."""
    return {
        needs.stage: {"unknown": needs.why}
        if isinstance(needs, Unknown)
        else {
            "facts": {fact.what: {"expected": fact.expected, "most": fact.most} for fact in needs.facts},
            "flops": {"expected": needs.flops[0], "most": needs.flops[1]},
            "basis": needs.basis,
            "memory": memory_rows(needs),
            "devices": time_rows(needs),
        }
        for needs in found
    }


def _whole(number: float) -> float:
    return round(number) if number >= 100 or number == int(number) else float(f"{number:.3g}")


def _gb(size: float) -> float:
    return round(size / 1e9, 1)


def _hours(hours: float) -> float:
    return round(hours) if hours >= 100 else round(hours, 1)
