"""A result as a model on the Hub: one commit that holds all of it, or none.

The law: private unless asked otherwise; the weights, the config and the card become visible at
once; what an interrupted push has sent is not sent again; what a person wrote there stays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from growkit._version import __version__
from growkit.errors import CheckpointError, UsageError, VerifyError
from growkit.hub.client import TIMEOUT, api, ask, page
from growkit.hub.remote import README, RECORD, Remote, look, refuse, refuse_without_token
from growkit.hub.repo import Repo
from growkit.os_errors import reading
from growkit.output.record import first_missing, read_record
from growkit.report import model_card

if TYPE_CHECKING:
    from huggingface_hub import HfApi

Content = Path | bytes


@dataclass(frozen=True, slots=True)
class Pushed:
    """What a push has done."""

    repo: str
    revision: str
    url: str
    commit: str
    private: bool
    changed: bool  # False where the Hub held all of it already
    files: int
    bytes: int
    removed: tuple[str, ...]  # what an earlier push had and this result has not
    card_kept: bool  # the README there was written or changed by a person
    pull_request: str | None
    checked: bool  # names, sizes and hashes were read back


def refuse_push(repo: Repo, *, public: bool = False, create_pr: bool = False) -> None:
    """Raise before the work where a push could not be made: no token, another visibility, …"""
    client = api()
    refuse_without_token(client, repo)
    remote = ask(repo, lambda: look(client, repo))
    if remote is not None:
        refuse(repo, remote, public=public, create_pr=create_pr)


def push(
    folder: str | Path,
    repo: Repo,
    *,
    public: bool = False,
    create_pr: bool = False,
    check: bool = False,
    message: str | None = None,
) -> Pushed:
    """Upload a folder that growkit wrote; `message` is the title of the commit.

    Raises HubError, UsageError, OutputError, VerifyError.
    """
    if create_pr and repo.revision:
        raise UsageError(
            "--create-pr and --revision: a pull request is made against the main branch",
            hint="leave one of them out; a push into an open one is --revision refs/pr/N",
        )
    files = _files(Path(folder))
    recipe = (read_record(Path(folder)) or {}).get("recipe", "")
    title = message or f"growkit {__version__}: {recipe}"
    client = api()
    refuse_without_token(client, repo)

    def attempt() -> tuple[Pushed, Mapping[str, Content]]:
        remote = _ready(client, repo, public=public, create_pr=create_pr)
        return _commit(client, repo, remote, files, title, create_pr)

    pushed, sent = ask(repo, attempt)
    if not check:
        return pushed
    _read_back(client, repo, pushed.commit, sent)
    return replace(pushed, checked=True)


def _files(folder: Path) -> dict[str, Path]:
    """Everything in the folder but hidden files, by its name there."""
    record = read_record(folder)
    if record is None:
        raise CheckpointError(
            f"{folder}: not a folder that growkit wrote",
            hint="`growkit push` is for what `growkit grow` made; `hf upload` pushes any folder",
        )
    if missing := first_missing(folder, record):
        raise CheckpointError(f"{folder}: damaged: {missing}", hint="grow it again")
    with reading(folder):
        paths = sorted(p for p in folder.rglob("*") if p.is_file())
    names = {str(p.relative_to(folder)): p for p in paths}
    return {n: p for n, p in names.items() if not any(x.startswith(".") for x in n.split("/"))}


def _ready(client: HfApi, repo: Repo, *, public: bool, create_pr: bool) -> Remote:
    """The repository as it is, made if it was not there."""
    remote = look(client, repo)
    if remote is None:
        client.create_repo(repo.id, private=not public, exist_ok=True)
        if repo.revision:
            client.create_branch(repo.id, branch=repo.revision, exist_ok=True)
        remote = look(client, repo)
        assert remote is not None, f"{repo}: was just made"
    refuse(repo, remote, public=public, create_pr=create_pr)
    return remote


def _commit(
    client: HfApi,
    repo: Repo,
    remote: Remote,
    files: Mapping[str, Path],
    title: str,
    create_pr: bool,
) -> tuple[Pushed, Mapping[str, Content]]:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    sent: dict[str, Content] = dict(files)
    if README in files:
        sent[README] = model_card.addressed(
            files[README].read_text(encoding="utf-8"), repo.id
        ).encode()
    edited = remote.edited_card
    kept = edited is not None and edited.encode() != sent.get(README)
    if kept:
        sent.pop(README, None)
    removed = tuple(
        sorted((remote.pushed_files & remote.files.keys()) - sent.keys() - {README, RECORD})
    )
    add = [
        CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
        for name, content in sent.items()
    ]
    commit = client.create_commit(
        repo.id,
        [*add, *map(CommitOperationDelete, removed)],
        commit_message=title,
        revision=repo.revision,
        create_pr=create_pr,
        parent_commit=remote.commit or None,
    )
    pushed = Pushed(
        repo=repo.id,
        revision=commit.pr_revision or repo.revision or "main",
        url=page(repo),
        commit=commit.oid,
        private=remote.private,
        changed=commit.oid != remote.commit,
        files=len(sent),
        bytes=sum(_size(content) for content in sent.values()),
        removed=removed,
        card_kept=kept,
        pull_request=f"{page(repo)}/discussions/{commit.pr_num}" if commit.pr_num else None,
        checked=False,
    )
    return pushed, sent


# -- reading back --------------------------------------------------------------------------------


def _read_back(client: HfApi, repo: Repo, commit: str, sent: Mapping[str, Content]) -> None:
    """Hold names, sizes and hashes at the Hub against what is on this disk."""
    info = ask(
        repo,
        lambda: client.model_info(repo.id, revision=commit, files_metadata=True, timeout=TIMEOUT),
    )
    listed: dict[str, Any] = {file.rfilename: file for file in info.siblings or ()}
    problems = []
    for name, content in sent.items():
        file = listed.get(name)
        if file is None:
            problems.append(f"{name} is missing")
        elif file.size != _size(content):
            problems.append(f"{name}: found {file.size} bytes, expected {_size(content)}")
        elif _hash(content, git=file.lfs is None) != (
            file.lfs.sha256 if file.lfs else file.blob_id
        ):
            problems.append(f"{name}: its hash is another")
    if problems:
        raise VerifyError(f"{repo}: {'; '.join(problems)}", hint="push again")


def _size(content: Content) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _hash(content: Content, *, git: bool) -> str:
    """sha256 of a large file; git's own sha1 of one that is small enough to be in git."""
    sha = hashlib.sha1(usedforsecurity=False) if git else hashlib.sha256()
    if git:
        sha.update(f"blob {_size(content)}\0".encode())
    if isinstance(content, bytes):
        sha.update(content)
    else:
        with reading(content), content.open("rb") as file:
            while block := file.read(8 << 20):
                sha.update(block)
    return sha.hexdigest()
