"""The dtypes of safetensors: names, sizes in bytes, and which of them can be grown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

# safetensors' names of the dtypes that can be grown, with bytes per element; others are only copied
FLOATS: Mapping[str, int] = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


ITEM_BYTES: Mapping[str, int] = {
    **FLOATS,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "BOOL": 1,
}


DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


DtypeName = Literal["keep", "float64", "float32", "bfloat16", "float16"]
