"""What of a reward model is trained: all of it, its last layers, or low-rank adapters; the head always.

Sources: the original trains everything, or the head alone; LoRA is arXiv 2106.09685 through peft. Departure from peft's own
recipe: the adapters are put into the model in place, so that its class, its forward pass and `ScalarHead` stay what they are,
and the head is an ordinary trained parameter that is saved with them (its loss on reload is the usual complaint).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from starling.config import FullTraining, LastLayers, LoRA, Trained
from starling.errors import ConfigError

if TYPE_CHECKING:
    from peft import LoraModel

_ADAPTER = "default"


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The transformer layers of a model, first to last: its longest list of modules of one class; empty if it has none."""
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len({type(part) for part in m}) == 1]
    longest: list[nn.Module] = []
    for found in lists:
        if len(found) > len(longest):
            longest = list(found)
    return longest


def head_names(model: Any) -> set[str]:
    """Names of the parameters that a language model does not have: the classifier, and a pooler inside an encoder."""
    prefix = f"{model.base_model_prefix}."
    return {n for n, _ in model.named_parameters() if not n.startswith(prefix) or "pooler." in n.removeprefix(prefix)}


class TrainedPart:
    """Chooses what is trained in `model`, in place; afterwards `requires_grad` says it.

    Args:
        model: a transformers model for sequence classification.
        settings: what to train.
        seed: of the adapters' initial values.

    Raises:
        ConfigError: the settings name layers that the model does not have.
    """

    def __init__(self, model: Any, settings: Trained, seed: int) -> None:
        self._model = model
        self._settings = settings
        self._tuner: LoraModel | None = None
        head = head_names(model)
        if isinstance(settings, FullTraining):
            return
        if isinstance(settings, LastLayers):
            kept = _last(model, settings.layers)
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name in head or id(parameter) in kept)
            return
        self._tuner = _with_adapters(model, settings, seed)
        for name, parameter in model.named_parameters():
            if name in head:
                parameter.requires_grad_(True)

    def finish(self) -> None:
        """Merge adapters into the weights and remove them, unless they are to be saved; call once, after training."""
        if self._tuner is not None and not self.saves_adapter:
            self._tuner.merge_and_unload()
            self._tuner = None

    @property
    def saves_adapter(self) -> bool:
        """Whether the artifact is a peft adapter instead of a whole model."""
        return isinstance(self._settings, LoRA) and self._settings.save == "adapter"

    def save_adapter(self, folder: Path, base: Path) -> None:
        """Write adapter_config.json and adapter_model.safetensors, which peft opens on the model in `base`."""
        from safetensors.torch import save_file

        assert self._tuner is not None
        config = self._tuner.peft_config[_ADAPTER]
        head = head_names(self._model)
        config.base_model_name_or_path = str(base)
        config.task_type = "SEQ_CLS"
        config.modules_to_save = sorted({n.rpartition(".")[0] for n in head})
        config.inference_mode = True
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            f"base_model.model.{name.replace(f'.{_ADAPTER}.', '.')}": tensor.detach().cpu().contiguous()
            for name, tensor in self._model.named_parameters()
            if f".{_ADAPTER}." in name or name in head
        }
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        described = {k: sorted(v) if isinstance(v, set) else v for k, v in config.to_dict().items()}
        (folder / "adapter_config.json").write_text(json.dumps(described, indent=2, sort_keys=True) + "\n", encoding="utf-8")


class TrainedWeights:
    """The trained parameters of a module that is not spread over processes, as checkpoints hold them."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def tensors(self) -> dict[str, torch.Tensor]:
        return {name: p.detach().cpu().contiguous() for name, p in trained_parameters(self._module)}

    @torch.no_grad()
    def fill(self, tensors: Mapping[str, torch.Tensor]) -> None:
        own = dict(trained_parameters(self._module))
        if own.keys() != tensors.keys():
            differing = sorted(own.keys() ^ tensors.keys())
            raise ValueError(f"{len(differing)} weights are on one side only, {', '.join(differing[:3])} …")
        for name, parameter in own.items():
            if parameter.shape != tensors[name].shape:
                raise ValueError(f"{name} has the shape {tuple(tensors[name].shape)}, wanted {tuple(parameter.shape)}")
            parameter.copy_(tensors[name])


def trained_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Name and parameter of everything that is trained; weights that are tied, once."""
    return ((name, p) for name, p in module.named_parameters() if p.requires_grad)


# ── inside ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _last(model: nn.Module, count: int) -> set[int]:
    """Identities of the parameters of the last `count` layers."""
    layers = layers_of(model)
    if count > len(layers):
        raise ConfigError(
            f"The model has {len(layers)} layers, {count} are to be trained",
            where="reward.trained.layers",
            cure="lower it, or train everything with { type = 'full' }",
        )
    return {id(p) for layer in layers[len(layers) - count :] for p in layer.parameters()}


def _with_adapters(model: Any, settings: LoRA, seed: int) -> LoraModel:
    from peft import LoraConfig, LoraModel
    from transformers.pytorch_utils import Conv1D

    inside = {id(part) for layer in layers_of(model) for part in layer.modules()}
    linears = [(name, part) for name, part in model.named_modules() if isinstance(part, nn.Linear | Conv1D)]
    linear = {_last_word(name) for name, part in linears if id(part) in inside}
    chosen = set(settings.target_modules) or linear
    if not chosen or not chosen <= linear:
        raise ConfigError(
            f"The model's layers have no linear layer named {', '.join(sorted(chosen - linear)) or 'anything'}",
            where="reward.trained.target_modules",
            cure=f"choose from {', '.join(sorted(linear)) or 'another backbone'}",
        )
    meant = [name for name, part in linears if id(part) in inside and _last_word(name) in chosen]
    # peft looks for the last word everywhere: a pooler's `dense` is no layer's
    elsewhere = any(id(part) not in inside and _last_word(name) in chosen for name, part in linears)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=meant if elsewhere else sorted(chosen),
        fan_in_fan_out=any(isinstance(part, Conv1D) for _, part in linears),  # gpt2 stores its linear layers transposed
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LoraModel(model, {_ADAPTER: config}, _ADAPTER)


def _last_word(name: str) -> str:
    return name.rpartition(".")[2]
