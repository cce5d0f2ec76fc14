"""What learns: the models with their engine, in two phases, and the checkpoints of both.

    critic   the critic alone, before the policy moves; an engine over its weights
    actor    policy and critic; one engine with a part for each, so that each has its rate and its clipping

A checkpoint is whole at the end of an iteration. The change of phases comes before it, so none is needed in between.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from starling.config import OptimizerSection, PolicySection
from starling.errors import TrainingError
from starling.models.actor import choose_reply_layout
from starling.models.encode import Encoded
from starling.models.reference import Reference
from starling.models.replies import ReplyLayout
from starling.policy.models import Models, Phase, Whole
from starling.training import checkpoint
from starling.training.engine import Engine, kind_of
from starling.training.loop import make_accelerator
from starling.training.trained import TrainedWeights
from starling.training.trainer import newest


@dataclass
class State:
    """What a checkpoint holds beside weights, optimiser and schedule."""

    phase: Phase
    kl: float
    """Coefficient of the KL penalty for the next iteration."""
    micro_tokens: int
    iteration: int = 0
    """Iterations done."""
    pretrained: int = 0
    """Iterations in which the critic alone learnt."""
    shaping: dict[str, Any] = field(default_factory=dict)
    log_bytes: int = 0
    best: int | None = None
    """The iteration whose weights lie in best/."""
    stopped: str = ""
    """Why the tuning ends before its last iteration; "" if it does not."""

    @property
    def untrained(self) -> int:
        """The last iteration after which the policy was still the base."""
        return self.iteration if self.phase == "critic" else self.pretrained


class Learner:
    """Models, engine and state, as new or as the newest checkpoint has them.

    Args:
        models: as before tuning.
        accelerator: of `make_accelerator`.
        settings: of the stage.
        work: folder of the work in progress.
        key: what its checkpoints belong to.

    Raises:
        TrainingError: there is a checkpoint of something else.
        ConfigError: the settings do not go with the way the processes were started.
    """

    def __init__(self, models: Models, accelerator: Accelerator, settings: PolicySection, work: Path, key: str) -> None:
        self.models, self.settings, self.work, self.key = models, settings, work, key
        self.accelerator = accelerator
        models.actor.to(accelerator.device)
        spread = kind_of(accelerator.num_processes) in ("fsdp2", "deepspeed")
        self.whole = Whole(models, accelerator, spread)
        half = accelerator.mixed_precision == "bf16" and accelerator.device.type == "cuda"
        # what is spread cannot be borrowed from; the sampler's copy can
        self.reference = Reference.of(self.whole.actor if spread and self.whole.actor else models.actor, half=half)
        resumed = newest(work, accelerator)
        pretrains = models.actor.critic is not None and settings.critic.pretrain > 0
        self.state = State("critic" if pretrains else "actor", settings.kl.coefficient, settings.micro_tokens)
        if resumed is not None:
            _, extra = checkpoint.load_modules(resumed, {}, key=key)
            self.state = State(**extra)
        models.begin(self.state.phase)
        if resumed is not None:
            checkpoint.load_modules(resumed, {"weights": TrainedWeights(models.actor)}, key=key)
        self.saved = self.state.iteration if resumed is not None else None
        """The iteration of the newest checkpoint."""
        self.engine = self._engine()
        if resumed is not None:
            checkpoint.load_states(resumed, self.engine.states)

    def _engine(self) -> Engine:
        settings, state = self.settings, self.state
        per_iteration = settings.epochs * settings.minibatches
        constant = {"type": "adamw", "learning_rate": settings.critic.learning_rate, "schedule": "constant"}
        critic = OptimizerSection(**(settings.optimizer.model_dump() | constant | {"warmup_fraction": 0.0}))
        if state.phase == "critic":
            return Engine(self.models.actor, self.accelerator, critic, settings.critic.pretrain * per_iteration)
        steps = max(1, settings.iterations - state.pretrained) * per_iteration
        apart = {"critic": (critic, steps)} if self.models.actor.critic is not None else {}
        return Engine(self.models.actor, self.accelerator, settings.optimizer, steps, apart)

    def layout(self, replies: Sequence[Encoded]) -> ReplyLayout:
        """How replies go through the actor: replies to one prompt share it, where that changes no number.

        Raises:
            InputError: it was asked for, and the models cannot do it.
        """
        settings, engine = self.settings, self.engine
        if settings.layout == "auto" and settings.samples_per_prompt == 1:
            return "sequences"
        half = self.accelerator.mixed_precision != "no"
        with self.accelerator.autocast():
            found: ReplyLayout = engine.told(
                choose_reply_layout(engine.model, replies, self.models.encoder.pad_id, settings.layout, half)
            )
        return found

    def move_on(self) -> None:
        """From the critic's phase to the actor's; all processes together."""
        models, engine = self.models, self.engine
        if engine.kind in ("fsdp2", "deepspeed"):  # what is spread stays spread
            models = self.models.again()
            engine.copy_into(models.actor)
            models.actor.to(self.accelerator.device)
            self.accelerator = make_accelerator(self.settings.precision)
        self.state.phase, self.state.pretrained = "actor", self.state.iteration
        models.begin("actor")
        self.models = models
        del self.engine, engine
        gc.collect()  # with its wrapper go its hooks
        self.engine = self._engine()

    # ── checkpoints ──────────────────────────────────────────────────────────────────────────────────────────────────

    def save(self, log_bytes: int) -> None:
        """A checkpoint of the present state; all processes together."""
        engine, state = self.engine, self.state
        state.log_bytes = log_bytes
        parts = {"weights": engine}
        folder = self.work / "checkpoints"
        checkpoint.save(folder, state.iteration, parts, engine.states, asdict(state), key=self.key, write=engine.first)
        engine.wait()  # nobody goes on, or ends, before it is there
        self.saved = state.iteration

    def keep(self) -> None:
        """Put the present weights aside, as those that the rule of the selection would keep now."""
        engine, state = self.engine, self.state
        # a kill takes the tuning back to a checkpoint, and to what was kept then
        needed = (
            [e["best"] for e in checkpoint.extras(self.work / "checkpoints") if e["best"] is not None] if engine.first else []
        )
        parts = {"weights": engine}
        folder = self.work / "best"
        checkpoint.save(folder, state.iteration, parts, {}, {}, key=self.key, write=engine.first, keep=needed)
        engine.wait()
        state.best = state.iteration

    def write(self, out: Path, iteration: int) -> None:
        """Write the policy of an iteration that is kept, or the present one; all processes together.

        Raises:
            TrainingError: the weights that were put aside cannot be read.
        """
        engine, state = self.engine, self.state
        spread = engine.kind in ("fsdp2", "deepspeed")
        unmoved = iteration <= state.untrained
        kept = None if unmoved or iteration == state.iteration else self._kept(iteration)
        tensors = engine.tensors() if spread and not unmoved and kept is None else {}
        if engine.first:
            models = self.models
            if spread or unmoved:
                models = models.again()
                models.begin("actor")
            if tensors:
                TrainedWeights(models.actor).fill(tensors)
            if kept is not None:
                checkpoint.load_modules(kept, {"weights": TrainedWeights(models.actor)}, key=self.key)
            out.mkdir(parents=True, exist_ok=True)
            models.save(out)
        engine.wait()

    def _kept(self, iteration: int) -> Path:
        path = self.work / "best" / f"step-{iteration:08d}"
        if self.engine.first and checkpoint.problem(path) is not None:
            raise TrainingError(
                f"The weights of iteration {iteration}, which the rule keeps, cannot be read: {checkpoint.problem(path)}",
                where=str(path),
                cure='set policy.selection.keep to "last", or delete the folder of checkpoints to start this training anew',
            )
        return path
