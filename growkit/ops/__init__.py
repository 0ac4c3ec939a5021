"""Growth operators: one idea per file, and the table that recipes name them by.

An operator is a frozen options model with one method:

    grow(family, sizes) -> Growth

It says how axes map, which layers the new layers come from, what noise is added, what is blended.
It never sees a tensor, a tensor's name or a file; the plan applies what it says to every tensor
alike. A new operator is one file here, one line in `OPERATORS`, one recipe.
"""

from __future__ import annotations

from growkit.algebra.layer_map import Layer, LayerMap
from growkit.ops.coalesce import Coalesce, Decoalesce
from growkit.ops.depth import Depth
from growkit.ops.learned import Learned
from growkit.ops.mix import BlendWith, Fuse
from growkit.ops.noise import AddNoise
from growkit.ops.operator import Arrays, Blending, Growth, Noising, Operator
from growkit.ops.resize import Resize
from growkit.ops.width import Width

OPERATORS: dict[str, type[Operator]] = {
    "width": Width,
    "depth": Depth,
    "coalesce": Coalesce,
    "decoalesce": Decoalesce,
    "noise": AddNoise,
    "fuse": Fuse,
    "blend": BlendWith,
    "resize": Resize,
    "learned": Learned,
}

__all__ = ["OPERATORS", "Arrays", "Blending", "Growth", "Layer", "LayerMap", "Noising", "Operator"]
