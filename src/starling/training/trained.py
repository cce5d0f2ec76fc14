"""What of a model is trained: all of it, its last layers, or low-rank adapters.

    type         reward model                    policy                                          critic with a trunk of its own
    full         everything                      everything                                      everything
    last_layers  the last n layers, the head     the last n layers, final norm, head             as the policy
    lora         adapters in layers, the head    adapters in layers                              adapters in layers, its head

A policy's input embeddings stay as they are unless they are tied to its head: then the one matrix is trained, at both ends.
A small head on the policy's trunk is always trained.

Sources: for a reward model the original trains everything, or the head alone; of the policy Starling's code trains the last 4
layers, final norm, head and value head with embeddings frozen; LoRA is arXiv 2106.09685 through peft. Departure from peft's own
recipe: the adapters are put into the model in place, so that its class, its forward pass and `ScalarHead` stay what they are,
and a reward head is an ordinary trained parameter that is saved with them (its loss on reload is the usual complaint).
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


def all_layers_of(module: nn.Module) -> list[nn.Module]:
    """The transformer layers of every transformers model in a module, e.g. those of a policy and of its critic's own trunk."""
    models = [m for m in module.modules() if hasattr(m, "config")]
    inner = {id(part) for m in models for part in m.modules() if part is not m}
    outermost = [m for m in models if id(m) not in inner]
    return [layer for model in outermost or [module] for layer in layers_of(model)]


def head_names(model: Any) -> set[str]:
    """Names of the parameters that a language model does not have: the classifier, and a pooler inside an encoder."""
    if _is_language_model(model):
        return set()
    prefix = f"{model.base_model_prefix}."
    return {n for n, _ in model.named_parameters() if not n.startswith(prefix) or "pooler." in n.removeprefix(prefix)}


class TrainedPart:
    """Chooses what is trained in `model`, in place; afterwards `requires_grad` says it.

    Args:
        model: a transformers model for sequence classification, a causal language model, or an actor, i.e. a module with a
            `policy` and a `critic`.
        settings: what to train.
        seed: of the adapters' initial values.

    Raises:
        ConfigError: the settings name layers that the model does not have.
    """

    def __init__(self, model: Any, settings: Trained, seed: int) -> None:
        own_critic = getattr(getattr(model, "critic", None), "model", None)
        parts = [model.policy, *([own_critic] if own_critic is not None else [])] if hasattr(model, "policy") else [model]
        self._model = parts[0]  # what is saved
        self._settings = settings
        self._tuners: list[LoraModel] = []
        policy = _is_language_model(parts[0])
        where = "policy.trained" if policy else "reward.trained"
        if isinstance(settings, FullTraining):
            return
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for part in parts:
                head = head_names(part)
                if isinstance(settings, LastLayers):
                    kept = _last(part, settings.layers, where) | (_behind(part) if policy else set())
                else:
                    self._tuners.append(_with_adapters(part, settings, where))
                    kept = {id(p) for p in part.parameters() if p.requires_grad}
                for name, parameter in part.named_parameters():
                    parameter.requires_grad_(name in head or id(parameter) in kept)

    def finish(self) -> None:
        """Merge adapters into the weights and remove them, unless they are to be saved; call once, after training."""
        if not self.saves_adapter:
            for tuner in self._tuners:
                tuner.merge_and_unload()
            self._tuners = []

    @property
    def saves_adapter(self) -> bool:
        """Whether the artifact is a peft adapter instead of a whole model."""
        return isinstance(self._settings, LoRA) and self._settings.save == "adapter"

    def save_adapter(self, folder: Path, base: Path) -> None:
        """Write adapter_config.json and adapter_model.safetensors, which peft opens on the model in `base`; of an actor, the
        policy's."""
        from safetensors.torch import save_file

        config = self._tuners[0].peft_config[_ADAPTER]
        head = head_names(self._model)
        config.base_model_name_or_path = str(base)
        config.task_type = "CAUSAL_LM" if _is_language_model(self._model) else "SEQ_CLS"
        config.modules_to_save = sorted({n.rpartition(".")[0] for n in head}) or None
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


def _is_language_model(model: Any) -> bool:
    """Whether it predicts tokens, so that its head is no addition to it."""
    return getattr(model, "get_output_embeddings", lambda: None)() is not None


def _last(model: nn.Module, count: int, where: str) -> set[int]:
    """Identities of the parameters of the last `count` layers."""
    layers = layers_of(model)
    if count > len(layers):
        raise ConfigError(
            f"The model has {len(layers)} layers, {count} are to be trained",
            where=f"{where}.layers",
            cure="lower it, or train everything with { type = 'full' }",
        )
    return {id(p) for layer in layers[len(layers) - count :] for p in layer.parameters()}


def _behind(model: Any) -> set[int]:
    """Identities of the parameters of what runs after the last layer (final norm, head), found by running two tokens.

    Neither names nor the order in which a class makes its parts tell: OPT makes its final norm first, Bloom has a norm in front.
    """
    layers = layers_of(model)
    inside = {id(part) for layer in layers for part in layer.modules()}
    found: set[int] = set()
    past: list[bool] = []

    def ran(part: nn.Module, _: Any) -> None:
        if past:
            found.update(id(p) for p in part.parameters(recurse=False))

    handles = [part.register_forward_pre_hook(ran) for part in model.modules() if id(part) not in inside]
    handles += [layer.register_forward_hook(lambda *_: past.append(True)) for layer in layers[-1:]]
    try:
        with torch.no_grad():
            model(input_ids=torch.tensor([[0, 1]], device=next(model.parameters()).device))
    finally:
        for handle in handles:
            handle.remove()
    return found


def _with_adapters(model: Any, settings: LoRA, where: str) -> LoraModel:
    from peft import LoraConfig, LoraModel
    from transformers.pytorch_utils import Conv1D

    inside = {id(part) for layer in layers_of(model) for part in layer.modules()}
    linears = [(name, part) for name, part in model.named_modules() if isinstance(part, nn.Linear | Conv1D)]
    linear = {_last_word(name) for name, part in linears if id(part) in inside}
    chosen = set(settings.target_modules) or linear
    if not chosen or not chosen <= linear:
        raise ConfigError(
            f"The model's layers have no linear layer named {', '.join(sorted(chosen - linear)) or 'anything'}",
            where=f"{where}.target_modules",
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
    return LoraModel(model, {_ADAPTER: config}, _ADAPTER)


def _last_word(name: str) -> str:
    return name.rpartition(".")[2]
