"""`growkit families`: list and show the shipped ones; check or draft a file of your own."""

from __future__ import annotations

from pathlib import Path

import click

from growkit.cli.colour import say_failure
from growkit.cli.completion import complete_family
from growkit.cli.failures import failure, print_json
from growkit.cli.options import FILE, json_option

FAMILY_ERROR = 3  # exit code: the family file does not fit


@click.command(short_help="List the families of models; show, check or draft one.")
@click.argument(
    "words",
    nargs=-1,
    metavar="[NAME | check FILE | infer CONFIG]",
    shell_complete=complete_family,
)
@click.option(
    "--config",
    type=FILE,
    help="config.json of a model that FILE is to describe.",
)
@json_option
def families(words: tuple[str, ...], config: Path | None, as_json: bool) -> None:
    """List the families of models that growkit knows, or print one family file.

    `check FILE --config CONFIG` builds a tiny random model of that config and tries the family file
    on it: tensors, axes, growths. `infer CONFIG` drafts a family file for an architecture without
    one, with a question mark at every line to look at. Both need transformers.

    \b
    Examples:
      growkit families bert > my_family.yaml
      growkit families check my_family.yaml --config small/config.json
    """
    word, rest = (words[0], words[1:]) if words else ("", ())
    if word == "check" and len(rest) == 1 and config is not None:
        _check(Path(rest[0]), config, as_json)
    elif word == "infer" and len(rest) == 1 and config is None:
        _infer(Path(rest[0]), as_json)
    elif rest or config is not None or word in ("check", "infer"):
        raise click.UsageError("expected NAME, check FILE --config CONFIG, or infer CONFIG")
    else:
        _show(word, as_json)


def _show(name: str, as_json: bool) -> None:
    from growkit import api

    if name:
        text = api.family_text(name)
        print_json({"name": name, "text": text}) if as_json else click.echo(text, nl=False)
        return
    listed = api.list_families()
    if as_json:
        print_json({"families": listed})
        return
    from growkit.report.text import table_text

    click.echo(table_text({f["name"]: f["about"] for f in listed}))


def _check(file: Path, config: Path, as_json: bool) -> None:
    from growkit import api

    findings = api.check_family(file, config)
    wrong = ", ".join(f.what for f in findings if not f.passed)
    sentence = f"{file}: does not describe this model: {wrong}"
    failed = failure(sentence, "`growkit families NAME` prints a file that does", FAMILY_ERROR)
    if as_json:
        rows = [{"what": f.what, "passed": f.passed, "words": f.words} for f in findings]
        verdict = {"family": str(file), "passed": not wrong, "findings": rows}
        print_json({**verdict, **failed} if wrong else verdict)
    else:
        from growkit.report.text import wrapped

        for f in findings:
            mark = "ok" if f.passed else "WRONG"
            click.echo("\n".join(wrapped(f"{mark:<6}{f.what}: {f.words}", "", hang=6)))
    if wrong:
        say_failure(failed["error"], failed["hint"])
        click.get_current_context().exit(FAMILY_ERROR)


def _infer(config: Path, as_json: bool) -> None:
    from growkit import api

    text, doubts = api.infer_family(config)
    if as_json:
        print_json({"config": str(config), "doubts": doubts, "text": text})
    else:
        click.echo(text, nl=False)
        click.echo(f"{doubts} lines have a question mark", err=True)
