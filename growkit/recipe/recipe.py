"""YAML → `Recipe`: what the user wants, checked before anything is planned.

The laws of this room: everything that is wrong with a recipe is said at once, each with its path
(`steps[0].to.hidden`) and the nearest known word; and a recipe is data, so tags, anchors, includes
and environment variables do not exist here. Files are read by plain_yaml alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from growkit import dtypes, plain_yaml
from growkit.dtypes import FLOATS, DtypeName
from growkit.errors import RecipeError, did_you_mean
from growkit.ops import OPERATORS, Operator
from growkit.plain_yaml import Problem
from growkit.recipe.override import override
from growkit.recipe.problems import kind_of, sentences

MAX_STEPS = 100
MAX_PROBLEMS = 20  # that are told at once
DTYPES: Mapping[str, str] = {"keep": "keep"} | {
    word: full for name, full in FLOATS.items() for word in (full, *dtypes.DTYPES[name].words)
}

if TYPE_CHECKING:
    Step = Operator
else:
    Step = Annotated[reduce(or_, OPERATORS.values()), Field(discriminator="op")]


def _dtype(value: object) -> object:
    """The full name of a dtype; unknown words are left for pydantic to refuse."""
    return DTYPES.get(value.lower(), value) if isinstance(value, str) else value


SourceName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")]
Dtype = Annotated[DtypeName, BeforeValidator(_dtype), WithJsonSchema({"enum": list(DTYPES)})]


class Recipe(BaseModel):
    """A validated recipe; `steps` are applied in order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    about: str = ""
    family: str | tuple[str, ...] | None = None  # other families are refused
    sources: tuple[SourceName, ...] = Field(default=("small",), min_length=1)
    steps: tuple[Step, ...] = Field(min_length=1, max_length=MAX_STEPS)
    dtype: Dtype = "keep"
    seed: int = Field(default=0, ge=0, strict=True)
    tied: Literal["final_norm", "embedding", "untie"] = "final_norm"

    @model_validator(mode="after")
    def _sources_declared(self) -> Recipe:
        twice = {name for name in self.sources if self.sources.count(name) > 1}
        if twice:
            raise ValueError(f"sources: {min(twice)!r} is listed twice")
        used = {name: i for i, step in enumerate(self.steps) for name in step.sources()}
        for name, i in used.items():
            if name not in self.sources:
                known = ", ".join(self.sources)
                raise ValueError(f"steps[{i}]: source {name!r} is not in sources: [{known}]")
        for name in self.sources[1:]:
            if name not in used:
                raise ValueError(f"sources: no step uses {name!r}")
        return self

    @property
    def files(self) -> tuple[str, ...]:
        """Paths of the files with maps that steps apply."""
        return tuple(dict.fromkeys(file for step in self.steps for file in step.files()))


# -- loading -------------------------------------------------------------------------------------


def load_recipe(
    name_or_path: str,
    *,
    overrides: Sequence[str] = (),
    dtype: str | None = None,
    seed: int | None = None,
) -> tuple[str, Recipe]:
    """A recipe and its name: the file's stem, or the name of a built-in one.

    `overrides` are `PATH=VALUE` as in `--set`; `dtype` and `seed` come last and win.

    >>> load_recipe("double_width", overrides=["width.to.axes=3x"], seed=7)[1].seed
    7
    """
    path = _locate(name_or_path)
    problems: list[Problem] = []
    data = plain_yaml.parse(_read(path), path.name, problems)
    if not isinstance(data, dict):
        raise RecipeError(
            f"{path.name}: a recipe is a mapping with the key steps, found {kind_of(data)}",
            hint="`growkit recipes double_width` shows a valid one",
        )
    recipe = _validate(_changed(data, overrides, dtype, seed), path.name, problems)
    # a built-in recipe names files of the user's, any other one files beside it
    return path.stem, _with_paths_from(
        Path() if path in builtin_recipes().values() else path.parent, recipe
    )


def _changed(
    data: dict[str, Any], overrides: Sequence[str], dtype: str | None, seed: int | None
) -> dict[str, Any]:
    for change in overrides:
        data = override(data, change, Recipe.model_fields.keys() - {"steps"})
    return data | {k: v for k, v in (("dtype", dtype), ("seed", seed)) if v is not None}


def _with_paths_from(folder: Path, recipe: Recipe) -> Recipe:
    steps = tuple(step.with_paths_from(folder.absolute()) for step in recipe.steps)
    return recipe.model_copy(update={"steps": steps})


def choose_recipe(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *,
    overrides: Sequence[str] = (),
    dtype: str | None = None,
    seed: int | None = None,
) -> tuple[str, Recipe]:
    """A recipe and its name, from a name, a file, its data, or a recipe that is there already.

    >>> choose_recipe({"steps": [{"op": "width", "to": {"mlp": "2x"}}]}, seed=7)[1].seed
    7
    """
    if isinstance(recipe, Mapping):  # files that it names are the user's
        data = _changed(dict(recipe), overrides, dtype, seed)
        return "recipe", _with_paths_from(Path(), parse_recipe(data))
    if not isinstance(recipe, Recipe):
        return load_recipe(str(recipe), overrides=overrides, dtype=dtype, seed=seed)
    if overrides:
        raise RecipeError("overrides: only for recipes given by name or file")
    changes = {k: v for k, v in (("dtype", dtype), ("seed", seed)) if v is not None}
    if changes:
        recipe = parse_recipe({**recipe.model_dump(by_alias=True), **changes})
    return "recipe", recipe


def parse_recipe(data: Mapping[str, Any], *, name: str = "recipe") -> Recipe:
    """A recipe from plain data, every problem in one RecipeError."""
    return _validate(dict(data), name, [])


def builtin_recipes() -> dict[str, Path]:
    """The recipes that come with growkit, by name: inside the wheel, else beside the package."""
    package = Path(__file__).parent.parent
    for folder in (package / "recipes", package.parent / "recipes"):
        recipes = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
        if recipes:
            return recipes
    return {}


def recipe_text(name: str) -> str:
    """The text of a recipe as its author wrote it, comments included."""
    return _read(_locate(name))


def settings_for(name: str, recipe: Recipe, family: str) -> str:
    """What a built-in recipe of this name for this family alone sets otherwise; empty if nothing.

    >>> settings_for("vcycle_up", load_recipe("vcycle_up")[1], "bert")
    'blend.alpha 0.5, not 0.25'
    """
    own = f"{name}_{family}"
    if own not in builtin_recipes():
        return ""
    pairs = zip(recipe.steps, load_recipe(own)[1].steps, strict=False)
    return ", ".join(
        f"{step.op}.{key} {value}, not {getattr(step, key)}"
        for step, other in pairs
        if type(step) is type(other)
        for key, value in other
        if value != getattr(step, key)
    )


def check_sources(recipe: Recipe, given: Iterable[str]) -> None:
    """Refuse checkpoints that the recipe does not declare, and the lack of those it does."""
    names, further = list(given), recipe.sources[1:]
    for name in names:
        if name not in further:
            declared = ", ".join(recipe.sources)
            raise RecipeError(
                f"--source {name}: the recipe declares sources: [{declared}]",
                hint=did_you_mean(name, further) if further else "leave --source out",
            )
    for name in further:
        if name not in names:
            raise RecipeError(
                f"source {name}: the recipe needs this checkpoint and none was given",
                hint=f"add --source {name}=CKPT",
            )


# -- showing -------------------------------------------------------------------------------------


def resolved(recipe: Recipe) -> str:
    """The recipe as YAML with every default spelled out; it loads back equal, but for folders."""
    data = recipe.model_dump(mode="json", by_alias=True, exclude_none=True)
    return str(
        yaml.safe_dump(data, sort_keys=False, allow_unicode=True, default_flow_style=None, width=70)
    )


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a recipe file, for editors."""
    schema = Recipe.model_json_schema()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "growkit recipe",
        "description": "What to grow, by which operators, in which order.",
    }


# -- files ---------------------------------------------------------------------------------------


def _locate(name_or_path: str) -> Path:
    path = Path(name_or_path)
    if path.suffix in {".yaml", ".yml"} or "/" in name_or_path or "\\" in name_or_path:
        return path
    builtin = builtin_recipes()
    if name_or_path not in builtin:
        raise RecipeError(
            f'recipe: there is no built-in recipe "{name_or_path}"',
            hint=f"{did_you_mean(name_or_path, builtin)}; a file of your own ends in .yaml",
        )
    return builtin[name_or_path]


def _read(path: Path) -> str:
    hint = "`growkit recipes` lists the built-in ones"
    return plain_yaml.read(path, "recipe", RecipeError, hint=hint)


# -- validation, and pydantic's findings as sentences --------------------------------------------


def _validate(data: dict[str, Any], name: str, problems: list[Problem]) -> Recipe:
    recipe = None
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        details = error.errors(include_url=False)[: 10 * MAX_PROBLEMS]
        problems = problems[: MAX_PROBLEMS + 1] + sentences(details, data, Recipe.model_fields)
    if recipe is not None and not problems:
        return recipe
    if len(problems) == 1:
        where, what, hint = problems[0]
        raise RecipeError(f"{name}: {where + ': ' if where else ''}{what}", hint=hint)
    count = f"more than {MAX_PROBLEMS}" if problems[MAX_PROBLEMS:] else len(problems)
    lines = "".join(
        f"\n  {where + ': ' if where else ''}{what}{f' ({hint})' if hint else ''}"
        for where, what, hint in problems[:MAX_PROBLEMS]
    )
    hint = "`growkit recipes --schema` prints every key there is"
    raise RecipeError(f"{name}: {count} problems:{lines}", hint=hint)
