"""A snapshot in the Hub's cache: a folder of links to blobs, some of which may not be here yet.

    <cache>/models--org--name/snapshots/<commit>/<file>   →   <cache>/models--org--name/blobs/<id>

A blob is named after its content, so its name identifies a file better than a time can, and a file
that has not been downloaded is the same file as the one that has.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Far:
    """A file of a snapshot that has not been downloaded."""

    size: int  # bytes
    blob: str  # sha256, or git's sha1 of a small file
    first: Callable[[int], bytes]  # its first bytes, as many as there are


Listing = Mapping[str, Far]  # every file of a repository, by its path there


def is_snapshot(folder: Path) -> bool:
    """Whether this is a snapshot in the Hub's cache; its name is then the commit."""
    named = folder.parent.name == "snapshots" and re.fullmatch("[0-9a-f]{40}", folder.name)
    return bool(named) and (folder.parent.parent / "blobs").is_dir()


def leads_to_blob(folder: Path, target: Path) -> bool:
    """Whether a link of the snapshot may lead to `target`: the repository's blobs, or shared ones.

    Newer caches keep the content of several repositories in one folder and link to it from blobs.
    """
    repository = folder.parent.parent
    return is_snapshot(folder) and any(
        target.is_relative_to(blobs.resolve())
        for blobs in (repository / "blobs", repository.parent / "blobs")
    )


def blob_of(folder: Path, name: str) -> str | None:
    """The name of the blob that a file of the snapshot is; None where it is an ordinary file."""
    path = folder / name
    return path.readlink().name if path.is_symlink() and is_snapshot(folder) else None
