"""Parts that a page is made of: sections, figures, tables, lists, keys."""

from __future__ import annotations

from collections.abc import Iterable

from growkit.report.page.drawing import MEANING, Drawing, kinds_in, swatch
from growkit.report.page.markup import Child, Markup, element, escaped
from growkit.report.provenance import Provenance


def section(name: str, title: str, *children: Child) -> Markup:
    """A part of the page with a heading, which names it to screen readers too."""
    heading = element("h2", title, id=f"{name}-title")
    return element("section", heading, *children, id=name, aria_labelledby=f"{name}-title")


def figure(
    drawn: Drawing, said: str, *, class_: str | None = None, stretch: bool = False
) -> Markup:
    """A drawing, and what it shows in words; `stretch` to the width and height that style gives."""
    return element(
        "svg",
        element("title", said),
        drawn.body,
        viewBox=f"0 0 {drawn.width:g} {drawn.height:g}",
        preserveAspectRatio="none" if stretch else None,
        role="img",
        class_=class_,
    )


def table(caption: str, heads: Iterable[str], rows: Iterable[Markup]) -> Markup:
    """A table that scrolls by itself where it is too wide."""
    head = element("thead", element("tr", (element("th", h, scope="col") for h in heads)))
    body = element("table", element("caption", caption), head, element("tbody", rows))
    return element("div", body, class_="wide")


def row(name: Child, *cells: Child, **attributes: object) -> Markup:
    """A row of a table; the first cell is what the row is about."""
    first = element("th", name, scope="row")
    return element("tr", first, (element("td", cell) for cell in cells), **attributes)


def folded(summary: str, *children: Child) -> Markup:
    """What is seen on a click."""
    return element("details", element("summary", summary), *children)


def listed(items: Iterable[Child]) -> Markup | None:
    """A list, if there is anything in it."""
    found = [element("li", item) for item in items]
    return element("ul", found) if found else None


def soft(said: str) -> Markup | None:
    """A remark."""
    return element("span", said, class_="soft") if said else None


def prose(said: str) -> list[Markup]:
    """A sentence, in which what stands between backticks is code.

    >>> "".join(prose("try `a < b`"))
    'try <code>a &lt; b</code>'
    """
    parts = enumerate(said.split("`"))
    return [element("code", part) if i % 2 else escaped(part) for i, part in parts]


def legend(found: Iterable[Provenance]) -> Markup:
    """What the colours and hatches of some drawings mean."""
    items = [
        element(
            "li",
            element("svg", swatch(kind), width=26, height=15, aria_hidden="true"),
            element("span", element("b", kind), " ", soft(MEANING[kind])),
        )
        for kind in kinds_in(found)
    ]
    return element("ul", items, class_="legend")
