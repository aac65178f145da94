"""Hostile programs in the sandbox for a model's programs: the host is as it was after each, and none counts as right.

    python -m tests.drills.sandbox [--limit-seconds 4] [--every 1] [--kills 60] [--seed 0]

Each program runs beside canary files, a secret in the environment and listeners that it is told of. After each: the
canaries are whole, the secret is in no output, no listener was reached, no process is left, and there were never more
processes, nor more memory, than the limits allow. Then answers that deceive their test are judged, and honest ones; and
harnesses are killed while a sandbox is being made, or right after: nothing of it may go on.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.sandbox.check import check_sandbox
from eval.sandbox.functions import FunctionCheck, check_function
from eval.sandbox.limits import Ending, Limits
from eval.sandbox.running import run_program
from tests.drills.deceiving_answers import CONTEXT, DECEIVING, HONEST, TEST
from tests.drills.host_watch import Bait, Watch, bait
from tests.drills.hostile import Hostile
from tests.drills.hostile_programs import PROCESSES, RESOURCES
from tests.drills.hostile_reaches import HOST, KERNEL, NETWORK

HOSTILE_PROGRAMS = [*PROCESSES, *RESOURCES, *HOST, *NETWORK, *KERNEL]
REPOSITORY = Path(__file__).parents[2]
_HARNESS = """
from eval.sandbox.limits import Ending, Limits
from eval.sandbox.running import run_program
run_program("import time; time.sleep(10**6)", limits=Limits(wall_seconds=1e6))
"""
_GONE_SECONDS = 30.0
_PLENTY: dict[str, Any] = {"wall_seconds": 60.0, "cpu_seconds": 30}
"""For what ends by itself, on a machine that may be busy."""
_BWRAP_PROCESSES = 2
"""bwrap's first process inside, and for a moment the one that makes the namespaces."""


@dataclass(kw_only=True)
class Tally:
    """What a drill did and saw."""

    programs: int = 0
    deceiving: int = 0
    honest: int = 0
    controls: int = 0
    killed_harnesses: int = 0
    most_processes: int = 0
    most_bytes: int = 0
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"sandbox: {self.programs} hostile programs, after each the host was looked at ({self.controls} ran "
            f"outside, too, and succeeded there); at most "
            f"{self.most_processes} processes and {self.most_bytes / 2**20:.0f} MiB at a time; "
            f"{self.deceiving} answers that deceive and {self.honest} honest ones judged; "
            f"{self.killed_harnesses} harnesses killed; {len(self.problems)} problems"
        )


def main(argv: list[str]) -> int:
    """Run the drill and print its line."""
    parser = argparse.ArgumentParser(prog="python -m tests.drills.sandbox", description=__doc__)
    parser.add_argument("--limit-seconds", type=float, default=4.0, help="wall time of programs without end, over 2")
    parser.add_argument("--every", type=int, default=1, help="only every n-th of those that use up their time")
    parser.add_argument("--kills", type=int, default=60, help="of harnesses")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    options = parser.parse_args(argv)
    check_sandbox()
    tally = drill(options.limit_seconds, options.every)
    kill_harnesses(options.kills, options.seed, tally)
    print(*tally.problems, sep="\n", end="\n" if tally.problems else "")
    print(tally)
    return int(bool(tally.problems))


def drill(limit_seconds: float, every: int = 1) -> Tally:
    """Run all programs and judge all answers; of those that end only at their limits every n-th."""
    tally = Tally()
    slow = [program for program in HOSTILE_PROGRAMS if Ending.exited not in program.endings]
    left_out = [program for number, program in enumerate(slow) if number % every]
    with bait() as baited:
        for program in HOSTILE_PROGRAMS:
            if program.works_outside:
                tally.problems += control(program, baited)
                tally.controls += 1
            if program not in left_out:
                tally.problems += [
                    f"{program.name}: {problem}" for problem in run(program, baited, limit_seconds, tally)
                ]
    for expected, answers in ((False, DECEIVING), (True, HONEST)):
        for name, answer in answers.items():
            tally.problems += [f"{name}: {problem}" for problem in judge(answer, expected, limit_seconds)]
    tally.deceiving, tally.honest = len(DECEIVING), len(HONEST)
    return tally


def run(program: Hostile, baited: Bait, limit_seconds: float, tally: Tally) -> list[str]:
    """Run one program and return what was wrong on the host after it."""
    ends_by_itself = Ending.exited in program.endings
    time_limits = _PLENTY if ends_by_itself else {"wall_seconds": limit_seconds, "cpu_seconds": int(limit_seconds) - 1}
    limits = Limits(**time_limits | program.limits)
    with Watch() as watch:
        ran = run_program(baited.filled_in(program.source), limits=limits, stdin=baited.secret[:6])
    left = watch.left()
    most_bytes = limits.processes * limits.memory_bytes + 2**26
    tally.programs += 1
    tally.most_processes = max(tally.most_processes, watch.most_processes)
    tally.most_bytes = max(tally.most_bytes, watch.most_bytes)
    problems = [*program.problems(ran), *baited.harm()]
    if left:
        problems.append(f"processes are left: {left}")
    if watch.most_processes > limits.processes + _BWRAP_PROCESSES:
        problems.append(f"there were {watch.most_processes} processes at a time")
    if watch.most_bytes > most_bytes:
        problems.append(f"they held {watch.most_bytes:,} bytes")
    if baited.secret in ran.stdout + ran.stderr:
        problems.append("it said the host's secret")
    if len(ran.stdout) > limits.output_bytes or len(ran.stderr) > limits.output_bytes:
        problems.append("more output was kept than is allowed")
    after = run_program("import json, os, shutil; print(json.dumps(sorted(os.listdir('/tmp'))))")
    if after.stdout != "[]\n":
        problems.append(f"the next program found {after.stdout!r} {after.stderr!r}")
    return problems


def control(program: Hostile, baited: Bait) -> list[str]:
    """Return what a program without a sandbox could not do: then it would show nothing inside of one, either."""
    source = baited.filled_in(program.source)
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False, timeout=60)
    harm = list(baited.harm())
    if "ESCAPED" in done.stdout and (harm or baited.secret in done.stdout):
        return []
    return [f"{program.name}: does nothing even without a sandbox: {done.stdout} {done.stderr} {harm}"]


def judge(answer: str, expected: bool, limit_seconds: float) -> list[str]:
    """Return what was wrong with the verdict on an answer, or on the host after it."""
    check = FunctionCheck(program=answer, function="add", context=CONTEXT, test=TEST)
    limits = _PLENTY if expected else {"wall_seconds": limit_seconds, "cpu_seconds": 2}
    with Watch() as watch:
        verdict = check_function(check, limits=Limits(**limits))
    problems = [] if verdict.passed is expected else [f"passed is {verdict.passed}: {verdict.why}"]
    if bool(verdict.why) is verdict.passed:
        problems.append(f"passed is {verdict.passed}, but the reason is {verdict.why!r}")
    if left := watch.left():
        problems.append(f"processes are left: {left}")
    return problems


def kill_harnesses(count: int, seed: int, tally: Tally) -> None:
    """Kill so many processes that run a program, each within moments of its sandbox's first sign of life."""
    draw = random.Random(seed)
    for number in range(count):
        watch = Watch()
        harness = subprocess.Popen([sys.executable, "-c", _HARNESS], cwd=REPOSITORY)
        try:
            while not watch.left() and harness.poll() is None:
                time.sleep(0.0005)
            time.sleep(draw.choice([0.0, draw.uniform(0, 0.02), draw.uniform(0, 0.1)]))
        finally:
            harness.kill()
            harness.wait(timeout=60)
        deadline = time.monotonic() + _GONE_SECONDS
        while (left := watch.left()) and time.monotonic() < deadline:
            time.sleep(0.01)
        for process in left:
            tally.problems.append(f"killed harness {number}: process {process} goes on")
            os.kill(process, signal.SIGKILL)
        if harness.returncode != -signal.SIGKILL:
            tally.problems.append(f"harness {number} ended by itself with {harness.returncode}")
        tally.killed_harnesses += 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
