"""Numbers as people read them, the same on the console and in the report."""

import math
from datetime import UTC, datetime


def count(number: float) -> str:
    """Return a count with three digits and a thousands letter: 950, 12.3k, 1.85M, 2.1T."""
    for factor, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= 0.9995 * factor:
            return f"{number / factor:#.3g}".rstrip(".") + letter
    return f"{number:.3g}"


def num_bytes(number: float) -> str:
    """Return a size in decimal units: 512 B, 98.0 MB, 1.20 TB."""
    for factor, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= 0.9995 * factor:
            return f"{number / factor:#.3g}".rstrip(".") + f" {unit}"
    return f"{number:.0f} B"


def gibibytes(number: float) -> str:
    """Return bytes of memory in the unit that devices are counted in: 74.5 GiB, 312 MiB."""
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 / 10 else f"{number / 2**20:.0f} MiB"


def duration(seconds: float) -> str:
    """Return a duration with its two largest units: 0.4s, 12s, 3m12s, 1h04m, 2d03h; "?" if it is not finite."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60}h{minutes % 60:02d}m"
    hours = round(seconds / 3600)
    return f"{hours // 24}d{hours % 24:02d}h"


def percent(share: float) -> str:
    """Return a share as a percentage with three digits: 41.2%, 0.132%."""
    return f"{100 * share:.3g}%"


def when(time_seconds: float) -> str:
    """Return a Unix time as a date and time of day, UTC."""
    return datetime.fromtimestamp(time_seconds, tz=UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
