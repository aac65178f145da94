"""A real run that is killed twice and goes on twice is one run in wandb, equal to metrics.jsonl: offline and online."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.drills.drill_run import make_run
from tests.drills.starts import ForkServer, Started
from tests.integration.reading import ledger, records
from tests.integration.running import kill
from tests.integration.wandb_log import assert_equal_to_the_log
from tests.wandb_server import WandbServer
from training.reporting.metrics import read_metrics

STEPS_BEFORE_KILLS = (6, 13)
"""One in either training stage, past checkpoints of every fourth step: some steps are done again."""


def start(server: ForkServer, run: Path, environment: dict[str, str]) -> Started:
    return server.start(run, world_size=2, output=run.parent / "output", environment=environment)


def wait_for(server: ForkServer, moment: Callable[[], bool]) -> None:
    for _ in range(600):
        if moment():
            return
        server.wait(0.2)
    raise AssertionError("the moment did not come")


def disturbed_run(
    server: ForkServer, root: Path, mode: str, environment: dict[str, str], num_begun: Callable[[Path], int]
) -> Path:
    """Return the directory of a run that is done after two kills.

    Args:
        server: forks its ranks.
        root: where it lies.
        mode: of wandb.
        environment: of its processes.
        num_begun: returns how many starts wandb has seen.
    """
    run = make_run(root, (9, 6), save_every_steps=4, more=[f"reporting.wandb.mode={mode}"])
    for number, step in enumerate(STEPS_BEFORE_KILLS):
        started = start(server, run, environment)
        wait_for(server, lambda step=step: any(record["step"] >= step for record in records(run, "step")))
        for rank in ("rank 0", "rank 1"):  # or the run is done before wandb has begun
            started.send(rank, signal.SIGSTOP)
        wait_for(server, lambda number=number: num_begun(run) > number)
        feeding = psutil.Process(started.ranks[0]).children(recursive=True)
        assert any("training.reporting.wandb_follower" in process.cmdline() for process in feeding)
        started.kill("launcher")
        if number == 1:  # as a scheduler ends a job: the follower and wandb's own process die with it
            for process in feeding:
                kill(process)
        assert not server.wait(100).processes
    started = start(server, run, environment)
    assert not server.wait(200).processes
    assert ledger(run)["state"] == "done"
    assert {record["attempt"] for record in records(run, "step")} == {0, 1, 2}
    return run


def send(run: Path, wandb_server: WandbServer) -> int:
    """Return how many rows were sent."""
    command = [sys.executable, "-m", "training.reporting.send_to_wandb", str(run)]
    environment = os.environ | wandb_server.environment()
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=100).stdout
    number, _, _ = said.partition(" rows sent to ")
    return int(number)


def fragments(run: Path) -> list[Path]:
    return sorted(run.glob("wandb/offline-run-*/run-*.wandb"))


@pytest.fixture(scope="module")
def offline_run(server: ForkServer, root: Path) -> Path:
    return disturbed_run(server, root, "offline", {}, lambda run: len(fragments(run)))


def test_offline_fragments_of_three_starts_are_synced_as_one_run(offline_run: Path) -> None:
    assert len(fragments(offline_run)) == 3
    with WandbServer() as wandb_server:
        folders = [str(path.parent) for path in fragments(offline_run)]
        done = subprocess.run(
            [str(Path(sys.executable).with_name("wandb")), "sync", *folders],
            env=os.environ | wandb_server.environment(),
            cwd=offline_run.parent,
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )
        assert done.returncode == 0, done.stderr
        assert "ERROR" not in done.stderr, done.stderr
        assert list(wandb_server.runs) == [offline_run.name]
        assert_equal_to_the_log(wandb_server.only_run(), offline_run)
        assert wandb_server.only_run().exit_codes[-1] == 0


def test_the_command_sends_an_offline_run_from_its_log_alone(offline_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / offline_run.name
    shutil.copytree(offline_run, copy, ignore=shutil.ignore_patterns("wandb", "checkpoints"))
    with WandbServer() as wandb_server:
        assert send(copy, wandb_server) == len(read_metrics(copy / "metrics.jsonl").records)
        assert_equal_to_the_log(wandb_server.only_run(), copy)


def test_three_online_starts_are_one_run(server: ForkServer, root: Path) -> None:
    with WandbServer() as wandb_server:
        environment = wandb_server.environment()
        run = disturbed_run(server, root, "online", environment, lambda _: len(wandb_server.starts))
        assert list(wandb_server.runs) == [run.name]
        assert wandb_server.starts == [run.name] * 3
        if "did not finish within" in (run / "logs" / "rank-00000.log").read_text():  # a busy machine
            send(run, wandb_server)
        assert_equal_to_the_log(wandb_server.only_run(), run)
        assert wandb_server.only_run().exit_codes[-1] == 0
        assert wandb_server.only_run().values()["start"]["attempt"] == 2
        assert wandb_server.unknown == []
