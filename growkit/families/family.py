"""Family files: which tensors a kind of model has on disk, on which axes, and what these cross.

One YAML per family. A line of `modules` names a module and what it is:

    lin OUT IN          linear map: weight [OUT, IN], bias [OUT]
    lint OUT IN         the same, stored transposed: weight [IN, OUT]
    emb TABLE AXIS      table: weight [TABLE, AXIS]
    rms AXIS, ln AXIS   norm: gain [AXIS], for ln also shift [AXIS]; `per UNITS`: gain [UNITS, AXIS]
    rms1 AXIS           the same, stored as gain - 1
    gain AXIS           elementwise factor without statistics (LayerScale), on what the modules
                        listed before it in its layer put out
    raw DIM DIM …       dims with roles: + produced, - consumed, * gain, ~ shift, # table, = kept

`> stream` after a norm says that its output is the stream itself, `> branch` that it is what a
branch adds to the stream; `> activation` after a module that a non-linearity stands between what it
puts out and the stream. `?WORD` after a name makes the module be there when `presence` says so of
the word; `?` makes it optional, `??` optional in every layer by itself, where neither config nor
class can say. `biases` says which modules have a bias. `{axis}` in a name is an axis like any
other, `{layers:1}` one that starts at layer 1.
An axis of one stack or tower has its name before a dot, `encoder.layers`: recipes call it so, and
with `layers` mean all stacks'; where a dot means something else it is written `encoder_layers`.
`axes` says what each axis is (see `KINDS`): what may pass through it, and so what the plan can
prove, follows from that and from the norms; it is never looked up by family name.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import zip_longest
from typing import Any

from growkit.algebra.expression import Expression
from growkit.checkpoints.names import pattern_of
from growkit.errors import CheckpointError, FamilyError

KINDS: Mapping[str, str] = {
    "stream": "the residual stream, which branches add to",
    "latent": "an inner stream: read and written linearly, perhaps behind a norm of its own",
    "heads": "query heads",
    "kv_heads": "key and value heads, each shared by consecutive query heads",
    "query": "coordinates of a query head",
    "key": "coordinates of a key head",
    "value": "coordinates of a value head",
    "neurons": "units behind a non-linearity",
    "experts": "experts behind a router",
    "choices": "how many experts, or groups of them, a router takes; grows with the experts",
    "table": "rows that are looked up",
    "layers": "layers of one stack",
    "fixed": "does not grow",
}
USER_TABLES = ("vocab", "positions")  # tables whose size a recipe may name
MAX_NAME = 10_000  # characters that aliases may make of a name
_NUMBER = r"(?:(?<=\.)|^)([0-9]+)(?=\.|$)"  # in a name: a whole word between dots
SLOT = re.compile(r"\{(\w+)(?::([0-9]+))?\}|" + _NUMBER)  # {axis}, {axis:first} or a number

_COUNTS = {("lin", 2), ("lint", 2), ("emb", 2), ("rms", 1), ("rms1", 1), ("ln", 1), ("gain", 1)}


@dataclass(frozen=True, slots=True)
class Pattern:
    """One kind of tensor on disk."""

    name: str  # "layers.{layers}.mlp.up_proj.weight"
    module: str
    slots: tuple[str | int, ...]  # per number in the name: an axis, or the number itself
    dims: tuple[tuple[Expression, str], ...]  # (axes, role) of each dim
    norm: str = ""  # "rms" | "ln"
    to_stream: bool = False  # what this norm puts out is the stream itself
    nonlinear: bool = False  # what this puts out passes a non-linearity
    branch: bool = False  # what this norm or gain puts out is added to the stream
    offset: float = 0.0  # gains are stored minus this
    optional: bool = False
    by_layer: bool = False  # optional in every layer by itself
    first: int = 0  # the lowest layer that has it
    group: str = ""  # optional tensors of one group are there together or not at all
    kind: str = ""  # the kind of layers that have it, a word of `presence`

    def has(self, numbers: tuple[int, ...]) -> bool:
        """Whether its tensors may have these numbers in their names."""
        if len(numbers) != len(self.slots):
            return False
        for slot, number in zip(self.slots, numbers, strict=True):
            if slot != number and not isinstance(slot, str):
                return False
        return True

    @property
    def is_factor(self) -> bool:
        """Whether it multiplies elementwise, without statistics (LayerScale)."""
        return not self.norm and self.dims[-1:] != () and self.dims[-1][1] == "*"

    @property
    def consumed(self) -> Expression | None:
        """The axes that this tensor reads, if it is a weight."""
        return next((e for e, role in self.dims if role == "-"), None)

    @property
    def over(self) -> Expression | None:
        """The axes that a norm takes its statistics over, if this is a norm's gain."""
        return self.dims[-1][0] if self.norm and self.dims[-1][1] == "*" else None


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
    power: Mapping[str, float] = field(default_factory=dict)  # logits carry size(axis) ** power


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary positions on the query and key axes."""

    pairs: str  # a layout of `growkit.positions`
    theta: tuple[tuple[str, ...], ...]  # each base: config keys, first present counts
    base: tuple[float, ...]  # what each is where the config does not say it
    type: tuple[str, ...] = ()
    refuse: tuple[str, ...] = ()  # rope types whose frequencies depend on more than theta
    listed: str = ""  # its type, where that lists a factor for every pair
    numbered: bool = False  # frequencies depend on a pair's number too (the ramp of YaRN)
    part: float = 1.0  # how much of a head turns
    turned: int | None = None  # how many coordinates turn, where that does not follow the size

    def turns(self, size: int) -> int:
        """How many of a head's `size` coordinates turn."""
        return int(size * self.part) if self.turned is None else min(self.turned, size)


@dataclass(frozen=True, slots=True)
class Alibi:
    """Linear biases on attention scores, one slope per head."""

    slopes: str  # a formula of `growkit.positions`
    scaled: bool = False  # divided by √head_dim together with the scores


@dataclass(frozen=True, slots=True)
class Attention:
    """The axes of one kind of attention; kv_heads is empty where every head has its own, or all
    share one."""

    heads: str
    kv_heads: str
    query: str
    key: str
    value: str

    @property
    def head_dim(self) -> str:
        """What recipes call the coordinates of its heads."""
        return self.heads.removesuffix("heads") + "head_dim"


@dataclass(frozen=True, slots=True)
class Period:
    """A config number n that makes every n-th layer another kind; no key: n is in the code."""

    axis: str
    unless: str = ""  # a config list that says it layer by layer
    start: int = 1  # layer i is special iff (i + start) % n == 0
    default: int = 0  # n where the config does not say it
    values: tuple[Any, Any] | None = None  # of other and special layers, in the list `unless`
    others: str = ""  # a config list of the numbers of further layers that are not special


@dataclass(frozen=True, slots=True)
class Threshold:
    """A config number of the first layer that is of another kind than those before it."""

    axis: str
    unless: str = ""  # a config list that says it layer by layer
    values: tuple[Any, Any] | None = None  # of layers from it on and before it, in that list
    only: str = ""  # a config switch without which the number says nothing


@dataclass(frozen=True, slots=True)
class Presence:
    """When the modules are there that lines of a family file mark with one word."""

    required: bool = False  # this config or its class says that they are
    axis: str = ""  # the layers of which only some have them
    layers: tuple[tuple[str, Any], ...] = ()  # config key, what it says of such a layer: any holds
    others: bool = False  # it is the layers that `layers` does not say


@dataclass(frozen=True, slots=True)
class Family:
    """A family file, parsed."""

    name: str
    about: str
    model_types: tuple[str, ...]
    axes: Mapping[str, str]  # axis → kind
    config: Mapping[str, tuple[Expression, ...]]  # config key → expressions that all equal it
    patterns: Mapping[str, Pattern]  # by name
    residual: str = "pre"  # pre | post
    eps: str | float = ""  # config key, or the number where the code has it
    prefixes: tuple[str, ...] = ()
    alias: Mapping[str, str] = field(default_factory=dict)
    ignore: frozenset[str] = frozenset()  # buffers
    unused: frozenset[str] = frozenset()  # of old files: today's classes ignore them
    like: Mapping[str, str] = field(default_factory=dict)  # axis → the axis whose map it takes
    defaults: Mapping[str, str] = field(default_factory=dict)
    require: tuple[str, ...] = ()
    lists: Mapping[str, str] = field(default_factory=dict)  # per-layer config list → layer axis
    thresholds: Mapping[str, Threshold] = field(default_factory=dict)  # key → what it separates
    presence: Mapping[str, Presence] = field(default_factory=dict)  # word → when it is there
    indices: Mapping[str, str] = field(default_factory=dict)  # config list of layer numbers → axis
    outputs: Mapping[str, str] = field(default_factory=dict)  # what layers put out → layer axis
    output_names: Mapping[str, str] = field(default_factory=dict)  # the names of all of it → axis
    layer_heads: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # → layers and heads
    periods: Mapping[str, Period] = field(default_factory=dict)  # config key → what it counts
    mirrors: Mapping[str, Expression] = field(default_factory=dict)  # config keys written, not read
    derived: Mapping[str, Expression] = field(default_factory=dict)  # axis → its size, always
    limits: Mapping[str, str] = field(default_factory=dict)  # user axis → why it does not grow
    padding: Mapping[str, int] = field(default_factory=dict)  # table → rows before its first entry
    joins: Mapping[str, str] = field(default_factory=dict)  # layer axis → what joins after layer 0
    bare_norms: Mapping[Expression, str] = field(default_factory=dict)  # norms without tensors
    multipliers: Mapping[str, tuple[str, float]] = field(default_factory=dict)  # of embeddings
    scores: Mapping[str, Any] = field(default_factory=dict)
    rope: Rope | None = None
    alibi: Alibi | None = None
    head: Head | None = None
    _shapes: dict[str, list[Pattern]] = field(default_factory=dict, repr=False, compare=False)
    _matched: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def of_kind(self, *kinds: str) -> tuple[str, ...]:
        """Axes of these kinds, in the order of the file."""
        return tuple(a for a, kind in self.axes.items() if kind in kinds)

    @property
    def attentions(self) -> tuple[Attention, ...]:
        """Its kinds of attention: the first heads, query, key and value axes belong together."""
        heads, kv = self.of_kind("heads"), self.of_kind("kv_heads")
        kv = kv if len(kv) == len(heads) else ()
        columns = [heads, kv, *(self.of_kind(k) for k in ("query", "key", "value"))]
        rows = zip_longest(*columns, fillvalue="")
        return tuple(Attention(*row) for row in rows if row[0])

    @property
    def followers(self) -> Mapping[str, str]:
        """Axes whose size follows from a stream's, with that stream: {"pool": "hidden"}."""
        out: dict[str, str] = {}
        streams = self.of_kind("stream", "latent")
        for expressions in self.config.values():
            names = [e.name for e in expressions if e.kind == "axis"]
            leader = next((n for n in names if n in streams), None)
            if leader:
                out |= {n: leader for n in names if n != leader}
        for axis, expression in self.derived.items():
            out |= dict.fromkeys([axis], next((s for s in streams if s in expression.axes), ""))
        return {axis: leader for axis, leader in out.items() if leader}

    @property
    def user_axes(self) -> Mapping[str, tuple[str, ...]]:
        """The axes that recipes name, each with the family's axes behind it."""
        out: dict[str, tuple[str, ...]] = {}
        inner = {a: t for t in self.attentions for a in (t.query, t.key, t.value)}
        for axis, kind in self.axes.items():
            if axis in inner:
                name = inner[axis].head_dim
                out[name] = (*out.get(name, ()), axis)
            elif (
                axis not in self.followers
                and kind not in ("choices", "fixed")
                and (kind != "table" or axis in USER_TABLES)
            ):
                out[axis] = (axis,)
        return out

    def user_sizes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """Sizes by the axis names that recipes use: `head_dim` for query, key and value axes."""
        return {u: sizes[axes[0]] for u, axes in self.user_axes.items() if axes[0] in sizes}

    def size_after(self, axis: str, sizes: Mapping[str, int]) -> int:
        """The size of a follower when its stream has the size given."""
        if axis in self.derived:
            return self.derived[axis].size(sizes)
        return sizes[self.followers[axis]]

    def match(self, name: str) -> tuple[Pattern, tuple[int, ...]] | None:
        """The pattern of a tensor on disk and the numbers in its name; None if it is to be ignored.

        Raises CheckpointError with the nearest pattern if there is none, or more than one.
        """
        shape, numbers = numbered(name)
        if shape not in self._matched:
            self._matched[shape] = self._candidates(shape)
        ignored, candidates = self._matched[shape]
        if ignored:
            return None
        fitting = [p for p in candidates if p.has(numbers)]
        if len(fitting) == 1:
            return fitting[0], numbers
        if fitting:
            both = " and ".join(sorted(p.name for p in fitting))
            raise CheckpointError(
                f"tensor {name}: fits two patterns of family {self.name}: {both}",
                hint="the family file is ambiguous",
            )
        names = [p.name for p in self.patterns.values()]
        near = difflib.get_close_matches(
            spellings(shape, self.alias, self.prefixes)[-1].replace("#", "{layers}"),
            names,
            n=1,
            cutoff=0.0,
        )
        raise CheckpointError(
            f"tensor {name}: no pattern of family {self.name} fits; the nearest is {near[0]}",
            hint=f"leave it out (--drop {pattern_of(name)}), or describe it in a family file "
            "(--family FILE)",
        )

    def why_ignored(self, name: str) -> str:
        """Why a tensor that `match` ignores is left out."""
        shape, _ = numbered(name)
        if self.unused.intersection(spellings(shape, self.alias, self.prefixes)):
            return "of an old file, and ignored by today's classes"
        return "a buffer that the model makes anew"

    def _candidates(self, shape: str) -> tuple[bool, list[Pattern]]:
        """Whether names of this shape are ignored, and the patterns that they may fit."""
        for pattern in () if self._shapes else self.patterns.values():
            self._shapes.setdefault(SLOT.sub("#", pattern.name), []).append(pattern)
        each = spellings(shape, self.alias, self.prefixes)
        ignored = any(s in self.ignore or s in self.unused for s in each)
        fitting = {p.name: p for s in each for p in self._shapes.get(s, ())}
        return ignored, [*fitting.values()]


def numbered(name: str) -> tuple[str, tuple[int, ...]]:
    """A name with # in place of its numbers, and these.

    >>> numbered("layers.3.norm.weight")
    ('layers.#.norm.weight', (3,))
    """
    words = name.split(".")
    places = _number_places(words)
    numbers = tuple([int(words[place]) for place in places])
    for place in places:
        words[place] = "#"
    return ".".join(words), numbers


def spellings(shape: str, alias: Mapping[str, str], prefixes: Iterable[str]) -> list[str]:
    """A name as its family may spell it: without old words, without each prefix.

    >>> spellings("bert.LayerNorm.gamma", {"gamma": "weight"}, ["bert."])
    ['bert.LayerNorm.weight', 'LayerNorm.weight']
    """
    for old, new in alias.items():
        shape = shape.replace(old, new)
        if len(shape) > MAX_NAME:
            raise FamilyError(
                "alias: the aliases make names without end",
                hint="leave out aliases whose new word holds the old one",
            )
    return [shape, *(shape.removeprefix(p) for p in prefixes if shape.startswith(p))]


def renumber(name: str, numbers: Sequence[int]) -> str:
    """A name with these numbers in place of its last ones; what is before them may be a prefix.

    >>> renumber("0.layers.3.norm.weight", [7])
    '0.layers.7.norm.weight'
    """
    words = name.split(".")
    places = _number_places(words)
    last = places[len(places) - len(numbers) :]
    for place, number in zip(last, numbers, strict=True):
        words[place] = str(number)
    return ".".join(words)


def _number_places(words: Sequence[str]) -> list[int]:
    """Which words of a name are numbers; a model may have hundreds of thousands of names."""
    return [place for place, w in enumerate(words) if w.isdecimal() and w.isascii()]


def spell(name: str, numbers: Sequence[int]) -> str:
    """A pattern's name with its numbers filled in.

    >>> spell("layers.{layers}.norm.weight", [3])
    'layers.3.norm.weight'
    """
    return _template(name) % tuple(numbers)


@cache
def _template(name: str) -> str:
    """A pattern's name with %d for each of its numbers."""
    return SLOT.sub("%d", name.replace("%", "%%"))


def module_tensors(word: str, args: list[str]) -> dict[str, list[str]] | None:
    """Suffix → dims with roles of a module kind; None if there is no such kind."""
    if word == "raw" and all(a[-1] in "+-*~#=" for a in args):
        return {"": args}
    if len(args) == 3 and args[1] == "per" and word in ("rms", "ln"):
        axis, units = args[0], args[2]
        return {".weight": [units + "*", axis + "*"], ".bias": [units + "~", axis + "~"]}
    if (word, len(args)) not in _COUNTS:
        return None
    one, *two = args
    other = two[0] if two else ""
    return {
        "lin": {".weight": [one + "+", other + "-"], ".bias": [one + "+"]},
        "lint": {".weight": [other + "-", one + "+"], ".bias": [one + "+"]},
        "emb": {".weight": [one + "#", other + "+"]},
        "rms": {".weight": [one + "*"]},
        "rms1": {".weight": [one + "*"]},
        "ln": {".weight": [one + "*"], ".bias": [one + "~"]},
        "gain": {"": [one + "*"]},
    }[word]
