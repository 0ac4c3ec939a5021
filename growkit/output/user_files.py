"""The file of --html: it replaces a page, and nothing else."""

from __future__ import annotations

from pathlib import Path

from growkit.errors import OutputError
from growkit.os_errors import writing

DOCTYPE = b"<!doctype html>"


def write_page(path: Path, text: str) -> None:
    """Write a page. Raises OutputError where another file is, such as the one next to it."""
    with writing(path):
        if path.is_file():
            with path.open("rb") as file:
                start = file.read(len(DOCTYPE))
            if start and start.lower() != DOCTYPE:
                raise OutputError(
                    f"{path}: is there and holds no page", hint="give --html another name"
                )
        path.write_text(text, encoding="utf-8")
