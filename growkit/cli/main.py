"""The command line: reads flags, calls `run`, prints. The only room that prints.

    door       failures as sentences and exit codes
    options    those that several commands share
    complete   what the Tab key offers
    hub        push and pull
    progress   bytes, rate and time left
    families   the command of that name

Data goes to stdout, everything else to stderr. The law: `growkit --help` imports nothing but click;
everything else is imported inside the commands.
"""

from __future__ import annotations

import gc
import math
import os
import sys
from pathlib import Path
from typing import Any

import click

from growkit import __version__
from growkit.cli.completion import complete_files, offered, recipe_names
from growkit.cli.failures import Door, as_text, failure, print_json
from growkit.cli.families import families
from growkit.cli.hub import pull, push, pushed_text, quiet_downloads
from growkit.cli.options import (
    FILE,
    config_option,
    family_option,
    growth_options,
    json_option,
    quiet_option,
    write_options,
)
from growkit.cli.progress import alive, progress_shown

ENVIRONMENT = """\b
Environment:
  GROWKIT_DEBUG=1                 the traceback of a failure, too
  HF_HUB_DISABLE_PROGRESS_BARS=1  no progress, as with -q
  NO_COLOR=1, TERM=dumb           progress in lines in place of a bar
"""


@click.group(cls=Door, context_settings={"help_option_names": ["-h", "--help"]}, epilog=ENVIRONMENT)
@click.version_option(__version__, prog_name="growkit")
def app() -> None:
    """Grow transformer checkpoints: a larger model that starts from what the small one knows.

    \b
    Examples:
      growkit grow small/ --recipe double_width
      growkit plan small/ --recipe double_width --set noise.snr_db=20
    """


app.add_command(push)
app.add_command(pull)


# -- commands ------------------------------------------------------------------------------------


@app.command()
@growth_options
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="Output folder. [default: SOURCE-RECIPE]"
)
@click.option(
    "--cluster", metavar="ADDRESS", help="Dask scheduler to write with, such as tcp://host:8786."
)
@click.option(
    "--rank", metavar="R", help="Write only the share of rank R (from 0), or auto; then `finish`."
)
@click.option(
    "--world", type=click.IntRange(min=1), metavar="W", help="Number of ranks that share the work."
)
@click.option("--allow-nonfinite", is_flag=True, help="Accept NaN and Inf in the source.")
@click.option("--overwrite", is_flag=True, help="Replace OUT once the new one is complete.")
@click.option("--verify", is_flag=True, help="Run both models afterwards and compare them.")
@click.option("--push-to", metavar="REPO", help="Upload the result to this private model.")
@click.option(
    "--summary",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write what --json prints to this file, too.",
)
@json_option
@quiet_option
def grow(
    source: str,
    recipe: str,
    rank: str | None,
    world: int | None,
    summary: Path | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Write a larger checkpoint that starts from SOURCE.

    SOURCE is a .safetensors file with its config.json, a folder, a sharded index, or a model on the
    Hub, org/name[@revision]. An interrupted run is resumed by the same command; a finished one is
    left as it is.

    \b
    Examples:
      growkit grow small/ --recipe double_depth -o big/
      growkit grow model.safetensors --recipe mine.yaml --dtype bf16 --verify
    """
    from growkit import api
    from growkit.output.user_files import refuse_unwritable
    from growkit.report.as_json import summary_json
    from growkit.report.text import part_text, result_text

    if options["cluster"] and options["workers"] > 1:
        raise click.UsageError("--workers is for this machine: leave it or --cluster out")
    share = api.read_share(rank, world, os.environ)
    if share and (options["cluster"] or options["verify"] or options["push_to"]):
        raise click.UsageError("--rank goes with none of --cluster, --verify and --push-to")
    if summary is not None:
        refuse_unwritable(summary)
    with progress_shown(quiet) as shown, alive(quiet, shown) as progress:
        quiet_downloads(quiet)
        options["progress"] = progress
        if share:
            del options["verify"], options["push_to"]
            writing = write_options(options)
            part = api.grow_share(source, recipe, share, options=writing, **options)
            plan, told = part.plan, part.facts()
        else:
            result = api.grow(source, recipe, **options)
            plan, told = result.plan, summary_json(result.report, **result.facts())
    for hint in plan.hints:
        click.echo(f"warning: {hint}", err=True)
    text = part_text(told) if share else result_text(told)
    if told.get("pushed"):
        text += f"\n{pushed_text(told['pushed'])}"
    _print_result(told, text, summary, as_json, quiet)


@app.command()
@click.argument("out", type=click.Path(path_type=Path))
@json_option
@quiet_option
def finish(out: Path, as_json: bool, quiet: bool) -> None:
    """Check what all ranks have written for OUT, and put it there.

    The last step after `growkit grow … --rank R --world W`. While files are missing nothing
    changes, and the exit code is 1.

    \b
    Examples:
      growkit finish big/
      growkit finish big/ --json
    """
    from growkit import api
    from growkit.report.as_json import summary_json
    from growkit.report.text import result_text

    result = api.finish(out)
    told = summary_json(result.report, **result.facts())
    _print_result(told, result_text(told), None, as_json, quiet)


@app.command(short_help="Show what `grow` would do: sizes, claim, cost.")
@growth_options
@click.option("--tensor", metavar="NAME", help="Show what one output tensor is made of.")
@click.option("--html", type=FILE, help="Write a page that shows the growth, to look at.")
@click.option("--maps", type=FILE, help="Write the maps as matrices that `learned` takes.")
@json_option
def plan(
    source: str,
    recipe: str,
    tensor: str | None,
    html: Path | None,
    maps: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Show what `grow` would do, from headers alone: sizes, claim, cost.

    --maps writes matrices for an outside trainer to start from; null-space noise is left out.

    \b
    Examples:
      growkit plan small/ --recipe bert_large
      growkit plan small/ --recipe bert_large --tensor pooler.dense.weight
    """
    quiet_downloads(quiet=False)
    from growkit import api
    from growkit.report.as_json import plan_json
    from growkit.report.text import plan_text
    from growkit.report.words import explain, maps_json, shape_text, terms_json

    writing = write_options(options)
    planned = api.plan_growth(source, recipe, **options)
    estimate = api.estimate(planned, writing)
    text = plan_text(planned, estimate) if tensor is None else explain(planned, tensor)
    shapes = {} if maps is None else api.save_maps(planned, maps)
    if html is not None:
        api.save_page(planned, html, estimate)
    if not as_json:
        lines = [f"  {name} {shape_text(shape)}" for name, shape in shapes.items()]
        lines = [f"\nmaps in {maps}", *lines] if lines else []
        click.echo("\n".join([text, *lines, *([f"\npage in {html}"] if html else [])]))
        return
    told = plan_json(planned, estimate) | {"maps": maps_json(planned)}
    for formula in planned.formulas:
        told["tensors"][formula.name]["terms"] = formula  # told when it is printed: many are large
    if tensor is not None:
        told = {"name": tensor, **told["tensors"][tensor], "text": text}
    if maps is not None:
        told["maps_file"] = {"path": str(maps), "matrices": shapes}
    told |= {"html_file": str(html)} if html is not None else {}
    print_json(told, terms_json)


@app.command(short_help="Run SMALL and BIG and compare what they compute.")
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
@json_option
def verify(
    checkpoints: tuple[str, ...],
    files: Path | None,
    text: Any,
    max_drift: float | None,
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
    if files is not None and (text or max_drift is not None):
        raise click.UsageError("--files runs no model: leave --text and --max-drift out")
    if max_drift is not None and math.isnan(max_drift):
        raise click.BadParameter("nan is no limit", param_hint="--max-drift")
    click.get_current_context().with_resource(alive(quiet=False))
    quiet_downloads(quiet=False)
    from growkit import api

    if files is not None:
        problems = api.check_files(files)
        told: dict[str, Any] = {"out": str(files), "passed": not problems, "problems": problems}
        words = [*problems] if problems else [f"{files}: every file is as it was written"]
    else:
        from growkit.report.as_json import verification_json
        from growkit.report.text import verification_text

        try:
            lines = text.read() if text else None
        except UnicodeDecodeError:
            raise click.BadParameter("not UTF-8 text", param_hint="--text") from None
        found = api.verify_growth(*checkpoints, text=lines, max_drift=max_drift)
        told = verification_json(found)
        words = [verification_text(told)]
    if not told["passed"]:
        looser = ", or allow more than --max-drift" if max_drift is not None else ""
        told |= failure("verification failed", f"grow again with --overwrite{looser}", 1)
    print_json(told) if as_json else click.echo("\n".join(words))
    if not told["passed"]:
        click.echo(f"error: {told['error']}\nhint: {told['hint']}", err=True)
        click.get_current_context().exit(told["exit_code"])


@app.command()
@click.argument("checkpoint", metavar="CKPT", shell_complete=complete_files)
@config_option
@family_option
@json_option
def inspect(checkpoint: str, config: Path | None, family: Path | None, as_json: bool) -> None:
    """Show the family of CKPT, its axes and sizes, and what can grow.

    \b
    Examples:
      growkit inspect small/
      growkit inspect model.safetensors --config config.json --json
    """
    quiet_downloads(quiet=False)
    from growkit import api
    from growkit.report.text import inspection_text

    told = api.inspect_checkpoint(checkpoint, config=config, family=family)
    print_json(told) if as_json else click.echo(inspection_text(told))


@app.command()
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


app.add_command(families)


def _print_result(
    told: dict[str, Any], text: str, summary: Path | None, as_json: bool, quiet: bool
) -> None:
    """A result as it was asked for, and to the file of --summary."""
    if summary is not None:
        from growkit.output.user_files import write_summary

        write_summary(summary, as_text(told) + "\n")
    for name, count in told.get("nonfinite", {}).items():
        click.echo(f"warning: tensor {name}: {count} values are NaN or infinite", err=True)
    if as_json:
        print_json(told)
    else:
        click.echo(told["out"] if quiet else text)


def main() -> Any:
    """The entry point of the `growkit` command; it ends the process."""
    gc.set_threshold(1_000_000, 20, 100)  # a plan is many small objects, and cycles are few
    for stream in (sys.stdout, sys.stderr):  # a terminal without × gets ? instead of a traceback
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    return app(prog_name="growkit")
