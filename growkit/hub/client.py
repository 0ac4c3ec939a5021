"""huggingface_hub, its failures in growkit's words, and what must stay secret.

The law: whatever fails here leaves as one sentence, a hint, and whether another try is worth it;
no sentence quotes an address or a message of huggingface_hub, for these can hold a token. What may
pass by itself is tried again before it is told.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

from growkit._version import __version__
from growkit.errors import GrowkitError, HubError
from growkit.hub.repo import Repo
from growkit.os_errors import writing

if TYPE_CHECKING:
    from huggingface_hub import HfApi

Answer = TypeVar("Answer")

WAITS = (1.0, 4.0)  # seconds before the second and the third try
PATIENCE = 60.0  # seconds; a try that took longer was a series of tries by the client itself
TIMEOUT = 30.0  # seconds without a byte
_XET_STATUS = re.compile(r"HTTP status \w+ error \((\d{3})")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

# What an HTTP status means: what happened, what to do, whether the same again may go well
_LATER = "run the same command again in a while"
_STATUS = {
    401: ("does not accept the token", "set HF_TOKEN, or run `hf auth login`", False),
    403: ("does not allow this", "use a token with the right to do it, or ask the owner", False),
    404: ("has no such file or page", "check name and revision, and HF_ENDPOINT", False),
    408: ("gave up waiting", _LATER, True),
    409: ("was busy with the same repository", _LATER, True),
    412: ("was written to by somebody else meanwhile", "run the same command again", True),
    429: ("asks for fewer requests", _LATER, True),
}


# -- the client ----------------------------------------------------------------------------------


def api() -> HfApi:
    """The client, as environment and login have set it up."""
    from huggingface_hub import HfApi

    _keep_logs_discreet()
    return HfApi(library_name="growkit", library_version=__version__)


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids the network."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def host() -> str:
    """Where the Hub is, as it may be shown."""
    from huggingface_hub import constants

    parts = urlsplit(constants.ENDPOINT)
    return parts.netloc.rpartition("@")[2] or redact(constants.ENDPOINT)


def page(repo: Repo) -> str:
    """The address of a model for people."""
    from huggingface_hub import constants

    return f"{redact(constants.ENDPOINT)}/{repo.id}"


def ask(repo: Repo, question: Callable[[], Answer]) -> Answer:
    """The answer of the Hub. Raises HubError, or ResourceError if the cache cannot be written."""
    for wait in (*WAITS, None):
        begin = time.monotonic()
        try:
            return question()
        except GrowkitError:
            raise
        except Exception as error:
            explained = _explained(repo, error)
            if explained is None:
                raise
            long = time.monotonic() - begin > PATIENCE
            if wait is None or long or not getattr(explained, "retryable", False):
                raise explained from error
        time.sleep(wait)
    raise AssertionError("unreachable")


# -- failures ------------------------------------------------------------------------------------


def _explained(repo: Repo, error: BaseException) -> GrowkitError | None:
    """A failure of huggingface_hub in growkit's words; None where it is not one."""
    from huggingface_hub import errors

    transport = errors.HfHubHTTPError.__mro__[1]  # httpx's or httpx2's, by the client's version
    if is_offline() and isinstance(error, OSError):
        return HubError(
            f"{repo}: not in the cache, and HF_HUB_OFFLINE forbids to ask the Hub",
            hint="unset HF_HUB_OFFLINE, or fetch it with `growkit pull` where there is a network",
        )
    login = "set HF_TOKEN, or run `hf auth login`"
    kinds = (  # what is gated counts as not found, too
        (
            errors.GatedRepoError,
            "gated: its owner asks you to accept terms first",
            f"accept them on {page(repo)}, then {login}",
        ),
        (
            errors.RepositoryNotFoundError,
            f"no such model on {host()}, or it is private",
            f"check the name; for a private one {login}",
        ),
        (
            errors.RevisionNotFoundError,
            f'has no revision "{repo.revision or "main"}"',
            f"its branches and tags are on {page(repo)}/tree/main",
        ),
    )
    for kind, what, hint in kinds:
        if isinstance(error, kind):
            return HubError(f"{repo}: {what}", hint=hint)
    if isinstance(error, errors.HfHubHTTPError):
        return _refused(repo, error.response.status_code, error.server_message)
    if isinstance(error, errors.LocalEntryNotFoundError | errors.DryRunError):
        return _explained(repo, error.__cause__) if error.__cause__ else _broken(repo, error)
    if isinstance(error, OSError) and (error.errno in _FULL or (error.errno and error.filename)):
        return _disk(error)
    # hf_xet raises RuntimeErrors and ConnectionErrors for whatever its servers do, with the status
    # in the text; the LFS upload raises a RuntimeError because of the one that tells more
    if isinstance(error, transport | OSError | errors.XetDownloadError | RuntimeError):
        if isinstance(error.__cause__, errors.HfHubHTTPError):
            return _explained(repo, error.__cause__)
        status = _XET_STATUS.search(str(error))
        return _refused(repo, int(status[1]), None) if status else _broken(repo, error)
    return None


def _refused(repo: Repo, status: int, server_message: str | None) -> HubError:
    if status in _STATUS:
        what, hint, retryable = _STATUS[status]
    elif status >= 500:
        what, hint, retryable = f"answers with an error of its own ({status})", _LATER, True
    else:
        what, hint, retryable = f"refuses the request ({status})", "check name and content", False
    words = redact(" ".join((server_message or "").split()))[:200]
    return HubError(
        f"{repo}: {host()} {what}" + (f": {words}" if words else ""),
        hint=hint,
        retryable=retryable,
    )


def _broken(repo: Repo, error: BaseException) -> HubError:
    return HubError(
        f"{repo}: the connection to {host()} failed or broke off ({type(error).__name__})",
        hint="check the network and HF_ENDPOINT and run again; "
        "HF_HUB_OFFLINE=1 makes do with what is in the cache",
        retryable=True,
    )


def _disk(error: OSError) -> GrowkitError:
    from huggingface_hub import constants

    try:
        with writing(Path(error.filename or constants.HF_HUB_CACHE)):
            raise error
    except GrowkitError as explained:
        return explained


# -- what must stay secret -----------------------------------------------------------------------


def redact(text: str) -> str:
    """The text without tokens, and without what precedes the host in an address.

    >>> redact("https://me:hf_abcdefghijklmnopqrstuv@host/x?key=1")
    'https://host/x'
    """
    text = re.sub(r"(?<=://)[^/\s'\"]*@", "", text)
    text = re.sub(r"(://[^\s?'\"]+)\?[^\s'\"]+", r"\1", text)  # signed addresses
    for secret in _secrets():
        text = text.replace(secret, "***")
    return re.sub(r"\bhf_[A-Za-z0-9]{16,}", "hf_***", text)


def _secrets() -> list[str]:
    named = [os.environ.get(n, "") for n in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")]
    try:
        login = urlsplit(os.environ.get("HF_ENDPOINT", "")).netloc.rpartition("@")[0]
    except ValueError:
        login = ""
    parts = [part for part in login.split(":") if part]
    secrets = {s.strip() for s in (*named, *parts, *map(unquote, parts), _stored_token())}
    return sorted((s for s in secrets if len(s) > 3), key=len, reverse=True)


def _stored_token() -> str:
    """The token that `hf auth login` has left, if huggingface_hub has been asked anything."""
    constants: Any = sys.modules.get("huggingface_hub.constants")
    try:
        return Path(constants.HF_TOKEN_PATH).read_text(encoding="utf-8") if constants else ""
    except (OSError, ValueError):
        return ""


class _Discreet(logging.Filter):
    """Takes secrets out of what huggingface_hub logs: its warnings quote addresses."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redact(record.getMessage()), ()
        return True


@cache
def _keep_logs_discreet() -> None:
    for name in ("huggingface_hub", "httpx", "httpx2"):
        logger = logging.getLogger(name)
        for place in (logger, *logger.handlers):
            place.addFilter(_Discreet())
