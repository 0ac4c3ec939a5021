"""A model on the Hub as a source: its headers by range requests, then the files that are needed.

The law: planning downloads no weights. What is small (config, index, tokenizer) goes through the
cache; of each weight file only the header is asked for. `download` then brings the files into the
very folder that the plan names, so a plan made before the download is executed after it.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from growkit.byte_sizes import format_size
from growkit.checkpoints.card import CARD
from growkit.checkpoints.hub_cache import Far
from growkit.checkpoints.open import INDEX, VOCABULARY, open_checkpoint
from growkit.checkpoints.side_files import MODULES, listed_modules
from growkit.checkpoints.types import Checkpoint
from growkit.errors import CheckpointError, GrowkitError, HubError, OutputError, ResourceError
from growkit.hub.client import TIMEOUT, api, ask, host, is_offline
from growkit.hub.repo import Repo
from growkit.os_errors import existing_ancestor, free_bytes

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo

# to plan with, and what the model's card says
FIRST = ("config.json", f"*{INDEX}", MODULES, "tokenizer.json", *sorted(VOCABULARY), CARD)
# of a model that growkit pushed
RECORDS = ("growkit.json", "recipe.yaml", "README.md", "growth.html", "growth.svg")
CHUNK = 1 << 17  # bytes; holds the whole header of most files


def open_remote(repo: Repo, *, config: Path | None = None, drop: Sequence[str] = ()) -> Checkpoint:
    """Headers and config of a model on the Hub; the checkpoint's path is its place in the cache.

    Raises HubError, and what `open_checkpoint` raises.
    """
    return _open(repo, config, drop)[0]


def _open(
    repo: Repo, config: Path | None = None, drop: Sequence[str] = ()
) -> tuple[Checkpoint, Mapping[str, Far]]:
    client = api()
    folder = _snapshot(client, repo, repo.revision, FIRST)
    if is_offline():
        if not any(folder.glob("*.safetensors")):
            raise HubError(
                f"{repo}: the cache holds no weights of it, and HF_HUB_OFFLINE forbids to ask",
                hint="unset HF_HUB_OFFLINE, or fetch it with `growkit pull` where it may be asked",
            )
        return open_checkpoint(folder, config=config, drop=drop), {}
    info = ask(
        repo,
        lambda: client.model_info(
            repo.id, revision=folder.name, files_metadata=True, timeout=TIMEOUT
        ),
    )
    files = _listing(client, repo, info)
    if not folder.is_dir():
        raise CheckpointError(
            f"{repo}: holds no config.json",
            hint="only models that transformers can load from their repository can be grown",
        )
    modules = [f"{inner}/config.json" for inner, _ in listed_modules(folder)]
    if any(name in files and not (folder / name).exists() for name in modules):
        _snapshot(client, repo, folder.name, modules)
    return open_checkpoint(folder, config=config, drop=drop, far=files), files


@contextmanager
def errors_naming(repo: Repo) -> Iterator[None]:
    """Inside, errors name the model as the user did, and not its place in the cache."""
    try:
        yield
    except GrowkitError as error:
        from huggingface_hub import constants

        cached = Path(constants.HF_HUB_CACHE) / f"models--{repo.id.replace('/', '--')}"
        for place in (cached.absolute(), cached.resolve()):
            start, inside, end = error.message.partition(f"{place}/snapshots/")
            if inside:
                error.message = f"{start}{repo}{end[40:]}"
        raise


# -- headers -------------------------------------------------------------------------------------


def _listing(client: HfApi, repo: Repo, info: ModelInfo) -> dict[str, Far]:
    """Every file of the repository, none of them downloaded."""
    commit = info.sha or ""
    return {
        file.rfilename: Far(
            size=file.size or 0,
            blob=file.lfs.sha256 if file.lfs else file.blob_id or "",
            first=reader(client, repo, commit, file.rfilename, file.size or 0),
        )
        for file in info.siblings or ()
    }


def reader(client: HfApi, repo: Repo, commit: str, name: str, size: int) -> Callable[[int], bytes]:
    """A function that gives the first bytes of a file on the Hub, and asks for none twice."""
    start = bytearray()

    def more(stop: int) -> bytes:
        return _range(client, repo, commit, name, len(start), stop)

    def first(count: int) -> bytes:
        wanted = min(count, size)
        while len(start) < wanted:
            stop = min(size, max(wanted, len(start) + CHUNK))
            start.extend(ask(repo, partial(more, stop)))
        return bytes(start[:count])

    return first


def _range(client: HfApi, repo: Repo, commit: str, name: str, start: int, stop: int) -> bytes:
    """Bytes [start, stop) of a file, or fewer where the connection ends early."""
    from huggingface_hub import get_session, hf_hub_url, hf_raise_for_status
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    url = hf_hub_url(repo.id, name, revision=commit, endpoint=client.endpoint)
    headers = build_hf_headers(token=client.token) | {
        "Range": f"bytes={start}-{stop - 1}",
        "Accept-Encoding": "identity",
    }
    with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT) as response:
        hf_raise_for_status(response)
        if start and response.status_code != 206:
            raise HubError(
                f"{repo}: {host()} does not answer range requests",
                hint=f"fetch it first with `growkit pull {repo}`",
            )
        data = b""
        for block in response.iter_bytes():
            data += block
            if len(data) >= stop - start:  # the server may have begun to send the whole file
                break
    if not data:
        raise ConnectionError(f"{name}: no bytes")
    return data[: stop - start]


# -- files ---------------------------------------------------------------------------------------


def download(repo: Repo, checkpoint: Checkpoint, *, out: Path, out_bytes: int) -> None:
    """Bring the files of a checkpoint that `open_remote` opened into its folder in the cache.

    Raises ResourceError if they, and a result of `out_bytes` at `out`, do not fit on the disk.
    """
    folder = Path(checkpoint.path)
    weights = [*checkpoint.files, *(f for s in checkpoint.modules for f in s.stored.files)]
    missing = {f.name: f.size for f in weights if not (folder / f.name).exists()}
    side = [name for name in checkpoint.side_files if not (folder / name).exists()]
    if not missing and not side:
        return
    _refuse_full_disk(repo, folder, sum(missing.values()), also=(out, out_bytes))
    _snapshot(api(), repo, folder.name, [*missing, *side])


def pull(repo: Repo, into: Path | None = None) -> Path:
    """Download a model, by default into the cache; returns its folder.

    Only what transformers and growkit need: one set of weights, config, tokenizer, and what growkit
    wrote about a growth.
    """
    if into is not None and into.exists():
        filled = into.is_dir() and any(into.iterdir())
        if not into.is_dir() or (filled and not (into / ".cache" / "huggingface").is_dir()):
            raise OutputError(
                f"{into}: exists and holds something else", hint="give another -o, or leave it out"
            )
    with errors_naming(repo):
        checkpoint, files = _open(repo, None)
    folder = Path(checkpoint.path)
    if is_offline() and into is None:
        return folder
    weights = [file.name for file in checkpoint.files]
    others = {*checkpoint.side_files, *RECORDS, "config.json"}
    wanted = [n for n in files or weights if n in {*weights, *others} or n.endswith(INDEX)]
    target = into or folder
    sizes = [file.size for n, file in files.items() if n in wanted and not (target / n).exists()]
    _refuse_full_disk(repo, target, sum(sizes))
    return _snapshot(api(), repo, folder.name, wanted, into=into)


def _snapshot(
    client: HfApi,
    repo: Repo,
    revision: str | None,
    names: Iterable[str],
    *,
    into: Path | None = None,
) -> Path:
    """Download files, by name or pattern; returns the folder."""
    patterns = [n if n.startswith("*") else glob.escape(n) for n in names]
    return Path(
        ask(
            repo,
            lambda: client.snapshot_download(
                repo.id, revision=revision, allow_patterns=patterns, local_dir=into
            ),
        )
    )


def _refuse_full_disk(
    repo: Repo, folder: Path, size: int, *, also: tuple[Path, int] | None = None
) -> None:
    need, what = size, f"needs {format_size(size)}"
    if also and _device(also[0]) == _device(folder):
        need += also[1]
        what += f" and the result {format_size(also[1])}"
    free = free_bytes(folder)
    if need > free:
        raise ResourceError(
            f"{repo}: the download {what} of the disk that {existing_ancestor(folder)} is on, "
            f"{format_size(free)} free",
            hint=f"free {format_size(need - free)}, or set HF_HOME to a folder on another disk",
        )


def _device(path: Path) -> int:
    return existing_ancestor(path.absolute()).stat().st_dev
