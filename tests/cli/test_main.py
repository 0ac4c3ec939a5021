"""The command line: flags, streams, exit codes and what they are said with."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file
from support import tiny
from support.processes import pressed
from support.tiny import build, save

from growkit import __version__, api
from growkit.cli import progress as progress_room
from growkit.cli.failures import PIECES, print_json
from growkit.cli.main import app
from growkit.cli.progress import progress_shown
from growkit.errors import CheckpointError, FamilyError, RecipeError
from growkit.families.load import family_names
from growkit.recipe.recipe import builtin_recipes, load_recipe

# every command and its options: a change here is a change of the contract
OPTIONS = {
    "grow": "source recipe_argument --recipe --source --config --set --dtype --seed --family "
    "--drop --max-shard-size --max-memory --workers --out --cluster --rank --world "
    "--allow-nonfinite --overwrite --verify --push-to --summary --dry-run --json --quiet",
    "finish": "out --json --quiet",
    "plan": "source recipe_argument --recipe --source --config --set --dtype --seed --family "
    "--drop --max-shard-size --max-memory --workers --tensor --html --maps --full --json",
    "verify": "checkpoints --files --text --max-drift --drop --json",
    "inspect": "checkpoint --config --family --drop --json",
    "recipes": "name --schema --json",
    "families": "words --config --json",
    "push": "folder repo --public --revision --create-pr --check --commit-message --json --quiet",
    "pull": "repo --out --json --quiet",
    "version": "",
    "help": "name",
}


def growkit(*arguments: object) -> Result:
    """`growkit` with these arguments, in this process."""
    return CliRunner().invoke(app, [str(a) for a in arguments], prog_name="growkit")


def ok(*arguments: object) -> str:
    """What a successful `growkit` prints."""
    result = growkit(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def process(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    """`growkit` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "growkit", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny decoder, saved."""
    folder = tmp_path_factory.mktemp("cli") / "small"
    return save(build("llama", "causal", heads=2, mlp=12, dtype=torch.float32), folder)


@pytest.fixture(scope="module")
def big(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same twice as wide, grown by growkit."""
    out = tmp_path_factory.mktemp("cli") / "big"
    api.grow(small, "double_width", out=out)
    return out


# -- help ----------------------------------------------------------------------------------------


def test_commands_and_options_are_frozen() -> None:
    """Exactly the commands and options of the contract."""
    assert isinstance(app, click.Group)
    found = {
        name: " ".join(max(p.opts, key=len) for p in command.params)
        for name, command in app.commands.items()
    }
    assert found == OPTIONS


@pytest.mark.parametrize("command", ["", *OPTIONS])
def test_help_shows_two_examples(command: str) -> None:
    """Every help has two examples that start with the program's name, and explains each option."""
    text = ok(*command.split(), "--help")
    examples = text.partition("Examples:\n")[2].partition("\n\n")[0].splitlines()
    assert len(examples) == 2
    assert all(line.startswith(f"    growkit {command}".rstrip()) for line in examples)
    assert max(map(len, text.splitlines())) <= 80
    parameters = app.commands[command].params if command else []
    assert all(p.help for p in parameters if isinstance(p, click.Option))


def test_a_plan_says_what_to_type_next(small: Path) -> None:
    """The growth as it was typed, for a shell, without what only shows the plan."""
    line = ("plan", small, "--tensor=lm_head.weight", "double_width", "--set", "width.to={mlp: 2x}")
    shown = ok(*line, "--full")
    assert "next" not in shown  # one tensor
    text = ok(*(word for word in line if "--tensor" not in str(word)))
    (typed,) = re.findall(r"^  growkit grow (.*)", text, re.M)
    assert shlex.split(typed) == [str(small), "double_width", "--set", "width.to={mlp: 2x}"]


def test_version() -> None:
    """The version of the package."""
    for words in ("--version", "-v", "version"):
        assert ok(words) == f"growkit, version {__version__}\n"


def test_help_of_a_command() -> None:
    """`growkit help X` is `growkit X --help`."""
    assert ok("help") == ok("--help") == ok()
    for command in OPTIONS:
        assert ok("help", command) == ok(command, "--help")
    wrong = growkit("help", "gorw")
    assert wrong.exit_code == 2
    assert wrong.stderr.startswith("error: No such command 'gorw'")


def test_dry_run_is_a_plan(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same words but for what to type next, the same JSON, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    line = ("grow", small, "double_depth", "--dry-run", "--verify", "-o", "out")
    plan = ("plan", small, "--recipe", "double_depth")
    next_line = f"  growkit grow {small} double_depth --verify -o out\n"
    assert ok(*line).partition("next\n")[::2] == (ok(*plan).partition("next\n")[0], next_line)
    assert ok(*line, "--json") == ok(*plan, "--json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command",
    [
        "plan SMALL --recipe double_width",
        "plan SMALL --recipe double_width --tensor lm_head.weight --json",
        "plan SMALL --recipe double_width --maps OUT",
        "plan SMALL --recipe double_width --html OUT",
        "inspect SMALL",
        "recipes",
        "recipes bert_base --json",
        "families",
        "families llama",
        "grow SMALL --recipe double_depth -o OUT",
        "verify --files SMALL",
    ],
)
def test_planning_loads_no_torch(command: str, small: Path, tmp_path: Path) -> None:
    """Whatever computes no value runs on numpy and headers alone: planning, and moving bytes."""
    line = command.replace("SMALL", str(small)).replace("OUT", str(tmp_path / "out"))
    code = (
        "import sys\nfrom growkit.cli import app\n"
        f"app({line.split()}, standalone_mode=False)\n"
        "print('\\n', *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers"} & set(done.stdout.splitlines()[-1].split())


# -- grow ----------------------------------------------------------------------------------------


def test_grow_says_what_it_did(small: Path, tmp_path: Path) -> None:
    """Path, sizes and claim on stdout, nothing on stderr; the second time it is already done."""
    out = tmp_path / "big"
    result = growkit("grow", small, "--recipe", "double_width", "-o", out)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith(f"{out}: written in ")
    assert "\n  exact\n" in result.stdout
    assert (out / "growkit.json").is_file()
    assert ok("grow", small, "--recipe", "double_width", "-o", out).startswith(
        f"{out}: already done\n"
    )


def test_grow_quiet_and_default_out(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """-q prints only the path; without -o it is <stem>-<recipe> in the working directory."""
    monkeypatch.chdir(tmp_path)
    out = ok("grow", small, "--recipe", "double_depth", "-q")
    assert out == f"{tmp_path / 'small-double_depth'}\n"
    told = json.loads(ok("grow", small, "--recipe", "double_depth", "-q", "--json"))
    assert told["out"] == out.strip(), "with --json, stdout is one JSON object"


def test_grow_json_and_summary(small: Path, tmp_path: Path) -> None:
    """--json prints one object, and --summary writes the same to a file."""
    summary = tmp_path / "summary.json"
    told = json.loads(
        ok(
            *("grow", small, "--recipe", "double_width", "-o", tmp_path / "big"),
            *("--set", "noise.snr_db=20", "--seed", "3", "--dtype", "bf16"),
            *("--max-shard-size", "10kB", "--json", "--summary", summary),
        )
    )
    assert json.loads(summary.read_text()) == told
    assert told["exactness"]["claim"] == "exact"
    assert told["exactness"]["storage"] == {"dtype": "bfloat16", "claim": "rounded"}
    assert told["already_done"] is False
    assert set(told) == {
        *("out", "already_done", "seconds", "digest", "recipe", "family", "sizes", "parameters"),
        *("exactness", "verify", "hints", "origins", "new_tensors", "zeroed_tensors", "dropped"),
        *("nonfinite", "peak_memory_bytes"),
    }
    assert len([*(tmp_path / "big").glob("model-*.safetensors")]) > 1
    assert "snr_db: 20" in (tmp_path / "big" / "recipe.yaml").read_text()


def test_grow_verify(small: Path, tmp_path: Path) -> None:
    """--verify measures, prints, and keeps the measurement in growkit.json."""
    out = tmp_path / "big"
    text = ok("grow", small, "--recipe", "double_width", "-o", out, "--verify")
    assert "largest relative difference" in text
    assert text.endswith("passed\n")
    record = json.loads((out / "growkit.json").read_text())
    assert record["verify"]["passed"] is True
    assert record["verify"]["measurement"]["error"] < 2e-5


def test_grow_from_a_file_and_two_sources(small: Path, big: Path, tmp_path: Path) -> None:
    """A .safetensors file, its config elsewhere, a recipe of one's own, a second checkpoint."""
    shutil.copy(small / "model.safetensors", tmp_path / "lone.safetensors")
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "sources: [small, large]\n"
        "steps: [{op: width, to: {axes: 2x}}, {op: blend, with: large, alpha: 0.5}]"
    )
    command = ["grow", tmp_path / "lone.safetensors", "--recipe", recipe, "-o", tmp_path / "out"]
    command += ["--config", small / "config.json"]
    assert "needs this checkpoint" in growkit(*command).stderr
    result = growkit(*command, "--source", f"large={big}")
    assert result.exit_code == 0
    assert "approximate: 0.5 of large is blended in" in result.stdout


@pytest.mark.parametrize("classes", [5, "LlamaForCausalLM", [7]])
def test_classes_that_are_none(classes: object, small: Path, tmp_path: Path) -> None:
    """Class names of another kind are the checkpoint's mistake; none at all are not."""
    folder = shutil.copytree(small, tmp_path / "small")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": classes}))
    result = growkit("inspect", folder)
    assert result.exit_code == 3
    assert "architectures: expected a list of names" in result.stderr
    (folder / "config.json").write_text(json.dumps(config | {"architectures": None}))
    assert json.loads(ok("inspect", folder, "--json"))["classes"] == []
    ok("grow", folder, "--recipe", "double_depth", "-o", tmp_path / "out")
    assert "import AutoModel\n" in (tmp_path / "out" / "README.md").read_text()


def test_lints_are_warnings(small: Path, tmp_path: Path) -> None:
    """What a trainer should know goes to stderr."""
    recipe = tmp_path / "plain.yaml"
    recipe.write_text("steps: [{op: width, to: {axes: 2x}}]")
    result = growkit("grow", small, "--recipe", recipe, "-o", tmp_path / "out", "-q")
    assert result.stderr.startswith("warning: hidden: copies are equal and stay equal")
    assert result.stdout == f"{tmp_path / 'out'}\n"


def test_json_is_printed_in_pieces(capsys: pytest.CaptureFixture[str]) -> None:
    """What makes one object is the same as in one piece, and made when its turn comes."""
    numbers = list(range(2 * PIECES))
    print_json({"each": [Path(str(n)) for n in numbers]}, lambda path: {"n": int(path.name)})
    whole = json.dumps({"each": [{"n": n} for n in numbers]}, indent=2)
    assert capsys.readouterr().out == whole + "\n"


# -- failures ------------------------------------------------------------------------------------

W = "--recipe double_width"
# arguments → exit code, first line of stderr, words of the hint
FAILURES = {
    "missing checkpoint": (f"grow NONE {W}", 3, "NONE", ""),
    "unknown recipe": ("grow SMALL --recipe double_witdh", 2, "no built-in recipe", "double_width"),
    "bad override": (f"plan SMALL {W} --set wdith.to=1", 2, "--set wdith.to=1", "width"),
    "bad dtype": (f"plan SMALL {W} --dtype int4", 2, 'dtype: "int4" is not one of', "known"),
    "size without unit": (f"plan SMALL {W} --max-shard-size 5", 2, "with a unit", 'write "5GB"'),
    "bad size": (f"plan SMALL {W} --max-shard-size lots", 2, "lots", ""),
    "shrinking": (f"plan SMALL {W} --set width.to.axes=1/2x", 2, "shrinks", ""),
    "unknown axis": (f"plan SMALL {W} --set width.to.hiden=2x", 2, '"hiden"', "hidden"),
    "unknown tensor": (f"plan SMALL {W} --tensor lm_head.wieght", 2, "no such tensor", "lm_head"),
    "wrong family": ("plan SMALL --recipe bert_base", 3, "made for family", "growkit recipes"),
    "undeclared source": (f"plan SMALL {W} --source b=SMALL", 2, "--source b", "leave --source"),
    "missing family file": (f"plan SMALL {W} --family NONE", 3, "NONE", ""),
    "unknown family": ("families lama", 3, 'family "lama"', "llama"),
    "out is the source": (f"grow SMALL {W} -o SMALL", 2, "SMALL", ""),
    "out in the source": (f"grow SMALL {W} -o SMALL/big", 2, "SMALL", ""),
    "out exists": (f"grow SMALL {W} -o FULL", 6, "FULL", "--overwrite"),
    "no files": ("verify --files NONE", 3, "NONE", ""),
}


@pytest.mark.parametrize("case", FAILURES)
def test_failures(case: str, small: Path, tmp_path: Path) -> None:
    """A sentence and a hint on stderr, the exit code of the table, nothing written."""
    line, code, words, hint = FAILURES[case]
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    names = {"NONE": str(tmp_path / "none"), "SMALL": str(small), "FULL": str(full)}

    def named(text: str) -> str:
        for name, path in names.items():
            text = text.replace(name, path)
        return text

    before = sorted(small.rglob("*"))
    result = growkit(*named(line).split())
    assert result.exit_code == code, result.stderr
    assert result.stdout == ""
    message, *rest = result.stderr.splitlines()
    assert message.startswith("error: ")
    assert named(words) in message
    assert hint in "".join(rest)
    assert sorted(small.rglob("*")) == before
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["full", "notes.txt"]

    told = json.loads(growkit(*named(line).split(), "--json").stdout)
    assert told["exit_code"] == code
    assert f"error: {told['error']}".startswith(message)
    assert hint in told["hint"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--bogus", "No such option '--bogus'"),
        ("gorw", "No such command 'gorw'"),
        ("grow", "Missing argument 'SOURCE'"),
        ("grow x", "Missing argument 'RECIPE' or option '--recipe'"),
        ("grow x y --recipe y", "the recipe is given twice"),
        ("grow x --recipe y --seed -1", "-1 is not in the range"),
        ("grow x --recipe y --source large", "expected NAME=CKPT"),
        ("grow x --recipe y --source a=b --source a=c", "a is given twice"),
        ("verify x", "expected SMALL and BIG, or --files OUT"),
        ("verify x y --files z", "expected SMALL and BIG, or --files OUT"),
        ("verify --files z --max-drift 1", "--files runs no model"),
    ],
)
def test_usage_errors(line: str, words: str) -> None:
    """A wrong command line is exit code 2 with the way to its help, in JSON too if asked for."""
    result = growkit(*line.split())
    assert result.exit_code == 2
    message, hint = result.stderr.splitlines()
    assert message.startswith("error: ")
    assert words in message
    known = [word for word in line.split()[:1] if word in OPTIONS]
    assert hint == f"hint: `{' '.join(['growkit', *known])} --help` shows how it is called"
    told = json.loads(growkit(*line.split(), "--json").stdout)
    assert told == {"error": message[7:], "hint": hint[6:], "exit_code": 2}


def test_no_arguments_is_help() -> None:
    """`growkit` alone shows what there is."""
    result = growkit()
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith("Usage: growkit")


def test_text_that_is_no_text(small: Path, tmp_path: Path) -> None:
    """--text must be UTF-8."""
    (tmp_path / "t.txt").write_bytes(b"\xff\xfe")
    result = growkit("verify", small, small, "--text", tmp_path / "t.txt")
    assert result.exit_code == 2
    assert "not UTF-8 text" in result.stderr


UNEXPECTED = {
    RuntimeError("first\nsecond"): (1, "error: unexpected RuntimeError: first second\n"),
    MemoryError(): (4, "error: not enough memory\nhint: lower --max-memory or the sizes"),
    MemoryError("9 GiB"): (4, "error: not enough memory: 9 GiB\nhint: lower --max-memory or"),
    PermissionError(13, "Permission denied", "x"): (4, "error: PermissionError: "),
    OSError(28, "No space left on device"): (4, "error: OSError: "),
    RecipeError("x: wrong"): (2, "error: x: wrong\nhint: `growkit recipes --schema` prints"),
    FamilyError("x: wrong"): (3, "error: x: wrong\nhint: `growkit families NAME` prints"),
    CheckpointError("x: wrong"): (3, "error: x: wrong\nhint: mend the checkpoint, or get"),
    KeyboardInterrupt(): (130, "error: interrupted\nhint: run the same command again to resume"),
}


@pytest.mark.parametrize("error", UNEXPECTED, ids=lambda e: type(e).__name__)
def test_unexpected_failures(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody foresaw is a sentence with a hint too; a traceback only with GROWKIT_DEBUG=1."""
    code, words = UNEXPECTED[error]

    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(api, "inspect_checkpoint", fail)
    result = growkit("inspect", "x")
    assert result.exit_code == code
    assert result.stderr.startswith(words)
    assert "Traceback" not in result.stderr
    assert "\nhint: " in result.stderr
    if code == 1:
        monkeypatch.setenv("GROWKIT_DEBUG", "1")
        assert "Traceback" in growkit("inspect", "x").stderr


@pytest.mark.alone
@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_signals(number: signal.Signals, code: int, word: str, small: Path, tmp_path: Path) -> None:
    """Ctrl-C and SIGTERM end with their code and the words to resume."""
    os.mkfifo(tmp_path / "slow.yaml")  # whoever reads it waits
    with process("plan", small, "--recipe", tmp_path / "slow.yaml") as child:
        writer = os.open(tmp_path / "slow.yaml", os.O_WRONLY)  # returns when it is being read
        try:
            stdout, stderr = pressed(child, number)
        finally:
            child.kill()  # it would wait for ever
            os.close(writer)
    assert child.returncode == code
    assert stdout == ""
    assert stderr.splitlines()[0] == f"error: {word}"
    assert "run the same command again to resume" in stderr


# -- plan, inspect, verify -----------------------------------------------------------------------


def test_plan(small: Path) -> None:
    """Sizes, claim, cost and resolved recipe; the same as JSON."""
    text = ok("plan", small, "--recipe", "double_width", "--full")
    assert "  hidden                         8              16   × 2" in text
    assert "  - op: noise" in text
    told = json.loads(ok("plan", small, "--recipe", "double_width", "--json"))
    assert told["sizes"]["after"]["hidden"] == 16
    assert told["digest"] in text
    assert told["shards"] == ["model.safetensors"]
    assert told["config"]["hidden_size"] == [8, 16]
    assert told["exactness"]["claim"] == "exact"
    assert [step["claim"] for step in told["exactness"]["steps"]] == ["exact", "exact"]
    assert told["maps"]["mlp"] == {
        "old": 12, "new": 24, "write": "tile ×2", "read": "tile ×2 (coef 0.5)"
    }  # fmt: skip
    first, noise = told["tensors"]["model.layers.0.mlp.down_proj.weight"]["terms"]
    assert first == {
        "source": "small: model.layers.0.mlp.down_proj.weight (8, 12) F32", "scale": 1.0,
        "dims": [
            {"axes": "hidden", "role": "write", "map": "tile ×2"},
            {"axes": "mlp", "role": "read", "map": "tile ×2 (coef 0.5)"},
        ],
    }  # fmt: skip
    assert noise["source"] == "noise of step 1, seed 0, 10 dB"


def test_plan_maps(small: Path, tmp_path: Path) -> None:
    """The file of maps is written, and named with what is in it; nothing is overwritten."""
    line = ("plan", small, "--recipe", "double_width", "--maps", tmp_path / "maps.safetensors")
    text = ok(*line)
    assert text.startswith("double_width: llama")
    assert f"\nmaps in {tmp_path}/maps.safetensors\n" in text
    assert "\n  mlp.write (24, 12)\n" in text
    told = json.loads(ok(*line, "--json"))["maps_file"]
    assert told["path"] == str(tmp_path / "maps.safetensors")
    assert told["matrices"]["mlp.read"] == [24, 12]
    result = growkit(*line, "--set", "width.to.axes=3x")
    assert result.exit_code == 6
    assert "is there already, with something else in it" in result.stderr


def test_plan_tensor(small: Path) -> None:
    """One tensor's formula, in words and as JSON."""
    name = "model.layers.0.mlp.down_proj.weight"
    text = ok("plan", small, "--recipe", "double_width", "--tensor", name)
    assert text.startswith(name)
    assert "dim 0: hidden, write: tile ×2" in text
    told = json.loads(ok("plan", small, "--recipe", "double_width", "--tensor", name, "--json"))
    assert (told["name"], told["shape"], told["text"] + "\n") == (name, [16, 24], text)


def test_inspect(small: Path) -> None:
    """Family, axes and sizes, what can grow; the same as JSON."""
    text = ok("inspect", small)
    assert "family      llama" in text
    assert "hidden                 8  yes" in text
    assert "vocab                 29  yes, by the operator resize" in text
    told = json.loads(ok("inspect", small, "--json"))
    assert told["axes"]["mlp"]["size"] == 12
    assert told["classes"] == ["LlamaForCausalLM"]


def test_inspect_couples_what_one_key_says(tmp_path: Path) -> None:
    """Each tower of CLIP has a width of its own, which only its own heads share."""
    folder = tiny.Saved.at(tmp_path / "clip", "clip/both").folder
    told = json.loads(ok("inspect", folder, "--json"))["axes"]
    assert told["text.hidden"]["why"] == "together with text.head_dim and text.heads"
    assert told["vision.heads"]["why"] == "together with vision.head_dim and vision.hidden"
    assert told["vision.mlp"]["why"] == ""


def test_verify(small: Path, big: Path) -> None:
    """The claim holds: exit code 0, on stdout what was measured."""
    assert ok("verify", small, big).endswith("passed\n")
    told = json.loads(ok("verify", small, big, "--json"))
    assert told["passed"] is True
    assert told["claim"] == "exact"
    assert ok("verify", "--files", big) == f"{big}: every file is as it was written\n"
    assert json.loads(ok("verify", "--files", big, "--json"))["problems"] == []


def test_verify_fails(small: Path, big: Path, tmp_path: Path) -> None:
    """One altered row is found, by the models and by the files: exit code 1."""
    out = shutil.copytree(big, tmp_path / "altered")
    tensors = load_file(out / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][3] += 0.5
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    result = growkit("verify", small, out)
    assert result.exit_code == 1
    assert "FAILED" in result.stdout
    need, *lines = result.stderr.splitlines()
    assert re.fullmatch("verify needs about 40. MB of memory: a model at a time, in float64", need)
    assert lines == ["error: verification failed", "hint: grow again with --overwrite"]
    assert growkit("verify", "--files", out).exit_code == 1
    told = growkit("verify", small, out, "--json")
    assert told.exit_code == 1
    assert json.loads(told.stdout)["failures"]


def test_verify_advises_nothing_that_destroys(small: Path, big: Path, tmp_path: Path) -> None:
    """Another SMALL is told from growkit.json, and a result that may be good is left alone."""
    other = save(build("llama", "causal", seed=5, heads=2, mlp=12), tmp_path / "other")
    result = growkit("verify", other, big)
    assert result.exit_code == 3
    assert f"other: not what {big} was grown from: model.safetensors holds other" in result.stderr
    assert "--overwrite" not in result.stderr
    copy = shutil.copytree(small, tmp_path / "copy")
    os.utime(copy / "model.safetensors", ns=(1, 1))
    result = growkit("verify", copy, big, "--max-drift", "0")
    assert (result.exit_code, "--overwrite" in result.stderr) == (1, False)
    assert "hint: allow more than --max-drift" in result.stderr


def test_verify_that_does_not_fit(small: Path, big: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it needs is said before it starts, and refused where there is less: exit code 4."""
    monkeypatch.setattr("growkit.verify.memory.available_bytes", lambda: 300_000_000)
    result = growkit("verify", small, big)
    assert result.exit_code == 4
    assert re.search(r"verify: needs about 40\d MB of memory, 300 MB free", result.stderr)


def test_max_drift(small: Path, big: Path) -> None:
    """--max-drift is a limit of one's own."""
    result = growkit("verify", small, big, "--max-drift", "1e-15")
    assert result.exit_code == 1
    assert "--max-drift: logits differ by" in result.stdout
    assert result.stderr.endswith("hint: allow more than --max-drift, or grow by another recipe\n")
    assert "nan is no limit" in growkit("verify", small, big, "--max-drift", "nan").stderr


# -- recipes and families ------------------------------------------------------------------------


def test_recipes_lists_and_shows(tmp_path: Path) -> None:
    """A line for each; one is printed as written, and forks into a file that loads."""
    lines = ok("recipes").splitlines()
    assert [x.split()[0] for x in lines if x[0] != " "] == list(builtin_recipes())
    assert {r["name"] for r in json.loads(ok("recipes", "--json"))["recipes"]} == {
        *builtin_recipes()
    }
    mine = tmp_path / "mine.yaml"
    mine.write_text(ok("recipes", "bert_base"), encoding="utf-8")
    assert load_recipe(str(mine))[1] == load_recipe("bert_base")[1]
    assert json.loads(ok("recipes", "bert_base", "--json"))["family"] == "bert"


def test_recipes_schema() -> None:
    """The JSON Schema for editors."""
    assert "steps" in json.loads(ok("recipes", "--schema"))["required"]


def test_families_lists_and_shows() -> None:
    """A line for each family; one is printed as its file is."""
    lines = ok("families").splitlines()
    assert [x.split()[0] for x in lines if x[0] != " "] == family_names()
    known = json.loads(ok("families", "--json"))["families"]
    assert "qwen2" in next(f for f in known if f["name"] == "llama")["model_types"]
    assert ok("families", "llama") == api.family_text("llama")
    assert json.loads(ok("families", "llama", "--json"))["text"] == api.family_text("llama")


# -- streams -------------------------------------------------------------------------------------


def test_narrow_encodings(small: Path) -> None:
    """A terminal that lacks a sign gets a question mark, not a traceback."""
    options = {"env": os.environ | {"PYTHONIOENCODING": "latin-1"}, "encoding": "latin-1"}
    with process("plan", small, "--recipe", "double_width", "--full", **options) as child:
        stdout, stderr = child.communicate(timeout=300)
    assert (child.returncode, stderr) == (0, "")
    assert "hidden_size: 8 ? 16" in stdout
    assert "× 2" in stdout


def test_closed_pipe() -> None:
    """`growkit recipes --schema | head -1` is no failure to talk about."""
    with process("recipes", "--schema") as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        assert "Traceback" not in child.stderr.read()


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Progress is wanted: the tests run with it switched off."""
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS")
    return monkeypatch


def test_progress_lines(bars: pytest.MonkeyPatch, small: Path, tmp_path: Path) -> None:
    """Without a terminal: lines on stderr with bytes and rate; none with -q or if switched off."""
    bars.setattr(progress_room, "SECONDS", 0.0)
    command = ["grow", small, "--recipe", "double_width", "-o"]
    lines = growkit(*command, tmp_path / "a").stderr.splitlines()
    assert lines
    assert all(line.startswith("growing: ") and " of " in line for line in lines)
    assert growkit(*command, tmp_path / "b", "-q").stderr == ""
    bars.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    assert growkit(*command, tmp_path / "c").stderr == ""


def test_progress_rate_leaves_out_what_was_there(
    bars: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rate counts the bytes of this run, not those that an earlier one has left."""
    bars.setattr(progress_room, "SECONDS", 0.0)
    clock = iter([0.0, 1.0, 3.0])
    bars.setattr(time, "monotonic", lambda: next(clock))
    with progress_shown(quiet=False) as show:
        assert show is not None
        show(1_000_000, 2_000_000)
        show(1_500_000, 2_000_000)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "growing: 1.5 MB of 2 MB, 250 kB/s, 2 s left"


@pytest.mark.alone
def test_a_log_sees_that_it_lives(
    bars: pytest.MonkeyPatch, small: Path, big: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What takes long and counts no bytes says so now and then, and only then."""
    bars.setattr(progress_room, "SILENCE", 0.1)
    with progress_room.alive(quiet=False) as moved:
        assert moved is not None
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            moved(0, 1)
        assert capsys.readouterr().err == ""
        time.sleep(0.4)
    said = capsys.readouterr().err.splitlines()
    assert said
    assert all(line.startswith("working: ") and line.endswith(" s") for line in said)
    time.sleep(0.1)
    assert capsys.readouterr().err == "", "it goes on after the end"
    with progress_room.alive(quiet=True):
        time.sleep(0.2)
    assert capsys.readouterr().err == ""

    bars.setattr(progress_room, "SILENCE", 0.001)
    assert "working: " in growkit("verify", small, big).stderr


@pytest.mark.alone
def test_progress_bar(bars: pytest.MonkeyPatch) -> None:
    """On a terminal: one line that is redrawn, and nothing left behind."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    bars.setattr(sys, "stderr", terminal)
    with progress_shown(quiet=False) as show:
        assert show is not None
        show(1_000_000, 4_000_000)
        time.sleep(0.3)
        show(3_000_000, 4_000_000)
    text = terminal.getvalue()
    assert "3.00M/4.00M" in text
    assert "\n" not in text
