"""Layers and axes, before and after, with threads and bands from what each one comes from.

Shapes have the class of their kind; `style` says how that looks. Every shape has a title, which
says the same in words. Lengths are in the drawing's own units. The law: the page and the SVG draw
with these and nothing else, so that they show the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

from growkit.planning.plan import Plan
from growkit.report.page.markup import Markup, element, joined, soft
from growkit.report.provenance import Place, Provenance, Run

TALL = 620.0  # of a stack, if its layers can be seen in it
ROW = 27.0  # of a layer, at most
TEXT = 12.5  # the least row that holds a word
BOX, GAP, WORDS = 96.0, 84.0, 172.0  # widths: a layer, the threads, what is said beside
STACK = BOX + GAP + BOX + WORDS
NUMBERS = 28.0  # the width of layers' numbers
CAPTION = 20.0  # the height of a source's name
MOST_DRAWN = 300  # layers that are drawn one by one

MEANING = {
    "old": "as the source has it",
    "copied": "a further copy of an old one",
    "scaled": "an old one times a factor",
    "mixed": "made of several old ones",
    "silent": "a layer that adds nothing at first",
    "new": "made of none: zero, or drawn at random",
}


@dataclass(frozen=True, slots=True)
class Drawing:
    """Markup that fills a place of this size from (0, 0) on."""

    width: float
    height: float
    body: Markup


def figure(
    drawing: Drawing, title: str, *, class_: str | None = None, stretch: bool = False
) -> Markup:
    """A drawing in a page, and what it shows in words.

    `stretch` fills the width and height that style gives, whatever that does to its shape.
    """
    return element(
        "svg",
        element("title", title),
        drawing.body,
        viewBox=f"0 0 {drawing.width:g} {drawing.height:g}",
        preserveAspectRatio="none" if stretch else None,
        role="img",
        class_=class_,
    )


# -- words ---------------------------------------------------------------------------------------


def comes_from(run: Run, sources: int) -> str:
    """What a run is, in a few words.

    >>> comes_from(Run("copied", 6, 12, (("small", 0),)), 1)
    'copies of 0–5'
    """
    length = run.stop - run.start
    places = " + ".join(_place(place, length, named=sources > 1) for place in run.places)
    many = "copies" if length > 1 else "a copy"
    match run.kind:
        case "old":
            return f"from {places}"
        case "copied":
            return f"{many} of {places}"
        case "silent":
            copies = places if len(run.places) > 1 else f"{many} of {places}"
            return f"silent, {copies}" if places else "silent"
        case "scaled":
            return f"{places}, times a factor"
        case "mixed":
            return places or "all, mixed"
    return "new"


def span(start: int, stop: int) -> str:
    """`7`, or `0–5`, for [start, stop)."""
    return str(start) if stop == start + 1 else f"{start}–{stop - 1}"


def cut(text: str, most: int) -> str:
    """A text of at most so many characters; a drawing cannot break lines."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _place(place: Place, length: int, *, named: bool) -> str:
    source, first = place
    return f"{source} {span(first, first + length)}" if named else span(first, first + length)


# -- a stack of layers ---------------------------------------------------------------------------


def stream_ratio(plan: Plan, axis: str) -> float:
    """How wide the stream through a stack was before, where it is 1 after."""
    stream = f"{axis.removesuffix('layers')}hidden"
    stream = stream if stream in plan.sizes_after else "hidden"
    after = plan.sizes_after.get(stream, 1)
    return plan.sizes_before.get(stream, after) / after


def stack(entry: Provenance, *, stream_ratio: float = 1.0) -> Drawing:
    """The layers of the sources on the left, those of the result on the right, input on top.

    A narrower stream has narrower boxes: `stream_ratio` is its width before by that after.
    """
    layers_before, several = sum(entry.before.values()), len(entry.before) > 1
    if not entry.runs or max(entry.after, layers_before) > MOST_DRAWN:
        return bars(entry, STACK)
    row = max(4.0, min(ROW, TALL / max(layers_before, entry.after)))
    margin = 0.0 if row >= TEXT else NUMBERS
    left = layers_before * row + CAPTION * len(entry.before) * several
    height = max(left, entry.after * row)
    middle: dict[Place, float] = {}  # of every old layer, from the top
    boxes: list[Markup] = []
    y, width = (height - left) / 2, BOX * min(1, stream_ratio)
    for source, layers in entry.before.items():
        if several:
            boxes.append(_text(margin + BOX, y + 14, cut(source, 14), "small soft end"))
            y += CAPTION
        boxes += _numbers(margin + BOX - width - 5, y, row, layers, "end")
        for layer in range(layers):
            middle[source, layer] = y + row / 2
            title = f"{source}: layer {layer}"
            boxes.append(_box(margin + BOX - width, y, width, row, "old", str(layer), title))
            y += row
    top, width = (height - entry.after * row) / 2, BOX * min(1, 1 / stream_ratio)
    x = margin + BOX + GAP
    threads: list[Markup] = []
    for run in entry.singles:
        y = top + run.start * row
        title = f"layer {run.start}: {comes_from(run, len(entry.before))}"
        boxes.append(_box(x, y, width, row, run.kind, str(run.start), title))
        threads += (_thread(margin, middle[p], y + row / 2, run.kind, row) for p in run.places)
    boxes += _numbers(x + width + 5, top, row, entry.after, "")
    words = (_words(run, top, row, x + width + margin + 10, several) for run in entry.runs)
    return Drawing(STACK, height, joined([threads, boxes, words]))


def _numbers(x: float, top: float, row: float, layers: int, class_: str) -> Iterator[Markup]:
    """Numbers of some layers beside them, where none fits into a layer."""
    step = next(n for n in (4, 8, 16, 32, 64, 128) if n * row >= 2 * TEXT)
    for layer in range(0, layers if row < TEXT else 0, step):
        yield _text(x, top + (layer + 0.5) * row + 4, str(layer), f"small soft {class_}")


def _words(run: Run, top: float, row: float, x: float, several: bool) -> Markup | None:
    """What a run of layers is, in words beside it, where there is room."""
    length = run.stop - run.start
    if length * row < TEXT:
        return None
    y = top + (run.start + length / 2) * row
    words = [_text(x + 4, y + 4, cut(comes_from(run, 1 + several), 30), "small")]
    if length > 1:  # a bracket
        first, last = top + run.start * row + 3, top + run.stop * row - 3
        d = f"M{x - 6:.1f} {first:.1f}h4V{last:.1f}h-4"
        words.insert(0, element("path", d=d, fill="none", stroke="currentColor", opacity=".45"))
    return joined(words)


def _box(x: float, y: float, width: float, row: float, kind: str, name: str, title: str) -> Markup:
    gap = min(4.0, row * 0.22)
    shape = element(
        "rect",
        element("title", title),
        x=x,
        y=y + gap / 2,
        width=width,
        height=row - gap,
        rx=min(4.0, row / 5),
        class_=kind if row >= TEXT else f"{kind} thin",
    )
    if row < TEXT:
        return shape
    return joined([shape, _text(x + width / 2, y + row / 2 + 4, name, f"small mid halo in-{kind}")])


def _thread(margin: float, y: float, to: float, kind: str, row: float) -> Markup:
    x, end = margin + BOX + 3, margin + BOX + GAP - 3
    mid = (x + end) / 2
    d = f"M{x:g} {y:.1f}C{mid:g} {y:.1f} {mid:g} {to:.1f} {end:g} {to:.1f}"
    dashes = "4 3" if kind == "silent" else None
    wide = max(1.0, min(3.0, row / 7))
    return element("path", d=d, class_=f"thread {kind}", stroke_width=wide, stroke_dasharray=dashes)


def _text(x: float, y: float, text: str, class_: str) -> Markup:
    return element("text", text, x=x, y=y, class_=class_)


# -- an axis -------------------------------------------------------------------------------------


def bars(entry: Provenance, width: float, *, thick: float = 20.0, gap: float = 36.0) -> Drawing:
    """The units of the sources above, those of the result below, and bands between; no words."""
    breaks = 6.0 * (len(entry.before) - 1)
    units_before = sum(entry.before.values())
    unit = min((width - breaks) / units_before, width / entry.after)
    left: dict[str, float] = {}  # of every source
    units: list[Markup] = []
    x = (width - units_before * unit - breaks) / 2
    for source, size in entry.before.items():
        left[source] = x
        units.append(_bar(x, 0.0, size * unit, thick, "old", f"{source}: {size:,} units"))
        x += size * unit + 6.0
    start, below = (width - entry.after * unit) / 2, thick + gap
    bands: list[Markup] = []
    for run, title in _titled_runs(entry):
        new, length = start + run.start * unit, (run.stop - run.start) * unit
        units.append(_bar(new, below, length, thick, run.kind, title))
        for source, first in run.places:
            old = left[source] + first * unit
            reach = length if entry.runs else entry.before[source] * unit
            bands.append(_band(old, reach, new, length, thick, below, run.kind))
    return Drawing(width, below + thick, joined([bands, units]))


def _titled_runs(entry: Provenance) -> Iterator[tuple[Run, str]]:
    """The runs of an axis and their titles; one for each kind where they are too many."""
    if entry.runs:
        for run in entry.runs:
            units = f"units {span(run.start, run.stop)}"
            yield run, f"{units}: {comes_from(run, len(entry.before))}"
        return
    start = 0
    for kind, count in entry.counts.items():
        places: Iterable[Place] = () if kind == "new" else ((s, 0) for s in entry.before)
        yield Run(kind, start, start + count, tuple(places)), f"{count:,} units in all: {kind}"
        start += count


def _bar(x: float, y: float, width: float, height: float, kind: str, title: str) -> Markup:
    words = element("title", title)
    width = max(width - 1.0, 0.8)  # a hair between neighbours
    return element("rect", words, x=x, y=y, width=width, height=height, rx=2.0, class_=kind)


def _band(
    old: float, reach: float, new: float, length: float, top: float, below: float, kind: str
) -> Markup:
    mid = (top + below) / 2
    d = (
        f"M{old:.1f} {top:g}C{old:.1f} {mid:g} {new:.1f} {mid:g} {new:.1f} {below:g}"
        f"H{new + length:.1f}"
        f"C{new + length:.1f} {mid:g} {old + reach:.1f} {mid:g} {old + reach:.1f} {top:g}Z"
    )
    return element("path", d=d, class_=f"band {kind}")


# -- the key -------------------------------------------------------------------------------------


def kinds_in(entries: Iterable[Provenance]) -> list[str]:
    """The kinds that stand in some drawings, the sources among them, in the order of `MEANING`."""
    drawn = {"old", *chain.from_iterable(entry.counts for entry in entries)}
    return [kind for kind in MEANING if kind in drawn]


def swatch(kind: str) -> Markup:
    """A sample of a kind, 26 by 15."""
    return element("rect", x=1.0, y=1.0, width=24.0, height=13.0, rx=3.0, class_=kind)


def legend(entries: Iterable[Provenance]) -> Markup:
    """What the colours and hatches of some drawings mean, as a list in a page."""
    items = [
        element(
            "li",
            element("svg", swatch(kind), width=26, height=15, aria_hidden="true"),
            element("span", element("b", kind), " ", soft(MEANING[kind])),
        )
        for kind in kinds_in(entries)
    ]
    return element("ul", items, class_="legend")
