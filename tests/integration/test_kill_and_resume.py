"""kill -9 of any process at any moment, then the same command again: the run ends as if nothing had happened.

AUTARKY_KILLS=n runs n cases: the first five are chosen by hand, the others drawn from seeded random numbers.
"""

import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.integration.conftest import Reference
from tests.integration.reading import (
    contents,
    last_checkpoint,
    ledger,
    numbers_by_step,
    records,
    stage_status,
)
from tests.integration.running import Job, kill, only_run, run_directories, submit, submit_to_end

VICTIMS: dict[str, Callable[[Job], psutil.Process]] = {
    "rank 0": lambda job: job.ranks()[0],
    "rank 1": lambda job: job.ranks()[1],
    "the launcher": lambda job: job.process_named("deepspeed.launcher.launch"),
    "launch.submit": lambda job: job.process_named("launch.submit"),
}


@dataclass(frozen=True, slots=True)
class Case:
    victim: str
    moment: str
    """"after N steps", "during a save", "after the first stage" or "during an evaluation"."""

    def has_come(self, root: Path) -> bool:
        for run in run_directories(root):
            match self.moment.split():
                case ["after", number, "steps"]:
                    return len(records(run, "step")) >= int(number)
                case ["during", "a", "save"]:
                    return any((run / "checkpoints").glob("*.tmp"))
                case ["after", "the", "first", "stage"]:
                    return (run / "checkpoints/step-00000009").is_dir()
                case ["during", "an", "evaluation"]:
                    return stage_status(run, "pretrain") == "trained"
                case _:
                    raise ValueError(self.moment)
        return False


def cases(number: int) -> list[Case]:
    chosen = [
        Case("rank 1", f"after {random.Random(0).randint(1, 14)} steps"),
        Case("the launcher", f"after {random.Random(1).randint(1, 14)} steps"),
        Case("launch.submit", "during a save"),
        Case("rank 0", "after the first stage"),
        Case("rank 1", "during an evaluation"),
    ]
    draw = random.Random(2)
    for _ in range(number - len(chosen)):
        steps = f"after {draw.randint(1, 14)} steps"
        moment = draw.choice([steps, steps, "during a save", "after the first stage", "during an evaluation"])
        chosen.append(Case(draw.choice(list(VICTIMS)), moment))
    return chosen[:number]


@pytest.mark.parametrize("case", cases(int(os.environ.get("AUTARKY_KILLS", "5"))), ids=str)
def test_a_killed_run_continues_to_the_same_bits(case: Case, reference: Reference, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    command = [*reference.overrides, f"run.root={root}", "resume=auto"]
    with submit(command, folder=tmp_path) as job:
        job.wait_until(lambda: case.has_come(root))
        kill(VICTIMS[case.victim](job))
        assert job.survivors(within_seconds=30) == []
        assert job.wait(limit_seconds=30).exit_code != 0
    run = only_run(root)
    assert ledger(run)["state"] != "done", f"killed too late: {case}"

    finished = submit_to_end(command, folder=tmp_path)

    assert finished.exit_code == 0, finished.explain()
    assert only_run(root) == run, "the second start made a run directory of its own"
    assert ledger(run)["state"] == "done"
    assert ledger(run)["attempt"] == 1
    steps = records(run, "step")
    assert numbers_by_step(steps) == numbers_by_step(records(reference.directory, "step"))
    assert contents(last_checkpoint(run)) == contents(last_checkpoint(reference.directory))
    assert {record["decision"] for record in records(run, "gate")} == {"promote"}
    assert (run / "report.html").is_file()
