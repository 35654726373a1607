"""The fragments of HTML that the tabs fill in; every text in them is escaped."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

CRISP_BELOW = 96  # images smaller than this are shown with their pixels


class Shown(NamedTuple):
    """A picture in the page.

    Attributes:
        address: of the picture.
        caption: below it.
        alt: what it shows, for those who cannot see it.
        filename: under which it can be kept; empty = it cannot.
    """

    address: str
    caption: str
    alt: str
    filename: str = ""


def figures(pictures: Iterable[Shown], side: int, kind: str = "grid") -> str:
    """Pictures beside each other, as many as fit; those that can be kept are links."""
    crisp = " crisp" if side < CRISP_BELOW else ""
    return f'<div class="figures {kind}{crisp}">{"".join(map(_figure, pictures))}</div>'


def _figure(shown: Shown) -> str:
    image = f'<img src="{escape(shown.address)}" alt="{escape(shown.alt)}" loading="lazy">'
    if shown.filename:
        tip = f"Download {shown.filename}"
        image = (
            f'<a href="{escape(shown.address)}" download="{escape(shown.filename)}" title="{escape(tip)}" '
            f'aria-label="{escape(tip)}: {escape(shown.alt)}">{image}</a>'
        )
    caption = f"<figcaption>{escape(shown.caption)}</figcaption>" if shown.caption else ""
    return f"<figure>{image}{caption}</figure>"


def status(text: str, share: float | None = None) -> str:
    """A line that says how things stand, with a bar where there is a share of them to tell."""
    bar = "" if share is None else f'<progress max="1" value="{min(max(share, 0), 1):.3f}"></progress>'
    return f'<div class="status" role="status">{bar}<span>{escape(text)}</span></div>'


def summary(text: str, links: Sequence[tuple[str, str, str]] = ()) -> str:
    """A line above results, and links to files: (text, address, filename)."""
    anchors = "".join(
        f'<a class="keep" href="{escape(address)}" download="{escape(filename)}">{escape(label)}</a>'
        for label, address, filename in links
    )
    return f'<div class="summary"><span>{escape(text)}</span>{anchors}</div>'


def hint(text: str) -> str:
    """What stands where results are going to be."""
    return f'<p class="hint">{escape(text)}</p>'


def heading(text: str, note: str = "") -> str:
    """A heading within results, and a sentence on what is seen."""
    return f"<h3>{escape(text)}</h3>" + (f'<p class="note">{escape(note)}</p>' if note else "")
