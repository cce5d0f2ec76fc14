"""What the plan of the trainings starts from: shapes of the models that the settings name, how many rankings, how long.

Read where it is there: the dataset stage or the file of `reward.data`, the run's prompts. What is not there is assumed, and the
plan says so; a file that is named after a public dataset whose size is known (KNOWN_DATA) has that size before it is downloaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from starling.artifacts import open_artifact
from starling.config import Config, MicroworldJudge
from starling.endpoint.limits import CHARS_PER_TOKEN
from starling.errors import ArtifactError, InputError
from starling.forecast import ASSUMED_REPLY_TOKENS
from starling.lineage import MICROWORLD_BASE
from starling.records import Prompt
from starling.rows import count_rows, read_rows
from starling.shapes import Shape, find_shape, shape_of

ASSUMED_PROMPT_TOKENS = 133
"""The 775 prompts of berkeley-nest/Nectar that were released with the judge's replies have 532 characters on average."""
LOOKED_AT = 500
"""Rows at the head of a file from which its lengths are taken."""

KNOWN_DATA = {"berkeley-nest/Nectar": (182_954, 7)}
"""Public datasets by the folder that they are downloaded to: rankings and answers per ranking."""


def shape_named(config: Config, folder: str, setting: str) -> Shape:
    """The shape of the model that `reward.backbone` or `policy.base` names.

    Raises:
        InputError: it cannot be told (`shapes.find_shape`).
    """
    if folder != MICROWORLD_BASE:
        try:
            return find_shape(Path(folder))
        except InputError as error:
            raise InputError(error.what, where=f"{setting} = {folder}", cure=error.cure) from None
    made = config.run.dir / "world" / "base"
    if made.is_dir():
        return find_shape(made)
    world = config.microworld
    if world is None:
        raise InputError("There is no [microworld] whose base could be trained", where=setting, cure="name a model folder")
    return shape_of(
        {
            "model_type": "llama", "hidden_size": world.hidden, "num_hidden_layers": world.layers,
            "num_attention_heads": world.heads, "intermediate_size": 7 * world.hidden // 2, "vocab_size": world.vocab,
            "tie_word_embeddings": True,
        },
        "[microworld]",
    )  # fmt: skip


@dataclass(frozen=True)
class Rankings:
    """What a reward model will be trained on; lengths in tokens."""

    count: int
    held_out: int
    k: int
    prompt: float
    answer: float
    longest: float
    """Answer tokens at most, on average."""
    basis: str


def rankings_of(config: Config, prompts: Sequence[Prompt]) -> Rankings:
    """The rankings of `reward.data`, of the dataset stage, or those that the run will make of its prompts.

    Raises:
        InputError: their number cannot be told.
    """
    settings = config.reward
    if settings.data is not None:
        count, k, prompt, answer, basis = _of_data(settings.data)
        held_out = round(count * settings.validation_fraction)
        return Rankings(count - held_out, held_out, k, prompt, answer, answer, basis)  # what is written has its length
    answers = config.responses.answers if config.responses else 0
    prompt, basis = prompt_tokens(prompts)
    longest = float(max((m.sampling.max_tokens for m in _answering(config)), default=settings.max_length))
    answer = min(float(ASSUMED_REPLY_TOKENS), longest)
    try:
        folder = open_artifact(config.run.dir, "dataset").path
        sizes = {p.stem: count_rows(p) for p in folder.glob("*.parquet")}
        return Rankings(
            sizes.get("train", 0), sizes.get("validation", 0), answers, prompt, answer, longest, f"rankings of {folder}; {basis}"
        )
    except ArtifactError:
        pass
    if not prompts:
        raise InputError(
            "How many rankings there will be is not known without the prompts",
            where="[prompts]",
            cure="put the prompt files where the settings say, or name a file in reward.data",
        )
    splits = [p.split for p in prompts]
    return Rankings(
        splits.count("train"), splits.count("validation"), answers, prompt, answer, longest, f"every prompt ranked; {basis}"
    )


def _answering(config: Config) -> list[Any]:
    models = [config.models[name] for name in (config.responses.names if config.responses else ())]
    return [m for m in models if not isinstance(m, MicroworldJudge)]


def _of_data(data: Path) -> tuple[int, int, float, float, str]:
    """(rows, answers per row, prompt tokens, answer tokens, where that comes from) of a Nectar file or an imported folder."""
    file = data / "rankings.parquet" if data.is_dir() else data
    if not file.is_file():
        for name, (count, k) in KNOWN_DATA.items():
            if f"/{name}/" in f"/{data.as_posix()}/":
                return count, k, ASSUMED_PROMPT_TOKENS, ASSUMED_REPLY_TOKENS, f"size of {name}; assumed lengths"
        raise InputError(
            "The file of rankings is not there, and it is not named after a public one whose size is known",
            where=f"reward.data = {data}",
            cure=f"download it first; or, for a plan alone, put it under a folder like data/{next(iter(KNOWN_DATA))}",
        )
    rows = [row.value for row in islice(read_rows(file), LOOKED_AT) if row.value is not None]
    texts = [[str(a.get("answer", "")) for a in row.get("answers") or () if isinstance(a, dict)] for row in rows]
    per_row = sum(map(len, texts))
    if not per_row:
        raise InputError("The first rows have no answers", where=f"reward.data = {data}", cure="give a Nectar-schema file")
    return (
        count_rows(file),
        round(per_row / len(rows)),
        sum(len(str(row.get("prompt", ""))) for row in rows) / len(rows) / CHARS_PER_TOKEN,
        sum(len(text) for answers in texts for text in answers) / per_row / CHARS_PER_TOKEN,
        f"rows of {file}; lengths of the first {len(rows)}, four characters a token",
    )


def prompt_tokens(prompts: Sequence[Prompt]) -> tuple[float, str]:
    """Mean tokens of a prompt and where that comes from."""
    if not prompts:
        return ASSUMED_PROMPT_TOKENS, "assumed lengths"
    chars = sum(len(m.content) for p in prompts for m in p.messages)
    return chars / len(prompts) / CHARS_PER_TOKEN, f"lengths of {len(prompts):,} prompts, four characters a token"
