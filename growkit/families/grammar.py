"""The grammar of family files: data in, `Family` out, every word of it checked.

The law: a mistake is said with its line and the nearest known word; nothing is opened here, and
nothing about a checkpoint is known but its config.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from growkit.algebra.expression import Expression, parse
from growkit.algebra.positions import PAIRS, SLOPES
from growkit.errors import FamilyError, did_you_mean
from growkit.families.config import get, holds
from growkit.families.family import (
    KINDS,
    SLOT,
    Alibi,
    Family,
    Head,
    Pattern,
    Period,
    Presence,
    Rope,
    Threshold,
    module_tensors,
)

TARGETS = ("", "stream", "branch", "activation")
SCORES = ("power", "unless", "unless_false", "by_layer", "clamp")
BIASES = ALWAYS, NEVER, OPTIONAL = "always", "never", "optional"
_CLASSES = re.compile(r"[A-Z]\w*(\|[A-Z]\w*)*")
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
    biases = data.get("biases", {})
    marks = {*(line.partition("?")[2] for line in data["modules"]), *biases.values()}
    ends = {
        m: {"class": m.split("|")} for m in marks if isinstance(m, str) and _CLASSES.fullmatch(m)
    }
    presence = _presence({**ends, **data.get("presence", {})}, config, axes, names, where)
    known_words(biases.values(), (*BIASES, *presence), f"{where}: biases", "word")
    head = _head(data.get("head"))
    patterns: dict[str, Pattern] = {}
    for line, kind in data["modules"].items():
        tensors = _patterns(line, str(kind), axes, names, residual, where)
        for pattern in _present(tensors, line, presence, biases, head, where):
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
        thresholds={
            k: Threshold(t) if isinstance(t, str) else Threshold(**t)
            for k, t in data.get("thresholds", {}).items()
        },
        presence=presence,
        indices=data.get("indices", {}),
        outputs=data.get("outputs", {}),
        output_names=data.get("output_names", {}),
        layer_heads={k: (pair[0], pair[1]) for k, pair in data.get("layer_heads", {}).items()},
        periods={
            k: Period(p, "") if isinstance(p, str) else Period(**p)
            for k, p in data.get("periods", {}).items()
        },
        mirrors={k: expression(e) for k, e in data.get("mirrors", {}).items()},
        derived={a: expression(e) for a, e in data.get("derived", {}).items()},
        limits={**data.get("limits", {}), **_listed(rope)},
        padding={a: _rows_before(p, config) for a, p in data.get("padding", {}).items()},
        joins=data.get("joins", {}),
        bare_norms={expression(e): k for e, k in data.get("bare_norms", {}).items()},
        multipliers={
            m: (v["axis"], float(v["power"])) for m, v in data.get("multipliers", {}).items()
        },
        scores=data.get("scores", {}),
        rope=rope,
        alibi=Alibi(**data["alibi"]) if data.get("alibi") else None,
        head=head,
    )


def _presence(
    data: Mapping[str, Mapping[str, Any]],
    config: Mapping[str, Any],
    axes: Mapping[str, str],
    names: Mapping[str, str],
    where: str,
) -> dict[str, Presence]:
    """When what lines mark with a word is there, as this config and its class say.

    `layers` says which layers have it, `not` names the word of those that do not; all else is as in
    variants' `when`.
    """
    out: dict[str, Presence] = {}
    for word, when in data.items():
        if "not" in when:
            known_words([when["not"]], out, f"{where}: presence.{word}", "word")
            out[word] = replace(out[when["not"]], others=not out[when["not"]].others)
        elif "layers" in when:
            axis = names.get(when.get("of", "layers"), when.get("of", "layers"))
            known_words([axis], axes, f"{where}: presence.{word}", "layer axis")
            out[word] = Presence(axis=axis, layers=tuple(when["layers"].items()))
        else:
            out[word] = Presence(all(holds(config, key, want) for key, want in when.items()))
    return out


def _present(
    tensors: Iterable[Pattern],
    line: str,
    presence: Mapping[str, Presence],
    biases: Mapping[str, str],
    head: Head | None,
    where: str,
) -> Iterator[Pattern]:
    """The tensors of a line with what says when they are there: its mark, and `biases`."""
    module, marked, word = line.partition("?")
    if word.strip("?"):
        known_words([word], presence, f"{where}: {line}", "word")
    by_layer = word == "?"

    def there(pattern: Pattern, optional: bool, group: str, word: str = "") -> Pattern:
        given = presence.get(word, Presence())
        return replace(
            pattern,
            optional=optional and not given.required and not given.axis,
            by_layer=by_layer,
            group=word or group,
            kind=word if given.axis else "",
        )

    for pattern in tensors:
        if head and pattern.name in head.ties:  # what it is tied to may stand for it
            tied = bool(marked) or pattern.name.endswith(".bias")
            yield replace(pattern, optional=tied, by_layer=by_layer)
            continue
        if pattern.name == pattern.module or not pattern.name.endswith(".bias"):
            yield there(pattern, bool(marked), module, word.strip("?"))
            continue
        rules = [rule for glob, rule in biases.items() if fnmatchcase(module, glob)]
        rule = rules[-1] if rules else ""
        if rule == ALWAYS or presence.get(rule, Presence()).required:
            yield there(pattern, bool(marked), module, word.strip("?"))
        elif rule != NEVER:
            yield replace(pattern, optional=True, by_layer=by_layer)


def _rows_before(padding: Mapping[str, Any], config: Mapping[str, Any]) -> int:
    """How many rows of a table are before its first entry: those up to the padding's own."""
    row = get(config, padding["row"])
    is_row = isinstance(row, int) and not isinstance(row, bool) and row >= 0
    return int(row if is_row else padding["default"]) + 1


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
    module = line.partition("?")[0]
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
        ("thresholds", [t.axis for t in family.thresholds.values()]),
        ("indices", family.indices.values()),
        ("outputs", family.outputs.values()),
        ("output_names", family.output_names.values()),
        ("layer_heads", [axis for axis, _ in family.layer_heads.values()]),
        ("periods", [p.axis for p in family.periods.values()]),
        ("joins", family.joins),
    ):
        known_words(named, layers, f"{where}: {key}", "layer axis")
    others: Mapping[str, Iterable[str]] = {
        "derived": family.derived,
        "padding": family.padding,
        "layer_heads": [heads for _, heads in family.layer_heads.values()],
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
