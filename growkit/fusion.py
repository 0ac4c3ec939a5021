"""Deep Fusion: the parts of several models side by side (2306.11903).

    W = Σ_s  inject_s · W_s · inject_sᵀ        heads and other readers of the stream: divided by K

Source s owns a block of every grown axis. The law: everything that is not a size must agree, or the
fusion is refused with what differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from growkit.axes import AxisMap, Kernel
from growkit.compose import Composer, Part
from growkit.errors import CheckpointError
from growkit.family import Family
from growkit.model import Model

KINDS = ("stream", "heads", "kv_heads", "neurons")  # what stands side by side
PASSING = {  # config keys that say nothing about the function
    "_name_or_path", "transformers_version", "torch_dtype", "dtype", "architectures", "use_cache",
}  # fmt: skip


def injections(family: Family, sizes: Sequence[Mapping[str, int]]) -> list[dict[str, AxisMap]]:
    """For every source the maps that put its units into its block."""
    axes = [a for a in family.of_kind(*KINDS) if a in sizes[0]]
    out: list[dict[str, AxisMap]] = [{} for _ in sizes]
    for axis in axes:
        widths = [s[axis] for s in sizes]
        start, total = 0, sum(widths)
        for number, width in enumerate(widths):
            mine = (np.arange(total) >= start) & (np.arange(total) < start + width)
            index = np.where(mine, np.arange(total) - start, 0)
            kernel = Kernel.gather(index, mine.astype(float), old=width)
            out[number][axis] = AxisMap.of(kernel)
            start += width
    return out


def fuse_parts(
    sources: Sequence[Mapping[str, Part]],
    sizes: Sequence[Mapping[str, int]],
    maps: Sequence[Mapping[str, AxisMap]],
) -> dict[str, Part]:
    """One model from several: block-diagonal inside, averaged where it goes out."""
    composers = [Composer(m, s) for m, s in zip(maps, sizes, strict=True)]
    grown = set(maps[0])
    out: dict[str, Part] = {}
    for key, first in sources[0].items():
        inward = any(e.axes & grown for e, role in first.pattern.dims if role != "-")
        terms = []
        for parts, composer in zip(sources, composers, strict=True):
            one = parts[key] if inward else parts[key].scaled(1 / len(sources))
            dims = [composer.dim(e, "+" if r == "*" else r) for e, r in one.pattern.dims]
            kernels = [d.kernel if d else None for d in dims]
            terms += [
                replace(
                    t,
                    kernels=tuple(
                        composer.product(k, old) for k, old in zip(kernels, t.kernels, strict=True)
                    ),
                )
                for t in one.terms
            ]
        zeroed = all(parts[key].zeroed for parts in sources)
        out[key] = replace(first, terms=tuple(terms), zeroed=zeroed)
    return out


def check_fusable(
    model: Model,
    sizes: Mapping[str, int],
    parts: Mapping[str, Part],
    other: Model,
    other_parts: Mapping[str, Part],
    name: str,
) -> None:
    """Refuse sources that cannot stand side by side, with what differs."""
    family, config = model.family, model.config
    if family.name != other.family.name:
        _refuse(name, [f"family {family.name} and {other.family.name}"])
    grown = set(family.of_kind(*KINDS))
    differing = [
        f"{axis} {sizes[axis]} and {other.sizes.get(axis)}"
        for axis in sizes
        if axis not in grown and sizes[axis] != other.sizes.get(axis)
    ]
    for t in family.attentions:
        if t.kv_heads in sizes:
            groups = [s[t.heads] // s[t.kv_heads] for s in (sizes, other.sizes)]
            if groups[0] != groups[1]:
                differing.append(f"query heads per kv head {groups[0]} and {groups[1]}")
    for key in sorted((config.keys() | other.config.keys()) - PASSING - family.config.keys()):
        if config.get(key) != other.config.get(key):
            differing.append(f"{key} {config.get(key)} and {other.config.get(key)}")
    if model.tied != other.tied:
        differing.append(f"tied head {model.tied} and {other.tied}")
    dtypes = {p.dtype for p in (*parts.values(), *other_parts.values())}
    if len(dtypes) > 1:
        differing.append(f"dtypes {' and '.join(sorted(dtypes))}")
    lacking = sorted(parts.keys() ^ other_parts.keys())
    if lacking and not differing:
        differing.append(f"only one of them has {lacking[0]}")
    if differing:
        _refuse(name, differing)


def _refuse(name: str, differing: list[str]) -> None:
    raise CheckpointError(
        f"source {name}: cannot be fused: {', '.join(differing)}",
        hint="sources of a fusion differ in values and widths only",
    )
