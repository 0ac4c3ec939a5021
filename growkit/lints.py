"""What a trainer should know of a grown model: copies that nothing separates, dead units.

Two equal units with equal gradients stay equal for ever under deterministic training (algebra of
1511.05641 and 2409.12903); a unit that is zero on both sides gets no gradient at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from growkit.axes import AxisMap
from growkit.family import Family


def lints(family: Family, maps: Mapping[str, AxisMap], *, noisy: bool) -> Iterable[str]:
    """Warnings about the maps of a whole recipe; `noisy` if a step separates copies."""
    for axis, m in maps.items():
        if family.axes[axis] in ("stream", "neurons", "heads"):
            copies = np.bincount(m.write.index[m.write.coef != 0], minlength=m.old)
            reads = m.read.coef[m.read.coef != 0]
            if copies.max(initial=0) > 1 and not noisy and np.ptp(reads) == 0:
                yield (
                    f"{axis}: copies are equal and stay equal in training without dropout; "
                    "add a noise step"
                )
        if family.axes[axis] in ("neurons", "heads"):
            dead = m.write.zero_rows & m.read.zero_rows & ~m.fresh
            if dead.any() and not noisy:
                yield f"{axis}: {int(dead.sum())} units are zero on both sides and get no gradient"
