"""Layout: the files that transformers would write, to the byte, apart from the padding."""

from __future__ import annotations

import json
import re
from itertools import pairwise

import pytest
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from hypothesis import assume, given
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import BertConfig, BertModel

from growkit.byte_sizes import format_size, parse_size
from growkit.dtypes import ITEM_BYTES
from growkit.errors import UsageError
from growkit.output.layout import PAGE, lay_out
from growkit.planning.formula import Formula

TORCH = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "BOOL": torch.bool,
    **{f"I{n}": getattr(torch, f"int{n}") for n in (8, 16, 32, 64)},
    **{f"U{n}": getattr(torch, f"uint{n}") for n in (8, 16, 32, 64)},
}

formulas = st.lists(
    st.builds(
        Formula,
        name=st.text('ab.é"\\_9', min_size=1, max_size=4),
        shape=st.lists(st.integers(0, 5), max_size=3).map(tuple),
        dtype=st.sampled_from(sorted(ITEM_BYTES)),
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda f: f.name,
)


def tensors_like(given_formulas):
    """Zeros of the same names, shapes and dtypes."""
    return {f.name: torch.zeros(f.shape, dtype=TORCH[f.dtype]) for f in given_formulas}


@given(formulas)
def test_header_is_the_reference_writers(tmp_path_factory, listed):
    """Same JSON as safetensors writes: order, escapes and offsets; only the padding differs."""
    path = tmp_path_factory.mktemp("reference") / "x.safetensors"
    save_file(tensors_like(listed), path, metadata={"format": "pt"})
    raw = path.read_bytes()
    reference = raw[8 : 8 + int.from_bytes(raw[:8], "little")]
    (shard,) = lay_out(listed, max_shard_bytes=10**9).shards
    assert shard.header[8:].rstrip() == reference.rstrip()


@given(formulas)
def test_no_holes_and_data_on_a_page(listed):
    """The header ends on a page; the tensors lie back to back up to the end of the file."""
    (shard,) = lay_out(listed, max_shard_bytes=10**9).shards
    assert len(shard.header) % PAGE == 0
    assert int.from_bytes(shard.header[:8], "little") == len(shard.header) - 8
    assert shard.tensors[0].start == len(shard.header)
    assert all(left.stop == right.start for left, right in pairwise(shard.tensors))
    assert shard.tensors[-1].stop == shard.size
    assert all(t.stop - t.start == t.formula.nbytes for t in shard.tensors)


@given(formulas, st.integers(1, 300))
def test_shards_are_those_of_the_hub_library(listed, limit):
    """Same files, same tensors in each, same index as huggingface_hub's own split."""
    # empty tensors all lie at address 0: huggingface_hub takes two of them for one that is shared
    assume(sum(f.nbytes == 0 for f in listed) < 2)
    expected = split_torch_state_dict_into_shards(tensors_like(listed), max_shard_size=limit)
    layout = lay_out(listed, max_shard_bytes=limit)
    found = {s.name: {t.formula.name for t in s.tensors} for s in layout.shards}
    assert found == {name: {*names} for name, names in expected.filename_to_tensors.items()}
    assert layout.total_bytes == sum(s.size for s in layout.shards)
    assert (layout.index is not None) == expected.is_sharded
    if layout.index is not None:
        assert layout.index["weight_map"] == expected.tensor_to_filename
        assert layout.index["metadata"]["total_size"] == expected.metadata["total_size"]


def test_index_is_what_transformers_writes(tmp_path):
    """Key for key, byte for byte, for a model that transformers itself saves in shards."""
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 9}
    model = BertModel(BertConfig(num_hidden_layers=1, **sizes))
    model.save_pretrained(tmp_path, max_shard_size="2KB")
    listed = [Formula(n, tuple(t.shape), "F32") for n, t in model.state_dict().items()]
    index = lay_out(listed, max_shard_bytes=2000).index
    text = (tmp_path / "model.safetensors.index.json").read_text()
    assert json.dumps(index, indent=2, sort_keys=True) + "\n" == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5GB", 5 * 10**9),
        ("500MB", 5 * 10**8),
        ("2GiB", 2**31),
        (" 1.5 kb ", 1500),
        ("0.1TB", 10**11),
        ("64B", 64),
        (4096, 4096),
    ],
)
def test_parse_size(text, expected):
    """Decimal units as on the Hub, binary ones as written, numbers as bytes."""
    assert parse_size(text) == expected


@pytest.mark.parametrize(
    ("text", "likely"), [("5", "5GB"), ("0.5", "0.5GB"), ("5000000000", "5000000000B")]
)
def test_a_size_without_a_unit(text, likely):
    """Refused: it is rarely meant in bytes, and a file of five bytes holds no tensor."""
    with pytest.raises(UsageError, match="with a unit, found none") as caught:
        parse_size(text)
    assert f'write "{likely}"' in caught.value.hint


@pytest.mark.parametrize("text", ["", "GB", "5 apples", "-5GB", "0", "0.1B", "1e9", "5,5GB", "٥GB"])
def test_parse_size_refuses(text):
    """What is no positive size is named, with examples of what is."""
    with pytest.raises(
        UsageError, match=re.escape(f'size "{text}": expected a positive')
    ) as caught:
        parse_size(text)
    assert "5GB" in caught.value.hint


@pytest.mark.parametrize(
    ("count", "text"),
    [
        *((0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1234567, "1.23 MB")),
        *((437_951_328, "438 MB"), (999_950_000, "1 GB"), (5 * 10**9, "5 GB"), (10**19, "10 EB")),
    ],
)
def test_format_size_reads_well(count, text):
    """Three digits, in the decimal unit that fits."""
    assert format_size(count) == text
