"""Noise that tells copies apart, or that makes a trained model plastic again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from growkit.ops.operator import Growth, NoiseKind, Noising, Operator

if TYPE_CHECKING:
    from growkit.families.family import Family

SNR_DB = 10.0  # where neither snr_db nor std is given


class AddNoise(Operator):
    """Noise on weights (tensors of two or more dims); what is silent on purpose stays zero.

    `null_space` (the default): W + X·(I − write·readᵀ), which the grown network cannot see at
    first. Copies that are equal stay equal under deterministic training; this noise separates them
    and keeps the function exactly (HyperCloning 2409.12903, LEMON 2310.07999).
    `gaussian`: W + X, which the network sees at once.
    `shrink_perturb`: keep·W + X (Ash & Adams 1910.08475), for models that learn new data badly
    after a warm start. Gains, shifts and biases stay, since a norm undoes what they would lose.

    How strong X is: `std`, its standard deviation (for null_space before it is projected), or
    `snr_db` = 10·log10(mean square of the tensor / mean square of the noise), in decibels, after
    shrinking and projection; 10 if neither is given, except that shrink_perturb needs one.
    `only` are patterns of tensor names. `mask: new` touches what growth added and nothing else:
    rows that produce a new unit, and whole tensors of new layers. New are all units but the first
    that each old unit went to, over all steps so far; columns that read new units are not new rows.
    With a mask, `snr_db` holds for the rows that are touched.
    """

    op: Literal["noise"] = "noise"
    kind: NoiseKind = "null_space"
    snr_db: float | None = Field(default=None, ge=-100, le=200)
    std: float | None = Field(default=None, gt=0, le=1e3)
    keep: float | None = Field(default=None, gt=0, le=1)
    only: tuple[str, ...] = ()
    mask: Literal["new"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _default_level(cls, data: Any) -> Any:
        """Spell out the default, so that the resolved recipe shows it."""
        if not isinstance(data, dict) or data.get("kind") == "shrink_perturb":
            return data
        given = any(data.get(key) is not None for key in ("snr_db", "std"))
        return data if given else {**data, "snr_db": SNR_DB}

    @model_validator(mode="after")
    def _consistent(self) -> AddNoise:
        if self.snr_db is not None and self.std is not None:
            raise ValueError("snr_db and std both say how strong the noise is: give one")
        shrinking = self.kind == "shrink_perturb"
        if shrinking and self.keep is None:
            raise ValueError("shrink_perturb needs keep, the share of each weight that stays")
        if shrinking and self.snr_db is None and self.std is None:
            raise ValueError("shrink_perturb needs std or snr_db, the strength of its noise")
        if not shrinking and self.keep is not None:
            raise ValueError(f"keep belongs to kind shrink_perturb, not to {self.kind}")
        if self.kind == "null_space" and self.snr_db is not None and self.snr_db < 0:
            raise ValueError(
                "null_space noise louder than the weights (snr_db below 0) cancels on paper only: "
                "rounding errors grow with it from layer to layer"
            )
        if self.mask and self.kind == "null_space":
            raise ValueError(
                "mask does not go with kind null_space, which touches only what nobody sees"
            )
        return self

    def grow(self, family: Family, sizes: Mapping[str, int]) -> Growth:
        """Noise of this kind and strength."""
        return Growth(
            noise=Noising(
                kind=self.kind,
                snr_db=self.snr_db,
                std=self.std,
                keep=1.0 if self.keep is None else self.keep,
                only=self.only,
                new_only=self.mask == "new",
            )
        )
