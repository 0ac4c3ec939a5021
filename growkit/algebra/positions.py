"""How positions enter attention heads: rotary pairs and ALiBi slopes, as numbers.

Rotary positions turn pairs of coordinates, each at its own frequency theta ** (-2·pair/turned);
ALiBi subtracts slope · distance, one slope per head. Growing a head or adding heads keeps the
function iff pairs keep their frequency and heads their slope, so the law is: nothing here guesses,
both follow the formulas of the models (2104.09864; 2108.12409) and the config.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import ceil, floor, log2

import numpy as np

from growkit.algebra.kernel import BoolArray, FloatArray, IntArray

PAIRS = ("halves", "adjacent")  # coordinate i turns with i + turned/2, or with its neighbour


def rotary_pairs(layout: str, size: int, turned: int) -> tuple[IntArray, IntArray]:
    """For each of `size` coordinates the pair it is in, or -1, and its side of the pair (0 or 1).

    Only the first `turned` coordinates turn.

    >>> rotary_pairs("halves", 6, 4)
    (array([ 0,  1,  0,  1, -1, -1]), array([0, 0, 1, 1, 0, 0]))
    """
    unit = np.arange(size)
    half = max(turned // 2, 1)
    pair, side = (unit % half, unit // half) if layout == "halves" else (unit // 2, unit % 2)
    inside: BoolArray = unit < turned
    return np.where(inside, pair, -1), np.where(inside, side, 0)


def rotary_places(layout: str, size: int, old: int, new: int, stride: int) -> IntArray:
    """The new place of each of `size` coordinates when rotary pair i becomes pair stride·i.

    `old` and `new` coordinates turn, before and after; what does not turn follows after these.
    """
    pair, side = rotary_pairs(layout, size, old)
    halves = layout == "halves"
    turning = stride * pair + side * (new // 2) if halves else 2 * stride * pair + side
    return np.where(pair >= 0, turning, new + np.arange(size) - old)


def frequencies(layout: str, size: int, turned: int, theta: float) -> FloatArray:
    """log of the frequency of every coordinate; nan where it does not turn."""
    pair, _ = rotary_pairs(layout, size, turned)
    speed = -2.0 * pair / max(turned, 1) * np.log(theta)
    return np.where(pair >= 0, speed, np.nan)


def slopes_from_below(heads: int) -> FloatArray:
    """Those of the next lower power of two, then odd powers (2108.12409, appendix)."""
    lower = 2 ** floor(log2(heads))
    base = 2.0 ** (-(2.0 ** -(log2(lower) - 3)))
    extra = 2.0 ** (-(2.0 ** -(log2(2 * lower) - 3)))
    rest = np.arange(1, 1 + 2 * (heads - lower), 2)
    return np.concatenate([base ** np.arange(1.0, 1 + lower), extra ** rest.astype(float)])


def slopes_from_above(heads: int, most: float = 8.0) -> FloatArray:
    """Those of the next higher power of two, every second one first."""
    upper = 2 ** ceil(log2(heads))
    slopes = 1.0 / 2.0 ** (np.arange(1.0, upper + 1) * most / upper)
    if upper != heads:
        slopes = np.concatenate([slopes[1::2], slopes[::2]])[:heads]
    return np.asarray(slopes)


SLOPES: Mapping[str, Callable[[int], FloatArray]] = {
    "below": slopes_from_below,
    "above": slopes_from_above,
}


def nested_places(kind: str, old: int, new: int) -> IntArray | None:
    """The place among `new` heads that has each old head's slope; None if one has no place."""
    now, then = SLOPES[kind](old), SLOPES[kind](new)
    distance = np.abs(np.log(then)[None, :] - np.log(now)[:, None])
    places = distance.argmin(axis=1)
    fits = distance[np.arange(old), places].max(initial=0.0) < 1e-9
    return places if fits and len(set(places.tolist())) == old else None
