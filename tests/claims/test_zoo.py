"""Every family: its file describes the tensors on disk, and every claim is what is measured."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import growths, tiny, zoo
from support.families_table import SHORT, documented

from growkit import api
from growkit.checkpoints.open import open_checkpoint
from growkit.families.load import family_names
from growkit.families.model import read_model
from growkit.planning.proof.claim import APPROXIMATE, EPS
from growkit.recipe.recipe import parse_recipe

DIFFERS = 1e-4
MODELS = sorted(zoo.models())


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tiny.Saved]:
    """A model of the zoo by name; the last ones are kept, with what they answer."""

    @lru_cache(maxsize=4)
    def of(name: str) -> tiny.Saved:
        return tiny.Saved.at(tmp_path_factory.mktemp("small"), name)

    return of


@pytest.mark.parametrize("name", zoo.by_speed())
def test_contract(saved: Callable[[str], tiny.Saved], name: str) -> None:
    """Every tensor on disk is described, by axes that cannot pass for each other."""
    model = read_model(open_checkpoint(saved(name).folder))
    family = model.family
    assert family.name == name.partition("/")[0]
    assert len(model.entries) + len(model.dropped) == len(model.checkpoint.tensors)
    bound = [{a for e in es for a in e.axes} for es in family.config.values()]
    bound += [{*pair} for pair in family.followers.items()] + [{*p} for p in family.like.items()]
    spelt = {key: es for names, es in family.config.items() for key in names.split("|")}
    for key, other in family.defaults.items():  # a size that the config leaves out is another's
        if other in spelt and key not in zoo.models()[name].config:
            bound.append({a for k in (key, other) for e in spelt[k] for a in e.axes})
    used = {a for e in model.entries.values() for x, _ in e.pattern.dims for a in x.axes}
    for a in used:
        for b in used - {a}:
            if model.sizes[a] == model.sizes[b]:
                assert any({a, b} <= group for group in bound), f"{a} and {b}: {model.sizes[a]}"


@pytest.mark.parametrize(("name", "growth"), zoo.by_speed(growths.GROWTHS))
def test_claim_is_measurement(
    saved: Callable[[str], tiny.Saved], tmp_path: Path, name: str, growth: str
) -> None:
    """What the plan claims is what transformers computes in float64, and what the docs say."""
    cell = growths.try_growth(saved(name), growth, tmp_path / "big")
    claim = documented()[name, growth]
    assert claim == ("–" if cell is None else SHORT[cell.claim]), cell and cell.why
    if cell is None:
        return
    if cell.measured is None:
        assert cell.why
    elif cell.claim == APPROXIMATE:
        assert cell.why
        assert cell.measured > DIFFERS
    else:
        assert cell.measured <= cell.allowed


@pytest.mark.parametrize("name", zoo.by_speed(every=3))
def test_round_trip(saved: Callable[[str], tiny.Saved], tmp_path: Path, name: str) -> None:
    """coalesce(decoalesce(x)) = x, bit for bit, wherever the family can be doubled at all."""
    small = saved(name).folder
    steps = [{"op": "decoalesce", "to": {"axes": "2x"}}, {"op": "coalesce", "to": {"axes": "1/2x"}}]
    result = api.grow(small, parse_recipe({"steps": steps}), out=tmp_path / "out")
    before, after = (load_file(p / "model.safetensors") for p in (small, result.out))
    assert all(torch.equal(before[k], v) for k, v in after.items())


def test_factors_that_cannot_be_folded(tmp_path: Path) -> None:
    """After a blend a projection is no longer one stored tensor: LayerScale stays where it is."""
    small = tiny.Saved.at(tmp_path / "small", "dinov2/model").folder
    steps = [{"op": "blend", "with": "other", "alpha": 0.5}, growths.width(axes="3/2x")]
    recipe = parse_recipe({"sources": ["small", "other"], "steps": steps})
    plan = api.plan_growth(small, recipe, sources={"other": str(small)})
    assert plan.steps[1].claim == APPROXIMATE
    assert "mean rows do not pass a factor per coordinate" in plan.steps[1].reasons[0]
    plan = api.plan_growth(small, parse_recipe({"steps": [growths.width(axes="3/2x")]}))
    formulas = {f.name: f for f in plan.formulas}
    weight = formulas["encoder.layer.0.attention.output.dense.weight"].terms[0].source
    assert weight.by.name == "encoder.layer.0.layer_scale1.lambda1"


@pytest.mark.parametrize(("how", "claim"), [("stack", APPROXIMATE), ("insert", EPS)])
def test_layers_copied_with_the_factor_of_a_tied_head(tmp_path: Path, how: str, claim: str) -> None:
    """BART's last norm carries it, in a layer that is copied whole, or that silent ones follow."""
    small = tiny.Saved.at(tmp_path / "small", "bart/generation").folder
    steps = [growths.width(axes="2x"), {"op": "depth", "to": {"layers": "2x"}, "how": how}]
    result = api.grow(small, parse_recipe({"steps": steps}), out=tmp_path / "out")
    found = api.verify_growth(small, result.out)
    assert found.passed
    assert result.plan.claim.claim == claim
    assert found.measurement.error is not None
    assert (found.measurement.error > DIFFERS) == (claim == APPROXIMATE)


def test_every_family_is_tried() -> None:
    """No shipped family without a tiny model."""
    tried = {name.partition("/")[0] for name in MODELS}
    elsewhere = {"bert", "gpt2", "llama", "timm_vit"}
    refused = {"mamba", "swin"}
    assert set(family_names()) - elsewhere - refused <= tried


def test_several_dtypes_and_buffers_in_one_file(tmp_path: Path) -> None:
    """Every tensor keeps its dtype, and a buffer that models make anew is told and left out."""
    small = tiny.save(tiny.make(zoo.models()["qwen3/causal"], dtype=torch.float32), tmp_path / "s")
    before = load_file(small / "model.safetensors")
    before = {k: v if "norm" in k else v.to(torch.bfloat16) for k, v in before.items()}
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6)}
    save_file(before | buffer, small / "model.safetensors", metadata={"format": "pt"})
    result = api.grow(small, "double_width", out=tmp_path / "out")
    after = load_file(result.out / "model.safetensors")
    assert {k: v.dtype for k, v in after.items()} == {k: v.dtype for k, v in before.items()}
    assert [d.partition(":")[0] for d in result.plan.dropped] == [*buffer]
    assert api.verify_growth(small, result.out).passed
