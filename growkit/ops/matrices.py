"""Maps as dense matrices by name, as a maps file holds them: read from it, and written for it.

    AXIS.write         (new, old)  of tensors that produce the axis
    AXIS.read          (new, old)  of tensors that consume it; the pseudo-inverse if left out
    AXIS.write_normed  (new, old)  of what leaves a norm on the axis; `write` if left out
    AXIS.fresh         (new,)      1 for units whose producers are drawn at random
    AXIS.pairs         (new, new)  ±1: the random consumers of twins, which cancel
    AXIS.mix           (new, old)  layers only: what each new layer is the weighted sum of
    AXIS.silent        (new,)      layers only: 1 for layers that add nothing to the stream at first
    theta_power        (1,)        the base of rotary positions is raised to it

The law: a matrix is taken as it is. What it keeps of the function is for the plan to prove.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from growkit.algebra.axis_map import AxisMap
from growkit.algebra.kernel import BoolArray, FloatArray, Kernel
from growkit.algebra.layer_map import Layer, LayerMap, mixes_unlike, unmoved
from growkit.errors import RecipeError
from growkit.ops.operator import Arrays, Growth

AXIS_PARTS = ("write", "read", "write_normed", "fresh", "pairs")
LAYER_PARTS = ("mix", "silent")
THETA = "theta_power"


def given_map(arrays: Arrays, names: Iterable[str], old: int) -> AxisMap | None:
    """The map of an axis of size `old`, under the first of these names that the file has."""
    name = next((n for n in names if f"{n}.write" in arrays), None)
    if name is None:
        return None
    write = _matrix(arrays, f"{name}.write", (None, old))
    new = len(write)

    def kernel(part: str, columns: int = old) -> Kernel | None:
        full = f"{name}.{part}"
        return Kernel.found_in(_matrix(arrays, full, (new, columns))) if full in arrays else None

    read, normed, pairs = kernel("read"), kernel("write_normed"), kernel("pairs", new)
    fresh = _flags(arrays, f"{name}.fresh", new)
    drawn = fresh if pairs is None else fresh | ~pairs.zero_rows
    if write[drawn].any():
        raise RecipeError(f"{name}.fresh: a unit that is drawn at random has rows of {name}.write")
    read = read or Kernel.found_in(np.linalg.pinv(write).T)
    return AxisMap.of(Kernel.found_in(write), read, normed, drawn, pairs)


def given_maps(
    arrays: Arrays, user: str, axes: Sequence[str], sizes: Mapping[str, int], size: int = 0
) -> dict[str, AxisMap]:
    """The maps of all axes behind an axis name of recipes; refused if one has not this size."""
    out = {}
    for axis in axes:
        axis_map = given_map(arrays, (axis, user), sizes[axis])
        if axis_map is None:
            raise RecipeError(f"{user}.write is missing", hint=f"it holds {', '.join(arrays)}")
        if size and axis_map.new != size:
            raise RecipeError(
                f"{user}.write: expected {size} rows by to.{user}, found {axis_map.new}",
                hint=f"leave to.{user} out",
            )
        out[axis] = axis_map
    return out


def given_layers(arrays: Arrays, axis: str, old: int) -> LayerMap | None:
    """The layers of an axis of `old` layers; None if the file does not say."""
    if f"{axis}.mix" not in arrays:
        return None
    mix = _matrix(arrays, f"{axis}.mix", (None, old))
    silent = _flags(arrays, f"{axis}.silent", len(mix))
    layers = []
    for number, row in enumerate(mix):
        used = sorted(np.flatnonzero(row).tolist(), key=lambda i: -abs(row[i]))
        if not used:
            raise RecipeError(
                f"{axis}.mix: row {number} is zero: a layer is made of at least one other",
                hint=f"a layer that adds nothing at first is a copy with {axis}.silent = 1",
            )
        weights = tuple((i, float(row[i])) for i in used)
        layers.append(Layer(weights, silent=bool(silent[number])))
    return tuple(layers)


def given_power(arrays: Arrays) -> float:
    """The power that the rotary base is raised to."""
    if THETA not in arrays:
        return 1.0
    power = float(_matrix(arrays, THETA, (1,))[0])
    if power <= 0:
        raise RecipeError(f"{THETA}: expected a positive number, found {power:g}")
    return power


def _matrix(arrays: Arrays, name: str, shape: tuple[int | None, ...]) -> FloatArray:
    """An array of this shape (None is any size from 1) whose values are all finite."""
    array = arrays[name]
    fits = len(array.shape) == len(shape) and all(
        n and want in (None, n) for n, want in zip(array.shape, shape, strict=True)
    )
    if not fits:
        want = ", ".join("new" if n is None else str(n) for n in shape)
        raise RecipeError(
            f"{name}: expected shape ({want}), found ({', '.join(map(str, array.shape))})",
            hint="matrices have new rows and old columns",
        )
    if not np.isfinite(array).all():
        raise RecipeError(f"{name}: holds values that are NaN or infinite")
    return array


def _flags(arrays: Arrays, name: str, size: int) -> BoolArray:
    if name not in arrays:
        return np.zeros(size, dtype=bool)
    return np.asarray(_matrix(arrays, name, (size,)) != 0)


# -- the other way -------------------------------------------------------------------------------


def matrices(
    maps: Mapping[str, AxisMap],
    layer_maps: Mapping[str, LayerMap],
    sizes: Mapping[str, int],
    theta_power: float,
) -> dict[str, FloatArray]:
    """The maps of a whole recipe, composed, as arrays by name; `sizes` are those before it.

    A map that changes nothing is left out.
    """
    arrays: dict[str, FloatArray] = {}
    for axis, m in maps.items():
        if not m.is_identity:
            arrays |= {f"{axis}.{part}": array for part, array in _of_axis(m)}
    for axis, layers in layer_maps.items():
        if layers != unmoved(sizes[axis]):
            mix = np.zeros((len(layers), sizes[axis]))
            for number, layer in enumerate(layers):
                for i, weight in layer.mix:
                    mix[number, i] += weight
            arrays[f"{axis}.mix"] = mix
            if any(layer.silent for layer in layers):
                arrays[f"{axis}.silent"] = np.array([float(layer.silent) for layer in layers])
    if theta_power != 1.0:
        arrays[THETA] = np.array([theta_power])
    return arrays


def _of_axis(m: AxisMap) -> list[tuple[str, FloatArray]]:
    out = [("write", m.write.matrix()), ("read", m.read.matrix())]
    if m.write_normed is not m.write:
        out.append(("write_normed", m.write_normed.matrix()))
    if m.fresh.any():
        out.append(("fresh", m.fresh.astype(np.float64)))
    if m.pairs is not None:
        out.append(("pairs", m.pairs.matrix()))
    return out


def no_matrix(growth: Growth, layer_maps: Mapping[str, LayerMap]) -> str:
    """What a step does that no matrix can say; empty if matrices say all of it.

    `layer_maps` are those of the steps before it. Null-space noise is left out: nobody sees it.
    """
    layers = [layer for layers in growth.layers.values() for layer in layers]
    if growth.fuse or growth.blend:
        return "takes another checkpoint"
    if growth.noise and growth.noise.kind != "null_space":
        return f"adds {growth.noise.kind} noise"
    if growth.above:
        return "takes new rows from the layer above"
    if any(layer.random for layer in layers):
        return "draws layers at random"
    if any(layer.scale != 1.0 for layer in layers):
        return "scales what layers add to the stream"
    if any(mixes_unlike(layer_maps[axis], later) for axis, later in growth.layers.items()):
        return "a silent layer is mixed with others"
    return ""
