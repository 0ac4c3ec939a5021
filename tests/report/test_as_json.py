"""What a growth says about itself: origins of tensors, growkit.json, the model card."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from support.tiny import build, save

from growkit.algebra.kernel import Kernel
from growkit.api import plan_growth
from growkit.checkpoints.card import read_card
from growkit.checkpoints.types import Stored
from growkit.ops.axis_maps import pad, tile
from growkit.planning.formula import Formula, Noise, Ones, Term
from growkit.planning.plan import Estimate, Plan
from growkit.report.as_json import (
    config_changes,
    hub_id,
    new_tensors,
    plan_json,
    report_json,
    summary_json,
)
from growkit.report.model_card import model_card
from growkit.report.provenance import origin

OLD = Stored("small", "w", (4, 3), "F32")
OTHER = Stored("large", "w", (8, 3), "F32")
TILE, PAD = tile(4, 8), pad(4, 6)


def of(*terms: Term, rows: int = 8) -> Any:
    """Kind and new rows of a tensor with these terms, shape (rows, 3)."""
    found = origin(Formula("w", (rows, 3), "F32", terms))
    return found.kind, found.new_rows


# -- where a tensor comes from -------------------------------------------------------------------


def test_origin_of_nothing() -> None:
    """Zeros, ones and noise are new in every row."""
    noise = Noise(0, 0, "w", (8, 3), std=1.0)
    assert of() == ("new", 8)
    assert of(Term(noise, (None, None))) == ("new", 8)
    assert origin(Formula("b", (), "F32")).new_rows == 0


def test_origin_of_one_source() -> None:
    """Copies are copies however often; factors scale; sums mix; rows without a source are new."""
    assert of(Term(OLD, (None, None)), rows=4) == ("copied", 0)
    assert of(Term(OLD, (TILE.write, None))) == ("copied", 0)
    assert of(Term(OLD, (TILE.read, None))) == ("scaled", 0)
    assert of(Term(OLD, (None, None), scale=2.0), rows=4) == ("scaled", 0)
    assert of(Term(OLD, (PAD.write, None)), rows=6) == ("copied", 2)
    mean = pad(4, 6, mean=True)
    assert of(Term(OLD, (mean.write, None)), rows=6) == ("mixed", 0)
    pairs = Kernel.gather([[0, 1], [2, 3]], 0.5, old=4)
    assert of(Term(OLD, (pairs, None)), rows=2) == ("mixed", 0)
    assert of(Term(OLD, (Kernel.from_matrix(np.eye(4)), None)), rows=4) == ("mixed", 0)


def test_origin_of_several_terms() -> None:
    """Terms that meet in an element mix; terms that share the rows among them do not."""
    top, rest = Kernel.gather([0, 1, 2, 3, 0, 0], [1.0] * 4 + [0.0] * 2, old=4), np.arange(6) >= 4
    ones = Term(Ones((1, 1)), (Kernel.gather(np.zeros(6), rest.astype(float), old=1), None))
    fresh = Term(Noise(0, 0, "w", (6, 3), std=1.0), (Kernel.identity(6).masked(rest), None))
    assert of(Term(OLD, (top, None)), ones, rows=6) == ("copied", 2)
    assert of(Term(OLD, (top, None)), fresh, rows=6) == ("copied", 2)
    blended = origin(
        Formula("w", (8, 3), "F32", (Term(OLD, (TILE.write, None)), Term(OTHER, (None, None))))
    )
    assert blended == ("mixed", (OLD, OTHER), 0)
    everywhere = Term(Noise(0, 0, "w", (8, 3), std=1.0), (None, None))
    assert of(Term(OLD, (TILE.write, None)), everywhere) == ("mixed", 0)


# -- growkit.json --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny tied decoder, saved."""
    folder = tmp_path_factory.mktemp("small")
    return save(build("gpt2", "causal", heads=3, head_dim=4, mlp=16, layers=2), folder)


@pytest.fixture(scope="module")
def plan(small: Path) -> Plan:
    """Twice as wide, with noise."""
    return plan_growth(small, "double_width")


@pytest.fixture(scope="module")
def deep(small: Path) -> Plan:
    """Twice as deep, new layers silent."""
    return plan_growth(small, "double_depth")


def report_of(plan: Plan) -> dict[str, Any]:
    """A growkit.json with made-up facts of the run."""
    return report_json(
        plan,
        version="1.2.3",
        digest="d" * 64,
        files={"model.safetensors": 1},
        checksums={"model.safetensors": "0"},
        tensors={f.name: {"file": "model.safetensors", "crc32": "0"} for f in plan.formulas},
        started="2026-01-01T00:00:00+00:00",
        seconds=1.23456,
        peak_bytes=7,
    )


def test_report_says_everything(plan: Plan) -> None:
    """The keys that the contract names, and plain JSON all through."""
    report = report_of(plan)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["sizes"] == {"before": dict(plan.sizes_before), "after": dict(plan.sizes_after)}
    assert report["parameters"]["after"] == sum(np.prod(f.shape) for f in plan.formulas)
    exactness = report["exactness"]
    assert exactness["claim"] == "exact"
    assert exactness["storage"].keys() == {"dtype", "claim"}
    assert [step["op"] for step in exactness["steps"]] == ["width", "noise"]
    assert report["sources"]["small"]["files"][0]["header_sha256"]
    assert report["seeds"] == {"recipe": 0}
    assert report["timings"] == {"started": "2026-01-01T00:00:00+00:00", "seconds": 1.235}
    assert report["verify"] is None
    embedding = report["tensors"]["transformer.wte.weight"]
    assert embedding == {
        "shape": [29, 24],
        "dtype": "F64",
        "origin": "copied",
        "new_rows": 0,
        "from": ["transformer.wte.weight"],
        "file": "model.safetensors",
        "crc32": "0",
    }


def test_report_maps_read_back(plan: Plan) -> None:
    """The stored map of the last hidden state takes the big stream back to the small one."""
    report = report_of(plan)
    stored = report["maps"][report["readback"]]
    assert (stored["old"], stored["new"]) == (12, 24)
    read = Kernel.from_runs(stored["read"]["runs"], old=stored["old"])
    written = plan.maps["hidden"].write.apply(np.arange(12.0))
    np.testing.assert_allclose(read.transpose().apply(written), np.arange(12.0))


def test_report_without_width_needs_no_map(deep: Plan) -> None:
    """A stream that does not grow is compared as it is."""
    report = report_of(deep)
    assert (report["readback"], report["maps"]) == (None, {})


def test_new_tensors_are_the_added_layers(deep: Plan) -> None:
    """Every tensor of an added layer is new to a trainer, copied or zero, and no other is."""
    names = {f.name for f in deep.formulas if ".h.1." in f.name or ".h.3." in f.name}
    assert set(new_tensors(deep)) == names
    assert set(deep.zeroed) < names
    hints = " ".join(report_of(deep)["hints"])
    assert "silent" in hints
    assert "2401.02415" in hints


def test_new_tensors_without_depth(plan: Plan) -> None:
    """Width alone adds rows, not tensors."""
    assert new_tensors(plan) == []


def test_sources_are_told_apart(small: Path, tmp_path: Path) -> None:
    """Tensors of further checkpoints carry the name of their source."""
    recipe = tmp_path / "mix.yaml"
    recipe.write_text(
        "sources: [small, large]\nsteps: [{op: blend, with: large, alpha: 0.5}]", encoding="utf-8"
    )
    plan = plan_growth(small, recipe, sources={"large": str(small)})
    entry = report_of(plan)["tensors"]["transformer.wte.weight"]
    assert entry["origin"] == "mixed"
    assert entry["from"] == ["transformer.wte.weight", "large:transformer.wte.weight"]
    assert "loss" in report_of(plan)["hints"][0]


def test_summary_fits_on_a_screen(plan: Plan) -> None:
    """The summary has the result and counts in place of lists of tensors."""
    told = summary_json(report_of(plan), out="big", already_done=False, seconds=0.5)
    assert (told["out"], told["already_done"]) == ("big", False)
    assert sum(told["origins"].values()) == len(plan.formulas)
    assert len(json.dumps(told)) < 4000


# -- the plan as JSON ----------------------------------------------------------------------------


def test_plan_json(plan: Plan) -> None:
    """Config changes, cost and resolved recipe are in it, and it is plain JSON."""
    told = plan_json(plan, Estimate(1, 2, 3, ("model.safetensors",), "d"))
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert told["config"]["n_embd"] == [12, 24]
    assert told["resolved"]["steps"][0]["op"] == "width"
    assert told["tensors"].keys() == {f.name for f in plan.formulas}
    assert config_changes(plan)["n_head"] == [3, 6]


def test_a_nan_in_the_config_is_no_change(small: Path, tmp_path: Path) -> None:
    """Python's JSON has it, and it is not equal to itself; it is carried over like any value."""
    folder = shutil.copytree(small, tmp_path / "m")
    config = json.loads((folder / "config.json").read_text()) | {"limit": float("nan")}
    (folder / "config.json").write_text(json.dumps(config))
    plan = plan_growth(folder, "double_width")
    assert math.isnan(plan.config["limit"])
    assert "limit" not in config_changes(plan)


# -- model card ----------------------------------------------------------------------------------


def test_model_card(plan: Plan) -> None:
    """Front matter for the Hub; sizes, claim, how to load, what to mind; no local path."""
    card = model_card(plan, report_of(plan))
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "transformers",
        "tags": ["growkit", "model-growth"],
    }
    assert "| hidden | 12 | 24 |" in body
    assert "Claim: **exact**" in body
    assert "GPT2LMHeadModel.from_pretrained(" in body
    assert "learning rate" in body
    assert plan.sources["small"].path not in card


def test_a_card_carries_what_stays_true(small: Path, tmp_path: Path) -> None:
    """Licence, language and the like as huggingface_hub reads them; differing licences are said."""
    folder = shutil.copytree(small, tmp_path / "m")
    front = {
        "license": "mit",
        "language": "no",
        "pipeline_tag": "text-generation",
        "datasets": ["a/b"],
        "tags": ["onnx", "story"],
        "model-index": [{"name": "x"}],
    }
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(front)}---\n# M\n")
    plan = plan_growth(folder, "double_width")
    data = ModelCard(model_card(plan, report_of(plan))).data.to_dict()
    assert data == {
        **{key: front[key] for key in ("license", "language", "pipeline_tag", "datasets")},
        "library_name": "transformers",
        "tags": ["growkit", "model-growth", "story"],
    }
    source = plan.sources["small"]
    two = replace(plan, sources={"small": source, "other": replace(source, card={})})
    card = model_card(two, report_of(plan))
    assert "license" not in ModelCard(card).data.to_dict()
    assert "- small: `mit`\n- other: its card names none\n" in card


@pytest.mark.parametrize(
    "text",
    ["", "# M", "---\n", "---\n[1]\n---\n", "---\na: &x 1\nb: *x\n---\n", "---\n: :\n\xff---\n"],
)
def test_a_card_that_cannot_be_read_is_none(text: str, tmp_path: Path) -> None:
    """It never stands in the way of a model."""
    (tmp_path / "README.md").write_bytes(text.encode("latin-1"))
    assert read_card(tmp_path) == {}


def test_what_others_name_is_text_in_a_card(plan: Plan) -> None:
    """Names of files, recipes and classes are no HTML, no link, no end of a block and no code."""
    name = "m <img src=x> `[a](javascript:b)\n\n# x\x1b[2J"
    source = replace(plan.sources["small"], path=f"/{name}")
    hostile = replace(
        plan,
        recipe_name=name,
        sources={"small": source},
        config={**plan.config, "architectures": ["A; import os", "class", "GPT2Model"]},
    )
    report = report_of(plan)
    report["hints"] = [name, f"run `{name}`"]
    report["exactness"]["reasons"] = [name]
    body = model_card(hostile, report).split("---\n", 2)[2]
    assert not re.search(r"<img|(?<!\\)\]\(java|^# x|import os|\x1b", body, re.MULTILINE)
    assert body.count("&lt;img src=x&gt;") == 5
    assert "import GPT2Model\n" in body


@pytest.mark.parametrize(
    ("path", "revision", "expected"),
    [
        ("org/name", "0a1b", "org/name"),
        ("models/small", None, None),
        ("/cache/models--org--my-name/snapshots/0a1b", None, "org/my-name"),
        ("/data/small", "0a1b", None),
    ],
)
def test_hub_id(path: str, revision: str | None, expected: str | None) -> None:
    """A Hub id is recognised by its revision or its cache folder; a local path is not one."""
    assert hub_id(path, revision) == expected
