"""Settings that say a size, or name a layer, in config.json and beside it: all follow the growth.

The oracle is what transformers knows: which names of its config classes mean the same, and what it
loads. Models are those of the zoo, some by default, all of them when slow.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import transformers
from support import tiny, zoo

from growkit import api
from growkit.checkpoints.open import open_checkpoint
from growkit.errors import CheckpointError
from growkit.families.model import read_model
from growkit.recipe.recipe import parse_recipe

LARGEST_COUNT = 7  # sizes up to here stand for many things in a config
CHANCE = {"qk_head_dim"}  # nope + rot, which do not grow, and one more than another size


def synonyms(name: str) -> Mapping[str, str]:
    """Names of one setting in the config class of a model of the zoo: alias → name."""
    cls = getattr(transformers, zoo.models()[name].cls)
    return dict(cls.config_class.attribute_map)


def everything_larger(folder: Path) -> list[dict[str, Any]]:
    """The steps that double all that a model lets grow."""
    model = read_model(open_checkpoint(folder))
    sizes, limits = model.user_sizes(), model.family.limits
    grows = sizes.keys() - limits.keys()
    steps: list[dict[str, Any]] = [{"op": "width", "to": {"axes": "2x"}}]
    if any(a.rpartition(".")[2] == "layers" for a in grows):
        steps.append({"op": "depth", "to": {"layers": "2x"}})
    rows = {a: 2 * sizes[a] for a in ("vocab", "positions") if a in grows}
    return [*steps, *([{"op": "resize", **rows}] if rows else [])]


def numbers(value: Any, path: str = "") -> Iterator[tuple[str, int]]:
    """The whole numbers of a config, with their places."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from numbers(inner, f"{path}.{key}".lstrip("."))
    elif isinstance(value, int) and not isinstance(value, bool):
        yield path, value


def with_synonyms(name: str, folder: Path) -> Any:
    """A model of the zoo, saved with a config that says sizes under every name; the model."""
    saved = tiny.Saved.at(folder, name)
    file = folder / "config.json"
    config = json.loads(file.read_text())
    also = {a: config[key] for a, key in synonyms(name).items() if key in config}
    file.write_text(json.dumps(also | config))
    return saved.model


NAMED_TWICE = [
    pytest.param(name, marks=[zoo.one_worker(name), *([pytest.mark.slow] if number else [])])
    for models in zoo.families().values()
    for number, name in enumerate([n for n in models if synonyms(n)])
]


QUICK = {*random.Random(0).sample(sorted(zoo.models()), 8)}
SAMPLED = [
    pytest.param(name, marks=[zoo.one_worker(name), *([] if name in QUICK else [pytest.mark.slow])])
    for name in zoo.models()
]


@pytest.mark.parametrize("name", NAMED_TWICE)
def test_a_size_under_two_names_follows_under_both(tmp_path: Path, name: str) -> None:
    """transformers loads the result whole; the stale one of two names would win there."""
    model = with_synonyms(name, tmp_path / "small")
    recipe = parse_recipe({"steps": everything_larger(tmp_path / "small")})
    config = api.grow(tmp_path / "small", recipe, out=tmp_path / "big").plan.config
    assert all(config[a] == config[key] for a, key in synonyms(name).items() if key in config)
    tiny.load(tmp_path / "big", model)


@pytest.mark.parametrize("name", ["gpt2/causal", "t5/generation", "mixtral/causal"])
def test_a_size_under_its_other_name_alone(tmp_path: Path, name: str) -> None:
    """transformers reads such a config, too, so it means the same here."""
    with_synonyms(name, tmp_path / "small")
    file = tmp_path / "small" / "config.json"
    config = json.loads(file.read_text())
    sizes = read_model(open_checkpoint(tmp_path / "small")).sizes
    lost = {key for a, key in synonyms(name).items() if a in config}
    file.write_text(json.dumps({k: v for k, v in config.items() if k not in lost}))
    assert read_model(open_checkpoint(tmp_path / "small")).sizes == sizes


def test_two_names_that_differ_are_refused(tmp_path: Path) -> None:
    """Which of the two transformers takes depends on its version."""
    with_synonyms("gpt2/causal", tmp_path / "small")
    file = tmp_path / "small" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"hidden_size": 96}))
    with pytest.raises(CheckpointError, match=r"config\.json: hidden_size: expected hidden = 48"):
        read_model(open_checkpoint(tmp_path / "small"))


@pytest.mark.parametrize("name", SAMPLED)
def test_no_number_in_a_config_stays_at_an_old_size(tmp_path: Path, name: str) -> None:
    """transformers writes every setting it knows; what still has the old size is another thing."""
    saved = tiny.Saved.at(tmp_path / "small", name)
    recipe = parse_recipe({"steps": everything_larger(saved.folder)})
    plan = api.plan_growth(saved.folder, recipe)
    before = read_model(open_checkpoint(saved.folder)).sizes
    grown = {n for a, n in before.items() if plan.state.sizes[a] != n and n > LARGEST_COUNT}
    now = dict(numbers(dict(plan.config)))
    stale = {k: n for k, n in numbers(json.loads((saved.folder / "config.json").read_text()))
             if n in grown and now[k] == n}  # fmt: skip
    assert not stale.keys() - CHANCE
