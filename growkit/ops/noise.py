"""Noise that tells copies apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from growkit.ops.contract import Growth, Noising, Operator

if TYPE_CHECKING:
    from growkit.family import Family


class AddNoise(Operator):
    """Null-space noise: W + X·(I − write·readᵀ), which the grown network cannot see at first.

    Copies that are equal stay equal under deterministic training; this noise separates them and
    keeps the function exactly (HyperCloning 2409.12903, LEMON 2310.07999). `snr_db` is
    10·log10(mean square of the grown tensor / mean square of the projected noise), in decibels.
    """

    op: Literal["noise"] = "noise"
    kind: Literal["null_space"] = "null_space"
    snr_db: float = Field(default=10.0, ge=-100, le=200)
    only: tuple[str, ...] = ()

    def grow(self, family: Family, sizes: Mapping[str, int]) -> Growth:
        """Noise at this signal-to-noise ratio."""
        return Growth(noise=Noising(self.snr_db, self.only))
