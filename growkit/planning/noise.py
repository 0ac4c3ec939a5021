"""Noise that tells copies apart, where the network does not see it and where it does.

    null_space        W_new = W + X · P          P projects onto inputs that never occur, so the
                                                 function stays: I − write · readᵀ of the read axis
    gaussian, …       W_new = keep · W + X       on all weights, or with `mask: new` only on rows of
                                                 new units and on whole tensors of new layers

Gains, shifts and biases are left alone, and so is what is zero on purpose. The law: what is outside
the mask stays as it is, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache

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

Piece = tuple[bool | None, ...]  # of each dim: only new rows (True), only old ones (False), all


def apply_noise(state: State, noise: Noising, number: int, seed: int) -> State:
    """The state after step `number`, a step of noise; RecipeError where there is no room for it."""
    if noise.kind == "null_space" and state.no_null_space:
        raise RecipeError(
            "noise: models side by side leave no null space",
            hint="different models need no noise to tell them apart",
        )
    check_only(state.parts, noise.only)
    shape_of = shapes(state.parts, state.sizes)

    def make(part: Part, spread: float) -> Noise:
        shape = shape_of[part.pattern.name]
        return Noise(seed, number, part.name, shape, noise.std, noise.snr_db, part.terms, spread)

    if noise.kind == "null_space":
        parts = add_null_space_noise(state.parts, noise.only, _null_spaces(state), make)
    else:
        rows = NewRows(state.maps, state.model.sizes, state.layer_maps)
        parts = add_visible_noise(state.parts, noise, rows, make)
    return replace(state, parts=parts)


def prove_noise(before: Claim, noise: Noising) -> Claim:
    """Null-space noise is invisible exactly where the maps so far keep the law."""
    if noise.kind != "null_space":
        shrunk = f"weights shrink to {noise.keep:g} of themselves, and " if noise.keep < 1 else ""
        return approximate([f"{shrunk}noise is added where the network sees it"])
    if before.claim == APPROXIMATE:
        return approximate(["the noise lies in the null space of maps that are approximate"])
    return Claim()


# -- noise that the network does not see ---------------------------------------------------------


def add_null_space_noise(
    parts: Parts,
    only: tuple[str, ...],
    null_space: Callable[[Expression], Kernel | None],
    make: Callable[[Part, float], Noise],
) -> dict[str, Part]:
    """Noise on every weight that reads a grown axis; silent parts stay zero."""
    out = dict(parts)
    projected: dict[str, tuple[Kernel | None, Kernels]] = {}  # by kind of tensor
    for key, part in parts.items():
        pattern = part.pattern
        if part.zeroed or not chosen(part, only):
            continue
        if pattern.name not in projected:
            kernel = null_space(pattern.consumed) if pattern.consumed else None
            kernels = tuple(kernel if role == "-" else None for _, role in pattern.dims)
            projected[pattern.name] = kernel, kernels
        kernel, kernels = projected[pattern.name]
        if kernel is not None:
            noise = make(part, kernel.square_norm / kernel.new)
            out[key] = part.made_of((*part.terms, Term(noise, kernels)))
    return out


def _null_spaces(state: State) -> Callable[[Expression], Kernel | None]:
    """The projector onto the null space of what reads an axis; None where it has none."""
    family = state.model.family
    streams = {*family.of_kind("stream", "latent"), *family.like}

    @cache
    def null_space(expression: Expression) -> Kernel | None:
        m = expression.map(state.maps, state.model.sizes)
        kernel = m.null_space(behind_norm=bool(expression.axes & streams)) if m else None
        return None if kernel is None or kernel.zero_rows.all() else kernel

    return null_space


# -- noise that it sees --------------------------------------------------------------------------


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
        new, old = rows.pieces(part)
        if not new:
            continue
        terms = list(part.terms)
        if noise.keep != 1.0:
            terms = _limited(part, old, rows)
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


def _limited(part: Part, piece: Piece, rows: NewRows) -> list[Term]:
    return [t.through(rows.limited(t.kernels, part, piece)) for t in part.terms]


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
            new = None if m is None else ~m.write.row_kinds.first
            self._masks[expression] = new if new is not None and new.any() else None
        return self._masks[expression]

    def whole_layer(self, part: Part) -> bool:
        """Whether a tensor belongs to a layer that is not the first copy of an old one."""
        slots = zip(part.pattern.slots, part.numbers, strict=True)
        return any(n not in self._old_layers.get(str(a), {n}) for a, n in slots)

    def pieces(self, part: Part) -> tuple[list[Piece], Piece]:
        """A tensor cut into disjoint pieces that are new, and the one piece that is not.

        Of a matrix with new rows and new columns, the new pieces are all of the new rows, (True,
        None), and the new columns of the old rows, (False, True); old is (False, False).
        """
        grown = [role in "+#" and self.mask(e) is not None for e, role in part.pattern.dims]
        old = tuple(False if g else None for g in grown)
        new = [
            (*old[:dim], True, *[None] * (len(grown) - dim - 1))
            for dim, grows in enumerate(grown)
            if grows
        ]
        return new, old

    def limited(self, kernels: Kernels, part: Part, piece: Piece) -> Kernels:
        """A term's kernels, zero outside a piece."""
        dims = zip(kernels, part.pattern.dims, piece, strict=True)
        return tuple(k if keep is None else self._masked(k, e, keep) for k, (e, _), keep in dims)

    def _masked(self, kernel: Kernel | None, expression: Expression, keep_new: bool) -> Kernel:
        key = (kernel, expression, keep_new)
        if key not in self._kernels:
            mask = self.mask(expression)
            assert mask is not None
            whole = Kernel.identity(len(mask)) if kernel is None else kernel
            self._kernels[key] = whole.masked(mask == keep_new)
        return self._kernels[key]
