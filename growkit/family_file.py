"""YAML → `Family`: the shipped files and the user's own, read, extended and checked.

The law: a mistake in a family file is said with its line and the nearest known word, before any
checkpoint is touched. This room reads its own YAML and opens nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from growkit.errors import FamilyError, did_you_mean
from growkit.expression import parse
from growkit.family import KINDS, Alibi, Family, Head, Pattern, Period, Rope
from growkit.positions import PAIRS, SLOPES
from growkit.user_family import read_family

FOLDER = Path(__file__).parent / "families"
KEYS = (
    "family", "about", "model_type", "extends", "prefix", "alias", "ignore", "axes", "like",
    "config", "defaults", "require", "lists", "thresholds", "indices", "periods", "mirrors",
    "derived", "limits", "joins", "bare_norms", "multipliers", "residual", "eps", "scores", "rope",
    "alibi", "head", "modules", "variants", "refused",
)  # fmt: skip
SCORES = ("power", "unless", "unless_false", "by_layer", "clip")
_SLOT = re.compile(r"\{(\w+)(?::(\d+))?\}|(?:(?<=\.)|^)(\d+)(?=\.|$)")
_DEFAULT = re.compile(r"[\w.]+( (\*|//) [\w.]+)?")
_TYPES = re.compile(r"^model_type: \[(.*?)\]", re.M)
_RULE = re.compile(r"\w+ % \w+")


def family_names() -> list[str]:
    """The families that ship with growkit."""
    return sorted(p.stem for p in FOLDER.glob("*.yaml"))


def family_text(name: str) -> str:
    """The YAML of a shipped family, comments included. Raises FamilyError for an unknown name."""
    if name not in family_names():
        raise FamilyError(f'family "{name}": not known', hint=did_you_mean(name, family_names()))
    return (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")


@cache
def model_types() -> Mapping[str, str]:
    """model_type → shipped family. Read off one line of each file: parsing all of them is slow."""
    out: dict[str, str] = {}
    for name in family_names():
        line = _TYPES.search(family_text(name))
        out |= dict.fromkeys(re.findall(r"[\w-]+", line[1] if line else ""), name)
    return out


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
        return read_family(file)
    model_type = config.get("model_type")
    known = model_types()
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


def build_family(
    data: Mapping[str, Any], config: Mapping[str, Any], names: set[str] | None, where: str = ""
) -> Family:
    """A family for one checkpoint: its file, then the variants that config and tensors ask for.

    `names` are the modules present, which variants may depend on (None: any may be); `where` is
    what errors call the file. Raises FamilyError naming the line that is wrong.
    """
    where = where or f"family {data.get('family', '?')}"
    try:
        merged = _extend(data, where)
        for variant in merged.pop("variants", None) or ():
            if _holds(variant.get("when", {}), config, names):
                merged = _merge(merged, {k: v for k, v in variant.items() if k != "when"})
        if "refused" in merged:
            raise FamilyError(
                f"family {merged['family']}: cannot be grown: {merged['refused']}",
                hint="growkit families lists what can",
            )
        _known(merged, KEYS, where, "key")
        family = _parse(merged, config, where)
        _check(family, where)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise FamilyError(
            f"{where}: {type(error).__name__}: {error}",
            hint="`growkit families llama` shows a valid file",
        ) from None
    return family


def _holds(when: Mapping[str, Any], config: Mapping[str, Any], names: set[str] | None) -> bool:
    """Whether config and tensors are what a variant asks for; a list gives alternatives."""
    for key, want in when.items():
        if key in ("absent", "present"):
            if (names is None or want in names) is (key == "absent"):
                return False
            continue
        negated = isinstance(want, Mapping)  # {not: …}
        if (get(config, key) in _listed(want["not"] if negated else want)) is negated:
            return False
    return True


def get(config: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path of a config, or None."""
    value: Any = config
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _known(words: Iterable[str], known: Iterable[str], where: str, what: str) -> None:
    """Refuse words that are not known."""
    for word in words:
        if word not in known:
            raise FamilyError(
                f"{where}: unknown {what} {word}", hint=did_you_mean(str(word), known)
            )


def _check(family: Family, where: str) -> None:
    """Everything that a file names exists in it."""
    axes, layers = family.axes, family.of_kind("layers")
    modules = {p.module for p in family.patterns.values()}
    tensors = {p.name for p in family.patterns.values()}
    for key, expressions in (
        *((f"config.{k}", e) for k, e in family.config.items()),
        ("mirrors", family.mirrors.values()),
        ("derived", family.derived.values()),
        ("bare_norms", family.bare_norms),
    ):
        _known(sorted({a for e in expressions for a in e.axes}), axes, f"{where}: {key}", "axis")
    for key, named in (
        ("lists", family.lists.values()),
        ("thresholds", family.thresholds.values()),
        ("indices", family.indices.values()),
        ("periods", [p.axis for p in family.periods.values()]),
        ("joins", family.joins),
    ):
        _known(named, layers, f"{where}: {key}", "layer axis")
    others: Mapping[str, Iterable[str]] = {
        "derived": family.derived,
        "like": [*family.like, *family.like.values()],
        "multipliers": [a for a, _ in family.multipliers.values()],
        "head.power": family.head.power if family.head else (),
    }
    for key, words in others.items():
        _known(words, axes, f"{where}: {key}", "axis")
    _known(family.multipliers, modules, f"{where}: multipliers", "module")
    _known(family.joins.values(), modules, f"{where}: joins", "module")
    _known(family.scores, SCORES, f"{where}: scores", "key")
    if family.rope:
        _known([family.rope.pairs], PAIRS, f"{where}: rope.pairs", "layout")
    if family.alibi:
        _known([family.alibi.slopes], SLOPES, f"{where}: alibi.slopes", "formula")
    if head := family.head:
        _known(filter(None, [*head.ties, *head.ties.values()]), tensors, f"{where}: head", "tensor")
        _known(filter(None, [head.scale_at, *head.also]), modules, f"{where}: head", "module")
    for key, rules, form in (
        ("defaults", family.defaults.values(), _DEFAULT),
        ("require", family.require, _RULE),
    ):
        for rule in rules:
            if not form.fullmatch(rule):
                raise FamilyError(
                    f'{where}: {key}: "{rule}" is not well formed',
                    hint="defaults: 4 * KEY, KEY // KEY or KEY; require: AXIS % AXIS",
                )
    if not isinstance(family.eps, str | float):
        raise FamilyError(f"{where}: eps: expected a config key or a number, found {family.eps!r}")


def _types(data: Mapping[str, Any]) -> list[str]:
    value = data.get("model_type", [])
    return [value] if isinstance(value, str) else list(value)


def _extend(data: Mapping[str, Any], where: str) -> dict[str, Any]:
    data = {**data, "modules": _flat(data.get("modules") or {})}
    base = data.pop("extends", None)
    if base is None:
        return data
    _known([base], family_names(), f"{where}: extends", "family")
    return _merge(_extend(_shipped(base), where), data)


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


def _parse(data: Mapping[str, Any], config: Mapping[str, Any], where: str) -> Family:
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
            if pattern.name in patterns:
                raise FamilyError(f"{where}: {line}: {pattern.name} is described twice")
            patterns[pattern.name] = pattern
    return Family(
        name=data["family"],
        about=data.get("about", ""),
        model_types=tuple(_types(data)),
        axes=axes,
        config={k: tuple(parse(str(e)) for e in _listed(v)) for k, v in data["config"].items()},
        patterns=patterns,
        residual=residual,
        eps=data.get("eps", ""),
        prefixes=_many(data.get("prefix")),
        alias=data.get("alias", {}),
        ignore=frozenset(_SLOT.sub("#", i) for i in data.get("ignore", ())),
        like=data.get("like", {}),
        defaults={k: str(v) for k, v in data.get("defaults", {}).items()},
        require=_many(data.get("require")),
        lists=data.get("lists", {}),
        thresholds=data.get("thresholds", {}),
        indices=data.get("indices", {}),
        periods={
            k: Period(p, "") if isinstance(p, str) else Period(**p)
            for k, p in data.get("periods", {}).items()
        },
        mirrors={k: parse(str(e)) for k, e in data.get("mirrors", {}).items()},
        derived={a: parse(str(e)) for a, e in data.get("derived", {}).items()},
        limits=data.get("limits", {}),
        joins=data.get("joins", {}),
        bare_norms={parse(e): k for e, k in data.get("bare_norms", {}).items()},
        multipliers={
            m: (v["axis"], float(v["power"])) for m, v in data.get("multipliers", {}).items()
        },
        scores=data.get("scores", {}),
        rope=_rope(data.get("rope"), config),
        alibi=Alibi(**data["alibi"]) if data.get("alibi") else None,
        head=_head(data.get("head")),
    )


def _rope(rope: Mapping[str, Any] | None, config: Mapping[str, Any]) -> Rope | None:
    """Rotary positions as this config has them: `part` of a head turns, or `dims` coordinates."""
    if not rope:
        return None
    theta, base = rope.get("theta") or [], rope.get("base", 10000)
    theta = theta if any(isinstance(t, list) for t in theta) else [theta]
    turned = get(config, rope.get("dims", ""))
    parts = [get(config, key) for key in _many(rope.get("partial"))]
    return Rope(
        rope["pairs"],
        tuple(map(_many, theta)),
        tuple(map(float, base if isinstance(base, list) else [base] * len(theta))),
        _many(rope.get("type")),
        _many(rope.get("refuse")),
        any(get(config, key) in rope.get("numbered", ()) for key in _many(rope.get("type"))),
        float(next((p for p in parts if p is not None), rope.get("part", 1.0))),
        turned if isinstance(turned, int) else None,
    )


def _head(head: Mapping[str, Any] | None) -> Head | None:
    if not head:
        return None
    return Head(
        head["weight"],
        head.get("tied") or "",
        head.get("scale_at") or "",
        _many(head["classes"]),
        bool(head["default"]),
        _many(head.get("also")),
        {head["weight"]: head.get("tied") or "", **(head.get("ties") or {})},
        {axis: float(p) for axis, p in (head.get("power") or {}).items()},
    )


def _many(value: Any) -> tuple[str, ...]:
    return () if value is None else (value,) if isinstance(value, str) else tuple(value)


def _listed(value: Any) -> list[Any]:
    """A YAML value that may be one thing or a list of them, as a list."""
    return list(value) if isinstance(value, list) else [value]


def _patterns(
    line: str, kind: str, axes: Mapping[str, str], residual: str, where: str
) -> list[Pattern]:
    """The tensors that one module line describes."""
    module, marks = line.rstrip("?"), len(line) - len(line.rstrip("?"))
    found = _SLOT.findall(module)
    slots = tuple(axis or int(number) for axis, _, number in found)
    first = max((int(start) for _, start, _ in found if start), default=0)
    module = re.sub(r"\{(\w+):\d+\}", r"{\1}", module)
    body, _, target = kind.partition(">")
    word, *args = body.split()
    tensors = _tensors(word, args)
    if tensors is None or target.strip() not in ("", "stream", "branch"):
        raise FamilyError(
            f'{where}: {line}: "{kind}" is not a module kind',
            hint="lin OUT IN, lint OUT IN, emb TABLE AXIS, rms AXIS, ln AXIS, gain AXIS, raw DIM…",
        )
    norm = {"rms": "rms", "ln": "ln", "rms1": "rms"}.get(word, "")
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
        out.append(
            Pattern(
                module + suffix,
                module,
                slots,
                parsed,
                norm=norm,
                to_stream=to_stream,
                branch=target.strip() == "branch",
                offset=1.0 if word == "rms1" and suffix == ".weight" else 0.0,
                optional=marks > 0 or suffix == ".bias",
                by_layer=marks > 1,
                first=first,
            )
        )
    return out


def _tensors(word: str, args: list[str]) -> dict[str, list[str]] | None:
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


_COUNTS = {("lin", 2), ("lint", 2), ("emb", 2), ("rms", 1), ("rms1", 1), ("ln", 1), ("gain", 1)}
