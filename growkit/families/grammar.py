"""The grammar of family files: data in, `Family` out, every word of it checked.

The law: a mistake is said with its line and the nearest known word; nothing is opened here, and
nothing about a checkpoint is known but its config.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from growkit.algebra.expression import Expression, parse
from growkit.algebra.positions import PAIRS, SLOPES
from growkit.errors import FamilyError, did_you_mean
from growkit.families.config import get
from growkit.families.family import (
    KINDS,
    SLOT,
    Alibi,
    Family,
    Head,
    Pattern,
    Period,
    Rope,
    module_tensors,
)

TARGETS = ("", "stream", "branch", "activation")
SCORES = ("power", "unless", "unless_false", "by_layer", "clamp")
_DEFAULT = re.compile(r"[\w.]+( (\*|//) [\w.]+)?")
_RULE = re.compile(r"[\w.]+ % [\w.]+")


def parse_family(data: Mapping[str, Any], config: Mapping[str, Any], where: str) -> Family:
    """A family from plain data, for one config. Raises FamilyError with the line."""
    axes = dict(data["axes"])
    names = {a.replace(".", "_"): a for a in axes}  # a dot means a product in expressions

    def expression(text: Any) -> Expression:
        return parse(str(text)).renamed(names)

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
        for pattern in _patterns(line, str(kind), axes, names, residual, where):
            if pattern.name in patterns:
                raise FamilyError(f"{where}: {line}: {pattern.name} is described twice")
            patterns[pattern.name] = pattern
    rope = _rope(data.get("rope"), config)
    return Family(
        name=data["family"],
        about=data.get("about", ""),
        model_types=tuple(types_of(data)),
        axes=axes,
        config={k: tuple(map(expression, listed(v))) for k, v in data["config"].items()},
        patterns=patterns,
        residual=residual,
        eps=data.get("eps", ""),
        prefixes=_many(data.get("prefix")),
        alias=data.get("alias", {}),
        ignore=frozenset(SLOT.sub("#", i) for i in data.get("ignore", ())),
        unused=frozenset(SLOT.sub("#", i) for i in data.get("unused", ())),
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
        mirrors={k: expression(e) for k, e in data.get("mirrors", {}).items()},
        derived={a: expression(e) for a, e in data.get("derived", {}).items()},
        limits={**data.get("limits", {}), **_listed(rope)},
        joins=data.get("joins", {}),
        bare_norms={expression(e): k for e, k in data.get("bare_norms", {}).items()},
        multipliers={
            m: (v["axis"], float(v["power"])) for m, v in data.get("multipliers", {}).items()
        },
        scores=data.get("scores", {}),
        rope=rope,
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
    types = [get(config, key) for key in _many(rope.get("type"))]
    parts = [get(config, key) for key in _many(rope.get("partial"))]
    return Rope(
        rope["pairs"],
        tuple(map(_many, theta)),
        tuple(map(float, base if isinstance(base, list) else [base] * len(theta))),
        _many(rope.get("type")),
        _many(rope.get("refuse")),
        next((t for t in types if t in rope.get("listed", ())), ""),
        any(t in rope.get("numbered", ()) for t in types),
        float(next((p for p in parts if p is not None), rope.get("part", 1.0))),
        turned if isinstance(turned, int) else None,
    )


def _listed(rope: Rope | None) -> dict[str, str]:
    """Rotary pairs that each have a factor in the config are as many as they are."""
    listed = rope.listed if rope else ""
    return {"head_dim": f"{listed} lists a factor for every rotary pair"} if listed else {}


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


def listed(value: Any) -> list[Any]:
    """A YAML value that may be one thing or a list of them, as a list."""
    return list(value) if isinstance(value, list) else [value]


def _patterns(
    line: str,
    kind: str,
    axes: Mapping[str, str],
    names: Mapping[str, str],
    residual: str,
    where: str,
) -> list[Pattern]:
    """The tensors that one module line describes."""
    module, marks = line.rstrip("?"), len(line) - len(line.rstrip("?"))
    places = SLOT.findall(module)
    slots = tuple(names.get(axis, axis) or int(number) for axis, _, number in places)
    first = max((int(start) for _, start, _ in places if start), default=0)
    module = re.sub(r"\{(\w+):\d+\}", r"{\1}", module)
    body, _, target = kind.partition(">")
    word, *args = body.split()
    tensors = module_tensors(word, args)
    if tensors is None or target.strip() not in TARGETS:
        raise FamilyError(
            f'{where}: {line}: "{kind}" is not a module kind',
            hint="lin OUT IN, lint OUT IN, emb TABLE AXIS, rms AXIS, ln AXIS, gain AXIS, raw DIM…",
        )
    norm = {"rms": "rms", "ln": "ln", "rms1": "rms"}.get(word, "")
    in_layer = any(isinstance(s, str) and axes.get(s) == "layers" for s in slots)
    on_stream = norm and axes.get(names.get(args[0], args[0])) == "stream"
    to_stream = target.strip() == "stream" or bool(on_stream and residual == "post" and in_layer)
    out = []
    for suffix, dims in tensors.items():
        parsed = tuple((parse(d[:-1]).renamed(names), d[-1]) for d in dims)
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
                nonlinear=target.strip() == "activation",
                branch=target.strip() == "branch",
                offset=1.0 if word == "rms1" and suffix == ".weight" else 0.0,
                optional=marks > 0 or suffix == ".bias",
                by_layer=marks > 1,
                first=first,
            )
        )
    return out


def check_names(family: Family, where: str) -> None:
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
        known_words(
            sorted({a for e in expressions for a in e.axes}), axes, f"{where}: {key}", "axis"
        )
    for key, named in (
        ("lists", family.lists.values()),
        ("thresholds", family.thresholds.values()),
        ("indices", family.indices.values()),
        ("periods", [p.axis for p in family.periods.values()]),
        ("joins", family.joins),
    ):
        known_words(named, layers, f"{where}: {key}", "layer axis")
    others: Mapping[str, Iterable[str]] = {
        "derived": family.derived,
        "like": [*family.like, *family.like.values()],
        "multipliers": [a for a, _ in family.multipliers.values()],
        "head.power": family.head.power if family.head else (),
    }
    for key, words in others.items():
        known_words(words, axes, f"{where}: {key}", "axis")
    known_words(family.multipliers, modules, f"{where}: multipliers", "module")
    known_words(family.joins.values(), modules, f"{where}: joins", "module")
    known_words(family.scores, SCORES, f"{where}: scores", "key")
    if family.rope:
        known_words([family.rope.pairs], PAIRS, f"{where}: rope.pairs", "layout")
    if family.alibi:
        known_words([family.alibi.slopes], SLOPES, f"{where}: alibi.slopes", "formula")
    if head := family.head:
        known_words(
            filter(None, [*head.ties, *head.ties.values()]), tensors, f"{where}: head", "tensor"
        )
        known_words(filter(None, [head.scale_at, *head.also]), modules, f"{where}: head", "module")
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


def known_words(words: Iterable[str], known: Iterable[str], where: str, what: str) -> None:
    """Refuse words that are not known."""
    for word in words:
        if word not in known:
            raise FamilyError(
                f"{where}: unknown {what} {word}", hint=did_you_mean(str(word), known)
            )


def types_of(data: Mapping[str, Any]) -> list[str]:
    """The model types that a file is for."""
    value = data.get("model_type", [])
    return [value] if isinstance(value, str) else list(value)
