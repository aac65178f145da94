"""Goodput checked: simulated runs against closed forms, and the planner against published figures. No torch.

python -m training.planner.goodput_validation              the tables; exit code 1 if a closed form does not hold
python -m training.planner.goodput_validation --markdown   docs/planner_goodput.md
"""

import argparse
import sys
import textwrap
from collections.abc import Sequence

from training.planner.goodput_checks import (
    NUM_FAILURES,
    NUM_RUNS,
    SMALL_LOSS,
    TOLERANCE,
    Check,
    ettr_checks,
    formula_checks,
    interval_checks,
    percent,
)
from training.planner.published_failures import PublishedFigure, mtbf_figures
from training.planner.published_goodput import goodput_figures, price_figures

_LINE = 120

INTRODUCTION = """Written by `python -m training.planner.goodput_validation --markdown`; a test compares this page with
its output.

What is simulated: failures at a constant rate, of nodes and of the job; detection; waiting for a person or a spare;
restart and reading, which a further failure begins anew; steps lost since the last committed checkpoint, which cannot
be newer than its write took; stalls; planned interruptions. Not simulated: rates that change with a node's age, nodes
that fail again and again, failures of several nodes at once, going on with fewer replicas.

How the sources were read: of arXiv:2602.00277 (FT-HSDP) the abstract, its rates and restart times as others quote them;
of arXiv:2410.21680 and arXiv:2509.16293 the abstract and others' quotations, Meta's formula among them."""

ETTR = f"""{NUM_RUNS:,} runs of {NUM_FAILURES} times between failures each, at the best interval and at three times it.
The closed form is training/planner/goodput.py's, which is Daly's where saves are waited for and detection takes no
time. Claim: the share that trains, and the share that is lost, within {100 * TOLERANCE:.0f} %."""

INTERVALS = f"""Minutes. Exact: where the exact mean is highest (Lambert's W). Simulated: the lowest point of a curve
through the mean ends of simulated runs at 11 intervals. Claim: Daly's form and the simulated one within
{100 * TOLERANCE:.0f} % of the exact one, our Daly within {100 * TOLERANCE:.0f} % of what he printed. Young's first
order is off where a save is no small part of the time between failures."""

FORMULA = f"""(1 - N r (u0 + dt / 2)) / (1 + w / dt), arXiv:2410.21680, with 10 min to restart and saves of 10 s that
are waited for. It is of first order. Claim: within {100 * TOLERANCE:.0f} % while failures take at most
{100 * SMALL_LOSS:.0f} % of the time (third column); what it leaves out is about half the square of that share. Above,
use the exact mean."""

MTBF = """Four clusters had 2.3, 2.34, 3.79 and 6.50 failures per 1,000 node-days, and Meta's measured small jobs fail
far more often than the rate of their nodes says. No two numbers hold for all sizes and clusters, so a plan draws the
rate anew for each simulated run (cluster.reliability.failure_rate_sigma); put in your own rate once you know it."""

GOODPUT = """OPT-175B is not among them: 33 days of work took about two months with some 90 restarts, that is 7 to 8
hours for each, and what of it was waiting for people is not published."""

PRICE = """The first two only show that the sums are right: their sources multiply as we do. Prices of inference are a
roofline's and compared with nothing."""


def published_rows(figures: Sequence[PublishedFigure]) -> list[tuple[str, ...]]:
    """Return a line of cells for each published figure."""
    rows = []
    for figure in figures:
        ours = figure.predict()
        if figure.is_bound:
            published, error = f"> {figure.published:.4g}", "met" if ours > figure.published else "not met"
        else:
            published, error = f"{figure.published:.4g}", percent(ours / figure.published - 1, decimals=0)
        rows.append((figure.source, figure.what, figure.given, f"{ours:.3g}", published, error, figure.remark))
    return rows


def page() -> tuple[str, bool]:
    """Return docs/planner_goodput.md, and whether all that should hold does."""
    ettr, intervals, formula = ettr_checks(), interval_checks(), formula_checks()
    interval_heads = (
        "Young",
        "Daly",
        "Daly printed",
        "exact",
        "simulated",
        "error of Young",
        "of Daly",
        "of simulated",
    )
    formula_heads = ("interval, min", "lost, %", "formula, %", "simulated, %", "error", "claim")
    published_heads = ("source", "figure", "given", "predicted", "published", "error", "remark")
    lines = [
        *("# Goodput, checked", "", *_wrapped(INTRODUCTION)),
        *_section(
            "The exact mean against simulated runs",
            ETTR,
            ("job", "interval, min", "exact ETTR, %", "simulated, %", "error", "error of the loss"),
            [check.cells for check in ettr],
        ),
        *_section("The best interval", INTERVALS, ("job", *interval_heads), [check.cells for check in intervals]),
        *_section(
            "Meta's formula of ETTR against simulated runs",
            FORMULA,
            ("job, failures per 1,000 node-days", *formula_heads),
            [check.cells for check in formula],
        ),
        *_section("Published: time between failures", MTBF, published_heads, published_rows(mtbf_figures())),
        *_section("Published: time that trains", GOODPUT, published_heads, published_rows(goodput_figures())),
        *_section("Published: price and energy", PRICE, published_heads, published_rows(price_figures())),
    ]
    return "\n".join(lines) + "\n", all(_holds(check) for check in (*ettr, *intervals, *formula))


def _holds(check: Check) -> bool:
    return check.holds is not False


def _section(title: str, text: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    table = [
        "| " + " | ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)) + " |"
        for line in (heads, ["-" * width for width in widths], *rows)
    ]
    return ["", f"## {title}", "", *_wrapped(text), "", *table]


def _wrapped(text: str) -> list[str]:
    paragraphs = [textwrap.wrap(paragraph, _LINE) for paragraph in text.split("\n\n")]
    return [line for paragraph in paragraphs for line in (*paragraph, "")][:-1]


def main() -> int:
    """Print the page or its tables, and return 1 if a closed form does not hold."""
    parser = argparse.ArgumentParser(description="Goodput against closed forms and published figures.")
    parser.add_argument("--markdown", action="store_true", help="print docs/planner_goodput.md")
    is_page = parser.parse_args().markdown
    text, holds = page()
    verdict = f"closed forms and simulation agree within {100 * TOLERANCE:.0f} %: {'yes' if holds else 'NO'}\n"
    sys.stdout.write(text if is_page else f"{text}\n{verdict}")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
