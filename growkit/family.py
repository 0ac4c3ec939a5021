"""Family files: which tensors a kind of model has on disk, on which axes, and what these cross.

One YAML per family. A line of `modules` names a module and what it is:

    lin OUT IN          linear map: weight [OUT, IN], bias [OUT] lint OUT IN         the same,
    stored transposed: weight [IN, OUT] emb TABLE AXIS      table: weight [TABLE, AXIS] rms AXIS,
    ln AXIS   norm: gain [AXIS], for ln also shift [AXIS]; `> stream` if its output is the stream
    raw DIM DIM …       dims with their roles: + produced, - consumed, * gain, ~ shift, # table, =
    kept

`?` after a name makes the module optional, `{axis}` in a name is an axis like any other. `axes`
says what each axis is (stream, heads, kv_heads, query, key, value, neurons, table, layers): what
may pass through it, and so what the plan can prove, follows from that and from the norms; it is
never looked up by family name. This room reads its own YAML and opens nothing else.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from growkit.errors import CheckpointError, FamilyError, did_you_mean
from growkit.expression import Expression, parse

FOLDER = Path(__file__).parent / "families"
USER_TABLES = ("vocab", "positions")  # tables whose size a recipe may name
KINDS = (
    "stream", "heads", "kv_heads", "query", "key", "value", "neurons", "table", "layers"
)  # fmt: skip
KEYS = (
    "family", "about", "model_type", "extends", "prefix", "alias", "ignore", "axes", "like",
    "config", "defaults", "require", "lists", "thresholds", "residual", "eps", "scores", "rope",
    "head", "modules", "variants",
)  # fmt: skip
_NUMBER = re.compile(r"(?:(?<=\.)|^)\d+(?=\.|$)")
_SLOT = re.compile(r"\{(\w+)\}|(?:(?<=\.)|^)(\d+)(?=\.|$)")


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


# -- loading -------------------------------------------------------------------------------------


def family_names() -> list[str]:
    """The families that ship with growkit."""
    return sorted(p.stem for p in FOLDER.glob("*.yaml"))


def family_text(name: str) -> str:
    """The YAML of a shipped family, comments included. Raises FamilyError for an unknown name."""
    if name not in family_names():
        raise FamilyError(f'family "{name}": not known', hint=did_you_mean(name, family_names()))
    return (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")


@cache
def _shipped(name: str) -> dict[str, Any]:
    return read_yaml(family_text(name), f"family {name}")


def read_yaml(text: str, where: str) -> dict[str, Any]:
    """Parse a family file's text. Raises FamilyError if it is not a plain YAML mapping."""
    try:
        data = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, RecursionError) as error:
        problem = getattr(error, "problem", None) or error
        raise FamilyError(f"{where}: not valid YAML: {problem}") from None
    if not isinstance(data, dict):
        raise FamilyError(f"{where}: expected a mapping, found {type(data).__name__}")
    return data


def find_family(config: Mapping[str, Any], file: Path | None = None) -> dict[str, Any]:
    """The family file for a config: `file` if given, else the shipped one of its model_type."""
    if file is not None:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise FamilyError(f"{file}: cannot be read: {error}") from None
        return read_yaml(text, str(file))
    model_type = config.get("model_type")
    known = {t: n for n in family_names() for t in _types(_shipped(n))}
    if not isinstance(model_type, str):
        raise FamilyError(
            'config.json: no "model_type", so the family is unknown',
            hint="add it, or give the family file: --family FILE",
        )
    if model_type not in known:
        raise FamilyError(
            f'config.json: model_type "{model_type}" has no family file',
            hint=did_you_mean(model_type, known) + "; or write one and pass --family FILE",
        )
    return _shipped(known[model_type])


def build_family(data: Mapping[str, Any], config: Mapping[str, Any], names: set[str]) -> Family:
    """A family for one checkpoint: its file, then the variants that config and tensors ask for.

    `names` are the modules present, so that a variant can depend on one being absent.
    Raises FamilyError naming the line that is wrong.
    """
    merged = _extend(data)
    where = f"family {merged.get('family', '?')}"
    for variant in merged.pop("variants", None) or ():
        conditions = dict(variant.get("when", {}))
        absent = conditions.pop("absent", None)
        if (absent is None or absent not in names) and all(
            config.get(k) == v for k, v in conditions.items()
        ):
            merged = _merge(merged, {k: v for k, v in variant.items() if k != "when"})
    for key in merged:
        if key not in KEYS:
            raise FamilyError(f"{where}: unknown key {key}", hint=did_you_mean(key, KEYS))
    try:
        return _parse(merged, where)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise FamilyError(f"{where}: {type(error).__name__}: {error}") from None


def _types(data: Mapping[str, Any]) -> list[str]:
    value = data.get("model_type", [])
    return [value] if isinstance(value, str) else list(value)


def _extend(data: Mapping[str, Any]) -> dict[str, Any]:
    data = {**data, "modules": _flat(data.get("modules") or {})}
    base = data.pop("extends", None)
    return _merge(_extend(_shipped(base)), data) if base else data


def _merge(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`change` on top of `base`; null deletes; module names count without their `?`."""
    out = dict(base)
    for key, value in change.items():
        if not isinstance(value, dict) or not isinstance(out.get(key), dict):
            out[key] = value
            continue
        value = _flat(value) if key == "modules" else value
        kept = {
            k: v for k, v in out[key].items() if k.rstrip("?") not in {n.rstrip("?") for n in value}
        }
        out[key] = kept | {k: v for k, v in value.items() if v is not None}
    return {k: v for k, v in out.items() if v is not None}


def _flat(modules: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in modules.items():
        if isinstance(value, dict):
            out |= _flat(value, prefix + name)
        else:
            out[prefix + name] = value
    return out


def _parse(data: Mapping[str, Any], where: str) -> Family:
    axes = dict(data["axes"])
    for axis, kind in axes.items():
        if kind not in KINDS:
            raise FamilyError(
                f'{where}: axis {axis}: unknown kind "{kind}"', hint=did_you_mean(kind, KINDS)
            )
    residual = data.get("residual", "pre")
    if residual not in ("pre", "post"):
        raise FamilyError(f'{where}: residual: expected pre or post, found "{residual}"')
    patterns: dict[str, Pattern] = {}
    for line, kind in data["modules"].items():
        for pattern in _patterns(line, str(kind), axes, residual, where):
            shape = _SLOT.sub("#", pattern.name)
            if shape in patterns:
                raise FamilyError(f"{where}: {line}: {patterns[shape].name} is described twice")
            patterns[shape] = pattern

    def many(value: Any) -> tuple[str, ...]:
        return () if value is None else (value,) if isinstance(value, str) else tuple(value)

    head, rope = data.get("head"), data.get("rope")
    return Family(
        name=data["family"],
        about=data.get("about", ""),
        model_types=tuple(_types(data)),
        axes=axes,
        config={k: tuple(parse(str(e)) for e in _listed(v)) for k, v in data["config"].items()},
        patterns=patterns,
        residual=residual,
        eps=data.get("eps", ""),
        prefixes=many(data.get("prefix")),
        alias=data.get("alias", {}),
        ignore=frozenset(_SLOT.sub("#", i) for i in data.get("ignore", ())),
        like=data.get("like", {}),
        defaults={k: str(v) for k, v in data.get("defaults", {}).items()},
        require=many(data.get("require")),
        lists=data.get("lists", {}),
        thresholds=data.get("thresholds", {}),
        scores=data.get("scores", {}),
        rope=rope and Rope(
            rope["pairs"], many(rope["theta"]), many(rope.get("type")), many(rope.get("refuse"))
        ),
        head=Head(
            head["weight"],
            head.get("tied") or "",
            head.get("scale_at") or "",
            many(head["classes"]),
            bool(head["default"]),
            many(head.get("also")),
            {head["weight"]: head.get("tied") or "", **(head.get("ties") or {})},
        )
        if head
        else None,
    )  # fmt: skip


def _listed(value: Any) -> list[Any]:
    """A YAML value that may be one thing or a list of them, as a list."""
    return list(value) if isinstance(value, list) else [value]


def _patterns(
    line: str, kind: str, axes: Mapping[str, str], residual: str, where: str
) -> list[Pattern]:
    """The tensors that one module line describes."""
    module, optional = line.rstrip("?"), line.endswith("?")
    body, _, target = kind.partition(">")
    word, *args = body.split()
    slots = tuple(a or int(n) for a, n in _SLOT.findall(module))
    tensors: dict[str, list[str]]
    if word == "lin" and len(args) == 2:
        tensors = {".weight": [args[0] + "+", args[1] + "-"], ".bias": [args[0] + "+"]}
    elif word == "lint" and len(args) == 2:
        tensors = {".weight": [args[1] + "-", args[0] + "+"], ".bias": [args[0] + "+"]}
    elif word == "emb" and len(args) == 2:
        tensors = {".weight": [args[0] + "#", args[1] + "+"]}
    elif word == "rms" and len(args) == 1:
        tensors = {".weight": [args[0] + "*"]}
    elif word == "ln" and len(args) == 1:
        tensors = {".weight": [args[0] + "*"], ".bias": [args[0] + "~"]}
    elif word == "raw" and args and all(a[-1] in "+-*~#=" for a in args):
        tensors = {"": args}
    else:
        raise FamilyError(
            f'{where}: {line}: "{kind}" is not a module kind',
            hint="lin OUT IN, lint OUT IN, emb TABLE AXIS, rms AXIS, ln AXIS, raw DIM…",
        )
    norm = word if word in ("rms", "ln") else ""
    in_layer = any(isinstance(s, str) and axes.get(s) == "layers" for s in slots)
    on_stream = norm and axes.get(args[0]) == "stream"
    to_stream = target.strip() == "stream" or bool(on_stream and residual == "post" and in_layer)
    out = []
    for suffix, dims in tensors.items():
        parsed = tuple((parse(d[:-1]), d[-1]) for d in dims)
        for axis in {a for e, _ in parsed for a in e.axes} | {
            s for s in slots if isinstance(s, str)
        }:
            if axis not in axes:
                raise FamilyError(
                    f"{where}: {line}: unknown axis {axis}", hint=did_you_mean(axis, axes)
                )
        lacking = optional or suffix == ".bias"
        out.append(Pattern(module + suffix, module, slots, parsed, norm, to_stream, lacking))
    return out
