"""The file of `--summary`: refused before the work if it could not be written after it."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from growkit.store.faults import writing


def refuse_unwritable(path: Path) -> None:
    """Raise ResourceError if there can be no such file; nothing is made or changed."""
    with writing(path):
        if path.exists():
            os.close(os.open(path, os.O_WRONLY))
        else:
            tempfile.TemporaryFile(dir=path.parent).close()


def write_summary(path: Path, text: str) -> None:
    """Write the file in one step; a link, a device or a pipe is written to as it is."""
    with writing(path):
        if path.exists() and not stat.S_ISREG(path.lstat().st_mode):
            path.write_text(text, encoding="utf-8")
            return
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
