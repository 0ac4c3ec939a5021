"""Mixing the grown model with other checkpoints: blended into it, or side by side with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from growkit.ops.operator import Blending, Growth, Operator

if TYPE_CHECKING:
    from growkit.families.family import Family


class BlendWith(Operator):
    """Interpolation: (1 − alpha) · with + alpha · current, elementwise (Multi-Level, 2404.07999).

    `alpha` is the weight of the grown model; `with` names a source of the same shapes, such as the
    large model kept from before coalescing.
    """

    op: Literal["blend"] = "blend"
    other: str = Field(alias="with")
    alpha: float = Field(ge=0, le=1)
    only: tuple[str, ...] = ()

    def grow(self, family: Family, sizes: Mapping[str, int]) -> Growth:
        """The blend."""
        return Growth(blend=Blending(self.other, self.alpha, self.only))

    def sources(self) -> tuple[str, ...]:
        """The checkpoint to blend with."""
        return (self.other,)


class Fuse(Operator):
    """Deep Fusion: checkpoints side by side become one larger model (2306.11903, FUSION).

    Streams, heads, kv heads and neurons stand next to each other, weights are block-diagonal, and
    the logits are averaged. Exact for copies of one checkpoint. For different ones it is
    approximate, because one norm then serves all streams; exact would be to fuse only their MLPs
    or heads over one shared trunk, which is another method.
    """

    op: Literal["fuse"] = "fuse"
    others: tuple[str, ...] = Field(alias="with", min_length=1)

    def grow(self, family: Family, sizes: Mapping[str, int]) -> Growth:
        """The fusion."""
        return Growth(fuse=self.others)

    def sources(self) -> tuple[str, ...]:
        """The checkpoints that join."""
        return self.others
