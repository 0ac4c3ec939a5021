"""growkit: a larger transformer that starts from what a small one knows.

It reads a checkpoint, applies a recipe of growth operators, and writes a larger checkpoint for a
separate training run; where the mathematics allows, the larger one computes the same function.
`plan_growth`, `grow` and `verify_growth` are the Python API, with a `Recipe` or what makes one;
`push` and `pull` are its way to the Hub, `grow_state_dict` grows a model that is in memory,
`growkit` is the command.

Data flows through the building: read, decide, write, tell. From the ground up, on a floor of single
files (errors, dtypes, sizes, YAML); each folder imports only folders above it in this list:

    algebra      linear maps on an axis: what everything else is written in
    checkpoints  headers, config and rows of what is read; never writes
    families     which tensor lies on which axis, one YAML each
    ops          the growth operators, one idea per file
    recipe       what the user wants, checked before anything is planned
    planning     what each output tensor is made of, and in proof what that keeps
    engine       evaluates a formula, block of rows by block of rows; torch starts here
    output       files, whole or not at all
    report       what happened, as JSON, text, page and card
    runtime      who writes which file, and what that takes
    hub          models on the Hugging Face Hub; the only room that uses a network
    verify       does the large model compute the small one's function?
    cli          the command line; the only room that prints

The words, each with one meaning:

    axis         a named direction of a model, such as hidden; a dim is a position in a tensor
    kernel       a linear map on one axis, shape (new, old)
    map          how one axis grows: the kernels for tensors that write it and that read it
    family       models that name and shape their tensors alike
    operator     one idea of how to grow, with its options
    recipe       operators in order, as a user writes them
    plan         a whole growth, decided; it holds no weights
    term         a source times one kernel per dim; terms add up to a formula, formulas to a plan
    source       where a term's numbers come from: a checkpoint's tensor, or a seeded generator
    layout       where the output's bytes go
    shard        one output file of several
    module       what sentence-transformers runs behind a model, such as pooling
    task         the writing of one shard, by whoever it is sent to
    rank         one of several processes that share the files and do not talk to each other
    report       what a finished growth says about itself
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from growkit._version import __version__
from growkit.errors import GrowkitError

if TYPE_CHECKING:
    from growkit.api import grow, plan_growth, pull, push, verify_growth
    from growkit.in_memory import grow_state_dict
    from growkit.recipe.recipe import Recipe

__all__ = [
    "GrowkitError", "Recipe", "__version__", "grow", "grow_state_dict", "plan_growth", "pull",
    "push", "verify_growth",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """The Python API, on first use: `import growkit` alone loads neither torch nor numpy."""
    if name == "grow_state_dict":  # brings torch along
        from growkit import in_memory

        return in_memory.grow_state_dict
    if name == "Recipe":
        from growkit.recipe.recipe import Recipe

        return Recipe
    if name in __all__:
        from growkit import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
