"""The commands that move models to and from the Hugging Face Hub."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from growkit.cli.failures import print_json
from growkit.cli.options import json_option
from growkit.cli.progress import alive, bars_wanted


def quiet_downloads(quiet: bool) -> None:
    """Keep huggingface_hub's bars off where ours are; it reads this when it is imported."""
    if quiet or not bars_wanted():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def pushed_text(pushed: Mapping[str, Any]) -> str:
    """What a push has done, from its JSON."""
    from growkit.byte_sizes import format_size
    from growkit.report.text import wrapped

    done = "pushed" if pushed["changed"] else "already there"
    first = f"{pushed['url']}: {done}, {'private' if pushed['private'] else 'public'}"
    lines = [
        f"{pushed['files']} files, {format_size(pushed['bytes'])}, "
        f"{pushed['revision']}, commit {pushed['commit'][:8]}",
    ]
    if pushed["removed"]:
        lines.append(f"removed what an earlier push had: {', '.join(pushed['removed'])}")
    if pushed["card_kept"]:
        lines.append("README.md is as it was: a person wrote or changed it")
    if pushed["pull_request"]:
        lines.append(f"pull request: {pushed['pull_request']}")
    if pushed["checked"]:
        lines.append("read back: names, sizes and hashes agree")
    return "\n".join([first, *(row for line in lines for row in wrapped(line, "  "))])


@click.command(short_help="Upload a result of `growkit grow` to the Hub.")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("repo")
@click.option("--public", is_flag=True, help="Let everybody see it; it is private otherwise.")
@click.option("--revision", metavar="BRANCH", help="Push to this branch, made if it is not there.")
@click.option("--create-pr", is_flag=True, help="Open a pull request in place of a commit.")
@click.option("--check", is_flag=True, help="Read names, sizes and hashes back afterwards.")
@click.option("-m", "--commit-message", "message", metavar="TEXT", help="Title of the commit.")
@json_option
@click.option("-q", "--quiet", is_flag=True, help="Print only the address of the model.")
def push(
    folder: Path,
    repo: str,
    public: bool,
    revision: str | None,
    create_pr: bool,
    check: bool,
    message: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Upload DIR, a result of `growkit grow`, to the model REPO on the Hub.

    All of it becomes visible in one commit. After an interruption the same command goes on where it
    stopped; where nothing has changed it does nothing. A README that a person wrote stays.

    \b
    Examples:
      growkit push big/ org/big
      growkit push big/ org/big --revision v1.0 --check
    """
    click.get_current_context().with_resource(alive(quiet))
    quiet_downloads(quiet)
    from dataclasses import asdict

    from growkit import api

    pushed = asdict(
        api.push(
            folder,
            repo,
            revision=revision,
            public=public,
            create_pr=create_pr,
            check=check,
            message=message,
        )
    )
    if as_json:
        print_json(pushed)
    else:
        click.echo(pushed["url"] if quiet else pushed_text(pushed))


@click.command(short_help="Download a model from the Hub.")
@click.argument("repo")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Folder. [default: the cache]")
@json_option
@click.option("-q", "--quiet", is_flag=True, help="Print only the folder, and no progress.")
def pull(repo: str, out: Path | None, as_json: bool, quiet: bool) -> None:
    """Download the model REPO, `org/name[@revision]`: the files that are needed, and no others.

    \b
    Examples:
      growkit pull org/small
      growkit pull org/big@v1.0 -o big/
    """
    click.get_current_context().with_resource(alive(quiet))
    quiet_downloads(quiet)
    from growkit import api

    folder = api.pull(repo, out=out)
    print_json({"repo": repo, "path": str(folder)}) if as_json else click.echo(folder)
