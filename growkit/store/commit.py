"""OUT, and the sibling `OUT.partial/` that it is made in.

    OUT.partial/
      growkit.lock        locked while somebody writes; holds the digest of the plan
      <shard>.done        the shard is complete: digest, size, checksums
      model/              what becomes OUT, by one rename

The control files lie outside of `model/`, so at no moment does OUT hold anything but a whole
result, or is finished work forgotten. A mark counts only for the very file that it was made for.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import io
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from growkit.errors import CheckpointError, OutputError, ResourceError, UsageError
from growkit.formula import Checkpoint
from growkit.layout import Layout, Shard, format_size
from growkit.store.check import first_missing, read_record
from growkit.store.faults import existing_ancestor, free_bytes, reading, writing
from growkit.store.read import folder_of, locate
from growkit.store.write import sync_folder

MARGIN = 16 << 20  # bytes; for config, report and the folders themselves
_LOCK = "growkit.lock"
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


class Workspace:
    """Where one result is made; `already_done` says that OUT holds it and there is nothing to do.

    with Workspace(out, digest=digest, layout=layout, sources=[checkpoint]) as work:
        for shard in layout.shards:
            if work.finished(shard.name) is None:
                ...                        # ShardWriter(work.folder, shard)
                work.mark(shard, checksums, {"seconds": 1.5})
        work.add("config.json", text)
        work.commit()
    """

    def __init__(
        self,
        out: str | Path,
        *,
        digest: str,
        layout: Layout,
        sources: Sequence[Checkpoint],
        overwrite: bool = False,
    ) -> None:
        self.out = Path(os.path.realpath(out))
        self.partial = self.out.with_name(f"{self.out.name}.partial") if self.out.name else self.out
        self.folder = self.partial / "model"
        self._old = self.partial / "old"
        self.already_done = False
        self._digest = digest
        self._layout = layout
        self._sources = sources
        self._overwrite = overwrite
        self._lock_fd = -1
        self._made: list[Path] = []  # folders above OUT that were not there, the lowest first

    def __enter__(self) -> Self:
        """Refuse whatever can be refused, then lock; nothing is written before that."""
        with writing(self.out):
            self.already_done = self.look()
            if self.already_done and not self._is_partial():
                return self
            if not self.already_done:
                self._refuse_full_disk()
            self._lock()
            try:
                if self._old.exists() and not self.out.exists():
                    self._old.rename(self.out)  # a run was killed between two renames
                self.already_done = self._look_at_out()  # somebody may just have finished it
                if self.already_done:
                    self._discard()
                else:
                    self._prepare()
            except BaseException:
                self._unlock()
                raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave finished shards to the next run; where there are none, leave nothing."""
        if self._lock_fd >= 0:
            if not any(self.finished(shard.name) for shard in self._layout.shards):
                self._discard()
            self._unlock()

    def look(self) -> bool:
        """Whether OUT holds this result; raises where it may not be written. Changes nothing."""
        with writing(self.out):
            self._refuse_sources()
            return self._look_at_out()

    # -- while working ---------------------------------------------------------------------------

    def finished(self, name: str) -> dict[str, Any] | None:
        """The mark of a shard that an earlier run or worker completed."""
        try:
            mark = json.loads(self._mark(name).read_bytes())
            stat = (self.folder / name).stat()
        except (OSError, ValueError):
            return None
        wanted = {"digest": self._digest, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        if isinstance(mark, dict) and {k: mark.get(k) for k in wanted} == wanted:
            return mark
        return None

    def mark(
        self, shard: Shard, crc32: Mapping[str, str], extra: Mapping[str, Any] | None = None
    ) -> None:
        """Say that a shard is complete; `extra` is the caller's and comes back from `finished`."""
        path = self._mark(shard.name)
        stat = (self.folder / shard.name).stat()
        assert stat.st_size == shard.size, f"{shard.name}: marked before it was complete"
        content = {
            "digest": self._digest,
            "size": stat.st_size,
            "mtime_ns": stat.st_mtime_ns,
            "crc32": dict(crc32),
            "extra": dict(extra or {}),
        }
        _write(path.with_suffix(".tmp"), io.BytesIO(json.dumps(content).encode()))
        with writing(path):
            path.with_suffix(".tmp").rename(path)
            sync_folder(self.partial)

    def add(self, name: str, text: str) -> None:
        """Write a file of the result."""
        _write(self.folder / name, io.BytesIO(text.encode()))

    def sizes(self) -> dict[str, int]:
        """Bytes of each file of the result so far, by its name in OUT."""
        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {str(path.relative_to(self.folder)): path.stat().st_size for path in files}

    def copy_side_file(
        self, checkpoint: Checkpoint, name: str, edit: Callable[[Any], Any] | None = None
    ) -> None:
        """Carry a side file over, byte for byte; or as the JSON that `edit` makes of its JSON."""
        source = locate(folder_of(checkpoint), name)
        with reading(source):
            file = source.open("rb")
        with file:
            if edit is None:
                _write(self.folder / name, file)
                return
            try:
                value = json.load(file)
            except ValueError as error:
                raise CheckpointError(
                    f"{source}: not valid JSON: {error}", hint="mend or remove the file"
                ) from error
        self.add(name, json.dumps(edit(value), indent=2, ensure_ascii=False) + "\n")

    # -- the end ---------------------------------------------------------------------------------

    def commit(self) -> Path:
        """Make the result visible as OUT, all at once, and remove everything else."""
        for shard in self._layout.shards:
            size = (self.folder / shard.name).stat().st_size
            assert size == shard.size, f"{shard.name}: committed before it was complete"
        with writing(self.out):
            for folder in (*(p for p in self.folder.rglob("*") if p.is_dir()), self.folder):
                sync_folder(folder)
            self._swap()
            sync_folder(self.out.parent)
        self._discard()
        self._unlock()
        return self.out

    def _swap(self) -> None:
        if self._overwrite and self.out.exists():
            if _exchange(self.folder, self.out):
                return
            self.out.rename(self._old)
            try:
                self.folder.rename(self.out)
            except BaseException:
                self._old.rename(self.out)
                raise
            return
        try:
            self.folder.rename(self.out)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            raise OutputError(
                f"{self.out}: somebody else wrote to it during the run",
                hint="give another -o, or --overwrite to replace it",
            ) from error

    # -- what is refused before anything is written ----------------------------------------------

    def _refuse_sources(self) -> None:
        above = existing_ancestor(self.out)
        if not above.is_dir() and above != self.out:
            raise UsageError(f"{self.out}: {above} is not a folder", hint="give another -o")
        for checkpoint in self._sources:
            source = Path(checkpoint.path).resolve()
            files = [(folder_of(checkpoint) / f.name).resolve() for f in checkpoint.files]
            for ours in (self.out, self.partial):
                if source.is_dir() and ours.is_relative_to(source):
                    relation = "is" if ours == source else "is inside"
                elif any(path.is_relative_to(ours) for path in (source, *files)):
                    relation = "is" if ours == source else "contains"
                else:
                    continue
                raise UsageError(
                    f"{ours}: the output {relation} the source {checkpoint.path}",
                    hint="give an -o outside of the source: sources are never written to",
                )

    def _look_at_out(self) -> bool:
        """Whether OUT already holds this result; raises where it may not be replaced."""
        out = self.out
        if not out.exists() and not out.is_symlink():
            return False
        if not out.is_dir():
            raise OutputError(f"{out}: exists and is not a folder", hint="give another -o")
        if out.is_mount():
            raise UsageError(
                f"{out}: a mount point, which cannot be replaced by one rename",
                hint=f"give a folder inside it: -o {out / 'model'}",
            )
        if not any(out.iterdir()):
            if Path.cwd().resolve() == out:
                raise UsageError(
                    f"{out}: the working folder, which one rename would replace",
                    hint=f"cd .. and give -o {out.name}",
                )
            return False
        if self._overwrite:
            home = Path(os.environ.get("HOME", "/"))
            for kept, what in ((Path.cwd(), "working"), (home, "home")):
                if kept.resolve().is_relative_to(out):
                    raise OutputError(
                        f"{out}: holds the {what} folder, which --overwrite would delete",
                        hint="give another -o",
                    )
            return False
        record = read_record(out)
        if record is None:
            what = "exists, is not empty and has no growkit.json"
        elif record.get("digest") != self._digest:
            what = "holds the result of another recipe, source or version"
        elif missing := first_missing(out, record):
            what = f"holds this result, but damaged: {missing}"
        else:
            return True
        raise OutputError(f"{out}: {what}", hint="give another -o, or --overwrite to replace it")

    def _refuse_full_disk(self) -> None:
        side = sum(
            (folder_of(c) / name).stat().st_size for c in self._sources for name in c.side_files
        )
        need = self._layout.total_bytes + side + MARGIN
        ours = [p.stat().st_blocks * 512 for p in self.partial.rglob("*") if p.is_file()]
        free = free_bytes(self.out.parent) + sum(ours)
        if need > free:
            raise ResourceError(
                f"{self.out}: needs {format_size(need)} of disk, {format_size(free)} free",
                hint=f"free {format_size(need - free)}, or give an -o on another disk",
            )

    # -- lock and partial folder -----------------------------------------------------------------

    def _is_partial(self) -> bool:
        """Whether the partial folder exists; raises where the name is taken by something else."""
        if not self.partial.exists() and not self.partial.is_symlink():
            return False
        ours = self.partial.is_dir() and not self.partial.is_symlink()
        if not ours or (any(self.partial.iterdir()) and not (self.partial / _LOCK).exists()):
            raise OutputError(
                f"{self.partial}: exists and was not made by growkit",
                hint="move it away, or give another -o",
            )
        return True

    def _lock(self) -> None:
        """Hold the lock file of the partial folder, and not one that was just deleted."""
        path = self.partial / _LOCK
        while self._lock_fd < 0:
            self._is_partial()
            self._made += [p for p in self.partial.parents if not p.exists()]
            self.partial.mkdir(parents=True, exist_ok=True)
            try:
                fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                os.close(fd)
                raise OutputError(
                    f"{self.out}: another growkit is writing it",
                    hint="wait for it to end, or give another -o",
                ) from error
            except OSError as error:  # some network filesystems have no locks
                if error.errno not in _NO_LOCKS:
                    os.close(fd)
                    raise
            if path.exists() and path.stat().st_ino == os.fstat(fd).st_ino:
                self._lock_fd = fd
            else:
                os.close(fd)

    def _unlock(self) -> None:
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _prepare(self) -> None:
        """Keep the shards that this plan finished before; everything else starts anew."""
        if os.pread(self._lock_fd, 1024, 0) != self._digest.encode():
            self._clear()
            os.ftruncate(self._lock_fd, 0)
            os.pwrite(self._lock_fd, self._digest.encode(), 0)
            os.fsync(self._lock_fd)
        self.folder.mkdir(exist_ok=True)
        kept = {s.name for s in self._layout.shards if self.finished(s.name)}
        for path in self.folder.iterdir():
            if path.name not in kept:
                _remove(path)

    def _clear(self) -> None:
        for path in self.partial.iterdir():
            if path.name != _LOCK:
                _remove(path)

    def _discard(self) -> None:
        """Remove the partial folder, the lock last; what cannot be removed does no harm."""
        shutil.rmtree(self.folder, ignore_errors=True)
        try:
            self._clear()
            (self.partial / _LOCK).unlink()
            for folder in (self.partial, *self._made):  # of these, those that are empty
                folder.rmdir()
        except OSError:
            pass

    def _mark(self, name: str) -> Path:
        return self.partial / f"{name}.done"


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _write(path: Path, content: BinaryIO) -> None:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            shutil.copyfileobj(content, file)
            file.flush()
            os.fsync(file.fileno())


def _exchange(left: Path, right: Path) -> bool:
    """Swap two folders in one step; False where the system or the filesystem cannot."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(function(here, os.fsencode(left), here, os.fsencode(right), exchange) == 0)
