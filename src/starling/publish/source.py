"""What the cards are made from: a run's artifacts, what the settings say about licences, and the first of its judgments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from starling.artifacts import Artifact, RecordFile
from starling.config import Model, PublishSection, Terms
from starling.publish.text import table
from starling.records import Judgment


@dataclass(frozen=True)
class Source:
    """What the cards are made from."""

    run_dir: Path
    found: Mapping[str, Artifact]
    settings: PublishSection
    models: Mapping[str, Model] = field(default_factory=dict)
    """The run's models by name, for their prices."""

    def metrics(self, stage: str) -> Mapping[str, Any]:
        return self.found[stage].metrics if stage in self.found else {}

    def chosen(self, stage: str, section: str) -> Mapping[str, Any]:
        """The settings that a stage read; paths are replaced by hashes of what lay there."""
        value = self.found[stage].config.get(section) if stage in self.found else None
        return value if isinstance(value, Mapping) else {}

    @property
    def judgments(self) -> Iterable[Judgment]:
        """The judge's calls, one by one; none when the run has no ranking."""
        return RecordFile(self.found["ranking"].path / "judgments.parquet", Judgment) if "ranking" in self.found else ()

    @cached_property
    def judge(self) -> Judgment | None:
        """Any of the run's judgments: all share judge and rubric."""
        return next(iter(self.judgments), None)


def origin(source: Source, stage: str) -> str:
    """Which code made it, and which bytes it is."""
    artifact = source.found[stage]
    return f"Made by Starling {artifact.code_version}; fingerprint of the artifact `{artifact.fingerprint}`."


def terms(source: Source, models: Iterable[str] = (), sources: Iterable[str] = ()) -> str:
    """Licences and terms of what was made and of all that it was made with: what the settings do not state is said to be missing.

    Args:
        source: the run.
        models: labels of the models whose answers are in it.
        sources: labels of the prompt sources that are in it.
    """
    given = source.settings
    used: list[tuple[str, str, Terms]] = []
    if source.judge is not None:
        kind = source.chosen("ranking", "judge").get(source.judge.judge, {})
        used.append(("judge", source.judge.judge, _known(kind, Terms(license=given.judge_license, terms=given.judge_terms))))
    pool = source.chosen("responses", "pool")
    used += [("model that answered", name, _known(pool.get(name, {}), given.models.get(name))) for name in models]
    for name in sources:
        ours = {"type": name} if name.startswith("microworld/") else {}
        used.append(("prompt source", name, _known(ours, given.sources.get(name))))
    lines = [f"Licence of this folder, as its publisher states it: {given.license}. Whatever follows binds its users too."]
    missing = [f"{what} `{name}`" for what, name, one in used if not (one.license and one.terms)]
    if missing:
        lines.append(
            f"**Not stated by the publisher**, in part or at all: {', '.join(missing)}. Find out before you use this or pass it "
            "on: many providers forbid training competing models on what theirs write."
        )
    said = "**not stated**"
    rows = [(what, f"`{name}`", one.license or said, one.terms or said) for what, name, one in used]
    if rows:
        lines.append(table(("what", "name", "licence", "terms"), rows))
    return "\n\n".join(lines)


def _known(kind: Mapping[str, Any], stated: Terms | None) -> Terms:
    """What the settings state; of the microworld, which is part of Starling, what holds when they state nothing."""
    stated = stated or Terms()
    if not str(kind.get("type", "")).startswith("microworld"):
        return stated
    return Terms(license=stated.license or "apache-2.0", terms=stated.terms or "none: part of Starling, made offline")
