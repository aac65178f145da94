"""Hurt runs on a real Slurm in every way that docs/slurm.md lists, and see what becomes of them.

    python -m tests.drills.slurm [FAULT …]

Starts a throw-away cluster of its own (root, Debian: `make packages`). Exit code 1 if a run did not end
as it should, or differs in one bit from the run that nobody hurt.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.drills.disturbed import BITWISE, Line
from tests.drills.slurm_campaign import FAULTS, Case, differences, run_campaign
from tests.slurm_cluster.cluster import SlurmCluster, why_not

_NUM_NODES = 6
"""Three runs of two nodes at a time."""
_LIMIT_SECONDS = 1500.0
_ORPHAN_SECONDS = 5.0
DAEMON_FAULTS = {
    "daemon killed": "kill -9 of a node's slurmd",
    "slurmstepd killed": "kill -9 of a task's slurmstepd",
    "node lost": "kill -9 of all that runs on a node, at once",
    "batch node lost": "the same on the node of the batch script",
}
"""Row K3 of the fault matrix: what is done."""
_EXPECTED = {"scancel": "CANCELLED"}


def row(name: str, case: Case, undisturbed: Case) -> tuple[str, bool]:
    """Return the line of the table about one run, and whether all is well."""
    restarts = int(case.fields["Restarts"])
    seen = _seconds(case.hurt_at, case.seen_at) if name not in ("finish", "drain") else "-"
    again = _seconds(case.hurt_at, case.again_at) if restarts else "-"
    wrong = differences(case, undisturbed) if case.state == "COMPLETED" else []
    well = case.state == _EXPECTED.get(name, "COMPLETED") and not wrong
    equal = ", ".join(wrong) or ("yes" if case.state == "COMPLETED" else "-")
    return f"{name:<18} {seen:>8} {again:>10} {restarts:>9} {case.state:<10} {equal}", well


def _seconds(begin: float | None, end: float | None) -> str:
    return f"{end - begin:.1f}" if begin is not None and end is not None else "?"


def run_faults(faults: Sequence[str], folder: Path) -> tuple[dict[str, Case], list[str]]:
    """Return the runs at their ends, an undisturbed one, "finish", among them, and the processes that are left."""
    names = list(dict.fromkeys(["finish", *faults]))
    with SlurmCluster(_NUM_NODES, kill_wait_seconds=10) as cluster:
        cases: dict[str, Case] = {}
        orphans: list[str] = []
        for start in range(0, len(names), 4):  # a node that is down is missing to the others: bring it back in between
            group = names[start : start + 4]
            cases |= run_campaign(cluster, group, folder / "runs", folder / "prepared", limit_seconds=_LIMIT_SECONDS)
            deadline = time.monotonic() + _ORPHAN_SECONDS
            while (left := cluster.processes_left()) and time.monotonic() < deadline:
                time.sleep(0.1)
            orphans += left
            cluster.bring_back()
    return cases, orphans


def daemon_lines(folder: Path) -> Iterator[Line]:
    """Yield the lines of the fault matrix's table about Slurm's daemons."""
    cases, orphans = run_faults(list(DAEMON_FAULTS), folder)
    for name in DAEMON_FAULTS:
        case = cases[name]
        differing = differences(case, cases["finish"])
        wrong = [f"processes left: {orphans}"] if orphans else []
        if case.state != "COMPLETED" or case.again_at is None:
            wrong.append(case.describe())
        hurt_at = case.hurt_at or 0.0
        yield Line(
            row="K3",
            fault=f"Slurm: {name}",
            injected=DAEMON_FAULTS[name],
            seen_seconds=None if case.seen_at is None else case.seen_at - hurt_at,
            recovered_seconds=None if case.again_at is None else case.again_at - hurt_at,
            equal="NO" if differing else BITWISE,
            remarks=f"Slurm's own time; {case.fields['Restarts']} restart",
            wrong=(*wrong, *differing),
        )


def main() -> int:
    """Do what the command line asks."""
    parser = argparse.ArgumentParser(prog="python -m tests.drills.slurm", description=__doc__)
    parser.add_argument("faults", nargs="*", metavar="FAULT", help=f"some of: {', '.join(FAULTS)}; none means all")
    chosen = parser.parse_args().faults or list(FAULTS)
    if unknown := set(chosen) - set(FAULTS):
        parser.error(f"no such fault: {', '.join(sorted(unknown))}")
    if (reason := why_not()) is not None:
        print(f"no cluster can be started here: {reason}", file=sys.stderr)
        return 1
    folder = Path(tempfile.mkdtemp(prefix="autarky-slurm-drill-"))
    begun = time.monotonic()
    cases, orphans = run_faults(chosen, folder)
    print(f"{'fault':<18} {'seen (s)':>8} {'again (s)':>10} {'restarts':>9} {'ended as':<10} equal bitwise")
    rows = [row(name, case, cases["finish"]) for name, case in cases.items()]
    print("\n".join(line for line, _ in rows))
    seconds = time.monotonic() - begun
    print(f"{len(rows)} runs, {seconds:.0f} s; processes left after {_ORPHAN_SECONDS:.0f} s: {len(orphans)}")
    if orphans or not all(well for _, well in rows):
        print("\n".join([f"the runs are in {folder}", *orphans]))
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
