"""The walls of the house: who may import whom, open files, print, and name a model."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import growkit
from growkit.families.load import family_names, family_text, read_yaml

PACKAGE = Path(growkit.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
MAP = growkit.__doc__ or ""

# From the ground up: a room imports itself and rooms of earlier rows, not its neighbours in a row.
LEVELS = (
    ("errors",),
    ("byte_sizes", "dtypes", "plain_yaml"),
    ("os_errors",),
    ("algebra",),
    ("checkpoints",),
    ("families",),
    ("ops",),
    ("recipe",),
    ("planning",),
    ("engine", "output", "report"),
    ("runtime",),
    ("hub", "in_memory", "verify"),
    ("api",),
    ("cli",),
    ("__init__", "__main__"),  # doors: they hold nothing, and open on api and cli
)
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}

TORCH_ROOMS = {"engine", "verify"}
FILE_ROOMS = {"checkpoints", "output", "hub"}
YAML_ROOMS = {"families", "recipe"}  # read their own YAML
LINES = 400

TORCH = {"torch", "transformers", "tokenizers", "accelerate"}
READING = {"open", "read_text", "read_bytes", "glob", "rglob", "iterdir", "listdir", "scandir"}
FILING = READING | {
    *("write_text", "write_bytes", "mkdir", "makedirs", "touch", "unlink", "rmdir", "rmtree"),
    *("rename", "renames", "symlink_to", "symlink", "hardlink_to", "link", "chmod", "truncate"),
    *("fdopen", "pread", "preadv", "pwrite", "pwritev", "fsync", "ftruncate", "posix_fallocate"),
    *("mkstemp", "mkdtemp", "NamedTemporaryFile", "TemporaryDirectory", "TemporaryFile"),
    *("copyfile", "copytree", "copy_file_range", "copyfileobj", "safe_open", "save_file"),
    *("load_file", "mmap", "memmap", "fromfile", "tofile"),
}
PRINTING = {"print", "pprint", "echo", "secho", "confirm", "prompt"}

by_file = pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))


def room_of(file: Path) -> str:
    """The room that a file belongs to: its own name, or that of its folder in the package."""
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


@cache
def tree_of(file: Path) -> ast.Module:
    """The file, parsed."""
    return ast.parse(file.read_text(encoding="utf-8"))


def walk(node: ast.AST, *, late: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Every node below `node`, and whether it only runs when a function is called."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            yield from ((below, True) for below in ast.walk(child))
        else:
            later = late or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield child, late
            yield from walk(child, late=later)


def imports(file: Path) -> Iterator[tuple[str, bool]]:
    """(dotted module, late) of every import; `from growkit import room` counts as growkit.room."""
    for node, late in walk(tree_of(file)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name}:{node.lineno}: imports are absolute"
            module = node.module or ""
            yield module, late
            if module == "growkit":
                rooms = {alias.name for alias in node.names} & LEVEL.keys()
                yield from ((f"growkit.{room}", late) for room in rooms)


def calls(file: Path) -> Iterator[tuple[str, int]]:
    """(name, line) of everything that is called: `open` for open(…), Path.open(…), os.open(…)."""
    for node, _ in walk(tree_of(file)):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name):
                yield node.func.id, node.lineno
            elif isinstance(node.func, ast.Attribute):
                yield node.func.attr, node.lineno


def words(file: Path) -> Iterator[tuple[str, int]]:
    """(text, line) of every string in the code that is one word."""
    for node, _ in walk(tree_of(file)):
        match node:
            case ast.Constant(value=str(text)) if len(text.split()) == 1:
                yield text, node.lineno


def run_python(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded(code: str, heavy: set[str]) -> set[str]:
    """Which of the heavy packages a fresh interpreter has loaded after running the code."""
    out = run_python(f"{code}\nimport sys\nprint('\\n', *sys.modules)")
    return heavy & set(out.splitlines()[-1].split())


@by_file
def test_imports_go_down(file: Path) -> None:
    """A room imports only rooms below it, wherever in the file the import stands."""
    room = room_of(file)
    assert room in LEVEL, f"{room} is a new room: say in LEVELS what it stands on"
    for module, _ in imports(file):
        parts = module.split(".")
        if parts[0] == "growkit" and len(parts) > 1 and parts[1] != room:
            below = LEVEL.get(parts[1])
            assert below is not None, f"{room} imports {module}, which is no room"
            assert below < LEVEL[room], f"{room} may not import {module}"


@by_file
def test_torch_starts_at_the_engine(file: Path) -> None:
    """Only a few rooms import torch; the others import those inside functions."""
    room = room_of(file)
    if room in TORCH_ROOMS:
        return
    for module, late in imports(file):
        top, *rest = module.split(".")
        assert top not in TORCH, f"{room} imports {module}"
        assert module != "safetensors.torch", f"{room} imports {module}"
        if top == "growkit" and rest and rest[0] in TORCH_ROOMS:
            assert late, f"{room} imports {module} at the top, and torch with it"


@by_file
def test_files_are_opened_in_the_store(file: Path) -> None:
    """No file is opened, made or removed outside store; family and recipe read their own YAML."""
    room = room_of(file)
    if room in FILE_ROOMS:
        return
    barred = FILING - READING if room in YAML_ROOMS else FILING
    found = [f"{name}(…) in line {line}" for name, line in calls(file) if name in barred]
    assert not found, f"{room} touches files: {found}"


@by_file
def test_only_the_command_line_prints(file: Path) -> None:
    """No print, click.echo or sys.stdout outside cli."""
    if room_of(file) == "cli":
        return
    found = [f"{name}(…) in line {line}" for name, line in calls(file) if name in PRINTING]
    found += [
        f"sys.{node.attr} in line {node.lineno}"
        for node, _ in walk(tree_of(file))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in {"sys.stdout", "sys.stderr"}
    ]
    assert not found, f"{room_of(file)} prints: {found}"


@by_file
def test_no_model_is_named_in_code(file: Path) -> None:
    """Families are YAML: no key, path or class name in the code holds the name of one.

    Sentences may: they cite papers, and nothing can be looked up by them.
    """
    types: set[str] = set()
    for name in family_names():
        types |= {name, *read_yaml(family_text(name), name)["model_type"]}
    named = re.compile(rf"\b(?i:{'|'.join(map(re.escape, sorted(types)))})(?=\b|[A-Z])")
    found = [f"{text!r} in line {line}" for text, line in words(file) if named.search(text)]
    assert not found, f"{room_of(file)} names a model: {found}"


@by_file
def test_files_are_short(file: Path) -> None:
    """A file is one idea, in at most 400 lines."""
    lines = len(file.read_text(encoding="utf-8").splitlines())
    assert lines <= LINES, f"{file.name} has {lines} lines"


def test_the_map_names_every_room() -> None:
    """The docstring of the package lists the rooms that exist, from the ground up."""
    rooms = re.findall(r"^    (\w+) {2,}\w", MAP.partition("The words")[0], flags=re.MULTILINE)
    assert {room_of(file) for file in FILES} - set(LEVELS[-1]) <= set(rooms)
    assert rooms == sorted(rooms, key=LEVEL.__getitem__)


@pytest.mark.parametrize(
    "room", sorted({room_of(f) for f in FILES} - TORCH_ROOMS - {"__init__", "__main__"})
)
def test_importing_a_room_loads_no_torch(room: str) -> None:
    """Planning is numpy and headers: only the rooms of torch load it, or transformers."""
    assert not loaded(f"import growkit.{room}", TORCH)


def test_importing_growkit_is_light() -> None:
    """`import growkit` gives the names and loads nothing behind them; a wrong name is refused."""
    heavy = TORCH | {"numpy", "pydantic", "huggingface_hub", "yaml", "click"}
    assert not loaded("import growkit; assert 'grow' in dir(growkit)", heavy)
    with pytest.raises(AttributeError, match="has no attribute 'groww'"):
        growkit.groww  # noqa: B018 (the look-up is the test)


def test_help_is_light() -> None:
    """`growkit --help` loads click and nothing heavy."""
    heavy = TORCH | {"numpy", "pydantic", "huggingface_hub", "yaml", "tqdm"}
    code = "import sys; sys.argv = ['growkit', '--help']\nfrom growkit.cli import main"
    code += "\ntry: main()\nexcept SystemExit as end: assert not end.code"
    assert not loaded(code, heavy)


def test_help_is_quick() -> None:
    """`growkit --help` takes less than 0.3 s."""

    def seconds() -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "growkit", "--help"], check=True, capture_output=True)
        return time.perf_counter() - start

    assert min(seconds() for _ in range(3)) < 0.3


def test_the_python_api_is_there() -> None:
    """Every public name resolves."""
    assert all(getattr(growkit, name) is not None for name in growkit.__all__)
