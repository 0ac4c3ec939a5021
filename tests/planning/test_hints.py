"""Hints: copies that nothing separates, parts that are dead, heads whose logits scale."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import tiny
from support.family_edits import flipped
from support.growths import sizes, steps_of, width

from growkit import api
from growkit.algebra.expression import parse
from growkit.checkpoints.open import open_checkpoint
from growkit.families.model import read_model
from growkit.planning.hints import hints
from growkit.planning.proof.claim import Claim
from growkit.planning.state import begin

TWICE = width(axes="2x")
DEEPER = {"op": "depth", "to": {"layers": "2x"}}
NOISE = {"op": "noise"}


def noise(*only: str, **options: Any) -> dict[str, Any]:
    """Noise on some tensors."""
    return {"op": "noise", "only": [*only], **options}


def uneven(**axes: list[int]) -> dict[str, Any]:
    """Twice the width, consumers split by these weights."""
    return {**TWICE, "how": {a: {"map": "uneven", "weights": w} for a, w in axes.items()}}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny checkpoint of each kind."""
    folder = tmp_path_factory.mktemp("tiny")
    kinds = {"bert": "masked_lm", "gpt2": "causal", "llama": "causal"}
    return {
        family: tiny.save(tiny.build(family, head, seed=3, **sizes(family)), folder / family)
        for family, head in kinds.items()
    }


def warned(checkpoint: Path, *steps: dict[str, Any], **keys: Any) -> list[str]:
    """What the plan of these steps warns of, shortened to axis and layers."""
    others = {name: str(checkpoint) for name in keys.get("sources", ())[1:]}
    plan = api.plan_growth(checkpoint, steps_of([*steps], **keys), sources=others)
    return [hint.partition(": train")[0].replace("copies are equal and stay equal", "locked")
            for hint in plan.hints]  # fmt: skip


FILES = {  # beside the weights, and what is said of each; sizes are 12 wide, 3 heads, 2 layers
    "params.json": ('{"dim": 12, "n_layers": 2}', "left behind"),
    "open_clip_config.json": ("{}", "left behind"),
    "model_config.yaml": ("n_embd: 12\nn_layer: 2\n", "left behind"),
    "serving.toml": ("[model]\nwidth = 12\ndepth = 2\n", "carried as it is"),
    "other.json": ('{"a": {"model": {"hidden": 12, "layers": 2}}}', "carried as it is"),
    "data.json": ('[{"weight": 2}, {"weight": 3}, {"weight": 24}]', ""),  # no width among them
    "width.json": ('{"hidden": 12, "heads": 3}', ""),  # which stay
    "results.json": ('{"layers": 2, "loss": 2.12, "accuracy": 0.3, "version": "3.12"}', ""),
    "generation_config.json": ('{"bos_token_id": 2, "max_length": 12}', ""),
}


def test_files_that_say_sizes_to_other_tools(tmp_path: Path) -> None:
    """They are left behind, or carried with a word; files that say none travel in silence."""
    small = tiny.save(tiny.build("llama", "causal"), tmp_path / "small")
    for name, (text, _) in FILES.items():
        (small / name).write_text(text)
    plan = api.plan_growth(small, steps_of([DEEPER]))
    for name, (_, said) in FILES.items():
        about = "".join(hint for hint in plan.hints if name in hint)
        assert said in about
        assert bool(about) is bool(said)
        travels = name in plan.sources["small"].side_files
        assert travels is (said != "left behind")
    (told,) = [hint for hint in plan.hints if "serving.toml" in hint]
    assert "(2, 12)" in told


@pytest.mark.parametrize(
    ("kind", "steps", "expected"),
    [
        ("llama", [TWICE], ["hidden: locked", "heads: locked", "mlp: locked"]),
        ("llama", [TWICE, NOISE], []),
        ("bert", [TWICE, {"op": "noise", "kind": "gaussian", "mask": "new"}], []),
        ("llama", [width(mlp="2x")], ["mlp: locked"]),
        ("llama", [uneven(mlp=[2, 1])], ["hidden: locked", "heads: locked"]),
        ("llama", [uneven(mlp=[2, 1], hidden=[3, 1], heads=[2, 1])], []),
        ("llama", [TWICE, noise("*.mlp.*")], ["heads: locked"]),
        ("llama", [TWICE, noise("*.q_proj.*")], ["mlp: locked"]),
        (
            "llama", [TWICE, noise("*.0.mlp.*")],
            ["heads: locked", "mlp: locked in 1 of 2 layers"],
        ),
        ("gpt2", [TWICE, noise("*.c_attn.*")], ["mlp: locked"]),
        ("gpt2", [width(hidden="2x", head_dim="2x")], ["hidden: locked", "head_dim: locked"]),
        ("llama", [width(heads=6)], []),  # new heads are random
        ("llama", [width(hidden=40)], ["hidden: 16 units are zero on both sides and get no "
          "gradient; add a noise step, or choose another map"]),
        ("llama", [width(hidden=40), NOISE], []),
        ("gpt2", [width(hidden=24, heads=6)], []),  # they read every coordinate
        ("gpt2", [width(hidden=24, head_dim=6)], ["hidden: locked", "head_dim: locked"]),
        ("llama", [{**width(mlp=30), "how": "pad"}], ["mlp: 24 units are zero on both sides and "
          "get no gradient; add a noise step, or choose another map"]),
        ("llama", [DEEPER], []),  # silent, not dead
        ("llama", [{**DEEPER, "how": "stack"}], []),
        ("llama", [{"op": "resize", "vocab": 50}], []),
        ("llama", [{"op": "noise", "kind": "gaussian"}], []),
    ],
)  # fmt: skip
def test_what_nothing_separates(
    checkpoints: dict[str, Path], kind: str, steps: list[Any], expected: list[str]
) -> None:
    """Each source of asymmetry counts for the axes and layers that it separates."""
    assert warned(checkpoints[kind], *steps) == expected


def test_blend_separates(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Another model of the grown shape has no copies, and `only` says where it goes."""
    big = api.grow(checkpoints["llama"], steps_of([TWICE, NOISE]), out=tmp_path / "big").out
    for only, expected in (((), []), (["*.mlp.*"], ["heads: locked"])):
        mix = {"op": "blend", "with": "large", "alpha": 0.5, "only": only}
        recipe = steps_of([TWICE, mix], sources=["small", "large"])
        plan = api.plan_growth(checkpoints["llama"], recipe, sources={"large": str(big)})
        assert [hint.partition(":")[0] for hint in plan.hints] == [
            e.partition(":")[0] for e in expected
        ]


def test_fusion(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Copies side by side are locked as blocks until noise comes; different models are not."""
    fuse = {"op": "fuse", "with": ["b"]}
    keys = {"sources": ["small", "b"]}
    found = warned(checkpoints["llama"], fuse, **keys)
    assert found == ["the models side by side are equal and stay equal"]
    assert warned(checkpoints["llama"], {"op": "fuse", "with": ["small"]}) == found
    assert warned(checkpoints["llama"], fuse, NOISE, **keys) == []
    other = tiny.save(tiny.build("llama", "causal", seed=4, **sizes("llama")), tmp_path / "other")
    recipe = steps_of([fuse], **keys)
    assert api.plan_growth(checkpoints["llama"], recipe, sources={"b": str(other)}).hints == ()


def test_tied_head_whose_logits_scale(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Where no norm can carry the factor, the way out is named."""
    family = flipped(tmp_path, "gpt2", lambda d: d["head"].update(scale_at=None))
    plan = api.plan_growth(checkpoints["gpt2"], steps_of([TWICE, NOISE]), family=family)
    (hint,) = plan.hints
    assert hint.startswith("tied head: logits grow by 2, and no norm before the head can carry 1/2")
    assert hint.endswith("`tied: untie` gives the head weights of its own")


@pytest.mark.parametrize(
    ("zeroed", "dead"),
    [
        ([], False),
        (["layers.1.mlp.down_proj.weight", "layers.1.self_attn.o_proj.weight"], False),
        (["layers.1.input_layernorm.weight"], False),
        (
            ["layers.1.mlp.down_proj.weight", "layers.1.self_attn.o_proj.weight",
             "layers.1.post_attention_layernorm.weight"], True,
        ),
    ],
)  # fmt: skip
def test_dead_layers(checkpoints: dict[str, Path], zeroed: list[str], dead: bool) -> None:
    """Zero outputs learn, a zero gain learns, both together in one layer do not."""
    model = read_model(open_checkpoint(checkpoints["llama"]))
    state = begin("small", model, "final_norm")
    parts = dict(state.parts)
    for name in zeroed:
        parts[name] = replace(parts[name], terms=())
    found = list(hints(model.family, parts, state.sizes, Claim()))
    assert bool(found) is dead
    assert not dead or "1 layers have a norm with gain zero" in found[0]


@pytest.mark.parametrize(
    ("steps", "locked"),
    [
        ([TWICE], {"mlp"}),
        ([TWICE, noise("*.q_proj.*", snr_db=0)], {"mlp"}),
        ([TWICE, noise("*.mlp.*", snr_db=0)], set()),
        ([uneven(mlp=[2, 1])], set()),
    ],
)
def test_gradients_of_locked_copies_are_equal(
    checkpoints: dict[str, Path], tmp_path: Path, steps: list[Any], locked: set[str]
) -> None:
    """What the hint says of neurons is what autograd says of their gradients."""
    result = api.grow(checkpoints["llama"], steps_of(steps), out=tmp_path / "big")
    model = tiny.load(result.out, tiny.build("llama", "causal", **sizes("llama")))
    logits = model(input_ids=tiny.tokens()).logits
    (
        logits * torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    ).sum().backward()
    for layer in model.model.layers:
        gradient = layer.mlp.up_proj.weight.grad
        first, second = gradient.chunk(2)
        assert torch.allclose(first, second, atol=1e-12) is ("mlp" in locked)
    assert ("mlp" in " ".join(result.plan.hints)) is ("mlp" in locked)


def test_dead_units_have_no_gradient(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Coordinates that are zero on both sides: no weight that touches them has a gradient."""
    result = api.grow(checkpoints["llama"], steps_of([width(hidden=40)]), out=tmp_path / "big")
    model = tiny.load(result.out, tiny.build("llama", "causal", **sizes("llama")))
    model(input_ids=tiny.tokens()).logits.square().sum().backward()
    assert model.model.embed_tokens.weight.grad[:, :24].any()
    assert not model.model.embed_tokens.weight.grad[:, 24:].any()
    assert not model.model.layers[0].mlp.up_proj.weight.grad[:, 24:].any()
    assert not model.model.layers[0].mlp.down_proj.weight.grad[24:].any()


def test_places_of_units() -> None:
    """Where each unit of an axis lies in a composed dim."""
    sizes_ = {"kv_heads": 2, "q": 2, "k": 1}
    fused = parse("kv_heads.(q|k)")
    np.testing.assert_array_equal(fused.units("kv_heads", sizes_), [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(fused.units("q", sizes_), [[0, 3], [1, 4]])
    np.testing.assert_array_equal(fused.units("k", sizes_), [[2, 5]])
