"""Tables of README and docs are true. Commands and programs are run in test_pages.py."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from support import tiny
from support.pages import README, ROOT

import growkit
from growkit import api
from growkit.cli.main import app
from growkit.errors import RecipeError
from growkit.ops import OPERATORS
from growkit.planning.proof.claim import APPROXIMATE, EPS, EXACT
from growkit.recipe.recipe import builtin_recipes, parse_recipe

CONCEPTS, RECIPE = ROOT / "docs" / "concepts.md", ROOT / "docs" / "howto" / "recipe.md"

# -- tables --------------------------------------------------------------------------------------


def table(page: Path, title: str) -> list[list[str]]:
    """The cells of the first table below a heading or sentence, without its head."""
    lines = page.read_text(encoding="utf-8").partition(title)[2].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|---"))
    rows = []
    for line in lines[start + 1 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return rows


def test_folders_are_those_of_the_map() -> None:
    """The four lines name each folder that the package's own map lists, once."""
    the_map = (growkit.__doc__ or "").partition("The words")[0]
    folders = re.findall(r"^    (\w+) {2,}\w", the_map, flags=re.MULTILINE)
    rows = table(README, "The code, in the order in which data flows")
    assert [row[0] for row in rows] == ["read", "decide", "write", "tell"]
    named = [name for row in rows for name in re.findall(r"(?:^|· )`(\w+)`", row[1])]
    assert sorted(named) == sorted(folders)


def test_a_page_of_it() -> None:
    """Who comes first reads it to the end."""
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 180


def test_what_to_type_can_be_typed() -> None:
    """Each command of the table has these options, and each recipe comes with growkit."""
    cells = [row[2] for row in table(README, "## What to type")]
    commands = [c for cell in cells for c in re.findall(r"`growkit (\w+ [^`]+)`", cell)]
    assert len(commands) > 10
    for command in commands:
        name, *words = shlex.split(command.partition(" >")[0])
        with app.commands[name].make_context(name, words) as context:
            recipe = context.params.get("recipe_argument")
            assert recipe is None or recipe in builtin_recipes()
    alone = [c for cell in cells for c in re.findall(r"`([a-z]\w+)`", cell)]
    assert {*alone} <= {*builtin_recipes()}


def test_operators_are_all_there() -> None:
    """The table of operators has each of them, with every option and every choice."""
    rows = {
        row[0].strip("`"): " ".join(row[1:])
        for row in table(RECIPE, "## The operators and their options")
    }
    assert rows.keys() == OPERATORS.keys()
    for name, operator in OPERATORS.items():
        schema = operator.model_json_schema()
        words = schema["properties"].keys() - {"op", "kind"}
        words |= {word for choice in choices(schema) for word in choice if word != name}
        missing = [word for word in words if not re.search(rf"`[^`]*\b{word}\b[^`]*`", rows[name])]
        assert not missing, f"{name}: {missing}"


def choices(schema: object) -> Iterator[list[str]]:
    """Every list of allowed words in a JSON Schema."""
    if isinstance(schema, dict):
        if "enum" in schema:
            yield schema["enum"]
        schema = list(schema.values())
    for part in schema if isinstance(schema, list) else ():
        yield from choices(part)


CLAIMS = {"exact": EXACT, "up to norm eps": EPS, "approximate": APPROXIMATE}
STEPS = table(CONCEPTS, "### Which step keeps what")
COLUMNS = {
    1: [("bert", "base"), ("bert", "masked_lm")],
    2: [("gpt2", "base"), ("gpt2", "causal"), ("gpt2", "untied")],
    3: [("llama", "base"), ("llama", "causal"), ("llama", "tied"),
        ("llama", "mistral"), ("llama", "qwen2"), ("llama", "qwen2 tied")],
}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """A tiny model of each kind that the table of claims is about."""
    sizes = {"heads": 4, "head_dim": 6, "mlp": 18, "layers": 2}
    free = {**sizes, "head_dim": 4, "kv_heads": 2, "hidden": 24}
    return {
        (family, head): tiny.save(
            tiny.build(family, head, **(sizes if column < 3 else free)),
            tmp_path_factory.mktemp("models") / f"{family}-{head}",
        )
        for column, kinds in COLUMNS.items()
        for family, head in kinds
    }


@pytest.mark.parametrize("row", STEPS, ids=lambda row: row[0].strip("`"))
def test_claims_are_those_of_the_plans(row: list[str], models: dict[tuple[str, str], Path]) -> None:
    """Each cell of the table is what the plan says, with and without noise."""
    (op, to), *more = yaml.safe_load("{" + row[0].strip("`") + "}").items()
    step = {"op": op, "to": to, **dict(more)}
    for column, kinds in COLUMNS.items():
        for kind in kinds:
            for noise in ([], [{"op": "noise"}]):
                recipe = parse_recipe({"steps": [step, *noise]})
                if row[column] == "refused":
                    with pytest.raises(RecipeError, match=r"must equal|has no axis"):
                        api.plan_growth(models[kind], recipe)
                else:
                    claim = api.plan_growth(models[kind], recipe).claim
                    assert claim.claim == CLAIMS[row[column]], (kind, claim.reasons)
