"""Rows of stored tensors, read by pread into fresh memory: no mmap, no whole tensor, no cache."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Self

from growkit.checkpoints.open import folder_of
from growkit.checkpoints.types import Checkpoint, FileIdentity, Stored
from growkit.errors import CheckpointError
from growkit.os_errors import reading


class SourceRows:
    """The bytes of rows [start, stop) of dim 0 of a stored tensor.

    with SourceRows({"small": checkpoint}) as rows:
        block = rows(stored, 0, 512)      # a memoryview that is the caller's to keep
    """

    def __init__(self, checkpoints: Mapping[str, Checkpoint]) -> None:
        self._checkpoints = checkpoints
        self._files: dict[tuple[str, str], tuple[Path, int, FileIdentity]] = {}
        try:
            for source, checkpoint in checkpoints.items():
                for identity in checkpoint.files:
                    path = folder_of(checkpoint) / identity.name
                    with reading(path):
                        fd = os.open(path, os.O_RDONLY)
                    if identity.blob:  # planned without a time: from now on it counts
                        identity = replace(identity, mtime_ns=os.fstat(fd).st_mtime_ns)
                    self._files[source, identity.name] = path, fd, identity
            self.check_unchanged()
        except BaseException:
            self.close()
            raise

    def __call__(self, stored: Stored, start: int, stop: int) -> memoryview:
        """Raw bytes of the rows; the whole tensor where it has no dims."""
        info = self._checkpoints[stored.source].tensors[stored.name]
        assert info.shape == stored.shape, f"{stored.name}: planned for another shape"
        rows = info.shape[0] if info.shape else 1
        if not info.shape:
            start, stop = 0, 1
        assert 0 <= start <= stop <= rows, f"{stored.name}: rows {start}:{stop} of {rows}"
        per_row = (info.stop - info.start) // max(rows, 1)
        view = memoryview(bytearray((stop - start) * per_row))
        self._fill(view, stored.source, info.file, info.start + start * per_row)
        return view

    def _fill(self, view: memoryview, source: str, file: str, offset: int) -> None:
        path, fd, _ = self._files[source, file]
        done = 0
        while done < len(view):
            with reading(path):
                count = os.preadv(fd, [view[done:]], offset + done)
            if not count:
                raise _changed(path, f"it ends {len(view) - done} bytes early")
            done += count

    def check_unchanged(self) -> None:
        """Refuse to go on when a source file is no longer the one that was planned with."""
        for path, fd, identity in self._files.values():
            stat = os.fstat(fd)
            if stat.st_size != identity.size:
                raise _changed(path, f"{identity.size} bytes planned, {stat.st_size} found")
            if stat.st_mtime_ns != identity.mtime_ns:
                raise _changed(path, "its modification time is another")
            try:
                named = path.stat()
            except FileNotFoundError:
                raise _changed(path, "it is no longer there") from None
            if (named.st_dev, named.st_ino) != (stat.st_dev, stat.st_ino):
                raise _changed(path, "another file has its name now")

    def close(self) -> None:
        """Close all files; may be called again."""
        while self._files:
            _, (_, fd, _) = self._files.popitem()
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _changed(path: Path, how: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: changed during the run: {how}",
        hint="wait until nothing writes the source, then run again",
    )
