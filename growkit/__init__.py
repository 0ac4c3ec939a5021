"""growkit: a larger transformer that starts from what a small one knows.

It reads a checkpoint, applies a recipe of growth operators, and writes a larger checkpoint for a
separate training run; where the mathematics allows, the larger one computes the same function.
`plan_growth`, `grow` and `verify_growth` are the Python API, `push` and `pull` its way to the Hub;
`grow_state_dict` grows a model that is in memory, `growkit` is the command.

The rooms of the building, from the ground up; each imports only rooms above it in this list:

    errors       what can go wrong, and the exit code that says so
    plain        YAML text as plain data, and changes to it
    kernel       linear maps on one axis, kept sparse
    axes         how an axis grows: the algebra that everything else is written in
    positions    rotary pairs and ALiBi slopes, as numbers
    expression   how the dims of real tensors are composed of axes
    formula      what an output tensor is made of: nouns only
    family       which tensors a kind of model has on disk, on which axes
    user_family  a user's own family file, which may hold anything
    grammar      the words of family files, checked
    family_file  YAML as a family; the shipped ones are in families/
    ops          the growth operators, one idea per file
    recipe       what the user wants, checked before anything is planned
    config       the numbers of config.json that a family names, before and after
    model        a checkpoint read through its family
    facts        what a proof may know, and what a claim is
    attention    what attention keeps: scores, rotary pairs, groups of heads, slopes
    proof        what a step keeps of the function, without looking at a weight
    compose      the terms of every tensor, step after step
    fusion       the parts of several models side by side
    layers       layers taken by a layer map, experts by an axis map
    perturb      noise that the network sees
    steps        one step of a recipe, applied to the model so far
    lints        what a trainer should know: equal copies, dead units
    stages       what a pipeline runs behind the model, grown with it
    plan         recipe and headers in; formulas, new config and exactness claim out
    descent      which layers and units of the source each new one comes from
    gauge        other coordinates on one axis, the same function
    specimen     from a config of any size to that of a tiny model
    digest       what identifies a result
    noise        seeded random numbers that belong to a row
    blocks       how many rows at a time, and the memory that takes
    layout       which byte of which file each output row is
    engine       evaluates one formula, block of rows by block of rows; torch starts here
    report       what happened: growkit.json, the plan as JSON
    share        the files that one of several independent processes writes
    words        formulas and maps in words
    card         README.md of a result, for people and for the Hub
    show         a plan in words, for a terminal
    store        bytes in and out; the only room that opens files
    verify       does the large model compute the small one's function?
    picture      the growth as a page and as an SVG, for people who would rather look
    task         one output file: the unit of work, whoever does it
    beside       everything beside the weights: config, index, tokenizer
    workers      tasks in several processes of this machine
    cluster      tasks on a Dask cluster
    execute      writes a plan
    memory       the same for a model in memory, a state_dict
    hub          models on the Hugging Face Hub; the only room that uses a network
    check        is a family file right? A tiny model is read, turned and grown
    infer        a first draft of a family file
    run          the Python API: joins the rooms
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
    stage        what sentence-transformers runs behind a model, such as pooling
    task         the writing of one shard, by whoever it is sent to
    rank         one of several processes that share the files and do not talk to each other
    report       what a finished growth says about itself
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from growkit.errors import GrowkitError

if TYPE_CHECKING:
    from growkit.api import grow, plan_growth, pull, push, verify_growth
    from growkit.in_memory import grow_state_dict

__version__ = "0.1.0"
__all__ = [
    "GrowkitError", "__version__", "grow", "grow_state_dict", "plan_growth", "pull", "push",
    "verify_growth",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """The Python API, on first use: `import growkit` alone loads neither torch nor numpy."""
    if name == "grow_state_dict":  # brings torch along
        from growkit import in_memory

        return in_memory.grow_state_dict
    if name in __all__:
        from growkit import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
