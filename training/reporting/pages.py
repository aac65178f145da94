"""HTML pages from templates: everything that is not plotly's own output is escaped, and every page can be encoded."""

import math
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from training.reporting import formatting
from training.reporting.evaluations import occasion
from training.reporting.item_tables import encodable
from training.reporting.planned import Comparison

MOST_ROWS = 100
"""Items of a benchmark that a page shows: ten benchmarks make a page of a few megabytes."""


def render_page(template: str, **values: Any) -> str:
    """Return a page. Only values that are `Markup` are taken as HTML."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": formatting.count,
        "num_bytes": formatting.num_bytes,
        "duration": formatting.duration,
        "percent": formatting.percent,
        "when": formatting.when,
        "number": _number,
        "occasion": occasion,
        "planned_number": _planned_number,
    }
    return encodable(environment.get_template(template).render(values))


def _planned_number(comparison: Comparison, value: float) -> str:
    """Return one side of a comparison in its unit."""
    match comparison.unit:
        case "seconds":
            return f"{value:.3g} s"
        case "percent":
            return f"{100 * value:.1f} %"
        case "bytes":
            return formatting.num_bytes(value)
    return formatting.count(value)


def _number(value: float | bool | None) -> str:
    """Return a number as tables show it, a dash where there is none."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    whole = math.isfinite(value) and value == int(value) and abs(value) < 1e9
    return f"{value:,.0f}" if whole else f"{value:.4g}"
