"""Every family and head class with every growth: claimed and measured, as docs/families.md.

`make families-table` measures anew and writes the file; the tests of the zoo hold each cell of it
against what the plan claims. The law: what the file says to be exact stays so. Where a cell would
lose that, nothing is written, until a person has taken its row out of the file.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import conftest  # noqa: F401  (one thread, no network)

from support import tiny, zoo
from support.growths import GROWTHS, Cell, try_growth

FILE = Path(__file__).parents[2] / "docs" / "families.md"
SHORT = {
    "exact": "exact", "exact up to norm eps": "eps", "approximate": "approx.", "refused": "refused",
}  # fmt: skip
GLANCE = (
    "width 2x", "width 3/2x", "mlp", "heads", "experts", "vocab", "silent depth", "fusion",
)  # fmt: skip
MARKS = {"exact": "●", "eps": "◐", "approx.": "○", "refused": "×", "–": "–"}
HEAD = """\
# Families and what each growth keeps

Which growth is function-preserving in which family: claimed by the plan, and measured.

● **exact**: the same function · ◐ **eps**: the same up to the eps of norms · ○ **approx.**: the
function changes · × **refused** · – the model has nothing of that kind

Two marks: it depends on the model, and the cells below say how.

"""
CELLS = """
## Cells

Tiny random models of every family and head class, grown, written, loaded by transformers and run in
float64 on random inputs, with random norm gains and biases. A cell is the plan's claim and the
largest difference of the outputs, relative to the largest output; numbers in brackets are the
reasons, listed at the end. Widths are those of all axes together (`axes: 2x`); `heads` grow by one
kv head with its query heads, `mlp` by 7 units, `vocab` by 9 tokens, depth to twice the layers, new
ones silent. Heads and head sizes that share `hidden` grow only together with it, so their columns
refuse them alone; where heads have ALiBi slopes, they grow to the places of these slopes. `make
families-table` measures all of this anew.
"""


def cells(name: str) -> list[tuple[str, Cell | None]]:
    """Every cell of one model, measured: growth, what it is."""
    with tempfile.TemporaryDirectory() as folder:
        small = tiny.Saved.at(Path(folder) / "small", name)
        return [
            (growth, try_growth(small, growth, Path(folder) / f"{number}"))
            for number, growth in enumerate(GROWTHS)
        ]


def text_of(cell: Cell | None, notes: dict[str, int]) -> str:
    """One cell of the table; its reason becomes a note."""
    if cell is None:
        return "–"
    words = SHORT[cell.claim]
    if cell.measured is not None:
        words += f" {cell.measured:.0e}".replace("0e+00", "0")
    if cell.why:
        words += f" [{notes.setdefault(cell.why, len(notes) + 1)}]"
    return words


def page(texts: Mapping[tuple[str, str], str], reasons: Iterable[str]) -> str:
    """The whole document, of the text of each cell: a row for each family, then each model's."""
    families: dict[str, list[str]] = {}
    for name in sorted({name for name, _ in texts}):
        families.setdefault(name.partition("/")[0], []).append(name)
    glance, folded = [], []
    for family, names in families.items():
        claims = [{texts[name, growth].split()[0] for name in names} for growth in GLANCE]
        marks = ["".join(MARKS[c] for c in MARKS if c in seen) for seen in claims]
        marks = [mark.replace("–", "") or "–" for mark in marks]
        glance.append(f"| {family} | " + " | ".join(marks) + " |")
        rows = [f"| {n} | " + " | ".join(texts[n, g] for g in GROWTHS) + " |" for n in names]
        count = "1 model" if len(names) == 1 else f"{len(names)} models"
        folded += [_folded(f"{family}: {count}", _rows("model", GROWTHS, rows))]
    listed = "\n".join(f"{number}. {why}" for number, why in enumerate(reasons, 1))
    folded.append(_folded("Reasons", listed))
    return HEAD + _rows("family", GLANCE, glance) + CELLS + "".join(folded)


def _rows(first: str, growths: Collection[str], rows: list[str]) -> str:
    head = [f"| {first} | " + " | ".join(growths) + " |", "|---" * (len(growths) + 1) + "|"]
    return "\n".join([*head, *rows]) + "\n"


def _folded(summary: str, text: str) -> str:
    """What is shown on demand, by a forge as on the site."""
    return f"\n<details>\n<summary>{summary}</summary>\n\n{text.rstrip()}\n\n</details>\n"


@cache
def documented() -> dict[tuple[str, str], str]:
    """What the file says: (model, growth) → claim in short."""
    claims = {}
    for line in FILE.read_text(encoding="utf-8").splitlines():
        columns = [c.strip() for c in line.strip("|").split("|")]
        if "/" in columns[0] and len(columns) == len(GROWTHS) + 1:
            for growth, text in zip(GROWTHS, columns[1:], strict=True):
                claims[columns[0], growth] = text.split()[0]
    return claims


def weaker(measured: Mapping[tuple[str, str], Cell | None]) -> list[str]:
    """The cells that the file says to be exact, or exact up to eps, and that are so no longer."""
    order = [*SHORT.values()]
    return [
        f"{name}, {growth}: {claim}, now {now}"
        for (name, growth), claim in documented().items()
        if claim in order[:2] and (name, growth) in measured
        for now in [text_of(measured[name, growth], {})]
        if now.split()[0] not in order[: order.index(claim) + 1]
    ]


if __name__ == "__main__":
    every = sorted(zoo.models())
    measured: dict[tuple[str, str], Cell | None] = {}
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for name, row in zip(every, pool.map(cells, every), strict=True):
            print(f"{name:36}", *(text_of(cell, {}).split()[0] for _, cell in row), flush=True)
            measured |= {(name, growth): cell for growth, cell in row}
    if lost := weaker(measured):
        sys.exit("no longer exact:\n" + "\n".join(lost))
    notes: dict[str, int] = {}
    texts = {key: text_of(cell, notes) for key, cell in measured.items()}
    FILE.write_text(page(texts, notes), encoding="utf-8")
    print(f"{FILE} written")
