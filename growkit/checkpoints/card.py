"""What a model's own card says of it: the front matter of the README.md beside its weights.

The law: a card is a remark and never a reason to refuse a model; what cannot be read is not there.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from growkit import plain_yaml
from growkit.errors import CheckpointError

CARD = "README.md"
_MOST = 100_000  # bytes of the file that are read: the front matter stands at its beginning
_FRONT = re.compile(r"\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", re.DOTALL)


def read_card(folder: Path) -> dict[str, Any]:
    """Licence, language, tags and the like, by the Hub's keys; empty where there is no card."""
    path = folder / CARD
    try:
        if not path.is_file():
            return {}
        with path.open("rb") as file:
            text = file.read(_MOST).decode("utf-8-sig", errors="replace")
        front = _FRONT.match(text)
        said = plain_yaml.parse(front[1], CARD, [], CheckpointError) if front else None
    except (OSError, CheckpointError):
        return {}
    return said if isinstance(said, dict) else {}
