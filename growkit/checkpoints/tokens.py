"""How many tokens a tokenizer has, read off its files without the libraries that run it.

The law: a file that is absent, of another kind, damaged or far too large says nothing here, and is
no error: it is carried along as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from json import JSONDecoder
from pathlib import Path
from typing import Any

MAX_BYTES = 50_000_000  # 256,000 tokens with their merges, of which nothing is parsed, have 35 MB
MAX_VALUES = 1_000_000  # of a table of tokens
_DECODER = JSONDecoder()


def count_tokens(folder: Path, names: Iterable[str]) -> int | None:
    """One more than the highest id in tokenizer.json; None where there is none that says ids."""
    if "tokenizer.json" not in {*names}:
        return None
    try:
        with (folder / "tokenizer.json").open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        text = raw.decode() if len(raw) <= MAX_BYTES else ""
        return max(_ids(text), default=-1) + 1 or None
    except (OSError, ValueError, RecursionError):
        return None


def _ids(text: str) -> Iterator[int]:
    """The ids of a tokenizer.json: a table of tokens or a list, and those that were added."""
    vocab, added = _value(text, "vocab"), _value(text, "added_tokens")
    if isinstance(vocab, dict):
        yield from (i for i in vocab.values() if isinstance(i, int))
    elif isinstance(vocab, list):
        yield len(vocab) - 1
    for entry in added if isinstance(added, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("id"), int):
            yield entry["id"]


def _value(text: str, key: str) -> Any:
    """The value of the first key called so, without parsing what comes before and after it."""
    start = re.search(rf'"{key}"\s*:\s*', text)
    if start is None:
        return None
    end = text.find('"merges"', start.end())
    if sum(text.count(c, start.end(), end if end > 0 else len(text)) for c in "[{,") > MAX_VALUES:
        return None
    return _DECODER.raw_decode(text, start.end())[0]
