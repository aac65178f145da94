"""The equivalence matrix: the same training under many layouts, each compared with plain single-process torch.

    python -m tests.distributed.matrix             a covering subset: every layout, every pair of values
    python -m tests.distributed.matrix --all       every combination
    python -m tests.distributed.matrix --write     also replaces docs/equivalence.md

Exit code 1 if a cell differs by more than the tolerance.
"""

import argparse
import json
import platform
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.distributed.matrix_cells import AXES, NUM_LAYOUT_AXES, all_cells, covering_cells
from tests.integration.running import run_to_end

TOLERANCE = 1e-5
"""Largest relative difference, in fp32."""
WORLD_SIZES = (1, 2, 4)
LAYOUT_AXES = list(AXES)[:NUM_LAYOUT_AXES]
KINDS = ("losses", "norms", "gradients", "auxiliary", "loads")
_PAGE = Path(__file__).parents[2] / "docs" / "equivalence.md"
_LIMIT_SECONDS = {"covering": 300, "all": 2400}


def run(which: str, folder: Path) -> list[dict[str, Any]]:
    """Return {"cell": …, "errors": …} of all cells (`all` or `covering`), one start of processes per world size.

    Raises:
        RuntimeError: a worker failed, with its output.
    """
    lines: list[dict[str, Any]] = []
    for world_size in WORLD_SIZES:
        output = folder / f"{world_size}.json"
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world_size}"]
        worker = ["-m", "tests.distributed.matrix_worker", str(output), str(folder), which]
        finished = run_to_end([*torchrun, *worker], folder=folder, limit_seconds=_LIMIT_SECONDS[which])
        if finished.exit_code:
            raise RuntimeError(finished.explain())
        lines += json.loads(output.read_text())
    return lines


def differing(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the cells that differ by more than the tolerance (a NaN does)."""
    return [line for line in lines if not all(error <= TOLERANCE for error in line["errors"].values())]


def page(lines: list[dict[str, Any]], *, command: str, seconds: float) -> str:
    """Return docs/equivalence.md: what was compared, and a table in which each row is one layout."""
    rows: dict[tuple[object, ...], dict[str, float]] = {}
    for line in lines:
        cell = line["cell"]
        key = tuple(cell[axis] for axis in LAYOUT_AXES)
        row = rows.setdefault(key, {"cells": 0})
        row["cells"] += 1
        for kind, error in line["errors"].items():
            row[kind] = max(row.get(kind, 0.0), error)
    worst = max(error for line in lines for error in line["errors"].values())
    table = [
        f"| {' | '.join(map(str, key))} | {row['cells']} | "
        + " | ".join(f"{row[kind]:.1e}" if kind in row else "" for kind in KINDS)
        + " |"
        for key, row in sorted(rows.items(), key=lambda item: tuple(map(str, item[0])))
    ]
    return "\n".join(
        [
            "# Every layout computes the same run",
            "",
            f"Written by `{command}` on {datetime.now(UTC).date().isoformat()}:",
            f"{len(lines)} cells in {seconds:.0f} s, {platform.machine()} CPU, Python {platform.python_version()},",
            f"gloo. Largest relative difference of all: **{worst:.1e}**; the limit is {TOLERANCE:.0e}. A cell that",
            "differs more makes the command, and the tests, fail.",
            "",
            "Each row is a layout; its cells are accumulation 1 and 4 × recompute none and full × a dense model, one",
            "with tied embeddings and one with experts × SGD and AdamW (Adam alone would hide a wrong scale). The one",
            "with experts has all kinds of balancing at once, and is also compared by its auxiliary losses and by the",
            "share of tokens that went to another expert than in one process. The models have 8 blocks, a batch",
            "16 sequences with between 1 and 24 valid targets each: micro-batches and ranks have unequal numbers of",
            "tokens; fp32, gradients clipped. Compared with plain torch in one process on the whole batch: losses and",
            "global gradient norms of 6 steps, and the gradient of every parameter in the first step (L2, relative,",
            "the worst parameter; with SGD, read from checkpoints before and after it, so on every pipeline stage).",
            "Dropout, bf16, checkpoints between layouts and scoring have tests of their own in `tests/distributed`.",
            "",
            f"| {' | '.join((*LAYOUT_AXES, 'cells', *KINDS))} |".replace("zero_stage", "ZeRO"),
            f"|{' --- |' * (len(LAYOUT_AXES) + 1 + len(KINDS))}",
            *table,
            "",
        ]
    )


def main() -> int:
    """Run the matrix and say what it found."""
    parser = argparse.ArgumentParser(prog="python -m tests.distributed.matrix", description="Compare all layouts.")
    parser.add_argument("--all", action="store_true", help="every combination, not a covering subset")
    parser.add_argument("--write", action="store_true", help="also replace docs/equivalence.md")
    arguments = parser.parse_args()
    which = "all" if arguments.all else "covering"
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="autarky-matrix-") as folder:
        lines = run(which, Path(folder))
    text = page(
        lines,
        command=" ".join(["python -m tests.distributed.matrix", *sys.argv[1:]]),
        seconds=time.monotonic() - started,
    )
    wrong = differing(lines)
    print(text)
    for line in wrong:
        print("DIFFERS:", line)
    expected = len(all_cells() if arguments.all else covering_cells())
    print(f"{len(lines)} of {expected} cells compared, {len(wrong)} differ by more than {TOLERANCE:.0e}")
    if arguments.write:
        _PAGE.write_text(text)
    return 1 if wrong or len(lines) != expected else 0


if __name__ == "__main__":
    sys.exit(main())
