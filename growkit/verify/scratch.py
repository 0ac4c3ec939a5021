"""A folder that is gone afterwards: where tiny models live while a family is checked."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def scratch() -> Iterator[Path]:
    """An empty folder, removed at the end whatever happens."""
    with tempfile.TemporaryDirectory(prefix="growkit-") as folder:
        yield Path(folder)
