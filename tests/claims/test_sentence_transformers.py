"""sentence-transformers opens what was grown: the same embeddings, or the same cosines."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from support import packages, sentences, tiny, trained

from growkit import api
from growkit.output.record import check_files
from growkit.planning.proof.claim import APPROXIMATE, EPS, EXACT
from growkit.recipe.recipe import parse_recipe
from growkit.verify.tiny import randomise

pytestmark = pytest.mark.slow  # the package alone takes seconds to import
TWICE = [{"op": "width", "to": {"axes": "2x"}}, {"op": "depth", "to": {"layers": "2x"}}]
NEAR = 1e-5
MODULES = "sentence_transformers.sentence_transformer.modules"
Steps = list[dict[str, Any]]


def recipe(*steps: dict[str, Any], dtype: str = "keep") -> Any:
    """A recipe of these steps."""
    return parse_recipe({"steps": list(steps), "dtype": dtype})


def dense(size: int, out: int, **options: Any) -> Any:
    """A dense layer with weights in which every mistake shows."""
    layer = packages.package(MODULES).Dense(size, out, **options)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / size**0.5)
    return layer


def built(folder: Path, *kinds: Any, family: str = "bert", head: str = "base") -> Path:
    """A tiny model, 32 wide, with modules behind it."""
    sizes = {"heads": 4, "head_dim": 8, "mlp": 24}
    model = sentences.saved(family, head, folder / "model", marks=family == "bert", **sizes)
    return staged(model, *kinds)


def staged(model: Path, *kinds: Any, width: int = 32) -> Path:
    """The model with modules behind it, saved by sentence-transformers.

    A module is a pooling mode, the size and options of a dense layer, or "normalize".
    """
    package, classes = packages.package("sentence_transformers"), packages.package(MODULES)
    modules = [classes.Transformer(str(model))]
    for kind in kinds:
        if kind == "normalize":
            modules.append(classes.Normalize())
        elif isinstance(kind, dict):
            modules.append(dense(width, **kind))
            width = kind["out"]
        else:
            modules.append(classes.Pooling(width, pooling_mode=kind))
            width = width if isinstance(kind, str) else width * len(kind)
    small = model.parent / "small"
    package.SentenceTransformer(modules=modules, device="cpu").save(str(small))
    for name in ("config.json", "model.safetensors"):  # with the head that it may have
        shutil.copy(model / name, small / name)
    return small


def embeddings(source: Path, texts: Any = sentences.TEXTS) -> torch.Tensor:
    """Those of the sentences, in float64."""
    model = packages.package("sentence_transformers").SentenceTransformer(str(source), device="cpu")
    found = model.encode(list(texts), convert_to_tensor=True, show_progress_bar=False)
    assert found.shape[1] == model.get_embedding_dimension()
    return found.double()


def cosines(found: torch.Tensor) -> torch.Tensor:
    """Between all pairs."""
    unit = found / found.norm(dim=1, keepdim=True)
    return unit @ unit.T


POOLINGS: list[Any] = ["mean", "cls", "max", "lasttoken", "weightedmean", ("mean", "max")]


@pytest.mark.parametrize("normalized", [False, True], ids=["", "normalized"])
@pytest.mark.parametrize("mode", POOLINGS, ids=str)
def test_cosines_stay(mode: Any, normalized: bool, tmp_path: Path) -> None:
    """Twice as many numbers, and the same cosines; the plan says so."""
    small = built(tmp_path, mode, *(["normalize"] if normalized else []))
    result = api.grow(small, recipe(*TWICE), out=tmp_path / "big")
    assert result.plan.claim.claim == EPS
    told = "sentence embeddings have 64 numbers instead of 32; cosines between them stay"
    assert told in result.plan.hints
    old, new = embeddings(small), embeddings(result.out)
    assert new.shape[1] == 2 * old.shape[1]
    assert (cosines(new) - cosines(old)).abs().max() <= NEAR
    pooling = json.loads((result.out / "1_Pooling" / "config.json").read_text())
    before = json.loads((small / "1_Pooling" / "config.json").read_text())
    assert pooling == {**before, "embedding_dimension": 64}


@pytest.mark.parametrize(
    "modules",
    [
        ("mean", {"out": 10}),
        ("cls", {"out": 32}, "normalize"),
        ("max", {"out": 64, "bias": False, "activation_function": torch.nn.Identity()}),
        (("mean", "max", "cls"), {"out": 12}, {"out": 5}, "normalize"),
        ("mean", "normalize", {"out": 7}),
        ("mean", {"out": 12, "use_residual": True}),
    ],
    ids=str,
)
@pytest.mark.parametrize("uneven", [False, True], ids=["twice", "uneven"])
def test_a_dense_layer_gives_what_it_gave(
    modules: tuple[Any, ...], uneven: bool, tmp_path: Path
) -> None:
    """It follows the hidden state by the map back, and all behind it stays as it is, to the byte.

    In a pre-norm model that holds for any size.
    """
    family = {"family": "gpt2"} if uneven else {}
    small = built(tmp_path, *modules, **family)
    steps = [{"op": "width", "to": {"axes": "3/2x"}}] if uneven else TWICE
    result = api.grow(small, recipe(*steps), out=tmp_path / "big")
    assert result.plan.claim.claim == (EXACT if uneven else EPS)
    first = next(n for n, module in enumerate(modules, 1) if isinstance(module, dict))
    told = f"{first}_Dense is grown with the hidden state, by the map back: the embeddings stay"
    assert told in result.plan.hints
    assert (embeddings(result.out) - embeddings(small)).abs().max() <= NEAR
    changed = {
        str(path.relative_to(small))
        for path in small.glob("[0-9]_*/*")
        if path.read_bytes() != (result.out / path.relative_to(small)).read_bytes()
    }
    dense = f"{first}_Dense"
    assert changed == {
        "1_Pooling/config.json", f"{dense}/config.json", f"{dense}/model.safetensors",
    }  # fmt: skip


def test_depth_alone_changes_no_stage(tmp_path: Path) -> None:
    """The weights of dense layers travel too, and every file as it is."""
    small = built(tmp_path, "mean", {"out": 10}, "normalize")
    result = api.grow(small, "double_depth", out=tmp_path / "big")
    behind = [p.relative_to(small) for p in small.glob("[123]_*/*")]
    assert Path("2_Dense/model.safetensors") in behind
    for path in behind:
        assert (result.out / path).read_bytes() == (small / path).read_bytes()
    assert (embeddings(result.out) - embeddings(small)).abs().max() <= NEAR


@pytest.mark.parametrize("tied", ["final_norm", "untie"])
def test_a_tied_head_does_not_disturb(tied: str, tmp_path: Path) -> None:
    """What the last norm carries for the head, the dense layer takes back."""
    small = built(tmp_path, "lasttoken", {"out": 10}, family="llama", head="qwen2 tied")
    wanted = parse_recipe({"steps": TWICE[:1], "tied": tied})
    result = api.grow(small, wanted, out=tmp_path / "big")
    assert (embeddings(result.out) - embeddings(small)).abs().max() <= NEAR


SEVERAL = {  # class: its config, for models that people embed sentences with
    "T5EncoderModel": {"d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 48, "num_layers": 2},
    "T5ForConditionalGeneration": {
        "d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 48, "num_layers": 2,
        "decoder_start_token_id": 0,
    },
    "Gemma3ForCausalLM": {
        "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "intermediate_size": 48, "num_hidden_layers": 2, "query_pre_attn_scalar": 8,
    },
    "XLMRobertaModel": {
        "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48,
        "num_hidden_layers": 2,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SEVERAL)
def test_models_of_other_families(name: str, tmp_path: Path) -> None:
    """With heads and without, with one stack and with two, of which the first is read."""
    cls = getattr(transformers, name)
    words = {"vocab_size": len(sentences.VOCABULARY), "pad_token_id": 0}
    model = cls(cls.config_class(**SEVERAL[name], **words)).eval()
    randomise(model, 0)
    tiny.save(model, tmp_path / "model")
    sentences.tokenizer(marks=True).save_pretrained(tmp_path / "model")
    small = staged(tmp_path / "model", "mean", {"out": 12}, {"out": 5}, "normalize")
    result = api.grow(small, recipe(*TWICE), out=tmp_path / "big")
    assert result.plan.hints[-1].endswith("by the map back: the embeddings stay")
    assert (embeddings(result.out) - embeddings(small)).abs().max() <= NEAR


@pytest.mark.parametrize(
    ("steps", "claim", "told"),
    [
        ([{"op": "width", "to": {"axes": "3/2x"}}], APPROXIMATE, "change"),
        ([{"op": "width", "to": {"axes": "3/2x"}, "how": "circular"}], APPROXIMATE, "change"),
        ([*TWICE, {"op": "noise", "kind": "gaussian"}], APPROXIMATE, "change"),
        ([*TWICE, {"op": "noise"}], EPS, "stay"),
    ],
)
def test_cosines_are_told(steps: Steps, claim: str, told: str, tmp_path: Path) -> None:
    """Where they do not stay the plan does not say that they do, and the model still loads."""
    small = built(tmp_path, "mean")
    result = api.grow(small, recipe(*steps), out=tmp_path / "big")
    assert result.plan.claim.claim == claim
    (said,) = [hint for hint in result.plan.hints if hint.startswith("sentence embeddings")]
    assert f"cosines between them {told}" in said
    difference = (cosines(embeddings(result.out)) - cosines(embeddings(small))).abs().max()
    assert bool(difference <= NEAR) is (told == "stay")


def test_any_size_of_a_model_with_norms_before(tmp_path: Path) -> None:
    """What is padded is as long as before, times one factor: cosines stay at uneven ratios too."""
    small = built(tmp_path, "mean", family="gpt2")
    result = api.grow(small, recipe({"op": "width", "to": {"axes": "3/2x"}}), out=tmp_path / "big")
    assert result.plan.claim.claim == EXACT
    (said,) = [hint for hint in result.plan.hints if hint.startswith("sentence embeddings")]
    assert said.endswith("cosines between them stay")
    old, new = embeddings(small), embeddings(result.out)
    assert (cosines(new) - cosines(old)).abs().max() <= NEAR


def test_a_dense_layer_of_an_approximate_growth(tmp_path: Path) -> None:
    """It fits, and the plan does not say that the embeddings stay."""
    small = built(tmp_path, "mean", "normalize", {"out": 10})
    steps = {"op": "width", "to": {"axes": "3/2x"}, "how": "circular"}
    result = api.grow(small, recipe(steps), out=tmp_path / "big")
    assert [hint for hint in result.plan.hints if hint.endswith("stay about the same")]
    far = (embeddings(result.out) - embeddings(small)).abs().max()
    assert NEAR < far < 1


def test_every_route_writes_the_same_stages(tmp_path: Path) -> None:
    """Ranks, workers, several files, a single file as the source; and a flipped bit is found."""
    small = built(tmp_path, "mean", {"out": 10}, "normalize")
    wanted = recipe(*TWICE)
    one = api.grow(small, wanted, out=tmp_path / "one").out
    many = tmp_path / "many"
    for rank in (1, 0):
        pieces = api.WriteOptions(max_shard_size="8kB")
        api.grow_rank(small, wanted, api.Rank(rank, 2), out=many, options=pieces)
    api.finish(many)
    alone = api.grow(small / "model.safetensors", wanted, out=tmp_path / "alone").out
    workers = api.grow(small, wanted, out=tmp_path / "w", workers=2, max_shard_size="8kB").out
    for path in one.glob("[123]_*/*"):
        for out in (many, alone, workers):
            assert (out / path.relative_to(one)).read_bytes() == path.read_bytes()
    assert api.grow(small, wanted, out=one).already_done
    weights = load_file(one / "2_Dense" / "model.safetensors")
    assert weights["linear.weight"].shape == (10, 64)
    assert not check_files(one)
    path = one / "2_Dense" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x55")
    assert any("2_Dense/model.safetensors" in problem for problem in check_files(one))


def test_a_dense_layer_of_another_dtype(tmp_path: Path) -> None:
    """It is stored in the dtype that is asked for, as the model is."""
    small = built(tmp_path, "mean", {"out": 10})
    out = api.grow(small, recipe(*TWICE, dtype="bfloat16"), out=tmp_path / "big").out
    weights = load_file(out / "2_Dense" / "model.safetensors")
    assert {t.dtype for t in weights.values()} == {torch.bfloat16}


@pytest.mark.parametrize(("name", "width"), [("bert_base", 768), ("double_depth", 384)])
def test_the_grown_minilm(name: str, width: int, tmp_path: Path) -> None:
    """The trained model that README grows, with the modules that its makers gave it."""
    packages.package("sentence_transformers")
    texts = (trained.small().parent / "sentences.txt").read_text().splitlines()
    small = Path(shutil.copytree(trained.small().parent, tmp_path / "small"))
    (small / "small.safetensors").rename(small / "model.safetensors")
    out = api.grow(small, name, out=tmp_path / "big").out
    old, new = embeddings(small, texts), embeddings(out, texts)
    assert new.shape[1] == width
    assert (cosines(new) - cosines(old)).abs().max() <= NEAR
    both = torch.cat([old, new[:, : old.shape[1]]])  # the small model's embeddings come first
    assert (cosines(both).diagonal(len(texts)) - 1).abs().max() <= NEAR
    pooling = json.loads((out / "1_Pooling" / "config.json").read_text())
    assert pooling["word_embedding_dimension"] == width
