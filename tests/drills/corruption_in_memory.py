"""Flipped bits in memory and in computations: what the checks of training/fault_tolerance/corruption.py find.

    python -m tests.drills.corruption_in_memory --count 50 --seed 0

Four ranks train a small model under several layouts. In every trial one bit is flipped on one rank: in a copy of a
weight, in an fp32 weight, in any of the state while it rests, in an activation or in a gradient. It must be found, and
that rank be named; sign and exponent bits always. A copy in bf16 says nothing about the low bits of an fp32 mantissa.
Activations and gradients are hit where they are not 0: the sign of a 0 changes nothing that is computed from it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.drills.corruption_in_memory_worker import LAYOUTS, WORLD_SIZE

LIMIT_SECONDS = 3600


def main(argv: list[str]) -> int:
    """Run the drill and print its table."""
    parser = argparse.ArgumentParser(prog="python -m tests.drills.corruption_in_memory", description=__doc__)
    parser.add_argument("--count", type=int, default=50, help="trials of each row")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "found.json"
        subprocess.run(
            command(output, options.count, options.seed, list(LAYOUTS)),
            check=True,
            timeout=LIMIT_SECONDS,
            stdout=subprocess.DEVNULL,  # DeepSpeed calls every pass that is thrown away an overflow
            env=os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
        )
        found = json.loads(output.read_text())
    print(table(found))
    wrong = problems(found)
    print(*wrong, sep="\n", end="\n" if wrong else "")
    print(f"{summary(found)} in {time.monotonic() - begun:.0f} s; {len(wrong)} problems")
    return int(bool(wrong))


def command(output: Path, trials: int, seed: int, layouts: Sequence[str]) -> list[str]:
    """Return what starts the ranks."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={WORLD_SIZE}"]
    return [*torchrun, "-m", "tests.drills.corruption_in_memory_worker", str(output), str(trials), str(seed), *layouts]


def problems(found: Sequence[dict[str, Any]]) -> list[str]:
    """Return a sentence for everything that is not as it must be."""
    wrong = []
    for one in found:
        if not one["same_numbers"]:
            wrong.append(f"{one['layout']}: with all checks the numbers are others than without")
        if not one["restored"]:
            wrong.append(f"{one['layout']}: a trial left something behind")
        for row in one["rows"]:
            name = f"{row['layout']}, {row['fault']}, {row['check']}, {row['bits']}: {row['trials']} trials"
            if row["named"] < row["found"]:
                wrong.append(f"{name}, {row['found']} found, only {row['named']} with the right rank named")
            if row["found"] < row["trials"] and must_find_all(row):
                wrong.append(f"{name}, only {row['found']} found")
    return wrong


def must_find_all(row: dict[str, Any]) -> bool:
    """Return whether no flip of a row may be missed: of mantissas some may where rounding hides them."""
    hidden_by_rounding = row["bits"] == "mantissa" and (
        (row["fault"] == "fp32 weight" and "bf16" in row["layout"]) or row["check"] == "twice"
    )
    return not hidden_by_rounding


def table(found: Sequence[dict[str, Any]]) -> str:
    """Return the rows for people."""
    lines = ["| layout | fault | check | bits | trials | found | rank named |", "|---|---|---|---|---|---|---|"]
    for one in found:
        for row in one["rows"]:
            lines.append(f"| {' | '.join(str(value) for value in row.values())} |")
    return "\n".join(lines)


def summary(found: Sequence[dict[str, Any]]) -> str:
    """Return a line about all trials."""
    totals = []
    for bits in ("sign and exponent", "mantissa"):
        rows = [row for one in found for row in one["rows"] if row["bits"] == bits]
        trials, seen = sum(row["trials"] for row in rows), sum(row["found"] for row in rows)
        totals.append(f"{seen} of {trials} flips of {bits} bits found")
    return f"corruption in memory: {', '.join(totals)}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
