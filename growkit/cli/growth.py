"""The commands that grow: grow, finish, and plan, which shows what grow would do."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from growkit.cli.colour import coloured, say_warning
from growkit.cli.completion import complete_tensor
from growkit.cli.failures import as_text, print_json, typed_words
from growkit.cli.hub import pushed_text, quiet_downloads
from growkit.cli.options import FILE, growth_options, json_option, quiet_option, write_options
from growkit.cli.progress import alive, progress_shown


@click.command()
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
@click.option("--dry-run", is_flag=True, help="Show the plan, as `growkit plan`; write nothing.")
@json_option
@quiet_option
def grow(
    source: str,
    recipe: str,
    rank: str | None,
    world: int | None,
    summary: Path | None,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Write a larger checkpoint that starts from SOURCE.

    SOURCE is a .safetensors file with its config.json, a folder, a sharded index, or a model on the
    Hub, org/name[@revision]; RECIPE is a built-in name or a .yaml file. An interrupted run is
    resumed by the same command; a finished one is left as it is.

    \b
    Examples:
      growkit grow small/ double_depth -o big/
      growkit grow model.safetensors --recipe mine.yaml --dtype bf16 --verify
    """
    from growkit import api
    from growkit.output.user_files import refuse_unwritable
    from growkit.report.text import rank_text, result_text

    if options["cluster"] and options["workers"] > 1:
        raise click.UsageError("--workers is for this machine: leave it or --cluster out")
    one_of_several = api.read_rank(rank, world, os.environ)
    if one_of_several and (options["cluster"] or options["verify"] or options["push_to"]):
        raise click.UsageError("--rank goes with none of --cluster, --verify and --push-to")
    if dry_run:
        for name in ("out", "verify", "push_to"):
            del options[name]
        _show_plan(source, recipe, as_json, options, further=[f"growkit grow {_growth_typed()}"])
        return
    if summary is not None:
        refuse_unwritable(summary)
    result: Any
    with progress_shown(quiet) as shown, alive(quiet, shown) as progress:
        quiet_downloads(quiet)
        options["progress"] = progress
        if one_of_several:
            del options["verify"], options["push_to"]
            writing = write_options(options)
            result = api.grow_rank(source, recipe, one_of_several, options=writing, **options)
        else:
            result = api.grow(source, recipe, **options)
    for hint in result.plan.hints:
        say_warning(hint)
    answer = result.summary()
    text = rank_text(answer) if one_of_several else result_text(answer)
    if answer.get("pushed"):
        text += f"\n{pushed_text(answer['pushed'])}"
    _print_result(answer, text, summary, as_json, quiet)


@click.command()
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
    from growkit.report.text import result_text

    summary = api.finish(out).summary()
    _print_result(summary, result_text(summary), None, as_json, quiet)


@click.command(short_help="Show what `grow` would do: sizes, claim, cost.")
@growth_options
@click.option(
    "--tensor",
    metavar="NAME",
    shell_complete=complete_tensor,
    help="Show what one output tensor is made of.",
)
@click.option("--html", type=FILE, help="Write a page that shows the growth, to look at.")
@click.option("--maps", type=FILE, help="Write the maps as matrices that `learned` takes.")
@click.option("--full", is_flag=True, help="Show all sizes, config, steps, recipe, digest, too.")
@json_option
def plan(
    source: str,
    recipe: str,
    tensor: str | None,
    html: Path | None,
    maps: Path | None,
    full: bool,
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
    more = "growkit plan … --full: config.json, steps, tensors, digest, training, recipe"
    further = [f"growkit grow {_growth_typed()}", *([] if full else [more])]
    _show_plan(
        source, recipe, as_json, options, full=full, further=further,
        tensor=tensor, html=html, maps=maps,
    )  # fmt: skip


def _growth_typed() -> str:
    """The growth as it was typed, for a shell: without the command and what says how to show it."""
    kept, words = list[str](), iter(typed_words()[1:])
    for word in words:
        option, equals, _ = word.partition("=")
        if option in ("--tensor", "--html", "--maps"):
            _ = equals or next(words, "")
        elif option not in ("--full", "--json", "--dry-run"):
            kept.append(word)
    return shlex.join(kept)


def _show_plan(
    source: str,
    recipe: str,
    as_json: bool,
    options: dict[str, Any],
    *,
    further: Sequence[str],
    full: bool = False,
    tensor: str | None = None,
    html: Path | None = None,
    maps: Path | None = None,
) -> None:
    quiet_downloads(quiet=False)
    from growkit import api
    from growkit.report.as_json import plan_json, terms_json
    from growkit.report.text import explain, plan_text
    from growkit.report.words import shape_text

    writing = write_options(options)
    planned = api.plan_growth(source, recipe, **options)
    for note in planned.notes:
        say_warning(note)
    estimate = api.estimate(planned, writing)
    if tensor is None:
        text = plan_text(planned, estimate, further=further, full=full)
    else:
        text = explain(planned, tensor)
    shapes = {} if maps is None else api.save_maps(planned, maps)
    if html is not None:
        api.save_page(planned, html, estimate)
    if not as_json:
        lines = [f"  {name} {shape_text(shape)}" for name, shape in shapes.items()]
        lines = [f"\nmaps in {maps}", *lines] if lines else []
        click.echo("\n".join([coloured(text), *lines, *([f"\npage in {html}"] if html else [])]))
        return
    answer = plan_json(planned, estimate)
    for formula in planned.formulas:  # JSON is made of it when it is printed: many are large
        answer["tensors"][formula.name]["terms"] = formula
    if tensor is not None:
        answer = {"name": tensor, **answer["tensors"][tensor], "text": text}
    if maps is not None:
        answer["maps_file"] = {"path": str(maps), "matrices": shapes}
    answer |= {"html_file": str(html)} if html is not None else {}
    print_json(answer, terms_json)


def _print_result(
    summary: dict[str, Any], text: str, file: Path | None, as_json: bool, quiet: bool
) -> None:
    """A result as it was asked for, and to the file of --summary."""
    if file is not None:
        from growkit.output.user_files import write_summary

        write_summary(file, as_text(summary) + "\n")
    for name, count in summary.get("nonfinite", {}).items():
        say_warning(f"tensor {name}: {count} values are NaN or infinite")
    if as_json:
        print_json(summary)
    else:
        click.echo(summary["out"] if quiet else coloured(text))
