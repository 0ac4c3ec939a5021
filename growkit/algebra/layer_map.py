"""Where the layers of a grown stack come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Layer:
    """Where one new layer comes from: the sum of weight · old layer over `mix`."""

    mix: tuple[tuple[int, float], ...]
    silent: bool = False  # adds nothing to the stream at first
    random: bool = False  # drawn anew at the config's initializer_range
    scale: float = 1.0  # of what it adds to the stream

    @classmethod
    def copy(cls, source: int, **options: Any) -> Layer:
        """A copy of one old layer."""
        return cls(((source, 1.0),), **options)

    @property
    def source(self) -> int:
        """The old layer that per-layer config entries are taken from."""
        return self.mix[0][0]

    @property
    def plain(self) -> bool:
        """An old layer as it was."""
        return (
            len(self.mix) == 1 and self.mix[0][1] == 1.0 and self.scale == 1.0 and not self.random
        )


LayerMap = tuple[Layer, ...]  # the new layers of one layer axis, in order
