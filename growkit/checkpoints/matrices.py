"""Files of maps: dense matrices by name, read whole, and written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from growkit.algebra.kernel import FloatArray
from growkit.checkpoints.header import read_header
from growkit.errors import CheckpointError, OutputError
from growkit.os_errors import reading, writing
from growkit.output.layout import lay_out
from growkit.planning.formula import ITEM_BYTES, Formula, TensorInfo

_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BOOL": "?"} | {
    f"{kind}{8 * size}": f"<{kind.lower()}{size}" for kind in "IU" for size in (1, 2, 4, 8)
}


def read_maps(paths: Iterable[str]) -> dict[str, dict[str, FloatArray]]:
    """What these files hold, in float64, by path and name."""
    return {path: _read(Path(path)) for path in paths}


def _read(path: Path) -> dict[str, FloatArray]:
    with reading(path):
        if not path.is_file():
            raise CheckpointError(
                f"{path}: no such file of maps",
                hint="`growkit plan … --maps FILE` writes one to start from",
            )
        _, tensors, _ = read_header(path, path.name)
        with path.open("rb") as file:
            found = {}
            for info in tensors.values():
                file.seek(info.start)
                found[info.name] = _values(info, file.read(info.stop - info.start), path)
    return found


def _values(info: TensorInfo, raw: bytes, path: Path) -> FloatArray:
    if info.dtype not in ITEM_BYTES:
        raise CheckpointError(
            f"{path}: {info.name}: dtype {info.dtype} cannot be a map",
            hint="save float64, float32, float16 or bfloat16",
        )
    if info.dtype == "BF16":
        values = (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
    else:
        values = np.frombuffer(raw, _NUMPY[info.dtype])
    return values.astype(np.float64).reshape(info.shape)


def write_maps(path: Path, arrays: Mapping[str, FloatArray]) -> None:
    """Write these arrays in float64. A file that is there must already hold the very same."""
    formulas = [Formula(name, array.shape, "F64") for name, array in arrays.items()]
    shard = lay_out(formulas, max_shard_bytes=2**63).shards[0]
    with writing(path, size=shard.size):
        if path.exists():
            if path.is_file() and _same(path, arrays):
                return
            raise OutputError(
                f"{path}: is there already, with something else in it",
                hint="choose another name, or remove it first",
            )
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                file.write(shard.header)
                for placed in shard.tensors:
                    file.write(np.ascontiguousarray(arrays[placed.formula.name], "<f8").data)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(path)
        finally:
            temporary.unlink(missing_ok=True)


def _same(path: Path, arrays: Mapping[str, FloatArray]) -> bool:
    try:
        found = _read(path)
    except CheckpointError:
        return False
    return found.keys() == arrays.keys() and all(
        np.array_equal(found[name], array) for name, array in arrays.items()
    )
