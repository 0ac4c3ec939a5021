"""Which words are the name of a model on the Hub: `org/name` or `org/name@revision`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from growkit.errors import UsageError

_NAME = re.compile(r"(\w[\w.-]*)/(\w[\w.-]*)(?:@(\w[\w./-]*))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Repo:
    """A model on the Hub."""

    id: str  # org/name
    revision: str | None = None  # a branch, a tag or a commit; None is the main branch

    def __str__(self) -> str:
        return f"{self.id}@{self.revision}" if self.revision else self.id


def repo_named(source: str | Path) -> Repo | None:
    """The model on the Hub that a source is, or None: whatever could be a path here is one.

    A `Path` always is, and so is a text whose first folder exists: a slip in the path of a local
    model must not ask a server for it.

    >>> repo_named("org/name@v1.0")
    Repo(id='org/name', revision='v1.0')
    >>> repo_named("org/name/model.safetensors")
    """
    if not isinstance(source, str) or source.endswith((".safetensors", ".json")):
        return None
    match = _NAME.fullmatch(source)
    if not match or Path(match[1]).exists() or Path(source).exists():
        return None
    return Repo(f"{match[1]}/{match[2]}", match[3])


def repo_required(text: str, *, revision: bool = False) -> Repo:
    """The model on the Hub that a user must have meant. Raises UsageError."""
    match = _NAME.fullmatch(text)
    if not match or (match[3] and not revision):
        form = "org/name[@revision]" if revision else "org/name"
        raise UsageError(
            f"{text}: not the name of a model on the Hub",
            hint=f"expected {form}" + ("" if revision else "; a branch is given by --revision"),
        )
    return Repo(f"{match[1]}/{match[2]}", match[3])
