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


@click.group(
    cls=ReportingGroup, context_settings={"help_option_names": ["-h", "--help"]}, epilog=ENVIRONMENT
)
@click.version_option(__version__, prog_name="growkit")
def app() -> None:
    """Grow transformer checkpoints: a larger model that starts from what the small one knows.

    \b
    Examples:
      growkit grow small/ --recipe double_width
      growkit plan small/ --recipe double_width --set noise.snr_db=20
    """


for command in (grow, finish, plan, verify, inspect, recipes, families, push, pull):
    app.add_command(command)


def main() -> Any:
    """The entry point of the `growkit` command; it ends the process."""
    gc.set_threshold(1_000_000, 20, 100)  # a plan is many small objects, and cycles are few
    atexit.register(gc.freeze)  # and at the end nobody looks for them
    for stream in (sys.stdout, sys.stderr):  # a terminal without × gets ? instead of a traceback
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    return app(prog_name="growkit")
