"""Time and memory of stage 1 on synthetic conversations in the form of lmsys-chat-1m, with every filter on.

`python benchmarks/gather_prompts.py 200000` makes that many rows of about 1.6 kB (a tenth repeats a prompt, another tenth
changes one word of one), gathers them with language filter, near-duplicates and a benchmark of 1,000 items, writes the tables as
the stage does, and prints one line of JSON. Words are invented, so the language filter keeps all languages; it costs the
same.
"""

from __future__ import annotations

import json
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

from starling import prompts
from starling.artifacts import write_records
from starling.config import PromptsSection
from starling.progress import RichProgress
from starling.records import FoundAnswer, Prompt


def make(folder: Path, count: int) -> None:
    """Write rows.jsonl and benchmark.jsonl."""
    rng = random.Random(0)
    lexicon = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 9))) for _ in range(20_000)]

    def text(least: int, most: int) -> str:
        return " ".join(rng.choices(lexicon, k=rng.randint(least, most)))

    asked: list[str] = []
    with (folder / "rows.jsonl").open("w") as out:
        for _ in range(count):
            kind = rng.random()
            prompt = rng.choice(asked) if asked and kind < 0.2 else text(8, 150)
            if asked and 0.1 < kind < 0.2:
                words = prompt.split()
                words[rng.randrange(len(words))] = rng.choice(lexicon)
                prompt = " ".join(words)
            if len(asked) < 50_000:
                asked.append(prompt)
            turns = [("user", prompt), ("assistant", text(50, 250))]
            if kind > 0.8:
                turns += [("user", text(5, 30)), ("assistant", text(50, 150))]
            conversation = [{"role": role, "content": content} for role, content in turns]
            out.write(json.dumps({"model": f"m{rng.randrange(20)}", "conversation": conversation, "language": "English"}) + "\n")
    (folder / "benchmark.jsonl").write_text("".join(json.dumps({"instruction": text(5, 60)}) + "\n" for _ in range(1000)))


def main(count: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, count)
        settings = PromptsSection.model_validate(
            {
                "sources": [{"type": "file", "path": folder / "rows.jsonl", "name": "synthetic", "language": "English"}],
                "languages": ["en"],
                "language_rank": 1000,
                "near_duplicates": {},
                "decontamination": {"sets": [{"name": "benchmark", "path": folder / "benchmark.jsonl"}]},
            }
        )
        started, began = time.monotonic(), time.process_time()
        found = prompts.gather(settings, [], RichProgress(), folder=folder)
        write_records(folder / "prompts.parquet", found.prompts, Prompt)
        write_records(folder / "answers.parquet", found.answers, FoundAnswer)
        write_records(folder / "dropped.parquet", found.rows, prompts.GatheredRow)
        numbers = {
            "rows": count,
            "prompts": len(found.prompts),
            **found.dropped,
            "cpu_s": round(time.process_time() - began, 1),
            "wall_s": round(time.monotonic() - started, 1),
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        }
        print(json.dumps(numbers))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
