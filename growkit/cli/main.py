"""The `growkit` command: a group of commands, and how its process begins.

The law: `growkit --help` imports nothing but click; all else is imported inside the commands.
"""

from __future__ import annotations

import atexit
import gc
import sys
from typing import Any

import click

from growkit._version import __version__
from growkit.cli.completion import install_completion, offered
from growkit.cli.failures import ReportingGroup
from growkit.cli.families import families
from growkit.cli.growth import finish, grow, plan
from growkit.cli.hub import pull, push
from growkit.cli.look import inspect, recipes, verify

ENVIRONMENT = """\b
Environment:
  GROWKIT_DEBUG=1                 the traceback of a failure, too
  HF_HUB_DISABLE_PROGRESS_BARS=1  no progress, as with -q
  NO_COLOR=1, TERM=dumb           progress in lines in place of a bar
"""


def command_names() -> list[str]:
    """What `growkit help` takes."""
    return [*app.commands]


@click.group(
    cls=ReportingGroup, context_settings={"help_option_names": ["-h", "--help"]}, epilog=ENVIRONMENT
)
@click.version_option(__version__, "-v", "--version", prog_name="growkit")
@click.option(
    "--install-completion", is_flag=True, is_eager=True, expose_value=False,
    callback=install_completion, help="Make the Tab key of your shell complete growkit, and exit.",
)  # fmt: skip
def app() -> None:
    """Grow transformer checkpoints: a larger model that starts from what the small one knows.

    \b
    Examples:
      growkit grow small/ --recipe double_width
      growkit plan small/ --recipe double_width --set noise.snr_db=20
    """


@click.command()
def version() -> None:
    """Show the version, as --version does.

    \b
    Examples:
      growkit version
      growkit version --help
    """
    click.echo(f"growkit, version {__version__}")


@click.command("help", short_help="Show the help of a command.")
@click.argument("name", metavar="[COMMAND]", required=False, shell_complete=offered(command_names))
@click.pass_context
def show_help(ctx: click.Context, name: str | None) -> None:
    """Show the help of COMMAND, or of growkit.

    \b
    Examples:
      growkit help
      growkit help grow
    """
    above = ctx.find_root()
    if name is None:
        click.echo(app.get_help(above))
        return
    with click.Context(above.command, info_name=above.info_name) as group:
        command = app.resolve_command(group, [name])[1]
        assert command is not None  # or resolve_command has failed
        with click.Context(command, info_name=name, parent=group) as context:
            click.echo(command.get_help(context))


for command in (
    grow, finish, plan, verify, inspect, recipes, families, push, pull, version, show_help,
):  # fmt: skip
    app.add_command(command)


def main() -> Any:
    """The entry point of the `growkit` command; it ends the process."""
    gc.set_threshold(1_000_000, 20, 100)  # a plan is many small objects, and cycles are few
    atexit.register(gc.freeze)  # and at the end nobody looks for them
    for stream in (sys.stdout, sys.stderr):  # a terminal without × gets ? instead of a traceback
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    return app(prog_name="growkit")
