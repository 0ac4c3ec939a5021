"""docs/add_a_family.md: every word of the grammar is on the page. test_pages.py runs it."""

from __future__ import annotations

import re

import pytest
from support.pages import ROOT

from growkit.families.family import KINDS
from growkit.families.load import KEYS

PAGE = (ROOT / "docs" / "add_a_family.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("word", [*KINDS, *KEYS])
def test_the_grammar_is_explained(word: str) -> None:
    """Every kind of axis and every key of the file."""
    assert re.search(rf"`[^`]*\b{word}\b[^`]*`|^ *{word}:", PAGE, flags=re.M), word
