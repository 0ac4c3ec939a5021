"""The one table of dtypes: those of safetensors, with all that any room knows of each.

Rooms that need a view of it under other keys, such as torch's own objects, make it from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple


class Dtype(NamedTuple):
    """One dtype; only floats, which have digits, can be grown, all others are copied."""

    name: str  # in safetensors
    full: str  # in torch, transformers and recipes
    size: int  # bytes of an element
    numpy: str  # little endian; empty where numpy has none
    digits: int = 0  # significant bits of a float, with the one that is not stored
    exponent: int = 0  # bits of its exponent
    words: tuple[str, ...] = ()  # further names that recipes know

    @property
    def infinity(self) -> int:
        """The bits of +infinity; those of NaN are larger numbers.

        >>> hex(DTYPES["BF16"].infinity)
        '0x7f80'
        """
        return ((1 << self.exponent) - 1) << (self.digits - 1)


# In the order in which the reference writer stores them, the widest alignment first (`Dtype` in
# safetensors' tensor.rs, descending).
DTYPES: Mapping[str, Dtype] = {
    dtype.name: dtype
    for dtype in (
        Dtype("U64", "uint64", 8, "<u8"),
        Dtype("I64", "int64", 8, "<i8"),
        Dtype("F64", "float64", 8, "<f8", 53, 11, ("fp64", "f64", "double")),
        Dtype("F32", "float32", 4, "<f4", 24, 8, ("fp32", "f32", "float")),
        Dtype("U32", "uint32", 4, "<u4"),
        Dtype("I32", "int32", 4, "<i4"),
        Dtype("BF16", "bfloat16", 2, "", 8, 8, ("bf16",)),
        Dtype("F16", "float16", 2, "<f2", 11, 5, ("fp16", "f16", "half")),
        Dtype("U16", "uint16", 2, "<u2"),
        Dtype("I16", "int16", 2, "<i2"),
        Dtype("I8", "int8", 1, "<i1"),
        Dtype("U8", "uint8", 1, "<u1"),
        Dtype("BOOL", "bool", 1, "?"),
    )
}
ITEM_BYTES: Mapping[str, int] = {name: dtype.size for name, dtype in DTYPES.items()}
FLOATS: Mapping[str, str] = {name: d.full for name, d in DTYPES.items() if d.digits}

# dtypes of quantised weights, which are recognised in order to be refused by name, with their bits
QUANTISED_BITS: Mapping[str, int] = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6} | dict.fromkeys(
    ("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8
)

DtypeName = Literal["keep", "float64", "float32", "bfloat16", "float16"]  # what a recipe may ask


def holds(wide: str, narrow: str) -> bool:
    """Whether every value of the float dtype `narrow` is one of `wide` as well.

    >>> holds("F32", "BF16"), holds("F16", "BF16"), holds("BF16", "F16")
    (True, False, False)
    """
    w, n = DTYPES[wide], DTYPES[narrow]
    return w.digits >= n.digits and w.exponent >= n.exponent
