"""Operators: which maps and layers they choose, and what they refuse."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from growkit.errors import RecipeError
from growkit.families.family import Family
from growkit.families.load import build_family, find_family
from growkit.ops import OPERATORS, Growth
from growkit.ops.depth import interleave, stack
from growkit.ops.operator import target_size
from growkit.recipe.recipe import load_recipe, parse_recipe

SIZES = {
    "hidden": 24, "heads": 4, "kv_heads": 2, "q": 4, "k": 4, "v": 4, "mlp": 18,
    "pool": 24, "trans": 24, "vocab": 29, "positions": 23, "layers": 3,
}  # fmt: skip

PAIRS = {"map": "fresh", "pairs": True}
RANDOM_18_TO_24 = [10, 17, 13, 5, 13, 7]  # the same on every machine


def family(name: str) -> Family:
    """A shipped family."""
    return build_family(find_family({"model_type": name}), {}, {"pooler.dense"})


def grow(name: str, op: str, sizes: dict[str, int] | None = None, **options: Any) -> Growth:
    """What an operator says for a family."""
    chosen = {a: n for a, n in {**SIZES, **(sizes or {})}.items() if a in family(name).axes}
    return OPERATORS[op].model_validate({"op": op, **options}).grow(family(name), chosen)


@pytest.mark.parametrize(
    ("size", "now", "expected"), [(40, 24, 40), ("2x", 24, 48), ("3/2x", 24, 36), ("1/2x", 24, 12)]
)
def test_sizes_and_ratios(size: int | str, now: int, expected: int) -> None:
    """A number, or a ratio of the present size."""
    assert target_size("hidden", size, now) == expected


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("two", '"two" is not a size'),
        ("x", '"x" is not a size'),
        ("~2", '"~2" is not a size'),
        ("1/0x", '"1/0x" is not a size'),
        ("-2x", '"-2x" is not a size'),
        ("5/7x", "5/7x of 24 is 17.1429, not a whole number"),
        (0, "expected a positive size of at most 1,000,000, found 0"),
        (10**20, "at most 1,000,000, found 1e\\+20"),
        ("1e7x", "at most 1,000,000"),
    ],
)
def test_bad_sizes(size: int | str, message: str) -> None:
    """A size that is no whole number is refused, with what it would be."""
    with pytest.raises(RecipeError, match=message):
        target_size("hidden", size, 24)


@pytest.mark.parametrize(
    ("size", "now", "multiple", "expected"),
    [
        ("~5/4x", 32, 1, 40), ("~5/4x", 22, 1, 27), ("~5/4x", 27, 1, 34), ("~5/4x", 2, 1, 3),
        ("~3/2x", 26, 2, 38), ("~3/2x", 30, 2, 44), ("~3/2x", 2, 2, 4), ("~1/2x", 3, 1, 1),
        ("~1x", 3, 1, 3),
    ],
)  # fmt: skip
def test_the_nearest_size_to_a_ratio(size: str, now: int, multiple: int, expected: int) -> None:
    """Of two as near the smaller one, but what is to grow does."""
    assert target_size("layers", size, now, multiple=multiple) == expected


@pytest.mark.parametrize("layers", [22, 26, 27, 30, 32])
@pytest.mark.parametrize("name", ["llama_pro", "solar", "midas"])
def test_recipes_for_ordinary_depths(name: str, layers: int) -> None:
    """New blocks are spread as evenly as they go, and the step says which layers come again."""
    (step,) = load_recipe(name)[1].steps
    growth = step.grow(family("llama"), SIZES | {"layers": layers})
    sources = [layer.source for layer in growth.layers["layers"]]
    assert {*sources} == {*range(layers)}
    twice = [n for n in range(layers) if sources.count(n) == 2]
    assert len(sources) == layers + len(twice)
    assert abs(len(sources) / layers - (1.25 if name == "llama_pro" else 1.5)) < 2 / layers
    if name == "llama_pro":
        gaps = [b - a for a, b in pairwise(twice)]
        assert max(gaps) - min(gaps) <= 1
    whole = layers % (4 if name != "midas" else 2) == 0
    assert [", ".join(map(str, twice)) in note for note in growth.notes] == (
        [] if whole else [True]
    )


@pytest.mark.parametrize(
    ("heads", "kv_heads", "to", "after", "note"),
    [
        (4, 1, {}, (6, 1), "kv_heads (1) stays: 3/2x"),
        (6, 3, {}, (9, 3), "kv_heads (3) stays"),
        (9, 3, {}, (9, 3), "heads (9) and kv_heads (3) stay"),
        (3, 3, {}, (3, 3), "heads (3) and kv_heads (3) stay"),
        (4, 2, {}, (6, 3), ""),
        (4, 1, {"kv_heads": 1}, (6, 1), ""),
        (9, 3, {"heads": 18}, (18, 3), "kv_heads (3) stays"),
    ],
)
def test_heads_that_a_ratio_for_all_axes_leaves(
    heads: int, kv_heads: int, to: dict[str, int], after: tuple[int, int], note: str
) -> None:
    """What can grow by 3/2 grows, what stays is said; a size of its own is taken as it is."""
    sizes = {"heads": heads, "kv_heads": kv_heads}
    growth = grow("llama", "width", sizes, to={"axes": "3/2x", **to})
    maps = growth.maps
    assert maps["hidden"].new == 36
    assert tuple(maps[a].new if a in maps else sizes[a] for a in sizes) == after
    assert [note in each for each in growth.notes] == ([True] if note else [])


def test_auto_tiles_whole_ratios_and_pads_others() -> None:
    """The table of `auto` for the hidden axis, under LayerNorm and under RMSNorm."""
    tiled = grow("llama", "width", to={"hidden": "2x"}).maps["hidden"]
    np.testing.assert_array_equal(tiled.write.index[:, 0], np.arange(48) % 24)
    assert grow("llama", "width", to={"hidden": 36}).maps["hidden"].write.is_gather
    assert not grow("gpt2", "width", to={"hidden": 36}).maps["hidden"].write.is_gather


def test_kv_heads_follow_heads_where_they_were_equal() -> None:
    """A multi-head model stays multi-head; a grouped one keeps its kv heads."""
    assert grow("llama", "width", {"kv_heads": 4}, to={"heads": 8}).maps["kv_heads"].new == 8
    assert grow("llama", "width", to={"heads": 8}).maps["kv_heads"].is_identity


@pytest.mark.parametrize(
    ("heads", "kv_heads", "expected"),
    [
        (8, 2, [0, 1, 0, 1, 2, 3, 2, 3]),  # copies inside each group
        (8, 4, [0, 1, 2, 3, 0, 1, 2, 3]),  # whole groups copied
        (4, 4, [0, 1, 2, 3]),  # one kv head per query head
    ],
)
def test_query_heads_stay_with_their_kv_head(
    heads: int, kv_heads: int, expected: list[int]
) -> None:
    """Where copies of query heads go when groups grow, multiply or split."""
    maps = grow("llama", "width", to={"heads": heads, "kv_heads": kv_heads}).maps
    assert maps["heads"].write.index[:, 0].tolist() == expected
    own = np.array(expected) // 2
    meets = maps["kv_heads"].write.index[np.arange(heads) // (heads // kv_heads), 0]
    np.testing.assert_array_equal(own, meets)


def test_kv_heads_alone_are_repeated() -> None:
    """Query heads stay where they are, so each part of a group gets a copy of its kv head."""
    for how in ({"kv_heads": "repeat"}, "auto"):
        maps = grow("llama", "width", to={"kv_heads": 4}, how=how).maps
        assert maps["kv_heads"].write.index[:, 0].tolist() == [0, 0, 1, 1]
        assert maps["heads"].is_identity
    maps = grow("llama", "decoalesce", to={"kv_heads": "2x"}).maps
    assert maps["kv_heads"].write.index[:, 0].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("heads", "kv_heads", "expected"), [((3, 0), 2, (1, 0)), ((2, 3), 1, (1,)), ((2,), 1, (1,))]
)
def test_selected_heads_bring_their_kv_heads(
    heads: tuple[int, ...], kv_heads: int, expected: tuple[int, ...]
) -> None:
    """Whole kv groups, or some heads of each: kv heads follow the listed query heads."""
    to = {"heads": len(heads), "kv_heads": kv_heads}
    maps = grow("llama", "width", to=to, how={"heads": chosen(*heads)}).maps
    assert maps["heads"].write.index[:, 0].tolist() == list(heads)
    assert maps["kv_heads"].write.index[:, 0].tolist() == list(expected)


def test_random_copies_belong_to_seed_and_sizes() -> None:
    """The same draw for the same seed and sizes, another one for others; counts say it outright."""

    def drawn(new: int = 36, **options: Any) -> list[int]:
        how = {"mlp": {"map": "random", **options}}
        index = grow("llama", "width", to={"mlp": new}, how=how).maps["mlp"].write.index[:, 0]
        assert index[:18].tolist() == list(range(18))
        return index[18:].tolist()  # type: ignore[no-any-return]

    assert drawn() == drawn(seed=0)
    assert drawn() != drawn(seed=1)
    assert drawn(37)[:18] != drawn()
    assert drawn(21, counts=[1, 3, 2, *[1] * 15]) == [1, 1, 2]
    assert drawn(24) == RANDOM_18_TO_24


def test_uneven_heads_are_fresh() -> None:
    """New heads at an uneven ratio have random producers and zero consumers."""
    m = grow("bert", "width", to={"heads": 6}).maps["heads"]
    assert m.fresh.tolist() == [False] * 4 + [True] * 2
    assert m.read.zero_rows.tolist() == [False] * 4 + [True] * 2


def test_axes_that_only_share_the_size_of_hidden_grow_with_it() -> None:
    """The pooler follows the size, the head's inner axis follows the very map."""
    maps = grow("bert", "width", to={"hidden": 36}).maps
    assert maps["trans"] is maps["hidden"]
    assert maps["pool"].selective
    assert not maps["hidden"].selective


@pytest.mark.parametrize(("new", "power"), [(8, 1.0), (6, 1.5)])
def test_rotary_head_dim(new: int, power: float) -> None:
    """A stride of pairs at whole ratios, another base at uneven ones."""
    growth = grow("llama", "width", to={"head_dim": new})
    assert growth.theta_power == power
    assert growth.maps["q"].fresh.sum() == new - 4
    assert not growth.maps["k"].fresh.any()


def chosen(*index: int) -> dict[str, Any]:
    """A map that keeps the listed units."""
    return {"map": "select", "index": index}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("llama", {"to": {"hiden": 48}}, 'family llama has no axis "hiden"'),
        ("llama", {"to": {"hidden": 48}, "how": {"hiden": "tile"}}, 'no axis "hiden"'),
        ("llama", {"to": {"hidden": 12}}, "24 → 12 shrinks the axis"),
        ("llama", {"to": {"layers": 6}}, "width does not grow this axis"),
        ("llama", {"to": {"vocab": 64}}, "width does not grow this axis"),
        ("llama", {"to": {"mlp": 20}, "how": "tile"}, "tile: 18 → 20 is not a whole multiple"),
        ("llama", {"to": {"hidden": 36}, "how": "fresh"}, "fresh does not fit this axis"),
        ("llama", {"to": {"mlp": 36}, "how": "isometric"}, "must be plain copies, or read by"),
        ("llama", {"to": {"heads": 8}, "how": "isometric"}, "must be plain copies, or read by"),
        ("llama", {"to": {"heads": 8}, "how": "slopes"}, "the family has no ALiBi slopes"),
        ("llama", {"to": {"head_dim": 8}, "how": "repeat"}, "would turn at another frequency"),
        ("llama", {"to": {"mlp": 36}, "how": "ropestride"}, "ropestride does not fit this axis"),
        ("llama", {"to": {"heads": 8}, "how": "ropetheta"}, "ropetheta does not fit this axis"),
        ("bert", {"to": {"head_dim": 8}, "how": "ropestride"}, "no rotary positions"),
        ("llama", {"to": {"head_dim": 7}}, "rotary pairs need even sizes"),
        ("llama", {"to": {"heads": 6, "kv_heads": 4}}, "6 heads cannot be shared by 4 kv heads"),
        ("llama", {"to": {"heads": 4, "kv_heads": 3}}, "4 heads cannot be shared by 3"),
        ("llama", {"to": {"heads": 3, "kv_heads": 3}}, "shrinks the axis"),
        ("llama", {"to": {"kv_heads": 4}, "how": {"kv_heads": "tile"}}, "share less are repeated"),
        ("llama", {"to": {"kv_heads": 4}, "how": "random"}, "how.kv_heads: random does not fit"),
        (
            "llama",
            {"to": {"mlp": 36}, "how": {"mlp": {"map": "uneven", "weights": [1, 2, 3]}}},
            "expected 2 weights",
        ),
        ("llama", {"to": {"hidden": 36}, "how": "ingroup"}, "only query heads stand in groups"),
        ("llama", {"to": {"mlp": 36}, "how": "ingroup"}, "only query heads stand in groups"),
        ("llama", {"to": {"head_dim": 8}, "how": "ingroup"}, "only query heads stand in groups"),
        ("bert", {"to": {"heads": 8}, "how": "ingroup"}, "the family has no kv heads"),
        (
            "llama",
            {"to": {"heads": 8, "kv_heads": 4}, "how": {"heads": "ingroup"}},
            "kv_heads grow too, 2 → 4",
        ),
        (
            "llama",
            {"to": {"heads": 8, "kv_heads": 4}, "how": {"kv_heads": "ingroup"}},
            "only query heads stand in groups",
        ),
        ("llama", {"to": {"mlp": 36}, "how": "lemon"}, "no norm on it could carry"),
        ("llama", {"to": {"heads": 8}, "how": "lemon"}, "no norm on it could carry"),
        (
            "llama",
            {"to": {"heads": 8, "kv_heads": 4}, "how": {"kv_heads": "lemon"}},
            "no norm on it could carry",
        ),
        ("gpt2", {"to": {"head_dim": 6}, "how": "lemon"}, "no norm on it could carry"),
        ("gpt2", {"to": {"head_dim": 6}, "how": "random"}, "every coordinate copied equally often"),
        ("llama", {"to": {"mlp": 21}, "how": PAIRS}, "3 new units do not make pairs"),
        ("bert", {"to": {"head_dim": 6}, "how": PAIRS}, "twins are whole heads or neurons"),
        ("llama", {"to": {"hidden": 36}, "how": PAIRS}, "fresh does not fit this axis"),
        ("llama", {"to": {"mlp": 36}, "how": "select"}, "18 → 36: select only shrinks"),
        ("llama", {"to": {"mlp": 18}, "how": "select"}, "18 → 18: select only shrinks"),
        ("llama", {"to": {"mlp": 4}, "how": "select"}, "0 units are listed, but the new size is 4"),
        ("llama", {"to": {"mlp": 4}, "how": chosen(0, 1)}, "2 units are listed"),
        ("llama", {"to": {"mlp": 2}, "how": chosen(1, 1)}, "every unit once and in range"),
        ("llama", {"to": {"mlp": 2}, "how": chosen(1, 18)}, "every unit once and in range"),
        ("llama", {"to": {"mlp": 2}, "how": chosen(-1, 1)}, "every unit once and in range"),
        ("llama", {"to": {}, "how": {"head_dim": chosen(0, 2)}}, "turn at another frequency"),
        ("llama", {"to": {}, "how": {"kv_heads": chosen(0)}}, "list the query heads"),
        ("llama", {"to": {"heads": 2}, "how": chosen(0, 1)}, "would be torn apart"),
        ("llama", {"to": {"heads": 2, "kv_heads": 1}, "how": chosen(0, 2)}, "torn apart"),
        ("llama", {"to": {"heads": 2, "kv_heads": 1}}, "shrinks the axis"),
        (
            "llama",
            {"to": {"mlp": 20}, "how": {"map": "random", "counts": [2, 2]}},
            "expected 18 counts of at least 1 with sum 20",
        ),
        (
            "llama",
            {"to": {"mlp": 20}, "how": {"map": "random", "counts": [0, 4] + [1] * 16}},
            "expected 18 counts of at least 1 with sum 20",
        ),
    ],
)
def test_width_refusals(name: str, options: dict[str, Any], message: str) -> None:
    """What width cannot do is said with the axis and the reason."""
    with pytest.raises(RecipeError, match=message):
        grow(name, "width", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"map": "tile", "weights": [2, 1]}, "weights is an option of the map uneven, not of tile"),
        ({"map": "circular", "counts": [2, 1]}, "counts is an option of the map random"),
        ({"map": "tile", "seed": 1}, "seed is an option of the map random"),
        ({"map": "uneven", "index": [1]}, "index is an option of the map select"),
        ({"map": "tile", "pairs": True}, "pairs is an option of the map fresh"),
    ],
)
def test_options_belong_to_their_map(options: dict[str, Any], message: str) -> None:
    """An option that its map would ignore is refused."""
    with pytest.raises(RecipeError, match=message):
        parse_recipe({"steps": [{"op": "width", "to": {"mlp": 36}, "how": {"mlp": options}}]})


@pytest.mark.parametrize(
    ("function", "old", "new", "expected"),
    [
        (stack, 3, 8, [0, 1, 2, 0, 1, 2, 1, 2]),
        (stack, 2, 4, [0, 1, 0, 1]),
        (interleave, 3, 6, [0, 0, 1, 1, 2, 2]),
        (interleave, 4, 5, [0, 0, 1, 2, 3]),
    ],
)
def test_layer_lists(function: Any, old: int, new: int, expected: list[int]) -> None:
    """Which old layer each new one copies."""
    assert function(old, new) == expected


TWO = {
    "hidden": 24,
    "encoder.heads": 4,
    "decoder.heads": 3,
    "encoder.layers": 3,
    "decoder.layers": 2,
}


@pytest.mark.parametrize(
    ("options", "lengths"),
    [
        ({"to": {"layers": "2x"}}, {"encoder.layers": 6, "decoder.layers": 4}),
        ({"to": {"decoder.layers": 3}}, {"decoder.layers": 3}),
        (
            {"to": {"decoder.layers": 5, "layers": "2x"}},
            {"encoder.layers": 6, "decoder.layers": 5},
        ),
        ({"to": {"decoder.layers": 3}, "layers": [0, 1, 1]}, {"decoder.layers": 3}),
        ({"layers": [0, 1, 1]}, {"encoder.layers": 3, "decoder.layers": 3}),
    ],
)
def test_layers_of_two_stacks(options: dict[str, Any], lengths: dict[str, int]) -> None:
    """`layers` means every stack, a full name that one alone."""
    layers = OPERATORS["depth"].model_validate({"op": "depth", **options}).grow(family("bart"), TWO)
    assert {axis: len(found) for axis, found in layers.layers.items()} == lengths


def test_axes_of_two_stacks() -> None:
    """A plain name means the axis of every stack, in `to` and in `how`."""
    options = {"to": {"heads": "2x"}, "how": {"heads": "repeat", "decoder.heads": "tile"}}
    width = OPERATORS["width"].model_validate({"op": "width", **options})
    maps = width.grow(family("bart"), TWO).maps
    assert maps["encoder.heads"].write.index[:, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert maps["decoder.heads"].write.index[:, 0].tolist() == [0, 1, 2, 0, 1, 2]


def test_insert_makes_repeats_silent() -> None:
    """The first of each layer is the original, its repeats add nothing."""
    layers = grow("llama", "depth", to={"layers": 5}).layers["layers"]
    assert [n.source for n in layers] == [0, 0, 1, 1, 2]
    assert [n.silent for n in layers] == [False, True, False, True, False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": {"layers": 2}}, "3 → 2 shrinks the model"),
        ({"to": {"hidden": 48}}, "depth only grows layers"),
        ({"to": {"leyers": 4}}, 'no axis "leyers"'),
        ({}, "no target"),
        ({"layers": [0, 1, 7]}, "layer 7 is out of range, the model has 3 layers"),
        ({"layers": [0, 1, 2, 2], "to": {"layers": 5}}, "4 listed, but to.layers is 5"),
    ],
)
def test_depth_refusals(options: dict[str, Any], message: str) -> None:
    """What depth cannot do."""
    with pytest.raises(RecipeError, match=message):
        grow("llama", "depth", **options)
