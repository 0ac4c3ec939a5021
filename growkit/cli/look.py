"""The commands that look and write nothing: verify, inspect, recipes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click

from growkit.cli.colour import coloured, say_failure, say_warning
from growkit.cli.completion import complete_files, offered, recipe_names
from growkit.cli.failures import failure, print_json
from growkit.cli.hub import quiet_downloads
from growkit.cli.options import config_option, drop_option, family_option, json_option
from growkit.cli.progress import alive


@click.command(short_help="Run SMALL and BIG and compare what they compute.")
@click.argument("checkpoints", nargs=-1, metavar="SMALL BIG", shell_complete=complete_files)
@click.option(
    "--files",
    type=click.Path(path_type=Path),
    metavar="OUT",
    help="Only re-read the files of OUT: headers, sizes, checksums.",
)
@click.option(
    "--text", type=click.File(encoding="utf-8"), help="Compare on the lines of this file, too."
)
@click.option(
    "--max-drift",
    type=click.FloatRange(min=0),
    metavar="X",
    help="Largest relative error; also where nothing or only an approximation is claimed.",
)
@drop_option
@json_option
def verify(
    checkpoints: tuple[str, ...],
    files: Path | None,
    text: Any,
    max_drift: float | None,
    drop: tuple[str, ...],
    as_json: bool,
) -> None:
    """Run SMALL and BIG and compare what they compute with what growkit.json claims.

    Exit code 1 if the outputs differ by more than the claim allows.

    \b
    Examples:
      growkit verify small/ big/
      growkit verify --files big/
    """
    if (files is None) == (not checkpoints) or len(checkpoints) not in (0, 2):
        raise click.UsageError("expected SMALL and BIG, or --files OUT")
    if files is not None and (text or drop or max_drift is not None):
        raise click.UsageError("--files runs no model: leave --text, --drop and --max-drift out")
    if max_drift is not None and math.isnan(max_drift):
        raise click.BadParameter("nan is no limit", param_hint="--max-drift")
    click.get_current_context().with_resource(alive(quiet=False))
    quiet_downloads(quiet=False)
    from growkit import api

    if files is not None:
        problems = api.check_files(files)
        summary: dict[str, Any] = {"out": str(files), "passed": not problems, "problems": problems}
        lines = [*problems] if problems else [f"{files}: every file is as it was written"]
    else:
        from growkit.report.as_json import verification_json
        from growkit.report.text import verification_text

        try:
            given = text.read() if text else None
        except UnicodeDecodeError:
            raise click.BadParameter("not UTF-8 text", param_hint="--text") from None
        verification = api.verify_growth(
            *checkpoints,
            text=given,
            max_drift=max_drift,
            drop=drop,
            announce=None if as_json else partial(click.echo, err=True),
        )
        summary = verification_json(verification)
        lines = [verification_text(summary)]
    if not summary["passed"]:
        summary |= failure("verification failed", _next_action(summary), 1)
    print_json(summary) if as_json else click.echo(coloured("\n".join(lines)))
    if not summary["passed"]:
        say_failure(summary["error"], summary["hint"])
        click.get_current_context().exit(summary["exit_code"])


def _next_action(summary: Mapping[str, Any]) -> str:
    """What to do about what failed; a result that may be good is not to be written over."""
    if summary.get("damaged", True):
        return "grow again with --overwrite"
    if any(not failure.startswith("--max-drift") for failure in summary["failures"]):
        return "its files are as they were written: report it, with recipe.yaml and config.json"
    return "allow more than --max-drift, or grow by another recipe"


@click.command()
@click.argument("checkpoint", metavar="CKPT", shell_complete=complete_files)
@config_option
@family_option
@drop_option
@json_option
def inspect(
    checkpoint: str,
    config: Path | None,
    family: Path | None,
    drop: tuple[str, ...],
    as_json: bool,
) -> None:
    """Show the family of CKPT, its axes and sizes, and what can grow.

    \b
    Examples:
      growkit inspect small/
      growkit inspect model.safetensors --config config.json --json
    """
    quiet_downloads(quiet=False)
    from growkit import api
    from growkit.report.text import inspection_text

    summary = api.inspect_checkpoint(checkpoint, config=config, family=family, drop=drop)
    for note in summary["notes"]:
        say_warning(note)
    print_json(summary) if as_json else click.echo(inspection_text(summary))


@click.command()
@click.argument("name", required=False, shell_complete=offered(recipe_names))
@click.option("--schema", is_flag=True, help="Print the JSON Schema of recipe files, for editors.")
@json_option
def recipes(name: str | None, schema: bool, as_json: bool) -> None:
    """List the built-in recipes, or print one to start your own from.

    \b
    Examples:
      growkit recipes
      growkit recipes bert_base > mine.yaml
    """
    from growkit.recipe import recipe

    if schema:
        print_json(recipe.json_schema())
    elif name is not None and not as_json:
        click.echo(recipe.recipe_text(name), nl=False)
    else:
        chosen = [name] if name is not None else recipe.builtin_recipes()
        loaded = dict(map(recipe.load_recipe, chosen))
        if name is not None:
            print_json(next(iter(loaded.values())).model_dump(mode="json", by_alias=True))
        elif as_json:
            print_json({"recipes": [{"name": n, "about": r.about} for n, r in loaded.items()]})
        else:
            from growkit.report.text import table_text

            click.echo(table_text({n: r.about for n, r in loaded.items()}))
