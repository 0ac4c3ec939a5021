"""verify: the arithmetic is finer than the claims, and a wrong model is found out."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import tiny
from support.growths import HEADS
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from growkit import api
from growkit.algebra.kernel import Kernel
from growkit.checkpoints.types import Checkpoint
from growkit.errors import UsageError, VerifyError
from growkit.planning.proof.claim import APPROXIMATE, EPS, EXACT
from growkit.recipe.recipe import parse_recipe
from growkit.verify.compare import compare, tolerance, verify
from growkit.verify.inputs import random_inputs
from growkit.verify.load import TEXT_TOKENS, load
from growkit.verify.precision import full_precision

MLP = tiny.SIZES["mlp"]


def checkpoint(path: Path, **changes: Any) -> Checkpoint:
    """What `store` would read of a folder, or of a file with config.json beside it."""
    folder = path if path.is_dir() else path.parent
    config = json.loads((folder / "config.json").read_text()) | changes
    return Checkpoint(str(path), config, {}, ())


def growth(
    claim: str = EXACT, *, dtype: str = "float64", eps: float = 0.0, passes: int = 0
) -> dict[str, Any]:
    """The part of growkit.json that verify reads."""
    exactness = {"claim": claim, "reasons": ["because"], "eps": eps, "passes": passes}
    return {"exactness": {**exactness, "storage": {"dtype": dtype}}, "maps": {}, "readback": None}


def edit(folder: Path, **tensors: torch.Tensor | None) -> Path:
    """Replace, add or (None) remove tensors of a saved model; `__` in a name stands for a dot."""
    file = folder / "model.safetensors"
    changes = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    kept = {name: t for name, t in (load_file(file) | changes).items() if t is not None}
    save_file(kept, file, metadata={"format": "pt"})
    return folder


def twice_the_neurons(model: Any, **overrides: Any) -> Any:
    """A Llama with every MLP neuron doubled and read by halves: exactly the same function."""
    big = tiny.build("llama", "causal", mlp=2 * MLP, **overrides)
    state = model.state_dict()
    for name, tensor in state.items():
        if "gate_proj" in name or "up_proj" in name:
            state[name] = torch.cat([tensor, tensor])
        elif "down_proj" in name:
            state[name] = torch.cat([tensor, tensor], 1) / 2
    big.load_state_dict(state)
    return big


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A tiny Llama on disk."""
    return tiny.save(tiny.build("llama", "causal"), tmp_path / "small")


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """The same function with twice the neurons."""
    return tiny.save(twice_the_neurons(tiny.build("llama", "causal")), tmp_path / "big")


# -- full precision ------------------------------------------------------------------------------


def by_hand(model: Any, ids: torch.Tensor) -> Any:
    """Logits of a causal Llama, Mistral or Qwen2 for one sequence, in plain float64."""
    c, n = model.config, len(ids)
    places = torch.arange(0, c.head_dim, 2, dtype=torch.float64) / c.head_dim
    angles = torch.outer(
        torch.arange(n, dtype=torch.float64), c.rope_parameters["rope_theta"] ** -places
    )

    def norm(module: Any, x: torch.Tensor) -> torch.Tensor:
        return module.weight * x / (x.pow(2).mean(-1, keepdim=True) + c.rms_norm_eps).sqrt()

    def turned(x: torch.Tensor) -> torch.Tensor:
        a, b = x.chunk(2, -1)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    x = model.get_input_embeddings()(ids)
    for layer in model.model.layers:
        at, mlp = layer.self_attn, layer.mlp
        h = norm(layer.input_layernorm, x)
        q, k, v = (
            projection(h).view(n, -1, c.head_dim).transpose(0, 1)
            for projection in (at.q_proj, at.k_proj, at.v_proj)
        )
        k, v = (t.repeat_interleave(len(q) // len(t), 0) for t in (k, v))
        future = torch.full((n, n), -math.inf, dtype=torch.float64).triu(1)
        scores = turned(q) @ turned(k).mT / math.sqrt(c.head_dim) + future
        x = x + at.o_proj((scores.softmax(-1) @ v).transpose(0, 1).reshape(n, -1))
        h = norm(layer.post_attention_layernorm, x)
        x = x + mlp.down_proj(torch.nn.functional.silu(mlp.gate_proj(h)) * mlp.up_proj(h))
    return model.lm_head(norm(model.model.norm, x))


@pytest.mark.parametrize(
    ("family", "head"),
    [("llama", "causal"), ("llama", "biased"), ("llama", "mistral"), ("llama", "qwen2 tied")],
)
def test_full_precision_is_float64(tmp_path: Path, family: str, head: str) -> None:
    """Inside, transformers agrees with plain float64 arithmetic; outside, only to float32."""
    keys = {"heads": 4, "kv_heads": 2, "layers": 3, "sliding_window": None}
    saved = checkpoint(tiny.save(tiny.build(family, head, **keys), tmp_path / "m"))
    ids = tiny.tokens(1, 20)

    def error() -> float:
        model = load(saved).model
        with torch.no_grad():
            want = by_hand(model, ids[0])
            have = model(input_ids=ids).logits[0]
        return float((have - want).abs().max() / want.abs().max())

    assert error() > 1e-9
    with full_precision():
        assert error() <= 1e-13


class Float32Seen(TorchDispatchMode):
    """Which operations gave a float32 tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if any(isinstance(t, torch.Tensor) and t.dtype == torch.float32 for t in tree_leaves(out)):
            self.seen.add(str(func))
        return out


BASES = [("llama", "mistral base"), ("llama", "qwen2 base")]


@pytest.mark.parametrize(("family", "head"), [*HEADS, *BASES])
def test_nothing_runs_in_float32(tmp_path: Path, family: str, head: str) -> None:
    """Inside, no operation and no buffer of any head class is float32."""
    saved = checkpoint(tiny.save(tiny.build(family, head, pad_token_id=0), tmp_path / "m"))
    with full_precision():
        model = load(saved).model
        with Float32Seen() as inside, torch.no_grad():
            model(**tiny.inputs(model))
    assert not inside.seen
    assert all(b.dtype == torch.float64 for b in model.buffers() if b.is_floating_point())


def test_full_precision_ends_with_its_block() -> None:
    """Outside, float32 is float32 again, also after an error."""
    with full_precision():
        assert torch.ones(2, dtype=torch.float32).to(torch.float).float().dtype == torch.float64
        assert torch.tensor(0.5).dtype == torch.float64
    with pytest.raises(ZeroDivisionError), full_precision():
        _ = 1 / 0
    assert torch.tensor(0.5).double().float().dtype == torch.float32
    assert torch.get_default_dtype() == torch.float32


# -- what a claim allows -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("claim", "dtype", "eps", "passes", "allowed"),
    [
        (EXACT, "float64", 1e-5, 4, 1e-10),
        (EXACT, "float32", 0.0, 0, 2e-5),
        (EXACT, "bfloat16", 0.0, 0, 2e-2),
        (EXACT, "float16", 0.0, 0, 2e-2),
        (EPS, "float64", 1e-5, 4, 4e-4),
        (EPS, "float64", 1e-12, 24, 3.4e-10),
        (EPS, "float32", 1e-12, 24, 2e-5),
    ],
)
def test_tolerance(claim: str, dtype: str, eps: float, passes: int, allowed: float) -> None:
    """Rounding of the storage dtype, plus what eps allows where the claim says so."""
    assert tolerance(claim, dtype, eps, passes) == pytest.approx(allowed, rel=1e-4)
    assert tolerance(APPROXIMATE, dtype, eps, passes) is None


def one_more_silent_layer(model: Any) -> Any:
    """A BERT with an added layer that only normalises: the last gain and shift move into it."""
    layers = model.config.num_hidden_layers
    big = tiny.build("bert", "base", layers=layers + 1, layer_norm_eps=model.config.layer_norm_eps)
    state = model.state_dict()
    old, new = f"encoder.layer.{layers - 1}.", f"encoder.layer.{layers}."
    for name in [n for n in state if n.startswith(old)]:
        tensor, norm = state[name], "LayerNorm" in name
        unit = (torch.ones_like if name.endswith("weight") else torch.zeros_like)(tensor)
        branch = norm or ".output.dense." not in name
        state[name.replace(old, new)] = tensor if branch else torch.zeros_like(tensor)
        if name.startswith(old + "output.LayerNorm"):
            state[name] = unit
        elif norm:
            state[name.replace(old, new)] = unit
    big.load_state_dict(state)
    return big


@pytest.mark.parametrize("seed", range(3))
def test_what_eps_allows_is_what_eps_costs(tmp_path: Path, seed: int) -> None:
    """Two more norm passes cost at most half an eps each: it is allowed, and shrinks with eps."""
    errors = []
    for eps in (1e-5, 1e-12):
        model = tiny.build("bert", "base", layer_norm_eps=eps, seed=seed, layers=1)
        small = checkpoint(tiny.save(model, tmp_path / f"small{eps}"))
        big = checkpoint(tiny.save(one_more_silent_layer(model), tmp_path / f"big{eps}"))
        found = verify(small, big, growth=growth(EPS, eps=eps, passes=2))
        assert found.passed
        assert found.measurement.error is not None
        assert found.measurement.error < 0.5 * eps * 2
        errors.append(found.measurement.error)
        assert verify(small, big, growth=growth(EXACT)).passed is (eps == 1e-12)
    assert errors[0] > 1e-7
    assert errors[1] < 1e-10


# -- verdicts ------------------------------------------------------------------------------------


def test_an_exact_growth_passes(small: Path, big: Path) -> None:
    """Doubled neurons: no difference, and every number says so."""
    found = verify(checkpoint(small), checkpoint(big), growth=growth())
    m = found.measurement
    assert found.passed
    assert (found.claim, found.reasons, found.tolerance) == (EXACT, ("because",), 1e-10)
    assert (m.kind, m.finite, m.tokens, m.notes) == ("logits", True, 8 + 23, ())
    assert m.error is not None
    assert m.rms is not None
    assert m.rms <= m.error <= 1e-13
    assert m.kl == pytest.approx(0.0, abs=1e-13)
    assert m.top1 == 1.0


@pytest.mark.parametrize("head", ["causal", "tied", "base", "biased", "classifier"])
def test_a_model_equals_itself(tmp_path: Path, head: str) -> None:
    """Every head class is compared, and nothing differs."""
    same = checkpoint(tiny.save(tiny.build("llama", head), tmp_path / "m"))
    m = compare(same, same)
    assert m.error == 0.0
    assert (m.kind, m.kl is None) == (("hidden", True) if head == "base" else ("logits", False))


def test_a_wrong_growth_fails(small: Path, big: Path) -> None:
    """One changed row of one tensor contradicts the claim; an approximate claim allows it."""
    name = "model.layers.1.mlp.down_proj.weight"
    tensor = load_file(big / "model.safetensors")[name]
    tensor[2] *= 1.001
    edit(big, **{name: tensor})
    found = verify(checkpoint(small), checkpoint(big), growth=growth())
    assert not found.passed
    assert found.failures[0].startswith('claim "exact": logits differ by')
    assert verify(checkpoint(small), checkpoint(big), growth=growth(APPROXIMATE)).passed


def test_damaged_files_fail_whatever_is_measured(small: Path, big: Path) -> None:
    """A row that no token reaches changes no output, but it changes the file's checksum."""
    found = verify(checkpoint(small), checkpoint(big), growth=growth(), file_problems=["crc32"])
    assert found.failures == ("crc32",)
    assert not found.passed


def test_without_a_claim_it_reports(small: Path, tmp_path: Path) -> None:
    """No growkit.json: any difference passes, except one above --max-drift."""
    other = tiny.save(tiny.build("llama", "causal", seed=1), tmp_path / "other")
    found = verify(checkpoint(small), checkpoint(other))
    assert found.passed
    assert (found.claim, found.tolerance) == (None, None)
    assert found.measurement.error is not None
    assert found.measurement.error > 0.1
    assert verify(checkpoint(small), checkpoint(other), max_drift=100.0).passed
    found = verify(checkpoint(small), checkpoint(other), max_drift=0.1)
    assert found.failures[0].startswith("--max-drift: logits differ by")


def test_rounding_to_the_storage_dtype_is_allowed(tmp_path: Path) -> None:
    """float32 and bfloat16 results are off by their rounding, which their claim allows."""
    model = tiny.build("llama", "causal")
    small = checkpoint(tiny.save(model, tmp_path / "small"))
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        rounded = checkpoint(tiny.save(twice_the_neurons(model).to(dtype), tmp_path / name))
        assert verify(small, rounded, growth=growth(dtype=name)).passed
        assert not verify(small, rounded, growth=growth()).passed


def test_outputs_that_are_not_finite(small: Path, big: Path) -> None:
    """NaN in BIG fails a claim and is noted without one; NaN in SMALL leaves nothing to compare."""
    edit(big, model__norm__weight=torch.full((12,), math.nan, dtype=torch.float64))
    found = verify(checkpoint(small), checkpoint(big), growth=growth(APPROXIMATE))
    assert found.failures == ("outputs are not finite",)
    assert found.measurement.error is None
    found = verify(checkpoint(small), checkpoint(big))
    assert found.passed
    assert found.notes == ("outputs are not finite",)
    with pytest.raises(VerifyError, match="big: its own outputs are not finite"):
        compare(checkpoint(big), checkpoint(small))


# -- hidden states, and what cannot be compared --------------------------------------------------


def test_hidden_states_are_read_back(tmp_path: Path) -> None:
    """Without a head: a doubled stream, averaged over its copies, is the small one's."""
    model = tiny.build("llama", "base")
    n = model.config.hidden_size
    state = model.state_dict()
    for name, tensor in state.items():
        copies = [tensor, tensor]
        if tensor.ndim == 1 or "o_proj" in name or "down_proj" in name:
            state[name] = torch.cat(copies)
        else:
            state[name] = torch.cat(copies, 1) / (1 if "embed" in name else 2)
    doubled = tiny.build("llama", "base", hidden=2 * n)
    doubled.load_state_dict(state)
    small = checkpoint(tiny.save(model, tmp_path / "small"))
    big = checkpoint(tiny.save(doubled, tmp_path / "big"))

    read = {"index": [[i % n] for i in range(2 * n)], "coef": [[0.5]] * (2 * n)}
    told = growth() | {
        "readback": "hidden",
        "maps": {"hidden": {"old": n, "new": 2 * n, "read": read}},
    }
    found = verify(small, big, growth=told)
    assert found.passed
    assert (found.measurement.kind, found.measurement.kl) == ("hidden", None)

    wrong = Kernel.gather([i % n for i in range(1, 2 * n + 1)], 0.5, old=n)
    error = compare(small, big, readback=wrong).error
    assert error is not None
    assert error > 0.1

    unread = verify(small, big)  # no map: it can only say so
    assert unread.passed
    assert unread.measurement.error is None
    assert "last_hidden_state, of sizes 12 and 24 with no axis map" in unread.notes[0]
    assert "nothing could be compared" in verify(small, big, growth=growth()).failures[0]


def test_a_larger_vocabulary_is_compared_on_the_old_tokens(small: Path, tmp_path: Path) -> None:
    """New tokens have logits of their own; those of the old ones are compared."""
    more = tiny.build("llama", "causal", vocab=31)
    state = tiny.build("llama", "causal").state_dict()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        state[name] = torch.cat([state[name], torch.ones_like(state[name][:2])])
    more.load_state_dict(state)
    m = compare(checkpoint(small), checkpoint(tiny.save(more, tmp_path / "more")))
    assert m.error is not None
    assert m.error <= 1e-14
    assert m.notes == ("compared: the first 29 of 31 logits",)


def test_outputs_of_another_kind(small: Path, tmp_path: Path) -> None:
    """Logits and hidden states are not compared with each other."""
    base = tiny.save(tiny.build("llama", "base"), tmp_path / "base")
    found = verify(checkpoint(small), checkpoint(base), max_drift=1.0)
    assert found.notes == ("not compared: logits, which only SMALL gives",)
    assert found.failures == ("--max-drift: not confirmed, nothing could be compared",)


# -- loading -------------------------------------------------------------------------------------


def test_a_head_that_neither_has_is_no_stray(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """BertModel without a pooler: the class wants one, no output needs it, nobody is told off."""
    same = checkpoint(tiny.save(tiny.build("bert", "no pooler"), tmp_path / "m"))
    assert load(same).missing == {"pooler.dense.weight", "pooler.dense.bias"}
    assert verify(same, same, growth=growth()).passed
    assert capfd.readouterr() == ("", "")


def test_tensors_missing_or_left_over(small: Path, big: Path) -> None:
    """BIG must have the tensors of its class: what is missing or has no place is named."""
    edit(big, model__layers__1__mlp__down_proj__weight=None, extra=torch.ones(3))
    found = verify(checkpoint(small), checkpoint(big), growth=growth(APPROXIMATE))
    assert found.failures == (
        "outputs are not finite",
        "the model lacks model.layers.1.mlp.down_proj.weight",
        "the model has no place for extra",
    )
    with pytest.raises(VerifyError, match=r"not finite: it lacks model\.layers\.1\.mlp\.down_proj"):
        compare(checkpoint(big), checkpoint(small))


def test_a_source_may_be_one_file(small: Path) -> None:
    """A .safetensors file of any name, with config.json beside it, or the folder of the two."""
    file = (small / "model.safetensors").rename(small / "mine.safetensors")
    assert compare(checkpoint(file), checkpoint(file)).error == 0.0
    assert api.verify_growth(small, file).measurement.error == 0.0


def test_a_source_may_be_a_sharded_index(tmp_path: Path) -> None:
    """The index of a sharded checkpoint, or its folder."""
    model = tiny.build("llama", "causal")
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    index = tmp_path / "model.safetensors.index.json"
    assert compare(checkpoint(index), checkpoint(tmp_path)).error == 0.0


def test_attention_that_insists_on_float32(tmp_path: Path) -> None:
    """A config that asks for float32 attention scores gets float64 ones, too."""
    keys = {"reorder_and_upcast_attn": True}
    model = tiny.build("gpt2", "causal", attn_implementation="eager")
    plain = checkpoint(tiny.save(model, tmp_path / "m"))
    assert compare(plain, checkpoint(tmp_path / "m", **keys)).error == 0.0


def test_without_a_class_name_the_base_model_runs(small: Path) -> None:
    """A config without "architectures" names no head: hidden states are compared."""
    headless = checkpoint(small, architectures=None)
    m = compare(headless, headless)
    assert (m.kind, m.error) == ("hidden", 0.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"intermediate_size": 19}, "small: transformers .* cannot load it: .*size"),
        ({"architectures": ["No"], "model_type": "no"}, "cannot load it: KeyError: 'no'"),
        ({"architectures": ["PatchTSTModel"], "model_type": "patchtst"}, "takes neither tokens"),
    ],
    ids=["other sizes", "unknown class", "no token model"],
)  # fmt: skip
def test_what_transformers_cannot_run(small: Path, changes: dict[str, Any], message: str) -> None:
    """The checkpoint and the reason of transformers are named."""
    with pytest.raises(VerifyError, match=message) as caught:
        compare(checkpoint(small, **changes), checkpoint(small))
    assert caught.value.hint


def test_files_that_cannot_be_read(small: Path) -> None:
    """A truncated file is the checkpoint's fault, and said so."""
    file = small / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(VerifyError, match="cannot load it: SafetensorError"):
        compare(checkpoint(small), checkpoint(small))


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"exactness": None},
        {"readback": "hidden"},
        {"readback": "hidden", "maps": {"hidden": {"old": 3, "read": {"indices": []}}}},
        {"exactness": {**growth()["exactness"], "claim": "surely"}},
        {"exactness": {**growth()["exactness"], "storage": {"dtype": "int8"}}},
    ],
)
def test_an_edited_growkit_json(small: Path, broken: dict[str, Any]) -> None:
    """A record that verify cannot read is refused, before any model is run."""
    told = growth() | broken if broken else {}
    with pytest.raises(VerifyError, match=r"growkit\.json: not readable"):
        verify(checkpoint(small), checkpoint(small), growth=told)


# -- text ----------------------------------------------------------------------------------------


def add_tokenizer(folder: Path, words: int) -> Path:
    """A tokenizer of whole words, w0, w1, …, that pads and cuts unless it is told not to."""
    vocab = {f"w{i}": i for i in range(words)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_padding(length=50, pad_token="w1")
    tokenizer.enable_truncation(3)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_text_is_compared_too(small: Path, big: Path) -> None:
    """Every line is one sequence, in pieces that fit the model's positions."""
    add_tokenizer(small, 29)
    text = "w3 w4 w5\n\n  w6\n" + " ".join(f"w{i % 29}" for i in range(30))
    m = compare(checkpoint(small), checkpoint(big), text=text)
    assert m.tokens == 8 + 23 + 3 + 1 + 30
    assert m.error is not None
    assert m.error <= 1e-13


def test_text_finds_what_random_tokens_miss(small: Path, big: Path) -> None:
    """The tokens of the text are really run: a wrong embedding of one of them shows."""
    drawn = torch.cat([i["input_ids"] for i in random_inputs(load(checkpoint(small)), 0)], 1)
    never = min({*range(tiny.SIZES["vocab"])} - {*drawn.flatten().tolist()})
    embedding = load_file(big / "model.safetensors")["model.embed_tokens.weight"]
    embedding[never] += 0.1
    edit(big, model__embed_tokens__weight=embedding)
    assert verify(checkpoint(small), checkpoint(big), growth=growth()).passed
    add_tokenizer(small, 29)
    text = f"w2 w{never}"
    assert not verify(checkpoint(small), checkpoint(big), growth=growth(), text=text).passed


def test_long_text_is_cut(tmp_path: Path) -> None:
    """Only so many tokens are run, and the report says so."""
    folder = tiny.save(tiny.build("llama", "causal", layers=1, positions=256), tmp_path / "small")
    add_tokenizer(folder, 29)
    m = compare(checkpoint(folder), checkpoint(folder), text="w3 " * (TEXT_TOKENS + 1))
    assert m.tokens == 8 + 32 + 128 + TEXT_TOKENS
    assert m.notes == (f"text: only its first {TEXT_TOKENS} tokens were used",)


def test_text_without_a_tokenizer(small: Path) -> None:
    """Text needs tokenizer.json beside the weights."""
    with pytest.raises(UsageError, match=r"tokenizer\.json: not found") as caught:
        compare(checkpoint(small), checkpoint(small), text="w3")
    assert "--text" in caught.value.hint


def test_a_tokenizer_of_another_model(small: Path) -> None:
    """A token that the model does not know is an error that names the model."""
    add_tokenizer(small, 40)
    with pytest.raises(VerifyError, match="small: LlamaForCausalLM does not run: "):
        compare(checkpoint(small), checkpoint(small), text="w39")


# -- other inputs than tokens --------------------------------------------------------------------

TAKES = {
    "t5/generation": "logits of 168 tokens and 168 decoder tokens",
    "bart/model": "hidden of 31 tokens and 31 decoder tokens",
    "whisper/generation": "logits of 2 spectrograms and 31 decoder tokens",
    "vit/image": "logits of 1 image",
    "vit/masked": "outputs of 1 image",
    "clip/both": "logits of 2 images and 31 tokens",
    "clip_text/projection": "outputs of 31 tokens",
    "bert/question": "logits of 31 tokens",
    "electra/pretraining": "logits of 31 tokens",
    "mpt/causal": "logits of 31 tokens",
    "roberta/masked_lm": "logits of 29 tokens",
}


@pytest.mark.parametrize("name", TAKES)
def test_the_class_gets_what_it_takes(tmp_path: Path, name: str) -> None:
    """Images, spectrograms and decoders are fed; a row that is altered is found out."""
    small = tiny.Saved.at(tmp_path / "small", name).folder
    recipe = parse_recipe({"steps": [{"op": "width", "to": {"axes": "2x"}}]})
    out = api.grow(small, recipe, out=tmp_path / "big").out
    found = api.verify_growth(small, out)
    assert found.passed, found.failures
    assert f"{found.measurement.kind} of {found.measurement.inputs}" == TAKES[name]
    weights = load_file(out / "model.safetensors")
    altered = next(k for k in reversed(weights) if weights[k].ndim > 1)
    weights[altered][0] += 1.0
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    assert not api.verify_growth(small, out).passed


def test_one_number_for_every_token_is_no_choice(tmp_path: Path) -> None:
    """Where a span starts: texts of several lengths are compared, without a KL over classes."""
    small = tiny.Saved.at(tmp_path / "small", "llama/answers").folder
    found = compare(checkpoint(small), checkpoint(small))
    assert found.error == 0.0
    assert found.kl is found.top1 is None


# -- the extra -----------------------------------------------------------------------------------


def test_without_transformers() -> None:
    """verify is an extra: without it, exit code 2 and how to install it."""
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "from growkit.errors import UsageError\n"
        "try: import growkit.verify.compare\n"
        "except UsageError as error: print(error.exit_code, error.message, '|', error.hint)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("2 verify: transformers cannot be imported")
    assert done.stdout.endswith("| pip install 'growkit[verify]'\n")
