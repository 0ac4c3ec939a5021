"""What is alike is said once in growkit.json, layers and experts, and can be told one by one."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny import build, save

from growkit.api import check_files, grow
from growkit.checkpoints.tensor_list import (
    checksums,
    count,
    measured,
    members,
    nonfinite,
    said_once,
)


def entry(source: str, **rest: Any) -> dict[str, Any]:
    """A tensor of the list."""
    return {
        "shape": [2],
        "from": [source],
        "file": "a",
        "crc32": f"{hash(source) % 997:08x}",
        **rest,
    }


def told(listed: dict[str, Any]) -> dict[str, Any]:
    """Names and places of all tensors."""
    return {name: (file, crc32) for name, file, crc32 in checksums(listed)}


@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_lost(seed: int) -> None:
    """However experts are spread over files, drawn from, or left out, each is told as it was."""
    rng = random.Random(seed)
    sizes = {f"l.{i}.e.{j}.w": rng.choice([1, 2]) for i in range(3) for j in range(40)}
    for name in rng.sample(sorted(sizes), 10):
        del sizes[name]
    listed = {
        name: entry(
            f"l.{rng.randrange(2)}.e.{int(name.split('.')[3]) // rng.choice([1, 1, 1, 2])}.w",
            file=rng.choice(["a", "a", "a", "b"]),
            shape=[size],
        )
        for name, size in sizes.items()
    } | {"l.0.norm": entry("l.0.norm")}
    said = said_once(listed, dict.fromkeys(sizes, -1))
    assert told(said) == told(listed)
    assert sum(map(count, said)) == len(listed)
    assert said["l.0.norm"] == listed["l.0.norm"]


def test_one_entry_for_a_layer() -> None:
    """Doubled experts come from the old ones in their order, and what is measured is by name."""
    names = [f"l.3.e.{i}.w" for i in range(16)]
    listed = {n: entry(f"large:l.1.e.{i % 8}.w") for i, n in enumerate(names)}
    ((name, one),) = said_once(listed, dict.fromkeys(names, -1)).items()
    assert (name, one["from"]) == ("l.3.e.{0..15}.w", ["large:l.1.e.{0..7,0..7}.w"])
    assert members(name) == names
    whole = {name: measured(name, one, dict.fromkeys(names, "0"), {names[3]: 7})}
    assert nonfinite(whole) == {names[3]: 7}
    assert measured("a", {}, {"a": "1"}, {"a": 2}) == {"crc32": "1", "nonfinite": 2}


@pytest.mark.parametrize(
    "name", ["e.{0..999999999}.w", "e.{9..3}.w", "e.{0..1}.w", "e.{0..9,4}.w", "e.{1,}.w"]
)
def test_no_more_than_there_are_checksums(name: str) -> None:
    """A list that somebody else wrote makes no tensors out of nothing."""
    assert [*checksums({name: {"file": "a", "crc32": "0"}})] == [(name, "a", "0")]


def test_layers_that_are_not_alike() -> None:
    """Every fifth layer is new: two entries, and each tensor is told as it was."""
    names = [f"l.{i}.w" for i in range(10)]
    listed = {n: entry(n, origin="new" if i % 5 == 4 else "copied") for i, n in enumerate(names)}
    said = said_once(listed, dict.fromkeys(names, -1))
    assert [*said] == ["l.{0..3,5..8}.w", "l.4.w", "l.9.w"]
    assert told(said) == told(listed)
    whole = {n: measured(n, e, dict.fromkeys(names, "0"), {"l.5.w": 7}) for n, e in said.items()}
    assert nonfinite(whole) == {"l.5.w": 7}


@pytest.mark.parametrize("recipe", ["double_width", "double_depth", "llama_pro"])
def test_a_deep_model(tmp_path: Path, recipe: str) -> None:
    """Of a dense model, growkit.json has at most 150 bytes for a tensor."""
    small = save(build("llama", "causal", layers=16, dtype=torch.bfloat16), tmp_path / "small")
    out = grow(small, recipe, out=tmp_path / "out").out
    record = (out / "growkit.json").read_bytes()
    tensors = load_file(out / "model.safetensors")
    assert len(record) <= 150 * len(tensors)
    assert {n for name in json.loads(record)["tensors"] for n in members(name)} == tensors.keys()
    assert check_files(out) == []


def test_a_result_with_many_experts(tmp_path: Path) -> None:
    """growkit.json stays small, a flipped bit in any expert is found, NaN is counted by name."""
    model = build("qwen3_moe", "causal", num_experts=64, layers=2, dtype=torch.bfloat16)
    small = save(model, tmp_path / "small")
    tensors = load_file(small / "model.safetensors")
    bad = next(n for n in tensors if ".experts.17.up_proj" in n)
    tensors[bad][0, 0] = torch.nan
    save_file(tensors, small / "model.safetensors", metadata={"format": "pt"})
    result = grow(small, "g_stack_2x", out=tmp_path / "out", allow_nonfinite=True)
    record = (result.out / "growkit.json").read_bytes()
    total = 2 * len(tensors) - 3
    assert sum(result.summary()["origins"].values()) == total
    assert len(record) < 150 * total
    assert [*result.summary()["nonfinite"]] == [bad, bad.replace("layers.0", "layers.2")]
    assert json.loads(record)["new_tensors"]
    assert check_files(result.out) == []
    grown = result.out / "model.safetensors"
    raw = bytearray(grown.read_bytes())
    raw[-1] ^= 1
    grown.write_bytes(raw)
    assert len(check_files(result.out)) == 1
