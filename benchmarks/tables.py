"""Results as Markdown, and what the machine is."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Rows = Sequence[Mapping[str, Any]]


def machine(work: Path) -> dict[str, str]:
    """What the figures were measured on: no names, no paths."""
    cpu = re.search(r"^model name\s*:\s*(.+)$", _text("/proc/cpuinfo"), re.MULTILINE)
    kb = re.search(r"^MemTotal:\s*(\d+)", _text("/proc/meminfo"), re.MULTILINE)
    cores = len(os.sched_getaffinity(0))
    return {
        "processor": f"{cpu[1] if cpu else platform.machine()}, {cores} cores",
        "memory": f"{int(kb[1]) / 1024**2:.0f} GiB" if kb else "unknown",
        "disk": f"{_filesystem(work)}, {_disk(work)}",
        "system": f"Linux {platform.release().split('-')[0]}, Python {platform.python_version()}",
        "load before": f"{os.getloadavg()[0]:.1f}",
    }


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _filesystem(folder: Path) -> str:
    """The type of the filesystem that a folder is on."""
    here = folder.resolve()
    mounts = [line.split()[1:3] for line in _text("/proc/mounts").splitlines()]
    above = [(point, kind) for point, kind in mounts if here.is_relative_to(point)]
    return max(above, key=lambda m: len(m[0]))[1] if above else "unknown"


def _disk(folder: Path) -> str:
    device = folder.stat().st_dev
    block = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve()
    disk = block if (block / "queue").exists() else block.parent
    kind = re.match(r"[a-z]+", disk.name)
    turns = _text(str(disk / "queue/rotational")).strip() == "1"
    names = {"vd": "virtual disk", "nvme": "NVMe", "sd": "SCSI or SATA disk"}
    found = next((v for k, v in names.items() if kind and kind[0].startswith(k)), "disk")
    return found + (" that turns" if turns and found != "virtual disk" else "")


def growths(rows: Rows) -> str:
    """One line per job and tool; ratios are those of the medians."""
    lines = [
        "| job | tool | seconds (least–most) | CPU s | peak MB | × `dd conv=fsync` "
        "| of `dd oflag=direct` |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        by_tool = {r["tool"]: r for r in rows if r["job"] == row["job"]}
        limit, direct = by_tool["dd conv=fsync"], by_tool["dd oflag=direct"]
        name = f"{row['job']}: {row['bytes'] / 1e9:.2f} GB" if row["tool"] == "growkit" else ""
        lines.append(
            f"| {name} | {row['tool']} | {_span(row)} | {row['cpu_seconds']:.1f} "
            f"| {row['peak_bytes'] / 1e6:.0f} | {row['seconds'] / limit['seconds']:.2f} "
            f"| {direct['seconds'] / row['seconds']:.0%} |"
        )
    return "\n".join(lines)


def memory(rows: Rows) -> str:
    """Predicted and measured memory."""
    lines = ["| width 2x of | planned MB | measured MB |", "|---|---:|---:|"]
    for row in rows:
        planned, measured = row["planned"] / 1e6, row["measured"] / 1e6
        lines.append(f"| {row['model']} | {planned:.0f} | {measured:.0f} |")
    return "\n".join(lines)


def planning(rows: Rows) -> str:
    """Seconds and memory of commands that only plan."""
    lines = ["| command | seconds (least–most) | CPU s | peak MB |", "|---|---:|---:|---:|"]
    for row in rows:
        lines.append(
            f"| {row['command']} | {_span(row)} | {row['cpu_seconds']:.2f} "
            f"| {row['peak_bytes'] / 1e6:.0f} |"
        )
    return "\n".join(lines)


def parts(rows: Rows) -> str:
    """What a gigabyte costs."""
    lines = ["| in one thread | CPU s per GB |", "|---|---:|"]
    lines += [f"| {row['part']} | {row['cpu_seconds_per_gb']:.2f} |" for row in rows]
    return "\n".join(lines)


def _span(row: Mapping[str, Any]) -> str:
    return f"{row['seconds']:.2f} ({row['least']:.2f}–{row['most']:.2f})"
