"""Set before anything is imported: no network, one thread, the same examples on every run."""

from __future__ import annotations

import os
import signal

import hypothesis
import pytest

PLACE = pytest.StashKey[int]()

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "OMP_NUM_THREADS": "1",  # torch reads it on import; tiny tensors gain nothing from more
    "TOKENIZERS_PARALLELISM": "false",
}
os.environ.pop("GROWKIT_DEBUG", None)  # it turns error messages into tracebacks

# A shell's background jobs ignore Ctrl-C and pass that on; tests that interrupt need it back.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Timings vary on a shared machine, and a red run must be about the change, not about the dice.
hypothesis.settings.register_profile("growkit", deadline=None, derandomize=True)
hypothesis.settings.load_profile("growkit")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of one model come together in their file, so that it is made and run once."""
    first: dict[object, int] = {}
    for place, item in enumerate(items):
        model = item.get_closest_marker("model")
        item.stash[PLACE] = first.setdefault((item.path, model.args) if model else item, place)
    items.sort(key=lambda item: item.stash[PLACE])
