"""Elements of HTML and SVG, and the few that a page is built of: sections, tables, lists.

The law: text is escaped unless it is an element already.
"""

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

    if not text.isprintable():
        text = "".join(c if seen(c) else "\ufffd" for c in text)
    return Markup(html.escape(text))


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
    return Markup(f"<{tag}{''.join(words)}>{joined(children)}</{tag}>")


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


# -- of a page -----------------------------------------------------------------------------------


def section(name: str, title: str, *children: Child) -> Markup:
    """A part of the page with a heading, which names it to screen readers too."""
    heading = element("h2", title, id=f"{name}-title")
    return element("section", heading, *children, id=name, aria_labelledby=f"{name}-title")


def table(caption: str, heads: Iterable[str], rows: Iterable[Markup]) -> Markup:
    """A table that scrolls by itself where it is too wide."""
    head = element("thead", element("tr", (element("th", h, scope="col") for h in heads)))
    body = element("table", element("caption", caption), head, element("tbody", rows))
    return element("div", body, class_="wide")


def row(name: Child, *cells: Child, **attributes: object) -> Markup:
    """A row of a table; the first cell is what the row is about."""
    first = element("th", name, scope="row")
    return element("tr", first, (element("td", cell) for cell in cells), **attributes)


def listed(items: Iterable[Child]) -> Markup | None:
    """A list, if there is anything in it."""
    lines = [element("li", item) for item in items]
    return element("ul", lines) if lines else None


def soft(text: str) -> Markup | None:
    """A remark."""
    return element("span", text, class_="soft") if text else None


def prose(text: str) -> list[Markup]:
    """A sentence, in which what stands between backticks is code.

    >>> "".join(prose("try `a < b`"))
    'try <code>a &lt; b</code>'
    """
    parts = enumerate(text.split("`"))
    return [element("code", part) if i % 2 else escaped(part) for i, part in parts]
