"""kill -9 of any process of a real launch, then the same command again: the run ends as if nothing had happened.

Many more kills, without the launcher's seconds: tests/drills/kill.py.
"""

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
from tests.integration.running import SMOKE, Job, kill, only_run, run_directories, submit, submit_to_end

VICTIMS: dict[str, Callable[[Job], psutil.Process]] = {
    "rank 1": lambda job: job.ranks()[1],
    "the launcher": lambda job: job.process_named("deepspeed.launcher.launch"),
    "launch.submit": lambda job: job.process_named("launch.submit"),
}


@dataclass(frozen=True, slots=True)
class Case:
    victim: str
    moment: str
    """"while ranks import", "after N steps", "during a save" or "during an evaluation"."""

    def has_come(self, job: Job, root: Path) -> bool:
        if self.moment == "while ranks import":
            return bool(job.ranks())
        for run in run_directories(root):
            match self.moment.split():
                case ["after", number, "steps"]:
                    return len(records(run, "step")) >= int(number)
                case ["during", "a", "save"]:
                    return any((run / "checkpoints").glob("*.tmp"))
                case ["during", "an", "evaluation"]:
                    return stage_status(run, "pretrain") == "trained"
                case _:
                    raise ValueError(self.moment)
        return False


CASES = [
    Case("launch.submit", "while ranks import"),
    Case("the launcher", "after 6 steps"),
    Case("launch.submit", "during a save"),
    Case("rank 1", "during an evaluation"),
]


RAMPS = [
    *("stages.pretrain.batch_ramp=[{until_tokens: 1024, global_batch_sequences: 4}]", "stages.pretrain.tokens=3584"),
    *("stages.anneal.batch_ramp=[{until_tokens: 512, global_batch_sequences: 4}]", "stages.anneal.tokens=2560"),
]
"""As many steps as the experiment has, 9 and 6; the first 4 and 2 of them with half batches."""


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, prepared_root: Path) -> Reference:
    """A run with batch ramps that nothing interrupted."""
    root = tmp_path_factory.mktemp("ramped")
    overrides = [*SMOKE, f"data.prepared_root={prepared_root}", *RAMPS]
    finished = submit_to_end([*overrides, f"run.root={root}"], folder=root / "output")
    assert finished.exit_code == 0, finished.explain()
    return Reference(directory=only_run(root), finished=finished, overrides=overrides)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_killed_run_continues_to_the_same_bits(case: Case, unbroken: Reference, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    command = [*unbroken.overrides, f"run.root={root}", "resume=auto"]
    with submit(command, folder=tmp_path) as job:
        job.wait_until(lambda: case.has_come(job, root))
        kill(VICTIMS[case.victim](job))
        assert job.survivors(within_seconds=30) == []
        assert job.wait(limit_seconds=30).exit_code != 0
    run = only_run(root)
    before = ledger(run)
    assert before.get("state") != "done", f"killed too late: {case}"

    finished = submit_to_end(command, folder=tmp_path)

    assert finished.exit_code == 0, finished.explain()
    assert only_run(root) == run, "the second start made a run directory of its own"
    assert ledger(run)["state"] == "done"
    assert ledger(run)["attempt"] == before.get("attempt", -1) + 1
    steps = records(run, "step")
    assert numbers_by_step(steps) == numbers_by_step(records(unbroken.directory, "step"))
    assert contents(last_checkpoint(run)) == contents(last_checkpoint(unbroken.directory))
    assert {record["decision"] for record in records(run, "gate")} == {"promote"}
    assert (run / "report.html").is_file()
