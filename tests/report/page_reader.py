"""A page -> what is in it, once all its tags are known to be closed."""

from __future__ import annotations

from html.parser import HTMLParser


class Reader(HTMLParser):
    """Notes every tag, that all are closed in their order, and the text outside pictures and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in ("meta", "wbr"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.attributes += attrs
        if tag in ("h1", "h2", "h3", "p", "li", "dt", "tr", "summary", "figcaption"):
            self.text.append("\n")
        elif tag in ("th", "td", "dd"):
            self.text.append(" | ")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"svg", "style", "script", "title"} & set(self.open):
            self.text.append(data.replace("\n", ""))


def read(page: str) -> Reader:
    """Return what is in a page, all of whose tags are closed."""
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader
