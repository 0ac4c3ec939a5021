"""The docs name everything that a recipe can say, and built-in recipes say what they keep."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from support import tiny

from growkit import api
from growkit.ops import OPERATORS
from growkit.ops.depth import RULES
from growkit.ops.map_choice import MapName
from growkit.recipe.recipe import builtin_recipes, load_recipe, recipe_text

PAGE = (Path(__file__).parents[2] / "docs" / "operators.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", PAGE, flags=re.MULTILINE | re.DOTALL))
PARTS = ("Formula", "When", "Exactness", "Source", "What the authors' code gets wrong")
PAPER = re.compile(r"\d{4}\.\d{5}|\(\w+ \d{4}\)")  # an arXiv id, or (Author year)


def test_every_operator_has_a_section() -> None:
    """One section per operator, and none for what does not exist."""
    assert sorted(SECTIONS) == sorted(OPERATORS)


@pytest.mark.parametrize("name", OPERATORS)
def test_a_section_is_whole(name: str) -> None:
    """What it does, an example that names it, formula, when, exactness, source, and their code."""
    section = SECTIONS[name]
    assert [p for p in PARTS if f"**{p}.**" not in section] == []
    assert f"- op: {name}\n" in section
    assert "paper" in section or PAPER.search(section)


@pytest.mark.parametrize("name", OPERATORS)
def test_options_are_named(name: str) -> None:
    """Every option of an operator stands in its section, as a recipe spells it."""
    fields = OPERATORS[name].model_fields
    options = [f.alias or n for n, f in fields.items() if n != "op"]
    if name == "decoalesce":  # the other direction explains the groups
        options.remove("groups")
    assert [o for o in options if not re.search(rf"\b{o}\b", SECTIONS[name])] == []


def test_maps_and_rules_are_named() -> None:
    """Every map of `width` and every rule of `depth` stands in its section."""
    assert [m for m in MapName.__args__ if f"`{m}`" not in SECTIONS["width"]] == []
    assert [r for r in RULES if f"`{r}`" not in SECTIONS["depth"]] == []


def test_every_recipe_is_named() -> None:
    """The page lists the built-in recipes, and no others."""
    table = PAGE.partition("## Built-in recipes")[2]
    assert re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE) == sorted(builtin_recipes())


def comment(name: str) -> str:
    """What a recipe says before its first key."""
    return " ".join(re.findall(r"^# (.*)", recipe_text(name).partition("about:")[0], flags=re.M))


@pytest.mark.parametrize("name", builtin_recipes())
def test_a_recipe_names_its_source(name: str) -> None:
    """`growkit recipes NAME` begins with where it is from."""
    assert PAPER.search(comment(name)), name


# For recipes to fixed sizes, a model that grows to them
SMALL: dict[str, Any] = {
    "bert_base": {"heads": 6, "head_dim": 64, "mlp": 1536, "layers": 6},
    "bert_large": {"heads": 8, "head_dim": 64, "mlp": 2048, "layers": 2},
    "gpt2_medium": {"heads": 12, "head_dim": 64, "mlp": 3072, "layers": 2},
}
TYPICAL = {"heads": 4, "kv_heads": 2, "head_dim": 4, "hidden": 16, "mlp": 16, "layers": 4}


@pytest.mark.parametrize("name", builtin_recipes())
def test_a_recipe_says_its_claim(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comment has the word that the plan then claims for a typical model."""
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(name)[1]
    sizes = SMALL.get(name, TYPICAL)
    if isinstance(recipe.family, str):
        head = {"bert": "base", "gpt2": "causal"}[recipe.family]
        sizes = {k: v for k, v in sizes.items() if k not in ("kv_heads", "hidden")}
        model = tiny.build(recipe.family, head, **sizes)
    else:
        model = tiny.build("llama", "causal", **sizes)
    small = tiny.save(model, tmp_path / "small")
    further = dict.fromkeys(recipe.sources[1:], str(small))
    if "large" in further:  # what the small one was coalesced from
        double = {k: v if k == "head_dim" else 2 * v for k, v in sizes.items()}
        family = recipe.family if isinstance(recipe.family, str) else "llama"
        large = tiny.build(family, "base" if family == "bert" else "causal", **double)
        further["large"] = str(tiny.save(large, tmp_path / "large"))
    for file in recipe.files:
        api.save_maps(api.plan_growth(small, "double_width"), file)
    claim = api.plan_growth(small, name, sources=further).claim.claim
    assert claim.split()[0] in comment(name).lower()
