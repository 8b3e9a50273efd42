"""The report as a reader or a program for the blind has it: tables, links and names."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "input", "br", "link", "path", "use", "rect"}


@dataclass
class Element:
    """A tag with its text."""

    tag: str
    attributes: dict[str, str | None]
    text: str = ""
    parents: tuple[str, ...] = ()


@dataclass
class Page:
    """All elements of a page, and its tables by name: rows of cells' texts, the header first."""

    elements: list[Element] = field(default_factory=list)
    tables: dict[str, list[list[str]]] = field(default_factory=dict)

    def all(self, tag: str) -> list[Element]:
        return [element for element in self.elements if element.tag == tag]

    def ids(self) -> dict[str, Element]:
        named = [(element.attributes.get("id"), element) for element in self.elements]
        return {name: element for name, element in named if name}


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.page = Page()
        self.open: list[Element] = []
        self.rows: list[list[str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs), parents=tuple(of.tag for of in self.open))
        self.page.elements.append(element)
        if tag == "br":
            self.handle_data(" ")
        if tag in VOID:
            return
        self.open.append(element)
        if tag == "table":
            self.rows = self.page.tables.setdefault(element.attributes["aria-label"] or "", [])
        if tag == "tr":
            self.rows.append([])

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.page.elements.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        element = self.open.pop()
        assert element.tag == tag, f"</{tag}> closes <{element.tag}>"
        if tag in ("td", "th"):
            self.rows[-1].append(" ".join(element.text.split()))

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.text += data


def read_page(text: str) -> Page:
    reader = _Reader()
    reader.feed(text)
    assert not reader.open
    return reader.page
