"""Growth in memory: the same bytes as the file route, tied heads, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import tiny, zoo
from support.growths import sizes, steps_of

import growkit
from growkit import api
from growkit.errors import CheckpointError, RecipeError

NOISE = {"op": "noise", "snr_db": 3}
WIDER = {"op": "width", "to": {"axes": "3/2x"}}
RECIPES: dict[str, dict[str, Any]] = {
    "width and noise": {"steps": [WIDER, NOISE], "seed": 5},
    "silent layers": {"steps": [{"op": "depth", "to": {"layers": "2x"}}]},
    "random layers": {"steps": [{"op": "depth", "to": {"layers": 3}, "new": "random"}], "seed": 1},
    "bfloat16": {"steps": [{"op": "width", "to": {"axes": "3x"}}, NOISE], "dtype": "bfloat16"},
    "untied": {"steps": [{"op": "width", "to": {"axes": "2x"}}], "tied": "untie"},
    "down": {"steps": [{"op": "coalesce", "to": {"axes": "1/2x", "layers": "1/2x"}}]},
}
HEADS = [
    ("bert", "base"), ("bert", "pretraining"), ("gpt2", "causal"), ("llama", "biased"),
    ("llama", "qwen2 tied"),
]  # fmt: skip


def written(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and config of a checkpoint on disk."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return load_file(folder / "model.safetensors"), config


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal dtype, shape and bytes."""
    return a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize(("family", "head"), HEADS)
def test_the_bytes_of_the_file_route(
    tmp_path: Path, family: str, head: str, name: str, dtype: torch.dtype
) -> None:
    """Every tensor and the config are what `grow` writes, and the small model stays as it was."""
    model = tiny.build(family, head, seed=3, dtype=dtype, **sizes(family))
    small = tiny.save(model, tmp_path / "small")
    recipe = steps_of(**{"steps": [], **RECIPES[name]})
    want, config = written(api.grow(small, recipe, out=tmp_path / "big").out)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    have, after = growkit.grow_state_dict(model.state_dict(), written(small)[1], recipe)
    assert after == config
    assert have.keys() >= want.keys()
    assert all(same_bits(have[k], want[k]) for k in want)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(("family", "head"), [*HEADS, ("gpt2", "base"), ("llama", "causal")])
def test_in_a_training_script(family: str, head: str) -> None:
    """A transformers config goes in; what comes out loads strictly, and computes the same."""
    model = tiny.build(family, head, seed=3, **sizes(family))
    recipe = steps_of([{"op": "width", "to": {"axes": "2x"}}, NOISE])
    weights, config = growkit.grow_state_dict(model.state_dict(), model.config, recipe)
    big = type(model)(type(model.config).from_dict(config)).to(torch.float64).eval()
    big.load_state_dict(weights, strict=True)
    given = tiny.inputs(model)
    want, have = tiny.outputs(model, given), tiny.outputs(big, given)
    for name, value in want.items():  # rotary tables were made in float32
        read = have[name][..., : value.shape[-1]]
        torch.testing.assert_close(read, value, rtol=1e-5, atol=1e-5)
    assert "architectures" not in config


# modules are called otherwise than tensors on disk, several have one memory, or experts are one
RENAMED = (
    "vit/image", "vit/deit-teacher", "dinov2/swiglu", "gpt_neox/causal", "mixtral/causal",
    "t5/generation", "bart/scaled", "bert/masked_lm", "albert/masked_lm",
)  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[pytest.mark.model(n), *([] if n in RENAMED else [pytest.mark.slow])])
        for n in sorted(zoo.models())
    ],
)
def test_names_of_modules(tmp_path: Path, name: str) -> None:
    """A model grows by the names of its modules, and so does a file that a trainer wrote of it.

    The words of wrappers are not in the result; what a class loads strictly is what it would load
    of the checkpoint that transformers writes, grown.
    """
    model = tiny.make(zoo.models()[name])
    recipe = steps_of([{"op": "width", "to": {"axes": "2x"}}])
    small = tiny.save(model, tmp_path / "small")
    want = tiny.load(api.grow(small, recipe, out=tmp_path / "big").out, model)
    state = {f"module._orig_mod.{n}": tensor for n, tensor in model.state_dict().items()}
    with pytest.warns(RuntimeWarning, match="names lose module._orig_mod., which"):
        grown, _ = growkit.grow_state_dict(state, model.config, recipe)
    assert grown.keys() == want.state_dict().keys()
    assert all(torch.equal(grown[n], tensor) for n, tensor in want.state_dict().items())
    copies = {n: tensor.clone().contiguous() for n, tensor in state.items()}
    save_file(copies, small / "model.safetensors", {"format": "pt"})
    result = api.grow(small, recipe, out=tmp_path / "of a trainer")
    assert result.plan.hints[0].startswith("names lose module._orig_mod.,")
    have, given = tiny.load(result.out, model), tiny.inputs(model)
    assert tiny.difference(tiny.outputs(want, given), tiny.outputs(have, given)) < 1e-9


def test_copies_of_one_tensor_stay_equal(tmp_path: Path) -> None:
    """Old files hold the embedding of both stacks, too: noise must not make them three."""
    recipe = steps_of([{"op": "noise", "kind": "gaussian", "std": 0.1}])
    for name in ("bart/generation", "t5/generation"):
        model = tiny.make(zoo.models()[name])
        grown, _ = growkit.grow_state_dict(model.state_dict(), model.config, recipe)
        shared = next(t for n, t in grown.items() if n.endswith("shared.weight"))
        assert all(t is shared for n, t in grown.items() if "embed_tokens" in n)


def test_an_untied_head_has_the_name_that_came_in() -> None:
    """Of two spellings of a tied head the result has the one that the model has."""
    model = tiny.make(zoo.models()["gpt_neox/sequential"])
    recipe = steps_of([{"op": "width", "to": {"axes": "2x"}}], tied="untie")
    weights, config = growkit.grow_state_dict(model.state_dict(), model.config, recipe)
    assert weights.keys() == model.state_dict().keys()
    assert weights["lm_head.weight"] is not weights["gpt_neox.embed_in.weight"]
    assert config["tie_word_embeddings"] is False


def test_a_tied_head_comes_back_tied() -> None:
    """Both names of a tied weight are one tensor in the result; a head made by untie is its own."""
    model = tiny.build("llama", "qwen2 tied", **sizes("llama"))
    names = "lm_head.weight", "model.embed_tokens.weight"
    for tied, same in (("final_norm", True), ("untie", False)):
        recipe = steps_of([{"op": "width", "to": {"axes": "2x"}}], tied=tied)
        weights, config = growkit.grow_state_dict(model.state_dict(), model.config, recipe)
        assert weights.keys() == model.state_dict().keys()
        assert (weights[names[0]] is weights[names[1]]) is same
        assert config["tie_word_embeddings"] is same


@pytest.mark.parametrize("order", ["transposed", "strided", "parameters"])
def test_any_memory(order: str) -> None:
    """Weights that are not contiguous, or that require gradients, grow like any others."""
    model = tiny.build("llama", "causal", dtype=torch.float32, **sizes("llama"))
    recipe = steps_of([WIDER, NOISE])
    want, _ = growkit.grow_state_dict(model.state_dict(), model.config, recipe)
    state = dict(model.state_dict(keep_vars=order == "parameters"))
    if order == "transposed":
        state = {k: v.T.contiguous().T if v.ndim == 2 else v for k, v in state.items()}
    if order == "strided":
        state = {k: torch.stack([v, -v], dim=-1)[..., 0] for k, v in state.items()}
    have, _ = growkit.grow_state_dict(state, model.config, recipe)
    assert all(same_bits(have[k], want[k]) and not have[k].requires_grad for k in want)


def test_two_models(tmp_path: Path) -> None:
    """Blend and fusion take further models; one model under two names fuses exactly."""
    one = tiny.build("llama", "causal", seed=3, dtype=torch.float32, **sizes("llama"))
    two = tiny.build("llama", "causal", seed=4, dtype=torch.float32, **sizes("llama"))
    folders = [tiny.save(m, tmp_path / n) for m, n in ((one, "one"), (two, "two"))]
    want, config = written(
        api.grow(
            folders[0], "deep_fusion", sources={"other": str(folders[1])}, out=tmp_path / "big"
        ).out
    )
    have, after = growkit.grow_state_dict(
        *written(folders[0]), "deep_fusion", sources={"other": (two.state_dict(), two.config)}
    )
    assert after == config
    assert all(same_bits(have[k], want[k]) for k in want)
    parted = steps_of([{"op": "fuse", "with": ["other"]}, NOISE], sources=["small", "other"])
    same, other = ({"other": (m.state_dict(), m.config)} for m in (one, two))
    growkit.grow_state_dict(one.state_dict(), one.config, parted, sources=same)
    with pytest.raises(RecipeError, match="models side by side leave no null space"):
        growkit.grow_state_dict(one.state_dict(), one.config, parted, sources=other)


def changed(**tensors: Any) -> dict[str, torch.Tensor]:
    """A tiny tied model's state_dict with some tensors replaced; underscores are dots."""
    state = dict(
        tiny.build("llama", "qwen2 tied", dtype=torch.float32, **sizes("llama")).state_dict()
    )
    for name, make in tensors.items():
        key = next(k for k in state if k.replace(".", "_") == name)
        state[key] = make(state[key])
    return state


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"lm_head_weight": lambda t: t + 1}, "lm_head.weight and model.* differ, but"),
        ({"model_norm_weight": lambda t: t * torch.nan}, "weight: 48 values are NaN or infinite"),
        ({"model_norm_weight": lambda t: t + 1e6}, "weight: 48 values are too large for F16"),
        ({"model_norm_weight": lambda t: t.to(torch.int64)}, "dtype I64 cannot be grown"),
        ({"model_norm_weight": lambda t: t.to(torch.complex64)}, "be grown: torch.complex64"),
        ({"model_norm_weight": lambda t: t.to("meta")}, "cannot be grown: no values"),
        ({"model_norm_weight": lambda t: t[:-1]}, "expected hidden = 24, found 23"),
    ],
)  # fmt: skip
def test_refusals(state: dict[str, Any], message: str) -> None:
    """What cannot be grown is refused with its name."""
    config = tiny.build("llama", "qwen2 tied", **sizes("llama")).config
    recipe = steps_of([{"op": "width", "to": {"axes": "2x"}}], dtype="float16")
    with pytest.raises(CheckpointError, match=message):
        growkit.grow_state_dict(changed(**state), config, recipe)


def test_not_finite_where_allowed() -> None:
    """Carried over and told, tensor by tensor, as in `grow --allow-nonfinite`."""
    config = tiny.build("llama", "qwen2 tied", **sizes("llama")).config
    state = changed(model_norm_weight=lambda t: t * torch.inf)
    recipe = steps_of([{"op": "width", "to": {"axes": "2x"}}])
    with pytest.warns(RuntimeWarning, match="tensor model.norm.weight: 48 values are NaN or inf"):
        grown, _ = growkit.grow_state_dict(state, config, recipe, allow_nonfinite=True)
    assert grown["model.norm.weight"].isinf().all()


def test_overrides_are_for_named_recipes() -> None:
    """As in `grow`: overrides change a recipe that is given by name."""
    model = tiny.build("llama", "causal", **sizes("llama"))
    given = model.state_dict(), model.config
    _, config = growkit.grow_state_dict(*given, "double_width", overrides=["width.to.axes=3x"])
    assert config["hidden_size"] == 72
    with pytest.raises(RecipeError, match="overrides: only for recipes"):
        growkit.grow_state_dict(*given, steps_of([WIDER]), overrides=["seed=1"])
    with pytest.raises(RecipeError, match="source other: the recipe needs this checkpoint"):
        growkit.grow_state_dict(*given, "deep_fusion")


def test_a_dict_is_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planned, grown and in memory, with --set's changes; what is wrong with it is said."""
    monkeypatch.chdir(tmp_path)
    model = tiny.build("llama", "causal", dtype=torch.float32)
    small = tiny.save(model, tmp_path / "small")
    wider = {"op": "width", "to": {"axes": "2x"}}
    data = {"steps": [wider, NOISE]}
    plan = growkit.plan_growth(small, data, overrides=["noise.snr_db=9"], seed=5)
    assert plan.recipe == growkit.Recipe.model_validate(
        {"steps": [wider, NOISE | {"snr_db": 9}], "seed": 5}
    )
    assert data == {"steps": [wider, NOISE]}
    want, _ = written(growkit.grow(small, data).out)
    have, _ = growkit.grow_state_dict(model.state_dict(), model.config, data)
    assert all(same_bits(have[name], want[name]) for name in want)
    with pytest.raises(RecipeError, match=r"^recipe: steps\[0\].op: unknown op"):
        growkit.plan_growth(small, {"steps": [{"op": "wdith"}]})
    with pytest.raises(RecipeError, match=r"^--set nois\.snr_db=9: "):
        growkit.plan_growth(small, data, overrides=["nois.snr_db=9"])


def test_what_python_shows(tmp_path: Path) -> None:
    """A plan, a result and a verification are one line each; a notebook shows a plan's page."""
    small = tiny.Saved.at(tmp_path / "small", "llama/causal").folder
    result = growkit.grow(small, "double_depth", out=tmp_path / "big", progress=False)
    verification = growkit.verify_growth(small, result.out)
    plan = result.plan
    sizes = f"{plan.parameters_before:,} → {plan.parameters_after:,} parameters"
    assert repr(plan) == f"<Plan double_depth: llama, {sizes}, exact>"
    assert repr(result) == f"<Result {result.out}: written in {result.seconds:.1f} s>"
    assert repr(verification).startswith("<Verification passed: logits differ by ")
    assert repr(verification).endswith(", claimed exact>")
    page = plan._repr_html_()  # type: ignore[attr-defined]
    assert page.startswith("<iframe sandbox ")
    assert "&lt;!doctype html&gt;" in page
    assert page.count("<") == 2
