"""What a conversation must be to be a prompt of this run: lengths, turns, language, and that the dataset can hold it.

Language: as in Nectar, py3langid ranks the languages of the lower-cased text, and one that is wanted must be among the likeliest
few. Of the offline detectors it is the one whose model travels in the wheel (4.6 MB, numpy only, no pickle, no download).
Departures: its model is that of version 0.4 (Nectar: 0.2.2), it looks at what the user says and at no more than 2,000 characters,
and a text without a letter (a sum, an emoji) is kept, since nothing can be said about its language.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Any

from starling.chat import to_transcript
from starling.config import PromptsSection
from starling.errors import ConfigError, InputError, MissingExtra
from starling.prompts.formats import Dropped
from starling.records import Messages

LANGUAGE_CHARS = 2000
"""Characters that language is told from: more changes the answer hardly ever, and time grows with it."""


class Filters:
    """The filters that the settings ask for.

    Raises:
        MissingExtra: languages are asked for and py3langid is not installed.
        ConfigError: it does not know one of them.
    """

    def __init__(self, settings: PromptsSection) -> None:
        self._settings = settings
        self._languages = _identifier(settings) if settings.languages else None

    def check(self, messages: Messages) -> None:
        """Pass, or raise Dropped: empty, too_long, too_short, too_many_turns, not_a_transcript, other_language."""
        limits = self._settings
        if not messages or not messages[-1].content.strip():
            raise Dropped("empty")
        length = sum(len(m.content) for m in messages)
        if length > limits.max_chars:
            raise Dropped("too_long")
        if length < limits.min_chars:
            raise Dropped("too_short")
        if limits.max_turns is not None and sum(m.role == "user" for m in messages) > limits.max_turns:
            raise Dropped("too_many_turns")
        try:
            to_transcript(messages)  # what the dataset could not hold is not worth paying answers and a judge for
        except InputError:
            raise Dropped("not_a_transcript") from None
        if self._languages is not None and not self._speaks(messages):
            raise Dropped("other_language")

    def _speaks(self, messages: Messages) -> bool:
        text = "\n".join(m.content for m in messages if m.role == "user")[:LANGUAGE_CHARS].lower()
        if not any(character.isalpha() for character in text):
            return True
        likeliest = self._languages.rank(text)[: self._settings.language_rank] if self._languages is not None else []
        return any(language in self._settings.languages for language, _ in likeliest)


def _identifier(settings: PromptsSection) -> Any:
    if importlib.util.find_spec("py3langid") is None:
        raise MissingExtra("prompts", "py3langid")
    identifier = _model()
    unknown = [language for language in settings.languages if language not in identifier.labels]
    if unknown:
        raise ConfigError(
            f"The language '{unknown[0]}' is not among those that can be told apart",
            where="prompts.languages",
            cure=f"use codes of {', '.join(sorted(identifier.labels))}",
        )
    return identifier


@cache
def _model() -> Any:
    """The model with all its languages; it takes half a second to load."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE)
