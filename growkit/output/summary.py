"""The file of `--summary`: refused before the work if it could not be written after it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from growkit.os_errors import writing


def refuse_unwritable(path: Path) -> None:
    """Raise ResourceError if there can be no such file; nothing is made or changed."""
    with writing(path):
        if not path.exists():
            tempfile.TemporaryFile(dir=path.parent).close()
        elif path.is_file() or path.is_dir():  # a pipe would end for its reader
            os.close(os.open(path, os.O_WRONLY))


def write_summary(path: Path, text: str) -> None:
    """Write the file; what a link leads to, a device or a pipe will do as well."""
    with writing(path):
        path.write_text(text, encoding="utf-8")
