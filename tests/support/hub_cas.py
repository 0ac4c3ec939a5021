"""The content-addressed store behind a Hub: Xet's xorbs and shards, as the real client sends them.

A file is cut into chunks, chunks are packed into xorbs, and a shard says which chunks of which
xorbs a file is made of. Chunks must come uncompressed (HF_XET_XORB_COMPRESSION_POLICY=none).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ENTRY = 48  # bytes of everything in a shard
VERIFIED, DESCRIBED = 1 << 31, 1 << 30  # flags of a file: more entries follow
CHUNK_HEADER = 8


@dataclass(frozen=True)
class Chunk:
    """Where a chunk lies in its xorb, with its header in front."""

    start: int
    size: int  # bytes of data

    @property
    def stop(self) -> int:
        return self.start + CHUNK_HEADER + self.size


@dataclass(frozen=True)
class Segment:
    """Chunks [first, last) of a xorb."""

    xorb: str
    size: int  # bytes of data
    first: int
    last: int


class Store:
    """Xorbs and files in a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.xorbs: dict[str, list[Chunk]] = {}
        self.files: dict[str, list[Segment]] = {}
        self.hashes: dict[str, str] = {}  # sha256 → hash of the file

    def add_xorb(self, name: str, data: bytes) -> None:
        """Keep a xorb and note where its chunks are."""
        chunks, at = [], 0
        while at < len(data) and data[at] == 0:  # a version; what follows the chunks has another
            packed, scheme = int.from_bytes(data[at + 1 : at + 4], "little"), data[at + 4]
            assert scheme == 0, "chunks must come uncompressed"
            chunks.append(Chunk(at, packed))
            at = chunks[-1].stop
        (self.folder / name).write_bytes(data)
        self.xorbs[name] = chunks

    def add_shard(self, data: bytes) -> list[tuple[str, bytes]]:
        """The files that a shard describes, put together: (sha256, content) of each."""
        found, at = [], ENTRY
        while data[at : at + 32] != b"\xff" * 32:
            name, flags, count = struct.unpack_from("<32sII", data, at)
            segments = [_segment(data, at + ENTRY * (i + 1)) for i in range(count)]
            at += ENTRY * (1 + count + (count if flags & VERIFIED else 0))
            assert flags & DESCRIBED, "the shard does not say the sha256 of a file"
            sha256 = hash_text(data[at : at + 32])
            at += ENTRY
            self.files[hash_text(name)] = segments
            self.hashes[sha256] = hash_text(name)
            found.append((sha256, b"".join(map(self._content, segments))))
        return found

    def _content(self, segment: Segment) -> bytes:
        data = (self.folder / segment.xorb).read_bytes()
        chunks = self.xorbs[segment.xorb][segment.first : segment.last]
        return b"".join(data[c.start + CHUNK_HEADER : c.stop] for c in chunks)

    def reconstruction(
        self, name: str, url: str, asked: tuple[int, int] | None
    ) -> dict[str, Any] | None:
        """How to put a file together, or bytes [start, stop) of it; None past its end."""
        segments = self.files[name]
        start, stop = asked or (0, sum(s.size for s in segments))
        terms: list[Segment] = []
        at = offset = 0
        for segment in segments:
            if at < stop and at + segment.size > start:
                offset = offset if terms else start - at
                terms.append(segment)
            at += segment.size
        if not terms:
            return None
        return {
            "offset_into_first_range": offset,
            "terms": [
                {"hash": t.xorb, "unpacked_length": t.size, "range": _range(t.first, t.last)}
                for t in terms
            ],
            "fetch_info": {x: self._places(x, terms, url) for x in {t.xorb for t in terms}},
        }

    def _places(self, xorb: str, terms: list[Segment], url: str) -> list[dict[str, Any]]:
        """Where to fetch the chunks of a xorb that the terms need: no chunk is in two places."""
        merged: list[list[int]] = []
        for first, last in sorted((t.first, t.last) for t in terms if t.xorb == xorb):
            if merged and first <= merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], last)
            else:
                merged.append([first, last])
        chunks = self.xorbs[xorb]
        return [
            {
                "range": _range(first, last),
                "url": f"{url}/{xorb}",
                "url_range": _range(chunks[first].start, chunks[last - 1].stop - 1),
            }
            for first, last in merged
        ]


def _range(start: int, end: int) -> dict[str, int]:
    return {"start": start, "end": end}


def _segment(data: bytes, at: int) -> Segment:
    xorb, _, size, first, last = struct.unpack_from("<32sIIII", data, at)
    return Segment(hash_text(xorb), size, first, last)


def hash_text(raw: bytes) -> str:
    """A hash as Xet writes it: four little-endian words in hex."""
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", raw))
