"""Settings that say a size, or name a layer, in config.json and beside it: all follow the growth.

The oracle is what transformers knows: which names of its config classes mean the same, and what it
loads. Models are those of the zoo, some by default, all of them when slow.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support import tiny, zoo

from growkit import api
from growkit.checkpoints.open import open_checkpoint
from growkit.errors import CheckpointError
from growkit.families.load import build_family, find_family
from growkit.families.model import read_model
from growkit.families.named_layers import OUTPUTS
from growkit.recipe.recipe import parse_recipe
from growkit.verify.precision import full_precision

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
    pytest.param(name, marks=[pytest.mark.model(name), *([pytest.mark.slow] if number else [])])
    for models in zoo.families().values()
    for number, name in enumerate([n for n in models if synonyms(n)])
]


QUICK = {*random.Random(0).sample(sorted(zoo.models()), 8)}
SAMPLED = [
    pytest.param(
        name, marks=[pytest.mark.model(name), *([] if name in QUICK else [pytest.mark.slow])]
    )
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


# -- settings that name layers -------------------------------------------------------------------

DEEPER = {
    "silent": [{"op": "depth", "to": {"layers": "2x"}}],
    "stack": [{"op": "depth", "to": {"layers": "2x"}, "how": "stack"}],
    "list": [{"op": "depth", "layers": [0, 1, 1, 2, 0]}],
    "two steps": [{"op": "depth", "to": {"layers": "2x"}}, {"op": "depth", "to": {"layers": 9}}],
}
PLACES = {  # where what layers 0, 1 and 2 put out is after each of them
    "silent": [2, 4, 6], "stack": [4, 5, 6], "list": [5, 5, 5], "two steps": [3, 6, 9],
}  # fmt: skip


@pytest.mark.parametrize("growth", DEEPER)
def test_outputs_of_a_backbone_follow_the_layers(tmp_path: Path, growth: str) -> None:
    """By number from both ends and by name; the last stays last."""
    saved = tiny.Saved.at(tmp_path / "small", "dinov2/model")
    file = saved.folder / "config.json"
    settings = {"out_indices": [0, 1, -2, -1], "out_features": ["stem", "stage1", "stage2"]}
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    config = api.plan_growth(saved.folder, parse_recipe({"steps": DEEPER[growth]})).config
    first, second, last = PLACES[growth]
    count = config["num_hidden_layers"]
    back = [n - count - 1 for n in (second, last)]
    assert config["out_indices"] == list(dict.fromkeys([0, first, *back]))
    assert config["out_features"] == list(
        dict.fromkeys(["stem", f"stage{first}", f"stage{second}"])
    )
    assert config["stage_names"] == ["stem", *(f"stage{n + 1}" for n in range(count))]


def test_a_backbone_gives_the_features_it_gave(tmp_path: Path) -> None:
    """Silent layers change no feature, in the middle or at the end."""
    saved = tiny.Saved.at(tmp_path / "small", "dinov2/model")
    file = saved.folder / "config.json"
    settings = {"out_indices": [1, 3], "out_features": ["stage1", "stage3"]}
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    api.grow(saved.folder, parse_recipe({"steps": DEEPER["silent"]}), out=tmp_path / "big")
    features = []
    for folder in (saved.folder, tmp_path / "big"):
        backbone = transformers.Dinov2Backbone.from_pretrained(folder, dtype=torch.float64)
        with torch.no_grad():
            features.append(backbone.eval()(saved.inputs["pixel_values"]).feature_maps)
    for want, have in zip(*features, strict=True):
        torch.testing.assert_close(have, want, rtol=0, atol=1e-9)


def test_alignment_heads_follow_layers_and_heads(tmp_path: Path) -> None:
    """They name cross attention whose weights say when a word is spoken: those stay the same."""
    saved = tiny.Saved.at(tmp_path / "small", "whisper/generation")
    pairs = [[0, 1], [1, 0], [1, 2]]
    file = saved.folder / "generation_config.json"
    kept = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(kept | {"alignment_heads": pairs, "output_hidden_states": [1, -1]}))
    steps = [{"op": "width", "to": {"axes": "2x"}, "how": {"heads": "repeat"}}, *DEEPER["silent"]]
    api.grow(saved.folder, parse_recipe({"steps": steps}), out=tmp_path / "big")
    settings = json.loads((tmp_path / "big" / "generation_config.json").read_text())
    assert settings["alignment_heads"] == [[0, 2], [2, 0], [2, 4]]
    assert settings["output_hidden_states"] == [2, -1]
    weights = []
    for folder, named in ((saved.folder, pairs), (tmp_path / "big", settings["alignment_heads"])):
        model = tiny.load(folder, saved.model)
        with full_precision(), torch.no_grad():
            attentions = model(**saved.inputs, output_attentions=True).cross_attentions
        weights.append(torch.stack([attentions[layer][:, head] for layer, head in named]))
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=1e-9)


LAYERED = re.compile(r"layer|stage|block|depth|indices|feature|alignment|exit|hidden_states")
REVIEWED = {  # what looks like a setting that names layers, and is none
    "layer_norm_eps", "layer_norm_epsilon", "layer_norm_elementwise_affine", "layernorm_embedding",
    "do_layer_norm_before", "_remove_final_layer_norm", "layerdrop", "encoder_layerdrop",
    "decoder_layerdrop", "layerscale_value", "apply_layernorm", "qk_layernorm",
    "scale_attn_by_inverse_layer_idx", "apply_residual_connection_post_layernorm",
    "reshape_hidden_states", "mask_feature_prob", "mask_feature_length", "mask_feature_min_masks",
    "use_weighted_layer_sum", "num_nextn_predict_layers", "num_ln_in_parallel_attn",
    "suppress_tokens", "begin_suppress_tokens", "attn_config.output_hidden_states",
    "classifier_proj_size", "scale_decoder_outputs", "num_hidden_groups",
}  # fmt: skip


def settings_of(config: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """The settings of a config that may name layers: by their words, or as lists of whole numbers.

    Both are taken to name layers unless they are reviewed.
    """
    for key, value in config.items():
        if isinstance(value, dict):
            yield from settings_of(value, f"{above}{key}.")
        listed = isinstance(value, list) and any(isinstance(v, int | list) for v in value)
        if listed or (LAYERED.search(str(key)) and not isinstance(value, dict)):
            yield f"{above}{key}"


def test_settings_that_may_name_layers_are_known() -> None:
    """Every config class of the zoo, with what it nests: in the family's file, or reviewed."""
    classes = {getattr(transformers, each.cls).config_class for each in zoo.models().values()}
    unknown = set()
    for config_class in classes:
        config = config_class().to_dict()
        read = build_family(find_family(config), config, ())
        known = {*read.lists, *read.indices, *read.thresholds, *read.periods, *read.outputs}
        known |= {*read.output_names, *read.layer_heads, *read.mirrors, *OUTPUTS}
        known |= {p.unless for p in read.periods.values()}
        known |= {key for names in read.config for key in names.split("|")}
        unknown |= {f"{read.name}: {key}" for key in settings_of(config) if key not in known
                    and not {key, key.rpartition(".")[2]} & REVIEWED}  # fmt: skip
    assert not unknown


def test_settings_of_generation_that_may_name_layers_are_known() -> None:
    """generation_config.json is of one class for all models."""
    given = settings_of(vars(transformers.GenerationConfig()))
    assert {*given} - REVIEWED == {*OUTPUTS}
