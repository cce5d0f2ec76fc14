"""Sampling replies: tokens per CPU-second of `starling.models.sample` and of transformers, side by side in one process.

    python benchmarks/sample_vs_generate.py [--json FILE] [--quick] [--cores 1]

A llama of 5 M parameters (hidden 256, 4 layers, 4 heads, feed-forward 1024, vocabulary 4096, random weights, fp32), the same
prompts, temperature 1 over the whole vocabulary, one thread. Peers at the settings that suit them best:

    dynamic      model.generate with the dynamic cache
    static       model.generate with the static cache, not compiled (compiling for CPU takes half a minute and slows it down)
    continuous   model.generate_batch, transformers' continuous batching

Three tasks: `full`, one batch of replies that all run to the full length; `ragged`, four batches' worth of replies that end at an
end token, half of them within a quarter of the length; `samples`, as `full` with 8 replies to each prompt (`generate`
gets the prompt 8 times, `num_return_sequences` does the same). Ours keeps the log-probability of every token, the peers do not.

The sides take turns and the best of the rounds counts for each, as other work on the machine only ever slows a round down;
the medians are printed too. Tokens are those up to the end token; CPU-seconds are the process's, prompts included.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the command sets it, before torch is loaded

import torch
import transformers

from starling.models.cpu_linear import use_onednn
from starling.models.sample import Sampler
from starling.records import Sampling

VOCABULARY = 4096
SAMPLES = 8
Side = Callable[[], int]
"""Runs the task once; how many tokens it gave."""


def model() -> Any:
    """The policy, as transformers makes it; its end tokens are chosen by each task."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=256, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=4,
        max_position_embeddings=2048, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def count(rows: list[list[int]], ends: set[int]) -> int:
    """Tokens up to and with the first end token of each row."""
    return sum(next((i + 1 for i, t in enumerate(row) if t in ends), len(row)) for row in rows)


def ours(net: Any, prompts: list[list[int]], samples: int, batch: int, length: int, ends: list[int]) -> Side:
    """Starling's sampler."""
    sampler = Sampler(net, ends, batch=batch)
    seeds = list(range(len(prompts) * samples))
    return lambda: sum(len(r.ids) for r in sampler.generate(prompts, Sampling(max_tokens=length), seeds, samples))


def generate(net: Any, prompts: list[list[int]], samples: int, batch: int, length: int, ends: list[int], cache: str) -> Side:
    """transformers' generate, batch after batch; prompts are of one length, so no padding burdens it."""
    rows = torch.tensor(prompts).repeat_interleave(samples, 0)

    def run() -> int:
        tokens = 0
        for ids in rows.split(batch):
            found = net.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=length, do_sample=True, top_k=0, top_p=1.0,
                eos_token_id=ends or VOCABULARY, pad_token_id=0, cache_implementation=cache, disable_compile=True, use_cache=True,
            )  # fmt: skip
            tokens += count(found[:, ids.shape[1] :].tolist(), set(ends))
        return tokens

    return run


def continuous(net: Any, prompts: list[list[int]], samples: int, batch: int, length: int, ends: list[int]) -> Side:
    """transformers' continuous batching."""
    rows = [p for p in prompts for _ in range(samples)]
    config = transformers.GenerationConfig(
        max_new_tokens=length, do_sample=True, top_k=0, top_p=1.0, eos_token_id=ends or VOCABULARY, pad_token_id=0
    )
    blocks = -(-(len(prompts[0]) + length) // 256) * batch + 8
    batching = transformers.ContinuousBatchingConfig(
        num_blocks=blocks, max_batch_tokens=max(1024, batch), max_requests_per_batch=batch, use_cuda_graph=False
    )

    def run() -> int:
        found = net.generate_batch(rows, generation_config=config, continuous_batching_config=batching, warmup=False)
        if len(found) != len(rows):
            raise RuntimeError(f"{len(found)} of {len(rows)} replies came back")
        return count([list(r.generated_tokens) for r in found.values()], set(ends))

    return run


def compare(sides: dict[str, Side], rounds: int) -> dict[str, Any]:
    """Tokens per CPU-second of each side, in turns; a side that fails is told and left out."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    failed: dict[str, str] = {}
    for _ in range(rounds):
        for name, side in sides.items():
            if name in failed:
                continue
            start = time.process_time()
            try:
                tokens = side()
            except Exception as error:
                failed[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                continue
            rates[name].append(tokens / (time.process_time() - start))
    best = {name: max(found) for name, found in rates.items() if found and name not in failed}
    peer = max((name for name in best if name != "ours"), key=lambda name: best[name])
    return {
        "best": {name: round(rate) for name, rate in best.items()},
        "median": {name: round(statistics.median(rates[name])) for name in best},
        "failed": failed,
        "peer": peer,
        "ratio": round(best["ours"] / best[peer], 2),
        "ratio_of_medians": round(statistics.median(rates["ours"]) / statistics.median(rates[peer]), 2),
    }


def task(name: str, batch: int, prompt: int, length: int) -> dict[str, Side]:
    """The sides of one task."""
    random = torch.Generator().manual_seed(batch)
    samples = SAMPLES if name == "samples" else 1
    rows = 4 * batch if name == "ragged" else batch
    prompts = torch.randint(3, VOCABULARY, (rows // samples, prompt), generator=random).tolist()
    # random weights draw nearly evenly: with a share of 2.8 / length of end tokens half of the replies are over in a quarter
    ends = list(range(3, 3 + round(2.8 / length * VOCABULARY))) if name == "ragged" else []
    given = model(), prompts, samples, batch, length, ends
    loaded = model()  # the same weights
    use_onednn(loaded)  # as Starling does with every model that it loads; the peers have transformers as it is
    return {
        "ours": ours(loaded, *given[1:]),
        "dynamic": generate(*given, "dynamic"),
        "static": generate(*given, "static"),
        "continuous": continuous(*given),
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    parser.add_argument("--quick", action="store_true", help="32 and 128 rows, short replies, one round: below three minutes")
    parser.add_argument("--cores", type=int, default=1, help="threads (default 1)")
    parser.add_argument("--prompt", type=int, default=32, help="tokens of a prompt (default 32)")
    parser.add_argument("--length", type=int, default=128, help="most tokens of a reply (default 128)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds (default 5)")
    parser.add_argument("--tasks", default="full,ragged,samples", help="which, with commas between")
    parser.add_argument("--batches", default="8,32,128", help="rows decoded together, with commas between")
    asked = parser.parse_args()
    if asked.quick:
        asked.batches, asked.length, asked.rounds = "32,128", 48, 1
        asked.tasks = "full,ragged"
    torch.set_num_threads(asked.cores)
    transformers.logging.set_verbosity(logging.CRITICAL)
    logging.disable(logging.WARNING)
    results: list[dict[str, Any]] = []
    print(f"{'task':8} {'batch':>5}  {'ours':>7} {'dynamic':>8} {'static':>8} {'contin.':>8}   tokens per CPU-second, best round")
    for name in asked.tasks.split(","):
        for batch in map(int, asked.batches.split(",")):
            found = compare(task(name, batch, asked.prompt, asked.length), asked.rounds)
            results.append({"task": name, "batch": batch, **found})
            rates = " ".join(f"{found['best'].get(side, 0) or '–':>8}" for side in ("ours", "dynamic", "static", "continuous"))
            ratio = f"{found['ratio']:.2f} × {found['peer']} (medians {found['ratio_of_medians']:.2f} ×)"
            print(f"{name:8} {batch:>5} {rates}   {ratio}")
            for side, why in found["failed"].items():
                print(f"         {side} failed: {why}", file=sys.stderr)
            sys.stdout.flush()
    about = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": platform.processor() or platform.machine(),
        **{name: getattr(asked, name) for name in ("cores", "prompt", "length", "rounds")},
    }
    if asked.json:
        with open(asked.json, "w", encoding="utf-8") as file:
            json.dump({**about, "results": results}, file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    main()
