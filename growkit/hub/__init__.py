"""The Hugging Face Hub: checkpoints by name in, grown ones out. The only room that uses a network.

    repo       which words are the name of a model on the Hub
    client     huggingface_hub, its failures in growkit's words, and what must stay secret
    download   a model there as a source: headers by range requests, then the files
    push       a result as a model there, its card, and what is read back
    remote     what a repository holds before a push

The law: a path that is here never leads to the network, and neither do these rooms' imports:
huggingface_hub is loaded when a name of the Hub is used. Environment variables (HF_HOME, HF_TOKEN,
HF_ENDPOINT, HF_HUB_OFFLINE) and the cache are huggingface_hub's own.
"""

from growkit.hub.client import redact
from growkit.hub.download import download, errors_naming, open_remote, pull
from growkit.hub.push import Pushed, push, refuse_push
from growkit.hub.repo import Repo, repo_named, repo_required

__all__ = [
    "Pushed", "Repo", "download", "errors_naming", "open_remote", "pull", "push", "redact",
    "refuse_push", "repo_named", "repo_required",
]  # fmt: skip
