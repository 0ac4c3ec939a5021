"""Family files: the grammar, matching of names on disk, and what a wrong file is told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from growkit.algebra.expression import parse
from growkit.errors import CheckpointError, FamilyError
from growkit.families.family import Family
from growkit.families.load import (
    build_family,
    family_names,
    family_text,
    find_family,
    model_types,
    read_yaml,
)

SMALL: dict[str, Any] = {
    "family": "toy",
    "model_type": "toy",
    "axes": {"hidden": "stream", "mlp": "neurons", "layers": "layers"},
    "config": {"hidden_size": "hidden", "mlp_size": "mlp", "depth": "layers"},
    "modules": {"layers.{layers}.": {"norm": "rms hidden", "up": "lin mlp hidden"}},
}


def shipped(name: str) -> Family:
    """A family as it ships."""
    return build_family(read_yaml(family_text(name), name), {}, set())


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("hidden", 6),
        ("heads.q", 8),
        ("heads.q|heads.k", 16),
        ("heads.(q|k|2)", 24),
        ("2.hidden", 12),
        ("2.hidden/5", 2),
        ("2.hidden^8", 16),
        ("4.hidden/3^8", 8),
    ],
)
def test_expressions(text: str, size: int) -> None:
    """Products, concatenations, parentheses and numbers."""
    assert parse(text).size({"hidden": 6, "heads": 4, "q": 2, "k": 2}) == size


@pytest.mark.parametrize("text", ["", "a..b", "a|", "(a", "a)", "a b|", "a+b", ".a"])
def test_malformed_expressions(text: str) -> None:
    """What is not an expression is refused with its text."""
    with pytest.raises(FamilyError, match="axis expression"):
        parse(text)


def test_solving_for_one_axis() -> None:
    """One unknown axis follows from the size of the whole, if it is a whole number."""
    assert parse("heads.q|heads.q").solve(24, {"heads": 3}) == ("q", 4)
    assert parse("heads.q").solve(25, {"heads": 3}) is None
    assert parse("heads.q").solve(24, {}) is None


@pytest.mark.parametrize(
    ("family", "name", "pattern", "numbers"),
    [
        ("bert", "bert.encoder.layer.11.output.dense.bias",
         "encoder.layer.{layers}.output.dense.bias", (11,)),
        ("bert", "encoder.layer.0.output.dense.bias",
         "encoder.layer.{layers}.output.dense.bias", (0,)),
        ("bert", "bert.embeddings.LayerNorm.gamma", "embeddings.LayerNorm.weight", ()),
        ("bert", "embeddings.LayerNorm.beta", "embeddings.LayerNorm.bias", ()),
        ("gpt2", "h.3.attn.c_attn.weight", "h.{layers}.attn.c_attn.weight", (3,)),
        ("gpt2", "transformer.h.3.attn.c_attn.weight", "h.{layers}.attn.c_attn.weight", (3,)),
        ("llama", "model.layers.7.mlp.up_proj.weight", "layers.{layers}.mlp.up_proj.weight", (7,)),
        ("llama", "transformer.norm.weight", "norm.weight", ()),
        ("llama", "lm_head.weight", "lm_head.weight", ()),
    ],
)  # fmt: skip
def test_names_on_disk(family: str, name: str, pattern: str, numbers: tuple[int, ...]) -> None:
    """With and without prefix, in old and new spelling, a name finds its one pattern."""
    match = shipped(family).match(name)
    assert match is not None
    assert (match[0].name, match[1]) == (pattern, numbers)


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("bert", "bert.embeddings.position_ids"),
        ("gpt2", "h.0.attn.bias"),
        ("gpt2", "transformer.h.0.attn.masked_bias"),
        ("llama", "model.layers.0.self_attn.rotary_emb.inv_freq"),
    ],
)
def test_buffers_are_ignored(family: str, name: str) -> None:
    """Buffers that the model makes anew are known, and not grown."""
    assert shipped(family).match(name) is None


def test_an_unknown_tensor_is_refused_with_the_nearest_pattern() -> None:
    """Nothing is dropped silently."""
    with pytest.raises(CheckpointError, match=r"upp_proj.*nearest is layers.*up_proj") as error:
        shipped("llama").match("model.layers.0.mlp.upp_proj.weight")
    assert "--family" in error.value.hint


@pytest.mark.parametrize("name", sorted({*family_names()} - {"mamba", "swin"}))
def test_shipped_families_parse(name: str) -> None:
    """Every file is valid, says what it is about, and shows its own text."""
    family = shipped(name)
    assert family.name == name
    assert family.about
    assert yaml.safe_load(family_text(name))["family"] == name


@pytest.mark.parametrize(
    ("model_type", "reason"), [("mamba", "state space"), ("swin", "doubles from stage to stage")]
)
def test_families_that_are_refused(model_type: str, reason: str) -> None:
    """What cannot be grown is refused by name, with the reason."""
    with pytest.raises(FamilyError, match=rf"{model_type}: cannot be grown: .*{reason}"):
        build_family(find_family({"model_type": model_type}), {}, set())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"axes": {"hidden": "steam"}}, 'axis hidden: unknown kind "steam"'),
        ({"residual": "sideways"}, 'expected pre or post, found "sideways"'),
        ({"modules": {"a": "line mlp hidden"}}, '"line mlp hidden" is not a module kind'),
        ({"modules": {"a": "lin mlp"}}, '"lin mlp" is not a module kind'),
        ({"modules": {"a": "lin mlp hiden"}}, "unknown axis hiden"),
        ({"modules": {"a": "lin mlp hidden..x"}}, "axis expression"),
        ({"modules": {"a": "rms hidden", "a?": "ln hidden"}}, "described twice"),
        ({"modulse": {}}, "unknown key modulse"),
        ({"axes": None}, "family toy: KeyError"),
    ],
)
def test_wrong_family_files(change: dict[str, Any], message: str) -> None:
    """A mistake in a family file is named with its line."""
    data = {k: v for k, v in {**SMALL, **change}.items() if v is not None}
    with pytest.raises(FamilyError, match=message):
        build_family(data, {}, set())


@pytest.mark.parametrize(
    ("config", "message", "hint"),
    [
        ({}, 'no "model_type"', "--family"),
        ({"model_type": "lama"}, '"lama" has no family file', 'did you mean "llama"'),
        ({"model_type": 3}, 'no "model_type"', "--family"),
    ],
)
def test_unknown_model_types(config: dict[str, Any], message: str, hint: str) -> None:
    """An unknown architecture is refused with the nearest known one."""
    with pytest.raises(FamilyError, match=message) as error:
        find_family(config)
    assert hint in error.value.hint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "expected a mapping, found list"),
        ("a: [", "not valid YAML"),
        ("!!x a", "tags such as .* are not read"),
        ("&x {a: *x}", "anchors and aliases are not read"),
        ("{a: 1, a: 2}", "given twice"),
    ],
)
def test_family_files_that_are_no_mapping(tmp_path: Path, text: str, message: str) -> None:
    """A user's family file that is not a plain mapping."""
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(FamilyError, match=message):
        find_family({}, file)
    with pytest.raises(FamilyError, match="cannot read the family file"):
        find_family({}, tmp_path / "none.yaml")


def test_extending_a_family() -> None:
    """A family extends another: keys replace, modules merge, null deletes."""
    data = {
        "family": "mine",
        "model_type": "mine",
        "extends": "llama",
        "modules": {
            "layers.{layers}.self_attn.q_norm": "rms q",
            "score": None,
            "lm_head": "lin vocab hidden",
        },
    }
    family = build_family(data, {}, set())
    names = {p.name: p for p in family.patterns.values()}
    assert "layers.{layers}.self_attn.q_norm.weight" in names
    assert "score.weight" not in names
    assert not names["lm_head.weight"].optional
    assert family.rope is not None


def test_variants_depend_on_config_and_on_absent_modules() -> None:
    """A token classifier without a pooler reads the stream, one with a pooler reads that."""
    data = find_family({"model_type": "bert"})
    for modules, axis in ((set(), "hidden"), ({"pooler.dense"}, "pool")):
        family = build_family(data, {}, modules)
        pattern = next(p for p in family.patterns.values() if p.name == "classifier.weight")
        assert str(pattern.consumed) == axis


def test_roles_follow_from_the_module_kind() -> None:
    """A norm inside a post-norm layer writes the stream, one of a pre-norm layer does not."""
    writes = {
        n: {p.name for p in shipped(n).patterns.values() if p.to_stream} for n in ("bert", "llama")
    }
    assert "encoder.layer.{layers}.output.LayerNorm.weight" in writes["bert"]
    assert "embeddings.LayerNorm.weight" in writes["bert"]
    assert not writes["llama"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extends": "lama"}, "extends: unknown family lama"),
        ({"extends": [1]}, r"extends: unknown family \[1\]"),
        ({"config": {"hidden_size": "hiden"}}, r"config\.hidden_size: unknown axis hiden"),
        ({"config": {"hidden_size": None}}, "unknown axis None"),
        ({"lists": {"layer_types": "mlp"}}, "lists: unknown layer axis mlp"),
        ({"like": {"mlp": "hiden"}}, "like: unknown axis hiden"),
        ({"scores": {"powr": -0.5}}, "scores: unknown key powr"),
        ({"rope": {"pairs": "thirds", "theta": "t"}}, r"rope\.pairs: unknown layout thirds"),
        ({"require": "hidden by mlp"}, 'require: "hidden by mlp" is not well formed'),
        ({"defaults": {"mlp_size": "4 x 4"}}, 'defaults: "4 x 4" is not well formed'),
        ({"eps": ["a"]}, "eps: expected a config key"),
        (
            {"head": {"weight": "head.weight", "classes": "X", "default": True}},
            r"head: unknown tensor head\.weight",
        ),
    ],
)
def test_what_a_file_names_must_exist(change: dict[str, Any], message: str) -> None:
    """Names in a family file that lead nowhere are refused with the file's name."""
    with pytest.raises(FamilyError, match=f"mine.yaml: .*{message}"):
        build_family({**SMALL, **change}, {}, set(), "mine.yaml")


# -- all shipped files -----------------------------------------------------------------------------


def test_files_are_small_and_found_by_one_line() -> None:
    """All YAML together is short, and each model type leads to one file by one line of it."""
    texts = {name: family_text(name) for name in family_names()}
    assert sum(len(text.splitlines()) for text in texts.values()) <= 1500
    types = {t: n for n, text in texts.items() for t in yaml.safe_load(text)["model_type"]}
    assert model_types() == types
    assert sum(len(yaml.safe_load(text)["model_type"]) for text in texts.values()) == len(types)


def test_a_family_is_loaded_without_the_others() -> None:
    """Only the file itself, and what it extends, is parsed."""
    code = (
        "from growkit.families import load as f\n"
        "f.build_family(f.find_family({'model_type': 'qwen3'}), {}, set())\n"
        "print(f._shipped.cache_info().currsize)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2"  # qwen3 and llama
