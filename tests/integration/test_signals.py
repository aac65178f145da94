"""Real launches told to stop, whoever is told: every rank saves at the same step, and the run goes on to the same bits.

One run directory from launcher to launcher. Every phase, many times: tests/integration/test_signals_drill.py.
"""

import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.integration.conftest import Reference
from tests.integration.reading import contents, last_checkpoint, ledger, numbers_by_step, records
from tests.integration.running import Job, submit_to_end
from tests.integration.test_launchers import BIN, MODULE, deepspeed
from training.config.load import compose
from training.config.run_directory import create
from training.errors import ExitCode
from training.plain_files import read_json

SOON_SECONDS = 60


def torchrun() -> list[str]:
    return [str(BIN / "torchrun"), "--standalone", "--nproc_per_node=2", *MODULE]


def of_submit(job: Job) -> list[psutil.Process]:
    return [job.process_named("launch.submit")]


def of_one_rank(job: Job) -> list[psutil.Process]:
    return [job.ranks()[1]]


def of_all(job: Job) -> list[psutil.Process]:
    return job.processes()


def of_the_agent(job: Job) -> list[psutil.Process]:
    """Return torchrun's own process: the ranks' parent."""
    parent = job.ranks()[0].parent()
    assert parent is not None
    return [parent]


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One start that is told to stop."""

    launcher: Callable[[], Sequence[str]]
    """The command, less the run directory."""
    told: Callable[[Job], list[psutil.Process]]
    signals: tuple[signal.Signals, ...]
    steps: int = 1
    """Steps of this start before the signal; 0 is as soon as the ranks' processes are there, which then import."""
    exit_code: int = ExitCode.STOPPED
    """Of the launcher; what it was asked for stands in exit.json, whatever it makes of it."""


def submit() -> list[str]:
    return [sys.executable, "-m", "launch.submit"]


CASES = {
    "submit, told while its ranks import": Case(
        launcher=submit, told=of_submit, signals=(signal.SIGUSR1, signal.SIGUSR1), steps=0
    ),
    "submit, told twice": Case(launcher=submit, told=of_submit, signals=(signal.SIGTERM, signal.SIGTERM)),
    "submit, Ctrl-C": Case(launcher=submit, told=of_submit, signals=(signal.SIGINT,)),
    "submit, everything told": Case(launcher=submit, told=of_all, signals=(signal.SIGUSR1, signal.SIGTERM)),
    "deepspeed, one rank told": Case(launcher=deepspeed, told=of_one_rank, signals=(signal.SIGUSR1,)),
    # The `deepspeed` command does not listen to SIGTERM: it is the first to go.
    "deepspeed, everything told": Case(
        launcher=deepspeed, told=of_all, signals=(signal.SIGTERM,), exit_code=-signal.SIGTERM
    ),
    # torchrun reports 1 whatever a rank's code is (torch 2.13).
    "torchrun, one rank told": Case(launcher=torchrun, told=of_one_rank, signals=(signal.SIGTERM,), exit_code=1),
    "torchrun, its agent told": Case(launcher=torchrun, told=of_the_agent, signals=(signal.SIGTERM,), exit_code=1),
}


@pytest.fixture(scope="module")
def run(reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory like the reference's, not started."""
    overrides = [*reference.overrides, f"run.root={tmp_path_factory.mktemp('signals')}", "run.id=told"]
    return create(compose(overrides), overrides)


def command(case: Case, run: Path, reference: Reference) -> list[str]:
    if case.launcher is submit:
        return [*submit(), *reference.overrides, f"run.root={run.parent}", "run.id=told", "resume=auto"]
    return [*case.launcher(), str(run), "resume=auto"]


@pytest.mark.parametrize("name", CASES)
def test_all_ranks_save_at_the_same_step_and_leave(name: str, run: Path, reference: Reference, tmp_path: Path) -> None:
    case = CASES[name]
    before = len(records(run, "step"))
    with Job(command(case, run, reference), folder=tmp_path) as job:
        job.wait_until(lambda: len(job.ranks()) == 2 and len(records(run, "step")) >= before + case.steps)
        for number in case.signals:
            for process in case.told(job):
                process.send_signal(number)
        finished = job.wait(limit_seconds=SOON_SECONDS)
        assert job.survivors(within_seconds=SOON_SECONDS) == []
    assert finished.exit_code == case.exit_code, finished.explain()
    if case.steps == 0:
        assert len(records(run, "step")) == before
        return
    assert read_json(run / "exit.json")["exit_code"] == ExitCode.STOPPED, finished.explain()
    assert ledger(run)["state"] == "stopped"
    last = records(run, "step")[-1]["step"]
    assert last_checkpoint(run).name == f"step-{last:08d}", "a step was lost"
    assert sorted(path.name for path in (run / "logs").glob("*.error")) == ["rank-00000.error", "rank-00001.error"]
    assert all("Stopped" in path.read_text() for path in (run / "logs").glob("*.error"))


def test_then_it_ends_as_the_run_that_nobody_stopped(run: Path, reference: Reference, tmp_path: Path) -> None:
    done = records(run, "step")
    overrides = [*reference.overrides, f"run.root={run.parent}", "run.id=told", "resume=auto"]
    finished = submit_to_end(overrides, folder=tmp_path)
    assert finished.exit_code == 0, finished.explain()
    steps = records(run, "step")
    assert [step["step"] for step in steps] == list(range(1, len(steps) + 1)), "a step was done twice"
    assert len(done) >= len([case for case in CASES.values() if case.steps])
    assert numbers_by_step(steps) == numbers_by_step(records(reference.directory, "step"))
    assert contents(last_checkpoint(run)) == contents(last_checkpoint(reference.directory))
