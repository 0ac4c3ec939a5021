"""Where a result is made: OUT, and the sibling `OUT.partial/` that becomes it by one rename.

    OUT.partial/
      growkit.lock        locked while somebody writes; holds the digest of the plan
      <shard>.done        the shard is complete: digest, size, checksums
      <shard>.lock        locked by the rank that writes the shard
      <shard>.….tmp       a shard in the making
      result.json         the description of the result, which ranks leave to `growkit finish`
      model/              what becomes OUT, by one rename

The law: at no moment does OUT hold anything but a whole result, and no finished file is forgotten,
however a run ends; so the control files lie outside of `model/`. What can be refused is refused
before anything is written. One process works alone; ranks share the folder.
"""

from __future__ import annotations

import ctypes
import errno
import io
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Self

from growkit.byte_sizes import format_size
from growkit.checkpoints.open import folder_of, locate
from growkit.checkpoints.types import Checkpoint
from growkit.errors import CheckpointError, OutputError, ResourceError, UsageError
from growkit.os_errors import existing_ancestor, free_bytes, reading, writing
from growkit.output.done_marks import Marks, take_lock
from growkit.output.layout import Layout
from growkit.output.record import first_missing, read_record
from growkit.output.shard_writer import sync_folder

MARGIN = 16 << 20  # bytes; for config, report and the folders themselves
_LOCK = "growkit.lock"
_DESCRIPTION = "result.json"
Role = Literal["alone", "rank", "finish"]
# growkit.json, recipe.yaml and config.json of a result → what differs from the one asked for
Differing = Callable[[Mapping[str, Any], str, Mapping[str, Any]], Sequence[str]]


class Workspace:
    """Where one result is made; `already_done` says that OUT holds it and there is nothing to do.

    with Workspace(out, digest=digest, layout=layout, sources=[checkpoint]) as work:
        for shard in layout.shards:
            if work.marks.finished(shard.name) is None:
                ...                        # ShardWriter(work.folder, shard)
                work.marks.mark(shard, checksums, {"seconds": 1.5})
        work.add("config.json", text)
        work.commit()

    `differing` says in words what the result in OUT differs in from the one asked for.
    A `rank` shares the folder with other ranks of the same plan, removes nothing and commits
    nothing. `finish` is alone again, keeps what the ranks have left, and commits.
    """

    def __init__(
        self,
        out: str | Path,
        *,
        digest: str,
        layout: Layout,
        sources: Sequence[Checkpoint],
        overwrite: bool = False,
        role: Role = "alone",
        differing: Differing | None = None,
    ) -> None:
        self.out = Path(os.path.realpath(out))
        self.partial = _partial(self.out)
        self.marks = Marks(self.partial, digest)
        self.folder = self.marks.folder
        self._old = self.partial / "old"
        self.already_done = False
        self._layout = layout
        self._sources = sources
        self._overwrite = overwrite
        self._role = role
        self._differing = differing
        self._lock_fd = -1
        self._new_folders: list[
            Path
        ] = []  # folders above OUT that were not there, the lowest first

    def __enter__(self) -> Self:
        """Refuse whatever can be refused, then lock; nothing is written before that."""
        with writing(self.out):
            self.already_done = self.is_done()
            if self.already_done and (self._role == "rank" or not self._is_partial()):
                return self
            if not self.already_done:
                self._refuse_full_disk()
            self._lock()
            try:
                if self._role == "rank":
                    self._join()
                    return self
                if self._old.exists() and not self.out.exists():
                    self._old.rename(self.out)  # a run was killed between two renames
                self.already_done = self._holds_result()  # somebody may just have finished it
                if self.already_done:
                    self._discard()
                else:
                    self._prepare()
            except BaseException:
                self._unlock()
                raise
        return self

    def __exit__(self, *exception: object) -> None:
        """Leave finished shards to the next run; where there are none, leave nothing."""
        if self._lock_fd >= 0:
            if self._role == "alone" and len(self.missing()) == len(self._layout.shards):
                self._discard()
            self._unlock()

    def is_done(self) -> bool:
        """Whether OUT holds this result; raises where it may not be written. Changes nothing."""
        with writing(self.out):
            self._refuse_sources()
            return self._holds_result()

    # -- while working ---------------------------------------------------------------------------

    def missing(self) -> list[str]:
        """The shards that nobody has finished."""
        return [s.name for s in self._layout.shards if self.marks.finished(s.name) is None]

    def leave_description(self, description: Mapping[str, Any]) -> None:
        """Leave to `finish` what it needs to know; who may overwrite OUT speaks for all."""
        before = read_description(self.out)
        if before is None or (self._overwrite and not before["overwrite"]):
            text = json.dumps({**description, "overwrite": self._overwrite}, ensure_ascii=False)
            self.marks.put(self.partial / _DESCRIPTION, io.BytesIO(text.encode()))

    def add(self, name: str, content: str | bytes) -> None:
        """Write a file of the result."""
        raw = content.encode() if isinstance(content, str) else content
        self.marks.put(self.folder / name, io.BytesIO(raw))

    def sizes(self) -> dict[str, int]:
        """Bytes of each file of the result so far, by its name in OUT."""
        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {str(path.relative_to(self.folder)): path.stat().st_size for path in files}

    def copy_side_file(
        self, checkpoint: Checkpoint, name: str, edit: Callable[[Any], Any] | None = None
    ) -> None:
        """Carry a side file over, byte for byte; or, where `edit` changes its JSON, as that."""
        source = locate(folder_of(checkpoint), name)
        with reading(source):
            file = source.open("rb")
        with file:
            if edit is None:
                self.marks.put(self.folder / name, file)
                return
            try:
                value = json.load(file)
            except (ValueError, RecursionError) as error:
                raise CheckpointError(
                    f"{source}: not valid JSON: {error}", hint="mend or remove the file"
                ) from error
            edited = edit(value)
            if edited == value:
                file.seek(0)
                self.marks.put(self.folder / name, file)
                return
        self.add(name, json.dumps(edited, indent=2, ensure_ascii=False) + "\n")

    # -- the end ---------------------------------------------------------------------------------

    def commit(self) -> Path:
        """Make the result visible as OUT, all at once, and remove everything else."""
        missing = self.missing()
        assert not missing, f"{missing[:1]}: committed before it was complete"
        with writing(self.out):
            for folder in (*(p for p in self.folder.rglob("*") if p.is_dir()), self.folder):
                sync_folder(folder)
            self._replace_out()
            sync_folder(self.out.parent)
        self._discard()
        self._unlock()
        return self.out

    def _replace_out(self) -> None:
        """Give the finished folder its name; with --overwrite, in place of what has it."""
        if self._overwrite and self.out.exists():
            if _swap_folders(self.folder, self.out):
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
            for output in (self.out, self.partial):
                if source.is_dir() and output.is_relative_to(source):
                    relation = "is" if output == source else "is inside"
                elif any(path.is_relative_to(output) for path in (source, *files)):
                    relation = "is" if output == source else "contains"
                else:
                    continue
                raise UsageError(
                    f"{output}: the output {relation} the source {checkpoint.path}",
                    hint="give an -o outside of the source: sources are never written to",
                )

    def _holds_result(self) -> bool:
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
        elif record.get("digest") != self.marks.digest:
            recipe, config = (_text(out / name) for name in ("recipe.yaml", "config.json"))
            what = self._other_result("holds the result of", record, recipe, config)
        elif missing := first_missing(out, record):
            what = f"holds this result, but damaged: {missing}"
        else:
            return True
        raise OutputError(f"{out}: {what}", hint="give another -o, or --overwrite to replace it")

    def _other_result(self, verb: str, record: Mapping[str, Any], recipe: str, config: str) -> str:
        """What a result is that is not the one asked for."""
        try:
            settings = json.loads(config)
        except (ValueError, RecursionError):
            settings = {}
        known = self._differing and isinstance(settings, dict) and record
        differences = self._differing(record, recipe, settings) if known and self._differing else []
        what = f"{verb} another recipe, source or version"
        return f"{what}: {'; '.join(differences)}" if differences else what

    def _refuse_full_disk(self) -> None:
        side = sum(
            (folder_of(c) / name).stat().st_size for c in self._sources for name in c.side_files
        )
        need = self._layout.total_bytes + side + MARGIN
        free = free_bytes(self.out.parent) + _used_bytes(self.partial)
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
        is_folder = self.partial.is_dir() and not self.partial.is_symlink()
        if not is_folder or (any(self.partial.iterdir()) and not (self.partial / _LOCK).exists()):
            raise OutputError(
                f"{self.partial}: exists and was not made by growkit",
                hint="move it away, or give another -o",
            )
        return True

    def _lock(self) -> None:
        """Hold the lock file of the partial folder; ranks hold it together."""
        while self._lock_fd < 0:
            self._is_partial()
            self._new_folders += [p for p in self.partial.parents if not p.exists()]
            self.partial.mkdir(parents=True, exist_ok=True)
            try:
                fd = take_lock(self.partial / _LOCK, shared=self._role == "rank")
            except FileNotFoundError:  # somebody has just finished
                continue
            if fd is None:
                raise OutputError(
                    f"{self.out}: another growkit is writing it",
                    hint="wait for it to end, or give another -o",
                )
            self._lock_fd = fd

    def _unlock(self) -> None:
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _join(self) -> None:
        """Work beside other ranks; what is there must be of the same plan, and nothing goes."""
        digest = os.pread(self._lock_fd, 1024, 0)
        if not digest:  # the first ranks all write the same
            self._sign()
        elif digest != self.marks.digest.encode():
            left = read_description(self.out) or {}
            texts = left.get("texts", {})
            recipe, config = (texts.get(name, "") for name in ("recipe.yaml", "config.json"))
            what = self._other_result("unfinished work of", left.get("record", {}), recipe, config)
            raise OutputError(
                f"{self.partial}: {what}",
                hint="give all ranks the same command; to start anew, remove that folder",
            )
        self.folder.mkdir(exist_ok=True)

    def _prepare(self) -> None:
        """Keep the shards that this plan finished before; everything else starts anew."""
        if os.pread(self._lock_fd, 1024, 0) != self.marks.digest.encode():
            self._clear()
            os.ftruncate(self._lock_fd, 0)
            self._sign()
        self.folder.mkdir(exist_ok=True)
        if self._role == "finish":
            return
        kept = {s.name for s in self._layout.shards} - {*self.missing()}
        for path in self.folder.iterdir():
            if path.name not in kept:
                _remove(path)
        self.marks.clear(["*"])

    def _sign(self) -> None:
        os.pwrite(self._lock_fd, self.marks.digest.encode(), 0)
        os.fsync(self._lock_fd)

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
            for folder in (self.partial, *self._new_folders):  # of these, those that are empty
                folder.rmdir()
        except OSError:
            pass


def read_description(out: Path) -> dict[str, Any] | None:
    """What ranks have left to `finish`, if there is something."""
    try:
        path = _partial(Path(os.path.realpath(out))) / _DESCRIPTION
        description = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return description if isinstance(description, dict) else None


def _text(path: Path) -> str:
    """A small text file of a result; nothing where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(MARGIN).decode()
    except (OSError, ValueError):
        return ""


def _partial(out: Path) -> Path:
    return out.with_name(f"{out.name}.partial") if out.name else out


def _used_bytes(folder: Path) -> int:
    """What is on disk below a folder, in which others may be at work."""
    used = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                used += Path(parent, name).lstat().st_blocks * 512
    return used


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _swap_folders(left: Path, right: Path) -> bool:
    """Swap two folders in one step; False where the system or the filesystem cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    folder, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(rename(folder, os.fsencode(left), folder, os.fsencode(right), exchange) == 0)
