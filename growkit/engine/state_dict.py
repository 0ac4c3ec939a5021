"""A state_dict as a source and as a result: headers and rows of its tensors, and grown tensors.

What `checkpoints` and `output` do for files, for tensors in memory. The law: the bytes of a tensor
are those that a file would hold, and no given tensor changes.
"""

from __future__ import annotations

import hashlib
import math
import sys
import warnings
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from growkit.checkpoints.types import FileIdentity, TensorInfo
from growkit.engine.evaluate import DTYPES, bytes_of, evaluate
from growkit.engine.row_blocks import Rows
from growkit.errors import CheckpointError
from growkit.planning.formula import Formula

__all__ = ["StateDict", "Tensor", "assemble", "equal", "headers", "rows_of", "shared_memory"]

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
    tensors, identity = {}, hashlib.sha256()
    for name, tensor in state_dict.items():
        if tensor.dtype not in _NAMES or tensor.layout != torch.strided or tensor.is_meta:
            kind = "no values" if tensor.is_meta else f"{tensor.dtype}, {tensor.layout}"
            raise CheckpointError(
                f"state_dict: tensor {name} cannot be grown: {kind}",
                hint="give dense float64, float32, float16 or bfloat16 weights",
            )
        size = tensor.numel() * tensor.element_size()
        info = TensorInfo(name, _NAMES[tensor.dtype], tuple(tensor.shape), "", 0, size)
        identity.update(f"{info} {tensor.device} {tensor.data_ptr()}".encode())
        tensors[name] = info
    # known by where it lies: one memory given as two models is one, and fuses with itself exactly
    size = sum(info.stop for info in tensors.values())
    return tensors, FileIdentity(identity.hexdigest(), size, 0, "")


def shared_memory(state_dict: StateDict) -> tuple[tuple[str, str], ...]:
    """Names whose tensor is that of an earlier name, each with the first for it: tied weights."""
    first: dict[tuple[int, torch.Size, tuple[int, ...]], str] = {}
    shared = []
    for name, tensor in state_dict.items():
        place = tensor.data_ptr(), tensor.shape, tensor.stride()
        if tensor.numel() and first.setdefault(place, name) != name:
            shared.append((name, first[place]))
    return tuple(shared)


def equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same values."""
    return a.data_ptr() == b.data_ptr() or torch.equal(a, b)


def rows_of(tensor: Tensor, start: int, stop: int) -> memoryview:
    """The bytes of rows [start, stop) as `Rows` has them; all of a tensor without dims."""
    rows = tensor.detach()[start:stop] if tensor.ndim else tensor.detach()
    return bytes_of(rows.cpu().contiguous()).data


def assemble(formula: Formula, rows: Rows, allow_nonfinite: bool) -> Tensor:
    """The tensor of a formula, block by block into its place.

    Raises CheckpointError for values that are not finite, or warns if they are allowed.
    """
    out = torch.empty(formula.shape, dtype=DTYPES[formula.dtype])
    memory, offset, bad, overflowed = bytes_of(out), 0, 0, 0
    for block in evaluate(formula, rows, budget=sys.maxsize):
        memory[offset : offset + block.data.nbytes] = np.frombuffer(block.data, np.uint8)
        offset += block.data.nbytes
        bad, overflowed = bad + block.nonfinite, overflowed + block.overflowed
    if bad:
        what = f"too large for {formula.dtype}" if overflowed else "NaN or infinite"
        problem = f"tensor {formula.name}: {overflowed or bad} values are {what}"
        if not allow_nonfinite:
            remedy = "keep the dtype, use bfloat16" if overflowed else "mend the source"
            raise CheckpointError(problem, hint=f"{remedy}, or pass allow_nonfinite=True")
        warnings.warn(problem, RuntimeWarning, stacklevel=4)
    assert offset == formula.nbytes == math.prod(formula.shape) * out.element_size()
    return out
