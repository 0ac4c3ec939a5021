"""Family files: the shipped ones and the user's own, found, extended and varied by config.

The law: a file is right or refused before any checkpoint is touched; the shipped files pass through
the same reader as those of users.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from growkit import plain_yaml
from growkit.errors import FamilyError, did_you_mean
from growkit.families.config import holds
from growkit.families.family import SLOT, Family, numbered, spellings
from growkit.families.grammar import check_names, known_words, listed, parse_family

FOLDER = Path(__file__).parent / "builtin"
KEYS = (
    "family", "about", "model_type", "architecture", "extends", "prefix", "alias", "ignore", "axes",
    "like", "config", "defaults", "require", "lists", "thresholds", "indices", "periods", "mirrors",
    "derived", "limits", "joins", "bare_norms", "multipliers", "residual", "eps", "scores", "rope",
    "alibi", "unused", "head", "presence", "biases", "modules", "variants", "refused", "padding",
    "outputs", "output_names", "layer_heads",
)  # fmt: skip


def family_names() -> list[str]:
    """The families that ship with growkit."""
    return sorted(p.stem for p in FOLDER.glob("*.yaml"))


def family_text(name: str) -> str:
    """The YAML of a shipped family, comments included. Raises FamilyError for an unknown name."""
    if name not in family_names():
        raise FamilyError(f'family "{name}": not known', hint=did_you_mean(name, family_names()))
    return plain_yaml.read(FOLDER / f"{name}.yaml", "family file", FamilyError)


@cache
def model_types(key: str = "model_type") -> Mapping[str, str]:
    """model_type → shipped family. Read off one line of each file: parsing all of them is slow."""
    out: dict[str, str] = {}
    for name in family_names():
        line = re.search(rf"^{key}: \[(.*?)\]", family_text(name), re.M)
        out |= dict.fromkeys(re.findall(r"[\w*-]+", line[1] if line else ""), name)
    return out


@cache
def _shipped(name: str) -> dict[str, Any]:
    return read_yaml(family_text(name), f"family {name}")


def read_yaml(text: str, where: str) -> dict[str, Any]:
    """Parse a family file's text. Raises FamilyError if it is not a plain YAML mapping."""
    problems: list[plain_yaml.Problem] = []
    data = plain_yaml.parse(text, where, problems, FamilyError)
    for place, what, hint in problems:
        raise FamilyError(f"{where}: {place + ': ' if place else ''}{what}", hint=hint)
    if not isinstance(data, dict):
        raise FamilyError(f"{where}: expected a mapping, found {type(data).__name__}")
    return data


def find_family(config: Mapping[str, Any], file: Path | None = None) -> dict[str, Any]:
    """The family file for a config: `file` if given, else the shipped one of its model_type."""
    if file is not None:
        return read_yaml(plain_yaml.read(file, "family file", FamilyError), str(file))
    model_type, built = config.get("model_type"), config.get("architecture")
    shipped = model_types()
    if model_type is None and isinstance(built, str):  # how timm says what a model is
        for pattern, name in model_types("architecture").items():
            if fnmatchcase(built, pattern):
                return _shipped(name)
    if not isinstance(model_type, str):
        raise FamilyError(
            'config.json: no "model_type", so the family is unknown',
            hint="add it, or give the family file: --family FILE",
        )
    if model_type not in shipped:
        raise FamilyError(
            f'config.json: model_type "{model_type}" has no family file',
            hint=did_you_mean(model_type, shipped) + "; or write one and pass --family FILE",
        )
    return _shipped(shipped[model_type])


def build_family(
    data: Mapping[str, Any], config: Mapping[str, Any], names: Iterable[str], where: str = ""
) -> Family:
    """A family for one checkpoint: its file, then the variants that config and tensors ask for.

    `names` are those of the tensors, as the checkpoint spells them; `where` is what errors call the
    file. Raises FamilyError naming the line that is wrong.
    """
    where = where or f"family {data.get('family', '?')}"
    with _well_formed(where):
        merged = _extend(data, where)
    alias, prefixes = merged.get("alias", {}), listed(merged.get("prefix") or [])
    names = [*names]
    shapes = {numbered(name)[0] for name in names}
    tensors = {s for shape in shapes for s in spellings(shape, alias, prefixes)}
    with _well_formed(where):
        hint = ""
        for variant in merged.pop("variants", None) or ():
            if _holds(when := variant.get("when", {}), config, tensors):
                hint = _drop_hint(when, names) if "refused" in variant else hint
                merged = _merge(merged, {k: v for k, v in variant.items() if k != "when"})
        if "refused" in merged:
            raise FamilyError(
                f"family {merged['family']}: cannot be grown: {merged['refused']}",
                hint=hint or "growkit families lists what can",
            )
        known_words(merged, KEYS, where, "key")
        family = parse_family(merged, config, where)
        check_names(family, where)
    return family


@contextmanager
def _well_formed(where: str) -> Iterator[None]:
    """Inside, a value that is of another kind than its key wants is the file's fault."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise FamilyError(
            f"{where}: {type(error).__name__}: {error}",
            hint="`growkit families llama` shows a valid file",
        ) from None


def _drop_hint(when: Mapping[str, Any], names: Iterable[str]) -> str:
    """How to leave out the layers for which a variant refuses a model; nothing if it is whole."""
    module = SLOT.sub("#", str(when.get("present", "")))
    layers = set()
    for shape, numbers in map(numbered, names):
        if "#" in module and module in shape:
            texts = shape[: shape.find(module) + module.find("#")].split("#")
            pairs = zip(texts, numbers, strict=False)
            layers.add("".join(f"{text}{number}" for text, number in pairs))
    patterns = " ".join(f"--drop '{layer}.*'" for layer in sorted(layers))
    return f"leave them out: {patterns}" if patterns else ""


def _holds(when: Mapping[str, Any], config: Mapping[str, Any], tensors: set[str]) -> bool:
    """Whether config and tensors are what a variant asks for.

    `tensors` are names in the family's spelling, with # in place of numbers; a module is present
    if one of them is its weight, its bias, or itself.
    """
    for key, want in when.items():
        if key in ("absent", "present"):
            module = SLOT.sub("#", want)
            present = any(module + suffix in tensors for suffix in ("", ".weight", ".bias"))
            if present is (key == "absent"):
                return False
        elif not holds(config, key, want):
            return False
    return True


def _extend(data: Mapping[str, Any], where: str) -> dict[str, Any]:
    data = {**data, "modules": _flat(data.get("modules") or {})}
    base = data.pop("extends", None)
    if base is None:
        return data
    known_words([base], family_names(), f"{where}: extends", "family")
    return _merge(_extend(_shipped(base), where), data)


def _merge(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`change` on top of `base`; null deletes.

    Module names count without their marks, and config keys as the same if they share a spelling.
    """
    out = dict(base)
    for key, value in change.items():
        if not isinstance(value, dict) or not isinstance(out.get(key), dict):
            out[key] = value
            continue
        value = _flat(value) if key == "modules" else value
        changed = {spelt for name in value for spelt in _spelt(key, name)}
        kept = {k: v for k, v in out[key].items() if changed.isdisjoint(_spelt(key, k))}
        out[key] = kept | {k: v for k, v in value.items() if v is not None}
    return {k: v for k, v in out.items() if v is not None}


def _spelt(key: str, name: Any) -> list[Any]:
    """The words by which an entry of this key of a family file is known."""
    if not isinstance(name, str):
        return [name]
    return name.split("|") if key == "config" else [name.partition("?")[0]]


def _flat(modules: Mapping[str, Any], prefix: str = "", mark: str = "") -> dict[str, Any]:
    """Modules line by line; the mark of a group is that of its lines that have none."""
    out: dict[str, Any] = {}
    for name, value in modules.items():
        bare, given, word = name.partition("?")
        own = given + word or mark
        if isinstance(value, dict):
            out |= _flat(value, prefix + bare, own)
        else:
            out[prefix + bare + own] = value
    return out


@contextmanager
def blamed(file: Path | None) -> Iterator[None]:
    """Inside, what breaks because of a user's own family file is said to be the file's fault.

    The file may hold any value at any place, and every room believes what a family says.
    """
    try:
        yield
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError,
            TypeError, ValueError) as error:  # fmt: skip
        if file is None:
            raise
        raise FamilyError(
            f"{file}: does not describe this model: {type(error).__name__}: {error}",
            hint="compare it with a family file that works: `growkit families llama`",
        ) from error
