"""Elements of HTML and SVG. The law: text is escaped unless it is an element already."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Iterable

HIDDEN = {"Cc", "Cf", "Cs"}  # categories of characters that nobody sees
FORBIDDEN = "\ufffe\uffff"  # in XML
Child = str | None | Iterable["Child"]


class Markup(str):
    """Text that is markup already; only `element`, and code with constants, makes it."""

    __slots__ = ()


def escaped(text: str) -> Markup:
    """A text as markup that shows it; what cannot be seen, or changes how the rest is read, is �.

    >>> escaped("<b>")
    '&lt;b&gt;'
    """

    def seen(c: str) -> bool:
        return c == "\n" or not (unicodedata.category(c) in HIDDEN or c in FORBIDDEN)

    return Markup(html.escape("".join(c if seen(c) else "\ufffd" for c in text)))


def element(tag: str, *children: Child, **attributes: object) -> Markup:
    """An element; None children and attributes are left out, `_` in names of attributes is `-`.

    >>> element("p", "1 < 2", class_="note")
    '<p class="note">1 &lt; 2</p>'
    """
    words = [
        f' {name.rstrip("_").replace("_", "-")}="{escaped(_value(value))}"'
        for name, value in attributes.items()
        if value is not None
    ]
    inner = joined(children)
    return Markup(f"<{tag}{''.join(words)}>{inner}</{tag}>")


def joined(children: Child) -> Markup:
    """Children one after the other."""
    if children is None:
        return Markup()
    if isinstance(children, str):
        return children if isinstance(children, Markup) else escaped(children)
    return Markup("".join(map(joined, children)))


def _value(value: object) -> str:
    """Numbers to a tenth, which no eye tells apart."""
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)
