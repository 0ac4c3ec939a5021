"""The pages of docs/reference that are read off the code: commands, recipes, the Python API.

`make reference` writes them; test_reference.py says when they are stale.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

import growkit
from growkit import errors
from growkit.cli.main import app
from growkit.hub.push import Pushed
from growkit.planning.plan import Plan
from growkit.planning.proof.claim import Claim
from growkit.recipe.recipe import builtin_recipes, load_recipe, recipe_text
from growkit.runtime.execute import Finished, Result
from growkit.verify.compare import Measurement, Verification

FOLDER = Path(__file__).parents[2] / "docs" / "reference"
PAPER = re.compile(r"\b(\d{4}\.\d{5})\b")
OTHER = re.compile(r"\((\w+ \d{4})\)")  # author and year

# -- the command line ----------------------------------------------------------------------------

CLI = """\
# Command line

`growkit COMMAND --help` prints what stands here. Data goes to stdout, everything else to stderr;
`--json` prints one JSON object. No command asks a question. `GROWKIT_DEBUG=1` adds a traceback to
an error.
"""
EXIT_CODES = """\
## Exit codes

| code | meaning |
|---|---|
| 0 | done, or already done: the same result is complete in OUT |
| 1 | the result is not what was claimed, or an unexpected failure |
| 2 | the command line or the recipe is invalid, or an extra that is needed is not installed |
| 3 | a checkpoint is missing, damaged, quantised, not finite or of no known family |
| 4 | not enough disk or memory, or no permission; known before anything is written where possible |
| 5 | Hub or network; `retryable` in `--json` says whether the same may go well later |
| 6 | OUT holds something else, or another growkit is writing it |
| 130, 143 | interrupted by Ctrl-C or SIGTERM; the same command resumes |

A failure prints `error:` with one sentence and `hint:` with the next action to stderr. With
`--json`, stdout holds `error`, `hint` and `exit_code` in one object.
"""


def cli_page() -> str:
    """Every command: how it is called, what it does, its options, its examples."""
    return "\n".join([CLI, *(command_text(*each) for each in commands("growkit", app)), EXIT_CODES])


def commands(path: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    """A command and those below it, in the order of --help, with what is typed to reach them."""
    yield path, command
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            yield from commands(f"{path} {name}", command.commands[name])


def command_text(path: str, command: click.Command) -> str:
    """The section of one command."""
    context = click.Context(command, info_name=path)
    about, _, examples = inspect.cleandoc(command.help or "").partition("\b\nExamples:\n")
    usage = " ".join(command.get_usage(context).removeprefix("Usage: ").split())
    rows = []
    for parameter in command.params:
        record = parameter.get_help_record(context)
        if isinstance(parameter, click.Option) and record:
            names, said = (" ".join(part.split()).replace("|", "\\|") for part in record)
            again = " May be given several times." if parameter.multiple else ""
            rows.append(f"| `{names}` | {said}{again} |\n")
    table = "| option | what it does |\n|---|---|\n" + "".join(rows)
    shown = textwrap.dedent(examples).strip()
    return f"## {path}\n\n{text(usage)}\n{about.strip()}\n\n{table}\n{text(shown)}"


def text(lines: str) -> str:
    """A block of text."""
    return f"```text\n{lines}\n```\n"


# -- recipes -------------------------------------------------------------------------------------

RECIPES = """\
# Recipes

The recipes that come with growkit. `growkit recipes NAME` prints one, to start your own from. What
the steps do is said under [Operators](../operators.md), and what they keep in the table
[there](../operators.md#built-in-recipes).

| recipe | about | family | steps | papers |
|---|---|---|---|---|
"""


def recipes_page() -> str:
    """A table of the built-in recipes, then each with its notes and its text."""
    rows, sections = [], []
    for name in builtin_recipes():
        recipe, whole = load_recipe(name)[1], recipe_text(name)
        notes = re.match(r"(?:#.*\n)*", whole)
        assert notes
        family = recipe.family or "any"
        family = family if isinstance(family, str) else ", ".join(family)
        steps = ", ".join(f"[{step.op}](../operators.md#{step.op})" for step in recipe.steps)
        papers = ", ".join(dict.fromkeys(map(paper, PAPER.findall(notes[0]))))
        papers = papers or ", ".join(OTHER.findall(notes[0]))
        rows.append(f"| [{name}](#{name}) | {recipe.about} | {family} | {steps} | {papers} |\n")
        note = PAPER.sub(lambda found: paper(found[1]), re.sub(r"^# ?", "", notes[0], flags=re.M))
        further = "".join(f" --source {source}=CKPT" for source in recipe.sources[1:])
        sections.append(
            f"\n## {name}\n\n{recipe.about}.\n\n{note}\n"
            f"`growkit grow SOURCE --recipe {name}{further}`\n\n"
            f"```yaml\n{whole[notes.end() :]}```\n"
        )
    return RECIPES + "".join(rows) + "".join(sections)


def paper(number: str) -> str:
    """A link to a paper on arXiv."""
    return f"[{number}](https://arxiv.org/abs/{number})"


# -- Python --------------------------------------------------------------------------------------

PYTHON = """\
# Python

What `import growkit` offers, beside `__version__`. The import loads neither torch nor numpy; they
come with the first call that needs them. Every failure that a user can mend is a `GrowkitError`.
"""
RETURNED = """\
## What comes back

Frozen dataclasses with these fields.
"""
CLASSES = (Plan, Claim, Result, Finished, Verification, Measurement, Pushed)


def python_page() -> str:
    """The public functions, then the classes that they return, then the errors."""
    offered = (getattr(growkit, name) for name in sorted(growkit.__all__))
    parts = [function_text(thing) for thing in offered if inspect.isfunction(thing)]
    parts += [RETURNED, *map(class_text, CLASSES)]
    tree, about = re.findall(r"\n\n(?s:( .*?))\n\n(.*)\Z", errors.__doc__ or "", re.S)[0]
    parts.append(f"## Errors\n\n{text(textwrap.dedent(tree))}\n{about}")
    return "\n".join([PYTHON, *parts])


def function_text(function: Callable[..., Any]) -> str:
    """A function with its signature and what it says of itself."""
    signature = inspect.signature(function)
    lines, keyword = [], False
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword:
            keyword = True
            lines.append("    *,")
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        default = default.replace("'", '"')
        lines.append(f"    {parameter.name}: {parameter.annotation}{default},")
    called = "\n".join([f"{function.__name__}(", *lines, f") -> {signature.return_annotation}"])
    return f"## {function.__name__}\n\n```py\n{called}\n```\n\n{inspect.getdoc(function)}\n"


def class_text(cls: type) -> str:
    """A dataclass: what it says of itself, and its fields as they stand in the code."""
    node = ast.parse(source := textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(node, ast.ClassDef)
    numbers = [part.lineno for part in node.body if isinstance(part, ast.AnnAssign)]
    fields = "\n".join(source.splitlines()[min(numbers) - 1 : max(numbers)])
    head = f"class {cls.__name__}({', '.join(map(ast.unparse, node.bases))}):".replace("()", "")
    return f"### {cls.__name__}\n\n{inspect.getdoc(cls)}\n\n```py\n{head}\n{fields}\n```\n"


# -- all of it -----------------------------------------------------------------------------------

PAGES = {"cli.md": cli_page, "recipes.md": recipes_page, "python.md": python_page}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), encoding="utf-8")
