"""One output file: header first, then the tensors back to back.

The file is reserved at once, so that a full disk says so before the work and not after it. Every
byte is written once, and a checksum is taken of each tensor as it passes.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Self

from growkit.os_errors import writing
from growkit.output.append import REFUSALS, Stream
from growkit.output.layout import Placed, Shard

Bytes = bytes | bytearray | memoryview


class ShardWriter:
    """Write `<folder>/<name>`; until `finish` it is `temporary`, by default `<name>.tmp` beside it.

    with ShardWriter(folder, shard) as writer:
        for placed in shard.tensors:
            writer.begin(placed)
            writer.write(block)           # as often as needed, in order
            writer.end()
        checksums = writer.finish()
    """

    def __init__(self, folder: Path, shard: Shard, *, temporary: Path | None = None) -> None:
        self._shard = shard
        self._path = folder / shard.name
        self._temporary = temporary or folder / f"{shard.name}.tmp"
        self._next = 0  # tensor to come
        self._crc = 0
        self._checksums: dict[str, str] = {}
        self._fd = -1

    def __enter__(self) -> Self:
        with writing(self._temporary, size=self._shard.size):
            self._path.parent.mkdir(exist_ok=True)  # of a module
            self._temporary.unlink(missing_ok=True)  # so that the umask of today decides the mode
            self._fd = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            self._stream = Stream(self._fd, self._temporary)
            try:
                _reserve(self._fd, self._shard.size)
                self._stream.append(memoryview(self._shard.header))
            except BaseException:
                self._drop()
                raise
        return self

    def begin(self, placed: Placed) -> None:
        """The next bytes are those of this tensor."""
        assert self._shard.tensors[self._next] == placed, f"{placed.formula.name}: out of order"
        at_start = self._stream.position == placed.start
        assert at_start, f"{placed.formula.name}: begins at the wrong byte"
        self._crc = 0

    def write(self, data: Bytes) -> None:
        """Append to the tensor; the caller may reuse its memory at once."""
        view = memoryview(data)
        if view.nbytes:
            self._crc = zlib.crc32(view, self._crc)
            with writing(self._temporary, size=self._shard.size):
                self._stream.append(view.cast("B"))

    def end(self) -> None:
        """The tensor is complete."""
        placed = self._shard.tensors[self._next]
        at_stop = self._stream.position == placed.stop
        assert at_stop, f"{placed.formula.name}: not written to its last byte"
        self._checksums[placed.formula.name] = f"{self._crc:08x}"
        self._next += 1

    def finish(self) -> dict[str, str]:
        """Bring every byte to disk and give the file its name; the crc32 of each tensor in hex."""
        assert self._next == len(self._shard.tensors), f"{self._shard.name}: tensors are missing"
        with writing(self._path, size=self._shard.size):
            self._stream.finish()
            self._stream.close()
            os.close(self._fd)
            self._fd = -1
            self._temporary.rename(self._path)
            sync_folder(self._path.parent)
        return self._checksums

    def _drop(self) -> None:
        if self._fd >= 0:
            self._stream.close()
            os.close(self._fd)
            self._fd = -1
            self._temporary.unlink(missing_ok=True)

    def __exit__(self, *exception: object) -> None:
        self._drop()


def _reserve(fd: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(fd, 0, size)
        except OSError as error:
            if error.errno not in REFUSALS:
                raise


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, where the filesystem can."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
    finally:
        os.close(fd)
