"""A Nectar of full size on two cores: 182,954 prompts with 7 answers each, written, checked, summarised and read back.

    python benchmarks/nectar_scale.py --out runs/nectar_scale          (two minutes; 1 GB of disk)
    python benchmarks/nectar_scale.py --rows 10000

Goal: at most 3 minutes and 2 GiB for all four phases together. The rows are made from a seed, answers of 1.5 kB on average out of
words with natural frequencies, and made again to compare with what is read: every row has to come back equal. A phase's memory
is the peak of the process in that phase (VmHWM, reset before each), so what is not given back counts in the next one too.

    write      make 182,954 RankedPrompts, validated by their class, and write them with all ten columns
    check      every law of the schema on every row                                     (check_nectar)
    summarise  the figures of the dataset card, rows checked again on the way           (summarise)
    read       every row as a validated RankedPrompt, compared with the one made        (NectarFile)
    import     the file as if others had written it, into a new one; on demand only     (--import)
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

from starling.nectar import NectarFile, NectarImport, check_nectar, summarise, write_nectar
from starling.records import Message, PlacedVerdict, Prompt, RankedAnswer, RankedPair, RankedPrompt

K = 7
MODELS = tuple(f"model-{i:02d}" for i in range(39))
"""Nectar has answers of 39 models."""
SOURCES = (("lmsys-chat-1m",), ("sharegpt",), ("ultrachat",), ("evol-instruct",), ("flan", "niv2"), ("anthropic-hh",))
PAIRS = tuple((i, j) for i in range(K) for j in range(i + 1, K))


def text_pool(rng: random.Random, size: int = 24_000_000) -> str:
    """Words with Zipf's frequencies, a line break here and there; answers are cut out of it. Much longer than zstd's window, so
    that it packs as badly as real text does."""
    letters = "etaoinshrdlucmfwypvbgkéß😀"
    words = ["".join(rng.choices(letters, k=rng.randint(1, 11))) for _ in range(20_000)]
    weights = list(accumulate(1 / rank for rank in range(1, len(words) + 1)))
    parts: list[str] = []
    length = 0
    while length < size:
        chunk = " ".join(rng.choices(words, cum_weights=weights, k=200)) + ".\n\n"
        parts.append(chunk)
        length += len(chunk)
    return "".join(parts)


def make(count: int, pool: str, seed: int) -> Iterator[RankedPrompt]:
    """Rows with all that a run's own dataset holds; one in fifty with a tie."""
    rng = random.Random(seed)

    def text(low: int, high: int) -> str:
        start = rng.randrange(len(pool) - high)
        return pool[start : start + rng.randint(low, high)]

    for number in range(count):
        turns = [Message(role="user", content=f"{number} {text(40, 900)}")]
        while rng.random() < 0.25:
            turns += [Message(role="assistant", content=text(200, 1800)), Message(role="user", content=f"and {text(20, 300)}")]
        tied = rng.random() < 0.02
        ranks = [1.0, 2.0, 2.0, 4.0, 5.0, 6.0, 7.0] if tied else [float(i) for i in range(1, K + 1)]
        answers = [
            RankedAnswer(answer=text(300, 2800), model=model, rank=rank)
            for model, rank in zip(rng.sample(MODELS, K), ranks, strict=True)
        ]
        certain = [rng.random() < 0.85 for _ in PAIRS]
        yield RankedPrompt(
            prompt=Prompt.make(tuple(turns), rng.choice(SOURCES)),
            answers=tuple(answers),
            good_natured=None if rng.random() < 0.01 else rng.random() < 0.9,
            pairs=tuple(
                RankedPair(better=i, worse=j, confidence=1.0 if sure else 0.5, weight=2.0)
                for (i, j), sure in zip(PAIRS, certain, strict=True)
            ),
            verdicts=tuple(
                PlacedVerdict(first=i, second=j, winner=i if sure else j) for (i, j), sure in zip(PAIRS, certain, strict=True)
            ),
            contested=not all(certain),
            judge_calls=2,
        )


def peak_mib() -> float:
    """Highest resident memory since `forget_peak`, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise SystemExit("this benchmark reads /proc/self/status and needs Linux")


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    """Run the phases, print one line each, write OUT/nectar_scale.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=182_954)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--import", dest="import_too", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "train.parquet"
    pool = text_pool(random.Random(args.seed))
    raw = 0

    def write() -> int:
        def counted() -> Iterator[RankedPrompt]:
            nonlocal raw
            for row in make(args.rows, pool, args.seed):
                raw += sum(len(a.answer) for a in row.answers) + sum(len(m.content) for m in row.prompt.messages)
                yield row

        return write_nectar(file, counted(), extra=True)

    def read() -> int:
        back = 0
        for made, found in zip(make(args.rows, pool, args.seed), NectarFile(file), strict=True):
            assert made == found, f"row {back + 1} came back different"
            back += 1
        return back

    def summary() -> int:
        found = summarise([file])
        assert sum(m.every.answers for m in found.models.values()) == K * args.rows
        return found.rows

    def imported() -> int:
        return write_nectar(args.out / "imported.parquet", NectarImport(file))

    phases: dict[str, Callable[[], int]] = {
        "write": write,
        "check": lambda: check_nectar(file),
        "summarise": summary,
        "read": read,
    }
    if args.import_too:
        phases["import"] = imported
    lines: list[dict[str, Any]] = []
    for name, phase in phases.items():
        forget_peak()
        started, cpu = time.perf_counter(), time.process_time()
        rows = phase()
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        lines.append(
            {"phase": name, "rows": rows, "seconds": round(seconds, 1), "cpu_s": round(cpu, 1), "peak_mib": round(peak_mib())}
        )
        print(lines[-1], flush=True)
    total = {
        "phase": "all",
        "rows": args.rows,
        "seconds": round(sum(line["seconds"] for line in lines), 1),
        "cpu_s": round(sum(line["cpu_s"] for line in lines), 1),
        "peak_mib": max(line["peak_mib"] for line in lines),
    }
    print(total)
    found = {"phases": [*lines, total], "raw_characters": raw, "file_bytes": file.stat().st_size}
    print(f"{raw / 1e9:.2f} billion characters, {file.stat().st_size / 1e9:.2f} GB on disk")
    (args.out / "nectar_scale.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
