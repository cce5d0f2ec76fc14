"""The exceptions of Starling, one class per boundary crossed.

    StarlingError
    ├── UsageError            exit 2: the command or its settings are wrong, nothing was started
    │   └── ConfigError       a settings file or --set value that does not validate
    ├── InputError            exit 1: a data file that cannot be used as it is
    ├── ArtifactError         a stage's output that is missing, half-written or altered
    ├── JournalError          the journal of model calls cannot be opened or written
    ├── EndpointError         a model server, or a local model behind an endpoint, cannot be used
    │   └── BudgetError       the spending limit of the run is reached
    ├── TrainingError         training cannot go on (non-finite loss, mismatching checkpoint)
    └── MissingExtra          an optional part of Starling is not installed

Every message is one paragraph in three parts: what happened, where, what to do. A single bad row or a single failed
model call is never an exception: it is a named outcome in `starling.records`.
"""

from __future__ import annotations


class StarlingError(Exception):
    """Base of all errors that Starling raises on purpose.

    Args:
        what: what happened, one sentence.
        where: the file, line, field, row or URL it happened at.
        cure: what the user can do about it.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str, cure: str) -> None:
        self.what = what
        self.where = where
        self.cure = cure
        super().__init__(f"{_sentence(what)} Where: {_sentence(where)} What to do: {_sentence(cure)}")


def _sentence(text: str) -> str:
    """`text` on one line, with exactly one mark at its end."""
    line = " ".join(text.split())
    return line if line.endswith(("!", "?", "…")) else line.rstrip(".") + "."


class UsageError(StarlingError):
    """The command was called wrongly; nothing was started and nothing was written."""

    exit_code = 2


class ConfigError(UsageError):
    """A settings file or a `--set` value does not validate."""


class InputError(StarlingError):
    """A data file (prompts, rankings, votes, a model folder) cannot be used as it is."""


class ArtifactError(StarlingError):
    """A stage's output is missing, half-written, altered or of another schema version."""


class JournalError(StarlingError):
    """The journal of model calls cannot be opened, written or understood."""


class EndpointError(StarlingError):
    """A model server, or a local model served as an endpoint, cannot be used at all."""


class BudgetError(EndpointError):
    """The spending limit of the run is reached; everything paid for is in the journal."""


class TrainingError(StarlingError):
    """Training cannot go on: a non-finite loss, or a checkpoint that does not fit the settings."""


class MissingExtra(StarlingError):
    """An optional part of Starling is not installed."""

    def __init__(self, extra: str, module: str) -> None:
        super().__init__(
            f"The part '{extra}' of Starling is not installed: the module {module} is missing",
            where=f"import {module}",
            cure=f'pip install "starling-rlaif[{extra}]"',
        )
