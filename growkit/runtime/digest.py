"""What identifies a result: the same digest means the same bytes.

The law: everything that can change a byte of the output goes in (recipe, formulas, layout, format
version), and so does what tells that a source file is still the same one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from operator import attrgetter
from typing import Any

import numpy as np

from growkit.algebra.kernel import Kernel
from growkit.checkpoints.types import FileIdentity, Stored
from growkit.planning.formula import Kernels, Noise, Term
from growkit.planning.plan import Plan

FORMAT = 3  # raise when the same plan would be written to other bytes


# reading fields is several times faster than the repr of a dataclass
_STORED = attrgetter(*(f.name for f in fields(Stored)))
_NOISE = attrgetter(*(f.name for f in fields(Noise) if f.name != "signal"))


def digest(plan: Plan, headers: Iterable[bytes], recipe_text: str) -> str:
    """sha256 of recipe, formulas, layout (`headers`), format version and source files."""
    sha = hashlib.sha256()
    kernel_texts: dict[Kernel | None, str] = {None: ""}
    list_texts: dict[Kernels, str] = {}  # many tensors share their kernels

    def of_kernel(kernel: Kernel | None) -> str:
        if kernel not in kernel_texts:
            assert kernel is not None
            inner = hashlib.sha256(repr(kernel.shape).encode())
            for array in (kernel.index, kernel.coef, kernel.left, kernel.right, kernel.dense):
                inner.update(b"-" if array is None else np.ascontiguousarray(array).tobytes())
            kernel_texts[kernel] = inner.hexdigest()
        return kernel_texts[kernel]

    def of_kernels(kernels: Kernels) -> str:
        if kernels not in list_texts:
            list_texts[kernels] = repr([of_kernel(k) for k in kernels])
        return list_texts[kernels]

    def of_term(term: Term, before: Mapping[int, str]) -> str:
        """Its text; `before` are the texts of terms before it, which noise may have for a signal"""
        source, last = term.source, f"{of_kernels(term.kernels)}, {term.scale!r})"
        if isinstance(source, Noise):
            signal = [before.get(id(t)) or of_term(t, before) for t in source.signal]
            return f"({_NOISE(source)!r}, {signal!r}, {last}"
        identified_by = _STORED(source) if isinstance(source, Stored) else source.shape
        return f"({identified_by!r}, {last}"

    identity = {
        n: [_identity(f) for f in (*c.files, *(f for s in c.modules for f in s.stored.files))]
        for n, c in plan.sources.items()
    }
    revisions = {n: c.revision for n, c in plan.sources.items()}
    for text in (
        f"growkit format {FORMAT}",
        recipe_text,
        json.dumps([plan.config, identity, revisions], sort_keys=True),
    ):
        sha.update(text.encode() + b"\0")
    for formula in plan.formulas:
        text = repr((formula.name, formula.shape, formula.dtype))
        texts: dict[int, str] = {}
        for term in formula.terms:
            texts[id(term)] = term_text = of_term(term, texts)
            text += term_text
        sha.update(text.encode())
    for header in headers:
        sha.update(header)
    return sha.hexdigest()


def _identity(file: FileIdentity) -> dict[str, Any]:
    """What tells the file apart; a file that is not from the Hub has no blob."""
    return {key: value for key, value in asdict(file).items() if value is not None}
