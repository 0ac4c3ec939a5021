"""What the Tab key offers: recipes, families and dtypes by name, checkpoints as files.

The scripts for bash, zsh and fish are click's own; --install-completion switches them on. The law:
nothing is read but names and headers, for somebody waits.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from growkit.recipe.recipe import Recipe

SHELLS = {  # the file that each reads when it starts, and what it is to read there
    "bash": ("~/.bashrc", 'eval "$(_GROWKIT_COMPLETE=bash_source growkit)"'),
    "zsh": ("~/.zshrc", 'eval "$(_GROWKIT_COMPLETE=zsh_source growkit)"'),
    "fish": ("~/.config/fish/config.fish", "_GROWKIT_COMPLETE=fish_source growkit | source"),
}
Complete = Callable[[click.Context, click.Parameter, str], "list[CompletionItem]"]


def offered(names: Callable[[], Iterable[str]] = tuple, *, files: bool = False) -> Complete:
    """A completion of these names, and of files where a file will do."""

    def complete(
        ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        # the file comes first: bash then takes names if any fit, else files
        items = [CompletionItem(incomplete, type="file")] if files else []
        return items + [CompletionItem(n) for n in names() if n.startswith(incomplete)]

    return complete


complete_files = offered(files=True)  # or folders


def recipe_names() -> Iterable[str]:
    """The built-in recipes."""
    from growkit.recipe.recipe import builtin_recipes

    return builtin_recipes()


def dtype_names() -> Iterable[str]:
    """What --dtype takes, long names and short ones."""
    from growkit.recipe.recipe import DTYPES

    return DTYPES


def complete_source(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """The names, with their =, of the further sources that the typed recipe has."""
    recipe = _typed_recipe(ctx)
    names = [f"{name}=" for name in recipe.sources[1:]] if recipe else []
    return offered(lambda: names)(ctx, param, incomplete)


def complete_override(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """What --set can change in the recipe that was typed: its keys, then those of each step."""
    recipe = _typed_recipe(ctx)
    paths = ["dtype", "seed", "tied"]
    ops = [step.op for step in recipe.steps] if recipe else []
    for index, step in enumerate(recipe.steps if recipe else ()):
        where = step.op if ops.count(step.op) == 1 else str(index)
        for key, value in step.model_dump(by_alias=True, exclude={"op"}).items():
            below = value if isinstance(value, dict) and value else None
            paths += [f"{where}.{key}.{k}" for k in below] if below else [f"{where}.{key}"]
    return offered(lambda: [f"{path}=" for path in paths])(ctx, param, incomplete)


def complete_tensor(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """A tensor of the grown model; a source that is not on this machine is not asked."""
    from growkit import api
    from growkit.errors import GrowkitError

    source, recipe = _typed(ctx)
    if not (source and recipe and Path(source).exists()):
        return []
    try:
        names = [formula.name for formula in api.plan_growth(source, recipe).formulas]
    except GrowkitError:  # said when the command is run
        return []
    return offered(lambda: names)(ctx, param, incomplete)


def _typed(ctx: click.Context) -> tuple[str | None, str | None]:
    """Source and recipe; before an option that lacks its value, click leaves arguments aside."""
    source, recipe = (*ctx.args, None, None)[:2]
    source = ctx.params.get("source") or source
    return source, ctx.params.get("recipe") or ctx.params.get("recipe_argument") or recipe


def _typed_recipe(ctx: click.Context) -> Recipe | None:
    """The recipe of the line that is being completed, if it has one and that is valid."""
    from growkit.errors import GrowkitError
    from growkit.recipe.recipe import load_recipe

    name = _typed(ctx)[1]
    try:
        return load_recipe(name)[1] if name else None
    except GrowkitError:  # said when the command is run
        return None


def complete_family(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """A family, or one of the words of `growkit families`; a file after such a word."""
    if ctx.params.get("words"):
        return complete_files(ctx, param, incomplete)
    from growkit.families.load import family_names

    return offered(lambda: [*family_names(), "check", "infer"])(ctx, param, incomplete)


def install_completion(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    """Write the line that switches the Tab key on into the file that the user's shell reads."""
    if not wanted or ctx.resilient_parsing:
        return
    shell = Path(os.environ.get("SHELL", "")).name
    if shell not in SHELLS:
        known = ", ".join(SHELLS)
        raise click.UsageError(f"--install-completion knows {known}; SHELL is {shell or 'not set'}")
    from growkit.output.user_files import add_line

    place, line = SHELLS[shell]
    file = Path(place).expanduser()
    add_line(file, line)
    click.echo(f"{file} has the line: {line}\nopen a new {shell}, and the Tab key completes")
    ctx.exit()
