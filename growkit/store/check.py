"""A finished OUT against its own growkit.json: sizes, headers and the checksum of every tensor."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from growkit.errors import CheckpointError
from growkit.formula import TensorInfo
from growkit.store.faults import reading, writing
from growkit.store.header import read_header, read_table

RECORD = "growkit.json"
_BLOCK = 8 << 20  # bytes


def read_record(out: Path) -> dict[str, Any] | None:
    """The growkit.json of a folder, if there is one that can be read."""
    path = out / RECORD
    try:
        return read_table(path, "record") if path.is_file() else None
    except CheckpointError:
        return None


def write_record(out: Path, record: Mapping[str, Any]) -> None:
    """Replace the growkit.json of a finished folder in one step."""
    path = out / RECORD
    temporary = path.with_suffix(".tmp")
    with writing(path):
        temporary.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", "utf-8")
        temporary.replace(path)


def first_missing(out: Path, record: Mapping[str, Any]) -> str | None:
    """What the first file that is not there in full lacks."""
    return next(iter(_size_problems(out, record)), None)


def check_files(out: str | Path) -> list[str]:
    """Read every byte of a result again; one sentence per problem, none when all is well."""
    folder = Path(out)
    if not folder.is_dir():
        raise CheckpointError(f"{out}: no such folder", hint="give the folder that growkit wrote")
    record = read_record(folder)
    if record is None:
        return [f"{RECORD}: missing or not valid JSON"]
    problems = _size_problems(folder, record)
    listed = record.get("tensors")
    if not isinstance(listed, dict) or not all(isinstance(t, dict) for t in listed.values()):
        return [*problems, f"{RECORD}: lists no tensors"]
    here = {path.name for path in folder.glob("*.safetensors")}
    for name in sorted(here | {str(t.get("file")) for t in listed.values()}):
        if name in here:
            problems += _tensor_problems(folder / name, listed)
        elif name not in record.get("files", {}):
            problems.append(f"{name}: missing")
    return problems


def _size_problems(out: Path, record: Mapping[str, Any]) -> list[str]:
    files = record.get("files")
    if not isinstance(files, dict) or not files:
        return [f"{RECORD}: lists no files"]
    problems = []
    for name, size in files.items():
        path = out / name
        found = path.stat().st_size if path.is_file() else None
        if found is None:
            problems.append(f"{name}: missing")
        elif found != size:
            problems.append(f"{name}: found {found} bytes, expected {size}")
    return problems


def _tensor_problems(path: Path, listed: Mapping[str, Mapping[str, Any]]) -> list[str]:
    wanted = {name: t.get("crc32") for name, t in listed.items() if t.get("file") == path.name}
    try:
        _, tensors, _ = read_header(path, path.name)
        with reading(path), path.open("rb") as file:
            found = {name: _crc32(file, info) for name, info in tensors.items()}
    except CheckpointError as error:
        return [error.message]
    return [
        f"{path.name}: {name}: checksum {found.get(name, 'missing')}, "
        f"expected {wanted.get(name, f'no such tensor by {RECORD}')}"
        for name in [*wanted, *(name for name in found if name not in wanted)]
        if found.get(name) != wanted.get(name)
    ]


def _crc32(file: BinaryIO, info: TensorInfo) -> str:
    file.seek(info.start)
    crc, left = 0, info.stop - info.start
    while left and (block := file.read(min(left, _BLOCK))):
        crc = zlib.crc32(block, crc)
        left -= len(block)
    return f"{crc:08x}"
