"""Bytes to one open file, in order, as fast as the disk takes them.

A few aligned buffers are reused all along, and one thread writes while the caller fills the next.
Bytes go past the page cache where the filesystem allows it: that takes next to no CPU, and leaves
the cache to the sources. Elsewhere write-back is started window by window, and a window that is on
disk leaves the cache: the disk is kept busy from the start, and the cache stays small. Where a call
for this is missing or refused, the file is written all the same. Nothing of it is mapped.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from growkit.output.layout import PAGE

BUFFER = 4 << 20  # bytes
BUFFERS = 4  # one is being filled, one written, two even out what comes in bursts
WINDOW = 64 << 20  # bytes
REFUSALS = {errno.EINVAL, errno.ENOSYS, errno.ESPIPE, errno.EOPNOTSUPP, errno.EPERM}
_START = 2  # SYNC_FILE_RANGE_WRITE
_FINISH = 7  # SYNC_FILE_RANGE_WAIT_BEFORE | _WRITE | _WAIT_AFTER


class Stream:
    """Append to `fd`, the new file at `path`; what the disk refuses may be told a bit later."""

    def __init__(self, fd: int, path: Path) -> None:
        self.position = 0  # bytes taken so far
        self._fd = fd
        self._direct = _open_direct(path)
        self._write_back = _WriteBack(fd)
        # anonymous memory lies on page boundaries, as direct writing wants it
        self._buffers = deque(memoryview(mmap.mmap(-1, BUFFER)) for _ in range(BUFFERS))
        self._given = 0  # bytes given to the thread
        self._pending: deque[Future[None]] = deque()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="growkit-write")

    def append(self, view: memoryview) -> None:
        """Take bytes; the caller may reuse their memory at once."""
        while view:
            at = self.position % BUFFER
            count = min(len(view), BUFFER - at)
            self._buffers[0][at : at + count] = view[:count]
            self.position += count
            view = view[count:]
            if at + count == BUFFER:
                self._give()

    def finish(self) -> None:
        """Bring every byte to disk."""
        if self.position > self._given:
            self._give()
        while self._pending:
            self._pending.popleft().result()
        os.fsync(self._fd)

    def close(self) -> None:
        """Stop the thread; bytes that it has not written yet are forgotten."""
        self._pool.shutdown(cancel_futures=True)
        self._buffered_from_now_on()

    def _give(self) -> None:
        """Hand what was filled to the thread, and go on in the buffer that is free the longest."""
        start, self._given = self._given, self.position
        self._pending.append(self._pool.submit(self._write, self._buffers[0], start, self._given))
        self._buffers.rotate(-1)
        if len(self._pending) == BUFFERS:
            self._pending.popleft().result()

    def _write(self, buffer: memoryview, start: int, stop: int) -> None:
        view = buffer[: stop - start]
        while view:
            whole = len(view) - len(view) % PAGE
            if self._direct < 0 or start % PAGE or not whole:
                done = os.pwrite(self._fd, view, start)
            else:
                try:
                    done = os.pwrite(self._direct, view[:whole], start)
                except OSError as error:
                    if error.errno not in REFUSALS:
                        raise
                    self._buffered_from_now_on()
                    continue
            start, view = start + done, view[done:]
        if self._direct < 0:
            self._write_back.advance(stop)

    def _buffered_from_now_on(self) -> None:
        if self._direct >= 0:
            os.close(self._direct)
            self._direct = -1


def _open_direct(path: Path) -> int:
    """A second descriptor that writes past the page cache; -1 where there is no such thing."""
    try:
        return os.open(path, os.O_WRONLY | os.O_DIRECT)
    except (AttributeError, OSError):
        return -1


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
        if code not in REFUSALS:  # an error of the disk: the kernel reports it only once
            raise OSError(code, os.strerror(code))
        self._sync_range = None
