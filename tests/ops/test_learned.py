"""Maps from a file: what `plan --maps` writes gives the same model, and claims are derived."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.random import default_rng
from safetensors.numpy import save_file
from safetensors.torch import load_file
from support import tiny, zoo
from support.families_table import documented
from support.growths import DIFFERS, TOLERANCE, measure, sizes, steps_of, width

import growkit
from growkit import api
from growkit.checkpoints.matrices import read_maps
from growkit.errors import CheckpointError, GrowkitError, OutputError, RecipeError
from growkit.planning.proof.claim import APPROXIMATE, EPS, EXACT
from growkit.recipe.recipe import Recipe, load_recipe

LEARNED = {"op": "learned", "maps": "maps.safetensors"}
DEEPER = {"op": "depth", "to": {"layers": "2x"}}
NOISE = {"op": "noise", "snr_db": 0}
PAIRS = {"map": "fresh", "pairs": True}


def write(folder: Path, arrays: Mapping[str, Any]) -> Path:
    """A file of maps, and beside it a recipe that applies it."""
    folder.mkdir(exist_ok=True)
    save_file({k: np.asarray(v) for k, v in arrays.items()}, folder / "maps.safetensors")
    return recipe(folder, LEARNED)


def recipe(folder: Path, *steps: Mapping[str, Any], **keys: Any) -> Path:
    """A recipe file in a folder."""
    path = folder / "mine.yaml"
    path.write_text(str({"steps": [dict(s) for s in steps], **keys}))
    return path


def small(folder: Path, family: str, head: str, **keys: Any) -> tuple[Any, Path]:
    """A tiny float64 model, and where it lies."""
    model = tiny.build(family, head, seed=3, **{**sizes(family), **keys})
    return model, tiny.save(model, folder / "small")


def isometry(new: int, old: int, seed: int = 0) -> Any:
    """A dense matrix with orthonormal columns."""
    return np.linalg.qr(default_rng(seed).standard_normal((new, old)))[0]


# -- plan --maps, and back -----------------------------------------------------------------------

ROUND_TRIPS: dict[str, tuple[str, str, list[dict[str, Any]]]] = {
    "bert 2x": ("bert", "masked_lm", [width(axes="2x")]),
    "bert 3/2x": ("bert", "pretraining", [width(axes="3/2x")]),
    "bert 3x, silent": ("bert", "base", [width(axes="3x"), DEEPER]),
    "gpt2 3/2x, silent": ("gpt2", "causal", [width(axes="3/2x"), DEEPER]),
    "gpt2 lemon": ("gpt2", "causal", [{**width(axes="3/2x"), "how": {"hidden": "lemon"}}]),
    "gpt2 twins": ("gpt2", "causal", [{**width(mlp=24), "how": PAIRS}]),
    "gpt2 vocab": ("gpt2", "causal", [{"op": "resize", "vocab": 40, "positions": 30}]),
    "llama uneven": (
        "llama", "tied", [width(hidden=36, mlp=25), width(axes="2x"), DEEPER, DEEPER],
    ),
    "llama head_dim": ("llama", "causal", [width(head_dim="2x", hidden=40)]),
    "llama fresh heads": ("llama", "causal", [width(heads=6), DEEPER]),
    "llama theta": ("llama", "causal", [width(head_dim="3/2x")]),
    "llama average": ("llama", "causal", [{**DEEPER, "how": "average"}, width(mlp=30)]),
    "llama without one": ("llama", "causal", [{"op": "depth", "layers": [0, 0]}]),
    "llama down": ("llama", "tied", [{"op": "coalesce", "to": {"axes": "1/2x", "layers": "1/2x"}}]),
    "noise is left out": ("llama", "tied", [width(axes="2x")]),
}  # fmt: skip


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_maps_of_a_plan_give_the_same_model(tmp_path: Path, name: str) -> None:
    """Composed over all steps, in one step: the same tensors, config and claim."""
    family, head, steps = ROUND_TRIPS[name]
    model, source = small(tmp_path, family, head)
    want = api.grow(source, steps_of(steps), out=tmp_path / "want")
    steps = [*steps, NOISE] if name.startswith("noise") else steps
    api.save_maps(api.plan_growth(source, steps_of(steps)), tmp_path / "maps.safetensors")
    have = api.grow(source, recipe(tmp_path, LEARNED), out=tmp_path / "have")
    assert have.plan.config == want.plan.config
    a, b = (load_file(r.out / "model.safetensors") for r in (want, have))
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(b[key], a[key], rtol=1e-13, atol=1e-15)
    assert have.plan.claim.claim == want.plan.claim.claim
    assert have.plan.layer_maps == want.plan.layer_maps
    if name == "gpt2 vocab":  # new tokens have logits of their own
        return
    error = measure(model, source, have)
    assert error > DIFFERS if have.plan.claim.claim == APPROXIMATE else error < 1e-9


@pytest.mark.parametrize("name", zoo.by_speed(every=3))
def test_every_family(tmp_path: Path, name: str) -> None:
    """Norms of queries and keys, experts, gains stored as 1 + w, axes that follow: all the same.

    Also the sizes of axes that no tensor of the class has, in config.json alone.
    """
    source = tiny.Saved.at(tmp_path / "small", name).folder
    steps = [width(axes="2x"), DEEPER]
    if documented()[name, "silent depth"] == "refused":  # such layers grow neither way
        twice = {"layers.mix": np.repeat(np.eye(3), 2, axis=0), "layers.silent": [0.0, 1] * 3}
        for way in (steps_of(steps), write(tmp_path / "layers", twice)):
            with pytest.raises(RecipeError, match="layers"):
                api.plan_growth(source, way)
        steps = steps[:1]
    want = api.grow(source, steps_of(steps), out=tmp_path / "want")
    api.save_maps(api.plan_growth(source, steps_of(steps)), tmp_path / "maps.safetensors")
    have = api.grow(source, recipe(tmp_path, LEARNED), out=tmp_path / "have")
    assert have.plan.config == want.plan.config
    assert have.plan.sizes_after == want.plan.sizes_after
    assert have.plan.layer_maps == want.plan.layer_maps
    assert have.plan.claim.claim == want.plan.claim.claim
    a, b = (load_file(r.out / "model.safetensors") for r in (want, have))
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(b[key], a[key], rtol=1e-13, atol=1e-15)


def test_byte_for_byte(tmp_path: Path) -> None:
    """Tiled and silent, in float32: no byte differs."""
    model = tiny.build("llama", "tied", seed=3, dtype=torch.float32, **sizes("llama"))
    source = tiny.save(model, tmp_path / "small")
    steps = steps_of([width(axes="2x"), DEEPER])
    api.save_maps(api.plan_growth(source, steps), tmp_path / "maps.safetensors")
    a = api.grow(source, steps, out=tmp_path / "a").out
    b = api.grow(source, recipe(tmp_path, LEARNED), out=tmp_path / "b").out
    c, _ = growkit.grow_state_dict(model.state_dict(), model.config, recipe(tmp_path, LEARNED))
    assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()
    assert all(torch.equal(c[k], v) for k, v in load_file(b / "model.safetensors").items())


def test_a_file_that_is_there(tmp_path: Path) -> None:
    """The same maps again are no harm; anything else is never overwritten."""
    _, source = small(tmp_path, "llama", "causal")
    file = tmp_path / "maps.safetensors"
    shapes = api.save_maps(api.plan_growth(source, steps_of([width(mlp="2x")])), file)
    assert shapes == {"mlp.write": (36, 18), "mlp.read": (36, 18)}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["maps.safetensors", "small"]
    before = file.read_bytes()
    api.save_maps(api.plan_growth(source, steps_of([width(mlp="2x")])), file)
    for path in (file, tmp_path):
        with pytest.raises(OutputError, match="is there already, with something else in it"):
            api.save_maps(api.plan_growth(source, steps_of([width(mlp="3x")])), path)
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([{**DEEPER, "how": "stack", "new": "random"}], r"steps\[0\]: draws layers at random"),
        ([{**DEEPER, "out_scale": 0.5}], "scales what layers add"),
        ([{**width(axes="2x"), "new_rows": "above"}], "takes new rows from the layer above"),
        ([width(mlp=30), {"op": "noise", "kind": "gaussian"}], r"steps\[1\]: adds gaussian noise"),
        ([{"op": "fuse", "with": ["b"]}], "takes another checkpoint"),
        ([{"op": "noise"}], "no step grows an axis"),
        ([DEEPER, {**DEEPER, "how": "average"}], "a silent layer is mixed with others"),
    ],
)  # fmt: skip
def test_what_is_no_map(tmp_path: Path, steps: list[Any], message: str) -> None:
    """Only maps go into the file of maps: what it could not say is refused."""
    _, source = small(tmp_path, "llama", "causal")
    fused = {"sources": ["small", "b"]} if steps[0]["op"] == "fuse" else {}
    plan = api.plan_growth(
        source, steps_of(steps, **fused), sources={"b": str(source)} if fused else {}
    )
    with pytest.raises(RecipeError, match=message):
        api.save_maps(plan, tmp_path / "maps.safetensors")
    assert not (tmp_path / "maps.safetensors").exists()


# -- claims of given matrices --------------------------------------------------------------------


def monomial(new: int, old: int) -> Any:
    """A scattered isometry with signs: one source per row."""
    rng = default_rng(1)
    out = np.zeros((new, old))
    out[rng.permutation(new)[:old], np.arange(old)] = rng.choice([-1.0, 1.0], old)
    return out


def split(new: int, old: int) -> dict[str, Any]:
    """Copies whose consumers are split at random."""
    index = np.concatenate([np.arange(old), default_rng(2).integers(0, old, new - old)])
    write = np.eye(old)[index]
    share = default_rng(3).uniform(0.2, 1.0, new)
    return {"mlp.write": write, "mlp.read": write * (share / (write @ (share @ write)))[:, None]}


CLAIMS: dict[str, tuple[str, str, dict[str, Any], str, str]] = {
    "split": ("llama", "causal", split(30, 18), EXACT, ""),
    "by pseudo-inverse": ("llama", "causal", {"mlp.write": split(30, 18)["mlp.write"]}, EXACT, ""),
    "scattered stream": ("llama", "tied", {"hidden.write": monomial(40, 24)}, EXACT, ""),
    "scattered and silent": (
        "llama", "causal",
        {
            "hidden.write": 3 * monomial(40, 24), "layers.mix": [[1.0, 0], [1, 0], [0, 1]],
            "layers.silent": [0.0, 1, 0],
        }, EXACT, "",
    ),
    "rotated values": ("gpt2", "causal", {"v.write": isometry(4, 4)}, EXACT, ""),
    "rotated queries": (
        "gpt2", "causal", {"head_dim.write": isometry(8, 4), "hidden.write": monomial(32, 16)},
        APPROXIMATE, "LayerNorm sees another mean",
    ),
    "dense stream": (
        "llama", "base", {"hidden.write": isometry(40, 24)}, APPROXIMATE,
        "RMSNorm has one gain for what is mixed of several coordinates",
    ),
    "dense neurons": (
        "llama", "causal", {"mlp.write": isometry(30, 18)}, APPROXIMATE, "behind a non-linearity",
    ),
    "transposed": (
        "gpt2", "causal", {"mlp.write": isometry(30, 18), "mlp.read": isometry(30, 18, 1)},
        APPROXIMATE, "consumers do not undo producers",
    ),
    "nearly": (
        "llama", "causal", {"v.write": np.eye(4), "v.read": np.eye(4) + 1e-2 * isometry(4, 4)},
        APPROXIMATE, "consumers do not undo producers",
    ),
    "rotary": (
        "llama", "causal", {"head_dim.write": isometry(6, 4)}, APPROXIMATE,
        "a rotary pair would turn at another frequency",
    ),
    "mixed layers": (
        "bert", "base", {"layers.mix": default_rng(0).uniform(size=(3, 2))}, APPROXIMATE,
        "layers are averaged",
    ),
    "silent under post-norm": (
        "bert", "masked_lm",
        {"layers.mix": [[1.0, 0], [0, 1], [0.5, 0.5]], "layers.silent": [0.0, 0, 1]}, EPS,
        "norms write the stream",
    ),
    "dense post-norm": (
        "bert", "masked_lm",
        {"hidden.write": isometry(32, 16), "heads.write": np.eye(4)[[0, 1, 2, 3] * 2]},
        APPROXIMATE, "LayerNorm has one gain",
    ),
    "heads": (
        "llama", "causal", {"heads.write": np.eye(4)[[0, 1, 0, 1, 2, 3, 2, 3]]}, EXACT, "",
    ),
    "heads apart": (
        "llama", "causal", {"heads.write": np.eye(4)[[0, 1, 2, 3, 0, 1, 2, 3]]}, APPROXIMATE,
        "would meet the keys of another kv head",
    ),
    "positions": (
        "gpt2", "causal", {"positions.write": isometry(30, 23)}, APPROXIMATE, "old rows are not",
    ),
}  # fmt: skip


@pytest.mark.parametrize("noise", [False, True], ids=["", "noise"])
@pytest.mark.parametrize("name", CLAIMS)
def test_claims_are_derived(tmp_path: Path, name: str, noise: bool) -> None:
    """Exact where the matrices let it be, approximate with the reason where not: and measured."""
    family, head, arrays, claim, why = CLAIMS[name]
    model, source = small(tmp_path, family, head)
    path = write(tmp_path, arrays)
    if noise:
        path = recipe(tmp_path, LEARNED, {"op": "noise", "snr_db": 10})
    result = api.grow(source, path, out=tmp_path / "big")
    assert result.plan.claim.claim == claim, result.plan.claim.reasons
    assert why in " ".join(result.plan.claim.reasons)
    error = measure(model, source, result)
    limit = TOLERANCE[torch.float64].get(claim)
    assert error > DIFFERS if limit is None else error <= limit
    assert api.verify_growth(source, result.out).passed


def test_multi_head_models_stay_so(tmp_path: Path) -> None:
    """kv heads without a map of their own go with the heads, if they are as many."""
    model, source = small(tmp_path, "llama", "causal", kv_heads=4)
    path = write(tmp_path, {"heads.write": np.eye(4)[[0, 1, 2, 3, 3, 2, 1, 0]]})
    result = api.grow(source, path, out=tmp_path / "big")
    assert result.plan.sizes_after["kv_heads"] == 8
    assert result.plan.claim.claim == EXACT
    assert measure(model, source, result) < 1e-10


def test_tensors_are_the_products(tmp_path: Path) -> None:
    """Every weight is write · W · readᵀ, layers mixed, in whatever dtype the matrices come."""
    rng = default_rng(5)
    arrays = {
        "hidden.write": rng.standard_normal((40, 24)), "hidden.read": rng.standard_normal((40, 24)),
        "mlp.write": rng.standard_normal((30, 18)), "mlp.read": rng.standard_normal((30, 18)),
        "layers.mix": rng.standard_normal((3, 2)),
    }  # fmt: skip
    arrays = {k: v.astype(np.float32) for k, v in arrays.items()}
    _, source = small(tmp_path, "llama", "causal")
    out = api.grow(source, write(tmp_path, arrays), out=tmp_path / "big").out
    a, b = load_file(source / "model.safetensors"), load_file(out / "model.safetensors")
    m = {k: torch.from_numpy(v).double() for k, v in arrays.items()}
    name = "model.layers.{}.mlp.{}_proj.weight".format
    for new in range(3):
        up, down = (sum(m["layers.mix"][new, i] * a[name(i, w)] for i in (0, 1))
                    for w in ("up", "down"))  # fmt: skip
        torch.testing.assert_close(b[name(new, "up")], m["mlp.write"] @ up @ m["hidden.read"].T)
        torch.testing.assert_close(b[name(new, "down")], m["hidden.write"] @ down @ m["mlp.read"].T)
    torch.testing.assert_close(b["lm_head.weight"], a["lm_head.weight"] @ m["hidden.read"].T)


def test_bfloat16(tmp_path: Path) -> None:
    """Trainers save what they train in."""
    from safetensors.torch import save_file as save_torch

    file = tmp_path / "maps.safetensors"
    save_torch({"mlp.write": torch.full((2, 1), 0.75, dtype=torch.bfloat16)}, file)
    assert read_maps([str(file)])[str(file)]["mlp.write"].tolist() == [[0.75], [0.75]]


# -- dense as a map of width ---------------------------------------------------------------------


def test_dense_is_a_map_like_others(tmp_path: Path) -> None:
    """One axis by matrices, others by name; the size follows from the file."""
    model, source = small(tmp_path, "llama", "causal")
    write(tmp_path, split(30, 18))
    dense = {"map": "dense", "file": "maps.safetensors"}
    step = {"op": "width", "to": {"hidden": "2x"}, "how": {"mlp": dense, "hidden": "repeat"}}
    result = api.grow(source, recipe(tmp_path, step), out=tmp_path / "big")
    assert result.plan.claim.claim == EXACT
    assert (result.plan.sizes_after["mlp"], result.plan.sizes_after["hidden"]) == (30, 48)
    assert measure(model, source, result) < 1e-10


@pytest.mark.parametrize("kv_heads", [2, 4])
def test_dense_heads(tmp_path: Path, kv_heads: int) -> None:
    """Heads by matrices: kv heads of their own, or as the heads."""
    model, source = small(tmp_path, "llama", "causal", kv_heads=kv_heads)
    arrays = {"heads.write": np.eye(4)[[2, 3, 0, 1, 2, 3]]}
    if kv_heads == 2:
        arrays["kv_heads.write"] = np.eye(2)[[1, 0, 1]]
    write(tmp_path, arrays)
    dense = {"map": "dense", "file": "maps.safetensors"}
    how = {"heads": dense, **({"kv_heads": dense} if kv_heads == 2 else {})}
    step = {"op": "width", "to": {}, "how": how}
    result = api.grow(source, recipe(tmp_path, step), out=tmp_path / "big")
    assert result.plan.claim.claim == EXACT, result.plan.claim.reasons
    assert measure(model, source, result) < 1e-10


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"to": {"mlp": 31}}, r"mlp\.write: expected 31 rows by to\.mlp, found 30"),
        ({"to": {"mlp": 30, "hidden": 30}}, r"maps\.safetensors: hidden\.write is missing"),
        ({"to": {}, "how": {"mlp": {"map": "dense"}}}, "dense needs file"),
        ({"to": {}, "how": {"mlp": {"map": "tile", "file": "x"}}}, "file is an option of the map"),
        (
            {"to": {"kv_heads": 4}, "how": {"heads": {"map": "dense", "file": "maps.safetensors"}}},
            r"heads\.write is missing",
        ),
    ],
)  # fmt: skip
def test_dense_refusals(tmp_path: Path, step: dict[str, Any], message: str) -> None:
    """What the file does not hold, and sizes that are not its own."""
    _, source = small(tmp_path, "llama", "causal")
    write(tmp_path, split(30, 18))
    how = {"map": "dense", "file": "maps.safetensors"}
    with pytest.raises(RecipeError, match=message):
        api.plan_growth(source, recipe(tmp_path, {"op": "width", "how": how, **step}))


# -- the file ------------------------------------------------------------------------------------

EYE = np.eye(18)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mlp.write": np.ones((30, 17))}, r"mlp\.write: expected shape \(new, 18\), found \(30, "),
        ({"mlp.write": np.ones(18)}, r"expected shape \(new, 18\), found \(18\)"),
        ({"mlp.write": np.ones((0, 18))}, r"found \(0, 18\)"),
        ({"mlp.write": EYE, "mlp.read": EYE[:9]}, r"mlp\.read: expected shape \(18, 18\)"),
        ({"mlp.write": EYE, "mlp.write_normed": EYE.T[:9]}, "mlp.write_normed: expected shape"),
        ({"mlp.write": EYE * np.nan}, r"mlp\.write: holds values that are NaN or infinite"),
        ({"mlp.read": EYE}, r"mlp\.write is missing, and mlp\.read is there"),
        ({"layers.silent": np.ones(2)}, r"layers\.mix is missing"),
        ({"mpl.write": EYE}, r'"mpl\.write" is no map of this model'),
        ({"labels.write": EYE}, "is no map of this model"),
        ({"mlp.weight": EYE}, "is no map of this model"),
        ({"layers.mix": np.ones((3, 3))}, r"layers\.mix: expected shape \(new, 2\)"),
        ({"layers.mix": np.eye(3, 2)}, r"layers\.mix: row 2 is zero"),
        ({"layers.mix": np.eye(2), "layers.silent": np.ones(3)}, r"layers\.silent: expected shape"),
        ({"theta_power": np.zeros(1)}, "theta_power: expected a positive number, found 0"),
        ({"mlp.write": EYE, "mlp.fresh": np.ones(18)}, "drawn at random has rows of mlp.write"),
        ({"heads.write": np.eye(4)[[0, 1, 2]]}, "3 heads cannot be shared by 2 kv heads"),
        ({"hidden.write": np.eye(24)[:21]}, "must be a multiple of heads"),
        ({"head_dim.write": np.ones((5, 4))}, "rotary pairs need an even size, found 5 rows"),
    ],
)  # fmt: skip
def test_refused_files(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    """The file, the name and what is wrong with it, before anything is written."""
    _, source = small(tmp_path, "llama", "causal")
    with pytest.raises(RecipeError, match=message) as caught:
        api.plan_growth(source, write(tmp_path, arrays))
    assert "steps[0] (learned): " in caught.value.message
    assert "maps.safetensors" in caught.value.message or "sizes" in caught.value.message


@pytest.mark.parametrize(
    ("name", "arrays", "message"),
    [
        (
            "deepseek_v3/not normed", {"experts.write": np.eye(12)[[*range(12)] * 2]},
            r"maps\.experts: does not grow in family deepseek_v3: .* copies would count twice",
        ),
        (
            "olmo/clipped", {"head_dim.write": np.eye(12)[[*range(12)] * 2]},
            r"maps\.head_dim: does not grow in family olmo: .* clip_qkv",
        ),
    ],
)  # fmt: skip
def test_what_does_not_grow_by_name_does_not_grow_by_maps(
    tmp_path: Path, name: str, arrays: dict[str, Any], message: str
) -> None:
    """What the code of a family forbids, no matrix can mend."""
    source = tiny.Saved.at(tmp_path / "small", name).folder
    with pytest.raises(RecipeError, match=message):
        api.plan_growth(source, write(tmp_path, arrays))


def test_no_rotary_positions(tmp_path: Path) -> None:
    """A base of rotary positions means nothing where there are none."""
    _, source = small(tmp_path, "gpt2", "causal")
    with pytest.raises(RecipeError, match="theta_power: family gpt2 has no rotary positions"):
        api.plan_growth(source, write(tmp_path, {"theta_power": np.array([2.0])}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file of maps"),
        (b"not a file of maps", "not a safetensors file"),
        (b"short", "truncated"),
    ],
)
def test_unreadable_files(tmp_path: Path, content: bytes | None, message: str) -> None:
    """A file that is missing or damaged is a damaged checkpoint's kind of error."""
    _, source = small(tmp_path, "llama", "causal")
    if content is not None:
        (tmp_path / "maps.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"maps\.safetensors: .*{message}"):
        api.plan_growth(source, recipe(tmp_path, LEARNED))


def test_an_empty_file_and_a_quantised_one(tmp_path: Path) -> None:
    """No maps, or maps in a dtype that is no number of ours."""
    _, source = small(tmp_path, "llama", "causal")
    with pytest.raises(GrowkitError, match="no map is in it"):
        api.plan_growth(source, write(tmp_path, {}))
    from safetensors.torch import save_file as save_torch

    eight = torch.zeros(2, 18).to(torch.float8_e4m3fn)
    save_torch({"mlp.write": eight}, tmp_path / "maps.safetensors")
    with pytest.raises(CheckpointError, match=r"mlp\.write: dtype F8_E4M3 cannot be a map"):
        api.plan_growth(source, recipe(tmp_path, LEARNED))


def test_the_content_is_part_of_the_digest(tmp_path: Path) -> None:
    """Other numbers in a file of the same name, size and age are another growth."""
    _, source = small(tmp_path, "llama", "causal")
    path = write(tmp_path, split(30, 18))
    one = api.estimate(api.plan_growth(source, path)).digest
    assert api.estimate(api.plan_growth(source, path)).digest == one
    changed = {k: v.copy() for k, v in split(30, 18).items()}
    changed["mlp.read"][0, 0] *= 1 + 1e-15
    write(tmp_path, changed)
    assert api.estimate(api.plan_growth(source, path)).digest != one


def test_paths_start_from_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the recipe file, wherever growkit runs, also of a result's, which holds no folder."""
    _, source = small(tmp_path, "llama", "causal")
    path = write(tmp_path / "recipes", split(30, 18))
    shutil.copytree(tmp_path / "recipes", tmp_path / "elsewhere")
    for folder in ("recipes", "elsewhere"):
        monkeypatch.chdir(tmp_path / folder)
        plan = api.plan_growth(source, path)
        assert plan.recipe.files == (str(tmp_path / "recipes" / "maps.safetensors"),)
    out = api.grow(source, path, out=tmp_path / "big").out
    assert not [f for f in out.iterdir() if os.fsencode(tmp_path) in f.read_bytes()]
    shutil.copy(tmp_path / "recipes" / "maps.safetensors", out)
    again = api.plan_growth(source, out / "recipe.yaml")
    assert api.estimate(again).digest == api.estimate(plan).digest


def test_built_in_recipe_takes_the_users_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ligo` looks in the working directory, or where --set says."""
    _, source = small(tmp_path, "llama", "causal")
    write(tmp_path / "here", split(30, 18))
    monkeypatch.chdir(tmp_path / "here")
    assert api.plan_growth(source, "ligo").sizes_after["mlp"] == 30
    monkeypatch.chdir(tmp_path)
    chosen = load_recipe("ligo", overrides=["learned.maps=here/maps.safetensors"])[1]
    assert isinstance(chosen, Recipe)
    assert api.plan_growth(source, chosen).sizes_after["mlp"] == 30
