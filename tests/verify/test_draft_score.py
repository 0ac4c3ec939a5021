"""How many dims of the shipped families `growkit families infer` labels right."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
from support import tiny, zoo

from growkit.algebra.expression import Expression
from growkit.checkpoints.open import open_checkpoint
from growkit.errors import GrowkitError
from growkit.families.family import Family
from growkit.families.load import build_family, read_yaml
from growkit.families.model import read_model
from growkit.verify.draft_family import draft_family

LEAST = 0.85  # of all dims; what is wrong has a question mark, or `families check` finds it
ALIKE = {"table": "rows", "fixed": "rows", "latent": "stream"}  # told apart by their use alone


def kinds(family: Family, expression: Expression) -> str:
    """An expression with each axis replaced by what it is."""
    if expression.kind == "axis":
        kind = family.axes[expression.name]
        return ALIKE.get(kind, kind)
    if expression.kind == "number":
        return "rows"
    return f"{expression.kind}({', '.join(kinds(family, p) for p in expression.parts)})"


def score(name: str, folder: Path) -> tuple[int, int]:
    """Right dims and all dims of one model."""
    small = tiny.Saved.at(folder, name).folder
    truth = read_model(open_checkpoint(small))
    config = json.loads((small / "config.json").read_text())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            draft = build_family(read_yaml(draft_family(config).text, "draft"), config, set())
        except GrowkitError:
            draft = None
    right = total = 0
    for entry in truth.entries.values():
        total += len(entry.pattern.dims)
        try:
            match = draft.match(entry.info.name) if draft else None
        except GrowkitError:
            continue
        dims = match[0].dims if match else ()
        pairs = zip(entry.pattern.dims, dims, strict=False)
        right += sum(kinds(truth.family, a) == kinds(draft, b) for (a, _), (b, _) in pairs if draft)
    return right, total


@pytest.mark.slow
def test_most_dims_are_right(tmp_path: Path) -> None:
    """Over all shipped families, one model each."""
    found = {f: score(m[0], tmp_path / f) for f, m in zoo.families().items() if m}
    for family, (right, total) in found.items():
        print(f"{family:16} {right:5} of {total:5}  {right / total:.0%}")
    right, total = (sum(column) for column in zip(*found.values(), strict=True))
    print(f"{'all':16} {right:5} of {total:5}  {right / total:.1%}")
    assert right >= LEAST * total
