"""A parser for tests of pages: every tag is closed, and what is pointed at is there."""

from __future__ import annotations

from html.parser import HTMLParser


class Balance(HTMLParser):
    """Tags that are opened and closed, ids, and what is pointed at."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.targets: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [v for k, v in attrs if k == "id" and v]
        self.targets += [v[1:] for k, v in attrs if k in ("href", "xlink:href") and v and v.startswith("#")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in ("meta", "br"):
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
