"""Kill runs again and again, and see that it makes no difference.

    python -m tests.drills.kill --kills 200 --seed 0        random kills: whom and when follows from the seed
    python -m tests.drills.kill --points                    every point of the save protocol on every rank, both layouts

Both may be asked for at once. Exit code 1 if a committed step was lost, a bit differs or a run needed a person.
"""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tests.drills.campaign import Kill, Outcome, run_campaign
from tests.drills.drill_run import Findings, Reference, conclude, make_reference
from tests.drills.moments import Place
from tests.drills.points import run_points, table
from tests.drills.starts import ForkServer
from training.errors import ExitCode

STAGE_STEPS = (24, 24)
KILLS_PER_RUN = 25


def random_kills(server: ForkServer, reference: Reference, root: Path, *, number: int, seed: int) -> list[Outcome]:
    """Return the outcomes of as many runs as it takes to be hit so many times."""
    draw = random.Random(seed)
    outcomes: list[Outcome] = []
    while (missing := number - sum(len(outcome.kills) for outcome in outcomes)) > 0:
        outcomes.append(run_campaign(server, reference, root, draw=draw, max_kills=min(missing, KILLS_PER_RUN)))
        print(f"  run {len(outcomes)}: {len(outcomes[-1].kills)} kills, {outcomes[-1].num_starts} starts", flush=True)
        if outcomes[-1].findings.all():
            break  # the next ones would most likely say the same
    return outcomes


def summary(outcomes: list[Outcome], *, seconds: float) -> str:
    """Return a few lines: how many kills, whom and where they hit, and what they did."""
    kills = [kill for outcome in outcomes for kill in outcome.kills]
    aimed = [kill for kill in kills if kill.aimed is Place.save]
    lines = [
        f"{len(kills)} kills in {len(outcomes)} runs and {sum(outcome.num_starts for outcome in outcomes)} starts, "
        f"{seconds:.0f} s",
        f"  victims: {_counted(kill.victim for kill in kills)}",
        f"  places: {_counted(kill.hit.value for kill in kills)}; aimed inside a save: {len(aimed)}, "
        f"of which {sum(kill.hit is Place.save for kill in aimed)} hit one",
        f"  ranks that saw another die ended with: {_counted(_code(code) for kill in kills for code in _peers(kill))}",
        verdict(merged(outcomes)),
    ]
    return "\n".join(lines)


def verdict(findings: Findings) -> str:
    """Return the line that counts, and a line for everything that went wrong."""
    counts = (
        f"  committed steps lost: {len(findings.lost_steps)}; "
        f"differences from the undisturbed run: {len(findings.differences)}; manual retries: {len(findings.retries)}"
    )
    return "\n".join([counts, *(f"  WRONG: {sentence}" for sentence in findings.all())])


def merged(outcomes: list[Outcome]) -> Findings:
    """Return the findings of all runs."""
    findings = Findings()
    for outcome in outcomes:
        findings.add(outcome.findings)
    return findings


def _counted(words: Iterable[str]) -> str:
    return ", ".join(f"{word} {number}" for word, number in Counter(words).most_common())


def _peers(kill: Kill) -> tuple[int, ...]:
    return () if kill.victim == "launcher" else kill.survivors


def _code(code: int) -> str:
    return ExitCode(code).name if code in list(ExitCode) else f"signal {-code}"


def main() -> int:
    """Do what the command line asks."""
    parser = argparse.ArgumentParser(prog="python -m tests.drills.kill", description="Kill runs again and again.")
    parser.add_argument("--kills", type=int, default=0, help="random kills")
    parser.add_argument("--seed", type=int, default=0, help="of the random kills")
    parser.add_argument("--points", action="store_true", help="every point of the save protocol on every rank")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="autarky-drill-"))
    findings = Findings()
    with ForkServer() as server:
        reference = make_reference(server, folder, STAGE_STEPS)
        if arguments.points:
            begun = time.monotonic()
            rows, outcome = run_points(server, reference, folder)
            print(table(rows))
            print(f"{len(rows)} points x ranks, {time.monotonic() - begun:.0f} s")
            print(verdict(outcome.findings), flush=True)
            findings.add(outcome.findings)
        if arguments.kills:
            begun = time.monotonic()
            outcomes = random_kills(server, reference, folder, number=arguments.kills, seed=arguments.seed)
            print(summary(outcomes, seconds=time.monotonic() - begun))
            findings.add(merged(outcomes))
    return conclude(folder, is_wrong=bool(findings.all()))


if __name__ == "__main__":
    sys.exit(main())
