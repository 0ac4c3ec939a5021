"""The operating system's errors in growkit's words."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from growkit.byte_sizes import format_size
from growkit.errors import CheckpointError, GrowkitError, ResourceError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_TOO_MANY = {errno.EMFILE, errno.ENFILE}


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn an OSError of the body into what it means for the source at `path`."""
    try:
        yield
    except OSError as error:
        raise _resource(path, error, "read") or CheckpointError(
            f"{path}: cannot read: {error.strerror}", hint="check the path and the disk it is on"
        ) from error


@contextmanager
def writing(path: Path, *, size: int | None = None) -> Iterator[None]:
    """Turn an OSError of the body into what it means for the output at `path` of `size` bytes."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise _full(path, error, size) from error
        raise _resource(path, error, "write") or ResourceError(
            f"{path}: cannot write: {error.strerror}", hint="check the path and the disk it is on"
        ) from error


def free_bytes(path: Path) -> int:
    """Free bytes of the filesystem that `path` is on, or will be on."""
    return shutil.disk_usage(existing_ancestor(path)).free


def existing_ancestor(path: Path) -> Path:
    """The path itself, or the nearest folder above it that exists."""
    return next(p for p in (path, *path.parents) if p.exists())


def _full(path: Path, error: OSError, size: int | None) -> GrowkitError:
    wanted = "" if size is None else f"needs {format_size(size)}, "
    return ResourceError(
        f"{path}: {error.strerror}: {wanted}{format_size(free_bytes(path))} free on this disk",
        hint="free some space (or raise the quota or file size limit) and run again to resume",
    )


def _resource(path: Path, error: OSError, verb: str) -> GrowkitError | None:
    if error.errno in _DENIED:
        return ResourceError(
            f"{path}: no permission to {verb}: {error.strerror}",
            hint="change the permissions, or choose another folder",
        )
    if error.errno in _TOO_MANY:
        return ResourceError(f"{path}: {error.strerror}", hint="raise the limit with `ulimit -n`")
    return None
