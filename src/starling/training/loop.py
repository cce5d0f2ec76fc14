"""What a step of training is made of: accelerator, optimiser, schedule, clipping, determinism.

accelerate places the model, casts and scales; the loop itself (plan, micro-batches, normaliser) is each stage's own few
lines, because no trainer class fits K-wise rankings and policy rollouts alike. On a CPU everything is fp32: bf16 autocast
is slower there. Source of the recipe: Starling's reward model (AdamW, 5 % warm-up, then constant).
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from starling.config import OptimizerSection
from starling.errors import TrainingError


def set_determinism(seed: int, threads: int = 0) -> None:
    """Seed every generator and ask for deterministic kernels; `threads` 0 leaves torch's own number.

    Bitwise equality needs the same number of threads: sums are split over them.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS on its first call
    torch.use_deterministic_algorithms(True, warn_only=True)
    # filling uninitialised memory costs time, and no kernel here reads such memory
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if threads > 0:
        torch.set_num_threads(threads)


def make_accelerator() -> Accelerator:
    """One process; bf16 mixed precision on a GPU that has it, fp32 elsewhere.

    Raises:
        TrainingError: started with several processes, which the stages do not share work over yet.
    """
    cuda = torch.cuda.is_available()
    accelerator = Accelerator(cpu=not cuda, mixed_precision="bf16" if cuda and torch.cuda.is_bf16_supported() else "no")
    if accelerator.num_processes != 1:
        raise TrainingError(
            f"Training was started with {accelerator.num_processes} processes; it uses one",
            where="WORLD_SIZE",
            cure="start it without torchrun or accelerate launch",
        )
    return accelerator


def schedule_factor(step: int, settings: OptimizerSection, total_steps: int) -> float:
    """Share of the peak learning rate in step 0, 1, …: a linear rise over the warm-up, then the schedule.

    The first step of a warm-up of n steps has 1/n of the peak, so no step is wasted at rate 0; cosine and linear reach 0
    one step after the last.
    """
    warmup = math.ceil(settings.warmup_fraction * total_steps)
    if step < warmup:
        return (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    if settings.schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * done))
    return 1.0 - done if settings.schedule == "linear" else 1.0


def make_optimizer(
    parameters: Iterable[torch.nn.Parameter], settings: OptimizerSection, total_steps: int
) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW and its schedule; weight decay acts on matrices only (not on biases and norms).

    Call `scheduler.step()` once after every `optimizer.step()`.
    """
    trained = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=settings.learning_rate, betas=settings.betas, eps=1e-8, fused=True
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule_factor(step, settings, total_steps))
    return optimizer, scheduler


def apply_step(
    accelerator: Accelerator, parameters: Iterable[torch.nn.Parameter], optimizer: Any, scheduler: Any, max_grad_norm: float
) -> float:
    """Clip the accumulated gradient, update, advance the schedule, clear; returns the gradient norm before clipping.

    Raises:
        TrainingError: the gradient is not finite; nothing was updated.
    """
    norm = accelerator.clip_grad_norm_(list(parameters), max_grad_norm)
    value = float(norm) if norm is not None else 0.0
    if not math.isfinite(value):
        raise TrainingError(
            "The gradient is not finite", where="optimiser step", cure="lower the learning rate; check the data of this step"
        )
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad(set_to_none=True)
    return value
