"""Tiny random transformers models of every family and head class, for the tests of families.

Each module here lists models as `MODELS`: name → `Tiny`, with names such as "gemma2/causal"; what
stands before the slash is the family's name in growkit. Axes have different sizes, so that no axis
can pass for another, but where the config says that two are one, or leaves a size to another's.
What each growth of each model must keep is what docs/families.md says.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest

from growkit.families.load import family_names

LEADERS = ("causal", "masked_lm", "generation")  # heads that say most of a family
QUICK = ("width 3/2x", "width, depth, noise")  # hold all that the others do


@dataclass(frozen=True)
class Tiny:
    """How to make one tiny model."""

    cls: str  # class of transformers
    config: Mapping[str, Any]  # of its config class
    kwargs: Mapping[str, Any] = field(default_factory=dict)  # of the class itself


@cache
def models() -> dict[str, Tiny]:
    """All tiny models by name."""
    every: dict[str, Tiny] = {}
    for module in pkgutil.iter_modules(__path__):
        listed = importlib.import_module(f"{__name__}.{module.name}").MODELS
        assert not every.keys() & listed.keys()
        every |= listed
    return every


@cache
def families() -> dict[str, list[str]]:
    """The names of each shipped family's models; the first says most of the family."""
    return {
        family: sorted(
            (name for name in models() if name.startswith(family + "/")),
            key=lambda name: (name.partition("/")[2] not in LEADERS, name),
        )
        for family in family_names()
    }


def by_speed(growths: tuple[str, ...] = (), every: int = 1) -> list[Any]:
    """Parameters for a test over all models, or models × growths: the first quick, the rest slow.

    Quick is one model of every n-th family, with the growths that find most mistakes.
    """
    params = []
    for place, names in enumerate(families().values()):
        for name in names:
            leads = name == names[0] and place % every == 0
            for growth in growths or ("",):
                quick = leads and (not growth or growth in QUICK)
                marks = [pytest.mark.model(name), *([] if quick else [pytest.mark.slow])]
                values = (name, growth) if growth else (name,)
                params.append(pytest.param(*values, marks=marks, id=" ".join(values)))
    return params
