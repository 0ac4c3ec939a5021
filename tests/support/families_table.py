"""Every family and head class with every growth: claimed and measured, as docs/families.md.

`make families-table` measures anew and writes the file; the tests of the zoo hold each cell of it
against what the plan claims. The law: what the file says to be exact stays so. Where a cell would
lose that, nothing is written, until a person has taken its row out of the file.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
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
HEAD = """\
# Families and what each growth keeps

Tiny random models of every family and head class, grown, written, loaded by transformers and run in
float64 on random inputs, with random norm gains and biases. A cell is the plan's claim and the
largest difference of the outputs, relative to the largest output: **exact**, **eps** (exact up to
the eps of norms), **approx.** (the function changes), **refused**; numbers in brackets are the
reasons, listed below the table; a dash means that the model has nothing of that kind. Widths are
those of all axes together (`axes: 2x`); `heads` grow by one kv head with its query heads, `mlp` by
7 units, `vocab` by 9 tokens (a model without a table of tokens has a dash), depth to twice the
layers, new ones silent. Heads and head sizes that share `hidden` grow
only together with it, so their columns refuse them alone; where heads have ALiBi slopes, they grow
to the places of these slopes. `make families-table` measures all of this anew.

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


def table(measured: Mapping[tuple[str, str], Cell | None], names: list[str]) -> str:
    """The whole document."""
    notes: dict[str, int] = {}
    rows = [
        f"| {name} | " + " | ".join(text_of(measured[name, g], notes) for g in GROWTHS) + " |"
        for name in names
    ]
    lines = ["| model | " + " | ".join(GROWTHS) + " |", "|---" * (len(GROWTHS) + 1) + "|", *rows]
    reasons = [f"{number}. {why}" for why, number in notes.items()]
    return HEAD + "\n".join(lines) + "\n\n## Reasons\n\n" + "\n".join(reasons) + "\n"


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
    FILE.write_text(table(measured, every), encoding="utf-8")
    print(f"{FILE} written")
