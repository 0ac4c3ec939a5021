"""A finished OUT against its own growkit.json: sizes, headers, and a checksum of every byte.

    files        name → bytes
    checksums    name → crc32 of the file; of the model's weights only what is before the data
    tensors      name → file and crc32 of the data (`growkit.checkpoints.tensor_list`)

README.md is for people to edit and stands in none of them. growkit.json itself is sealed: its own
entry in `checksums` is the crc32 of its text with zeros in that place. The law: what growkit.json
says is believed no further than the folder it lies in.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from growkit.checkpoints.header import WEIGHTS, most_json, read_header, read_table
from growkit.checkpoints.open import locate, weight_bytes
from growkit.checkpoints.tensor_list import checksums as checksums_of
from growkit.checkpoints.types import TensorInfo
from growkit.errors import CheckpointError, GrowkitError
from growkit.os_errors import reading, writing

RECORD = "growkit.json"
UNSEALED = "00000000"
_SEAL = re.compile(rb'("growkit\.json": ")([0-9a-f]{8})"')
_NUMBERS = re.compile(r"\[[-\d.,\seE+]+\]")  # a list of them
_PIECES = 10_000  # of JSON at a time: thousands of tensors make millions
_BLOCK = 8 << 20  # bytes

Json = Mapping[str, Any]


def read_record(out: Path) -> dict[str, Any] | None:
    """The growkit.json of a folder, if there is one that can be read."""
    path = out / RECORD
    try:
        most = most_json(weight_bytes(out))
        return read_table(path, "record", most=most) if path.is_file() else None
    except CheckpointError:
        return None


def write_record(out: Path, record: Json) -> None:
    """Replace the growkit.json of a finished folder in one step."""
    path = out / RECORD
    temporary = path.with_suffix(".tmp")
    with writing(path):
        temporary.write_bytes(seal(json_text(record).encode()))
        temporary.replace(path)


def json_text(value: Any) -> str:
    """JSON for people and diffs: indented, but lists of numbers on one line."""
    pieces = json.JSONEncoder(indent=2, ensure_ascii=False).iterencode(value)
    done, rest = [], ""
    while text := "".join(islice(pieces, _PIECES)):
        whole, quote, rest = (rest + text).rpartition('"')  # no list of numbers is cut in two
        done.append(_NUMBERS.sub(_on_one_line, whole + quote))
    return "".join([*done, _NUMBERS.sub(_on_one_line, rest), "\n"])


def _on_one_line(numbers: re.Match[str]) -> str:
    return re.sub(r"\s+", "", numbers[0]).replace(",", ", ")


def seal(raw: bytes) -> bytes:
    """The bytes of a growkit.json with their own checksum in them."""
    place = _SEAL.search(raw)
    if place is None:
        return raw
    before, after = memoryview(raw)[: place.start(2)], memoryview(raw)[place.end(2) :]
    crc = zlib.crc32(after, zlib.crc32(UNSEALED.encode(), zlib.crc32(before)))
    return b"".join((before, f"{crc:08x}".encode(), after))


def checksums(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """The crc32 of these files of a result, and of growkit.json, whose place is left open."""
    with reading(folder):
        return {name: _file_crc32(folder / name, name) for name in names} | {RECORD: UNSEALED}


def first_missing(out: Path, record: Json) -> str | None:
    """What the first file that is not there in full lacks."""
    return next(_size_problems(out, record), None)


def check_files(out: str | Path) -> list[str]:
    """Read every byte of a result again; one sentence per problem, none when all is well."""
    folder = Path(out)
    if not folder.is_dir():
        raise CheckpointError(f"{out}: no such folder", hint="give the folder that growkit wrote")
    record = read_record(folder)
    if record is None:
        return [f"{RECORD}: missing or not valid JSON"]
    problems = [*_seal_problems(folder), *_size_problems(folder, record)]
    damaged = {problem.partition(":")[0] for problem in problems}
    problems += [p for p in _file_problems(folder, record) if p.partition(":")[0] not in damaged]
    listed = record.get("tensors")
    if not isinstance(listed, dict) or not all(isinstance(t, dict) for t in listed.values()):
        return [*problems, f"{RECORD}: lists no tensors"]
    present = {path.name for path in folder.glob(f"*{WEIGHTS}")}
    files = record.get("files")
    expected: dict[str, dict[str, str]] = {name: {} for name in present}
    for tensor, file, crc32 in checksums_of(listed):
        expected.setdefault(file, {})[tensor] = crc32
    for name, of_tensors in sorted(expected.items()):
        if name in present:
            problems += _tensor_problems(folder / name, of_tensors)
        elif not isinstance(files, dict) or name not in files:
            problems.append(f"{name}: missing")
    return problems


def _seal_problems(out: Path) -> Iterator[str]:
    raw = (out / RECORD).read_bytes()
    if len(_SEAL.findall(raw)) != 1:
        yield f"{RECORD}: has no checksum of its own"
    elif seal(raw) != raw:
        yield f"{RECORD}: changed since it was written"


def _size_problems(out: Path, record: Json) -> Iterator[str]:
    files = record.get("files")
    if not isinstance(files, dict) or not files:
        yield f"{RECORD}: lists no files"
        return
    for name, size in files.items():
        try:
            path = locate(out, name)
            actual = path.stat().st_size if path.is_file() else None
        except (GrowkitError, OSError) as error:
            yield f"{name}: {error}"
            continue
        if actual is None:
            yield f"{name}: missing"
        elif actual != size:
            yield f"{name}: found {actual} bytes, expected {size}"


def _file_problems(out: Path, record: Json) -> Iterator[str]:
    """Files whose bytes are others; of weight files only what is before the data."""
    files, listed = record.get("files"), record.get("checksums")
    if not isinstance(listed, dict):
        yield f"{RECORD}: lists no checksums"
        return
    for name in files if isinstance(files, dict) else ():
        try:
            with reading(out / name):
                checksum = _file_crc32(locate(out, name), name)
        except GrowkitError as error:
            yield f"{name}: {error.message}"
            continue
        if checksum != listed.get(name):
            yield f"{name}: checksum {checksum}, expected {listed.get(name, 'none')}"


def _tensor_problems(path: Path, expected: Mapping[str, str]) -> list[str]:
    try:
        _, tensors, _ = read_header(path, path.name)
        with reading(path), path.open("rb") as file:
            actual = {name: _tensor_crc32(file, info) for name, info in tensors.items()}
    except CheckpointError as error:
        return [error.message]
    return [
        f"{path.name}: {name}: checksum {actual.get(name, 'missing')}, "
        f"expected {expected.get(name, f'no such tensor by {RECORD}')}"
        for name in [*expected, *(name for name in actual if name not in expected)]
        if actual.get(name) != expected.get(name)
    ]


def _file_crc32(path: Path, name: str) -> str:
    with path.open("rb") as file:
        if path.suffix != WEIGHTS or "/" in name:  # of a module: none of its tensors is listed
            return _crc32(file, path.stat().st_size)
        prefix = file.read(8)
        return _crc32(file, int.from_bytes(prefix, "little"), zlib.crc32(prefix))


def _tensor_crc32(file: BinaryIO, info: TensorInfo) -> str:
    file.seek(info.start)
    return _crc32(file, info.stop - info.start)


def _crc32(file: BinaryIO, left: int, crc: int = 0) -> str:
    """The crc32 of the next `left` bytes, or of what is there of them."""
    while left and (block := file.read(min(left, _BLOCK))):
        crc = zlib.crc32(block, crc)
        left -= len(block)
    return f"{crc:08x}"
