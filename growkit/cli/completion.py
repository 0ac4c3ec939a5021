"""What the Tab key offers: recipes, families and dtypes by name, checkpoints as files.

The scripts for bash, zsh and fish are click's own; README says how to switch them on. The law:
nothing is read but names, for somebody waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

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


def complete_family(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """A family, or one of the words of `growkit families`; a file after such a word."""
    if ctx.params.get("words"):
        return complete_files(ctx, param, incomplete)
    from growkit.families.load import family_names

    return offered(lambda: [*family_names(), "check", "infer"])(ctx, param, incomplete)
