"""Resize: old tokens and positions keep their outputs, and transformers loads what is new."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support import tiny
from support.growths import DIFFERS, NOISE, sizes, steps_of, width

from growkit import api
from growkit.errors import CheckpointError, RecipeError
from growkit.ops.resize import extend, interpolate, wrap
from growkit.planning.proof.claim import APPROXIMATE, EXACT

VOCAB, POSITIONS = tiny.SIZES["vocab"], tiny.SIZES["positions"]
HEADS = [
    ("bert", "masked_lm"), ("bert", "pretraining"), ("bert", "sequence"), ("gpt2", "causal"),
    ("gpt2", "untied"), ("gpt2", "base"), ("llama", "tied"), ("llama", "causal"),
    ("llama", "base"), ("llama", "qwen2 tied"),
]  # fmt: skip


def grow(
    folder: Path, family: str, head: str, *steps: dict[str, Any], **keys: Any
) -> tuple[Any, Path, api.Result]:
    """A tiny model, its checkpoint, and what these steps make of it."""
    model = tiny.build(family, head, seed=3, **sizes(family))
    small = tiny.save(model, folder / "small")
    return model, small, api.grow(small, steps_of([*steps], **keys), out=folder / "big")


def difference(model: Any, small: Path, out: Path, columns: int | None = None) -> float:
    """The largest difference of the outputs on old tokens, relative to the largest output."""
    ids = {"input_ids": tiny.tokens(3, POSITIONS)}
    want, have = (tiny.outputs(tiny.load(folder, model), ids) for folder in (small, out))
    if columns is None:
        assert all(have[name].shape == want[name].shape for name in want)
    return tiny.difference(want, {name: value[..., :columns] for name, value in have.items()})


@pytest.mark.parametrize("new", ["mean", "zero"])
@pytest.mark.parametrize(("family", "head"), HEADS)
def test_old_tokens_keep_their_logits(tmp_path: Path, family: str, head: str, new: str) -> None:
    """Exact as far as old tokens go, alone and together with width and noise."""
    for number, steps in enumerate([[], [width(axes="2x"), NOISE]]):
        resize = {"op": "resize", "vocab": 40, "new": new}
        model, small, result = grow(tmp_path / str(number), family, head, resize, *steps)
        assert result.plan.claim.claim == EXACT
        assert result.plan.config["vocab_size"] == 40
        if head == "base" and steps:
            continue  # the hidden state has another size
        columns = None if head == "base" else VOCAB
        assert difference(model, small, result.out, columns) < 1e-10


@pytest.mark.parametrize(
    ("family", "head", "tables"),
    [
        ("bert", "masked_lm", ["bert.embeddings.word_embeddings.weight", "cls.predictions.bias"]),
        ("gpt2", "causal", ["transformer.wte.weight"]),
        ("gpt2", "untied", ["transformer.wte.weight", "lm_head.weight"]),
        ("llama", "causal", ["model.embed_tokens.weight", "lm_head.weight"]),
    ],
)
@pytest.mark.parametrize("new", ["mean", "zero"])
def test_new_rows(tmp_path: Path, family: str, head: str, tables: list[str], new: str) -> None:
    """New rows are the mean of the old ones or zero; no other tensor changes."""
    _, small, result = grow(tmp_path, family, head, {"op": "resize", "vocab": 40, "new": new})
    before, after = (load_file(p / "model.safetensors") for p in (small, result.out))
    for name, old in before.items():
        assert torch.equal(after[name][: len(old)], old)
        assert (len(after[name]) == 40) is (name in tables)
    for name in tables:
        rows = after[name][VOCAB:]
        want = before[name].mean(dim=0) * (new == "mean")
        torch.testing.assert_close(rows, want.expand_as(rows), rtol=0, atol=1e-15)


def test_untied_after_resizing(tmp_path: Path) -> None:
    """A head taken off its tie has the new tokens too."""
    model, small, result = grow(
        tmp_path, "gpt2", "causal", {"op": "resize", "vocab": 40}, tied="untie"
    )
    assert load_file(result.out / "model.safetensors")["lm_head.weight"].shape[0] == 40
    assert difference(model, small, result.out, VOCAB) < 1e-10


@pytest.mark.parametrize(("multiple", "expected"), [(8, 32), (128, 128), (29, 29), (1, 29)])
def test_multiple_of(tmp_path: Path, multiple: int, expected: int) -> None:
    """The next multiple; a vocabulary that is one already stays."""
    small = tiny.save(tiny.build("llama", "causal"), tmp_path / "small")
    plan = api.plan_growth(small, steps_of([{"op": "resize", "multiple_of": multiple}]))
    assert plan.sizes_after["vocab"] == plan.config["vocab_size"] == expected
    assert plan.claim.claim == EXACT


@pytest.mark.parametrize(("family", "head"), [("bert", "masked_lm"), ("gpt2", "causal")])
@pytest.mark.parametrize("how", ["copy", "interpolate"])
def test_positions(tmp_path: Path, family: str, head: str, how: str) -> None:
    """Copied positions keep the function, interpolated ones do not; both read longer inputs."""
    step = {"op": "resize", "positions": 50, "positions_how": how}
    model, small, result = grow(tmp_path, family, head, step)
    error = difference(model, small, result.out)
    assert result.plan.claim.claim == (EXACT if how == "copy" else APPROXIMATE)
    assert (error < 1e-10) is (how == "copy")
    if how == "interpolate":
        assert error > DIFFERS
        assert "positions 23 → 50: old rows are not what they were" in result.plan.claim.reasons
    key = {"bert": "max_position_embeddings", "gpt2": "n_positions"}[family]
    assert result.plan.config[key] == 50
    before, after = (load_file(p / "model.safetensors") for p in (small, result.out))
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    (name,) = changed
    table, longer = before[name], after[name]
    if how == "copy":
        assert torch.equal(longer, torch.cat([table, table, table])[:50])
    else:
        smooth = torch.nn.functional.interpolate(
            table.T[None], 50, mode="linear", align_corners=True
        )
        torch.testing.assert_close(longer, smooth[0].T, rtol=0, atol=1e-13)
    tiny.outputs(tiny.load(result.out, model), {"input_ids": tiny.tokens(1, 50)})


@pytest.mark.parametrize(("padding", "how"), [(1, "copy"), (1, "interpolate"), (3, "copy")])
def test_rows_up_to_the_padding_are_no_positions(tmp_path: Path, padding: int, how: str) -> None:
    """RoBERTa counts positions from behind the padding token's row; those before it stay."""
    model = tiny.build("roberta", "masked_lm", seed=3, pad_token_id=padding)
    small = tiny.save(model, tmp_path / "small")
    step = {"op": "resize", "positions": 50, "positions_how": how}
    result = api.grow(small, steps_of([step]), out=tmp_path / "big")
    name = "roberta.embeddings.position_embeddings.weight"
    before, after = (load_file(p / "model.safetensors")[name] for p in (small, result.out))
    first = padding + 1
    assert torch.equal(after[:first], before[:first])
    if how == "copy":
        assert torch.equal(after[first:], torch.cat(3 * [before[first:]])[: 50 - first])
    else:
        assert torch.equal(after[[first, -1]], before[[first, -1]])
    ids = {"input_ids": torch.full((1, 50 - first), 9)}
    tiny.outputs(tiny.load(result.out, model), ids)


def test_a_table_of_padding_alone(tmp_path: Path) -> None:
    """A padding token beyond the table leaves no position to repeat."""
    small = tiny.save(tiny.build("roberta", "masked_lm"), tmp_path / "small")
    file = small / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pad_token_id": 40}))
    with pytest.raises(CheckpointError, match="23 rows, and the first 41 are no positions"):
        api.plan_growth(small, steps_of([{"op": "resize", "positions": 50}]))


def test_verify_compares_the_common_vocabulary(tmp_path: Path) -> None:
    """`verify` holds the claim against the logits of old tokens, and says which it compared."""
    _, small, result = grow(tmp_path, "gpt2", "causal", {"op": "resize", "vocab": 40})
    found = api.verify_growth(small, result.out)
    assert found.passed
    assert found.claim == EXACT
    assert found.measurement.error is not None
    assert found.measurement.error < 1e-10
    assert "compared: the first 29 of 40 logits" in found.notes


@pytest.mark.parametrize(
    ("family", "options", "message", "hint"),
    [
        ("llama", {"vocab": 20}, "vocab: 29 → 20 would drop rows", "longer"),
        ("gpt2", {"positions": 20}, "positions: 23 → 20 would drop rows", "longer"),
        ("llama", {"positions": 64}, "family llama has no table of positions", "computed"),
        ("llama", {"vocab": 40, "multiple_of": 8}, "both say how many tokens", ""),
        ("llama", {"new": "zero"}, "resize needs vocab, multiple_of or positions", ""),
        ("llama", {"vocab": 0}, "vocab", ""),
        ("gpt2", {"vocab": 40, "new": "median"}, '"median" is not one of mean, zero', ""),
    ],
)
def test_refusals(
    tmp_path: Path, family: str, options: dict[str, Any], message: str, hint: str
) -> None:
    """What resize cannot do, in one sentence with the next action."""
    small = tiny.save(tiny.build(family, "causal"), tmp_path / "small")
    with pytest.raises(RecipeError, match=message) as caught:
        api.plan_growth(small, steps_of([{"op": "resize", **options}]))
    assert hint in (caught.value.hint or "")


def test_maps_of_tables() -> None:
    """What the three ways to lengthen a table are as matrices."""
    np.testing.assert_allclose(
        interpolate(3, 5).write.matrix(),
        [[1, 0, 0], [0.5, 0.5, 0], [0, 1, 0], [0, 0.5, 0.5], [0, 0, 1]],
    )
    np.testing.assert_allclose(interpolate(1, 3).write.matrix(), np.ones((3, 1)))
    assert wrap(2, 5).write.index[:, 0].tolist() == [0, 1, 0, 1, 0]
    for m in (extend(3, 7, mean=True), extend(3, 7, mean=False), wrap(3, 7)):
        assert m.keeps
