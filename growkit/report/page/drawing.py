"""Layers and axes, before and after, with threads and bands from what each one comes from.

Shapes have the class of their kind; `style` says how that looks. Every shape has a title, which
says the same in words. Lengths are in the drawing's own units.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

from growkit.report.page.markup import Markup, element, joined
from growkit.report.provenance import Place, Provenance, Run

TALL = 620.0  # of a stack, if its layers can be seen in it
ROW = 27.0  # of a layer, at most
TEXT = 12.5  # the least row that holds a word
BOX, GAP, WORDS = 96.0, 84.0, 172.0  # widths: a layer, the threads, what is said beside
NUMBERS = 28.0  # the width of layers' numbers
CAPTION = 20.0  # the height of a source's name
MOST = 300  # layers that are drawn one by one

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


# -- words ---------------------------------------------------------------------------------------


def comes_from(run: Run, sources: int) -> str:
    """What a run is, in a few words.

    >>> comes_from(Run("copied", 6, 12, (("small", 0),)), 1)
    'copies of 0–5'
    """
    length = run.stop - run.start
    said = " + ".join(_place(place, length, named=sources > 1) for place in run.places)
    many = "copies" if length > 1 else "a copy"
    match run.kind:
        case "old":
            return f"from {said}"
        case "copied":
            return f"{many} of {said}"
        case "silent":
            return f"silent, {many} of {said}" if said else "silent"
        case "scaled":
            return f"{said}, times a factor"
        case "mixed":
            return said or "all, mixed"
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


def stack(found: Provenance, *, thickness: float = 1.0) -> Drawing:
    """The layers of the sources on the left, those of the result on the right, input on top.

    `thickness` is the width of the stream before, where it is 1 after.
    """
    width = BOX + GAP + BOX + WORDS
    if not found.runs or max(found.after, sum(found.before.values())) > MOST:
        return bars(found, width)
    several = len(found.before) > 1
    row = max(4.0, min(ROW, TALL / max(sum(found.before.values()), found.after)))
    margin = 0.0 if row >= TEXT else NUMBERS
    left = sum(found.before.values()) * row + CAPTION * len(found.before) * several
    height = max(left, found.after * row)
    place: dict[Place, float] = {}
    body: list[Markup] = []
    y, thick = (height - left) / 2, BOX * min(1, thickness)
    for source, count in found.before.items():
        if several:
            body.append(_text(margin + BOX, y + 14, cut(source, 14), "small soft end"))
            y += CAPTION
        body += _numbers(margin + BOX - thick - 5, y, row, count, "end")
        for layer in range(count):
            place[source, layer] = y + row / 2
            said = f"{source}: layer {layer}"
            body.append(_box(margin + BOX - thick, y, thick, row, "old", str(layer), said))
            y += row
    start, thick = (height - found.after * row) / 2, BOX * min(1, 1 / thickness)
    x = margin + BOX + GAP
    threads: list[Markup] = []
    for one in found.singles:
        y = start + one.start * row
        said = f"layer {one.start}: {comes_from(one, len(found.before))}"
        body.append(_box(x, y, thick, row, one.kind, str(one.start), said))
        threads += (_thread(margin, place[p], y + row / 2, one.kind, row) for p in one.places)
    body += _numbers(x + thick + 5, start, row, found.after, "")
    words = (_beside(run, start, row, x + thick + margin + 10, several) for run in found.runs)
    return Drawing(width, height, joined([threads, body, words]))


def _numbers(x: float, start: float, row: float, count: int, class_: str) -> Iterator[Markup]:
    """Numbers of some layers beside them, where none fits into a layer."""
    step = next(n for n in (4, 8, 16, 32, 64, 128) if n * row >= 2 * TEXT)
    for layer in range(0, count if row < TEXT else 0, step):
        yield _text(x, start + (layer + 0.5) * row + 4, str(layer), f"small soft {class_}")


def _beside(run: Run, start: float, row: float, x: float, several: bool) -> Markup | None:
    """What a run of layers is, in words beside it, where there is room."""
    length = run.stop - run.start
    if length * row < TEXT:
        return None
    y = start + (run.start + length / 2) * row
    body = [_text(x + 4, y + 4, cut(comes_from(run, 1 + several), 30), "small")]
    if length > 1:  # a bracket
        top, end = start + run.start * row + 3, start + run.stop * row - 3
        d = f"M{x - 6:.1f} {top:.1f}h4V{end:.1f}h-4"
        body.insert(0, element("path", d=d, fill="none", stroke="currentColor", opacity=".45"))
    return joined(body)


def _box(x: float, y: float, width: float, row: float, kind: str, name: str, said: str) -> Markup:
    gap = min(4.0, row * 0.22)
    shape = element(
        "rect",
        element("title", said),
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


def _text(x: float, y: float, said: str, class_: str) -> Markup:
    return element("text", said, x=x, y=y, class_=class_)


# -- an axis -------------------------------------------------------------------------------------


def bars(found: Provenance, width: float, *, thick: float = 20.0, gap: float = 36.0) -> Drawing:
    """The units of the sources above, those of the result below, and bands between; no words."""
    breaks = 6.0 * (len(found.before) - 1)
    total = sum(found.before.values())
    unit = min((width - breaks) / total, width / found.after)
    place: dict[str, float] = {}
    body: list[Markup] = []
    x = (width - total * unit - breaks) / 2
    for source, size in found.before.items():
        place[source] = x
        body.append(_bar(x, 0.0, size * unit, thick, "old", f"{source}: {size:,} units"))
        x += size * unit + 6.0
    start, below = (width - found.after * unit) / 2, thick + gap
    bands: list[Markup] = []
    for run, said in _runs(found):
        new, length = start + run.start * unit, (run.stop - run.start) * unit
        body.append(_bar(new, below, length, thick, run.kind, said))
        for source, first in run.places:
            old = place[source] + first * unit
            reach = length if found.runs else found.before[source] * unit
            bands.append(_band(old, reach, new, length, thick, below, run.kind))
    return Drawing(width, below + thick, joined([bands, body]))


def _runs(found: Provenance) -> Iterator[tuple[Run, str]]:
    """The runs of an axis with what is said of each; one for each kind where they are too many."""
    if found.runs:
        for run in found.runs:
            where = f"units {span(run.start, run.stop)}"
            yield run, f"{where}: {comes_from(run, len(found.before))}"
        return
    start = 0
    for kind, count in found.counts.items():
        places: Iterable[Place] = () if kind == "new" else ((s, 0) for s in found.before)
        yield Run(kind, start, start + count, tuple(places)), f"{count:,} units in all: {kind}"
        start += count


def _bar(x: float, y: float, width: float, height: float, kind: str, said: str) -> Markup:
    title = element("title", said)
    width = max(width - 1.0, 0.8)  # a hair between neighbours
    return element("rect", title, x=x, y=y, width=width, height=height, rx=2.0, class_=kind)


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


def kinds_in(found: Iterable[Provenance]) -> list[str]:
    """The kinds that stand in some drawings, the sources among them, in the order of `MEANING`."""
    there = {"old", *chain.from_iterable(d.counts for d in found)}
    return [kind for kind in MEANING if kind in there]


def swatch(kind: str) -> Markup:
    """A sample of a kind, 26 by 15."""
    return element("rect", x=1.0, y=1.0, width=24.0, height=13.0, rx=3.0, class_=kind)
