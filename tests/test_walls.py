"""The walls of the house: who may import whom, open files, print, and name a model."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import growkit
from growkit.families.load import family_names, family_text, read_yaml

PACKAGE = Path(growkit.__file__).parent
FILES = {str(f.relative_to(PACKAGE)): f for f in sorted(PACKAGE.rglob("*.py"))}
MAP = growkit.__doc__ or ""

# From the ground up: a room imports itself and rooms of earlier rows, not its neighbours in a row.
LEVELS = (
    ("_version", "errors"),
    ("byte_sizes", "dtypes", "plain_yaml", "text_width"),
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
YAML_ROOMS = {"plain_yaml": {"open"}, "families": {"glob"}, "recipe": {"glob"}}
ASKS_THE_KERNEL = {"runtime/memory.py"}  # /proc and /sys, which are files of nobody
LINES = 600
HELP_MODULES = 110  # that `growkit --help` imports, of which click and what it needs are 90

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
NETWORK = {"huggingface_hub", "requests", "httpx", "urllib", "http", "socket", "ftplib"}
PRINTING = {"print", "pprint", "echo", "secho", "confirm", "prompt"}


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


def modules_that_load_torch() -> set[str]:
    """Dotted names of the modules that load torch when they are imported."""
    names = {".".join(("growkit", *Path(f).with_suffix("").parts)): f for f in FILES}
    now = {
        name: {module for module, late in imports(FILES[file]) if not late}
        for name, file in names.items()
    }
    loads = {n for n, tops in now.items() if any(m.partition(".")[0] in TORCH for m in tops)}
    loads |= {n for n, tops in now.items() if "safetensors.torch" in tops}
    while more := {n for n, tops in now.items() if tops & loads} - loads:
        loads |= more
    return loads


def test_imports_go_down() -> None:
    """A room imports only rooms below it, wherever in the file the import stands."""
    wrong = []
    for name, file in FILES.items():
        room = room_of(file)
        assert room in LEVEL, f"{room} is a new room: say in LEVELS what it stands on"
        for module, _ in imports(file):
            top, *rest = module.split(".")
            if top == "growkit" and rest and rest[0] != room:
                assert rest[0] in LEVEL, f"{name} imports {module}, which is no room"
                if LEVEL[rest[0]] >= LEVEL[room]:
                    wrong.append(f"{name} imports {module}")
    assert not wrong


def test_torch_starts_at_the_engine() -> None:
    """Only engine and verify import torch, and other rooms import those of its files late."""
    heavy = modules_that_load_torch()
    assert {name.split(".")[1] for name in heavy} == TORCH_ROOMS
    wrong = [
        f"{name} imports {module}"
        for name, file in FILES.items()
        if room_of(file) not in TORCH_ROOMS
        for module, late in imports(file)
        if module.partition(".")[0] in TORCH or (module in heavy and not late)
    ]
    assert not wrong


def test_files_are_opened_where_they_belong() -> None:
    """Files are opened, made or removed in checkpoints, output and hub; YAML by its one reader.

    verify makes a folder for the tiny models that it tries, and nothing in it by itself.
    """
    wrong = []
    for name, file in FILES.items():
        room = room_of(file)
        allowed = READING if name in ASKS_THE_KERNEL else YAML_ROOMS.get(room, set[str]())
        allowed = {"TemporaryDirectory"} if room == "verify" else allowed
        if room not in FILE_ROOMS:
            wrong += [f"{name}:{n} {c}(…)" for c, n in calls(file) if c in FILING - allowed]
    assert not wrong


def test_only_the_command_line_prints() -> None:
    """No print, click.echo or sys.stdout outside cli."""
    wrong = []
    for name, file in FILES.items():
        if room_of(file) != "cli":
            wrong += [f"{name}:{n} {c}(…)" for c, n in calls(file) if c in PRINTING]
            wrong += [
                f"{name}:{node.lineno} {ast.unparse(node)}"
                for node, _ in walk(tree_of(file))
                if isinstance(node, ast.Attribute)
                and ast.unparse(node) in {"sys.stdout", "sys.stderr"}
            ]
    assert not wrong


def test_only_the_hub_uses_a_network() -> None:
    """No other room imports a client of a network."""
    wrong = [
        f"{name} imports {module}"
        for name, file in FILES.items()
        if room_of(file) != "hub"
        for module, _ in imports(file)
        if module.partition(".")[0] in NETWORK
    ]
    assert not wrong


def test_no_model_is_named_in_code() -> None:
    """Families are YAML: no key, path or class name in the code holds the name of one.

    Sentences may: they cite papers, and nothing can be looked up by them.
    """
    types: set[str] = set()
    for family in family_names():
        types |= {family, *read_yaml(family_text(family), family)["model_type"]}
    named = re.compile(rf"\b(?i:{'|'.join(map(re.escape, sorted(types)))})(?=\b|[A-Z])")
    wrong = [
        f"{name}:{line} {text!r}"
        for name, file in FILES.items()
        for text, line in words(file)
        if named.search(text)
    ]
    assert not wrong


def test_long_files_say_why() -> None:
    """A file is one idea; above 600 lines its docstring says why."""
    for name, file in FILES.items():
        if len(file.read_text(encoding="utf-8").splitlines()) > LINES:
            assert "Long because" in (ast.get_docstring(tree_of(file)) or ""), name


def test_the_map_names_every_room() -> None:
    """The docstring of the package lists the folders that exist, from the ground up."""
    rooms = re.findall(r"^    (\w+) {2,}\w", MAP.partition("The words")[0], flags=re.MULTILINE)
    folders = {Path(name).parts[0] for name in FILES if "/" in name}
    assert set(rooms) == folders
    assert rooms == sorted(rooms, key=LEVEL.__getitem__)


def test_importing_a_room_loads_no_torch() -> None:
    """Planning is numpy and headers: a fresh interpreter that has imported it all has no torch."""
    heavy = modules_that_load_torch()
    names = [".".join(("growkit", *Path(f).with_suffix("").parts)) for f in FILES]
    light = [n for n in names if n not in heavy and not n.endswith("__main__")]
    assert len(light) > 100
    assert not loaded("import " + ", ".join(light), TORCH)


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


def test_help_imports_little() -> None:
    """`growkit --help` imports click and what click needs; its seconds are for the benchmarks."""
    code = "import sys; before = {*sys.modules}; sys.argv = ['growkit', '--help']\n"
    code += "from growkit.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    code += "print('\\n', *{*sys.modules} - before)"
    names = run_python(code).splitlines()[-1].split()
    assert len(names) < HELP_MODULES, sorted(names)
    ours = {name for name in names if name.startswith("growkit")}
    assert {name.split(".")[1] for name in ours if "." in name} == {"_version", "cli", "errors"}


def test_the_python_api_is_there() -> None:
    """Every public name resolves."""
    assert all(getattr(growkit, name) is not None for name in growkit.__all__)
