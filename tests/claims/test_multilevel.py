"""The Multi-Level framework: coalescing undoes de-coalescing, and what a V-cycle keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support import tiny
from support.growths import HEADS, measure, sizes, steps_of

from growkit import api
from growkit.errors import RecipeError
from growkit.planning.proof.claim import APPROXIMATE, EPS, EXACT

HALF = {"width": "half", "depth": "adjacent"}
ADJACENT = {"width": "adjacent", "depth": "half"}


def level(op: str, pairing: dict[str, str], **to: str) -> dict[str, Any]:
    """One leg of the V-cycle."""
    return {"op": op, "to": to, "pairing": pairing}


def same_bits(a: Path, b: Path) -> bool:
    """Whether two checkpoints hold the same tensors, bit for bit."""
    one, two = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


@pytest.mark.parametrize("tied", ["final_norm", "embedding"])
@pytest.mark.parametrize("pairing", [HALF, ADJACENT], ids=["half", "adjacent"])
@pytest.mark.parametrize(("family", "head"), HEADS)
def test_coalesce_undoes_decoalesce(
    tmp_path: Path, family: str, head: str, pairing: dict[str, str], tied: str
) -> None:
    """Ratio 2, float32, width and depth: the very same bits come back."""
    model = tiny.build(family, head, seed=3, dtype=torch.float32, **sizes(family))
    small = tiny.save(model, tmp_path / "small")
    up = steps_of([level("decoalesce", pairing, axes="2x", layers="2x")], tied=tied)
    down = steps_of([level("coalesce", pairing, axes="1/2x", layers="1/2x")], tied=tied)
    api.grow(small, up, out=tmp_path / "big")
    result = api.grow(tmp_path / "big", down, out=tmp_path / "back")
    assert same_bits(small, tmp_path / "back")
    assert result.plan.claim.claim == APPROXIMATE
    assert "units are merged or left out" in result.plan.claim.reasons[0]


@pytest.mark.parametrize(
    ("family", "head", "tied", "claim"),
    [
        ("bert", "masked_lm", "final_norm", EXACT), ("bert", "masked_lm", "embedding", EPS),
        ("gpt2", "causal", "final_norm", EXACT), ("gpt2", "causal", "embedding", APPROXIMATE),
        ("llama", "tied", "embedding", APPROXIMATE), ("llama", "causal", "embedding", EXACT),
    ],
)  # fmt: skip
@pytest.mark.parametrize("ratio", ["2x", "3x"])
def test_decoalescing_width(
    tmp_path: Path, family: str, head: str, tied: str, claim: str, ratio: str
) -> None:
    """The exact rule keeps the function; the paper's embedding factor does so only after a norm."""
    model = tiny.build(family, head, seed=3, **sizes(family))
    small = tiny.save(model, tmp_path / "small")
    step = level("decoalesce", HALF, axes=ratio)
    result = api.grow(small, steps_of([step], tied=tied), out=tmp_path / "big")
    assert result.plan.claim.claim == claim
    error = measure(model, small, result)
    assert error > 1e-3 if claim == APPROXIMATE else error < 1e-9


def test_the_embedding_factor_is_the_real_ratio(tmp_path: Path) -> None:
    """Embeddings times 1/3 for threefold width, the final norm untouched."""
    small = tiny.save(tiny.build("gpt2", "causal", seed=3, **sizes("gpt2")), tmp_path / "small")
    step = level("decoalesce", HALF, axes="3x")
    out = api.grow(small, steps_of([step], tied="embedding"), out=tmp_path / "big").out
    a, b = load_file(small / "model.safetensors"), load_file(out / "model.safetensors")
    for name in ("transformer.wte.weight", "transformer.wpe.weight"):
        torch.testing.assert_close(b[name], a[name].repeat(1, 3) / 3)
    torch.testing.assert_close(b["transformer.ln_f.weight"], a["transformer.ln_f.weight"].repeat(3))


def test_explicit_groups(tmp_path: Path) -> None:
    """Layers in groups of two and three: each small layer is the mean of its group."""
    model = tiny.build("llama", "causal", seed=3, **{**sizes("llama"), "layers": 5})
    small = tiny.save(model, tmp_path / "small")
    step = {"op": "coalesce", "groups": {"layers": [[0, 1], [2, 3, 4]]}}
    out = api.grow(small, steps_of([step]), out=tmp_path / "out").out
    a, b = load_file(small / "model.safetensors"), load_file(out / "model.safetensors")
    name = "model.layers.{}.mlp.up_proj.weight".format
    torch.testing.assert_close(b[name(0)], (a[name(0)] + a[name(1)]) / 2)
    torch.testing.assert_close(b[name(1)], (a[name(2)] + a[name(3)] + a[name(4)]) / 3)
    neurons = {"op": "coalesce", "groups": {"mlp": [[i, 17 - i] for i in range(9)]}}
    out = api.grow(small, steps_of([neurons]), out=tmp_path / "neurons").out
    b = load_file(out / "model.safetensors")
    torch.testing.assert_close(b[name(0)][2], (a[name(0)][2] + a[name(0)][15]) / 2)


@pytest.mark.parametrize(
    ("kv_heads", "groups", "after"),
    [
        (2, {"heads": [[0, 1], [2, 3]]}, (2, 2)),
        (2, {"heads": [[0, 2], [1, 3]], "kv_heads": [[0, 1]]}, (2, 1)),
        (2, {"kv_heads": [[1, 0]]}, (4, 1)),
        (4, {"heads": [[0, 3], [1, 2]]}, (2, 2)),  # kv heads like the heads
    ],
)
def test_groups_of_heads(
    tmp_path: Path, kv_heads: int, groups: dict[str, Any], after: tuple[int, int]
) -> None:
    """Query heads merge with others of their kv head; what is taken apart again is the same."""
    keys = {**sizes("llama"), "kv_heads": kv_heads}
    small = tiny.save(tiny.build("llama", "causal", seed=3, **keys), tmp_path / "small")
    down = api.grow(small, steps_of([{"op": "coalesce", "groups": groups}]), out=tmp_path / "down")
    assert tuple(down.plan.sizes_after[a] for a in ("heads", "kv_heads")) == after
    up = steps_of([{"op": "decoalesce", "groups": groups}])
    big = api.grow(down.out, up, out=tmp_path / "big")
    assert big.plan.claim.claim == EXACT
    again = steps_of([{"op": "coalesce", "groups": groups}])
    assert same_bits(api.grow(big.out, again, out=tmp_path / "again").out, down.out)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"op": "coalesce", "to": {"layers": "1/2x"}}, "not a whole number"),
        ({"op": "coalesce", "to": {"layers": 2}}, "3 layers do not pair to 2"),
        ({"op": "coalesce", "groups": {"layers": [[0, 1]]}}, "must be in exactly one group"),
        ({"op": "coalesce", "groups": {"layers": [[0, 1], [1, 2]]}}, "must be in exactly one"),
        ({"op": "decoalesce", "groups": {"layers": [[0, 1], [2, 3]]}}, "2 groups for 3 units"),
        ({"op": "coalesce", "to": {"mlp": "2x"}}, "coalesce does not grow"),
        ({"op": "decoalesce", "to": {"mlp": "1/2x"}}, "decoalesce does not shrink"),
        ({"op": "decoalesce"}, "no target"),
        ({"op": "coalesce", "to": {"vocab": "1/2x"}}, "a table is not merged"),
        ({"op": "coalesce", "to": {"mlpp": "1/2x"}}, 'no axis "mlpp"'),
        ({"op": "coalesce", "to": {"mlp": 12}}, "not a whole multiple"),
        ({"op": "coalesce", "groups": {"heads": [[0, 2], [1, 3]]}}, "meet the keys of another"),
        (
            {"op": "coalesce", "groups": {"heads": [[0, 1, 2, 3]]}},
            r"groups\.heads: query heads would meet",
        ),
    ],
)
def test_refusals(tmp_path: Path, step: dict[str, Any], message: str) -> None:
    """Nothing is dropped silently: what does not pair is refused."""
    model = tiny.build("llama", "causal", **{**sizes("llama"), "layers": 3})
    small = tiny.save(model, tmp_path / "small")
    with pytest.raises(RecipeError, match=message):
        api.plan_growth(small, steps_of([step]))


@pytest.mark.parametrize(
    ("family", "recipe", "overrides", "told"),
    [
        ("bert", "vcycle_up", (), True),
        ("bert", "vcycle_up", ("blend.alpha=0.5",), False),
        ("bert", "vcycle_up_bert", (), False),
        ("gpt2", "vcycle_up", (), False),
    ],
)
def test_a_recipe_that_has_one_of_its_own_for_the_family(
    tmp_path: Path, family: str, recipe: str, overrides: tuple[str, ...], told: bool
) -> None:
    """The paper's alpha for BERT is another one than for the rest, which is said."""
    sizes_of = {"heads": 2, "head_dim": 4, "mlp": 8, "layers": 2}
    small = tiny.save(tiny.build(family, "base", **sizes_of), tmp_path / "small")
    twice = {"heads": 4, "head_dim": 4, "mlp": 16, "layers": 4}
    large = tiny.save(tiny.build(family, "base", **twice), tmp_path / "large")
    plan = api.plan_growth(small, recipe, sources={"large": str(large)}, overrides=overrides)
    said = "for bert the paper has blend.alpha 0.5, not 0.25: recipe vcycle_up_bert"
    assert (said in plan.hints) is told


@pytest.mark.parametrize("up", ["vcycle_up", "vcycle_up_bert"])
def test_a_cycle_of_three_levels(tmp_path: Path, up: str) -> None:
    """Down twice, up twice, each time blended with the model kept from that level."""
    family = "bert" if up.endswith("bert") else "gpt2"
    model = tiny.build(
        family, "base", seed=3, heads=8, head_dim=4, mlp=32, layers=8, dtype=torch.float32
    )
    kept = [tiny.save(model, tmp_path / "level1")]
    for number in (2, 3):
        out = tmp_path / f"level{number}"
        kept.append(api.grow(kept[-1], "vcycle_down", out=out).out)
    small = kept.pop()
    for number, large in enumerate(reversed(kept)):
        out = tmp_path / f"up{number}"
        small = api.grow(small, up, sources={"large": str(large)}, out=out).out
    a, b = load_file(kept[0] / "model.safetensors"), load_file(small / "model.safetensors")
    assert {k: v.shape for k, v in a.items()} == {k: v.shape for k, v in b.items()}
    assert all(torch.isfinite(v).all() for v in b.values())
