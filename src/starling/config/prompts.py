"""Settings of stage 1: where prompts come from, what is dropped, merged, kept apart and mixed.

Sources of defaults: "Nectar" = the public notebook that made Nectar's prompts; other sources are named where they stand.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from starling.config.base import Section

Format = Literal[
    "auto", "plain", "nectar", "hh-rlhf", "lmsys-chat", "sharegpt", "ultrafeedback", "evol-instruct", "flan", "llama-instruct"
]
Paths = Path | tuple[Path, ...]


class MicroworldPrompts(Section):
    type: Literal["microworld"]


class FilePrompts(Section):
    type: Literal["file"]
    path: Paths = Field(
        description="A jsonl, json (one array), csv or parquet file (.gz too, but for parquet), a folder of such shards, a glob, "
        "or a list of these; shards are read in the order of their names."
    )
    name: str = Field(
        min_length=1,
        description="Source label written into the dataset; UltraFeedback and Nectar rows keep the labels they bring.",
    )
    format: Format = Field(
        default="auto", description="How a row holds its prompt; `auto` recognises each row by its columns (docs/data.md)."
    )
    turns: Literal["first", "last", "every"] = Field(
        default="last",
        description="Which user turns of a conversation become prompts: the first alone (Nectar, of lmsys-chat-1m), the last "
        "with all before it (Nectar, of HH-RLHF), or each with all before it.",
    )
    language: str | None = Field(
        default=None, description="Keep only rows whose column `language` says this, e.g. English in lmsys-chat-1m (Nectar)."
    )
    model: str | None = Field(
        default=None,
        description="Label of answers whose row names no model; else anthropic in hh-rlhf, llama-2-70b-chat in llama-instruct "
        "(both Nectar), and unknown.",
    )
    min_answers: int = Field(
        default=0,
        ge=0,
        description="Keep only prompts of this source with at least so many different answers (Nectar: 2 of lmsys).",
    )
    take: int | None = Field(
        default=None,
        gt=0,
        description="Prompts kept of this source, chosen by seed and content (Nectar: 75,000 of HH-RLHF, 45,000 of lmsys); all "
        "when not given. A prompt of several sources belongs to the first.",
    )
    weight: float | None = Field(
        default=None, gt=0, description="Share of `prompts.total` relative to the other sources' weights; all sources or none."
    )


PromptSource = Annotated[MicroworldPrompts | FilePrompts, Field(discriminator="type")]


class NearDuplicatesSection(Section):
    threshold: float = Field(
        default=0.8,
        ge=0.5,
        lt=1,
        description="Least Jaccard similarity of the 5-character shingles of each turn (0.8: Lee et al., arXiv 2107.06499).",
    )


class BenchmarkSet(Section):
    name: str = Field(min_length=1, description="How the report calls the set, e.g. mt_bench.")
    path: Paths = Field(
        description="Its file or files: FastChat's question.jsonl, AlpacaEval's json, TruthfulQA's csv, or any file that prompts "
        "can be read from."
    )
    column: str | None = Field(
        default=None,
        description="Column with the text (or list of texts) of an item; else turns, instruction, question, prompt or messages.",
    )


class DecontaminationSection(Section):
    sets: tuple[BenchmarkSet, ...] = Field(min_length=1, description="The benchmarks to keep out, given by path.")
    ngram: int = Field(
        default=13,
        ge=5,
        description="Words in a row that a prompt may not share with an item; a shorter item counts when all of it is there "
        "(13: GPT-3, arXiv 2005.14165, appendix C).",
    )
    action: Literal["drop", "mark"] = Field(
        default="drop", description="drop the prompts, or keep them and list them in contaminated.parquet."
    )


class PromptsSection(Section):
    sources: tuple[PromptSource, ...] = Field(
        min_length=1, description="Where prompts come from, in order of preference for duplicates."
    )
    train: int | None = Field(default=None, gt=0, description="Prompts kept for ranking and tuning; all when not given.")
    total: int | None = Field(
        default=None,
        gt=0,
        description="Prompts kept of all sources together, shared out by their weights, by their sizes when none has one.",
    )
    validation_fraction: float = Field(default=0.1, ge=0, lt=1, description="Share of conversations for choosing settings.")
    test_fraction: float = Field(default=0.1, ge=0, lt=1, description="Share of conversations that no stage trains on.")
    max_chars: int = Field(default=20_000, gt=0, description="Longer conversations are dropped and counted.")
    min_chars: int = Field(
        default=0,
        ge=0,
        description="Shorter conversations are dropped and counted (Nectar: 19, for it asks for more than 40 with the markers).",
    )
    max_turns: int | None = Field(default=None, gt=0, description="Conversations of more user turns are dropped and counted.")
    min_answers: int = Field(
        default=0, ge=0, description="Prompts that bring along fewer different answers are dropped and counted (Nectar: 2)."
    )
    languages: tuple[str, ...] = Field(
        default=(), description='ISO 639-1 codes of the languages to keep, e.g. ["en"] (Nectar); all when empty.'
    )
    language_rank: int = Field(
        default=3, gt=0, description="A language counts when it is among so many likeliest of a prompt (Nectar: 3)."
    )
    duplicates: Literal["characters", "words", "letters"] = Field(
        default="words",
        description="What makes two conversations the same: every character; their words and signs whatever the case, spacing "
        "and sentence marks; or letters and digits only (Nectar, for which 3 + 4 and 3 - 4 are one).",
    )
    near_duplicates: NearDuplicatesSection | None = Field(
        default=None,
        description="Merge near-duplicates, and keep conversations that open nearly alike in one split; off by default.",
    )
    decontamination: DecontaminationSection | None = Field(default=None, description="Keep benchmark items out; off by default.")

    @model_validator(mode="after")
    def _weights_share_a_total(self) -> PromptsSection:
        weighted = [source.type == "file" and source.weight is not None for source in self.sources]
        if any(weighted) and not all(weighted):
            raise ValueError("either all sources have a weight or none")
        if any(weighted) and self.total is None:
            raise ValueError("weights share out prompts.total, which is not given")
        return self
