"""Growth of a model in memory: state_dict and config in, state_dict and config out.

    weights, config = grow_state_dict(small.state_dict(), small.config, "double_width")
    big = type(small)(type(small.config).from_dict(config))
    big.load_state_dict(weights)

The law: the plan and the engine are those of the file route, so the tensors are equal to the byte
to what `grow` writes. No file is read but a recipe and the maps that it names, none is written, and
nothing that is passed in changes.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from growkit.checkpoints.matrices import read_maps
from growkit.checkpoints.names import named
from growkit.checkpoints.types import Checkpoint, Stored
from growkit.errors import CheckpointError
from growkit.families.load import blamed
from growkit.families.model import read_model
from growkit.planning.plan import build_plan
from growkit.recipe.recipe import Recipe, check_sources, choose_recipe

if TYPE_CHECKING:
    from growkit.engine.state_dict import StateDict, Tensor

# A state_dict holds its head if it has one: without a class name, none is to be assumed
_UNNAMED = ["a model in memory"]


def grow_state_dict(
    state_dict: StateDict,
    config: Any,
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *,
    sources: Mapping[str, tuple[StateDict, Any]] | None = None,
    overrides: Sequence[str] = (),
    dtype: str | None = None,
    seed: int | None = None,
    family: Path | None = None,
    drop: Sequence[str] = (),
    allow_nonfinite: bool = False,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The grown state_dict, on the CPU, and the new config as a dict.

    A config is a dict as in config.json, or a transformers config. `sources` are further models by
    the recipe's names, each a state_dict and its config; the rest is as in `grow`. The result has
    the names that came in, as modules have them or as on disk, without the words of wrappers
    (`module.`, `_orig_mod.`), which a RuntimeWarning names. A tied head that is stored beside its
    embedding comes back tied. Buffers that the model makes anew are left out.

    Raises what `plan_growth` raises, and CheckpointError for values that are not finite; with
    `allow_nonfinite` they are a RuntimeWarning.
    """
    from growkit.engine.evaluate import one_thread
    from growkit.engine.state_dict import assemble, equal, rows_of

    name, chosen = choose_recipe(recipe, overrides=overrides, dtype=dtype, seed=seed)
    others = dict(sources or {})
    check_sources(chosen, others)
    given = {chosen.sources[0]: (state_dict, config)} | {n: others[n] for n in chosen.sources[1:]}
    checkpoints = {n: _checkpoint(*model, drop) for n, model in given.items()}
    with blamed(family):
        models = {n: read_model(checkpoint, family) for n, (checkpoint, _) in checkpoints.items()}
        plan = build_plan(name, chosen, models, read_maps(chosen.files))
    tensors = {n: by_name for n, (_, by_name) in checkpoints.items()}
    for note in plan.notes:
        warnings.warn(f"state_dict: {note}", RuntimeWarning, stacklevel=2)
    for source, tensor, twin in plan.same:
        if not equal(tensors[source][tensor], tensors[source][twin]):
            raise CheckpointError(
                f"state_dict: {tensor} and {twin} differ, but the config ties them",
                hint="set tie_word_embeddings to false in the config if the head is its own",
            )

    def rows(stored: Stored, start: int, stop: int) -> memoryview:
        return rows_of(tensors[stored.source][stored.name], start, stop)

    with one_thread():
        grown = {f.name: assemble(f, rows, allow_nonfinite) for f in plan.formulas}
    for source, tensor, twin in plan.same:
        if source == chosen.sources[0] and tensor not in grown:
            grown[tensor] = grown[twin]
    new_config = copy.deepcopy(dict(plan.config))
    if new_config["architectures"] == _UNNAMED:
        del new_config["architectures"]
    return grown, new_config


def _checkpoint(
    state_dict: StateDict, config: Any, drop: Sequence[str]
) -> tuple[Checkpoint, StateDict]:
    """The headers that the tensors would have in a file, and the tensors by the same names."""
    from growkit.engine.state_dict import headers, shared_memory

    if hasattr(config, "to_json_string"):  # what transformers would write as config.json
        values = json.loads(config.to_json_string())
    else:
        values = dict(config)
    values["architectures"] = values.get("architectures") or _UNNAMED
    stored, identity = headers(state_dict)
    model = named(stored, drop)
    tensors = {name: state_dict[info.name] for name, info in model.tensors.items()}
    return Checkpoint(
        "state_dict",
        values,
        {name: replace(info, name=name) for name, info in model.tensors.items()},
        (identity,),
        dropped=model.dropped,
        notes=model.notes,
        shared=shared_memory(tensors) if values.get("tie_word_embeddings") is not False else (),
    ), tensors
