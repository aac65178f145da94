"""The fault matrix: every row injected for real into the drilled run, with what came of it, as one table.

    python -m tests.drills.faults [ROW …]                     some rows, or the rows of a section: K1, H, D2 …
    python -m tests.drills.faults --slurm --write docs/faults.md

Each row is a run that is disturbed, seen to be, gone on with (resume=auto, at once) and compared bit by bit with the
run that nobody disturbed. Exit code 1 if a row is not as it must be: a crash is seen within 3 s, a hang within its
limit and 2 s, no process is left 5 s later, the final state is equal.
"""

import argparse
import datetime
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.drills import fault_rows, fault_rows_around
from tests.drills.disturbed import Ground, Line, Machine, MissedError
from tests.drills.drill_run import conclude
from tests.drills.mounts import go_into_own_mounts
from tests.drills.slurm import daemon_lines
from tests.drills.starts import ForkServer
from tests.slurm_cluster.cluster import why_not

Row = Callable[[Ground], Iterator[Line]]


def daemons_killed(ground: Ground) -> Iterator[Line]:
    """K3: Slurm's daemons, on a real Slurm."""
    yield from daemon_lines(ground.folder("slurm"))


ROWS: dict[str, Sequence[Row]] = {
    "K1": [fault_rows.ranks_killed],
    "K2": [fault_rows.launcher_killed],
    "K3": [daemons_killed],
    "K4": [fault_rows.all_killed],
    "K5": [fault_rows.points_killed],
    "H1": [fault_rows.ranks_frozen],
    "H2": [fault_rows.sections_hung],
    "H3": [fault_rows.rank_slow],
    "H4": [fault_rows.stale_lock],
    "P1": [fault_rows.told_to_stop],
    "P2": [fault_rows.told_too_late],
    "D1": [fault_rows_around.disk_full],
    "D2": [fault_rows_around.disk_errors],
    "D3": [fault_rows_around.disk_slow],
    "D4": [fault_rows_around.storage_away],
    "T1": [fault_rows_around.clock_jumps],
    "T2": [fault_rows_around.clocks_differ],
    "L1": [fault_rows_around.wandb_away],
    "L2": [fault_rows_around.output_gone],
    "N1": [fault_rows_around.not_a_number],
    "N2": [fault_rows_around.spikes],
    "E1": [fault_rows.arrows_killed, fault_rows.evaluation_fails, fault_rows.evaluation_hangs],
    "M1": [fault_rows.out_of_memory],
}
"""In the order of the matrix."""
_SLURM = "K3"
_HEAD = ("row", "fault", "injected", "seen (s)", "recovered (s)", "equal bitwise", "verdict", "remarks")
_LONGEST_REMARK = 160


def chosen(words: Sequence[str], *, with_slurm: bool) -> list[str]:
    """Return the rows that some words ask for, all of them without a word; Slurm's only if asked for.

    Raises:
        ValueError: a word is no row and no section.
    """
    for word in words:
        if not any(name.startswith(word) for name in ROWS):
            raise ValueError(f"there is no row {word}; there are {', '.join(ROWS)}")
    if words:
        return [name for name in ROWS if any(name.startswith(word) for word in words)]
    return [name for name in ROWS if with_slurm or name != _SLURM]


def run_rows(ground: Ground, names: Sequence[str]) -> Iterator[Line]:
    """Yield the lines of the table, each when it is known; Slurm's last, since they take longest."""
    for name in sorted(names, key=lambda name: name == _SLURM):
        for row in ROWS[name]:
            try:
                yield from row(ground)
            except Exception as error:  # the other rows are still of interest
                ground.server.kill_all()
                said = str(error) if isinstance(error, MissedError) else "".join(traceback.format_exception(error))
                words = (row.__doc__ or name).partition(": ")[2].rstrip(".\n")
                yield Line(row=name, fault=words, injected="", equal="-", wrong=(said,))


def verdict(line: Line) -> str:
    """Return what to think of a line."""
    if line.not_run:
        return "not run"
    return "WRONG" if line.wrong else "right"


def cells(line: Line) -> tuple[str, ...]:
    """Return a line's cells, in the order of the head."""
    remarks = re.sub(r"(?<=[\s('])/\S*/(?=\S)", "…/", " ".join((line.not_run or line.remarks).split()))
    if len(remarks) > _LONGEST_REMARK:
        remarks = remarks[: _LONGEST_REMARK - 1] + "…"
    equal = "-" if line.not_run else line.equal
    seconds = (_seconds(line.seen_seconds), _seconds(line.recovered_seconds))
    return line.row, line.fault, line.injected, *seconds, equal, verdict(line), remarks


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.2f}"


def table(lines: Sequence[Line]) -> str:
    """Return the table as text, and what was wrong below it."""
    rows = [_HEAD, *(cells(line) for line in lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD) - 1)]
    text = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip()
        for row in rows
    ]
    wrong = [f"WRONG: {line.row} {line.fault}: {sentence}" for line in lines for sentence in line.wrong]
    return "\n".join([*text, *wrong])


def markdown(lines: Sequence[Line], *, command: str, seconds: float) -> str:
    """Return the page with the table."""
    rows = [_HEAD, ("---",) * len(_HEAD), *(cells(line) for line in lines)]
    text = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    date = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    return "\n".join(
        [
            "# The fault matrix, as it was run",
            "",
            f"Written by `{command}` on {date}: {Machine().describe()}, two ranks, {summary(lines, seconds=seconds)}.",
            "",
            "Every line is a real run (ZeRO-3, then a pipeline over it) that was disturbed, gone on with by "
            "`resume=auto` at once, brought to its end and compared bit by bit with the run that nobody disturbed: "
            "all numbers of all steps of all starts, every committed checkpoint, the ledger. *Seen* is the time from "
            "the injection until the first process of the job ended, or wrote it down; *recovered* that to the first "
            "new step. Limits: a crash is seen within 3 s, a hang within its limit and 2 s, nothing of the job lives "
            "5 s later. What each incident means and what to do about it is in [the run-book](run_book.md).",
            "",
            *text,
            "",
        ]
    )


def summary(lines: Sequence[Line], *, seconds: float) -> str:
    """Return how many lines came out how."""
    counts = {word: sum(verdict(line) == word for line in lines) for word in ("right", "WRONG", "not run")}
    return ", ".join([f"{len(lines)} lines", *(f"{n} {word}" for word, n in counts.items())]) + f", {seconds:.0f} s"


def main() -> int:
    """Do what the command line asks."""
    parser = argparse.ArgumentParser(prog="python -m tests.drills.faults", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"some of: {', '.join(ROWS)}; or a letter")
    parser.add_argument("--slurm", action="store_true", help="K3 too, if none are named: a real Slurm (root, Debian)")
    parser.add_argument("--stops", type=int, default=1, help="wishes to stop in every phase (P1)")
    parser.add_argument("--write", type=Path, help="write the table to this file, as markdown")
    arguments = parser.parse_args()
    try:
        names = chosen(arguments.rows, with_slurm=arguments.slurm)
    except ValueError as error:
        parser.error(str(error))
    if _SLURM in names and (reason := why_not()) is not None:
        print(f"no Slurm can be started here: {reason}", file=sys.stderr)
        return 1
    go_into_own_mounts("tests.drills.faults", sys.argv[1:])
    folder = Path(tempfile.mkdtemp(prefix="autarky-faults-"))
    lines: list[Line] = []
    begun = time.monotonic()
    with ForkServer() as server:
        ground = Ground(server, folder, stops_per_phase=arguments.stops)
        for line in run_rows(ground, names):
            lines.append(line)
            print(f"  {time.monotonic() - begun:5.0f} s  {line.row} {line.fault}: {verdict(line)}", flush=True)
    seconds = time.monotonic() - begun
    if not arguments.rows and not arguments.slurm:
        reason = "not asked for (--slurm); docs/slurm.md has a table of its own"
        lines.append(Line(row=_SLURM, fault="Slurm's daemons die", injected="kill -9 on a real Slurm", not_run=reason))
    lines.sort(key=lambda line: list(ROWS).index(line.row))
    print(table(lines))
    print(summary(lines, seconds=seconds))
    if arguments.write:
        command = " ".join(["python -m tests.drills.faults", *sys.argv[1:]])
        arguments.write.write_text(markdown(lines, command=command, seconds=seconds))
    return conclude(folder, is_wrong=any(line.wrong for line in lines))


if __name__ == "__main__":
    sys.exit(main())
