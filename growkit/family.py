"""Family files: which tensors a kind of model has on disk, on which axes, and what these cross.

One YAML per family. A line of `modules` names a module and what it is:

    lin OUT IN          linear map: weight [OUT, IN], bias [OUT]
    lint OUT IN         the same, stored transposed: weight [IN, OUT]
    emb TABLE AXIS      table: weight [TABLE, AXIS]
    rms AXIS, ln AXIS   norm: gain [AXIS], for ln also shift [AXIS]
    raw DIM DIM …       dims with roles: + produced, - consumed, * gain, ~ shift, # table, = kept

`> stream` after a norm says that its output is the stream itself. `?` after a name makes the
module optional, `{axis}` in a name is an axis like any other. `axes` says what each axis is
(stream, heads, kv_heads, query, key, value, neurons, table, layers): what may pass through it, and
so what the plan can prove, follows from that and from the norms; it is never looked up by family
name.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from growkit.errors import CheckpointError
from growkit.expression import Expression

USER_TABLES = ("vocab", "positions")  # tables whose size a recipe may name
_NUMBER = re.compile(r"(?:(?<=\.)|^)[0-9]+(?=\.|$)")
MAX_NAME = 10_000  # characters that aliases may make of a name


@dataclass(frozen=True, slots=True)
class Pattern:
    """One kind of tensor on disk."""

    name: str  # "layers.{layers}.mlp.up_proj.weight"
    module: str
    slots: tuple[str | int, ...]  # per number in the name: an axis, or the number itself
    dims: tuple[tuple[Expression, str], ...]  # (axes, role) of each dim
    norm: str = ""  # "rms" | "ln"
    to_stream: bool = False  # what this norm puts out is the stream itself
    optional: bool = False

    @property
    def consumed(self) -> Expression | None:
        """The axes that this tensor reads, if it is a weight."""
        return next((e for e, role in self.dims if role == "-"), None)


@dataclass(frozen=True, slots=True)
class Head:
    """The output head and its tie to the embedding."""

    weight: str
    tied: str
    scale_at: str  # the norm that feeds the head and can carry a factor
    classes: tuple[str, ...]  # parts of the class names that have this head
    default: bool  # tied when config.json does not say
    also: tuple[str, ...] = ()  # further modules that read what that norm puts out
    ties: Mapping[str, str] = field(default_factory=dict)  # tensor → its twin; weight → tied first


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary positions on the query and key axes."""

    pairs: str  # "halves": coordinate i turns with i + d/2
    theta: tuple[str, ...]  # config keys, first present counts
    type: tuple[str, ...] = ()
    refuse: tuple[str, ...] = ()  # rope types whose frequencies depend on more than theta


@dataclass(frozen=True, slots=True)
class Family:
    """A family file, parsed."""

    name: str
    about: str
    model_types: tuple[str, ...]
    axes: Mapping[str, str]  # axis → kind
    config: Mapping[str, tuple[Expression, ...]]  # config key → expressions that all equal it
    patterns: Mapping[str, Pattern]  # by name with every number written as #
    residual: str = "pre"  # pre | post
    eps: str = ""
    prefixes: tuple[str, ...] = ()
    alias: Mapping[str, str] = field(default_factory=dict)
    ignore: frozenset[str] = frozenset()
    like: Mapping[str, str] = field(default_factory=dict)  # axis → the axis whose map it takes
    defaults: Mapping[str, str] = field(default_factory=dict)
    require: tuple[str, ...] = ()
    lists: Mapping[str, str] = field(default_factory=dict)  # per-layer config list → layer axis
    thresholds: Mapping[str, str] = field(default_factory=dict)  # config number of a layer → axis
    scores: Mapping[str, Any] = field(default_factory=dict)
    rope: Rope | None = None
    head: Head | None = None

    def of_kind(self, *kinds: str) -> tuple[str, ...]:
        """Axes of these kinds, in the order of the file."""
        return tuple(a for a, kind in self.axes.items() if kind in kinds)

    @property
    def followers(self) -> Mapping[str, str]:
        """Axes that only have the size of a stream, with that stream: {"pool": "hidden"}."""
        out: dict[str, str] = {}
        for expressions in self.config.values():
            names = [e.name for e in expressions if e.kind == "axis"]
            streams = [n for n in names if self.axes[n] == "stream"]
            if streams:
                out |= {n: streams[0] for n in names if self.axes[n] != "stream"}
        return out

    @property
    def user_axes(self) -> Mapping[str, tuple[str, ...]]:
        """The axes that recipes name, each with the family's axes behind it."""
        out: dict[str, tuple[str, ...]] = {}
        for axis, kind in self.axes.items():
            if kind in ("query", "key", "value"):
                out["head_dim"] = (*out.get("head_dim", ()), axis)
            elif axis not in self.followers and (kind != "table" or axis in USER_TABLES):
                out[axis] = (axis,)
        return out

    def match(self, name: str) -> tuple[Pattern, tuple[int, ...]] | None:
        """The pattern of a tensor on disk and the numbers in its name; None if it is to be ignored.

        Raises CheckpointError with the nearest pattern if there is none, or more than one.
        """
        plain = name
        for old, new in self.alias.items():
            plain = plain.replace(old, new)
            if len(plain) > MAX_NAME:
                raise CheckpointError(
                    f"tensor {name}: the aliases of family {self.name} make it endless",
                    hint="mend the family file",
                )
        spellings = [plain, *(plain[len(p) :] for p in self.prefixes if plain.startswith(p))]
        found: dict[str, tuple[Pattern, tuple[int, ...]]] = {}
        for spelling in spellings:
            shape = _NUMBER.sub("#", spelling)
            if shape in self.ignore:
                return None
            pattern = self.patterns.get(shape)
            if pattern is None:
                continue
            numbers = tuple(int(n) for n in _NUMBER.findall(spelling))
            if all(
                isinstance(s, str) or s == n for s, n in zip(pattern.slots, numbers, strict=True)
            ):
                found[pattern.name] = (pattern, numbers)
        if len(found) == 1:
            return next(iter(found.values()))
        if found:
            both = " and ".join(sorted(found))
            raise CheckpointError(
                f"tensor {name}: fits two patterns of family {self.name}: {both}",
                hint="the family file is ambiguous",
            )
        known = [p.name for p in self.patterns.values()]
        near = difflib.get_close_matches(
            _NUMBER.sub("{layers}", spellings[-1]), known, n=1, cutoff=0.0
        )
        raise CheckpointError(
            f"tensor {name}: no pattern of family {self.name} fits; the nearest is {near[0]}",
            hint="nothing is dropped silently: describe it in a family file (--family FILE)",
        )
