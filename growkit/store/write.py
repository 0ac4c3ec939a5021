"""One output file as a byte stream: header first, then the tensors back to back.

The file is reserved at once, so that a full disk says so before the work and not after it. Bytes go
through one reused, aligned buffer. Write-back is started window by window, and a window that is on
disk leaves the page cache: the disk is kept busy from the start, and the cache stays small. Where a
call for this is missing or refused, the file is written all the same. Nothing is mapped.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import zlib
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from growkit.layout import Placed, Shard
from growkit.store.faults import writing

BUFFER = 8 << 20  # bytes
WINDOW = 64 << 20  # bytes
_START = 2  # SYNC_FILE_RANGE_WRITE
_FINISH = 7  # SYNC_FILE_RANGE_WAIT_BEFORE | _WRITE | _WAIT_AFTER
_REFUSALS = {errno.EINVAL, errno.ENOSYS, errno.ESPIPE, errno.EOPNOTSUPP, errno.EPERM}

Bytes = bytes | bytearray | memoryview


class ShardWriter:
    """Write `<folder>/<name>`; until `finish` it is `temporary`, by default `<name>.tmp` beside it.

    with ShardWriter(folder, shard) as writer:
        for placed in shard.tensors:
            writer.begin(placed)
            writer.write(block)           # as often as needed, in order
            crc32 = writer.end()
        writer.finish()
    """

    def __init__(self, folder: Path, shard: Shard, *, temporary: Path | None = None) -> None:
        self._shard = shard
        self._path = folder / shard.name
        self._temporary = temporary or folder / f"{shard.name}.tmp"
        self._buffer = memoryview(mmap.mmap(-1, BUFFER))  # anonymous memory on a page boundary
        self._filled = 0  # bytes in the buffer
        self._written = 0  # bytes in the file
        self._next = 0  # tensor to come
        self._crc = 0
        self._fd = -1

    def __enter__(self) -> Self:
        with writing(self._temporary, size=self._shard.size):
            self._temporary.unlink(missing_ok=True)  # so that the umask of today decides the mode
            self._fd = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            self._write_back = _WriteBack(self._fd)
            try:
                _reserve(self._fd, self._shard.size)
            except BaseException:
                self._drop()
                raise
        self._append(memoryview(self._shard.header))
        return self

    def begin(self, placed: Placed) -> None:
        """The next bytes are those of this tensor."""
        assert self._shard.tensors[self._next] == placed, f"{placed.formula.name}: out of order"
        assert self._position == placed.start, f"{placed.formula.name}: begins at the wrong byte"
        self._crc = 0

    def write(self, data: Bytes) -> None:
        """Append to the tensor; the caller may reuse its memory at once."""
        view = memoryview(data)
        if view.nbytes:
            view = view.cast("B")
            self._crc = zlib.crc32(view, self._crc)
            self._append(view)

    def end(self) -> str:
        """The tensor is complete; its crc32 in hex."""
        placed = self._shard.tensors[self._next]
        assert self._position == placed.stop, f"{placed.formula.name}: not written to its last byte"
        self._next += 1
        return f"{self._crc:08x}"

    def finish(self) -> Path:
        """Bring every byte to disk and give the file its name."""
        assert self._next == len(self._shard.tensors), f"{self._shard.name}: tensors are missing"
        self._flush()
        assert self._written == self._shard.size, f"{self._shard.name}: not written to its end"
        with writing(self._path, size=self._shard.size):
            os.fsync(self._fd)
            os.close(self._fd)
            self._fd = -1
            self._temporary.rename(self._path)
            sync_folder(self._path.parent)
        return self._path

    @property
    def _position(self) -> int:
        return self._written + self._filled

    def _append(self, view: memoryview) -> None:
        while view:
            count = min(len(view), BUFFER - self._filled)
            self._buffer[self._filled : self._filled + count] = view[:count]
            self._filled += count
            view = view[count:]
            if self._filled == BUFFER:
                self._flush()

    def _flush(self) -> None:
        with writing(self._temporary, size=self._shard.size):
            done = 0
            while done < self._filled:
                done += os.pwrite(self._fd, self._buffer[done : self._filled], self._written + done)
            self._written += self._filled
            self._filled = 0
            self._write_back.advance(self._written)

    def _drop(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._temporary.unlink(missing_ok=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._drop()


class _WriteBack:
    """Start write-back of each full window, then wait for the one before and forget its pages."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._started = 0  # bytes handed to write-back
        self._sync_range: Any = None
        if hasattr(os, "posix_fadvise"):
            libc = ctypes.CDLL(None, use_errno=True)
            self._sync_range = getattr(libc, "sync_file_range", None)

    def advance(self, written: int) -> None:
        """`written` bytes of the file are written by now."""
        if self._sync_range is None or written - self._started < WINDOW:
            return
        before, self._started = self._started, written
        self._call(before, written - before, _START)
        previous = before - WINDOW
        if previous >= 0:
            self._call(previous, WINDOW, _FINISH)
            os.posix_fadvise(self._fd, previous, WINDOW, os.POSIX_FADV_DONTNEED)

    def _call(self, offset: int, length: int, flags: int) -> None:
        if self._sync_range is None:
            return
        spread = ctypes.c_int64(offset), ctypes.c_int64(length)
        if self._sync_range(self._fd, *spread, flags) == 0:
            return
        code = ctypes.get_errno()
        if code not in _REFUSALS:  # an error of the disk: the kernel reports it only once
            raise OSError(code, os.strerror(code))
        self._sync_range = None


def _reserve(fd: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(fd, 0, size)
        except OSError as error:
            if error.errno not in _REFUSALS:
                raise


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, where the filesystem can."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
    finally:
        os.close(fd)
