"""Commands around a reward model: score, serve, export."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from starling.cli.common import AsJson, app, complain, print_json

if TYPE_CHECKING:
    from starling.models.scorer import Scorer

ModelPath = Annotated[Path, typer.Argument(metavar="PATH", help="A reward model's folder, an adapter's, or a run directory.")]
Base = Annotated[
    Path | None,
    typer.Option("--base", metavar="DIR", help="Folder of an adapter's base model, if it is not where the adapter says."),
]
Dtype = Annotated[
    str,
    typer.Option("--dtype", metavar="NAME", help="Weights in memory: float32 (default), bfloat16 or float16."),
]


@app.command()
def score(
    path: ModelPath,
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[FILE]...", help="Files of rows: jsonl, json, csv (also .gz), parquet, or folders; none: jsonl on stdin."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write a .jsonl or .parquet file; a killed run goes on.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first row that cannot be read.")] = False,
    base: Base = None,
    dtype: Dtype = "float32",
) -> None:
    """Rewards for conversations, one line per reply, in the order of the rows: of files, or of stdin to stdout.

    A row has messages, or prompt and response, or prompt and answers (Nectar), or chosen and rejected."""
    from starling import interact, scoring
    from starling.errors import UsageError
    from starling.progress import SILENT, RichProgress
    from starling.rows import files_of, line_rows, read_rows

    folder = interact.model_folder(path, "reward")
    check_dtype(dtype)
    if out is not None and not files:
        raise UsageError("--out needs files to read", where="the command line", cure="name FILEs, or redirect stdout instead")
    if out is not None:
        key = [scoring.folder_key(folder), str(base), dtype]
        counts = scoring.score_files(
            lambda: load_scorer(folder, base, dtype), files or [], out, key, strict=strict, progress=RichProgress()
        )
        print(json.dumps({"out": str(out), "outcomes": dict(sorted(counts.items()))}))
        return
    if files:
        items = (scoring.read_item(row, str(file)) for file in files_of(files) for row in read_rows(file))
    else:
        items = (scoring.read_item(row) for row in line_rows(sys.stdin.buffer))
    tally = scoring.Tally()
    progress = RichProgress() if sys.stderr.isatty() and not sys.stdout.isatty() else SILENT
    progress.start("scoring rows", 0)
    try:
        for found in scoring.score_items(load_scorer(folder, base, dtype), items, strict=strict, progress=progress):
            tally.add(found)
            print(scoring.as_json(found))
    finally:
        progress.finish()
    tally.check()


def check_dtype(dtype: str) -> None:
    """Refuse other names of weights' types than those offered."""
    from starling.errors import UsageError

    if dtype not in ("float32", "bfloat16", "float16"):
        raise UsageError(f"There is no dtype '{dtype}'", where="--dtype", cure="use float32, bfloat16 or float16")


def load_scorer(folder: Path, base: Path | None, dtype: str) -> Scorer:
    """The reward model of a folder, ready to score; this imports torch."""
    from starling.models.scorer import Scorer

    return Scorer(folder, base, dtype)


@app.command("serve-reward")
def serve_reward(
    path: ModelPath,
    host: Annotated[str, typer.Option("--host", help="Address to listen on; beyond loopback a key is needed.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    name: Annotated[str | None, typer.Option("--name", metavar="NAME", help="Model name in answers; else the folder's.")] = None,
    key_env: Annotated[
        str, typer.Option("--key-env", metavar="NAME", help="Environment variable of the API key, else STARLING_REWARD_KEY.")
    ] = "STARLING_REWARD_KEY",
    base: Base = None,
    dtype: Dtype = "float32",
) -> None:
    """Serve a reward model over HTTP as vLLM, SGLang and OpenRLHF do: /classify, /pooling, /score, /get_reward."""
    import os

    from starling import interact
    from starling.serve_reward import RewardServer, check_host, serve

    folder = interact.model_folder(path, "reward")
    check_dtype(dtype)
    key = os.environ.get(key_env) or None
    check_host(host, key, key_env)
    server = RewardServer(load_scorer(folder, base, dtype), name or folder.resolve().name, key)
    serve(server, host, port, lambda url: complain(f"{server.name} answers on {url}; Ctrl-C stops it"))


@app.command("export-reward")
def export_reward(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="A file or folder as of Starling-RM-7B or -34B, or a peft adapter's folder.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; new or empty.")],
    base: Annotated[
        Path | None,
        typer.Option("--base", metavar="DIR", help="Folder with config and tokenizer, of an adapter its base model."),
    ] = None,
    template: Annotated[
        str | None, typer.Option("--template", metavar="NAME", help="llama-2 or chatml; found from the tokenizer if not given.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a reward model as a transformers sequence classifier, which transformers, vLLM, SGLang, TRL and RewardBench open."""
    from starling.models.public_layouts import export
    from starling.progress import RichProgress

    done = export(source, out, base=base, template=template, progress=RichProgress())
    if as_json:
        print_json({"out": str(out), **asdict(done)})
        return
    left_out = f"; left out: {', '.join(done.left_out[:4])}{' …' if len(done.left_out) > 4 else ''}" if done.left_out else ""
    print(f"{out}: {done.weights} weights in {done.dtype}, template {done.template}, pad token {done.pad_token}{left_out}")
