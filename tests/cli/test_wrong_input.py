"""Wrong input on the command line: an exit code, one sentence, a hint, and nothing written."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from fcntl import LOCK_EX, flock
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from support.tiny import build, save
from support.unprivileged import unprivileged

import growkit as package
from growkit.checkpoints.tensor_list import nonfinite
from growkit.cli.main import app
from growkit.families.load import family_text

WIDTH = "--recipe double_width"
QUERY = "model.layers.0.self_attn.q_proj.weight"
Tensors = dict[str, torch.Tensor]
Spoil = Callable[[Path], object]  # makes a checkpoint's folder wrong


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny checkpoints of two families, which no test changes."""
    folder = tmp_path_factory.mktemp("models")
    for family, head in (("llama", "causal"), ("bert", "base")):
        save(build(family, head, heads=2, mlp=12, dtype=torch.float32), folder / family)
    return folder


@pytest.fixture
def small(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of one, to be spoilt, in the working folder."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(models / "llama", tmp_path / "small")


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and modification time of all that is in a folder."""
    found = {p: p.lstat() for p in folder.rglob("*")}
    return {
        str(path): (path.read_bytes() if path.is_file() else b"", stat.st_mtime_ns)
        for path, stat in found.items()
    }


def growkit(line: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `growkit LINE`, in this process."""
    result = CliRunner().invoke(app, line.split(), prog_name="growkit")
    return result.exit_code, result.stdout, result.stderr


def process(line: str, *, first: str = "") -> tuple[int, str, str]:
    """The same in a process of its own, as from a shell; `first` is run before."""
    code = f"{first}\nimport sys\nsys.argv[0] = 'growkit'\nfrom growkit.cli import main\nmain()"
    path = {"PYTHONPATH": str(Path(package.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code, *line.split()],
        capture_output=True,
        text=True,
        env=os.environ | path,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def refused(code: int, match: str, hint: str, options: str = WIDTH, how: Any = growkit) -> None:
    """`growkit grow small` ends so, says this in one sentence and a hint, and changes nothing."""
    line = f"grow small {options}" + ("" if " -o " in options else " -o out")
    before = snapshot(Path.cwd())
    found, stdout, stderr = how(line)
    assert (found, stdout) == (code, ""), stderr
    message, advice = stderr.splitlines()
    assert message.startswith("error: ")
    assert re.search(match, message), message
    assert advice.startswith("hint: ")
    assert re.search(hint, advice), advice
    assert snapshot(Path.cwd()) == before

    found, stdout, _ = how(f"{line} --json")
    told = {"error": message[7:], "hint": advice[6:], "exit_code": code}
    assert (found, masked(json.loads(stdout))) == (code, masked(told))


def masked(told: dict[str, Any]) -> dict[str, Any]:
    """Without what is another one each time: free bytes of the disk, names of temporary files."""
    changing = re.compile(r"\.[0-9a-f]{8}\.tmp|[\d.]+ [kMGTP]?B")
    return {k: changing.sub("…", v) if isinstance(v, str) else v for k, v in told.items()}


# -- how a checkpoint goes wrong -----------------------------------------------------------------


def config(**changes: Any) -> Spoil:
    """Keys of config.json set; None removes one."""

    def spoil(model: Path) -> None:
        old = json.loads((model / "config.json").read_text())
        new = {k: v for k, v in {**old, **changes}.items() if v is not None}
        (model / "config.json").write_text(json.dumps(new))

    return spoil


def quantised(method: str) -> Spoil:
    """A config that says so, of a tensor that is packed without a word in its name."""

    def spoil(model: Path) -> None:
        config(quantization_config={"quant_method": method})(model)
        replaced(torch.Tensor.char)(model)

    return spoil


def text(name: str, content: str) -> Spoil:
    """A file with this text."""
    return lambda model: (model / name).write_text(content)


def tensors(change: Callable[[Tensors], Tensors], **metadata: str) -> Spoil:
    """A file with other tensors."""

    def spoil(model: Path) -> None:
        path = model / "model.safetensors"
        save_file(change(load_file(path)), path, metadata={"format": "pt", **metadata})

    return spoil


def add(*shape: int, to: str = "", names: tuple[str, ...] = ("",)) -> Spoil:
    """Further tensors of zeros."""
    return tensors(lambda old: old | {to + name: torch.zeros(shape) for name in names})


def without_query(old: Tensors) -> Tensors:
    """One tensor left out."""
    return {name: tensor for name, tensor in old.items() if name != QUERY}


def replaced(change: Callable[[torch.Tensor], torch.Tensor]) -> Spoil:
    """One tensor made another."""
    return tensors(lambda old: old | {QUERY: change(old[QUERY])})


def number(value: float) -> Spoil:
    """One number of one tensor."""
    return replaced(lambda t: torch.cat([torch.full((1,), value), t.flatten()[1:]]).reshape(8, 8))


def raw(change: Callable[[bytes], bytes]) -> Spoil:
    """The weight file with other bytes."""

    def spoil(model: Path) -> None:
        path = model / "model.safetensors"
        path.write_bytes(change(path.read_bytes()))

    return spoil


def header(**changes: Any) -> Spoil:
    """The header with another entry for one tensor."""

    def change(data: bytes) -> bytes:
        end = 8 + int.from_bytes(data[:8], "little")
        entries = json.loads(data[8:end])
        entries[QUERY] |= changes
        new = json.dumps(entries).encode()
        return len(new).to_bytes(8, "little") + new + data[end:]

    return raw(change)


def only(*names: str) -> Spoil:
    """Other files in place of the weights."""

    def spoil(model: Path) -> None:
        (model / "model.safetensors").unlink()
        for name in names:
            (model / name).write_bytes(b"\x80\x02 never looked at")

    return spoil


DAMAGED, ANEW = "download or copy it anew", "mend the checkpoint, or get it anew"
TOGETHER = "config.json and the tensors must belong together"
ORIGINAL = "grow the original, or dequantise it"
Q = "quantised checkpoint: "
SCALE = r"leave it out \(--drop '\*.weight_scale'\), or describe it in a family file"
LAYER, BLOCKS = "model.layers.0.mlp.", ("_blocks", "_scales")

# what is wrong → (spoil, the sentence, the hint)
CHECKPOINTS: dict[str, tuple[Spoil, str, str]] = {
    # config.json
    "no config": (lambda m: (m / "config.json").unlink(), r"config\.json is missing", "--config"),
    "malformed": (text("config.json", '{"a": 1,'), "config is not valid JSON: .*line 1", "mend"),
    "a list": (text("config.json", "[]"), "config is not a JSON object: found list", "mend"),
    "unknown family": (config(model_type="lama"), 'model_type "lama" has no family', '"llama"'),
    "no family": (config(model_type=None), 'no "model_type"', "--family FILE"),
    "no number": (config(hidden_size="8"), "hidden_size: expected a positive whole .*'8'", ANEW),
    "hidden": (config(hidden_size=12), r"hidden = 12, found 8 \(hidden = 12\)", TOGETHER),
    "heads": (config(num_attention_heads=3), r"12, found 8 \(heads = 3, v = 4\)", TOGETHER),
    "layers": (config(num_hidden_layers=3), r"layers\.2\..* is missing \(2 of 3", "incomplete"),
    "more layers": (config(num_hidden_layers=1), "number 1, but .* says there are 1", ANEW),
    # the weight file
    "no folder": (shutil.rmtree, "small: no such file or folder", "give a .safetensors file"),
    "truncated": (raw(lambda b: b[:-10]), "truncated: found 8390 bytes, expected 8400", DAMAGED),
    "cut": (raw(lambda b: b[:99]), "truncated: found 99 bytes, the header ends at", DAMAGED),
    "too long": (raw(lambda b: b + b"x"), "expected 8400: 1 bytes too many", DAMAGED),
    "empty": (raw(lambda b: b""), "truncated: found 0 bytes, expected at least 8", DAMAGED),
    "a zip": (raw(lambda b: b"PK\x03\x04" + b), "not a safetensors file: header of", DAMAGED),
    "a pointer": (raw(lambda b: b"version https://git-lfs"), "a git-lfs pointer", "git lfs pull"),
    "rubbish": (raw(lambda b: b[:8] + b"\xff" + b[9:]), "header is not valid JSON", DAMAGED),
    "swapped": (header(data_offsets=[256, 0]), f"{QUERY}: found -256 bytes", DAMAGED),
    "shifted": (header(data_offsets=[8, 264]), r"overlap of \d+ bytes between", DAMAGED),
    "shape": (header(shape=[3, 8]), r"found 256 bytes, F32 \[3, 8\] takes 96", DAMAGED),
    "dtype": (header(dtype="F31"), f"{QUERY}: dtype 'F31' is not known", "known: F64, F32"),
    "no tensor": (tensors(lambda old: {}), "holds no tensors", "the file with the weights"),
    # its tensors
    "unknown": (add(2, to=f"{LAYER}gate.weight"), r"no pattern .* is .*gate_proj\.w", "--family"),
    "layer 9": (add(12, 8, to="model.layers.9.mlp.up_proj.weight"), "layers number 9, but", ANEW),
    "missing": (tensors(without_query), r"missing \(1 of 2", "incomplete"),
    "two spellings": (add(8, to="norm.weight"), "are the same tensor", "keep"),
    "dims": (replaced(torch.flatten), r"expected 2 dims, found shape \(64,\)", ANEW),
    "integers": (replaced(torch.Tensor.int), "dtype I32 cannot be grown", "float16 and bfloat16"),
    "nan": (number(math.nan), f"{QUERY}: .* values are NaN or infinite", "--allow-nonfinite"),
    "inf": (number(-math.inf), f"{QUERY}: .* values are NaN or infinite", "--allow-nonfinite"),
    "no tie": (config(tie_word_embeddings=True), "differ, but config.json ties", "tie_word_emb"),
    # other kinds of checkpoint
    "fp8 config": (quantised("fp8"), f"{Q}config.json has quantization_config fp8", ORIGINAL),
    "fp8": (replaced(lambda t: t.to(torch.float8_e4m3fn)), f"{Q}{QUERY} is F8_E4M3", ORIGINAL),
    "a scale": (add(8, to=f"{LAYER}up_proj.weight_scale"), "up_proj.weight_scale: no pat", SCALE),
    "a scale of fp8": (
        add(8, to=f"{LAYER}up_proj.weight_scale_inv"),
        f"{Q}.*up_proj.weight_scale_inv is F32",
        r"leave it out: --drop '\*.weight_scale_inv'",
    ),
    "more tokens": (
        config(vocab_size=10),
        r"lm_head.weight: expected vocab = 10, found 29 \(vocab = 10\)",
        "if tokens were added, set vocab_size: 29 in config.json",
    ),
    "beside a LoRA": (
        add(8, 8, to=f"{LAYER}up_proj.base_layer.weight"), "a LoRA adapter was", "merge_and_unload"
    ),
    "gptq config": (quantised("gptq"), f"{Q}config.json has .* gptq", ORIGINAL),
    "gptq": (add(1, 8, to=f"{LAYER}up_proj.qweight"), f"{Q}.*up_proj.qweight is", ORIGINAL),
    "bitsandbytes config": (quantised("bitsandbytes"), f"{Q}.* bitsandbytes", ORIGINAL),
    "bitsandbytes": (add(4, to=f"{QUERY}.absmax"), f"{Q}{QUERY}.absmax is", ORIGINAL),
    "mxfp4 config": (quantised("mxfp4"), f"{Q}config.json has .* mxfp4", ORIGINAL),
    "mxfp4": (add(4, to=f"{LAYER}down_proj", names=BLOCKS), f"{Q}.*_proj_blocks is", ORIGINAL),
    "lora": (text("adapter_config.json", "{}"), "a LoRA adapter, not a whole", "merge_and_unload"),
    "lora names": (add(2, to="q.lora_A.weight"), "a LoRA adapter", "merge_and_unload"),
    "dcp": (only("__0_0.distcp", ".metadata"), "shards of PyTorch's distributed", "gather"),
    "dcp part": (tensors(dict, DCP_SHARDING_INFO="{}"), "a partial shard of", "consolidate"),
    "bin": (only("pytorch_model.bin"), "pickled weights only, which can run code", "safetensors"),
    "gguf": (only("model-q4_k_m.gguf"), "GGUF weights only", "the safetensors model"),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "match", "hint"), CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_checkpoint(spoil: Spoil, match: str, hint: str, small: Path) -> None:
    """Damaged, contradicting itself, or not a checkpoint that can be grown: exit code 3."""
    spoil(small)
    refused(3, match, hint)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_not_finite(value: float, small: Path) -> None:
    """A copy of NaN or Inf is refused just as well; carried over and told if the user says so."""
    number(value)(small)
    copy = "--recipe double_depth"
    refused(3, f"tensor {QUERY}: 1 values are NaN or infinite", "--allow-nonfinite", copy)
    code, stdout, stderr = growkit(f"grow small {copy} -o out --json --allow-nonfinite")
    assert code == 0
    assert f"warning: tensor {QUERY}: 1 values are NaN or infinite\n" in stderr
    told = json.loads(stdout)["nonfinite"]
    assert told == dict.fromkeys([QUERY, QUERY.replace(".0.", ".1.")], 1)
    tensors = json.loads(Path("out/growkit.json").read_text())["tensors"]
    assert nonfinite(tensors) == told
    assert not load_file("out/model.safetensors")[QUERY][0, 0].isfinite()
    assert growkit("verify --files out")[0] == 0


def test_not_finite_by_several_workers(small: Path) -> None:
    """Who writes a file counts for it; nothing is lost on the way, nor when a run is resumed."""
    number(math.nan)(small)
    line = f"grow small {WIDTH} -o out --json --allow-nonfinite --max-shard-size 6kB --workers 2"
    code, stdout, stderr = growkit(line)
    assert code == 0, stderr
    told = json.loads(stdout)["nonfinite"]
    assert told[QUERY] >= 1
    assert f"warning: tensor {QUERY}: {told[QUERY]} values are NaN or infinite" in stderr


def test_overflow(small: Path) -> None:
    """A number that --dtype cannot hold is refused, or becomes Inf where the user says so."""
    number(1e6)(small)
    half = "--recipe double_depth --dtype float16"
    refused(3, f"tensor {QUERY}: 1 values are too large for F16", "use bfloat16, or pass", half)
    assert growkit(f"grow small {half} -o out -q --allow-nonfinite")[0] == 0
    grown = load_file("out/model.safetensors")[QUERY]
    assert (grown[0, 0], grown.dtype) == (math.inf, torch.float16)
    assert grown.flatten()[1:].isfinite().all()


def test_lists_of_layers(small: Path) -> None:
    """A list in config.json that has to follow the layers, and is too short to."""
    config(layer_types=["full_attention"])(small)
    refused(3, "config.json: layer_types: 1 entries are too few", ANEW, "--recipe double_depth")


# -- recipes and options -------------------------------------------------------------------------

BLEND = "sources: [a, b]\nsteps: [{op: blend, with: b, alpha: 0.5}]"
WIDER = "sources: [a, b]\nsteps: [{op: width, to: {axes: 2x}}, {op: blend, with: b, alpha: 0.5}]"
NO_AXIS = 'family llama has no axis "hiden"'

# recipe.yaml → (exit code, the sentence, the hint, further options)
RECIPES: dict[str, tuple[int, str, str, str]] = {
    "steps: [{op: noise}]\nsead: 1": (2, "sead: unknown key", 'did you mean "seed"', ""),
    "steps: [{op: noise, snr: 1}]": (2, r"steps\[0\].snr: unknown key", "snr_db", ""),
    "steps: [{op: wdith, to: {}}]": (2, 'unknown op "wdith"', '"width"', ""),
    "steps: [{op: width, to: 2x}]": (2, r"\.to: should be a mapping, found", "--schema", ""),
    "steps: [{op: width, to: {mlp: wide}}]": (2, 'to.mlp: "wide" is not a size', "1024", ""),
    "steps: !!python/object/apply:os.getcwd []": (2, "tags such as .*getcwd", "plain data", ""),
    "steps: !include other.yaml": (2, "tags such as !include are not", "plain data", ""),
    "steps: [{op: width, to: {hiden: 2x}}]": (2, NO_AXIS, 'mean "hidden"', ""),
    "steps: [{op: width, to: {}, how: {hiden: tile}}]": (2, NO_AXIS, 'mean "hidden"', ""),
    "steps: [{op: width, to: {hidden: 4/3x}}]": (2, "10.6667, not a whole number", "divides 8", ""),
    "steps: [{op: width, to: {mlp: 1/2x}}]": (2, "to.mlp: 12 → 6 shrinks", "only the map", ""),
    "steps: [{op: width, to: {layers: 4}}]": (2, "width does not grow this", "op depth", ""),
    "steps: [{op: width, to: {mlp: 18}, how: tile}]": (2, "12 → 18 is not a whole", "auto", ""),
    "steps: [{op: width, to: {heads: 3}}]":
        (2, r"hidden \(8\) must be a multiple of heads \(3\)", "set hidden: 9", ""),
    "steps: [{op: width, to: {heads: 4, kv_heads: 3}}]":
        (2, "4 heads cannot be shared by 3 kv heads", "a multiple of kv_heads", ""),
    "steps: [{op: depth, to: {layers: 1}}]": (2, "to.layers: 2 → 1 shrinks", "depth only", ""),
    "steps: [{op: depth, layers: [0, 1, 2]}]": (2, "layer 2 is out of range", "0 to 1", ""),
    "family: bert\nsteps: [{op: noise}]": (3, "made for family bert, but", "growkit recipes", ""),
    BLEND: (2, "source b: the recipe needs this checkpoint", "add --source b=CKPT", ""),
    f"{BLEND} ": (3, "no such file or folder", "give a .safetensors file", "--source b=none"),
    f"{BLEND}  ": (3, "source b: .* family llama and bert", "exactly", "--source b=bert"),
    f"{BLEND}\n": (2, "is inside the source", "outside", "--source b=bert/../small -o small/x"),
    WIDER: (3, "source b: .* hidden 16 and 8, heads 4 and 2", "exactly", "--source b=small"),
}  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe(recipe: str, models: Path, small: Path) -> None:
    """Misspelt, of the wrong type, more than data, or asking for what cannot be."""
    code, match, hint, options = RECIPES[recipe]
    Path("recipe.yaml").write_text(recipe)
    shutil.copytree(models / "bert", "bert")
    refused(code, match, hint, f"--recipe recipe.yaml {options}")


def test_sizes_that_contradict_each_other(models: Path, small: Path) -> None:
    """hidden ≠ heads × head_dim where the family has no other way; the hint has the repairs."""
    shutil.rmtree(small)
    shutil.copytree(models / "bert", small)
    match = r"hidden \(16\) must equal heads \(2\) × head_dim \(4\) = 8 in family bert"
    Path("recipe.yaml").write_text("steps: [{op: width, to: {hidden: 16}}]")
    refused(2, match, "set heads: 4, or head_dim: 8, or hidden: 8", "--recipe recipe.yaml")


# options → (exit code, the sentence, the hint)
OPTIONS: dict[str, tuple[int, str, str]] = {
    "--recipe double_witdh": (2, 'no built-in recipe "double_witdh"', 'mean "double_width"'),
    "--recipe none.yaml": (2, "none.yaml: cannot read the recipe: no such", "growkit recipes"),
    "--recipe bert_base": (3, "made for family bert, but .* llama", "growkit recipes"),
    f"{WIDTH} --set wdith.to=1": (2, '--set wdith.to=1: "wdith" is neither', 'mean "width"'),
    f"{WIDTH} --set width.foo=1": (2, r"steps\[0\].foo: unknown key", "known: how, new_rows"),
    f"{WIDTH} --set width=1": (2, "width is a step, and a step has keys", "width.KEY=VALUE"),
    f"{WIDTH} --set seed": (2, "--set seed: expected PATH=VALUE", "--set seed=1"),
    f"{WIDTH} --source b=small": (2, r"--source b: the recipe declares .*\[small\]", "leave"),
    f"{WIDTH} --dtype int8": (2, 'dtype: "int8" is not one of keep', "bfloat16"),
    f"{WIDTH} --seed -1": (2, "'--seed': -1 is not in the range", "growkit grow --help"),
    f"{WIDTH} --config none": (3, "none is missing", "--config"),
    f"{WIDTH} --max-memory lots": (2, 'size "lots": expected a positive number', "2GiB"),
    f"{WIDTH} --max-shard-size 0": (2, 'size "0": expected a positive number', "5GB"),
    f"{WIDTH} --max-memory 1MB":
        (4, r"--max-memory 1 MB: one row of .* take \d+ MB", r"--max-memory \d+MB is"),
    f"{WIDTH} --summary none/s.json": (4, r"none/s\.json: cannot write: No such", "the path"),
    f"{WIDTH} --summary small": (4, "small: cannot write: Is a directory", "the path"),
    f"{WIDTH} -o small": (2, "the output is the source", "outside of the source"),
    f"{WIDTH} -o small/new/big": (2, "the output is inside the source", "outside of the source"),
    f"{WIDTH} -o .": (2, "the output contains the source", "outside of the source"),
    f"{WIDTH} -o full": (6, "full: exists, is not empty and has no growkit.json", "--overwrite"),
    f"{WIDTH} -o file": (6, "file: exists and is not a folder", "another -o"),
    f"{WIDTH} -o file/out": (2, "file is not a folder", "another -o"),
}  # fmt: skip


def around(small: Path) -> None:
    """What else is in the working folder."""
    shutil.copytree(small, "full")
    Path("file").touch()


@pytest.mark.parametrize("options", OPTIONS)
def test_option(options: str, small: Path) -> None:
    """Wrong options, and places for OUT that are taken."""
    code, match, hint = OPTIONS[options]
    around(small)
    refused(code, match, hint, options)


@pytest.mark.parametrize("code", [2, 3, 4, 6])
def test_exit_codes_of_the_process(code: int, small: Path) -> None:
    """The codes and streams of a real process, one of each kind."""
    around(small)
    case = next((o, m, h) for o, (c, m, h) in OPTIONS.items() if c == code)
    refused(code, case[1], case[2], case[0], how=process)


def test_the_memory_that_is_said_to_be_enough_is(small: Path) -> None:
    """What the hint gives can be passed as it is."""
    hint = growkit(f"grow small {WIDTH} -o out --max-memory 1MB")[2]
    enough = re.search(r"hint: (--max-memory \d+MB) is enough", hint)
    assert enough
    assert growkit(f"grow small {WIDTH} -o out -q {enough[1]}")[0] == 0


# -- what the machine lacks ----------------------------------------------------------------------


def test_disk_too_small(small: Path) -> None:
    """More than is free, by headers alone: said in numbers before a byte is written."""
    free, ratio = shutil.disk_usage(small).free, 1024
    while ratio**2 * 4000 < free:  # bytes of this model, about
        ratio *= 2
    Path("wide.yaml").write_text(f"steps: [{{op: width, to: {{axes: {ratio}x}}}}]")
    numbers = r"out: needs \d+(\.\d+)? [GTP]B of disk, \d+(\.\d+)? [kMGTP]?B free"
    refused(4, numbers, r"free \d+.* on another disk", "--recipe wide.yaml")


def test_disk_that_fills_up(small: Path) -> None:
    """A limit that only shows while writing: nothing stays behind."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))"
    match = r"File too large: needs \d+(\.\d+)? kB, .* free on this disk"
    how = partial(process, first=limit)
    refused(4, match, "free some space", "--recipe double_depth", how)


@pytest.mark.parametrize("options", [WIDTH, f"{WIDTH} --summary s.json", f"{WIDTH} -o new/out"])
def test_no_permission(options: str, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that may not be written to."""

    def nobody(line: str) -> tuple[int, str, str]:
        growkit(f"{line} --max-memory 1MB")  # imports what nobody may not be able to read
        with unprivileged():
            return growkit(line)

    with tempfile.TemporaryDirectory() as folder, monkeypatch.context() as patch:
        shutil.copytree(small, f"{folder}/small")  # tmp_path is closed to other users
        Path(folder, "small", "model.safetensors").chmod(0o644)
        Path(folder).chmod(0o555)
        patch.chdir(folder)
        refused(4, "no permission to write: Permission denied", "permissions", options, nobody)
        Path(folder).chmod(0o755)


def test_another_growkit_is_writing(small: Path) -> None:
    """OUT is locked while somebody works on it."""
    Path("out.partial").mkdir()
    with Path("out.partial/growkit.lock").open("w") as lock:
        flock(lock, LOCK_EX)
        refused(6, "out: another growkit is writing it", "wait for it to end")


# -- family files --------------------------------------------------------------------------------

# old → new in the file, the sentence, the hint
FAMILIES: dict[str, tuple[str, str, str, str]] = {
    "yaml": ("prefix: [", "prefix: [[", "line 6, .* not valid YAML", "growkit families NAME"),
    "key": ("residual:", "residul:", "unknown key residul", 'mean "residual"'),
    "axis": ("up_proj: lin mlp hidden", "up_proj: lin mlp hiden", "unknown axis hiden", '"hidden"'),
    "kind": ("mlp: neurons", "mlp: neuron", 'axis mlp: unknown kind "neuron"', '"neurons"'),
    "module": ("up_proj: lin ", "up_proj: linn ", '"linn mlp hidden" is not a', "lin OUT IN"),
    "lack": ("    mlp.up_proj: lin mlp hidden\n", "", r"up_proj\.weight: no pattern", "--family"),
    "transposed": ("up_proj: lin ", "up_proj: lint ", "expected hidden = 8, found 12", TOGETHER),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new", "match", "hint"), FAMILIES.values(), ids=FAMILIES)
def test_family_file(old: str, new: str, match: str, hint: str, small: Path) -> None:
    """A family file with a mistake in it: exit code 3."""
    whole = family_text("llama")
    assert old in whole
    Path("family.yaml").write_text(whole.replace(old, new))
    refused(3, match, hint, f"{WIDTH} --family family.yaml")


def test_no_family_file(small: Path) -> None:
    """A family file that is not there."""
    refused(
        3,
        "none.yaml: cannot read the family file: no such file",
        "families NAME",
        f"{WIDTH} --family none.yaml",
    )
