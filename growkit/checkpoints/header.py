"""The bytes before the data of a safetensors file, read strictly.

Whatever passes here is a file whose every tensor is where the header says, with no hole, no overlap
and no byte missing. Nothing of the data is read.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from sys import intern
from typing import Any

from growkit.checkpoints.hub_cache import Far
from growkit.checkpoints.types import FileIdentity, Shape, TensorInfo
from growkit.dtypes import FLOATS, ITEM_BYTES, QUANTISED_BITS
from growkit.errors import CheckpointError, shown
from growkit.os_errors import reading
from growkit.plain_yaml import AS_UTF_8, UTF_16

WEIGHTS = ".safetensors"

# Limits of what is parsed at once: JSON takes up to 300 bytes of memory per value and four per byte
# of text, and whoever sends more has no model in mind. What grows with the tensors of a model grows
# with the bytes of its weights, and so does what may be said of them; a header is read in pieces.
MAX_HEADER = 100_000_000  # bytes; safetensors itself reads no longer one
MAX_JSON = 25_000_000  # bytes, of what belongs to no weights
MOST_JSON = 20 * MAX_JSON  # however large the weights are
BYTES_PER_VALUE = 25  # of text that is allowed: a name, a number of bytes, a file
PIECE = 1 << 20  # bytes of a header that are parsed at once, where it can be cut
MAX_DEPTH = 50  # lists and tables inside one another
MAX_NAME = 1000  # characters of a tensor's name
MAX_DIMS = 64

_BITS = {name: 8 * ITEM_BYTES[name] for name in (*FLOATS, *ITEM_BYTES)} | {**QUANTISED_BITS}
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
    by_name: dict[str, TensorInfo] = {}
    metadata: Any = {}
    shapes: dict[Shape, Shape] = {}  # of many tensors, the same few
    for entries in _tables(raw, path):
        metadata = entries.pop("__metadata__", metadata)
        for key, entry in entries.items():
            if key in by_name:
                raise _damaged(path, f'header is not valid JSON: "{key}" appears twice')
            by_name[key] = _tensor(key, entry, name, len(raw), path, shapes)
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _damaged(path, "__metadata__ is not a table of texts")
    tensors = sorted(by_name.values(), key=lambda t: (t.start, t.stop))
    _check_cover(tensors, len(raw), size, path)
    identity = FileIdentity(name, size, time, hashlib.sha256(raw).hexdigest(), blob)
    return identity, {t.name: t for t in tensors}, metadata


def most_json(weight_bytes: int) -> int:
    """How many bytes a file may have that says something of every tensor of such weights."""
    return min(MAX_JSON + weight_bytes, MOST_JSON)


def read_json(path: Path, what: str, *, most: int = MAX_JSON) -> Any:
    """Any JSON value, from a file of at most so many bytes that somebody else wrote."""
    with reading(path), path.open("rb") as file:
        raw = file.read(most + 1)
    if raw.startswith(UTF_16):
        raise CheckpointError(f"{path}: {what} is UTF-16 text, not UTF-8", hint=AS_UTF_8)
    value = _parsed(raw, path, what, most)
    level = [value]
    for _ in range(MAX_DEPTH):
        inner = [v.values() if isinstance(v, dict) else v for v in level if v and _is_node(v)]
        level = [v for values in inner for v in values]
        if not level:
            return value
    raise _damaged(path, f"{what} is nested more than {MAX_DEPTH} deep")


def _is_node(value: Any) -> bool:
    return isinstance(value, dict | list)


def read_table(path: Path, what: str, *, most: int = MAX_JSON) -> dict[str, Any]:
    """The JSON object in a file of at most so many bytes that somebody else wrote."""
    return _table(read_json(path, what, most=most), path, what)


def _table(value: Any, path: Path, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _damaged(path, f"{what} is not a JSON object: found {type(value).__name__}")
    return value


def _tables(raw: bytes, path: Path) -> Iterator[dict[str, Any]]:
    """The header of a file in one or several tables, of which only one is in memory at a time."""
    ends = [8, *_cuts(raw), len(raw)]
    for start, stop in pairwise(ends):
        first, last = start == 8, stop == len(raw)  # between two pieces there is a comma
        piece = (b"" if first else b"{") + raw[start + (not first) : stop] + (b"" if last else b"}")
        try:
            table = _parsed(piece, path, "header")
        except CheckpointError:
            if len(ends) == 2 or not first or len(raw) > MAX_JSON:
                raise
            table, last = _parsed(raw[8:], path, "header"), True  # cut inside of a text
        yield _table(table, path, "header")
        if last:
            return


def _cuts(raw: bytes) -> Iterator[int]:
    """Where a comma parts two entries of the header, about every `PIECE` bytes."""
    at = raw.find(b'},"', PIECE)
    while at >= 0:
        yield at + 1
        at = raw.find(b'},"', at + PIECE)


def _parsed(raw: bytes, path: Path, what: str, most: int = MAX_JSON) -> Any:
    """The JSON value in `raw`; a key that appears twice is an error, for one hides the other."""
    if len(raw) > most:
        raise _damaged(path, f"{what} has more than {most} bytes")
    if sum(map(raw.count, (b"[", b"{", b","))) > most // BYTES_PER_VALUE:
        raise _damaged(path, f"{what} holds more than {most // BYTES_PER_VALUE} values")
    try:
        value = json.loads(raw.decode(), object_pairs_hook=_unique)
        if b"\\u" in raw:  # half a surrogate pair is no text: it cannot be written again
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"{what} is not valid JSON: {error}") from error
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f'"{twice}" appears twice')
    return table


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


def _tensor(
    key: str, entry: Any, file: str, base: int, path: Path, shapes: dict[Shape, Shape]
) -> TensorInfo:
    """An entry of the header, understood; equal shapes become one and the same."""
    if not key.isprintable() or len(key) > MAX_NAME:
        raise _damaged(path, f"{shown(key, 100)!r} is not the name of a tensor")
    where = f"tensor {key}"
    if not isinstance(entry, dict) or entry.keys() != _KEYS:
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
    if len(shape) > MAX_DIMS:
        raise _damaged(path, f"{where}: {len(shape)} dims, expected at most {MAX_DIMS}")
    bits, size = math.prod(shape) * _BITS[dtype], offsets[1] - offsets[0]
    if bits % 8 or bits // 8 != size:
        raise _damaged(
            path, f"{where}: found {size} bytes, {dtype} {shape} takes {-(-bits // 8)} bytes"
        )
    shape = shapes.setdefault(tuple(shape), tuple(shape))
    return TensorInfo(key, intern(dtype), shape, file, base + offsets[0], base + offsets[1])


def _counts(value: Any) -> bool:
    if not isinstance(value, list):
        return False
    return not [n for n in value if type(n) is not int or not 0 <= n < 2**63]


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
