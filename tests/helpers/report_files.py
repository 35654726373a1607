"""Written reports as a reader meets them: the page in a browser, and strict JSON."""

import json
from html.parser import HTMLParser
from pathlib import Path


class Page(HTMLParser):
    """The page as a browser would read it: its elements and its visible text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def attributes(self, name: str) -> list[str]:
        return [attributes[name] or "" for _, attributes in self.elements if name in attributes]


def refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def read_json(folder: Path) -> dict[str, object]:
    return json.loads((folder / "report.json").read_text(encoding="utf-8"), parse_constant=refuse_constant)
