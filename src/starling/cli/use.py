"""Commands that use what was made: talk, look."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from starling.cli.common import AsJson, app, complain, print_json


@app.command()
def chat(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A causal model's folder, or a run directory.")],
    greedy: Annotated[bool, typer.Option("--greedy", help="Most likely reply instead of a sampled one.")] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the sampled replies.")] = 0,
    against: Annotated[
        Path | None, typer.Option("--against", metavar="OTHER", help="A second model that answers every line too.")
    ] = None,
) -> None:
    """Talk to a policy: one line of stdin is one turn, an empty line starts a new conversation. At a terminal replies are shown
    as they grow, Ctrl-C stops one, and /help lists what else can be said."""
    from starling import conversation, interact
    from starling.records import Sampling

    sampling = Sampling(temperature=0.0 if greedy else 1.0, max_tokens=2048)
    folders = [interact.model_folder(folder, "policy") for folder in (path, against) if folder is not None]
    talks = [conversation.Conversation(conversation.Speaker(folder, seed), sampling) for folder in folders]
    if len(talks) > 1 and talks[0].speaker.name == talks[1].speaker.name:  # two runs: both are called policy
        for talk, folder in zip(talks, (path, against), strict=True):
            talk.speaker.name = str(folder)
    typed = sys.stdin.isatty()
    if typed:
        complain(f"{', '.join(talk.speaker.name for talk in talks)}: /help lists the commands, Ctrl-D ends")
    conversation.talk(talks, _typed_line if typed else _piped_line, _show, complain, commands=typed)


def _typed_line() -> str | None:
    """The next line from a terminal, with editing and history where Python has readline."""
    import contextlib

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # input() uses it once it is there
    try:
        return input("you> ")
    except EOFError:
        print()
        return None


def _piped_line() -> str | None:
    line = sys.stdin.readline()
    return line.rstrip("\n") if line else None


def _show(text: str) -> None:
    print(text, end="", flush=True)


@app.command()
def sample(
    path: Annotated[Path, typer.Argument(metavar="MODEL", help="A causal model's folder, or a run directory.")],
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FILE]...", help="Files of prompts: jsonl, json, csv (also .gz), parquet, txt; none: stdin."),
    ] = None,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Replies to each prompt.")] = 1,
    temperature: Annotated[float, typer.Option("--temperature", min=0, help="0 takes the most likely token.")] = 1.0,
    top_p: Annotated[float, typer.Option("--top-p", min=0.0, max=1.0, help="Mass of the nucleus that tokens come from.")] = 1.0,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Longest reply in tokens.")] = 512,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed and prompt give the same replies.")] = 0,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Replies that are sampled together.")] = 64,
) -> None:
    """Replies of a model to many prompts, one line of JSON each, in the order of the prompts.

    A prompt is a line of text, or a row with prompt (text, Nectar transcript, messages) or messages. Each reply has text,
    finish, tokens and logprob, the sum over its tokens at the temperature asked for."""
    from starling import interact, sampling
    from starling.errors import UsageError
    from starling.progress import SILENT, RichProgress
    from starling.records import Sampling

    if top_p == 0:
        raise UsageError("A nucleus without mass has no tokens", where="--top-p", cure="give more than 0, or --temperature 0")
    progress = RichProgress() if sys.stderr.isatty() and not sys.stdout.isatty() else SILENT
    sampling.run(
        interact.model_folder(path, "policy"),
        sampling.asked_in(files) if files else sampling.asked_on(sys.stdin.buffer),
        Sampling(temperature=temperature, top_p=top_p, max_tokens=max_tokens),
        samples=samples,
        seed=seed,
        batch=batch,
        write=print,
        progress=progress,
    )


@app.command()
def show(
    artifact: Annotated[
        Path, typer.Argument(metavar="ARTIFACT", help="Folder of a finished stage, e.g. runs/tiny/ranking, or a journal.sqlite.")
    ],
    outcome: Annotated[
        str | None,
        typer.Option(
            "--outcome", metavar="NAME", help="Only rows with this outcome; of a journal: answered, failed or unfinished."
        ),
    ] = None,
    rows: Annotated[int, typer.Option("--rows", min=0, help="How many rows to print.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Show an artifact: where it came from, counts and failures, rows; judgments with the judge's raw reply. Or a journal of
    model calls: what they came to, and the newest calls with question, raw replies and cost."""
    from starling import interact

    if artifact.is_file():
        about, listed = interact.journal_rows(artifact, outcome, rows)
        _shown(about, listed, as_json)
        return
    found = interact.open_folder(artifact)
    about = {
        "stage": found.stage, "fingerprint": found.fingerprint, "rows": found.rows, "seconds": found.seconds,
        "outcomes": found.outcomes, "inputs": found.inputs, "metrics": found.metrics, "config": found.config,
    }  # fmt: skip
    _shown(about, interact.artifact_rows(found, outcome, rows), as_json)


def _shown(about: dict[str, Any], listed: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json({**about, "sample": listed})
        return
    for name, value in about.items():
        print(f"{name}: {json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value}")
    for row in listed:
        print()
        print_json(row)
