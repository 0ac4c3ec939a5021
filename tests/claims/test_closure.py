"""Whole or not at all: what is read, and what is planned, has exactly the tensors of its model.

The oracle is transformers' own loading of a checkpoint with these names and shapes, which says what
is missing and what is not expected. Counts are printed: tried, refused, loaded.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import pytest
import torch
from support import growths, tiny, zoo

from growkit.checkpoints.open import open_checkpoint
from growkit.checkpoints.types import Checkpoint, Shape
from growkit.errors import CheckpointError, GrowkitError, RecipeError
from growkit.families.model import Model, read_model
from growkit.ops.depth import RULES
from growkit.planning.closure import check_closure
from growkit.planning.plan import Plan, build_plan, formulas_of
from growkit.planning.state import begin
from growkit.recipe.recipe import parse_recipe

ORDERS = 40  # of layers, random ones among them
SAMPLE = 12  # models, or orders, that the quick tests try
MODELS = [pytest.param(name, marks=pytest.mark.model(name)) for name in zoo.models()]
FAMILIES = [name for name, models in zoo.families().items() if models]
WITH_LAYERS = sorted(set(FAMILIES) - {"albert"})  # whose layers are one set of weights
PER_LAYER = ("layer_types", "no_rope_layers", "attention_layers", "mlp_layer_types")
SLIDING, FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True)
class Small:
    """A tiny model of the zoo: its class, and headers and config as transformers saves them."""

    cls: Any
    checkpoint: Checkpoint
    kwargs: Mapping[str, Any]

    @cached_property
    def model(self) -> Model:
        """It, read."""
        return read_model(self.checkpoint)

    def lacks(self, config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> list[str]:
        """What transformers misses, does not expect, or finds of another shape."""
        tensors = {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}
        made = self.cls.config_class.from_dict(json.loads(json.dumps(config)))
        _, info = self.cls.from_pretrained(
            None, config=made, state_dict=tensors, output_loading_info=True, **self.kwargs
        )
        wrong = ("missing_keys", "unexpected_keys", "mismatched_keys")
        return [f"{key}: {sorted(info[key])[0]}" for key in wrong if info[key]]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Small]:
    """A model of the zoo by name, with float32 weights that nothing reads."""

    @cache
    def of(name: str) -> Small:
        described = zoo.models()[name]
        model = tiny.make(described, dtype=torch.float32)
        folder = tiny.save(model, tmp_path_factory.mktemp("small"))
        return Small(type(model), open_checkpoint(folder), described.kwargs)

    return of


def planned(small: Small, steps: list[dict[str, Any]]) -> Plan:
    """The plan of these steps."""
    recipe = parse_recipe({"steps": steps})
    return build_plan("test", recipe, {recipe.sources[0]: small.model})


def outcome(small: Small, steps: list[dict[str, Any]]) -> tuple[str, str]:
    """Whether a growth is refused or loads whole in transformers, and else what is wrong."""
    try:
        plan = planned(small, steps)
    except RecipeError as error:
        return ("refused", "") if error.hint else ("wrong", f"no hint: {error.message}")
    wrong = small.lacks(plan.config, {f.name: f.shape for f in plan.formulas})
    wrong += other_kinds(small, plan)
    return ("wrong", f"{steps}: {wrong}") if wrong else ("loaded", "")


def other_kinds(small: Small, plan: Plan) -> list[str]:
    """Layers that transformers takes for another kind than the layers that they copy."""
    before, after = kinds(small, small.checkpoint.config), kinds(small, plan.config)
    if len(plan.layer_maps) != 1:
        return []
    source = [layer.source for layer in next(iter(plan.layer_maps.values()))]
    return [
        f"{key}: {after.get(key)}"
        for key, each in before.items()
        if after.get(key) != [each[n] for n in source]
    ]


def kinds(small: Small, config: Mapping[str, Any]) -> dict[str, list[Any]]:
    """What transformers reads off a config about each layer."""
    made = small.cls.config_class.from_dict(json.loads(json.dumps(config)))
    found = {key: getattr(made, key, None) for key in PER_LAYER}
    return {key: list(value) for key, value in found.items() if isinstance(value, list | tuple)}


def summed(results: Iterable[tuple[str, str]], what: str) -> Counter[str]:
    """Count what came of each try, print it, and fail with what went wrong."""
    each = list(results)
    counts = Counter(result for result, _ in each)
    print(f"{what}: tried {len(each)}, {dict(counts)}")
    assert not counts["wrong"], [why for result, why in each if result == "wrong"][:5]
    return counts


# -- reading: each kind of tensor removed once ---------------------------------------------------


def removals(checkpoint: Checkpoint) -> list[frozenset[str]]:
    """For each kind of tensor: the last of it, the first of it, and all of it."""
    of_kind: dict[str, list[str]] = {}
    for name in checkpoint.tensors:
        of_kind.setdefault(re.sub(r"(?<=\.)\d+(?=\.|$)", "#", name), []).append(name)
    each = (part for names in of_kind.values() for part in (names[-1:], names[:1], names))
    return sorted({frozenset(names) for names in each}, key=sorted)


def without(small: Small, gone: frozenset[str]) -> tuple[str, str]:
    """Whether a checkpoint without these tensors is refused; else transformers misses nothing."""
    left = {n: info for n, info in small.checkpoint.tensors.items() if n not in gone}
    try:
        read_model(replace(small.checkpoint, tensors=left))
    except CheckpointError:
        return "refused", ""
    wrong = small.lacks(small.checkpoint.config, {n: info.shape for n, info in left.items()})
    return ("wrong", f"without {sorted(gone)}: {wrong}") if wrong else ("loaded", "")


def test_incomplete_checkpoints_are_refused(saved: Callable[[str], Small]) -> None:
    """A sample of models, and of their tensors."""
    drawn = random.Random(12)
    for name in drawn.sample(sorted(zoo.models()), SAMPLE):
        small = saved(name)
        parts = removals(small.checkpoint)
        counts = summed((without(small, p) for p in drawn.sample(parts, min(SAMPLE, len(parts)))),
                        name)  # fmt: skip
        assert counts["refused"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.model(n)) for n in zoo.models()]
)
def test_every_kind_of_tensor_is_missed(saved: Callable[[str], Small], name: str) -> None:
    """For every head class of every family, each kind of tensor removed once."""
    small = saved(name)
    summed((without(small, gone) for gone in removals(small.checkpoint)), name)


# -- planning: orders of layers ------------------------------------------------------------------


def orders(count: int, drawn: random.Random) -> list[list[int]]:
    """The recipes' orders of layers, and random ones, of which some leave layers out."""
    named = {
        tuple(rule(count, more))
        for rule in RULES.values()
        for more in (count + 1, 2 * count, count + 2 - count % 2)
        if rule.__name__ in ("stack", "interleave") or more <= 2 * count
        if rule.__name__ != "overlap" or more % 2 == 0
    }
    while len(named) < ORDERS:
        length = drawn.randint(count, 3 * count)
        named.add(tuple(drawn.choices(range(count), k=length)))
    return [list(order) for order in sorted(named)]


def step_of(order: list[int], axes: Iterable[str]) -> dict[str, Any]:
    """The depth step that takes these layers, in one stack or in each."""
    return {"op": "depth", "to": dict.fromkeys(axes, len(order)), "layers": order}


def deepened(small: Small, drawn: random.Random) -> list[list[dict[str, Any]]]:
    """Recipes of one depth step each: one stack of the model, in every order."""
    family, sizes = small.model.family, small.model.sizes
    axes = [a for a in family.of_kind("layers") if a in sizes]
    names = {a: user for user, each in family.user_axes.items() for a in each}
    axis = drawn.choice(axes)
    return [[step_of(order, [names[axis]])] for order in orders(sizes[axis], drawn)]


SPELLINGS: dict[str, tuple[str, dict[str, Any]]] = {  # as published before configs listed layers
    "gemma2": ("gemma2/causal", {}),
    "gemma3": ("gemma3_text/causal", {"sliding_window_pattern": 6}),
    "gemma3, every second": ("gemma3_text/causal", {"sliding_window_pattern": 2}),
    "gemma3, no key": ("gemma3_text/causal", {}),
    "cohere2": ("cohere/cohere2", {"sliding_window_pattern": 4}),
    "cohere2, every second": ("cohere/cohere2", {"sliding_window_pattern": 2}),
    "gpt_oss": ("gpt_oss/causal", {}),
    "olmo3": ("olmo2/olmo3", {}),
    "smollm3": ("smollm3/interval", {"no_rope_layer_interval": 2}),
    "qwen2": ("llama/qwen2 sliding", {"max_window_layers": 1}),
    "qwen2, none": ("llama/qwen2", {"use_sliding_window": False, "max_window_layers": 1}),
    "qwen2_moe": ("qwen2_moe/sparse", {"use_sliding_window": False}),
    "modernbert": ("modernbert/masked_lm", {"global_attn_every_n_layers": 3}),
    "modernbert, every second": ("modernbert/masked_lm", {"global_attn_every_n_layers": 2}),
}


def as_published(small: Small, keys: Mapping[str, Any]) -> Small:
    """The same model with a config that does not list the kinds of its layers."""
    config = {k: v for k, v in small.checkpoint.config.items() if k not in PER_LAYER}
    return replace(small, checkpoint=replace(small.checkpoint, config={**config, **keys}))


def test_layer_orders_load_or_are_refused(saved: Callable[[str], Small]) -> None:
    """A sample of families, and of orders of their layers."""
    drawn = random.Random(7)
    always = {"deepseek_v3", "qwen2_moe", "modernbert"}
    for family in sorted({*drawn.sample(WITH_LAYERS, 6), *always}):
        small = saved(drawn.choice(zoo.families()[family]))
        recipes = drawn.sample(deepened(small, drawn), 5)
        summed((outcome(small, steps) for steps in recipes), family)


@pytest.mark.parametrize("name", SPELLINGS)
def test_kinds_of_layers_follow_the_copied_layer(saved: Callable[[str], Small], name: str) -> None:
    """In configs as published, which say by a number or by nothing what the layers are."""
    model, keys = SPELLINGS[name]
    small = as_published(saved(model), keys)
    count = small.model.sizes["layers"]
    orders = [rule(count, 2 * count) for rule in (RULES["stack"], RULES["insert"])]
    counts = summed((outcome(small, [step_of(o, ["layers"])]) for o in orders), name)
    assert counts["loaded"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("family", WITH_LAYERS)
def test_every_layer_order_loads_or_is_refused(saved: Callable[[str], Small], family: str) -> None:
    """The recipes' orders and random ones, of two models of each family."""
    drawn = random.Random(family)
    for name in drawn.sample(zoo.families()[family], min(2, len(zoo.families()[family]))):
        small = saved(name)
        summed((outcome(small, steps) for steps in deepened(small, drawn)), name)


def test_an_order_that_no_number_says_has_its_repair(saved: Callable[[str], Small]) -> None:
    """Dense layers come first; the hint lists the layers so that they do."""
    small = saved("deepseek_v3/causal")
    with pytest.raises(RecipeError, match="layer 1 would not be of the kind of layer 1") as raised:
        planned(small, [step_of([0, 1, 2, 0, 1, 2], ["layers"])])
    assert raised.value.hint == "list those first: layers: [0, 0, 1, 2, 1, 2]"
    plan = planned(small, [step_of([0, 0, 1, 2, 1, 2], ["layers"])])
    assert plan.config["first_k_dense_replace"] == 2


# -- planning: widths, tables, experts, several checkpoints ---------------------------------------


def widened(model: Model) -> list[list[dict[str, Any]]]:
    """Every growth of the families' table that is one of these, and a few more."""
    recipes = [growths.growth_of(name, model) for name in growths.GROWTHS]
    sizes = model.user_sizes()
    recipes += [[growths.width(**{axis: "2x"})] for axis in sizes]
    recipes += [[growths.width(**{axis: size + 1})] for axis, size in sizes.items()]
    recipes += [[{"op": "resize", "vocab": sizes.get("vocab", 0) + 3}]]
    recipes += [[{"op": "resize", "positions": sizes.get("positions", 0) + 5}]]
    recipes += [[{"op": "coalesce", "to": {"axes": "1/2x"}}]]
    recipes += [[{"op": "decoalesce", "to": {"axes": "2x"}}]]
    recipes += [[growths.width(axes="2x"), {"op": "depth", "to": {"layers": "2x"}}]]
    return [steps for steps in recipes if steps]


def fused(small: Small) -> tuple[str, str]:
    """A model beside itself."""
    recipe = parse_recipe({"sources": ["a", "b"], "steps": [{"op": "fuse", "with": ["b"]}]})
    try:
        plan = build_plan("test", recipe, {"a": small.model, "b": small.model})
    except GrowkitError:
        return "refused", ""
    wrong = small.lacks(plan.config, {f.name: f.shape for f in plan.formulas})
    return ("wrong", f"fused: {wrong}") if wrong else ("loaded", "")


def test_widths_load_or_are_refused(saved: Callable[[str], Small]) -> None:
    """A sample of models, and of growths."""
    drawn = random.Random(5)
    for name in drawn.sample(sorted(zoo.models()), SAMPLE):
        small = saved(name)
        recipes = drawn.sample(widened(small.model), 4)
        summed([*(outcome(small, steps) for steps in recipes), fused(small)], name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.model(n)) for n in zoo.models()]
)
def test_every_width_loads_or_is_refused(saved: Callable[[str], Small], name: str) -> None:
    """Every model of the zoo by every growth in width, of tables and of experts, and fused."""
    small = saved(name)
    summed([*(outcome(small, steps) for steps in widened(small.model)), fused(small)], name)


# -- planning: the net below ----------------------------------------------------------------------


def test_a_config_that_would_not_describe_the_result_is_refused(
    saved: Callable[[str], Small],
) -> None:
    """The plan reads its own result back: other kinds of layers, another size, other depths."""
    model = saved("deepseek_v3/causal").model
    state = begin("model", model, "final_norm")
    check_closure(state, formulas_of(state))
    for keys, why in (
        ({"first_k_dense_replace": 2}, r"layers\.1\.mlp\.gate_proj\.weight is missing"),
        ({"first_k_dense_replace": 0}, "layer 0 is of another kind"),
        ({"vocab_size": 30}, "expected vocab = 30, found 29"),
        ({"num_hidden_layers": 4}, "is missing"),
        ({"num_hidden_layers": 2}, "layers number 2, but config.json says there are 2"),
    ):
        changed = replace(state, config={**state.config, **keys})
        with pytest.raises(RecipeError, match=why):
            check_closure(changed, formulas_of(state))
