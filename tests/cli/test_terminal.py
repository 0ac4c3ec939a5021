"""At a terminal: what is drawn and what is not, 80 columns, Tab, tracebacks, examples that run.

Terminals are real: a process on a pseudo-terminal of 80 columns.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import click
import pytest
import torch
from click.shell_completion import BashComplete
from click.testing import CliRunner
from support import tiny, zoo
from support.hub_client import user
from support.hub_server import Hub
from support.tiny import build, save

from growkit import api
from growkit.cli.completion import SHELLS
from growkit.cli.main import app
from growkit.errors import GrowkitError
from growkit.families.load import family_names, family_text, read_yaml
from growkit.recipe.recipe import builtin_recipes
from growkit.report.text import explain, inspection_text, plan_text

COLUMNS = 80
SWITCHES = ("HF_HUB_DISABLE_PROGRESS_BARS", "NO_COLOR", "COLUMNS", "LINES", "GROWKIT_DEBUG")
PLAIN = {k: v for k, v in os.environ.items() if k not in SWITCHES} | {
    "TERM": "xterm",
    "LC_ALL": "C.UTF-8",
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
}


class Terminal:
    """A program on a pseudo-terminal, and what it has written there so far."""

    def __init__(self, command: list[str], env: Mapping[str, str], columns: int) -> None:
        self.text = ""
        self._end, child = pty.openpty()
        fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.process = subprocess.Popen(
            command, stdin=child, stdout=child, stderr=child, env=env, start_new_session=True
        )
        os.close(child)

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self._end, keys.encode())

    def read(self, until: str = "", seconds: float = 120.0) -> str:
        """Everything written until these words come, or until the program ends."""
        stop = time.monotonic() + seconds
        while not (until and until in self.text):
            ready, _, _ = select.select([self._end], [], [], max(0.0, stop - time.monotonic()))
            assert ready, f"waited for {until!r} and read {self.text!r}"
            try:
                self.text += os.read(self._end, 65536).decode()
            except OSError:  # the other end is closed
                assert not until, f"waited for {until!r} and read {self.text!r}"
                break
        return self.text

    def close(self) -> None:
        """End the program if it has not ended."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self._end)


@contextmanager
def terminal(*command: object, columns: int = COLUMNS, **extra: str) -> Iterator[Terminal]:
    """A terminal of 80 columns with a program on it."""
    window = Terminal([*map(str, command)], PLAIN | extra, columns)
    try:
        yield window
    finally:
        window.close()


def on_terminal(*arguments: object, **extra: str) -> str:
    """What `growkit` writes on a terminal until it has ended well."""
    with terminal(sys.executable, "-m", "growkit", *arguments, **extra) as window:
        text = window.read()
        assert window.process.wait(60) == 0, text
    return text.replace("\r\n", "\n")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder whose growth takes long enough for a bar."""
    sizes = {"heads": 4, "head_dim": 64, "mlp": 1024, "layers": 8}
    model = build("llama", "causal", dtype=torch.float32, **sizes)
    return save(model, tmp_path_factory.mktemp("terminal") / "small")


# -- progress ------------------------------------------------------------------------------------


@pytest.mark.alone
def test_bar(small: Path, tmp_path: Path) -> None:
    """Bytes, rate and time left in one line, which is gone at the end; no colour."""
    text = on_terminal("grow", small, "--recipe", "double_width", "-o", tmp_path / "out")
    bar, _, result = text.rpartition("\r")
    drawn = [line for line in bar.split("\r") if line.strip()]
    assert drawn
    for line in drawn:
        assert re.match(r"growing: +\d+%\|.*\| [\d.]+[kM]?/134M \[00:\d\d<[\d:?]+, .*B/s\]$", line)
        assert len(line) <= COLUMNS
    assert "\n" not in bar
    assert "\x1b" not in bar
    assert result.startswith(f"{tmp_path / 'out'}: written in ")


@pytest.mark.alone
@pytest.mark.parametrize(
    ("flags", "extra"),
    [
        ("-q", {}),
        ("", {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}),
        ("", {"NO_COLOR": "1"}),
        ("", {"TERM": "dumb"}),
    ],
    ids=["-q", "HF_HUB_DISABLE_PROGRESS_BARS", "NO_COLOR", "TERM=dumb"],
)
def test_no_bar(flags: str, extra: dict[str, str], small: Path, tmp_path: Path) -> None:
    """A terminal on which nothing is drawn: plain lines, or none."""
    line = ("grow", small, "--recipe", "double_width", "-o", tmp_path / "out", *flags.split())
    text = on_terminal(*line, **extra)
    told = [row for row in text.splitlines() if not row.startswith(("growing: ", "working: "))]
    assert told[0].startswith(str(tmp_path / "out"))
    assert "\r" not in text
    assert "%|" not in text
    if extra.keys() <= {"HF_HUB_DISABLE_PROGRESS_BARS"}:
        assert told == text.splitlines()


@pytest.mark.alone
def test_interrupted_bar(small: Path, tmp_path: Path) -> None:
    """After Ctrl-C the error stands on a line of its own."""
    line = ("grow", small, "--recipe", "double_width", "-o", tmp_path / "out")
    command = [sys.executable, "-m", "growkit", *line]
    with terminal(*command, "--set", "width.to.axes=4x") as window:
        window.read("growing: ")
        window.process.send_signal(signal.SIGTERM)
        text = window.read()
        assert window.process.wait(60) == 143
    text = click.unstyle(text)
    assert re.search(r"\r *\rerror: terminated\r\nhint: run the same command", text), text


# -- 80 columns ----------------------------------------------------------------------------------


def too_wide(text: str) -> list[str]:
    """Lines of more than 80 columns that could have been broken: those of several words."""
    return [x for x in text.splitlines() if len(x) > COLUMNS and len(x.split()) > 1]


@pytest.mark.parametrize("command", ["recipes", "families", "--help", "grow --help"])
def test_lists_on_a_terminal(command: str) -> None:
    """Names and what they are, in 80 columns, the same as in a pipe; nothing is cut off."""
    text = on_terminal(*command.split())
    assert max(map(len, text.splitlines())) <= COLUMNS
    assert not re.search(r"\w\.\.\.$", text, flags=re.MULTILINE)
    if "help" not in command:
        assert text == CliRunner().invoke(app, command.split()).stdout


def in_columns(name: str, folder: Path, recipes: tuple[str, ...]) -> None:
    """What `inspect` and `plan` show of a model keeps to 80 columns, for recipes that fit it."""
    small = tiny.Saved.at(folder / "small", name).folder
    assert too_wide(inspection_text(api.inspect_checkpoint(small))) == []
    estimate = api.Estimate(10**12, 10**12, 10**9, ("a",) * 100, "d" * 64)
    for recipe in recipes:
        with suppress(GrowkitError):
            plan = api.plan_growth(small, recipe)
            assert too_wide(plan_text(plan, estimate)) == []
            assert too_wide(plan_text(plan, estimate, full=True)) == []
            longest = max(plan.formulas, key=lambda f: (len(f.terms), len(f.name)))
            assert too_wide(explain(plan, longest.name)) == []


DOUBLED = ("double_width", "double_depth")


@pytest.mark.parametrize("name", [names[0] for names in zoo.families().values() if names])
def test_families_in_80_columns(name: str, tmp_path: Path) -> None:
    """A model of each family."""
    in_columns(name, tmp_path, DOUBLED)


@pytest.mark.parametrize("kind", ["family", "axes", "config", "modules"])
def test_the_longest_names_in_80_columns(kind: str, tmp_path: Path) -> None:
    """All models of the family with the longest name of a kind, the first one with each recipe.

    Sentences are broken into lines, whatever is in them; a line that is not is as wide as its name.
    """
    models = sorted(zoo.models())
    names: dict[str, list[str]] = {}
    for family in {model.partition("/")[0]: None for model in models}:
        data = {"family": [family]} if kind == "family" else read_yaml(family_text(family), family)
        names[family] = [*data.get(kind, ())]
    widest = max(names, key=lambda family: max(map(len, names[family]), default=0))
    chosen = [model for model in models if model.partition("/")[0] == widest]
    for number, model in enumerate(chosen):
        in_columns(model, tmp_path / str(number), DOUBLED if number else tuple(builtin_recipes()))


# -- Tab -----------------------------------------------------------------------------------------


def completions(line: str) -> list[tuple[str, str]]:
    """What is offered for the last word of a line: (type, value)."""
    *arguments, incomplete = line.split(" ")
    items = BashComplete(app, {}, "growkit", "_GROWKIT_COMPLETE").get_completions(
        arguments, incomplete
    )
    return [(item.type, item.value) for item in items]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("gr", [("plain", "grow")]),
        ("grow small --rec", [("plain", "--recipe")]),
        ("grow small --recipe hyperclone_", [
            ("file", "hyperclone_"), ("plain", "hyperclone_diagonal"), ("plain", "hyperclone_noisy")
        ]),
        ("grow small --recipe mi", [("file", "mi"), ("plain", "midas")]),
        ("plan small mi", [("file", "mi"), ("plain", "midas")]),
        ("help rec", [("plain", "recipes")]),
        ("grow small --dtype bf", [("plain", "bfloat16"), ("plain", "bf16")]),
        ("grow sma", [("file", "sma")]),
        ("plan sma", [("file", "sma")]),
        ("inspect sma", [("file", "sma")]),
        ("verify small bi", [("file", "bi")]),
        ("inspect small --family my", [("file", "my")]),
        ("recipes solar", [("plain", "solar")]),
        ("families smol", [("plain", "smollm3")]),
        ("families ch", [("plain", "check")]),
        ("families check my", [("file", "my")]),
        ("push bi", [("file", "bi")]),
        ("grow small vcycle_up --source la", [("plain", "large=")]),
        ("plan small bert_base --set noise.sn", [("plain", "noise.snr_db=")]),
        ("plan small bert_base --set width.to.hi", [("plain", "width.to.hidden=")]),
        ("plan small nonsense --set se", [("plain", "seed=")]),
    ],
)  # fmt: skip
def test_completions(line: str, expected: list[tuple[str, str]]) -> None:
    """Commands, options, recipes, their keys and sources, and files where files will do."""
    assert completions(line) == expected


def test_all_names_are_offered() -> None:
    """Every recipe and every family."""
    assert [v for _, v in completions("recipes ")] == [*builtin_recipes()]
    assert [v for _, v in completions("families ")] == [*family_names(), "check", "infer"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_script(shell: str) -> None:
    """What the line for a shell evaluates is a script of that shell, and nothing else."""
    done = subprocess.run(
        [sys.executable, "-m", "growkit"],
        env=PLAIN | {"_GROWKIT_COMPLETE": f"{shell}_source"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"_GROWKIT_COMPLETE={shell}_complete" in done.stdout
    assert done.stderr == ""


def test_tensors_are_offered(small: Path) -> None:
    """By the names that they will have in the grown model; none for what cannot be planned."""
    assert completions(f"plan {small} double_depth --tensor model.layers.3.mlp.up") == [
        ("plain", "model.layers.3.mlp.up_proj.weight")
    ]
    assert completions("plan nowhere double_depth --tensor mo") == []


def test_tab_in_bash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Switched on once, twice asked; then a recipe by its first letters and Tab."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SHELL", "/usr/bin/bash")
    rc = tmp_path / ".bashrc"
    rc.write_text("PS1='ready> '", encoding="utf-8")  # without an end of line
    for _ in range(2):
        done = CliRunner().invoke(app, ["--install-completion"])
        assert done.exit_code == 0, done.output
        assert str(rc) in done.output
    assert rc.read_text(encoding="utf-8").splitlines() == ["PS1='ready> '", SHELLS["bash"][1]]
    with terminal("bash", "--rcfile", str(rc), "--noprofile", "-i") as window:
        window.type("echo $((6 * 7))\n")
        window.read("\r42\r\n")
        window.type("growkit plan small --recipe hyperclone_d\t")
        assert "hyperclone_diagonal" in window.read("hyperclone_diagonal", 60.0)


def test_a_shell_without_completion(monkeypatch: pytest.MonkeyPatch) -> None:
    """Is named, with those that there are."""
    monkeypatch.setenv("SHELL", "/bin/ksh")
    done = CliRunner().invoke(app, ["--install-completion"])
    assert (done.exit_code, "bash, zsh, fish" in done.output) == (2, True)


# -- colours and columns -------------------------------------------------------------------------


GREEN, RED = "\x1b[32m\x1b[1mexact\x1b[0m", "\x1b[31m\x1b[1merror:\x1b[0m"


@pytest.mark.parametrize(
    ("extra", "painted"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_colours(extra: dict[str, str], painted: bool, small: Path) -> None:
    """A terminal that wants them has the claim in colour, and what went wrong; others not one."""
    growkit = (sys.executable, "-m", "growkit")
    with terminal(*growkit, "plan", small, "double_depth", **extra) as window:
        assert (GREEN in window.read()) is painted
    with terminal(*growkit, "plan", "nowhere", "double_depth", **extra) as window:
        assert (RED in window.read()) is painted
    assert "\x1b" not in CliRunner().invoke(app, ["plan", str(small), "double_depth"]).output


@pytest.mark.parametrize(("columns", "widest"), [(60, 80), (100, 100), (200, 120)])
def test_text_is_as_wide_as_the_terminal(columns: int, widest: int) -> None:
    """Up to 120 columns, and 80 on narrower ones."""
    with terminal(sys.executable, "-m", "growkit", "recipes", columns=columns) as window:
        lines = window.read().replace("\r\n", "\n").splitlines()
    assert widest - 20 < max(map(len, lines)) <= widest


# -- failures ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "code", "kind"),
    [
        ("--bogus", 2, "NoSuchOption"),
        ("gorw", 2, "No such command"),
        ("grow", 2, "MissingParameter"),
        ("grow x --recipe nonsense", 2, "RecipeError"),
        ("plan none --recipe double_width", 3, "CheckpointError"),
        ("families lama", 3, "FamilyError"),
        ("verify a b --max-drift nan", 2, "BadParameter"),
    ],
)
def test_traceback_of_failures(
    line: str, code: int, kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """GROWKIT_DEBUG=1 shows where it happened, above the same sentence and exit code."""
    monkeypatch.chdir(tmp_path)
    plain = CliRunner().invoke(app, line.split(), prog_name="growkit")
    monkeypatch.setenv("GROWKIT_DEBUG", "1")
    told = CliRunner().invoke(app, line.split(), prog_name="growkit")
    assert (plain.exit_code, told.exit_code) == (code, code)
    assert told.stderr.startswith("Traceback (most recent call last)")
    assert told.stderr.endswith(plain.stderr)
    assert kind in told.stderr
    assert told.stdout == plain.stdout


# -- examples ------------------------------------------------------------------------------------


HUB = "push pull"  # commands that come last, in this order


def examples(command: click.Command) -> list[str]:
    """The command lines that a help shows."""
    text = (command.help or "").partition("Examples:\n")[2]
    return [line.strip() for line in text.splitlines() if line.strip()]


def test_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every line that a help shows, in one folder that has what they name, and on a Hub."""
    assert isinstance(app, click.Group)
    commands = sorted(app.commands.values(), key=lambda c: HUB.find(c.name or ""))
    lines = [line for c in (app, *commands) for line in examples(c)]
    assert len(lines) == 2 * (len(app.commands) + 1)
    with Hub(tmp_path / "server") as hub:
        me = user(hub, tmp_path)
        monkeypatch.chdir(me.folder)
        sizes = {"heads": 2, "head_dim": 4, "mlp": 16, "layers": 1}
        made = save(build("bert", "base", dtype=torch.float32, **sizes), Path("small"))
        for name in ("config.json", "model.safetensors"):
            shutil.copy(made / name, name)
        Path("mine.yaml").write_text("steps: [{op: depth, to: {layers: 2x}}]", encoding="utf-8")
        hub.add("org/small", made)
        for line in lines:
            ran = words_of(line)
            if "finish" in ran:  # after the ranks
                shutil.rmtree("big")
                ranks = "grow small --recipe double_depth -o big --rank 0 --world 1"
                assert CliRunner().invoke(app, ranks.split()).exit_code == 0
            if ran[0] == "pull":
                shutil.rmtree("big", ignore_errors=True)
            if ran[0] in HUB.split():
                me.ok(*ran)
                continue
            into = ran[ran.index(">") + 1] if ">" in ran else ""
            done = CliRunner().invoke(app, ran[: ran.index(">")] if into else ran)
            assert done.exit_code == 0, f"{line}\n{done.output}"
            if into:
                Path(into).write_text(done.stdout, encoding="utf-8")


def words_of(line: str) -> list[str]:
    """The arguments of a command line that begins with growkit."""
    program, *arguments = shlex.split(line)
    assert program == "growkit"
    return arguments
