"""Where the layers of a grown stack come from.

A layer map is to layers what an axis map is to units. Maps of several steps compose: layers made of
layers are made of the first ones.
"""

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


def unmoved(size: int) -> LayerMap:
    """Every layer where it was."""
    return tuple(map(Layer.copy, range(size)))


def composed(first: LayerMap, later: LayerMap) -> LayerMap:
    """Layers made of layers, as layers made of the first ones.

    A layer is silent, or random, if all that it is made of are. Of layers that differ in that, or
    in their scale, no layer map says all: see `mixes_unlike`.

    >>> stacked = composed(unmoved(2), (Layer.copy(0), Layer.copy(1), Layer.copy(0)))
    >>> [layer.mix for layer in composed(stacked, (Layer(((1, 0.5), (2, 0.5))),))]
    [((1, 0.5), (0, 0.5))]
    """
    layers = []
    for layer in later:
        made_of = [first[i] for i, _ in layer.mix]
        mix: dict[int, float] = {}
        for (_, weight), part in zip(layer.mix, made_of, strict=True):
            for i, inner in part.mix:
                mix[i] = mix.get(i, 0.0) + weight * inner
        layers.append(
            Layer(
                tuple(mix.items()),
                silent=layer.silent or all(part.silent for part in made_of),
                random=layer.random or all(part.random for part in made_of),
                scale=layer.scale * made_of[0].scale,
            )
        )
    return tuple(layers)


def mixes_unlike(first: LayerMap, later: LayerMap) -> bool:
    """Whether a layer that is heard is mixed of silent ones and others."""
    return any(
        not layer.silent and len({first[i].silent for i, _ in layer.mix}) > 1 for layer in later
    )
