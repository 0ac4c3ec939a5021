"""Sizes in bytes, as people write and read them."""

from __future__ import annotations

import re
from fractions import Fraction

from growkit.errors import UsageError

_UNITS = {"": 1, "B": 1} | {
    f"{letter}{kind}": base**power
    for power, letter in enumerate("KMGT", start=1)
    for kind, base in (("B", 1000), ("IB", 1024))
}


def parse_size(size: int | str) -> int:
    """Bytes, from a number of bytes or a text with a unit; decimal units, as on the Hub.

    >>> parse_size("5GB"), parse_size("2GiB"), parse_size("1.5 kb"), parse_size(4096)
    (5000000000, 2147483648, 1500, 4096)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(size), re.ASCII)
    unit = _UNITS.get(match[2].upper()) if match else None
    number = int(Fraction(match[1]) * unit) if match and unit else 0
    if number < 1:
        raise UsageError(
            f'size "{size}": expected a positive number of bytes with a unit',
            hint='write "5GB", "500MB" or "2GiB"',
        )
    return number


def format_size(count: int) -> str:
    """Bytes as people read them, in decimal units.

    >>> format_size(999), format_size(1234567), format_size(5 * 10**9)
    ('999 B', '1.23 MB', '5.00 GB')
    """
    if count < 1000:
        return f"{count} B"
    power = min((len(str(count)) - 1) // 3, 5)
    return f"{count / 1000**power:.2f} {' kMGTP'[power]}B"


def in_bytes(count: float) -> str:
    """Bytes in decimal units, as disks are sold.

    >>> in_bytes(437_951_328)
    '438 MB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1000
    return f"{count:.3g} TB"
