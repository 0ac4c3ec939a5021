"""The width maps beyond copies and pads: what each is claimed to keep, and what it keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support import tiny
from support.family_edits import flipped
from support.growths import DIFFERS, TOLERANCE, measure, sizes, steps_of

from growkit import api
from growkit.checkpoints.open import open_checkpoint
from growkit.errors import RecipeError
from growkit.families.model import read_model
from growkit.planning.plan import build_plan
from growkit.planning.proof.claim import APPROXIMATE, EPS, EXACT
from growkit.recipe.recipe import load_recipe

NOISE = {"op": "noise", "snr_db": 0}
RANDOM = {"map": "random", "seed": 5}
PAIRS = {"map": "fresh", "pairs": True}
COUNTS = {"map": "random", "counts": [3] + [1] * 17}
MHA = {**sizes("llama"), "kv_heads": 4}


def width(how: Any, **to: Any) -> dict[str, Any]:
    """A width step with its maps."""
    return {"op": "width", "to": to, "how": how}


def grow(
    folder: Path, family: str, head: str, *steps: dict[str, Any], **keys: Any
) -> tuple[Any, Path, api.Result]:
    """A tiny float64 model, where it lies, and what these steps make of it."""
    model = tiny.build(family, head, seed=3, **{**sizes(family), **keys})
    small = tiny.save(model, folder / "small")
    return model, small, api.grow(small, steps_of([*steps]), out=folder / "big")


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint."""
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize(
    ("family", "head", "step", "claim"),
    [
        ("llama", "causal", width(RANDOM, mlp=25), EXACT),
        ("llama", "tied", width(RANDOM, mlp=40, heads=8, kv_heads=4, hidden=24), EXACT),
        ("llama", "causal", width({"heads": RANDOM}, heads=8), EXACT),
        ("llama", "causal", width({"heads": "ingroup"}, heads=8), EXACT),
        ("llama", "causal", width({"heads": "ingroup"}, heads=6), EXACT),
        ("bert", "masked_lm", width({"mlp": COUNTS}, mlp=20), EXACT),
        ("gpt2", "causal", width({"heads": RANDOM, "mlp": RANDOM}, axes="3/2x"), EXACT),
        ("gpt2", "causal", width({"mlp": {"map": "uneven", "weights": [3, 1]}}, mlp="2x"), EXACT),
        ("bert", "base", width({"heads": {"map": "uneven", "weights": [3, 1]}}, axes="2x"), EXACT),
        ("llama", "causal", width({"hidden": RANDOM}, hidden=28), APPROXIMATE),
        ("llama", "causal", width(PAIRS, mlp=24), EXACT),
        ("llama", "causal", width(PAIRS, heads=8), EXACT),
        ("llama", "causal", width({"heads": PAIRS}, hidden=48, heads=8, kv_heads=4), EXACT),
        ("gpt2", "causal", width({"heads": PAIRS, "mlp": PAIRS}, axes="3/2x", mlp=20), EXACT),
        ("bert", "masked_lm", width({"heads": PAIRS, "mlp": PAIRS}, axes="2x"), EXACT),
        ("gpt2", "causal", width({"hidden": "lemon"}, axes="3/2x"), EXACT),
        ("gpt2", "base", width({"hidden": "lemon"}, axes="5/2x"), EXACT),
        ("llama", "causal", width({"hidden": "lemon"}, hidden=28), EXACT),
        ("llama", "tied", width({"hidden": "lemon"}, hidden=60), EXACT),
        ("llama", "tied", width({"hidden": "lemon"}, hidden=48), EXACT),
        ("bert", "masked_lm", width({"hidden": "lemon"}, axes="3/2x"), APPROXIMATE),
    ],
)  # fmt: skip
@pytest.mark.parametrize("noise", [False, True], ids=["", "noise"])
def test_claim_is_measurement(
    tmp_path: Path, family: str, head: str, step: dict[str, Any], claim: str, noise: bool
) -> None:
    """Random copies, copies inside groups, uneven splits and LEMON, at an eps that shows."""
    key = {"bert": "layer_norm_eps", "gpt2": "layer_norm_epsilon"}.get(family, "rms_norm_eps")
    steps = [step, NOISE] if noise else [step]
    model, small, result = grow(tmp_path, family, head, *steps, **{key: 1e-2})
    assert result.plan.claim.claim == claim, result.plan.claim.reasons
    error = measure(model, small, result)
    if claim == APPROXIMATE:
        assert error > DIFFERS
    else:
        assert error <= TOLERANCE[torch.float64][claim]
        assert api.verify_growth(small, result.out).passed


@pytest.mark.parametrize(
    ("family", "head", "key", "size"),
    [
        ("gpt2", "causal", "layer_norm_epsilon", "3/2x"),
        ("llama", "causal", "rms_norm_eps", "5/3x"),
    ],
)
def test_lemon_needs_its_eps(tmp_path: Path, family: str, head: str, key: str, size: str) -> None:
    """The eps in config.json is s·eps; with the old one the function would be another."""
    to = {"axes": size} if family == "gpt2" else {"hidden": 40}
    model, small, result = grow(
        tmp_path, family, head, width({"hidden": "lemon"}, **to), **{key: 1e-2}
    )
    path = result.out / "config.json"
    config = json.loads(path.read_text())
    s = 16 / 24 if family == "gpt2" else 24 / 40
    assert config[key] == pytest.approx(1e-2 * s)
    assert measure(model, small, result) < 1e-10
    path.write_text(json.dumps({**config, key: 1e-2}))
    assert measure(model, small, result) > DIFFERS


def test_a_shared_eps_weakens_the_claim(tmp_path: Path) -> None:
    """Where the same eps serves a norm on another axis, LEMON is exact only up to it."""

    def change(data: dict[str, Any]) -> None:
        data["axes"]["other"] = "neurons"
        data["modules"].update(norm="rms other", **{"lm_head?": "lin vocab other"})

    small = tiny.save(tiny.build("llama", "causal", **sizes("llama")), tmp_path / "small")
    family = flipped(tmp_path, "llama", change)
    recipe = steps_of([width({"hidden": "lemon"}, hidden=28)])
    models = {"small": read_model(open_checkpoint(small), family)}
    claim = build_plan("test", recipe, models).claim
    assert claim.claim == EPS
    assert claim.passes == 1
    assert "rms_norm_eps becomes 0.8571 of it, also for 1 norms" in claim.reasons[0]


def test_lemon_needs_an_eps_key(tmp_path: Path) -> None:
    """Without an eps in the family file or in config.json there is nothing to carry the factor."""
    small = tiny.save(tiny.build("llama", "causal", **sizes("llama")), tmp_path / "small")
    recipe = steps_of([width({"hidden": "lemon"}, hidden=28)])
    family = flipped(tmp_path, "llama", lambda d: d.pop("eps"))
    with pytest.raises(RecipeError, match="names no config key for eps"):
        build_plan("t", recipe, {"small": read_model(open_checkpoint(small), family)})
    config = json.loads((small / "config.json").read_text())
    del config["rms_norm_eps"]
    (small / "config.json").write_text(json.dumps(config))
    with pytest.raises(RecipeError, match=r"config\.json has no rms_norm_eps"):
        api.plan_growth(small, recipe)


@pytest.mark.parametrize(
    ("family", "head", "step", "keys"),
    [
        ("llama", "causal", width({"mlp": {"map": "select", "index": [0, 5, 7]}}, mlp=3), {}),
        ("llama", "causal", width({"heads": {"map": "select", "index": [1, 2]}}, heads=2), {}),
        (
            "llama", "causal",
            width({"heads": {"map": "select", "index": [2, 3]}}, heads=2, kv_heads=1), {},
        ),
        ("llama", "causal", width({"heads": {"map": "select", "index": [3, 0]}}, heads=2), MHA),
        ("llama", "tied", width({"hidden": {"map": "select", "index": [*range(4, 24)]}}), {}),
        (
            "bert", "pretraining",
            width(
                {
                    "hidden": {"map": "select", "index": [*range(8)]},
                    "heads": {"map": "select", "index": [1, 3]},
                },
                hidden="1/2x", heads="1/2x",
            ), {},
        ),
        (
            "gpt2", "causal",
            width(
                {
                    "hidden": {"map": "select", "index": [*range(8)]},
                    "head_dim": {"map": "select", "index": [0, 2]},
                },
            ), {},
        ),
    ],
)  # fmt: skip
def test_select(
    tmp_path: Path, family: str, head: str, step: dict[str, Any], keys: dict[str, Any]
) -> None:
    """The listed units stay, the model runs, and nobody calls it the same function."""
    model, small, result = grow(tmp_path, family, head, step, **keys)
    assert result.plan.claim.claim == APPROXIMATE
    assert "merged or left out" in result.plan.claim.reasons[0]
    assert measure(model, small, result) > DIFFERS
    for axis, how in step["how"].items():
        assert result.plan.sizes_after[axis] == len(how["index"])


def test_selected_rows_and_columns(tmp_path: Path) -> None:
    """Rows of producers and columns of consumers, to the bit."""
    step = width({"heads": {"map": "select", "index": [2, 3]}}, heads=2, kv_heads=1)
    _, small, result = grow(tmp_path, "llama", "causal", step)
    a, b = tensors(small), tensors(result.out)
    name = "model.layers.1.self_attn.{}_proj.weight".format
    assert torch.equal(b[name("q")], a[name("q")][8:])
    assert torch.equal(b[name("k")], a[name("k")][4:])
    assert torch.equal(b[name("o")], a[name("o")][:, 8:])


@pytest.mark.parametrize(
    ("family", "head"), [("bert", "masked_lm"), ("gpt2", "causal"), ("llama", "causal")]
)
def test_new_rows_from_the_layer_above(tmp_path: Path, family: str, head: str) -> None:
    """AKI runs, is approximate and says why; a whole model of copies would be exact."""
    step = width("auto", axes="2x")
    model, small, result = grow(tmp_path, family, head, {**step, "new_rows": "above"})
    assert result.plan.claim.claim == APPROXIMATE
    assert result.plan.claim.reasons == ("new rows come from the layer above",)
    assert measure(model, small, result) > DIFFERS
    one = tmp_path / "one"
    model, small, result = grow(one, family, head, {**step, "new_rows": "above"}, layers=1)
    assert result.plan.claim.claim == EXACT
    assert measure(model, small, result) < 1e-10


def test_rows_above_to_the_bit(tmp_path: Path) -> None:
    """Old rows are the layer's own, new ones the next layer's; the last layer uses itself."""
    step = {**width({"mlp": "circular"}, mlp=25), "new_rows": "above"}
    _, small, result = grow(tmp_path, "gpt2", "causal", step)
    a, b = tensors(small), tensors(result.out)
    for layer, above in ((0, 1), (1, 1)):
        for name, dim in (("weight", 1), ("bias", 0)):
            old, new = (t[f"transformer.h.{layer}.mlp.c_fc.{name}"].movedim(dim, 0) for t in (a, b))
            upper = a[f"transformer.h.{above}.mlp.c_fc.{name}"].movedim(dim, 0)
            assert torch.equal(new[:18], old)
            assert torch.equal(new[18:], upper[:7])


def test_rows_above_inside_groups(tmp_path: Path) -> None:
    """Copies stand beside their originals inside a kv group: only they come from above."""
    step = {**width("ingroup", heads=8), "new_rows": "above"}
    _, small, result = grow(tmp_path, "llama", "causal", step)
    a, b = tensors(small), tensors(result.out)
    name = "model.layers.{}.self_attn.q_proj.weight".format
    heads = [a[name(n)].reshape(4, 4, -1) for n in (0, 1)]
    grown = b[name(0)].reshape(8, 4, -1)
    assert torch.equal(grown[[0, 1, 4, 5]], heads[0])
    assert torch.equal(grown[[2, 3, 6, 7]], heads[1])


def test_fresh_twins(tmp_path: Path) -> None:
    """Equal producers, opposite consumers, none of them zero; later growth keeps the function."""
    model, small, result = grow(tmp_path, "llama", "causal", width(PAIRS, mlp=22))
    grown = tensors(result.out)
    for layer in (0, 1):
        for name in ("gate", "up"):
            rows = grown[f"model.layers.{layer}.mlp.{name}_proj.weight"][18:]
            assert torch.equal(rows[0::2], rows[1::2])
            assert rows.abs().min() > 0
        columns = grown[f"model.layers.{layer}.mlp.down_proj.weight"][:, 18:]
        assert torch.equal(columns[:, 0::2], -columns[:, 1::2])
        assert columns.abs().min() > 0
    steps = steps_of([width(PAIRS, mlp=22), NOISE, width("auto", axes="2x"), NOISE])
    result = api.grow(small, steps, out=tmp_path / "bigger")
    assert result.plan.claim.claim == EXACT
    assert measure(model, small, result) < 1e-10


def test_silent_layers_stay_silent(tmp_path: Path) -> None:
    """A layer that adds nothing takes no rows from above, so all of it stays zero."""
    deeper = {"op": "depth", "to": {"layers": "2x"}}
    step = {**width("auto", axes="2x"), "new_rows": "above"}
    _, _, result = grow(tmp_path, "llama", "causal", deeper, step)
    grown = tensors(result.out)
    assert result.plan.zeroed
    assert not any(grown[name].any() for name in result.plan.zeroed)


@pytest.mark.parametrize(
    ("name", "claims"),
    [
        ("hyperclone", {"bert": EXACT, "gpt2": EXACT, "llama": EXACT}),
        ("hyperclone_noisy", {"bert": EXACT, "gpt2": EXACT, "llama": EXACT}),
        ("hyperclone_diagonal", {"bert": EXACT, "gpt2": EXACT, "llama": EXACT}),
        ("net2net", {"bert": EXACT, "gpt2": EXACT, "llama": EXACT}),
        ("lemon", {"bert": APPROXIMATE, "gpt2": EXACT, "llama": EXACT}),
        ("bert2bert_fpi", dict.fromkeys(("bert", "gpt2", "llama"), APPROXIMATE)),
        ("bert2bert_aki", dict.fromkeys(("bert", "gpt2", "llama"), APPROXIMATE)),
    ],
)
@pytest.mark.parametrize(
    ("family", "head"), [("bert", "base"), ("gpt2", "causal"), ("llama", "tied")]
)
def test_recipes(tmp_path: Path, name: str, claims: dict[str, str], family: str, head: str) -> None:
    """The published recipes, on every family: claimed, run and measured."""
    model = tiny.build(family, head, seed=3, **sizes(family))
    small = tiny.save(model, tmp_path / "small")
    result = api.grow(small, load_recipe(name)[1], out=tmp_path / "big")
    assert result.plan.claim.claim == claims[family]
    error = measure(model, small, result)
    assert error > DIFFERS if claims[family] == APPROXIMATE else error < 1e-10


def test_lemon_needs_a_gain(tmp_path: Path) -> None:
    """Norms without gains cannot carry the factor of uneven copies; whole copies need none."""
    small = tiny.Saved.at(tmp_path / "small", "olmo/causal").folder
    family = tmp_path / "mine.yaml"
    family.write_text("family: mine\nextends: olmo\nmodel_type: [olmo]\neps: norm_eps\n")
    uneven = steps_of([width({"hidden": "lemon"}, hidden="4/3x")])
    with pytest.raises(RecipeError, match=r"lemon does not fit .* no gain to carry the change"):
        api.plan_growth(small, uneven, family=family)
    with pytest.raises(RecipeError, match=r"lemon does not fit .* no config key for eps"):
        api.plan_growth(small, uneven)
    for how, ratio, mine in (("lemon", "2x", family), ("pad", "4/3x", None)):
        out = tmp_path / how
        step = width({"hidden": how}, hidden=ratio)
        assert api.grow(small, steps_of([step]), out=out, family=mine).plan.claim.claim == EXACT
        assert api.verify_growth(small, out).measurement.error < 1e-10
