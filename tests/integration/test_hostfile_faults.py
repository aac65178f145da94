"""Ranks on other nodes: whatever of the chain dies, all of it ends soon; a wish to stop reaches all of it."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.reading import last_checkpoint, records
from tests.integration.running import Job, only_run, run_directories, submit
from tests.integration.test_launchers import SHORT
from tests.launchers.nodes import Nodes, running_nodes, why_not
from training.errors import ExitCode

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

ORPHAN_SECONDS = 5.0
"""The issue's limit: no process of a job may live longer after its launcher was killed."""
LAUNCHERS = ("pdsh", "openmpi")


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with running_nodes(tmp_path_factory.mktemp("nodes")) as nodes:
        yield nodes


def start(launcher: str, nodes: Nodes, folder: Path, prepared_root: Path) -> Job:
    overrides = [
        *SHORT,
        *nodes.overrides(folder, slots=1),
        f"cluster.hostfile.launcher={launcher}",
        "cluster.hostfile.interface=lo",
        "cluster.preflight.enabled=false",
        "stages.pretrain.tokens=5120000",
        f"run.root={folder / 'runs'}",
        f"data.prepared_root={prepared_root}",
    ]
    return submit(overrides, folder=folder)


def steps_done(folder: Path) -> int:
    return max((len(records(run, "step")) for run in run_directories(folder / "runs")), default=0)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_nothing_outlives_a_submitter_that_is_killed(
    launcher: str, nodes: Nodes, tmp_path: Path, prepared_root: Path
) -> None:
    with start(launcher, nodes, tmp_path, prepared_root) as job:
        job.wait_until(lambda: steps_done(tmp_path) >= 2)
        assert all(nodes.processes(address) for address in nodes.addresses), "the ranks do not run on the nodes"
        job.process_named("launch.submit").kill()
        begun = time.monotonic()
        assert nodes.survivors(within_seconds=ORPHAN_SECONDS) == []
        assert job.survivors(within_seconds=ORPHAN_SECONDS) == []
        print(f"{launcher}: nothing left {time.monotonic() - begun:.1f} s after the submitter was killed")


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_node_that_dies_ends_the_job(launcher: str, nodes: Nodes, tmp_path: Path, prepared_root: Path) -> None:
    with start(launcher, nodes, tmp_path, prepared_root) as job:
        job.wait_until(lambda: steps_done(tmp_path) >= 2)
        nodes.kill(nodes.addresses[1])
        finished = job.wait(limit_seconds=30)
        assert nodes.survivors(within_seconds=ORPHAN_SECONDS) == []
        assert job.survivors(within_seconds=ORPHAN_SECONDS) == []
    assert finished.exit_code in (ExitCode.PEER_LOST, ExitCode.FAILED), finished.explain()


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_wish_to_stop_reaches_ranks_on_other_nodes(
    launcher: str, nodes: Nodes, tmp_path: Path, prepared_root: Path
) -> None:
    with start(launcher, nodes, tmp_path, prepared_root) as job:
        job.wait_until(lambda: steps_done(tmp_path) >= 2)
        job.process_named("launch.submit").send_signal(signal.SIGTERM)
        finished = job.wait(limit_seconds=30)
        assert nodes.survivors(within_seconds=ORPHAN_SECONDS) == []
    assert finished.exit_code == ExitCode.STOPPED, finished.explain()
    run = only_run(tmp_path / "runs")
    assert last_checkpoint(run).name == f"step-{records(run, 'step')[-1]['step']:08d}"
