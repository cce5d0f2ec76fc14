"""How an answer is dressed: its length and its markdown, counted as FastChat counts them.

Headers (`#` … `######` at the start of a line), items of lists (`1.`, `-`, `*`, `+`) and bold (`**…**`, `__…__`) of an answer
without the text inside its code fences. Source: FastChat's `add_markdown_info.py`, with its one oddity, so that the counts are
those of its logs: what stands inside a pair of fences is taken out *wherever it stands* in the answer; a block that holds nothing
but a line break takes all line breaks along, and headers and lists with them.

Only the length departs: the logs count tokens of the model that answered or of OpenAI's; without a tokenizer it is estimated at
four characters a token, as everywhere in Starling. The style features are ratios of two lengths, in which the unit cancels.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_FENCED = re.compile(r"```([^`]*)```")
_HEADER = re.compile(r"^#{1,6}\s", re.MULTILINE)
_LISTS = (re.compile(r"^\s*\d+\.\s", re.MULTILINE), re.compile(r"^\s*[-*+]\s", re.MULTILINE))
_BOLD = (re.compile(r"\*\*[^*\n]+\*\*"), re.compile(r"__[^_\n]+__"))


class StyleCounts(NamedTuple):
    """One answer's numbers, in the order of `starling.ratings.battles.STYLE_FEATURES`."""

    length: int
    """Tokens, estimated."""
    headers: int
    lists: int
    bold: int


def counts(text: str) -> StyleCounts:
    """The style of an answer; of several turns, the text of all of them joined by line breaks.

    >>> counts("# Plan\\n\\n1. **First**\\n2. then")
    StyleCounts(length=7, headers=1, lists=2, bold=1)
    """
    prose = text
    for block in _FENCED.findall(text):
        prose = prose.replace(block, "")
    return StyleCounts(
        length=-(-len(text) // 4),
        headers=len(_HEADER.findall(prose)),
        lists=sum(len(pattern.findall(prose)) for pattern in _LISTS),
        bold=sum(len(pattern.findall(prose)) for pattern in _BOLD),
    )
