"""The growth as one SVG, for the model card: its layers on the left, its axes on the right.

The law: it stands alone. A README shows it as an image, on white or on black, with no style sheet
and no font of its own; so it brings its own ground, and leaves room for wider letters.
"""

from __future__ import annotations

from growkit.planning.plan import Plan
from growkit.report.page.drawing import STACK, bars, cut, kinds_in, stack, stream_ratio, swatch
from growkit.report.page.markup import Markup, element
from growkit.report.page.sentences import (
    CLAIMS,
    SIGNS,
    change,
    counts,
    headline,
    in_short,
    ratio,
    short,
    stacks,
)
from growkit.report.page.style import HATCHES, SVG_STYLE
from growkit.report.provenance import Provenance, provenance

EDGE = 28.0
AXIS = 340.0  # the width of an axis
WIDTH = EDGE + STACK + EDGE + AXIS + EDGE


def growth_svg(plan: Plan) -> str:
    """An SVG of its own."""
    by_axis = provenance(plan)
    layers = stacks(plan, by_axis)
    grown = {a: d for a, d in by_axis.items() if a not in layers and not d.same}
    body: list[Markup] = []
    top = y = 140.0
    for axis, entry in layers.items():
        y += 20
        body.append(_title(EDGE, y, axis, entry))
        drawing = stack(entry, stream_ratio=stream_ratio(plan, axis))
        body.append(_at(EDGE, y + 12, drawing.body))
        y += 12 + drawing.height + 18
    bottom, y = y, top
    x = EDGE + STACK + EDGE
    for axis, entry in grown.items():
        y += 20
        drawing = bars(entry, AXIS, thick=16.0, gap=26.0)
        body.append(_title(x, y, axis, entry))
        body.append(_at(x, y + 10, drawing.body))
        body.append(_line(x, y + drawing.height + 27, counts(entry), "small soft"))
        y += drawing.height + 46
    same = [f"{a} {d.after:,}" for a, d in by_axis.items() if a not in layers and d.same]
    if same:
        body.append(_line(x, y + 20, cut(f"unchanged: {', '.join(same)}", 58), "small soft"))
        y += 30
    bottom = max(bottom, y) + 18
    key_x = EDGE
    for kind in kinds_in([*layers.values(), *grown.values()]):
        body.append(_at(key_x, bottom - 12, swatch(kind)))
        body.append(_line(key_x + 32, bottom, kind, "small"))
        key_x += 100
    return _document(plan, words=" ".join(in_short(plan, by_axis)), body=body, height=bottom + 26)


def _document(plan: Plan, *, words: str, body: list[Markup], height: float) -> str:
    before, after = plan.parameters_before, plan.parameters_after
    size = f"{short(before)} → {short(after)} parameters {ratio(before, after)}"
    if len(plan.sources) > 1:
        size = f"{short(after)} parameters"
    claim = f"{SIGNS[plan.claim.claim]} {plan.claim.claim}, stored as {plan.storage.dtype}"
    title = headline(plan)
    document = element(
        "svg",
        element("title", title),
        element("desc", words),
        element("style", Markup(SVG_STYLE)),
        HATCHES,
        element(
            "rect", x=0.5, y=0.5, width=WIDTH - 1, height=height - 1, rx=14.0,
            style="fill: var(--card); stroke: var(--line)",
        ),
        _line(EDGE, 46, cut(title, 62), "title"),
        _line(EDGE, 76, size, ""),
        _line(EDGE, 98, claim, ""),
        _line(EDGE, 118, CLAIMS[plan.claim.claim], "small soft"),
        body,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH:g} {height:g}",
        width=WIDTH,
        height=height,
        role="img",
        style="color: var(--ink)",
    )  # fmt: skip
    return f"{document}\n"


def _title(x: float, y: float, axis: str, entry: Provenance) -> Markup:
    sizes = " ".join(("", *change(entry))).rstrip()
    return element("text", element("tspan", axis, class_="strong"), sizes, x=x, y=y)


def _line(x: float, y: float, text: str, class_: str) -> Markup:
    return element("text", text, x=x, y=y, class_=class_ or None)


def _at(x: float, y: float, body: Markup) -> Markup:
    return element("g", body, transform=f"translate({x:g} {y:g})")
