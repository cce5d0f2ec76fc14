"""Filters: limits to the character and turn, languages."""

from __future__ import annotations

from typing import Any

import pytest

from starling.config import PromptsSection
from starling.errors import ConfigError, MissingExtra
from starling.prompts.filters import Filters
from starling.prompts.formats import Dropped
from starling.records import Message, Messages


def settings(**given: Any) -> PromptsSection:
    return PromptsSection(sources=[{"type": "microworld"}], **given)


def talk(*texts: str) -> Messages:
    return tuple(Message(role="assistant" if i % 2 else "user", content=t) for i, t in enumerate(texts))


def outcome(messages: Messages, **given: Any) -> str:
    try:
        Filters(settings(**given)).check(messages)
    except Dropped as reason:
        return str(reason)
    return "kept"


@pytest.mark.parametrize(
    ("messages", "given", "expected"),
    [
        (talk("ab", "c", "de"), {"max_chars": 5, "min_chars": 5, "max_turns": 2}, "kept"),
        (talk("ab", "c", "de"), {"max_chars": 4}, "too_long"),
        (talk("ab", "c", "de"), {"min_chars": 6}, "too_short"),
        (talk("ab", "c", "de"), {"max_turns": 1}, "too_many_turns"),
        (talk("ab", "c", " "), {}, "empty"),
        ((), {}, "empty"),
        ((Message(role="assistant", content="a"), Message(role="user", content="b")), {}, "not_a_transcript"),
        (talk("a\n\nHuman: b"), {}, "not_a_transcript"),
    ],
)
def test_limits(messages: Messages, given: dict[str, Any], expected: str) -> None:
    assert outcome(messages, **given) == expected


ENGLISH = ["How do I bake good bread at home without an oven?", "WHAT IS THE CAPITAL OF FRANCE AND WHY IS IT FAMOUS?"]
OTHERS = [
    "Wie kann ich zu Hause ohne Ofen ein gutes Brot backen, und welches Mehl ist dafür am besten?",
    "如何在家里不用烤箱做出好吃的面包？",
    "Как испечь хороший хлеб дома без духовки и какую муку лучше взять для этого?",
    "Comment puis-je faire du bon pain à la maison sans four, et quelle farine est la meilleure ?",
]


def test_english_among_the_likeliest_three() -> None:
    assert [outcome(talk(t), languages=["en"]) for t in ENGLISH] == ["kept", "kept"]
    assert [outcome(talk(t), languages=["en"]) for t in OTHERS] == ["other_language"] * 4
    assert [outcome(talk(t), languages=["en", "de", "fr"]) for t in OTHERS] == [
        "kept",
        "other_language",
        "other_language",
        "kept",
    ]
    assert [outcome(talk(t), languages=["de"], language_rank=1) for t in (*ENGLISH, OTHERS[0])] == ["other_language"] * 2 + [
        "kept"
    ]


def test_only_the_user_decides_the_language_and_no_letters_say_nothing() -> None:
    assert outcome(talk(ENGLISH[0], OTHERS[0], "Why is that, and what else could I do?"), languages=["en"]) == "kept"
    assert outcome(talk(OTHERS[0], ENGLISH[0], "Warum denn das?"), languages=["en"]) == "other_language"
    assert outcome(talk("2 + 2 = ?"), languages=["zh"]) == "kept"


def test_a_larger_rank_never_drops_more() -> None:
    for text in (*ENGLISH, *OTHERS, "ok", "hola amigo", "salut"):
        kept = [outcome(talk(text), languages=["en"], language_rank=rank) == "kept" for rank in (1, 2, 3, 10, 200)]
        assert kept == sorted(kept)
        assert kept[-1]


def test_a_language_nobody_knows_and_a_library_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"'english'.*prompts\.languages.*use codes of .*\ben\b"):
        Filters(settings(languages=["english"]))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    Filters(settings())
    with pytest.raises(MissingExtra, match=r"starling-rlaif\[prompts\]"):
        Filters(settings(languages=["en"]))
