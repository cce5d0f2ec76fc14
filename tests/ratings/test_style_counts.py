"""The counts of an answer's style, by hand, with the oddity of the tool that they come from."""

from __future__ import annotations

import pytest

from starling.ratings.battles import STYLE_FEATURES
from starling.ratings.style_counts import StyleCounts, counts


def test_the_order_is_that_of_the_features() -> None:
    assert StyleCounts._fields == STYLE_FEATURES


@pytest.mark.parametrize(
    ("text", "headers", "lists", "bold"),
    [
        ("", 0, 0, 0),
        ("# a\n## b\n###### f\n####### too deep\n#no blank\n # indented", 3, 0, 0),
        ("1. a\n  22. b\n1) c\n1.d", 0, 2, 0),
        ("- a\n* b\n\t+ c\n-d\n--- e", 0, 3, 0),
        ("**a** and __b__ and *c* and **two\nlines** and ** **", 0, 0, 3),
        ("**a*b**", 0, 0, 0),
        ("# a\n```python\n# comment\n- x\n**b**\n```\n- y", 1, 1, 0),
        ("```sh\n# never closed\n", 1, 0, 0),
    ],
)
def test_counts(text: str, headers: int, lists: int, bold: int) -> None:
    found = counts(text)
    assert (found.headers, found.lists, found.bold) == (headers, lists, bold)


def test_text_of_a_block_is_taken_out_wherever_it_stands() -> None:
    assert counts("```- a\n```\n- a\n- b").lists == 1
    assert counts("# a\n- b\n```\n```").lists == 0  # a block of nothing but a line break: the answer becomes one line


@pytest.mark.parametrize(("text", "length"), [("", 0), ("abc", 1), ("abcd", 1), ("abcde", 2), ("é" * 8, 2)])
def test_length_is_estimated_at_four_characters_a_token(text: str, length: int) -> None:
    assert counts(text).length == length
