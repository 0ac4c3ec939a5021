"""Mixing the grown model with other checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from growkit.ops.contract import Blending, Growth, Operator

if TYPE_CHECKING:
    from growkit.family import Family


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
