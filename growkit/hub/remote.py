"""What a repository on the Hub holds before a push, and what a push may do to it.

The law: nothing that a person or another program put there is replaced. A card that was edited
stays, and weights that no growkit pushed are a refusal.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from growkit.checkpoints.header import WEIGHTS
from growkit.checkpoints.open import INDEX
from growkit.errors import HubError, OutputError, UsageError
from growkit.hub.client import TIMEOUT, ask, is_offline, page
from growkit.hub.download import reader
from growkit.hub.repo import Repo
from growkit.report import model_card

if TYPE_CHECKING:
    from huggingface_hub import HfApi

README, RECORD = "README.md", "growkit.json"


@dataclass(frozen=True, slots=True)
class Remote:
    """One revision of a repository that exists."""

    private: bool
    commit: str
    files: Mapping[str, Callable[[], bytes]]  # by name, a way to read the whole file

    @property
    def pushed_files(self) -> frozenset[str]:
        """Files that an earlier push of growkit says it wrote."""
        if RECORD not in self.files:
            return frozenset()
        try:
            return frozenset(json.loads(self.files[RECORD]())["files"])
        except (ValueError, TypeError, KeyError):
            return frozenset()

    @property
    def weights(self) -> frozenset[str]:
        """Weights and indices beside which a reader of the repository would be misled."""
        return frozenset(
            name for name in self.files if "/" not in name and name.endswith((WEIGHTS, INDEX))
        )

    @property
    def edited_card(self) -> str | None:
        """The README that a person wrote or changed, if there is one."""
        if README not in self.files:
            return None
        text = self.files[README]().decode("utf-8", errors="replace")
        return None if model_card.is_ours(text) else text


def look(client: HfApi, repo: Repo) -> Remote | None:
    """What is there; None where there is no such repository, or no such branch in it."""
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        info = client.model_info(
            repo.id, revision=repo.revision, files_metadata=True, timeout=TIMEOUT
        )
    except GatedRepoError:
        raise
    except (RepositoryNotFoundError, RevisionNotFoundError):
        return None
    commit = info.sha or ""

    def whole(name: str, size: int) -> Callable[[], bytes]:
        first = reader(client, repo, commit, name, size)
        return lambda: first(size)

    files = {f.rfilename: whole(f.rfilename, f.size or 0) for f in info.siblings or ()}
    return Remote(bool(info.private), commit, files)


def refuse(repo: Repo, remote: Remote, *, public: bool, create_pr: bool) -> None:
    """Raise where a push would publish, hide or replace what it should not."""
    if public == remote.private and not create_pr:
        now, asked = ("private", "--public was") if public else ("public", "--public was not")
        raise UsageError(
            f"{repo}: exists and is {now}, and {asked} given",
            hint=f"leave --public out, or change it on {page(repo)}/settings"
            if public
            else "give --public if everybody may see the model",
        )
    if not create_pr and (foreign := remote.weights - remote.pushed_files):
        raise OutputError(
            f"{repo}: holds {min(foreign)}, which growkit did not push",
            hint="give another name, --revision for a branch of its own, or --create-pr",
        )


def refuse_without_token(client: HfApi, repo: Repo) -> None:
    """A push that cannot go well is refused before the work."""
    if is_offline():
        raise HubError(
            f"{repo}: HF_HUB_OFFLINE forbids to push", hint="unset HF_HUB_OFFLINE to push"
        )
    if not ask(repo, lambda: _has_login(client)):
        raise HubError(
            f"{repo}: no token to push with", hint="set HF_TOKEN, or run `hf auth login`"
        )


def _has_login(client: HfApi) -> bool:
    from urllib.parse import urlsplit

    from huggingface_hub import get_token

    return bool(client.token or get_token() or urlsplit(client.endpoint).username)
