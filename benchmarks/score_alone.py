"""What it costs to score every conversation in a pass of its own, as `starling score` does on a CPU, instead of in batches.

    python benchmarks/score_alone.py

prints, for two small random llamas and two ranges of lengths, CPU-seconds both ways (the better of two runs), their ratio, and
how far the scores of the two ways lie apart. Takes about a minute on two free cores.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the command sets it, before torch is loaded

import torch
import transformers

from starling.models.encode import Encoded
from starling.models.scalar_head import ScalarHead
from starling.models.score import score_rows

ROWS = 32


def seconds(work: Callable[[], torch.Tensor]) -> float:
    """CPU-seconds of the better of two runs, after one to warm up."""
    work()
    found = []
    for _ in range(2):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return min(found)


def main() -> None:
    """Print the table."""
    torch.manual_seed(0)
    rng = random.Random(0)
    for hidden, layers in ((256, 6), (512, 8)):
        config = transformers.LlamaConfig(
            vocab_size=4000, hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=layers, num_attention_heads=4,
            num_labels=1, pad_token_id=0,
        )  # fmt: skip
        head = ScalarHead(transformers.AutoModelForSequenceClassification.from_config(config).eval())
        size = sum(p.numel() for p in head.parameters()) / 1e6
        for low, high in ((10, 60), (100, 400)):
            lengths = [rng.randint(low, high) for _ in range(ROWS)]
            rows = [Encoded(tuple(rng.randrange(1, 4000) for _ in range(n)), 0) for n in lengths]

            def alone(rows: list[Encoded] = rows, head: ScalarHead = head) -> torch.Tensor:
                return torch.cat([score_rows(head, [row], 0) for row in rows])

            def batches(rows: list[Encoded] = rows, head: ScalarHead = head) -> torch.Tensor:
                return score_rows(head, rows, 0, 16_384)

            with torch.inference_mode():
                one, many, apart = seconds(alone), seconds(batches), (alone() - batches()).abs().max().item()
            print(
                f"{size:.0f}M, {low}–{high} tokens: alone {one:.2f}, batches {many:.2f} CPU-s, ratio {one / many:.2f}; "
                f"scores differ by at most {apart:.0e}",
                flush=True,
            )


if __name__ == "__main__":
    main()
