"""The models of a tuning: policy and critic, what of them is trained, and whole copies where the trained ones are spread."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator

from starling.config import APA, PPO, PolicySection
from starling.models.actor import Actor, build_actor
from starling.models.encode import Encoder
from starling.models.load import load_causal, load_tokenizer, longest_input, save_folder
from starling.models.reference import in_bf16
from starling.training.engine import Engine
from starling.training.trained import TrainedPart

Phase = Literal["critic", "actor"]
"""critic: it learns alone, before the policy moves."""


class Models:
    """Policy, critic and tokenizer as they are before tuning, with what is trained chosen.

    Args:
        base: folder of the language model.
        reward: folder of the reward model that the critic may start from.
        settings: of the stage.
        seed: of new weights.

    Raises:
        InputError: a folder cannot be used.
        ConfigError: the settings name parts that the model does not have.
    """

    def __init__(self, base: Path, reward: Path, settings: PolicySection, seed: int) -> None:
        self._made_of = (base, reward, settings, seed)
        self.base = base
        self.tokenizer = load_tokenizer(base)
        policy = load_causal(base)
        critic = settings.critic if isinstance(settings.algorithm, APA | PPO) else None
        self.actor = build_actor(policy, critic, reward, base, seed, self.tokenizer)
        self.part = TrainedPart(self.actor, settings.trained, seed)
        self.actor.eval()  # adapters begin in training mode
        self._trained = {name for name, p in self.policy.named_parameters() if p.requires_grad}
        limits = [longest_input(model) for model in (policy, getattr(self.actor.critic, "model", None)) if model is not None]
        self.encoder = Encoder(self.tokenizer, max_length=min((n for n in limits if n is not None), default=1 << 20))
        wanted = settings.gradient_checkpointing
        if wanted == "on" or (wanted == "auto" and torch.cuda.is_available()):
            for model in (policy, getattr(self.actor.critic, "model", None)):
                if model is not None:  # transformers 5.2x gave the method another name
                    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
                    enable({"use_reentrant": False})

    @property
    def policy(self) -> Any:
        """The causal language model."""
        return self.actor.policy

    def again(self) -> Models:
        """A fresh one, all weights as before tuning."""
        return Models(*self._made_of)

    def begin(self, phase: Phase) -> None:
        """Let `requires_grad` say what is trained in a phase."""
        for name, parameter in self.policy.named_parameters():
            parameter.requires_grad_(phase == "actor" and name in self._trained)

    def save(self, out: Path) -> None:
        """Write the policy's folder, or that of its adapter."""
        self.actor.to("cpu")
        self.part.finish()
        if self.part.saves_adapter:
            self.part.save_adapter(out, self.base)
            self.tokenizer.save_pretrained(out)
        else:
            save_folder(out, self.policy, self.tokenizer)


class Whole:
    """The policy for the sampler: itself, or a whole copy that is brought up to date where weights are spread over processes,
    or where the passes are bf16 and a sampler would cast fp32 weights in every step.

    Args:
        models: those that are trained, as before tuning.
        accelerator: of `make_accelerator`.
        spread: whether the trained weights will be spread.
    """

    def __init__(self, models: Models, accelerator: Accelerator, spread: bool) -> None:
        half = accelerator.mixed_precision == "bf16" and accelerator.device.type == "cuda"
        self.actor: Actor | None = None
        """Of the copy, without a critic; None where the policy itself is sampled from."""
        if spread or half:
            self.actor = models.again().actor
            self.actor.critic = None
            self.actor.to(accelerator.device)
            if half:
                in_bf16(self.actor, {id(p) for p in self.actor.parameters()})

    def policy(self, models: Models, engine: Engine) -> Any:
        """As it is now, in evaluation mode; all processes together."""
        if self.actor is None:
            return models.policy.eval()
        engine.copy_into(self.actor.policy, "policy.")
        return self.actor.policy.eval()
