"""Two processes that hold a model between them (FSDP2 on gloo) and gather its weights; `torchrun … spread_weights.py RESULT`.

The first one leaves a list in RESULT: for a plain model and one with adapters, the largest difference from what one process
gathers of the same model, and the number of weights.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import transformers as tf
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from starling.config import LoRA
from starling.policy.servers.weights import whole_weights
from starling.training.trained import TrainedPart


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    found = []
    for adapters in (False, True):
        torch.manual_seed(0)
        config = tf.LlamaConfig(
            vocab_size=50,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            tie_word_embeddings=True,
        )
        model = tf.AutoModelForCausalLM.from_config(config)
        if adapters:
            TrainedPart(model, LoRA(type="lora", rank=2), seed=0)
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if "lora_B" in name:
                        parameter.normal_()
        alone = whole_weights(model, "fp32", keep=True)
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        together = whole_weights(model, "fp32", keep=dist.get_rank() == 0)
        if dist.get_rank() == 0:
            assert alone.keys() == together.keys()
            found.append([max(float((alone[n] - together[n]).abs().max()) for n in alone), len(alone)])
        else:
            assert together == {}
    if dist.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
    # as the command ends: see `starling.cli.main`
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
