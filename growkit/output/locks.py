"""Locks on files, let go when their process ends, however it ends."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

# some network filesystems have no locks; done-marks and atomic renames keep the bytes right there
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


def take_lock(path: Path, *, shared: bool = False) -> int | None:
    """Lock a file, making it if need be; its descriptor, or None where another process holds it.

    Shared locks go together, an exclusive one goes with none. Raises FileNotFoundError where the
    folder has just been removed.
    """
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(fd)
                raise
        if _is_still(path, fd):
            return fd
        os.close(fd)  # it was removed between the two calls: the lock would be nobody's


def _is_still(path: Path, fd: int) -> bool:
    try:
        return path.stat().st_ino == os.fstat(fd).st_ino
    except FileNotFoundError:
        return False
