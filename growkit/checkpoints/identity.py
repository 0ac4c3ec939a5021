"""Whether a file is the one that was grown from: by its content, and not by where or when it is.

The law: the time of a file is a shortcut and no more. Where it is another one, the bytes decide:
size and header, then a checksum of the whole file, by crc32 or by what the Hub calls its content.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from growkit.checkpoints.open import folder_of
from growkit.checkpoints.types import Checkpoint, FileIdentity
from growkit.os_errors import reading

_BLOCK = 1 << 20  # bytes
_SHA256 = 64  # hexadecimal digits; what the Hub calls a small file has fewer

Json = Mapping[str, Any]


def weight_files(checkpoint: Checkpoint) -> list[FileIdentity]:
    """The files of weights of a checkpoint, those of its modules too."""
    return [*checkpoint.files, *(f for m in checkpoint.modules for f in m.stored.files)]


def crc32_of(checkpoint: Checkpoint, name: str) -> str:
    """The crc32 of one of its files, all bytes of which are read."""
    path, crc = folder_of(checkpoint) / name, 0
    with reading(path), path.open("rb") as file:
        while block := file.read(_BLOCK):
            crc = zlib.crc32(block, crc)
    return f"{crc:08x}"


def is_recorded(checkpoint: Checkpoint, file: FileIdentity, recorded: Json) -> bool | None:
    """Whether a file is the one that `recorded` (an entry of growkit.json) tells of.

    None where that cannot be known: only its time is another, and no checksum was taken.
    """
    if (file.size, file.header_sha256) != (recorded.get("size"), recorded.get("header_sha256")):
        return False
    blob = recorded.get("blob")
    if file.blob and blob:
        return bool(file.blob == blob)
    if file.mtime_ns and file.mtime_ns == recorded.get("mtime_ns"):
        return True
    if recorded.get("crc32"):
        return bool(crc32_of(checkpoint, file.name) == recorded["crc32"])
    if isinstance(blob, str) and len(blob) == _SHA256:
        return _sha256_of(folder_of(checkpoint) / file.name) == blob
    return None


def other_file(checkpoint: Checkpoint, recorded: Any) -> str | None:
    """The first file that is not as `recorded`, the files of a source in growkit.json, tells.

    Names do not matter, and where nothing can be known, neither does time.
    """
    if not isinstance(recorded, list) or not all(isinstance(r, dict) for r in recorded):
        return None
    entries = sorted(recorded, key=lambda entry: str(entry.get("name")))
    files = weight_files(checkpoint)
    own = {file.name for file in checkpoint.files}
    if len(entries) not in (len(files), len(own)):
        return files[0].name
    if len(entries) < len(files):  # written before the files of modules were
        files = [*checkpoint.files]
    for file, entry in zip(sorted(files, key=lambda f: f.name), entries, strict=True):
        if is_recorded(checkpoint, file, entry) is False:
            return file.name
    return None


def _sha256_of(path: Path) -> str:
    sha = hashlib.sha256()
    with reading(path), path.open("rb") as file:
        while block := file.read(_BLOCK):
            sha.update(block)
    return sha.hexdigest()
