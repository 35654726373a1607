"""The HTML fragments of the tabs, and the one function that makes elements.

`element` escapes every text and every attribute, except `Html`, which it returns. No other file of the browser app
writes tags, so a name with angle brackets is shown as it is.
"""

from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

CRISP_BELOW = 96  # images smaller than this are enlarged without smoothing
VOID = ("hr", "img")  # elements without an end tag


class Html(str):
    """HTML from `element`; other text is escaped when it is added to this."""

    def __add__(self, other: str) -> "Html":
        return joined([self, other])

    def __radd__(self, other: str) -> "Html":
        return joined([other, self])


class Shown(NamedTuple):
    """A picture in the page.

    Attributes:
        address: of the picture.
        caption: below it.
        alt: a description for screen readers.
        filename: of the download; empty = no download.
    """

    address: str
    caption: str
    alt: str
    filename: str = ""


def element(tag: str, *content: str, **attributes: str) -> Html:
    """One HTML element around texts and other elements.

    Args:
        tag: its name.
        content: its children in order; text is escaped, `Html` is not.
        attributes: their values are escaped; `class_` stands for `class`, an underscore within a name for a hyphen.
    """
    given = "".join(f' {name.rstrip("_").replace("_", "-")}="{escape(value)}"' for name, value in attributes.items())
    return Html(f"<{tag}{given}>" if tag in VOID else f"<{tag}{given}>{joined(content)}</{tag}>")


def joined(parts: Iterable[str]) -> Html:
    """Texts and elements one after the other; text is escaped, `Html` is not."""
    return Html("".join(part if isinstance(part, Html) else escape(part) for part in parts))


def message_text(text: str) -> str:
    """A message for gradio's notices, which it shows as HTML: escaped text."""
    return escape(text, quote=False)


def figures(pictures: Iterable[Shown], side: int, kind: str = "grid") -> Html:
    """Pictures in a grid; those with a filename are download links."""
    crisp = " crisp" if side < CRISP_BELOW else ""
    return element("div", *map(_figure, pictures), class_=f"figures {kind}{crisp}")


def _figure(shown: Shown) -> Html:
    image = element("img", src=shown.address, alt=shown.alt, loading="lazy")
    if shown.filename:
        tip = f"Download {shown.filename}"
        image = element(
            "a", image, href=shown.address, download=shown.filename, title=tip, aria_label=f"{tip}: {shown.alt}"
        )
    caption = [element("figcaption", shown.caption)] if shown.caption else []
    return element("figure", image, *caption)


def status(text: str, share: float | None = None) -> Html:
    """A status line, with a progress bar if `share` is given."""
    bar = [] if share is None else [element("progress", max="1", value=f"{min(max(share, 0), 1):.3f}")]
    return element("div", *bar, element("span", text), class_="status", role="status")


def summary(text: str, links: Sequence[tuple[str, str, str]] = ()) -> Html:
    """A line above results, and links to files: (text, address, filename)."""
    anchors = [
        element("a", label, class_="keep", href=address, download=filename) for label, address, filename in links
    ]
    return element("div", element("span", text), *anchors, class_="summary")


def hint(text: str) -> Html:
    """A sentence in the place of results."""
    return element("p", text, class_="hint")


def row_name(text: str) -> Html:
    """The name of a row of pictures."""
    return element("p", text, class_="row-name")


def heading(text: str, note: str = "") -> Html:
    """A heading within results, with an explanation."""
    return joined([element("h3", text), *([element("p", note, class_="note")] if note else [])])


def page_head(title: str, facts: str) -> Html:
    """The head of the page: a title and a line of facts."""
    overline = element("p", "alight", class_="overline")
    return element("header", overline, element("h1", title), element("p", facts, class_="facts"), class_="top")
