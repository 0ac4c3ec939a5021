"""Dual maps: what happens to gradients, and so to optimizer states, when a model grows.

A grown model runs the same batch as the small one, in float64. Where every copy is read alike, its
gradient is the small one's under the dual maps, for every tensor. For any exact growth whatever,
uneven splits and noise included, the gradients agree in all directions that the small model knows:

    writeᵀ · G_new  =  G · write_inᵀ
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import tiny
from support.growths import COUPLED, sizes, steps_of, width

from growkit import api
from growkit.algebra.kernel import Kernel
from growkit.checkpoints.open import open_checkpoint
from growkit.families.model import Model, read_model
from growkit.planning.plan import Plan
from growkit.planning.width import Composer
from growkit.verify.precision import full_precision

NOISE = {"op": "noise", "snr_db": 0}
LIMIT = 1e-10
HEADS = [
    ("bert", "masked_lm"), ("bert", "pretraining"), ("bert", "sequence"), ("gpt2", "causal"),
    ("gpt2", "untied"), ("gpt2", "sequence"), ("llama", "causal"), ("llama", "tied"),
    ("llama", "biased"), ("llama", "qwen2 tied"),
]  # fmt: skip
DUAL: dict[str, list[dict[str, Any]]] = {  # all consumers divide their copies alike
    "2x": [width(axes="2x")],
    "3x": [width(axes="3x")],
    "2x, then 3x": [width(axes="2x"), width(mlp="3x")],
    "repeat": [{**width(axes="2x"), "how": "repeat"}],
    "circular": [width(mlp=25)],
    "uneven": [{**width(mlp="2x"), "how": {"mlp": {"map": "uneven", "weights": [3, 1]}}}],
}
DUAL_TOGETHER = {"head_dim": [width(hidden="2x", head_dim="2x")]}
DUAL_FREE = {
    "heads": [width(heads="2x")],
    "pad": [width(hidden=28)],
    "isometric": [{**width(hidden=28), "how": "isometric"}],
}
OTHER: dict[str, list[dict[str, Any]]] = {  # exact, but the dual maps are only close
    "noise": [width(axes="2x"), NOISE],
    "3x, noise, 2x": [width(axes="3x"), NOISE, width(mlp="2x")],
    "uneven stream": [
        {**width(axes="2x"), "how": {"hidden": {"map": "uneven", "weights": [3, 1]}}}
    ],
}
OTHER_TOGETHER = {"head_dim, noise": [width(hidden="2x", head_dim="2x"), NOISE]}
OTHER_FREE = {
    "head_dim": [width(head_dim="2x")],  # new query coordinates are random, and keys meet them
    "5/3x, noise": [width(hidden=40, mlp="3/2x", kv_heads=4, heads=8), NOISE],
}

Gradients = dict[str, np.ndarray]


def cells() -> Iterator[Any]:
    """Head classes × cases that a family's sizes allow, and whether the dual maps are exact."""
    for family, head in HEADS:
        coupled = family in COUPLED
        dual = DUAL | (DUAL_TOGETHER if coupled else DUAL_FREE)
        other = OTHER | (OTHER_TOGETHER if coupled else OTHER_FREE)
        for name, steps in (dual | other).items():
            yield pytest.param(family, head, steps, name in dual, id=f"{family}-{head}-{name}")


def gradients(model: Any) -> Gradients:
    """Of a loss on random labels over everything the model puts out, by tensor name."""
    ids = torch.randint(3, 29, (3, 11), generator=torch.Generator().manual_seed(1))
    result = model(input_ids=ids)
    heads = ("logits", "prediction_logits", "seq_relationship_logits")
    found = [result[h].flatten(0, -2) for h in heads if h in result]
    labels = [torch.arange(len(x)) % x.shape[-1] for x in found]
    sum(map(torch.nn.functional.cross_entropy, found, labels)).backward()
    return {n: p.grad.numpy() for n, p in model.named_parameters() if p.grad is not None}


class Small(tiny.Saved):
    """A small model; its gradients are computed once."""

    @cached_property
    def gradients(self) -> Gradients:
        """Those of the model as it stands on disk."""
        return self.gradients_of(self.folder)

    def gradients_of(self, folder: Path) -> Gradients:
        """Those of another checkpoint of the same class."""
        with full_precision():
            return gradients(tiny.load(folder, self.model))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Small]:
    """A small model by family and head, made once."""

    @cache
    def of(family: str, head: str) -> Small:
        model = tiny.build(family, head, seed=3, **sizes(family))
        return Small(model, tiny.save(model, tmp_path_factory.mktemp("small")))

    return of


def grow(small: Small, out: Path, steps: list[Any]) -> Any:
    """The plan, the small model's headers, and the gradients of both models."""
    result = api.grow(small.folder, steps_of(steps), out=out)
    after = small.gradients_of(result.out)
    assert small.gradients.keys() == after.keys()
    return result.plan, read_model(open_checkpoint(small.folder)), small.gradients, after


def apply(value: np.ndarray, kernels: list[Kernel | None]) -> np.ndarray:
    """One kernel per dim."""
    for dim, kernel in enumerate(kernels):
        if kernel is not None:
            value = np.moveaxis(kernel.apply(np.moveaxis(value, dim, 0)), 0, dim)
    return value


def kernels(composer: Composer, model: Model, name: str) -> list[Kernel | None]:
    """What a composer does to a tensor, by dim."""
    entry = next(e for e in model.entries.values() if e.info.name == name)
    dims = [composer.dim(e, role) for e, role in entry.pattern.dims]
    return [d.kernel if d else None for d in dims]


def distance(have: np.ndarray, want: np.ndarray) -> float:
    """The largest difference, relative to the largest entry."""
    return float(np.abs(have - want).max() / np.abs(want).max())


def follow(plan: Plan, model: Model, before: Gradients, after: Gradients) -> None:
    """Autograd agrees for every weight, bias and gain; factors of the plan are divided by."""
    composer = Composer(plan.maps, model.sizes, dual=True)
    scales = {f.name: f.terms[0].scale for f in plan.formulas}
    for name, gradient in before.items():
        want = apply(gradient, kernels(composer, model, name)) / scales[name]
        if np.abs(want).max() > 1e-12:  # keys' biases shift all scores alike: only rounding is left
            assert distance(after[name], want) < LIMIT, name


def agree(plan: Plan, model: Model, before: Gradients, after: Gradients) -> None:
    """writeᵀ·G_new = G·write_inᵀ."""
    forward, dual = (Composer(plan.maps, model.sizes, dual=d) for d in (False, True))
    scales = {f.name: f.terms[0].scale for f in plan.formulas}
    for name, gradient in before.items():
        entry = next(e for e in model.entries.values() if e.info.name == name)
        reads = [role == "-" for _, role in entry.pattern.dims]
        pairs = zip(kernels(forward, model, name), kernels(dual, model, name), reads, strict=True)
        back, into = [], []
        for write, write_in, read in pairs:
            back.append(None if read or write is None else write.transpose())
            into.append(write_in if read else None)
        want = apply(gradient, into)
        if np.abs(want).max() > 1e-12:
            assert distance(scales[name] * apply(after[name], back), want) < LIMIT, name


@pytest.mark.parametrize(("family", "head", "steps", "dual"), [*cells()])
def test_gradients(
    small: Callable[[str, str], Small],
    tmp_path: Path,
    family: str,
    head: str,
    steps: list[dict[str, Any]],
    dual: bool,
) -> None:
    """They agree where the small model looks; where copies are read alike, they are the dual's."""
    plan, model, before, after = grow(small(family, head), tmp_path / "big", steps)
    assert plan.claim.claim == "exact"
    agree(plan, model, before, after)
    if dual:
        follow(plan, model, before, after)


@pytest.mark.parametrize(
    ("name", "tensor"), [("noise", "mlp.up_proj"), ("uneven stream", "mlp.down_proj")]
)
def test_where_dual_maps_are_only_close(
    small: Callable[[str, str], Small], tmp_path: Path, name: str, tensor: str
) -> None:
    """Noise, and copies of the stream that are read unevenly: close enough for moments only."""
    plan, model, before, after = grow(small("llama", "causal"), tmp_path / "big", OTHER[name])
    composer = Composer(plan.maps, model.sizes, dual=True)
    tensor = f"model.layers.0.{tensor}.weight"
    want = apply(before[tensor], kernels(composer, model, tensor))
    assert 1e-3 < distance(after[tensor], want) < 3
