"""Links between Markdown files lead somewhere, on a forge as on the site: files and headings."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import pytest
from support.pages import PAGES, ROOT

OTHERS = [ROOT / "CHANGELOG.md", *(ROOT / ".github").rglob("*.md")]
FILES = [*PAGES, *(file for file in OTHERS if file.is_file())]


def prose(file: Path) -> str:
    """The text without blocks and without code in lines."""
    text = re.sub(r"^( *)```.*?^\1```$", "", file.read_text(encoding="utf-8"), flags=re.M | re.S)
    return re.sub(r"`[^`\n]*`", "", text)


def anchors(file: Path) -> set[str]:
    """What headings can be reached by: in small letters, words joined, as forges do it."""
    text = re.sub(r"^( *)```.*?^\1```$", "", file.read_text(encoding="utf-8"), flags=re.M | re.S)
    found: set[str] = set()
    for title in re.findall(r"^#{1,6} +(.*?) *#*$", text, flags=re.M):
        bare = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", title).replace("`", "").lower()
        slug = re.sub(r"[^\w\- ]", "", bare).replace(" ", "-")
        again = 1
        while (name := slug if again == 1 else f"{slug}-{again - 1}") in found:
            again += 1
        found.add(name)
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(file: Path) -> None:
    """Every relative link is a file of the project, and its anchor a heading there."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(file)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = (file.parent / path).resolve() if path else file
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_the_front_page_lists_every_page() -> None:
    """The navigation is read from its lists."""
    front = ROOT / "docs" / "index.md"
    listed = re.findall(r"^- \[.*?\]\((.*?)\)", front.read_text(encoding="utf-8"), flags=re.M)
    pages = [p.relative_to(front.parent).as_posix() for p in PAGES if front.parent in p.parents]
    assert sorted(listed) == sorted(set(pages) - {"index.md"})


@pytest.mark.parametrize("file", PAGES, ids=lambda f: f.relative_to(ROOT).as_posix())
def test_papers_are_links(file: Path) -> None:
    """An arXiv id in a text leads to its paper."""
    bare = re.sub(r"\[[^\]]*\]\([^)]*\)", "", prose(file))
    assert re.findall(r"\b\d{4}\.\d{5}\b", bare) == []
