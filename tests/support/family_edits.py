"""Family files with one thing changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from growkit.families.load import family_text


def flipped(folder: Path, name: str, change: Callable[[dict[str, Any]], None]) -> Path:
    """A shipped family file with one thing changed, as a file of the user's."""
    data = yaml.safe_load(family_text(name))
    change(data)
    path = folder / "family.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path
