"""The options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from growkit.cli.completion import (
    complete_files,
    complete_override,
    complete_source,
    dtype_names,
    offered,
    recipe_names,
)

if TYPE_CHECKING:
    from growkit.runtime.estimate import WriteOptions

Command = TypeVar("Command", bound=Callable[..., Any])


def _sources(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """`NAME=CKPT` pairs as a mapping."""
    out: dict[str, str] = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not (name and equals and path):
            raise click.BadParameter(f"expected NAME=CKPT, found {value!r}")
        if name in out:
            raise click.BadParameter(f"{name} is given twice")
        out[name] = path
    return out


def _one_recipe(command: Command) -> Command:
    """The command with one `recipe`, from the second argument or from --recipe."""

    @wraps(command)
    def run(*, recipe: str | None, recipe_argument: str | None, **options: Any) -> Any:
        if recipe and recipe_argument:
            raise click.UsageError("the recipe is given twice, as an argument and by --recipe")
        if not (recipe or recipe_argument):
            raise click.UsageError("Missing argument 'RECIPE' or option '--recipe'")
        return command(recipe=recipe or recipe_argument, **options)

    return cast(Command, run)


def _options(*chosen: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(chosen):
            command = option(command)
        return command

    return decorate


FILE = click.Path(dir_okay=False, path_type=Path)
family_option = click.option(
    "--family", type=FILE, help="Family file (YAML) in place of the shipped one."
)
config_option = click.option(
    "--config", type=FILE, help="config.json, if not beside the source file."
)
drop_option = click.option(
    "--drop",
    multiple=True,
    metavar="PATTERN",
    help="Leave out tensors, by a pattern such as '*.weight_scale'.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
quiet_option = click.option(
    "-q", "--quiet", is_flag=True, help="Print only the path of the result."
)
growth_options = _options(
    click.argument("source", shell_complete=complete_files),
    click.argument("recipe_argument", required=False, metavar="[RECIPE]",
                   shell_complete=offered(recipe_names, files=True)),
    click.option("--recipe", metavar="NAME|FILE",
                 shell_complete=offered(recipe_names, files=True),
                 help="Built-in name, or a .yaml file; the same as RECIPE."),
    click.option("--source", "sources", multiple=True, metavar="NAME=CKPT", callback=_sources,
                 shell_complete=complete_source,
                 help="A further checkpoint that the recipe names."),
    config_option,
    click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE",
                 shell_complete=complete_override,
                 help="Change the recipe: seed=1, or STEP.KEY=VALUE such as width.to.hidden=1024."),
    click.option("--dtype", metavar="D", shell_complete=offered(dtype_names),
                 help="keep, float32, bfloat16 (bf16), float16, float64."),
    click.option("--seed", type=click.IntRange(min=0), metavar="N", help="Seed of all noise."),
    family_option,
    drop_option,
    click.option("--max-shard-size", default="5GB", show_default=True, metavar="SIZE",
                 help="Largest output file; a larger tensor gets a file of its own."),
    click.option("--max-memory", default="2GB", show_default=True, metavar="SIZE",
                 help="Stay below this much memory, workers included."),
    click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, metavar="N",
                 help="Processes; each writes one file at a time."),
    _one_recipe,
)  # fmt: skip


def write_options(options: dict[str, Any]) -> WriteOptions:
    """Those of a command's options that say how a plan is written, taken out of the others."""
    from dataclasses import fields

    from growkit.runtime.estimate import WriteOptions

    names = [field.name for field in fields(WriteOptions) if field.name in options]
    return WriteOptions(**{name: options.pop(name) for name in names})
