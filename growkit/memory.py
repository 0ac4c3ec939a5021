"""Growth of a model that is in memory: state_dict and config in, state_dict and config out.

    weights, config = grow_state_dict(small.state_dict(), small.config, "double_width")
    big = type(small)(type(small.config).from_dict(config))
    big.load_state_dict(weights)

The law: the plan and the engine are those of the file route, so the tensors are equal to the byte
to what `grow` writes. No file is read but a recipe and the maps that it names, none is written, and
nothing that is passed in changes.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from growkit.blocks import Rows
from growkit.engine import DTYPES, evaluate, one_thread
from growkit.errors import CheckpointError
from growkit.formula import Checkpoint, FileIdentity, Formula, Stored, TensorInfo
from growkit.model import read_model
from growkit.plan import build_plan
from growkit.recipe import Recipe, check_sources, choose_recipe
from growkit.store import read_maps
from growkit.user_family import blamed

StateDict = Mapping[str, torch.Tensor]

# what a state_dict may also hold: buffers, which are dropped by name or refused by name
_BUFFERS = {
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
# A state_dict holds its head if it has one: without a class name, none is to be assumed
_UNNAMED = ["a model in memory"]
_NAMES = {dtype: name for name, dtype in DTYPES.items()} | _BUFFERS


def grow_state_dict(
    state_dict: StateDict,
    config: Any,
    recipe: str | Path | Recipe,
    *,
    sources: Mapping[str, tuple[StateDict, Any]] | None = None,
    overrides: Sequence[str] = (),
    dtype: str | None = None,
    seed: int | None = None,
    family: Path | None = None,
    allow_nonfinite: bool = False,
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The grown state_dict, on the CPU, and the new config as a dict.

    A config is a dict as in config.json, or a transformers config. `sources` are further models by
    the recipe's names, each a state_dict and its config; the rest is as in `grow`. A tied head that
    is stored beside its embedding comes back tied. Buffers that the model makes anew are left out.

    Raises what `plan_growth` raises, and CheckpointError for values that are not finite; with
    `allow_nonfinite` they are a RuntimeWarning.
    """
    name, chosen = choose_recipe(recipe, overrides=overrides, dtype=dtype, seed=seed)
    further = dict(sources or {})
    check_sources(chosen, further)
    given = {chosen.sources[0]: (state_dict, config)} | {n: further[n] for n in chosen.sources[1:]}
    with blamed(family):
        models = {n: read_model(_checkpoint(*both), family) for n, both in given.items()}
        plan = build_plan(name, chosen, models, read_maps(chosen.files))
    for source, tensor, twin in plan.same:
        _compare(given[source][0], tensor, twin)

    def rows(stored: Stored, start: int, stop: int) -> memoryview:
        tensor = given[stored.source][0][stored.name].detach()
        return _bytes((tensor[start:stop] if stored.shape else tensor).cpu().contiguous()).data

    with one_thread():
        grown = {f.name: _assemble(f, rows, allow_nonfinite) for f in plan.formulas}
    for source, tensor, twin in plan.same:
        if source == chosen.sources[0] and tensor not in grown:
            grown[tensor] = grown[twin]
    after = copy.deepcopy(dict(plan.config))
    if after["architectures"] == _UNNAMED:
        del after["architectures"]
    return grown, after


def _checkpoint(state_dict: StateDict, config: Any) -> Checkpoint:
    """The headers that the tensors would have in a file."""
    as_saved = hasattr(config, "to_json_string")  # what transformers would write as config.json
    known = json.loads(config.to_json_string()) if as_saved else dict(config)
    known["architectures"] = known.get("architectures") or _UNNAMED
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
    memory = FileIdentity(where.hexdigest(), sum(t.stop for t in tensors.values()), 0, "")
    return Checkpoint("state_dict", known, tensors, (memory,))


def _compare(state_dict: StateDict, name: str, twin: str) -> None:
    """Tensors that the config ties must be equal."""
    a, b = state_dict[name], state_dict[twin]
    if a.data_ptr() != b.data_ptr() and not torch.equal(a, b):
        raise CheckpointError(
            f"state_dict: {name} and {twin} differ, but the config ties them",
            hint="set tie_word_embeddings to false in the config if the head is its own",
        )


def _bytes(tensor: torch.Tensor) -> npt.NDArray[np.uint8]:
    """The memory of a contiguous tensor."""
    return tensor.reshape(-1).view(torch.uint8).numpy()


def _assemble(formula: Formula, rows: Rows, allow_nonfinite: bool) -> torch.Tensor:
    """The tensor of a formula, block by block into its place."""
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
        warnings.warn(told, RuntimeWarning, stacklevel=3)
    assert at == formula.nbytes == math.prod(formula.shape) * out.element_size()
    return out
