"""How the page writes numbers: tables that line up, medians with their range."""

import statistics
from collections.abc import Sequence


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a Markdown table whose columns line up as plain text too."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    lines = [heads, ["-" * width for width in widths], *rows]
    return [
        "| " + " | ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]


def spread(values: Sequence[float], form: str) -> str:
    """Return "median (smallest–largest)"."""
    return f"{statistics.median(values):{form}} ({min(values):{form}}–{max(values):{form}})"
