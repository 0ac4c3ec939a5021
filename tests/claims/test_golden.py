"""Grown tiny models, byte for byte as they were: tests/golden.json holds their digests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import golden

from growkit.recipe.recipe import builtin_recipes

DIGESTS = json.loads(golden.FILE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", DIGESTS)
def test_bytes_are_as_before(name: str, tmp_path: Path) -> None:
    """A change that moves a digest changes results: `make golden` if that is meant."""
    assert golden.grown(name, tmp_path) == DIGESTS[name]


def test_every_recipe_has_a_digest() -> None:
    """All built-in ones but those that multiply matrices."""
    assert {name.split("/")[0] for name in DIGESTS} == builtin_recipes().keys() - golden.LEFT_OUT
