"""The growth as one SVG, for the model card: its layers on the left, its axes on the right.

The law: it stands alone. A README shows it as an image, on white or on black, with no style sheet
and no font of its own; so it brings its own ground, and leaves room for wider letters.
"""

from __future__ import annotations

from growkit.planning.plan import Plan
from growkit.report.page.drawing import BOX, GAP, WORDS, bars, cut, kinds_in, stack, swatch
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
from growkit.report.page.style import ALONE, HATCHES
from growkit.report.provenance import Provenance, provenance

EDGE = 28.0
LEFT = BOX + GAP + BOX + WORDS
RIGHT = 340.0
WIDTH = EDGE + LEFT + EDGE + RIGHT + EDGE


def growth_picture(plan: Plan) -> str:
    """An SVG of its own."""
    found = provenance(plan)
    layers = stacks(plan, found)
    grown = {a: d for a, d in found.items() if a not in layers and not d.same}
    body: list[Markup] = []
    top = y = 140.0
    for axis, one in layers.items():
        y += 20
        body.append(_title(EDGE, y, axis, one))
        drawn = stack(one, thickness=thickness(plan, axis))
        body.append(_at(EDGE, y + 12, drawn.body))
        y += 12 + drawn.height + 18
    bottom, y = y, top
    x = EDGE + LEFT + EDGE
    for axis, one in grown.items():
        y += 20
        drawn = bars(one, RIGHT, thick=16.0, gap=26.0)
        body.append(_title(x, y, axis, one))
        body.append(_at(x, y + 10, drawn.body))
        body.append(_line(x, y + drawn.height + 27, counts(one), "small soft"))
        y += drawn.height + 46
    same = [f"{a} {d.after:,}" for a, d in found.items() if a not in layers and d.same]
    if same:
        body.append(_line(x, y + 20, cut(f"unchanged: {', '.join(same)}", 58), "small soft"))
        y += 30
    bottom = max(bottom, y) + 18
    key_x = EDGE
    for kind in kinds_in([*layers.values(), *grown.values()]):
        body.append(_at(key_x, bottom - 12, swatch(kind)))
        body.append(_line(key_x + 32, bottom, kind, "small"))
        key_x += 100
    return _document(plan, words=" ".join(in_short(plan, found)), body=body, height=bottom + 26)


def thickness(plan: Plan, axis: str) -> float:
    """How wide the stream was before a layer, where it is 1 after."""
    stream = f"{axis.removesuffix('layers')}hidden"
    stream = stream if stream in plan.sizes_after else "hidden"
    after = plan.sizes_after.get(stream, 1)
    return plan.sizes_before.get(stream, after) / after


def _document(plan: Plan, *, words: str, body: list[Markup], height: float) -> str:
    before, after = plan.parameters_before, plan.parameters_after
    size = f"{short(before)} → {short(after)} parameters {ratio(before, after)}"
    if len(plan.sources) > 1:
        size = f"{short(after)} parameters"
    claim = f"{SIGNS[plan.claim.claim]} {plan.claim.claim}, stored as {plan.storage.dtype}"
    said = headline(plan)
    document = element(
        "svg",
        element("title", said),
        element("desc", words),
        element("style", Markup(ALONE)),
        HATCHES,
        element(
            "rect", x=0.5, y=0.5, width=WIDTH - 1, height=height - 1, rx=14.0,
            style="fill: var(--card); stroke: var(--line)",
        ),
        _line(EDGE, 46, cut(said, 62), "title"),
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


def _title(x: float, y: float, axis: str, found: Provenance) -> Markup:
    said = " ".join(("", *change(found))).rstrip()
    return element("text", element("tspan", axis, class_="strong"), said, x=x, y=y)


def _line(x: float, y: float, said: str, class_: str) -> Markup:
    return element("text", said, x=x, y=y, class_=class_ or None)


def _at(x: float, y: float, body: Markup) -> Markup:
    return element("g", body, transform=f"translate({x:g} {y:g})")
