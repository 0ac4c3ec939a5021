"""Which files of a result are complete, whoever wrote them: done-marks and locks in OUT.partial.

The law: a mark counts only for the very file that it was made for, and only for its plan's digest.
Files in the making have names of their own, so that two processes that write the same file, which
nobody wants but a cluster can bring about, do not disturb each other: either rename puts a whole
file in place, with the same bytes. A lock keeps two of our own from trying.
"""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from growkit.errors import OutputError, ResourceError
from growkit.os_errors import writing
from growkit.output.layout import Shard
from growkit.output.shard_writer import sync_folder


@dataclass(frozen=True, slots=True)
class Marks:
    """The done-marks of one result; all that a process needs to know about OUT."""

    partial: Path
    digest: str

    @property
    def folder(self) -> Path:
        """What becomes OUT."""
        return self.partial / "model"

    def finished(self, name: str) -> dict[str, Any] | None:
        """The mark of a file that an earlier run or another process completed."""
        try:
            mark = json.loads(self._mark(name).read_bytes())
            stat = (self.folder / name).stat()
        except (OSError, ValueError):
            return None
        expected = {"digest": self.digest, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        if isinstance(mark, dict) and {k: mark.get(k) for k in expected} == expected:
            return mark
        return None

    def mark(
        self, shard: Shard, crc32: Mapping[str, str], extra: Mapping[str, Any] | None = None
    ) -> None:
        """Say that a file is complete; `extra` is the caller's and comes back from `finished`.

        Another process may put its file of the same bytes in place while this mark is made: then
        the mark is made anew, for a mark of the file that is gone may be the last to be written.
        """
        path, file = self._mark(shard.name), self.folder / shard.name
        while True:
            with writing(path):
                stat = file.stat()
            assert stat.st_size == shard.size, f"{shard.name}: marked before it was complete"
            content = {
                "digest": self.digest,
                "size": stat.st_size,
                "mtime_ns": stat.st_mtime_ns,
                "crc32": dict(crc32),
                "extra": dict(extra or {}),
            }
            self.put(path, io.BytesIO(json.dumps(content).encode()))
            with writing(path):
                sync_folder(self.partial)
                if file.stat().st_mtime_ns == stat.st_mtime_ns:
                    return

    def put(self, path: Path, content: BinaryIO) -> None:
        """Bring a small file to disk; it appears with all of its bytes."""
        temporary = self.temporary(path.name)
        with writing(path):
            with temporary.open("wb") as file:
                shutil.copyfileobj(content, file)
                file.flush()
                os.fsync(file.fileno())
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.rename(path)

    def temporary(self, name: str) -> Path:
        """Where a file is made before it gets its name; another one each time."""
        return self.partial / f"{name}.{secrets.token_hex(4)}.tmp"

    def clear(self, names: Iterable[str]) -> None:
        """Remove what processes that are no more have left of these files."""
        for name in names:
            for path in self.partial.glob(f"{name}.*.tmp"):
                path.unlink(missing_ok=True)

    @contextmanager
    def claim(self, name: str) -> Iterator[None]:
        """Be the only one to write this file, where the filesystem has locks."""
        with writing(self.partial):
            fd = take_lock(self.partial / f"{name}.lock")
        if fd is None:
            raise OutputError(
                f"{self.folder / name}: another growkit is writing it",
                hint="is this rank running twice? Wait for the other one to end",
            )
        try:
            self.clear([name])
            yield
        finally:
            os.close(fd)

    def refuse_elsewhere(self) -> None:
        """Refuse to work on a machine that does not share OUT.partial."""
        if not self.folder.is_dir():
            raise ResourceError(
                f"{self.folder}: no such folder on {os.uname().nodename}",
                hint="all workers need the sources and OUT under the same path, on a shared disk",
            )

    def _mark(self, name: str) -> Path:
        return self.partial / f"{name}.done"


# -- locks ---------------------------------------------------------------------------------------

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
