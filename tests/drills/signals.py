"""Tell runs to stop in every phase, again and again, and see that all ranks save at the same step and nothing is lost.

    python -m tests.drills.signals --count 100 --seed 0         in every phase at least so often
    python -m tests.drills.signals --count 20 --too-short 20    and so often with SIGKILL 0.2 s after the wish

Exit code 1 if a rank did not leave with the code 10, a step was lost, or a bit differs from the undisturbed run.
"""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.drills.drill_run import Findings, Reference, conclude, make_reference
from tests.drills.kill import verdict
from tests.drills.phases import Phase
from tests.drills.starts import ForkServer
from tests.drills.stops import StopOutcome, measure_phases, stop_one_run

STAGE_STEPS = (24, 24)
PER_RUN = 4
"""Stops in a phase until the run may go on to the next one."""


def stop_everywhere(
    server: ForkServer, reference: Reference, root: Path, *, count: int, too_short: int, seed: int
) -> list[StopOutcome]:
    """Return the outcomes of as many runs as it takes to stop in every phase so often."""
    draw = random.Random(seed)
    phase_seconds = measure_phases(server, reference, root)
    outcomes: list[StopOutcome] = []
    while True:
        reached = Counter(stop.phase for outcome in outcomes for stop in outcome.stops if not stop.too_short)
        killed = sum(stop.too_short for outcome in outcomes for stop in outcome.stops)
        wanted = [phase for phase in Phase for _ in range(min(PER_RUN, count - reached[phase]))]
        if not wanted and killed >= too_short:
            return outcomes
        outcomes.append(
            stop_one_run(
                server,
                reference,
                root,
                wanted=wanted,
                phase_seconds=phase_seconds,
                draw=draw,
                too_short=min(2, too_short - killed),
            )
        )
        print(f"  run {len(outcomes)}: {len(outcomes[-1].stops)} stops, {outcomes[-1].num_starts} starts", flush=True)
        if outcomes[-1].findings.all():
            return outcomes  # the next ones would most likely say the same


def table(outcomes: list[StopOutcome]) -> str:
    """Return a line per phase: sent, honoured, steps lost, and the longest time from the wish to the last exit."""
    stops = [stop for outcome in outcomes for stop in outcome.stops]
    rows = [(phase.value, [stop for stop in stops if stop.phase is phase and not stop.too_short]) for phase in Phase]
    lines = [f"  {'phase':<20} {'sent':>5} {'honoured':>9} {'steps lost':>11} {'slowest exit':>13}"]
    for name, mine in rows:
        if mine:
            honoured, lost = sum(stop.honoured for stop in mine), sum(stop.steps_lost for stop in mine)
            slowest = max(stop.seconds for stop in mine)
            lines.append(f"  {name:<20} {len(mine):>5} {honoured:>9} {lost:>11} {slowest:>11.1f} s")
    if killed := [stop for stop in stops if stop.too_short]:
        saved = sum(stop.honoured for stop in killed)
        lost = max(stop.steps_lost for stop in killed)
        lines.append(
            f"  SIGKILL 0.2 s after the wish: {len(killed)}, of which {saved} had saved; "
            f"the others went on from the last periodic save, at most {lost} steps back"
        )
    return "\n".join(lines)


def summary(outcomes: list[StopOutcome], *, seconds: float) -> str:
    """Return the table and what it was made of."""
    findings = Findings()
    for outcome in outcomes:
        findings.add(outcome.findings)
    stops = [stop for outcome in outcomes for stop in outcome.stops]
    twice = sum("," in stop.manner for stop in stops)
    return "\n".join(
        [
            f"{len(stops)} stops in {len(outcomes)} runs and {sum(outcome.num_starts for outcome in outcomes)} starts, "
            f"{twice} of them with two signals, {seconds:.0f} s; "
            f"not counted, since the phase was over: {sum(outcome.num_late for outcome in outcomes)}",
            table(outcomes),
            verdict(findings),
        ]
    )


def all_findings(outcomes: list[StopOutcome]) -> list[str]:
    """Return every sentence about something that went wrong."""
    return [sentence for outcome in outcomes for sentence in outcome.findings.all()]


def main() -> int:
    """Do what the command line asks."""
    parser = argparse.ArgumentParser(prog="python -m tests.drills.signals", description="Tell runs to stop.")
    parser.add_argument("--count", type=int, default=100, help="stops in every phase")
    parser.add_argument("--too-short", type=int, default=0, help="stops with SIGKILL 0.2 s later")
    parser.add_argument("--seed", type=int, default=0, help="of whom, how and when")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="autarky-drill-"))
    with ForkServer() as server:
        reference = make_reference(server, folder, STAGE_STEPS)
        begun = time.monotonic()
        outcomes = stop_everywhere(
            server, reference, folder, count=arguments.count, too_short=arguments.too_short, seed=arguments.seed
        )
        print(summary(outcomes, seconds=time.monotonic() - begun))
    return conclude(folder, is_wrong=bool(all_findings(outcomes)))


if __name__ == "__main__":
    sys.exit(main())
