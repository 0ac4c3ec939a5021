"""Claims are derived from what the family file says each axis crosses, never from a name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import tiny
from support.family_edits import flipped

from growkit.checkpoints.open import open_checkpoint
from growkit.errors import RecipeError
from growkit.families.model import read_model
from growkit.planning.plan import Plan, build_plan
from growkit.planning.proof.claim import APPROXIMATE, EPS, EXACT
from growkit.recipe.recipe import parse_recipe

TWICE = {"op": "width", "to": {"axes": "2x"}}
UNEVEN = {"op": "width", "to": {"axes": "3/2x"}}
PADDED = {**UNEVEN, "how": {"hidden": "pad"}}
DEEPER = {"op": "depth", "to": {"layers": "2x"}}
NOISE = {"op": "noise", "snr_db": 0}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny checkpoint of each kind."""
    folder = tmp_path_factory.mktemp("tiny")
    sizes = {"heads": 4, "head_dim": 4, "mlp": 18}
    grouped = {**sizes, "kv_heads": 2, "hidden": 24}
    return {
        "bert": tiny.save(tiny.build("bert", "masked_lm", **sizes), folder / "bert"),
        "gpt2": tiny.save(tiny.build("gpt2", "causal", **sizes), folder / "gpt2"),
        "llama": tiny.save(tiny.build("llama", "causal", **grouped), folder / "llama"),
        "tied": tiny.save(tiny.build("llama", "tied", **grouped), folder / "tied"),
    }


def plan_of(
    checkpoint: Path, *steps: dict[str, Any], family: Path | None = None, **keys: Any
) -> Plan:
    """The plan of these steps, from headers alone."""
    model = read_model(open_checkpoint(checkpoint), family)
    return build_plan("test", parse_recipe({"steps": list(steps), **keys}), {"small": model})


def swap_norms(data: dict[str, Any], old: str, new: str) -> None:
    """Every norm of one kind becomes the other."""
    for name, value in list(data["modules"].items()):
        if isinstance(value, dict):
            swap_norms({"modules": value}, old, new)
        else:
            data["modules"][name] = value.replace(f"{old} hidden", f"{new} hidden")


@pytest.mark.parametrize(
    ("kind", "steps", "claim"),
    [
        ("bert", [TWICE], EXACT),
        ("bert", [TWICE, NOISE], EXACT),
        ("bert", [UNEVEN], APPROXIMATE),
        ("bert", [DEEPER], EPS),
        ("bert", [DEEPER, UNEVEN], APPROXIMATE),
        ("gpt2", [UNEVEN, DEEPER, NOISE], EXACT),
        ("llama", [UNEVEN, DEEPER, NOISE], EXACT),
        ("llama", [{"op": "depth", "to": {"layers": "2x"}, "how": "stack"}], APPROXIMATE),
        ("llama", [{"op": "width", "to": {"hidden": 36}, "how": "circular"}], APPROXIMATE),
        ("llama", [{"op": "width", "to": {"hidden": 36}, "how": "isometric"}], EXACT),
        ("gpt2", [{**UNEVEN, "how": {"hidden": "isometric"}}], APPROXIMATE),
        ("llama", [{"op": "width", "to": {"head_dim": 8}}], EXACT),
        ("llama", [{"op": "width", "to": {"head_dim": 6}}], EXACT),
        ("llama", [{"op": "depth", "layers": [1, 0]}], APPROXIMATE),
        ("llama", [{"op": "depth", "layers": [0, 1, 0], "new": "silent"}], EXACT),
    ],
)
def test_claims(checkpoints: dict[str, Path], kind: str, steps: list[Any], claim: str) -> None:
    """The claim of each kind of step on each kind of model."""
    plan = plan_of(checkpoints[kind], *steps)
    assert plan.claim.claim == claim
    assert bool(plan.claim.reasons) is (claim != EXACT)


def test_the_claim_of_a_recipe_is_its_weakest_step(checkpoints: dict[str, Path]) -> None:
    """Steps are claimed one by one; noise after an approximate step is approximate too."""
    plan = plan_of(checkpoints["bert"], DEEPER, UNEVEN, NOISE)
    assert [s.claim for s in plan.steps] == [EPS, APPROXIMATE, APPROXIMATE]
    assert plan.claim.passes == 4
    assert plan.claim.eps == pytest.approx(1e-12)


@pytest.mark.parametrize(
    ("kind", "change", "steps", "before", "after", "why"),
    [
        (
            "llama", lambda d: d.update(residual="post"), [DEEPER], EXACT, EPS,
            "norms write the stream",
        ),
        (
            "bert", lambda d: d.update(residual="pre"), [DEEPER], EPS, EXACT, "",
        ),
        (
            "llama", lambda d: swap_norms(d, "rms", "ln"),
            [{"op": "width", "to": {"hidden": 36}, "how": "isometric"}], EXACT, APPROXIMATE,
            "LayerNorm sees another mean",
        ),
        (
            "gpt2", lambda d: d["modules"]["h.{layers}."].update(ln_2="ln hidden > stream"),
            [PADDED], EXACT, APPROXIMATE, "LayerNorm writes the stream (post-norm)",
        ),
        (
            "gpt2", lambda d: d["head"].update(scale_at=None), [TWICE], EXACT, APPROXIMATE,
            "no norm before the head can carry 1/2",
        ),
        (
            "tied", lambda d: d.pop("head"), [TWICE], EXACT, APPROXIMATE,
            "the family file names no tied head",
        ),
        (
            "llama", lambda d: d["scores"].update(power=-1.0),
            [{"op": "width", "to": {"head_dim": 8}}], EXACT, EXACT, "",
        ),
    ],
)  # fmt: skip
def test_a_flipped_flag_changes_the_claim(
    checkpoints: dict[str, Path],
    tmp_path: Path,
    kind: str,
    change: Callable[[dict[str, Any]], None],
    steps: list[Any],
    before: str,
    after: str,
    why: str,
) -> None:
    """The same checkpoint and recipe under a family file with one flag flipped."""
    name = {"tied": "llama"}.get(kind, kind)
    assert plan_of(checkpoints[kind], *steps).claim.claim == before
    plan = plan_of(checkpoints[kind], *steps, family=flipped(tmp_path, name, change))
    assert plan.claim.claim == after
    assert why in " ".join(plan.claim.reasons)


@pytest.mark.parametrize("how", ["tile", "repeat", "circular", "isometric", "pad", "fresh"])
def test_rotary_pairs_refuse_what_plain_positions_take(
    checkpoints: dict[str, Path], tmp_path: Path, how: str
) -> None:
    """Without the line that says rotary, the same map of the same model is taken, and exact."""
    step = {"op": "width", "to": {"head_dim": 8}, "how": how}
    with pytest.raises(RecipeError, match="a rotary pair would turn at another frequency"):
        plan_of(checkpoints["llama"], step)
    plain = flipped(tmp_path, "llama", lambda d: d.pop("rope"))
    assert plan_of(checkpoints["llama"], step, family=plain).claim.claim == EXACT


def test_an_unseen_layout_is_claimed_rightly(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """A norm between the branches that writes the stream, in a model that is otherwise pre-norm.

    RMSNorm keeps the zero rows of a pad zero, so width stays exact; LayerNorm would need a mean
    row.
    """

    def rms(data: dict[str, Any]) -> None:
        layer = data["modules"]["layers.{layers}."]
        layer["post_attention_layernorm"] = "rms hidden > stream"

    def ln(data: dict[str, Any]) -> None:
        rms(data)
        swap_norms(data, "rms", "ln")

    assert (
        plan_of(checkpoints["llama"], UNEVEN, family=flipped(tmp_path, "llama", rms)).claim.claim
        == EXACT
    )
    plan = plan_of(checkpoints["llama"], PADDED, family=flipped(tmp_path, "llama", ln))
    assert plan.claim.claim == APPROXIMATE
    assert "writes the stream" in " ".join(plan.claim.reasons)


@pytest.mark.parametrize(
    ("steps", "dtype", "claim"),
    [
        ([{"op": "width", "to": {"mlp": 36}}], "keep", "exact"),
        ([{"op": "width", "to": {"hidden": 72, "mlp": 54}}], "keep", "rounded"),
        ([{"op": "width", "to": {"mlp": 36}}], "bfloat16", "rounded"),
        ([{"op": "width", "to": {"mlp": 36}}, NOISE], "keep", "rounded"),
    ],
)
def test_storage(checkpoints: dict[str, Path], steps: list[Any], dtype: str, claim: str) -> None:
    """Powers of two are held exactly by every dtype, thirds and noise are rounded."""
    plan = plan_of(checkpoints["llama"], *steps, dtype=dtype)
    assert plan.storage.claim == claim


def test_untying_needs_no_factor(checkpoints: dict[str, Path]) -> None:
    """`tied: untie` writes the head that reads the stream, and says so in the config."""
    plan = plan_of(checkpoints["gpt2"], TWICE, tied="untie")
    assert plan.claim.claim == EXACT
    assert plan.config["tie_word_embeddings"] is False
    assert "lm_head.weight" in {f.name for f in plan.formulas}


def test_norms_of_other_axes_read_the_same_eps(tmp_path: Path) -> None:
    """Where eps follows the stream, those that stay are named; a file that hides them cannot."""
    small = tiny.save(tiny.build("qwen3", "causal", layers=2), tmp_path / "small")
    lemon = {"op": "width", "to": {"hidden": "3/2x"}, "how": "lemon"}
    claim = plan_of(small, lemon).claim
    assert claim.claim == EPS
    assert any("also for 4 norms of other axes" in reason for reason in claim.reasons)

    def hide(data: dict[str, Any]) -> None:
        layer = data["modules"]["layers.{layers}."]
        for norm, axis in (("q_norm", "q"), ("k_norm", "k")):
            del layer[f"self_attn.{norm}"]
            layer[f"self_attn.{norm}.weight"] = f"raw {axis}="

    assert plan_of(small, lemon, family=flipped(tmp_path, "qwen3", hide)).claim.claim == EXACT
