"""A user's own family file: it may hold anything, and what breaks is said to be its fault.

The law: it is plain data of a bounded size, and never the reason for a traceback.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from growkit import plain_yaml
from growkit.errors import FamilyError

MAX_BYTES = 1_000_000


def read_family(file: Path) -> dict[str, Any]:
    """The mapping in a user's family file."""
    try:
        with file.open("rb") as opened:
            raw = opened.read(MAX_BYTES + 1)  # a device has no size, and no end
        if len(raw) > MAX_BYTES:
            raise FamilyError(f"{file}: a family file has at most {MAX_BYTES:,} bytes")
        text = raw.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise FamilyError(f"{file}: cannot be read: {error}") from None
    problems: list[plain_yaml.Problem] = []
    data = plain_yaml.parse(text, str(file), problems, FamilyError)
    for where, what, hint in problems:
        raise FamilyError(f"{file}: {where + ': ' if where else ''}{what}", hint=hint)
    if not isinstance(data, dict):
        raise FamilyError(f"{file}: expected a mapping, found {type(data).__name__}")
    return data


@contextmanager
def blamed(file: Path | None) -> Iterator[None]:
    """Inside, what breaks because of a user's own family file is said to be the file's fault.

    The file may hold any value at any place, and every room believes what a family says.
    """
    try:
        yield
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError,
            TypeError, ValueError) as error:  # fmt: skip
        if file is None:
            raise
        raise FamilyError(
            f"{file}: does not describe this model: {type(error).__name__}: {error}",
            hint="compare it with a family file that works: `growkit families llama`",
        ) from error
