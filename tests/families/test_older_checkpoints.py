"""Checkpoints as they were published: other prefixes, buffers, and the config keys of their day."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support import tiny, zoo

from growkit import api
from growkit.checkpoints.open import open_checkpoint
from growkit.errors import GrowkitError
from growkit.families.model import read_model
from growkit.planning.plan import Plan
from growkit.recipe.recipe import parse_recipe
from growkit.verify.precision import full_precision


@dataclass(frozen=True)
class Older:
    """How the published file differs from what transformers writes today."""

    model: str  # of the zoo
    prefix: str = ""  # missing in names
    buffers: tuple[str, ...] = ()  # further tensors
    lost: tuple[str, ...] = ()  # config keys that were not there
    keys: Mapping[str, Any] = field(default_factory=dict)  # config keys that were


PYTHIA = Older(
    "gpt_neox/causal",
    buffers=(
        "gpt_neox.layers.0.attention.bias", "gpt_neox.layers.0.attention.masked_bias",
        "gpt_neox.layers.0.attention.rotary_emb.inv_freq",
    ),
    lost=("rope_parameters",),
    keys={"rotary_pct": 0.5, "rotary_emb_base": 10000},
)  # fmt: skip
OLDER = {
    "pythia": PYTHIA,
    "bloom": Older("bloom/causal", prefix="transformer."),
    "opt": Older("opt/causal", prefix="model."),
    "gpt-neo": Older(
        "gpt_neo/causal",
        buffers=(
            "transformer.h.1.attn.attention.bias", "transformer.h.1.attn.attention.masked_bias",
        ),
        lost=("attention_layers",),
    ),
    "gpt-j": Older(
        "gptj/causal",
        buffers=("transformer.h.0.attn.bias", "transformer.h.0.attn.masked_bias"),
    ),
    "distilbert": Older("distilbert/base", prefix="distilbert."),
    "roberta": Older("roberta/masked_lm", buffers=("roberta.embeddings.position_ids",)),
    "modernbert": Older(
        "modernbert/masked_lm",
        lost=("rope_parameters", "layer_types"),
        keys={"global_rope_theta": 160000.0, "local_rope_theta": 10000.0,
              "global_attn_every_n_layers": 3},
    ),
    "falcon": Older(
        "falcon/causal",
        lost=("ffn_hidden_size", "num_kv_heads", "rope_parameters"),
        keys={"rope_theta": 10000.0},
    ),
}  # fmt: skip


def publish(older: Older, folder: Path) -> Any:
    """A tiny model written as it would have been published; the model itself."""
    described = zoo.models()[older.model]
    if "ffn_hidden_size" in older.lost:  # its size then follows from another
        described = replace(described, config={**described.config, "ffn_hidden_size": 4 * 48})
    with full_precision():
        model = tiny.make(described)
    file, config = tiny.save(model, folder) / "model.safetensors", folder / "config.json"
    tensors = {n.removeprefix(older.prefix): t for n, t in load_file(file).items()}
    tensors |= {name: torch.zeros(1) for name in older.buffers}
    save_file(tensors, file, {"format": "pt"})
    said = json.loads(config.read_text())
    said = {k: v for k, v in said.items() if k not in older.lost} | older.keys
    config.write_text(json.dumps(said))
    return model


def grown(small: Path, out: Path, *steps: dict[str, Any]) -> Plan:
    """The plan, executed."""
    return api.grow(small, parse_recipe({"steps": list(steps)}), out=out).plan


WIDER = {"op": "width", "to": {"axes": "2x"}}


@pytest.mark.parametrize("name", OLDER)
def test_published_checkpoints_grow_exactly(tmp_path: Path, name: str) -> None:
    """Names keep their spelling, buffers are left out with a word, and the function stays."""
    older = OLDER[name]
    model = publish(older, tmp_path / "small")
    plan = grown(tmp_path / "small", tmp_path / "big", WIDER)
    read = read_model(open_checkpoint(tmp_path / "small"))
    assert len(read.dropped) == len(older.buffers)
    assert plan.claim.claim == "exact", plan.claim.reasons
    new = load_file(tmp_path / "big" / "model.safetensors")
    assert new.keys() == {e.info.name for e in read.entries.values()}
    given = tiny.inputs(model)
    with full_precision():
        want = tiny.outputs(model, given)
        have = tiny.outputs(tiny.load(tmp_path / "big", model), given)
    readback = plan.maps.get(plan.hidden_axis or "")
    matrix = torch.from_numpy(readback.read.matrix()) if readback else None
    assert tiny.difference(want, have, matrix) < 1e-9


def test_the_old_keys_of_pythia_are_the_ones_that_change(tmp_path: Path) -> None:
    """A rotary base that has to grow is written where this config has it."""
    model = publish(PYTHIA, tmp_path / "small")
    step = {"op": "width", "to": {"hidden": "3/2x", "head_dim": "3/2x"}}
    grown(tmp_path / "small", tmp_path / "big", step)
    config = json.loads((tmp_path / "big" / "config.json").read_text())
    assert config["rotary_emb_base"] == pytest.approx(10000.0**1.5)
    assert "rope_parameters" not in config
    given = tiny.inputs(model)
    with full_precision():
        have = tiny.outputs(tiny.load(tmp_path / "big", model), given)
        assert tiny.difference(tiny.outputs(model, given), have) < 1e-9


def test_runs_of_layer_kinds_follow_the_layers(tmp_path: Path) -> None:
    """GPT-Neo says [[kinds], times] beside a plain list; both tell the new layers' kinds."""
    publish(OLDER["gpt-neo"], tmp_path / "small")
    grown(tmp_path / "small", tmp_path / "big", {"op": "depth", "to": {"layers": "2x"}})
    config = json.loads((tmp_path / "big" / "config.json").read_text())
    kinds = ["global", "global", "local", "local"] * 2
    assert config["attention_types"] == [[kinds, 1]]


def test_a_period_becomes_the_list_that_says_it(tmp_path: Path) -> None:
    """An old ModernBERT says only that every third layer attends globally."""
    publish(OLDER["modernbert"], tmp_path / "small")
    plan = grown(tmp_path / "small", tmp_path / "big", {"op": "depth", "to": {"layers": "2x"}})
    full, sliding = "full_attention", "sliding_attention"
    kinds = [full, full, sliding, sliding, sliding, sliding, full, full]
    assert plan.config["layer_types"] == kinds


@pytest.mark.parametrize(
    ("model", "keys", "sizes"),
    [
        ("falcon/40b", {"model_type": "RefinedWeb", "n_head": 6, "n_head_kv": 2, "n_layer": 3},
         {"heads": 6, "kv_heads": 2, "layers": 3}),
        ("falcon/causal", {"model_type": "RefinedWebModel", "n_head": 6, "n_layer": 3},
         {"heads": 6, "layers": 3}),
        ("falcon/rw",
         {"model_type": "RefinedWebModel", "n_head": 6, "n_layer": 3, "multi_query": False},
         {"heads": 6, "layers": 3}),
    ],
)  # fmt: skip
def test_falcon_under_its_first_names(
    tmp_path: Path, model: str, keys: dict[str, Any], sizes: dict[str, int]
) -> None:
    """The three kinds of Falcon are told apart by the configs they were published with too."""
    lost = (
        "num_attention_heads", "num_kv_heads", "num_hidden_layers", "new_decoder_architecture",
        "multi_query", "parallel_attn", "num_ln_in_parallel_attn",
    )  # fmt: skip
    publish(Older(model, lost=lost, keys=keys), tmp_path / "small")
    read = read_model(open_checkpoint(tmp_path / "small"))
    assert {a: read.user_sizes().get(a) for a in sizes} == sizes
    assert ("kv_heads" in read.user_sizes()) is ("kv_heads" in sizes)
    plan = grown(tmp_path / "small", tmp_path / "big", WIDER)
    assert plan.config["n_head"] == 12
    assert plan.config.get("n_head_kv") == (4 if "kv_heads" in sizes else None)


def test_the_published_heads_of_deberta_v3_grow_too(tmp_path: Path) -> None:
    """Two heads that no class of transformers reads by default, in a file without architectures."""
    older = Older("deberta-v2/published head", lost=("architectures", "legacy"))
    publish(older, tmp_path / "small")
    file = tmp_path / "small" / "model.safetensors"
    tensors = load_file(file)
    tensors |= {
        "mask_predictions.dense.weight": torch.ones(48, 48, dtype=torch.float64),
        "mask_predictions.LayerNorm.weight": torch.ones(48, dtype=torch.float64),
        "mask_predictions.classifier.weight": torch.ones(1, 48, dtype=torch.float64),
    }
    save_file(tensors, file, {"format": "pt"})
    grown(tmp_path / "small", tmp_path / "big", WIDER)
    read = read_model(open_checkpoint(tmp_path / "big"))
    assert read.tied
    assert len(read.entries) == len(tensors)


# by family and what transformers' classes ignore: a model, a tensor, what becomes of it
IGNORED = {
    ("gpt2", "attn.bias"): ("causal", "transformer.h.0.attn.bias", "dropped"),
    ("gpt2", "crossattention.bias"): ("causal", "transformer.h.0.crossattention.bias", "dropped"),
    ("gpt_neox", "attention.bias"): ("causal", "gpt_neox.layers.0.attention.bias", "dropped"),
    ("gpt_neox", "attention.masked_bias"): (
        "causal", "gpt_neox.layers.0.attention.masked_bias", "dropped",
    ),
    ("t5", "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"): (
        "generation",
        "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
        "dropped",
    ),
    ("t5", "decoder"): ("encoder", "decoder.final_layer_norm.weight", "refused"),
    ("bart", "encoder.version"): ("generation", "model.encoder.version", "dropped"),
    ("bart", "decoder.version"): ("generation", "model.decoder.version", "dropped"),
    ("deberta-v2", "position_embeddings"): (
        "base", "embeddings.position_embeddings.weight", "grown",
    ),
    ("deberta-v2", "mask_predictions.*"): (
        "masked_lm", "mask_predictions.classifier.bias", "grown",
    ),
    ("deepseek_v3", r"model\.layers\.61.*"): ("causal", "model.layers.61.enorm.weight", "refused"),
}  # fmt: skip


def test_all_that_classes_ignore_is_known() -> None:
    """Of every model of the zoo; a later transformers may add some."""
    ignored = {
        (name.partition("/")[0], pattern)
        for name, model in zoo.models().items()
        for pattern in getattr(transformers, model.cls)._keys_to_ignore_on_load_unexpected or ()
    }
    assert ignored <= IGNORED.keys()


@pytest.mark.parametrize(("family", "pattern"), IGNORED)
def test_what_classes_ignore(tmp_path: Path, family: str, pattern: str) -> None:
    """It is left out, and said; or grown as what it is; or refused in a sentence that names it."""
    head, name, outcome = IGNORED[family, pattern]
    source = tiny.Saved.at(tmp_path, f"{family}/{head}").folder
    file = source / "model.safetensors"
    tensors = load_file(file)
    twin = tensors.get("embeddings.word_embeddings.weight") if "position_" in name else None
    save_file(tensors | {name: torch.ones(3) if twin is None else twin[:8].clone()}, file)
    if outcome == "refused":
        with pytest.raises(GrowkitError, match=re.escape(name)) as error:
            api.plan_growth(source, "double_depth")
        assert error.value.hint
        return
    plan = api.plan_growth(source, "double_depth")
    assert (name in {f.name for f in plan.formulas}) == (outcome == "grown")
    assert any(d.startswith(f"{name}: ") for d in plan.dropped) == (outcome == "dropped")
