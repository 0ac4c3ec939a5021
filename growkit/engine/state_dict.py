"""Tensors in memory as sources and as results: what files are to the writer of files.

The law: the bytes of a tensor are those that a file would hold, and no given tensor changes.
"""

from __future__ import annotations

import hashlib
import math
import sys
import warnings
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from growkit.checkpoints.types import FileIdentity, TensorInfo
from growkit.engine.evaluate import DTYPES, evaluate
from growkit.engine.row_blocks import Rows
from growkit.errors import CheckpointError
from growkit.planning.formula import Formula

__all__ = ["StateDict", "Tensor", "assemble", "equal", "headers", "rows_of"]

StateDict = Mapping[str, Tensor]

# what a state_dict may also hold: buffers, which are dropped by name or refused by name
_BUFFERS = {
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()} | _BUFFERS


def headers(state_dict: StateDict) -> tuple[dict[str, TensorInfo], FileIdentity]:
    """The headers that tensors would have in a file, and what tells that file apart.

    Raises CheckpointError for a tensor without values or of a kind that cannot be grown.
    """
    tensors, where = {}, hashlib.sha256()
    for name, tensor in state_dict.items():
        if tensor.dtype not in _NAMES or tensor.layout != torch.strided or tensor.is_meta:
            kind = "no values" if tensor.is_meta else f"{tensor.dtype}, {tensor.layout}"
            raise CheckpointError(
                f"state_dict: tensor {name} cannot be grown: {kind}",
                hint="give dense float64, float32, float16 or bfloat16 weights",
            )
        size = tensor.numel() * tensor.element_size()
        info = TensorInfo(name, _NAMES[tensor.dtype], tuple(tensor.shape), "", 0, size)
        where.update(f"{info} {tensor.device} {tensor.data_ptr()}".encode())
        tensors[name] = info
    # one memory under two names is one model: a fusion of it with itself is exact
    return tensors, FileIdentity(where.hexdigest(), sum(t.stop for t in tensors.values()), 0, "")


def equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same values."""
    return a.data_ptr() == b.data_ptr() or torch.equal(a, b)


def rows_of(tensor: Tensor, start: int, stop: int) -> memoryview:
    """The bytes of rows `start` to `stop`; of a tensor without dims, all."""
    rows = tensor.detach()[start:stop] if tensor.ndim else tensor.detach()
    return _bytes(rows.cpu().contiguous()).data


def _bytes(tensor: Tensor) -> npt.NDArray[np.uint8]:
    """The memory of a contiguous tensor."""
    return tensor.reshape(-1).view(torch.uint8).numpy()


def assemble(formula: Formula, rows: Rows, allow_nonfinite: bool) -> Tensor:
    """The tensor of a formula, block by block into its place.

    Raises CheckpointError for values that are not finite, or warns if they are allowed.
    """
    out = torch.empty(formula.shape, dtype=DTYPES[formula.dtype])
    memory, at, bad, overflowed = _bytes(out), 0, 0, 0
    for block in evaluate(formula, rows, budget=sys.maxsize):
        memory[at : at + block.data.nbytes] = np.frombuffer(block.data, np.uint8)
        at += block.data.nbytes
        bad, overflowed = bad + block.nonfinite, overflowed + block.overflowed
    if bad:
        what = f"too large for {formula.dtype}" if overflowed else "NaN or infinite"
        told = f"tensor {formula.name}: {overflowed or bad} values are {what}"
        if not allow_nonfinite:
            better = "keep the dtype, use bfloat16" if overflowed else "mend the source"
            raise CheckpointError(told, hint=f"{better}, or pass allow_nonfinite=True")
        warnings.warn(told, RuntimeWarning, stacklevel=4)
    assert at == formula.nbytes == math.prod(formula.shape) * out.element_size()
    return out
