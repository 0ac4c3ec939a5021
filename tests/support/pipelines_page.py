"""The tables of docs/pipelines.md."""

from __future__ import annotations

import re

from support.pages import ROOT

PAGE = (ROOT / "docs" / "pipelines.md").read_text(encoding="utf-8")


def rows(section: str, number: int = 0) -> list[list[str]]:
    """The cells of a table of the page, without its head."""
    text = PAGE.partition(f"## {section}\n")[2].partition("\n## ")[0]
    found = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)[number].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in found]
