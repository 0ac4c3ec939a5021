"""One tiny model of each shipped family."""

from __future__ import annotations

from growkit.families.load import family_names
from support import zoo

LEADERS = ("causal", "masked_lm", "generation")  # tried first: heads that say most of a family


MODELS = {
    family: sorted(
        (m for m in zoo.models() if m.startswith(family + "/")),
        key=lambda m: (m.partition("/")[2] not in LEADERS, m),
    )
    for family in family_names()
}
