"""A trained BERT, grown and run: what users do first, on real weights and real sentences."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from click.testing import CliRunner, Result
from safetensors import safe_open
from support import trained

from growkit import api
from growkit.checkpoints.header import read_header
from growkit.cli.main import app
from growkit.dtypes import ITEM_BYTES
from growkit.planning.proof.claim import APPROXIMATE, EPS

HIDDEN = 384
COORDINATES = 1e-5  # relative error of the small model's coordinates in the grown model
DRIFT = 0.1  # relative error that an approximate growth stays below


@pytest.fixture(scope="module")
def small() -> Path:
    """The trained checkpoint."""
    return trained.small()


@pytest.fixture(scope="module")
def base(small: Path, tmp_path_factory: pytest.TempPathFactory) -> api.Result:
    """The small model grown to BERT-base."""
    return api.grow(small, "bert_base", out=tmp_path_factory.mktemp("real") / "base")


def loaded(path: Path) -> Any:
    """A folder as transformers' AutoModel in float32: no key missing, none left over, none odd."""
    model, info = transformers.AutoModel.from_pretrained(
        path, dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values()), info
    return model.eval()


@pytest.fixture
def sentences(small: Path) -> list[Any]:
    """Real sentences in the tokens of the small model's own tokenizer, one batch each."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(small.parent)
    lines = (small.parent / "sentences.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) > 5
    return [tokenizer(line, return_tensors="pt") for line in lines]


def hidden(model: Any, batches: list[Any]) -> torch.Tensor:
    """Last hidden states of all tokens, (tokens, hidden)."""
    with torch.inference_mode():
        states = [model(**batch).last_hidden_state.flatten(0, 1) for batch in batches]
    return torch.cat(states)


def growkit(*arguments: object) -> Result:
    """`growkit` with these arguments, in this process."""
    return CliRunner().invoke(app, [str(a) for a in arguments], prog_name="growkit")


def test_twice_as_large_and_the_same_function(
    small: Path, base: api.Result, sentences: list[Any], tmp_path: Path
) -> None:
    """BERT-base from MiniLM, noise included: each old coordinate is what it was."""
    assert base.plan.claim.claim == EPS
    assert [s.op for s in base.plan.steps] == ["width", "depth", "noise"]
    shutil.copy(small, tmp_path / "model.safetensors")
    shutil.copy(small.parent / "config.json", tmp_path)
    model = loaded(base.out)
    assert model.config.hidden_size == 2 * HIDDEN
    assert model.config.num_hidden_layers == len(model.encoder.layer) == 12
    want = hidden(loaded(tmp_path), sentences)
    have = hidden(model, sentences)
    assert float((have[:, :HIDDEN] - want).abs().max() / want.abs().max()) <= COORDINATES


def test_noise_is_there_and_copies_differ(base: api.Result) -> None:
    """The weights that read copies differ from copy to copy, or training could not part them."""
    with safe_open(base.out / "model.safetensors", "pt") as file:
        weight = file.get_tensor("encoder.layer.0.intermediate.dense.weight")
    first, second = weight[:, :HIDDEN], weight[:, HIDDEN:]
    assert float((first - second).norm() / weight.norm()) > 0.1


def test_the_tokenizer_travels(small: Path, base: api.Result, sentences: list[Any]) -> None:
    """The result is a whole folder: its own tokenizer gives the same tokens, offline."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(base.out)
    lines = (small.parent / "sentences.txt").read_text(encoding="utf-8").splitlines()
    for line, batch in zip(lines, sentences, strict=True):
        assert tokenizer(line)["input_ids"] == batch["input_ids"][0].tolist()


def alter(file: Path, name: str | None = None, row: int = 1) -> list[str]:
    """Add 1 to a row of one tensor, or of every tensor, in place; the names of those altered."""
    _, tensors, _ = read_header(file, file.name)
    names = [name] if name is not None else list(tensors)
    with file.open("r+b") as data:
        for info in map(tensors.__getitem__, names):
            size = (info.stop - info.start) // info.shape[0]  # bytes of one row
            assert ITEM_BYTES[info.dtype] == 4
            data.seek(info.start + row * size)
            values = torch.frombuffer(bytearray(data.read(size)), dtype=torch.float32) + 1
            data.seek(-size, 1)
            data.write(values.numpy().tobytes())
    return names


@pytest.fixture
def copy(base: api.Result, tmp_path: Path) -> Path:
    """A copy of the result that may be damaged."""
    return Path(shutil.copytree(base.out, tmp_path / "copy"))


def test_one_altered_row_fails(small: Path, copy: Path) -> None:
    """`growkit verify SMALL OUT` passes on what was written, and ends with 1 on an altered row."""
    done = growkit("verify", small, copy)
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (0, "passed"), done.output
    name = "encoder.layer.7.output.dense.weight"
    alter(copy / "model.safetensors", name, row=500)
    done = growkit("verify", small, copy)
    assert done.exit_code == 1
    assert f"model.safetensors: {name}: checksum" in " ".join(done.stdout.split())
    assert "hidden differ by" in done.stdout, "the models differ too, not only the files"


def test_no_tensor_can_be_altered_unnoticed(copy: Path) -> None:
    """With a row of each tensor altered, the check that `verify` begins with names each of them."""
    names = alter(copy / "model.safetensors")
    assert len(names) == 199
    done = growkit("verify", "--files", copy, "--json")
    assert done.exit_code == 1
    problems = json.loads(done.stdout)["problems"]
    assert sorted(p.split(": ")[1] for p in problems) == sorted(names)


@pytest.mark.slow
def test_an_uneven_ratio_drifts_and_says_so(small: Path, tmp_path: Path) -> None:
    """BERT-large from MiniLM: 1024 is no multiple of 384, so it is approximate and measured."""
    out = tmp_path / "large"
    result = api.grow(small, "bert_large", out=out)
    assert result.plan.claim.claim == APPROXIMATE
    assert any("hidden 384 → 1024" in r and "LayerNorm" in r for r in result.plan.claim.reasons)
    sizes = {"hidden": 1024, "heads": 16, "head_dim": 64, "mlp": 4096, "layers": 24}
    assert {axis: result.plan.sizes_after[axis] for axis in sizes} == sizes
    model = loaded(out)
    assert model.config.num_hidden_layers == 24
    assert all(bool(value.isfinite().all()) for value in model.state_dict().values())
    done = growkit("verify", small, out, "--text", small.parent / "sentences.txt", "--json")
    told = json.loads(done.stdout)
    assert done.exit_code == 0, done.output
    assert told["claim"] == APPROXIMATE
    assert told["reasons"]
    assert told["measurement"]["finite"]
    assert 1e-3 < told["measurement"]["error"] < DRIFT
    assert 1e-3 < told["measurement"]["rms"] < DRIFT
    limited = growkit("verify", small, out, "--max-drift", "1e-3")
    assert limited.exit_code == 1
    assert "--max-drift: hidden differ by" in " ".join(limited.stdout.split())
