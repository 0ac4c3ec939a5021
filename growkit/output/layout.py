"""Formulas → files: which byte of which file each output tensor is. Opens nothing, holds no values.

Shards are filled in the given order by huggingface_hub's rule. Inside a file the tensors stand in
the order of the safetensors reference writer, without holes, behind a header padded so that the
data start on a page. So the formulas decide every byte but the values, whoever writes the file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring
from typing import Any

from growkit.checkpoints.header import MAX_HEADER
from growkit.checkpoints.types import Shape
from growkit.dtypes import DTYPES, FLOATS
from growkit.planning.formula import Formula

PAGE = 4096  # bytes; the data of a file start on a multiple of it
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

ENTRY, DIM = 100, 20  # bytes of a header, at most, for a tensor beside its name, and for each dim

_ORDER = {dtype: i for i, dtype in enumerate(DTYPES)}  # the reference writer's, then by name


@dataclass(frozen=True, slots=True)
class Placed:
    """One output tensor and its bytes [start, stop) in its file."""

    formula: Formula
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Shard:
    """One output file, decided to the byte except for the values."""

    name: str
    header: bytes  # everything before the data: length, JSON, padding
    size: int  # bytes of the whole file
    tensors: tuple[Placed, ...]  # in file order, back to back


@dataclass(frozen=True, slots=True)
class Layout:
    """All output files; `index` is what `model.safetensors.index.json` says, where there is one."""

    shards: tuple[Shard, ...]
    index: Mapping[str, Any] | None
    total_bytes: int  # of all files, headers included


def lay_out(formulas: Sequence[Formula], *, max_shard_bytes: int) -> Layout:
    """Place every output tensor; a tensor larger than `max_shard_bytes` gets a file of its own.

    >>> layout = lay_out([Formula("w", (2, 3), "F32")], max_shard_bytes=100)
    >>> [(s.name, len(s.header), s.size) for s in layout.shards]
    [('model.safetensors', 4096, 4120)]
    """
    assert formulas, "lay_out: nothing to write"
    groups = _split(formulas, max_shard_bytes)
    count = len(groups)
    names = [SINGLE]
    if count > 1:
        names = [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    shards = tuple(_place(name, group) for name, group in zip(names, groups, strict=True))
    return Layout(shards, _index(shards) if count > 1 else None, sum(s.size for s in shards))


def _split(formulas: Sequence[Formula], limit: int) -> list[list[Formula]]:
    """huggingface_hub's split: no packing; a tensor above the limit does not end the open shard.

    No header grows longer than it may be.
    """
    groups: list[list[Formula]] = []
    open_group: list[Formula] = []
    filled = text = 0
    for formula in formulas:
        size = formula.nbytes
        entry = len(formula.name.encode()) + ENTRY + DIM * len(formula.shape)
        if size > limit:
            groups.append([formula])
            continue
        if filled + size > limit or text + entry > MAX_HEADER:
            groups.append(open_group)
            open_group, filled, text = [], 0, PAGE
        open_group.append(formula)
        filled, text = filled + size, text + entry
    return [*groups, open_group] if open_group else groups


def _place(name: str, formulas: Sequence[Formula]) -> Shard:
    entries = ['"__metadata__":{"format":"pt"}']  # as text: of many tensors, tables take room
    kinds: dict[tuple[str, Shape], str] = {}
    stop = 0
    spans = []
    for f in sorted(formulas, key=lambda f: (_ORDER[f.dtype], f.name)):
        start, stop = stop, stop + f.nbytes
        kind = kinds.get((f.dtype, f.shape)) or kinds.setdefault((f.dtype, f.shape), _kind_text(f))
        entries.append(f"{encode_basestring(f.name)}:{kind}[{start},{stop}]}}")
        spans.append((f, start, stop))
    text = f"{{{','.join(entries)}}}".encode()
    del entries
    data = -(-(8 + len(text)) // PAGE) * PAGE
    header = (data - 8).to_bytes(8, "little") + text.ljust(data - 8)
    placed = tuple(Placed(f, data + start, data + stop) for f, start, stop in spans)
    return Shard(name, header, data + stop, placed)


def _kind_text(formula: Formula) -> str:
    """The entry of a tensor in a header, up to where it lies."""
    kind = {"dtype": formula.dtype, "shape": formula.shape, "data_offsets": 0}
    return json.dumps(kind, separators=(",", ":")).removesuffix("0}")


def _index(shards: Sequence[Shard]) -> Mapping[str, Any]:
    """What transformers writes beside several shards."""
    tensors = [(placed.formula, shard.name) for shard in shards for placed in shard.tensors]
    return {
        "metadata": {
            "total_parameters": sum(math.prod(f.shape) for f, _ in tensors if f.dtype in FLOATS),
            "total_size": sum(f.nbytes for f, _ in tensors),
        },
        "weight_map": {f.name: name for f, name in sorted(tensors, key=lambda t: t[0].name)},
    }
