"""What others open: a grown checkpoint in transformers, safetensors and torch's own checkpoints."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import transformers
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import load_file
from support import sentences, trained
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from growkit.cli.main import app

RECIPE = """\
about: Twice as wide and as deep, the same function
steps:
  - {op: width, to: {axes: 2x}}
  - {op: depth, to: {layers: 2x}}
"""
SHARDED = "12kB"  # of the tiny models: several files
MODELS = ("llama", "tied llama", "bert")
CARRIED = {  # with what stands in it, where it is not the tokenizer's
    "tokenizer.json": "",
    "tokenizer_config.json": "",
    "generation_config.json": json.dumps(
        {"bos_token_id": 2, "eos_token_id": 3, "max_new_tokens": 12, "pad_token_id": 0}
    ),
    "chat_template.jinja": "{{ messages[0].content }}\r\n",
    "preprocessor_config.json": '{"size":  32 }',
}
PROMPTS = ["the river", "a bell rang far", "snow"]


def grow(small: Path, recipe: str, out: Path, *options: str) -> Path:
    """The result of `growkit grow`, as a user calls it."""
    line = ["grow", str(small), "--recipe", recipe, "-o", str(out), "-q", *options]
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small models, and what they grow to, in one file and in several."""
    here = tmp_path_factory.mktemp("loads")
    (here / "twice.yaml").write_text(RECIPE)
    sizes = {"heads": 4, "kv_heads": 2, "mlp": 24}
    sentences.saved("llama", "causal", here / "llama", **sizes)
    sentences.saved("llama", "tied", here / "tied llama", **sizes)
    sentences.saved("bert", "masked_lm", here / "bert", marks=True, heads=4, mlp=24)
    for name in MODELS:
        for file, text in CARRIED.items():
            if text:
                (here / name / file).write_text(text, newline="")
        grow(here / name, str(here / "twice.yaml"), here / f"{name}, one file")
        sharded = here / f"{name}, sharded"
        grow(here / name, str(here / "twice.yaml"), sharded, "--max-shard-size", SHARDED)
        assert len([*sharded.glob("*.safetensors")]) > 2
    return here


@pytest.fixture(params=["one file", "sharded"])
def split(request: pytest.FixtureRequest) -> str:
    """How the weights are stored."""
    return str(request.param)


def stored(out: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a result, by safetensors itself."""
    return {n: t for file in out.glob("*.safetensors") for n, t in load_file(file).items()}


# -- transformers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_from_pretrained(name: str, split: str, folder: Path) -> None:
    """Nothing is missing, over, or of another shape; what is loaded is what is stored."""
    out = folder / f"{name}, {split}"
    auto = (
        transformers.AutoModelForMaskedLM if name == "bert" else transformers.AutoModelForCausalLM
    )
    model, info = auto.from_pretrained(out, output_loading_info=True)
    assert not any(info.values()), info
    loaded = model.state_dict()
    assert all(loaded[n].equal(t) for n, t in stored(out).items())
    tied = name != "llama"
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) is tied


@pytest.mark.parametrize("name", MODELS)
def test_what_lies_beside_travels_as_it_is(name: str, split: str, folder: Path) -> None:
    """Tokenizer, processor, generation config and chat template, byte for byte."""
    out = folder / f"{name}, {split}"
    assert {p.name for p in (folder / name).iterdir()} == {
        *CARRIED, "config.json", "model.safetensors",
    }  # fmt: skip
    for file in CARRIED:
        assert (out / file).read_bytes() == (folder / name / file).read_bytes()


def generated(source: Path, **options: Any) -> list[str]:
    """What a pipeline writes behind each prompt, always the likeliest word."""
    pipeline = transformers.pipeline("text-generation", model=str(source), device="cpu")
    given = pipeline.tokenizer(PROMPTS[0])["input_ids"]
    assert pipeline.model.generation_config.max_new_tokens == 12
    assert len(given) == len(PROMPTS[0].split())
    found = pipeline(PROMPTS, do_sample=False, **options)
    return [text["generated_text"] for (text,) in found]


@pytest.mark.parametrize("name", ["llama", "tied llama"])
def test_text_generation(name: str, split: str, folder: Path) -> None:
    """An exact growth writes what the small model writes."""
    want = generated(folder / name)
    assert all(len(text) > len(prompt) for text, prompt in zip(want, PROMPTS, strict=True))
    assert generated(folder / f"{name}, {split}") == want


def test_fill_mask(split: str, folder: Path) -> None:
    """The same words for a gap, with the same probabilities."""

    def filled(source: Path) -> list[dict[str, Any]]:
        pipeline = transformers.pipeline("fill-mask", model=str(source), device="cpu")
        return list(pipeline("the river had [MASK] overnight"))

    want, have = filled(folder / "bert"), filled(folder / f"bert, {split}")
    assert [w["token_str"] for w in have] == [w["token_str"] for w in want]
    assert [w["score"] for w in have] == pytest.approx([w["score"] for w in want], rel=1e-4)


@pytest.mark.parametrize("name", ["llama", "tied llama"])
def test_a_larger_vocabulary_than_the_tokenizer_has(
    name: str, folder: Path, tmp_path: Path
) -> None:
    """transformers loads it, and the tokenizer as it was: no text leads to the new entries.

    A new entry is the mean of all, so its logit is too, and is never the largest.
    """
    out = grow(folder / name, "resize_vocab", tmp_path / "out", "--set", "resize.multiple_of=64")
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    assert (len(tokenizer), model.config.vocab_size) == (len(sentences.VOCABULARY), 64)
    assert generated(out) == generated(folder / name)


@pytest.mark.slow
def test_feature_extraction(tmp_path: Path) -> None:
    """The grown MiniLM in a pipeline: every feature is there twice."""
    out = grow(trained.small(), "bert_base", tmp_path / "out", "--max-shard-size", "200MB")
    (tmp_path / "small").mkdir()
    for path in trained.small().parent.iterdir():
        name = "model.safetensors" if path == trained.small() else path.name
        (tmp_path / "small" / name).symlink_to(path)

    def features(source: Path) -> torch.Tensor:
        pipeline = transformers.pipeline("feature-extraction", model=str(source), device="cpu")
        return pipeline("The river had frozen overnight.", return_tensors=True)[0]

    want, have = features(tmp_path / "small"), features(out)
    assert (want.shape[1], have.shape[1]) == (384, 768)
    torch.testing.assert_close(have, want.repeat(1, 2), rtol=0, atol=1e-5)


# -- safetensors -----------------------------------------------------------------------------------


def test_safe_open(split: str, folder: Path) -> None:
    """Names, metadata and parts of tensors, for torch and for numpy."""
    out = folder / f"llama, {split}"
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    wanted, found = model.state_dict(), set()
    index = out / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"] if index.exists() else {}
    for path in sorted(out.glob("*.safetensors")):
        with safe_open(path, "pt") as file, safe_open(path, "np") as arrays:
            assert file.metadata() == {"format": "pt"}
            for name in file.keys():  # noqa: SIM118 (it is no mapping)
                part = file.get_slice(name)
                assert part.get_shape() == list(wanted[name].shape)
                assert part[1:3].equal(wanted[name][1:3])
                assert (arrays.get_tensor(name) == wanted[name].numpy()).all()
                assert places.get(name, path.name) == path.name
                found.add(name)
    assert found == wanted.keys()


# -- torch's distributed checkpoints ---------------------------------------------------------------


@pytest.fixture
def group() -> Iterator[None]:
    """One process that talks to itself."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("name", MODELS)
def test_distributed_checkpoint(name: str, split: str, folder: Path, group: None) -> None:
    """The Hugging Face reader fills plain tensors and sharded ones, bit for bit."""
    out = folder / f"{name}, {split}"
    wanted = stored(out)
    plain = {n: torch.full_like(t, torch.nan) for n, t in wanted.items()}
    dcp.load(plain, storage_reader=HuggingFaceStorageReader(str(out)))
    assert all(plain[n].equal(t) for n, t in wanted.items())

    mesh = init_device_mesh("cpu", (1,))
    spread = {
        n: distribute_tensor(torch.full_like(t, torch.nan), mesh, [Shard(t.ndim - 1)])
        for n, t in wanted.items()
    }
    dcp.load(spread, storage_reader=HuggingFaceStorageReader(str(out)))
    assert all(spread[n].full_tensor().equal(t) for n, t in wanted.items())
