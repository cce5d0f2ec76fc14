"""What a step of training is made of: accelerator, optimiser, schedule, clipping, determinism.

`engine` spreads a model over processes, `trainer` goes through the steps of a plan. On a CPU everything is fp32 by default:
bf16 autocast is slower there. Source of the recipe: Starling's reward model (AdamW, 5 % warm-up, then constant).
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, InitProcessGroupKwargs

from starling.config import OptimizerSection
from starling.errors import TrainingError

LONGEST_WAIT = timedelta(hours=6)
"""One process may tokenise a large dataset while the others wait. A process that dies is noticed at once by the launcher."""

MUON_ADAM_SHARE = 0.3
"""AdamW's rate beside Muon's (measured on the microworld: 0.02 and 0.006)."""


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


def is_on(variable: str, default: str = "false") -> bool:
    """Whether an environment variable of `accelerate launch` says yes."""
    return os.environ.get(variable, default).lower() in ("true", "1", "yes")


def make_accelerator(precision: Literal["auto", "fp32", "bf16"] = "auto") -> Accelerator:
    """The processes of this training and their devices, as torchrun or `accelerate launch` started them; one without.

    Args:
        precision: of forward passes; auto is bf16 on a GPU that has it, fp32 elsewhere (bf16 loses on a CPU).
    """
    cuda = torch.cuda.is_available()
    bf16 = precision == "bf16" or (precision == "auto" and cuda and torch.cuda.is_bf16_supported())
    AcceleratorState._reset_state()  # an earlier training of this process may have used another precision
    deepspeed = is_on("ACCELERATE_USE_DEEPSPEED")
    backend = None if cuda else "gloo"  # torch may be built with MPI, which accelerate would prefer
    processes = InitProcessGroupKwargs(backend=backend, timeout=LONGEST_WAIT) if "LOCAL_RANK" in os.environ else None
    return Accelerator(
        cpu=not cuda and not deepspeed,
        mixed_precision="bf16" if bf16 else "no",
        kwargs_handlers=[processes] if processes else None,
    )


def load_whole(accelerator: Accelerator) -> None:
    """From now on transformers loads whole models on every process; else it would spread them at once under ZeRO-3, or leave
    them empty on all processes but the first under accelerate's FSDP."""
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()


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


@dataclass(frozen=True)
class Apart:
    """Parameters with settings of their own inside a module that is trained, e.g. those of the critic beside a policy."""

    parameters: Sequence[torch.nn.Parameter]
    settings: OptimizerSection
    total_steps: int


def make_optimizer(
    trained: torch.nn.Module | Iterable[torch.nn.Parameter],
    settings: OptimizerSection,
    total_steps: int,
    apart: Sequence[Apart] = (),
) -> tuple[Any, Any]:
    """The optimiser of the settings and its schedule; weight decay acts on matrices only (not on biases and norms).

    Call `schedule.step()` once after every `optimizer.step()`.

    Args:
        trained: a module, or some of its parameters. Muon wants the module: it must know which matrices lie in its layers.
        settings: type, rates, schedule.
        total_steps: length of the schedule.
        apart: which of the parameters have other settings; those are AdamW's.
    """
    taken = {id(p) for part in apart for p in part.parameters}
    if settings.type == "muon":
        if not isinstance(trained, torch.nn.Module):
            raise TypeError("Muon needs the module, not its parameters")
        return _muon(trained, settings, total_steps, apart, taken)
    parameters = trained.parameters() if isinstance(trained, torch.nn.Module) else trained
    rest = Apart([p for p in parameters if p.requires_grad and id(p) not in taken], settings, total_steps)
    return _adamw([part for part in (rest, *apart) if part.parameters])


def _adamw(parts: Sequence[Apart]) -> tuple[torch.optim.AdamW, Any]:
    """One optimiser for all parts, so that DeepSpeed can take it over; the groups of a part follow one another."""
    groups: list[dict[str, Any]] = []
    factors: list[Callable[[int], float]] = []
    for part in parts:
        trained = [p for p in part.parameters if p.requires_grad]
        matrices, others = [p for p in trained if p.ndim >= 2], [p for p in trained if p.ndim < 2]
        for parameters, decay in ((matrices, part.settings.weight_decay), (others, 0.0)):
            if parameters:
                rates = {"lr": part.settings.learning_rate, "betas": part.settings.betas}
                groups.append({"params": parameters, "weight_decay": decay, **rates})
                factors.append(partial(schedule_factor, settings=part.settings, total_steps=part.total_steps))
    optimizer = torch.optim.AdamW(groups, eps=1e-8, fused=True)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factors)


def _muon(
    module: torch.nn.Module, settings: OptimizerSection, total_steps: int, apart: Sequence[Apart], elsewhere: set[int]
) -> tuple[Together, Together]:
    """Muon for the matrices of the layers, AdamW with a share of its rate for embeddings, heads, norms and biases.

    A parameter lies in a layer when its name holds the layer's number, as in every transformers model. Muon cannot start
    from zero rows of embeddings or from a head with one row, and is not meant to.
    """
    named = [(n, p) for n, p in module.named_parameters() if p.requires_grad and id(p) not in elsewhere]
    inside = [p for n, p in named if p.ndim == 2 and any(part.isdigit() for part in n.split("."))]
    taken = {id(p) for p in inside}
    muon = torch.optim.Muon(inside, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(muon, partial(schedule_factor, settings=settings, total_steps=total_steps))
    slower = settings.model_copy(update={"learning_rate": MUON_ADAM_SHARE * settings.learning_rate})
    rest = Apart([p for _, p in named if id(p) not in taken], slower, total_steps)
    adamw, its_schedule = _adamw([part for part in (rest, *apart) if part.parameters])
    return Together([muon, adamw]), Together([schedule, its_schedule])


class Together:
    """Several optimisers, or several schedules, that step and are saved as one."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts = tuple(parts)

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {str(i): part.state_dict() for i, part in enumerate(self.parts)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for i, part in enumerate(self.parts):
            part.load_state_dict(state_dict[str(i)])

    def get_last_lr(self) -> list[float]:
        return [rate for part in self.parts for rate in part.get_last_lr()]


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
