"""Shards of a few tensors, and the bytes that they must have."""

from __future__ import annotations

import zlib
from pathlib import Path

from growkit.output.layout import Shard, lay_out
from growkit.output.shard_writer import ShardWriter
from growkit.output.workspace import Workspace
from growkit.planning.formula import Formula

DIGEST = "0123abcd"
FORMULAS = [
    Formula("b", (5, 3), "F32"),
    Formula("a", (7,), "BF16"),
    Formula("c", (), "F64"),
    Formula("d", (0, 3), "F16"),
    Formula("e", (4, 4), "I64"),
]


def content(formula: Formula) -> bytes:
    """Some bytes that belong to a tensor of this name."""
    return bytes((zlib.crc32(formula.name.encode()) + i) % 2 for i in range(formula.nbytes))


def write_shard(folder: Path, shard: Shard, step: int = 1 << 20) -> dict[str, str]:
    """Write a shard in blocks of `step` bytes."""
    with ShardWriter(folder, shard) as writer:
        for placed in shard.tensors:
            data = content(placed.formula)
            writer.begin(placed)
            for at in range(0, len(data), step):
                writer.write(data[at : at + step])
            writer.end()
        return writer.finish()


def expected(shard: Shard) -> bytes:
    return shard.header + b"".join(content(p.formula) for p in shard.tensors)


LAYOUT = lay_out(FORMULAS, max_shard_bytes=70)  # three shards


def workspace(out: Path, digest: str = DIGEST, **kwargs) -> Workspace:
    return Workspace(out, **{"digest": digest, "layout": LAYOUT, "sources": []} | kwargs)
