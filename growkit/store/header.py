"""The bytes before the data of a safetensors file, read strictly.

Whatever passes here is a file whose every tensor is where the header says, with no hole, no overlap
and no byte missing. Nothing of the data is read.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from growkit.errors import CheckpointError
from growkit.formula import ITEM_BYTES, FileIdentity, TensorInfo
from growkit.store.faults import reading
from growkit.store.snapshot import Far

MAX_HEADER = 100_000_000  # bytes; the reference reader's limit

# dtypes of quantised weights, which are recognised in order to be refused by name
QUANTISED_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6} | dict.fromkeys(
    ("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8
)
_BITS = {name: 8 * size for name, size in ITEM_BYTES.items()} | QUANTISED_BITS
_KEYS = {"dtype", "shape", "data_offsets"}


def read_header(
    path: Path, name: str, *, blob: str | None = None, far: Far | None = None
) -> tuple[FileIdentity, dict[str, TensorInfo], dict[str, str]]:
    """Identity, tensors in file order and `__metadata__` of a file that its folder calls `name`.

    A file of the Hub's cache is identified by its `blob` and not by a time; so is one that is `far`
    and has not been downloaded.
    """
    if far is not None:
        size, time, blob = far.size, 0, far.blob
        raw = _header_bytes(far.first, size, path)
    else:
        with reading(path), path.open("rb") as file:
            stat = os.fstat(file.fileno())
            size, time = stat.st_size, 0 if blob else stat.st_mtime_ns
            raw = _header_bytes(lambda count: os.pread(file.fileno(), count, 0), size, path)
    entries = parse_json(raw[8:], path, "header")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _damaged(path, "__metadata__ is not a table of texts")
    tensors = sorted(
        (_tensor(key, entry, name, len(raw), path) for key, entry in entries.items()),
        key=lambda t: (t.start, t.stop),
    )
    _check_cover(tensors, len(raw), size, path)
    identity = FileIdentity(name, size, time, hashlib.sha256(raw).hexdigest(), blob)
    return identity, {t.name: t for t in tensors}, metadata


def parse_json(raw: bytes, path: Path, what: str) -> dict[str, Any]:
    """The JSON object in `raw`; a key that appears twice is an error, for one hides the other."""
    try:
        value = json.loads(raw.decode(), object_pairs_hook=_unique)
        if b"\\u" in raw:  # half a surrogate pair is no text: it cannot be written again
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"{what} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise _damaged(path, f"{what} is not a JSON object: found {type(value).__name__}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f'"{next(k for k in keys if keys.count(k) > 1)}" appears twice')
    return found


def _header_bytes(first: Callable[[int], bytes], size: int, path: Path) -> bytes:
    prefix = first(8)
    if prefix == b"version ":
        raise CheckpointError(
            f"{path}: a git-lfs pointer, not the weights",
            hint="fetch the weights with `git lfs pull`",
        )
    if len(prefix) < 8:
        raise _damaged(path, f"truncated: found {size} bytes, expected at least 8")
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER:
        raise CheckpointError(
            f"{path}: not a safetensors file: "
            f"header of {length} bytes, expected at most {MAX_HEADER}",
            hint="it is damaged or of another kind: download or copy it anew",
        )
    if 8 + length > size:
        raise _damaged(path, f"truncated: found {size} bytes, the header ends at {8 + length}")
    return first(8 + length)


def _tensor(key: str, entry: Any, file: str, base: int, path: Path) -> TensorInfo:
    where = f"tensor {key}"
    if not isinstance(entry, dict) or set(entry) != _KEYS:
        raise _damaged(path, f"{where}: expected dtype, shape and data_offsets, found {entry!r}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise CheckpointError(
            f"{path}: {where}: dtype {dtype!r} is not known", hint=f"known: {', '.join(_BITS)}"
        )
    if not _counts(shape):
        raise _damaged(path, f"{where}: shape {shape!r} is not a list of whole numbers from 0")
    if not _counts(offsets) or len(offsets) != 2:
        raise _damaged(path, f"{where}: data_offsets {offsets!r} is not a pair of numbers from 0")
    bits, found = math.prod(shape) * _BITS[dtype], offsets[1] - offsets[0]
    if bits % 8 or bits // 8 != found:
        raise _damaged(
            path, f"{where}: found {found} bytes, {dtype} {shape} takes {-(-bits // 8)} bytes"
        )
    return TensorInfo(key, dtype, tuple(shape), file, base + offsets[0], base + offsets[1])


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 2**63 for v in value)


def _check_cover(tensors: list[TensorInfo], base: int, size: int, path: Path) -> None:
    """The tensors lie back to back from the end of the header to the end of the file."""
    if tensors and tensors[0].start != base:
        raise _damaged(path, f"hole of {tensors[0].start - base} bytes before {tensors[0].name}")
    for left, right in pairwise(tensors):
        if right.start != left.stop:
            what = "overlap" if right.start < left.stop else "hole"
            gap = abs(right.start - left.stop)
            raise _damaged(path, f"{what} of {gap} bytes between {left.name} and {right.name}")
    end = tensors[-1].stop if tensors else base
    if end > size:
        raise _damaged(path, f"truncated: found {size} bytes, expected {end}")
    if end < size:
        raise _damaged(path, f"found {size} bytes, expected {end}: {size - end} bytes too many")


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: {reason}", hint="the file is damaged: download or copy it anew"
    )
