"""A module in training, on one process or many: forward, backward and update, and its whole state whoever holds the pieces.

    single      one process
    ddp         every process has all weights; gradients are averaged          torch's DistributedDataParallel
    fsdp2       weights, gradients and optimiser state are spread              torch's fully_shard, per layer and root
    deepspeed   the same by DeepSpeed's ZeRO                                   through accelerate

Which one follows from how the command was started: alone, under torchrun, or under `accelerate launch`, whose environment
(ACCELERATE_USE_FSDP, ACCELERATE_USE_DEEPSPEED, FSDP_*) is read here. accelerate itself applies FSDP2 on accelerators only;
calling `fully_shard` here makes it the same code on a CPU, where it is tested.

Four things differ from the usual loop, all for the sake of one result whatever the number of processes:
- the loss of a micro-batch is its share of the whole step's; averaging over processes is undone by a factor;
- all forward passes go through the wrapped module, in one order on all processes; `even_out` adds passes of weight 0 where
  others have more, because sharded weights make each pass a collective operation;
- a gradient that is not finite is the same on all processes, so all refuse it alike;
- optimiser state is saved as one process would save it, with whole tensors under the same numbers.

Gradients are averaged once per step with ddp. fsdp2 and ZeRO spread them after every micro-batch: keeping whole gradients would
take the memory that sharding is for.
"""

from __future__ import annotations

import contextlib
import gc
import math
import os
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from starling.config import OptimizerSection
from starling.errors import ConfigError, TrainingError
from starling.training.loop import Apart, is_on, make_optimizer
from starling.training.trained import all_layers_of, trained_parameters

Kind = Literal["single", "ddp", "fsdp2", "deepspeed"]


def kind_of(ranks: int) -> Kind:
    """Which engine the environment asks for.

    Raises:
        ConfigError: one that there is not.
    """
    if is_on("ACCELERATE_USE_DEEPSPEED"):
        return "deepspeed"
    if is_on("ACCELERATE_USE_FSDP") and ranks > 1:
        if os.environ.get("FSDP_VERSION", "2") != "2":
            raise ConfigError(
                "FSDP version 1 was asked for",
                where="fsdp_version in the configuration of accelerate launch",
                cure="set fsdp_version: 2; configs/accelerate/fsdp2.yaml is an example",
            )
        if is_on("FSDP_OFFLOAD_PARAMS"):
            raise ConfigError(
                "FSDP2 with weights in host memory was asked for, which is not supported",
                where="fsdp_offload_params in the configuration of accelerate launch",
                cure="take more processes, trained = { type = 'lora' }, or DeepSpeed ZeRO-3 with offload_optimizer",
            )
        return "fsdp2"
    return "ddp" if ranks > 1 else "single"


class Engine:
    """Trains `module`.

    Args:
        module: an nn.Module; only those parameters are trained that require a gradient now.
        accelerator: of `make_accelerator`.
        settings: the optimiser.
        total_steps: length of its schedule.
        apart: children of the module, by name, that have another rate, schedule and decay; each has its gradient clipped by
            itself (DeepSpeed, which clips and updates in one, clips all together).

    Raises:
        ConfigError: the settings do not go with the way the processes were started.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        accelerator: Accelerator,
        settings: OptimizerSection,
        total_steps: int,
        apart: Mapping[str, tuple[OptimizerSection, int]] | None = None,
    ) -> None:
        self.accelerator = accelerator
        self.ranks: int = accelerator.num_processes
        self.rank: int = accelerator.process_index
        self.device: torch.device = accelerator.device
        self.module = module
        self.kind: Kind = kind_of(self.ranks)
        self._settings = settings
        self._apart = dict(apart or {})
        self.norms: dict[str, float] = {}
        """Of the last update: the gradient's norm before clipping, by part; "" is what is not apart."""
        self.rates: dict[str, float] = {}
        """Of the last update: the learning rate by part."""
        if settings.type == "muon" and self.kind in ("fsdp2", "deepspeed"):
            raise ConfigError(
                f"Muon needs whole matrices, and {self.kind} spreads them over processes",
                where="optimizer.type",
                cure='use "adamw", or start with plain torchrun (ddp)',
            )
        if self.kind == "deepspeed":
            self._start_deepspeed(total_steps)
        else:
            module.to(self.device)
            self._wrapped: Any = _sharded(module, accelerator) if self.kind == "fsdp2" else module
            if self.kind == "ddp":
                self._wrapped = _averaging(module)
            self.optimizer, self.scheduler = make_optimizer(module, settings, total_steps, self._others())
        stage = accelerator.state.deepspeed_plugin.zero_stage if self.kind == "deepspeed" else 0
        self._passes_meet = self.kind == "fsdp2" or stage == 3
        """Whether a forward pass is a collective operation, because it gathers weights."""
        self._joining = False
        self.model = _Called(self)

    # ── processes ────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def spread(self) -> bool:
        """Whether no process holds whole weights."""
        return self._passes_meet

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def wait(self) -> None:
        """Until all processes are here."""
        self.accelerator.wait_for_everyone()

    def part(self) -> None:
        """The work is done, on all processes: they need each other no more."""
        self.wait()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """Elementwise sum over processes."""
        return self._reduced(values, torch.distributed.ReduceOp.SUM)

    def largest(self, values: torch.Tensor) -> torch.Tensor:
        """Elementwise maximum over processes."""
        return self._reduced(values, torch.distributed.ReduceOp.MAX)

    def _reduced(self, values: torch.Tensor, how: Any) -> torch.Tensor:
        values = values.detach().clone().to(self.device)
        if self.ranks > 1:
            torch.distributed.all_reduce(values, how)
        return values

    def told(self, value: Any) -> Any:
        """The first process's value."""
        return value if self.ranks == 1 else broadcast_object_list([value])[0]

    def gathered(self, values: list[Any]) -> list[Any]:
        """All processes' lists, one after the other."""
        return values if self.ranks == 1 else list(gather_object(values))

    # ── one step ─────────────────────────────────────────────────────────────────────────────────────────────────────

    @contextlib.contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        """Around forward and backward of a micro-batch; `last` of its step."""
        if self.kind == "deepspeed":
            self._wrapped.set_gradient_accumulation_boundary(is_boundary=last)
        with self._wrapped.no_sync() if self.kind == "ddp" and not last else contextlib.nullcontext():
            yield

    def even_out(self, loss: torch.Tensor, one_pass: Callable[[], torch.Tensor]) -> torch.Tensor:
        """`loss` plus 0 times as many `one_pass()` as other processes have forward passes more than this one.

        Call it after the passes of each micro-batch, on all processes. Before every pass a process says that it has one
        (`_Called`); whoever has none left listens, and joins in until nobody has.
        """
        while self._passes_meet and bool(self.largest(torch.tensor(False).int())):
            self._joining = True
            loss = loss + 0.0 * one_pass()
        return loss

    def before_pass(self) -> None:
        """Tell the others that a forward pass comes, unless it answers one of theirs."""
        if self._passes_meet and not self._joining:
            self.largest(torch.tensor(True).int())
        self._joining = False

    def backward(self, loss: torch.Tensor) -> None:
        """Accumulate the gradient of a micro-batch's share of the step's loss."""
        scaled = loss * self.ranks  # every engine averages over processes
        if self.kind == "deepspeed":
            self._wrapped.backward(scaled)
        else:
            torch.autograd.backward(scaled)

    def update(self, without: Collection[str] = ()) -> tuple[float, float]:
        """Clip, update, advance the schedule, clear; returns (gradient norm before clipping, learning rate of this step).

        Both are of what is not apart; `norms` and `rates` have those of every part.

        Args:
            without: parts, "" for what is not apart, that stay as they are in this step.

        Raises:
            TrainingError: the gradient is not finite, on all processes alike; nothing was updated (with DeepSpeed, which
                clips and updates in one: the weights are spoiled, the last checkpoint is not).
        """
        self.rates = self._rates()
        if self.kind == "deepspeed":
            with self._standing(without):
                self._wrapped.step()
            norm = float(self._wrapped.get_global_grad_norm())
            self.norms = dict.fromkeys(self.rates, norm)
        else:
            for part in without:
                for parameter in self._parts()[part]:
                    parameter.grad = None
            self.norms = self._clipped()
        if not all(math.isfinite(norm) for norm in self.norms.values()):
            raise TrainingError(
                "The gradient is not finite", where="optimiser step", cure="lower the learning rate; check the data of this step"
            )
        if self.kind != "deepspeed":
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        self.scheduler.step()
        return next(iter(self.norms.values()), 0.0), next(iter(self.rates.values()))

    def clear(self) -> None:
        """Forget a step that is begun anew; all processes together."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.kind == "ddp":  # after a forward pass it waits for a backward one, and would average at the next, whichever it is
            self._wrapped = None
            gc.collect()  # with the old wrapper go its hooks
            self._wrapped = _averaging(self.module)

    def _parts(self) -> dict[str, list[torch.nn.Parameter]]:
        """What is trained, by part; empty parts left out, what is not apart first."""
        parts: dict[str, list[torch.nn.Parameter]] = {"": [], **{name: [] for name in self._apart}}
        for name, parameter in trained_parameters(self.module):
            child = name.partition(".")[0]
            parts[child if child in self._apart else ""].append(parameter)
        return {name: found for name, found in parts.items() if found}

    def _others(self) -> list[Apart]:
        parts = self._parts()
        return [Apart(parts[name], *rules) for name, rules in self._apart.items() if name in parts]

    def _rates(self) -> dict[str, float]:
        """Learning rates of the next update, by part."""
        rates = self.scheduler.get_last_lr()
        apart = [name for name in self._parts() if name]
        # groups of a part follow one another; each part has one or two of them
        found = {"": float(rates[0])} if len(apart) < len(self._parts()) else {}
        at = len(rates)
        for name in reversed(apart):
            at -= len({p.ndim >= 2 for p in self._parts()[name]})
            found[name] = float(rates[at])
        return found

    @contextlib.contextmanager
    def _standing(self, without: Collection[str]) -> Iterator[None]:
        """DeepSpeed knows no step without some parameters: at rate 0 they stay where they are."""
        ids = {id(p) for name, own in self._parts().items() if name in without for p in own}
        groups = [g for g, own in zip(self.optimizer.param_groups, self.groups, strict=True) if own and id(own[0]) in ids]
        before = [group["lr"] for group in groups]
        for group in groups:
            group["lr"] = 0.0
        try:
            yield
        finally:
            for group, rate in zip(groups, before, strict=True):
                group["lr"] = rate

    def _clipped(self) -> dict[str, float]:
        norms = {}
        for part, parameters in self._parts().items():
            gradients = [p.grad for p in parameters if p.grad is not None]
            if gradients:
                norm = _whole(torch.nn.utils.get_total_norm(gradients))
                torch.nn.utils.clip_grads_with_norm_(parameters, self._settings.max_grad_norm, norm)
                norms[part] = float(norm)
        return norms

    # ── state ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def tensors(self) -> dict[str, torch.Tensor]:
        """Whole trained weights on the CPU, in fp32 where the optimiser holds them so; all processes together."""
        if self.kind == "deepspeed":
            from deepspeed.utils import safe_get_full_fp32_param

            return self._kept((n, safe_get_full_fp32_param(p)) for n, p in trained_parameters(self.module))
        return self._kept((n, _whole(p.detach())) for n, p in trained_parameters(self.module))

    def _kept(self, named: Iterator[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Copies on the CPU; only the first process keeps them."""
        kept = {}
        for name, tensor in named:
            if self.first:
                kept[name] = tensor.to("cpu", copy=True).contiguous()
        return kept

    @torch.no_grad()
    def copy_into(self, target: torch.nn.Module, prefix: str = "") -> None:
        """Put the trained weights whose names begin with `prefix` into a whole module that lacks it; one weight at a time.

        All processes together, and all of them get the weights.
        """
        together: Any = contextlib.nullcontext
        if self.kind == "deepspeed":
            from deepspeed.zero import GatheredParameters

            together = GatheredParameters
        for name, parameter in trained_parameters(self.module):
            if name.startswith(prefix):
                with together([parameter]):
                    target.get_parameter(name.removeprefix(prefix)).copy_(_whole(parameter.detach()))

    @property
    def states(self) -> dict[str, Any]:
        """Optimiser and schedule for a checkpoint that any engine and any number of processes can read."""
        whole = _DeepSpeedState(self) if self.kind == "deepspeed" else _WholeState(self.optimizer)
        return {"optimizer": whole, "scheduler": self.scheduler}

    # ── DeepSpeed ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _start_deepspeed(self, total_steps: int) -> None:
        plain, self.scheduler = make_optimizer(self.module, self._settings, total_steps, self._others())
        self.plain: Any = plain
        self.groups = [list(group["params"]) for group in plain.param_groups]  # DeepSpeed puts flat pieces in their place
        config = self.accelerator.state.deepspeed_plugin.deepspeed_config
        config["train_micro_batch_size_per_gpu"] = 1  # only to be there: micro-batches are ours
        config["gradient_accumulation_steps"] = 1  # a share of the step's loss is not to be divided again
        config["gradient_clipping"] = self._settings.max_grad_norm
        config["zero_force_ds_cpu_optimizer"] = False  # with offloading, too, the optimiser is the one of the settings
        self._wrapped, self.optimizer = self.accelerator.prepare(self.module, plain)


class _Called:
    """The module as its users know it, with every forward pass going through the wrapper's hooks."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        self._engine.before_pass()
        with self._engine.accelerator.autocast():
            return self._engine._wrapped(*inputs, **named)

    def rewards(self, *inputs: Any) -> Any:
        return self(*inputs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine.module, name)


class _WholeState:
    """State of an optimiser whose tensors may be spread, saved and read as whole tensors."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer

    def state_dict(self) -> dict[str, Any]:
        return dict(_mapped(self._optimizer.state_dict(), _whole))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        from torch.distributed.tensor import DTensor, distribute_tensor

        if hasattr(self._optimizer, "param_groups"):
            parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
            for i, parameter in enumerate(parameters):
                if isinstance(parameter, DTensor) and i in state_dict["state"]:
                    mesh, placements = parameter.device_mesh, parameter.placements
                    state_dict["state"][i] = {
                        name: distribute_tensor(value.to(parameter.device), mesh, placements, src_data_rank=None)
                        if isinstance(value, torch.Tensor) and value.shape == parameter.shape
                        else value
                        for name, value in state_dict["state"][i].items()
                    }
        self._optimizer.load_state_dict(state_dict)


class _DeepSpeedState:
    """AdamW's state under ZeRO as one process would save it: whole moments by the number of the parameter."""

    NAMES = ("exp_avg", "exp_avg_sq")

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def state_dict(self) -> dict[str, Any]:
        from deepspeed.utils import safe_get_full_optimizer_state

        engine = self._engine
        self._link()
        step = max((float(s["step"]) for s in engine.plain.state.values() if "step" in s), default=0.0)
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for i, parameter in enumerate(p for group in engine.groups for p in group if step):
            found = {name: safe_get_full_optimizer_state(parameter, name) for name in self.NAMES}
            if engine.first:
                moments[i] = {"step": torch.tensor(step)} | {n: v.detach().to("cpu", copy=True) for n, v in found.items()}
        groups, at = [], 0
        for group, own in zip(engine.plain.param_groups, engine.groups, strict=True):
            groups.append({k: v for k, v in group.items() if k != "params"} | {"params": list(range(at, at + len(own)))})
            at += len(own)
        return {"state": moments, "param_groups": groups}

    def _link(self) -> None:
        """Let parameters find their moments: DeepSpeed does so after the first step of the first group, too early for others."""
        zero = self._engine.optimizer.optimizer
        if self._engine.plain.state and hasattr(zero, "_hp_optimizer_states_linked"):
            zero._hp_optimizer_states_linked = False
            zero._lazy_init_hp_params_optimizer_state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        from deepspeed.utils import safe_get_local_optimizer_state, safe_set_full_optimizer_state, safe_set_local_optimizer_state

        engine = self._engine
        for group, saved in zip(engine.plain.param_groups, state_dict["param_groups"], strict=True):
            group.update({k: v for k, v in saved.items() if k != "params"})
        if not state_dict["state"]:
            return
        zero = engine.optimizer.optimizer
        spread = hasattr(zero, "fp32_partitioned_groups_flat")  # ZeRO-3
        names = ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition")
        # as the optimiser itself would make them in its first step
        for piece in next(getattr(zero, name) for name in names if hasattr(zero, name)):
            step = state_dict["state"][0]["step"].clone()
            engine.plain.state[piece] = {"step": step.to(piece.device)} | {n: torch.zeros_like(piece) for n in self.NAMES}
        self._link()
        for i, parameter in enumerate(p for group in engine.groups for p in group):
            for name in self.NAMES:
                value = state_dict["state"][i][name]
                if not spread:
                    safe_set_full_optimizer_state(parameter, value.to(engine.device), name)
                    continue
                size = safe_get_local_optimizer_state(parameter, name).numel()
                flat = torch.nn.functional.pad(value.flatten(), (0, size * engine.ranks - value.numel()))
                mine = flat[size * engine.rank : size * (engine.rank + 1)]
                safe_set_local_optimizer_state(parameter, mine.to(engine.device), name)


# ── inside ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _averaging(module: torch.nn.Module) -> Any:
    """The module with gradients that are averaged over processes."""
    with warnings.catch_warnings():  # torch 2.13 has another word for broadcast_buffers, 2.7 does not know it
        warnings.simplefilter("ignore", FutureWarning)
        return torch.nn.parallel.DistributedDataParallel(module, broadcast_buffers=False, gradient_as_bucket_view=True)


def _sharded(module: torch.nn.Module, accelerator: Accelerator) -> torch.nn.Module:
    """Every layer a unit of its own, the rest with the root: embeddings, final norm and head stay fp32 in the forward pass."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    # the head's result is a view, and nobody changes it in place
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    bf16 = accelerator.mixed_precision == "bf16"
    # the residual stream stays fp32 between layers, as under autocast on one process
    layers = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False) if bf16 else MixedPrecisionPolicy()
    reshard = is_on("FSDP_RESHARD_AFTER_FORWARD", "true")
    for layer in all_layers_of(module):
        fully_shard(layer, mesh=mesh, mp_policy=layers, reshard_after_forward=reshard)
    fully_shard(module, mesh=mesh)
    return module


def _whole(value: torch.Tensor) -> torch.Tensor:
    """The whole of a tensor that may be spread over processes."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def _mapped(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, dict):
        return {k: _mapped(v, change) for k, v in value.items()}
    return [_mapped(v, change) for v in value] if isinstance(value, list) else value
