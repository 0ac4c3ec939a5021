"""`growkit families check`: a right file passes, and a wrong one is told where it is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
import yaml
from click.testing import CliRunner
from support import zoo

from growkit import api
from growkit.cli.main import app
from growkit.errors import FamilyError, VerifyError
from growkit.families.load import build_family, family_text, find_family
from growkit.verify.check_family import Finding
from growkit.verify.tiny import tiny_config


def config_of(name: str) -> dict[str, Any]:
    """The config of a tiny model, as saved."""
    tiny = zoo.models()[name]
    cls = getattr(transformers, tiny.cls)
    return {**cls.config_class(**tiny.config).to_dict(), "architectures": [tiny.cls]}


def written(folder: Path, config: dict[str, Any]) -> Path:
    """A config.json."""
    file = folder / "config.json"
    file.write_text(json.dumps(config, default=str))
    return file


def wrong(findings: list[Finding]) -> list[str]:
    """What did not pass."""
    return [f.what for f in findings if not f.passed]


def big(config: dict[str, Any]) -> dict[str, Any]:
    """The sizes of a model that would not fit in memory."""
    return config | {
        "hidden_size": 12288, "num_attention_heads": 96, "num_key_value_heads": 8, "head_dim": 128,
        "intermediate_size": 49152, "num_hidden_layers": 120, "vocab_size": 250_000,
        "pad_token_id": 200_000, "layer_types": ["full_attention"] * 120,
    }  # fmt: skip


def test_a_right_file_passes(tmp_path: Path) -> None:
    """Tensors, axes and growths, on a tiny model of a config of any size."""
    config = written(tmp_path, big(config_of("qwen3/causal")))
    file = tmp_path / "mine.yaml"
    file.write_text(family_text("qwen3"))
    findings = api.check_family(file, config)
    assert wrong(findings) == []
    assert {"tensors", "axis hidden", "axis kv_heads", "axis v", "growth: width 2x"} <= {
        f.what for f in findings
    }


@pytest.mark.parametrize(
    ("name", "asked", "layers"),
    [
        ("qwen3/causal", {"num_hidden_layers": 120, "layer_types": ["full_attention"] * 120}, 4),
        ("qwen3/causal", {"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2}, 2),
        ("qwen3/causal", {"num_hidden_layers": 64, "layer_types": None}, 4),
        ("gemma2/causal", {"num_hidden_layers": 40, "layer_types": None}, 4),
        ("deepseek_v3/causal", {"num_hidden_layers": 61, "first_k_dense_replace": 5}, 4),
    ],
)  # fmt: skip
def test_a_layer_of_each_kind(name: str, asked: dict[str, Any], layers: int) -> None:
    """The tiny model is shallow, but no kind of layer of the large one is left out."""
    config = config_of(name) | asked
    family = build_family(find_family(config, None), config, set(), "")
    assert tiny_config(family, config)["num_hidden_layers"] == layers


MISTAKES: dict[str, tuple[str, Callable[[dict[str, Any]], None], str]] = {
    "a tensor is missing": (
        "qwen3", lambda d: d["modules"]["layers.{layers}."].pop("self_attn.q_norm"), "tensors"
    ),
    "two axes are swapped": (
        "gpt_neox",
        lambda d: d["modules"]["layers.{layers}."].update(
            {"attention.query_key_value": "lin heads.q|heads.k|heads.v hidden"}),
        "axis heads",
    ),
    "wrong rotary layout": (
        "gpt_neox", lambda d: d["rope"].update(pairs="adjacent"), "axis q"
    ),
    "a forgotten factor": ("gemma", lambda d: d.pop("multipliers"), "growth: width 2x"),
    "gains without their 1": (
        "gemma2",
        lambda d: d["modules"].update(norm="rms hidden"),
        "growth: width 2x",
    ),
    "wrong power of the scores": ("qwen3", lambda d: d.update(scores={"power": -1.0}), ""),
    "a norm that ends a branch": (
        "olmo2",
        lambda d: d["modules"]["layers.{layers}."].update(post_attention_layernorm="rms heads.v"),
        "tensors",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_file_is_told_where(tmp_path: Path, mistake: str) -> None:
    """One mistake, and the tensor or axis that shows it."""
    name, spoil, where = MISTAKES[mistake]
    data = yaml.safe_load(family_text(name))
    spoil(data)
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(data))
    findings = api.check_family(file, written(tmp_path, config_of(f"{name}/causal")))
    assert (where in wrong(findings)) if where else findings


def test_the_command(tmp_path: Path) -> None:
    """Lines, exit code 3 for a wrong file, and one JSON object."""
    config = written(tmp_path, config_of("qwen3/causal"))
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text(family_text("qwen3"))
    bad.write_text(family_text("qwen3").replace("rms k", "rms v"))
    call = ["families", "check", str(good), "--config", str(config)]
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 0
    assert all(x.startswith(("ok ", " ")) for x in done.stdout.splitlines())
    call[2] = str(bad)
    failed = CliRunner().invoke(app, [*call, "--json"])
    assert failed.exit_code == 3
    told = json.loads(failed.stdout)
    assert (told["passed"], told["exit_code"]) == (False, 3)
    assert "does not describe this model" in told["error"]
    assert failed.stderr == f"error: {told['error']}\nhint: {told['hint']}\n"


@pytest.mark.parametrize("call", ["check x.yaml", "check --config c.json", "infer", "a b"])
def test_wrong_calls(call: str) -> None:
    """What is expected is said."""
    result = CliRunner().invoke(app, ["families", *call.split()])
    assert result.exit_code == 2
    assert "expected NAME, check FILE --config CONFIG, or infer CONFIG" in result.stderr


def test_no_model_can_be_built(tmp_path: Path) -> None:
    """A config that transformers refuses."""
    config = config_of("qwen3/causal") | {"architectures": ["NoSuchModel"], "model_type": "qwen3"}
    config["rope_parameters"] = {"rope_type": "no such type"}
    file = tmp_path / "mine.yaml"
    file.write_text(family_text("qwen3"))
    with pytest.raises(VerifyError, match="cannot build a tiny model"):
        api.check_family(file, written(tmp_path, config))


# -- infer -----------------------------------------------------------------------------------------


def test_infer_drafts_a_file_that_passes(tmp_path: Path) -> None:
    """For a plain decoder the draft is right as it stands."""
    config = written(tmp_path, config_of("qwen3/causal"))
    text, doubts = api.infer_family(config)
    assert doubts == text.count("# ?") > 0
    file = tmp_path / "draft.yaml"
    file.write_text(text)
    assert wrong(api.check_family(file, config)) == []


def test_infer_says_what_it_does_not_know(tmp_path: Path) -> None:
    """How a fused projection is interleaved no shape shows."""
    text, _ = api.infer_family(written(tmp_path, config_of("gpt_neox/causal")))
    line = next(x for x in text.splitlines() if "query_key_value" in x)
    assert line.endswith("# ?")


def test_infer_runs_no_code_of_a_checkpoint(tmp_path: Path) -> None:
    """An unknown model type, even one with auto_map, is refused."""
    config = {"model_type": "mine", "auto_map": {"AutoModel": "modeling_mine.Mine"}}
    with pytest.raises(FamilyError, match="cannot build a model of this config"):
        api.infer_family(written(tmp_path, config))
