"""Grows models of timm and runs both: prints as JSON how far the outputs are apart, by model.

A program of its own, for a Python that finds timm: `python timm_models.py FOLDER`. timm imports
torchvision, whose compiled operators need CUDA's libraries; no model here calls them, so where they
cannot be loaded their declarations are enough. In such a state transformers cannot be imported,
which is why the tests run this as another process.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from growkit import api
from growkit.recipe.recipe import parse_recipe

ARGS: dict[str, Any] = {
    "embed_dim": 48, "depth": 2, "num_heads": 6, "img_size": 28, "patch_size": 14, "num_classes": 5,
}  # fmt: skip
MODELS = (
    "vit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",  # a second token and a second head
    "deit3_small_patch16_224",  # layer scale
    "vit_small_patch14_reg4_dinov2",  # registers
    "vit_base_patch16_clip_224",  # a norm before the layers
)
STEPS = {
    "twice": [
        {"op": "width", "to": {"axes": "2x"}},
        {"op": "depth", "to": {"layers": "2x"}},
        {"op": "noise"},
    ],
    "half again": [{"op": "width", "to": {"axes": "3/2x"}}],
}


def declare_operators() -> torch.library.Library:
    """What torchvision's Python code expects of its compiled part; alive as long as this is."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def drawn(model: Any) -> Any:
    """The model in float64, with parameters in which every mistake shows."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.double().parameters():
            normal = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(0.3 * normal)
    return model.eval()


def drift(timm: Any, name: str, steps: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """The claim, and the largest difference of the outputs, relative, in float64."""
    model = drawn(timm.create_model(name, **ARGS))
    timm.models.save_for_hf(model, folder / "small", model_args=ARGS, safe_serialization=True)
    result = api.grow(folder / "small", parse_recipe({"steps": steps}), out=folder / "big")
    loaded = timm.create_model(f"local-dir:{result.out}", pretrained=True)  # float32
    weights = load_file(result.out / "model.safetensors")
    rounded = all(t.equal(weights[n].float()) for n, t in loaded.state_dict().items())
    big = timm.create_model(f"local-dir:{result.out}", pretrained=False).double().eval()
    big.load_state_dict(weights, strict=True)
    images = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        want, have = model(images), big(images)
    return {
        "claim": result.plan.claim.claim,
        "drift": float((want - have).abs().max() / want.abs().max()),
        "loaded": rounded,
        "width": loaded.num_features,
    }


if __name__ == "__main__":
    try:
        import torchvision  # noqa: F401 (where all of it works, nothing is declared)
    except (ImportError, RuntimeError):
        operators = declare_operators()
        for broken in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[broken]
    import timm

    found = {
        f"{name}, {growth}": drift(timm, name, steps, Path(sys.argv[1], name, growth))
        for name in MODELS
        for growth, steps in STEPS.items()
    }
    print(json.dumps(found))
