"""Files of maps: the matrices of a `learned` or `dense` step by name, read whole, in float64.

The law: a file of maps passes the same strict reader of headers as weights do, so that what is
read is what is there. The package safetensors writes such files (`output/user_files`), but reads
no bfloat16 without torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from growkit.algebra.kernel import FloatArray
from growkit.checkpoints.header import read_header
from growkit.checkpoints.types import TensorInfo
from growkit.dtypes import DTYPES
from growkit.errors import CheckpointError
from growkit.os_errors import reading


def read_maps(paths: Iterable[str]) -> dict[str, dict[str, FloatArray]]:
    """What these files hold, in float64, by path and name."""
    return {path: read_matrices(Path(path)) for path in paths}


def read_matrices(path: Path) -> dict[str, FloatArray]:
    """What this file holds, in float64, by name; CheckpointError if it is none, or damaged."""
    with reading(path):
        if not path.is_file():
            raise CheckpointError(
                f"{path}: no such file of maps",
                hint="`growkit plan … --maps FILE` writes one to start from",
            )
        _, tensors, _ = read_header(path, path.name)
        with path.open("rb") as file:
            matrices = {}
            for info in tensors.values():
                file.seek(info.start)
                matrices[info.name] = _values(info, file.read(info.stop - info.start), path)
    return matrices


def _values(info: TensorInfo, raw: bytes, path: Path) -> FloatArray:
    if info.dtype not in DTYPES:
        raise CheckpointError(
            f"{path}: {info.name}: dtype {info.dtype} cannot be a map",
            hint="save float64, float32, float16 or bfloat16",
        )
    if info.dtype == "BF16":
        values = (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
    else:
        values = np.frombuffer(raw, DTYPES[info.dtype].numpy)
    return values.astype(np.float64).reshape(info.shape)
