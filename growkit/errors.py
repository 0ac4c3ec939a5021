"""What can go wrong, and the exit code that says so.

    GrowkitError            1   anything a user can meet
    ├── UsageError          2   a wrong call: options, paths, a missing extra
    │   └── RecipeError     2   the recipe is invalid, or asks for what cannot be
    ├── FamilyError         3   a family file is wrong, or the family does not fit
    ├── CheckpointError     3   a checkpoint is missing, damaged, quantised or not finite
    ├── ResourceError       4   not enough disk or memory, or no permission
    ├── HubError            5   Hub or network
    ├── OutputError         6   OUT holds something else, or another growkit writes it
    └── VerifyError         1   the grown model is not what was claimed

The text is one sentence of *where: what*; `hint` is the next action. Neither ends in a newline.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import ClassVar


class GrowkitError(Exception):
    """A failure that a user can cause and mend."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(GrowkitError):
    """The command line or the Python call is wrong."""

    exit_code = 2


class RecipeError(UsageError):
    """The recipe is invalid, or contradicts itself or the checkpoint's sizes."""


class FamilyError(GrowkitError):
    """No family file describes this checkpoint, or the family file is wrong."""

    exit_code = 3


class CheckpointError(GrowkitError):
    """The checkpoint cannot be read as what it claims to be."""

    exit_code = 3


class ResourceError(GrowkitError):
    """Disk, memory or permission is missing."""

    exit_code = 4


class HubError(GrowkitError):
    """The Hub or the network failed; `retryable` says that the same again may go well."""

    exit_code = 5

    def __init__(self, message: str, *, hint: str = "", retryable: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.retryable = retryable


class OutputError(GrowkitError):
    """OUT holds something else, or another growkit is writing it."""

    exit_code = 6


class VerifyError(GrowkitError):
    """The grown model, or a file of it, is not what was claimed."""


@contextmanager
def located(where: str) -> Iterator[None]:
    """Inside, a RecipeError says where first: in which step of a recipe, or in which file."""
    try:
        yield
    except RecipeError as error:
        raise RecipeError(f"{where}: {error.message}", hint=error.hint) from None


def shown(text: str, most: int = 1000) -> str:
    """One line that is safe to print: control characters escaped, a long text without its middle.

    >>> shown("a\\n" + "b" * 99, most=20)
    'a\\\\nbbbbbbbbbb … bbbbb'
    """
    if len(text) > most:
        text = f"{text[: most * 3 // 5]} … {text[-most // 4 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint that names the nearest known word, or all of them.

    >>> did_you_mean("hiden", ["hidden", "mlp"])
    'did you mean "hidden"?'
    """
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return f'did you mean "{near[0]}"?' if near else f"known: {', '.join(names)}"
