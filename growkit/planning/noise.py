"""Noise that the network sees: on all weights, or only on what growth added.

    W_new = keep · W + X        with a mask: only rows of new units, and whole tensors of new layers

Noise that the network does not see is `compose.add_noise`. Gains, shifts and biases are left alone,
and so is what is zero on purpose. The law: rows outside the mask stay as they are, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from growkit.algebra.axis_map import AxisMap
from growkit.algebra.expression import Expression
from growkit.algebra.kernel import BoolArray, Kernel
from growkit.algebra.layer_map import LayerMap
from growkit.errors import RecipeError
from growkit.ops import Noising
from growkit.planning.formula import Kernels, Noise, Term
from growkit.planning.part import Part, Parts, check_only, chosen, shapes
from growkit.planning.proof.claim import APPROXIMATE, Claim, approximate
from growkit.planning.state import State


def new_units(write: Kernel) -> BoolArray:
    """All units but the first that each old unit went to; mixtures and empty rows are new.

    >>> new_units(Kernel.gather([0, 1, 0, 1], old=2))
    array([False, False,  True,  True])
    """
    new = np.ones(write.new, dtype=bool)
    if write.dense is None:
        single = ((write.coef != 0).sum(axis=1) == 1) & ~write.share.any(axis=1)
        rows = np.flatnonzero(single)
        source = write.index[rows, (write.coef[rows] != 0).argmax(axis=1)] if len(rows) else rows
        new[rows[np.unique(source, return_index=True)[1]]] = False
    return new


class NewRows:
    """What growth added, as kernels that keep it or what is beside it, each built once."""

    def __init__(
        self,
        maps: Mapping[str, AxisMap],
        start: Mapping[str, int],
        layer_maps: Mapping[str, LayerMap],
    ) -> None:
        self._maps, self._start = maps, start  # from the first step to now
        sources = {a: [layer.source for layer in layers] for a, layers in layer_maps.items()}
        self._old_layers = {a: {n.index(i) for i in n} for a, n in sources.items()}
        self._masks: dict[Expression, BoolArray | None] = {}
        self._kernels: dict[tuple[Kernel | None, Expression, bool], Kernel] = {}

    def mask(self, expression: Expression) -> BoolArray | None:
        """Which rows are new; None if none is."""
        if expression not in self._masks:
            m = expression.map(self._maps, self._start)
            new = None if m is None else new_units(m.write)
            self._masks[expression] = new if new is not None and new.any() else None
        return self._masks[expression]

    def whole_layer(self, part: Part) -> bool:
        """Whether a tensor belongs to a layer that is not the first copy of an old one."""
        slots = zip(part.pattern.slots, part.numbers, strict=True)
        return any(n not in self._old_layers.get(str(a), {n}) for a, n in slots)

    def pieces(self, part: Part) -> tuple[list[tuple[bool | None, ...]], tuple[bool | None, ...]]:
        """A tensor cut into disjoint pieces that are new, and the one piece that is not.

        A piece says of each dim: only new rows (True), only old ones (False), all (None).
        """
        cut = [r in "+#" and self.mask(e) is not None for e, r in part.pattern.dims]
        new = [
            tuple((i == j if i <= j else None) if c else None for i, c in enumerate(cut))
            for j, here in enumerate(cut)
            if here
        ]
        return new, tuple(False if c else None for c in cut)

    def limited(self, kernels: Kernels, part: Part, piece: tuple[bool | None, ...]) -> Kernels:
        """A term's kernels, zero outside a piece."""
        dims = zip(kernels, part.pattern.dims, piece, strict=True)
        return tuple(k if keep is None else self._one(k, e, keep) for k, (e, _), keep in dims)

    def _one(self, kernel: Kernel | None, expression: Expression, keep_new: bool) -> Kernel:
        found = (kernel, expression, keep_new)
        if found not in self._kernels:
            mask = self.mask(expression)
            assert mask is not None
            whole = Kernel.identity(len(mask)) if kernel is None else kernel
            self._kernels[found] = whole.masked(mask == keep_new)
        return self._kernels[found]


def add_visible_noise(
    parts: Parts,
    noise: Noising,
    rows: NewRows,
    make: Callable[[Part, float], Noise],
) -> dict[str, Part]:
    """Every chosen weight shrunk to `keep` of itself, and noise added that `make` describes."""
    out = dict(parts)
    changed = False
    for key, part in parts.items():
        if part.zeroed or len(part.pattern.dims) < 2 or not chosen(part, noise.only):
            continue
        shrunk = part.scaled(noise.keep)
        source = make(shrunk, 1.0)
        whole: Kernels = (None,) * len(part.pattern.dims)
        if not noise.new_only or rows.whole_layer(part):
            out[key] = replace(part, terms=(*shrunk.terms, Term(source, whole)))
            changed = True
            continue
        new, rest = rows.pieces(part)
        if not new:
            continue
        terms = list(part.terms)
        if noise.keep != 1.0:
            terms = _limited(part, rest, rows)
            terms += [t for piece in new for t in _limited(shrunk, piece, rows)]
        terms += [Term(source, rows.limited(whole, part, piece)) for piece in new]
        out[key] = replace(part, terms=tuple(terms))
        changed = True
    if not changed:
        raise RecipeError(
            f"{noise.kind} noise: there is no weight to add it to",
            hint="no step before this one has grown anything that `mask: new` could mean"
            if noise.new_only
            else "see `only`: patterns of tensor names, such as *.mlp.*",
        )
    return out


def _limited(part: Part, piece: tuple[bool | None, ...], rows: NewRows) -> list[Term]:
    return [t.through(rows.limited(t.kernels, part, piece)) for t in part.terms]


def prove_noise(before: Claim, noise: Noising) -> Claim:
    """Null-space noise is invisible exactly where the maps so far keep the law."""
    if noise.kind != "null_space":
        shrunk = f"weights shrink to {noise.keep:g} of themselves, and " if noise.keep < 1 else ""
        return approximate([f"{shrunk}noise is added where the network sees it"])
    if before.claim == APPROXIMATE:
        return approximate(["the noise lies in the null space of maps that are approximate"])
    return Claim()


def add_noise(
    parts: Parts,
    only: tuple[str, ...],
    null_space: Callable[[Expression], Kernel | None],
    make: Callable[[Part, float], Noise],
) -> dict[str, Part]:
    """Null-space noise on every weight that reads a grown axis; silent parts stay zero."""
    out = dict(parts)
    known: dict[str, tuple[Kernel | None, Kernels]] = {}  # by kind of tensor
    for key, part in parts.items():
        pattern = part.pattern
        if part.zeroed or not chosen(part, only):
            continue
        if pattern.name not in known:
            kernel = null_space(pattern.consumed) if pattern.consumed else None
            kernels = tuple(kernel if role == "-" else None for _, role in pattern.dims)
            known[pattern.name] = kernel, kernels
        kernel, kernels = known[pattern.name]
        if kernel is not None:
            noise = make(part, kernel.square_norm / kernel.new)
            out[key] = part.made_of((*part.terms, Term(noise, kernels)))
    return out


def apply_noise(state: State, noise: Noising, number: int, seed: int) -> State:
    if noise.kind == "null_space" and state.no_null_space:
        raise RecipeError(
            "noise: models side by side leave no null space",
            hint="different models need no noise to tell them apart",
        )
    check_only(state.parts, noise.only)
    family, maps, start = state.model.family, state.maps, state.model.sizes
    streams = {*family.of_kind("stream", "latent"), *family.like}
    known: dict[Expression, Kernel | None] = {}

    def null_space(expression: Expression) -> Kernel | None:
        if expression not in known:
            m = expression.map(maps, start)
            kernel = m.null_space(behind_norm=bool(expression.axes & streams)) if m else None
            known[expression] = None if kernel is None or kernel.zero_rows.all() else kernel
        return known[expression]

    known_shapes = shapes(state.parts, state.sizes)

    def make(part: Part, spread: float) -> Noise:
        shape = known_shapes[part.pattern.name]
        return Noise(seed, number, part.name, shape, noise.std, noise.snr_db, part.terms, spread)

    if noise.kind == "null_space":
        return replace(state, parts=add_noise(state.parts, noise.only, null_space, make))
    new = NewRows(maps, start, state.layer_maps)
    return replace(state, parts=add_visible_noise(state.parts, noise, new, make))
