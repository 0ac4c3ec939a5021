"""Sizes in bytes, as people write and read them."""

from __future__ import annotations

import re
from fractions import Fraction

from growkit.errors import UsageError

_UNITS = {"B": 1} | {
    f"{letter}{kind}": base**power
    for power, letter in enumerate("KMGT", start=1)
    for kind, base in (("B", 1000), ("IB", 1024))
}


def parse_size(size: int | str) -> int:
    """Bytes, from a number of bytes or a text with a unit; decimal units, as on the Hub.

    Raises UsageError for a text without a unit, with the likely one.

    >>> parse_size("5GB"), parse_size("2GiB"), parse_size("1.5 kb"), parse_size(4096)
    (5000000000, 2147483648, 1500, 4096)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(size), re.ASCII)
    if match and isinstance(size, str) and not match[2] and float(match[1]) > 0:
        likely, other = ("GB", "500MB") if float(match[1]) < 1000 else ("B", "5GB")
        raise UsageError(
            f'size "{size}": expected a positive number of bytes with a unit, found none',
            hint=f'write "{match[1]}{likely}" or "{other}"',
        )
    unit = _UNITS.get(match[2].upper() or "B") if match else None  # a number counts bytes
    number = int(Fraction(match[1]) * unit) if match and unit else 0
    if number < 1:
        raise UsageError(
            f'size "{size}": expected a positive number of bytes with a unit',
            hint='write "5GB", "500MB" or "2GiB"',
        )
    return number


def format_size(count: float) -> str:
    """Bytes as people read them: three digits, in decimal units, as disks are sold.

    >>> format_size(999), format_size(437_951_328), format_size(5 * 10**9)
    ('999 B', '438 MB', '5 GB')
    """
    for unit in ("B", "kB", "MB", "GB", "TB", "PB"):
        if count < 999.5:
            return f"{count:.0f} B" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} EB"
