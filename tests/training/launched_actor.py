"""Passes of an actor in processes of its own: `torchrun … launched_actor.py RESULT`, as a test starts it.

Every process takes its share of the replies through the engine, both layouts; the first one leaves the whole gradients, and the
numbers of all processes, in RESULT.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

REPLIES = 6


def replies() -> list[Any]:
    """Two prompts with three replies each."""
    from starling.models.encode import Encoded

    return [Encoded((*range(3 + p, 15 + p), *range(50 + 3 * i, 52 + 5 * i)), 12) for p in (0, 7) for i in range(REPLIES // 2)]


def make() -> Any:
    """Embeddings tied to the head, a critic of its own, the upper layers trained."""
    import torch
    import transformers as tf

    from starling.config import LastLayers
    from starling.models.actor import Actor
    from starling.models.scalar_head import ScalarHead
    from starling.training.trained import TrainedPart

    torch.manual_seed(0)
    config = tf.LlamaConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48, pad_token_id=0,
        tie_word_embeddings=True, num_labels=1,
    )  # fmt: skip
    policy = tf.AutoModelForCausalLM.from_config(config)
    actor = Actor(policy, ScalarHead(tf.AutoModelForSequenceClassification.from_config(config)))
    TrainedPart(actor, LastLayers(type="last_layers", layers=2), seed=1)
    return actor


def loss(out: Any) -> Any:
    import torch

    assert out.logprobs_BR is not None
    weights_R = torch.linspace(1, 2, out.logprobs_BR.shape[1])
    return ((out.logprobs_BR + out.entropy_BR + out.values_BR) * weights_R).sum()


def main() -> None:
    import torch

    from starling.config import OptimizerSection
    from starling.models import cpu_linear
    from starling.models.actor import choose_reply_layout
    from starling.models.reference import Reference
    from starling.models.replies import lay_out
    from starling.training.engine import Engine, kind_of
    from starling.training.loop import make_accelerator
    from starling.training.trained import trained_parameters

    torch.set_num_threads(1)
    cpu_linear._LEAST_WORK = 1  # small layers compute as large ones do
    accelerator = make_accelerator("fp32")
    actor = make()
    cpu_linear.use_onednn(actor)
    reference = Reference.of(actor, spread=kind_of(accelerator.num_processes) == "fsdp2")
    engine = Engine(actor, accelerator, OptimizerSection(learning_rate=1e-3, warmup_fraction=0.0), 4)
    half = REPLIES // 2
    mine = replies()[engine.rank * half : (engine.rank + 1) * half]
    layout = choose_reply_layout(engine.model, replies(), 0, "auto")
    found: dict[str, Any] = {"kind": engine.kind, "ranks": engine.ranks, "layout": layout}
    for layout in ("sequences", "shared_prefix"):
        laid = lay_out(mine, 0, layout)  # type: ignore[arg-type]
        with engine.micro_batch(last=True):
            out = engine.model(laid, temperature=0.7, entropy=True, values=True)
            engine.backward(loss(out))
        found[layout] = {"logprobs": engine.gathered(out.logprobs_BR.tolist()), "reference": engine.gathered(
            reference.logprobs(laid, 0.7).tolist())}  # fmt: skip
        grads = {}
        for name, parameter in trained_parameters(engine.module):
            assert parameter.grad is not None, name
            grads[name] = parameter.grad.full_tensor() if hasattr(parameter.grad, "full_tensor") else parameter.grad
        found[layout]["gradients"] = {name: grad.clone() for name, grad in grads.items()}
        engine.optimizer.zero_grad(set_to_none=True)
    inner: Any = engine.module
    found["tied"] = inner.policy.lm_head.weight is inner.policy.model.embed_tokens.weight
    if engine.first:
        torch.save(found, sys.argv[1])
    engine.part()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from tests.launching import end_with

    end_with(main)
