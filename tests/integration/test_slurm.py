"""Batch jobs on a real Slurm of several nodes on this machine: each fault ends as the table in docs/slurm.md says.

More faults, with their times: python -m tests.drills.slurm.
"""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.drills.slurm_campaign import STEPS, Case, differences, run_campaign
from tests.integration.reading import last_checkpoint, ledger, records
from tests.integration.running import run_to_end
from tests.slurm_cluster import jobs
from tests.slurm_cluster.cluster import SlurmCluster, why_not
from training.errors import ExitCode

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

NUM_NODES = 6
"""Three runs of two nodes at a time."""
NAMES = ["finish", "daemon killed", "time limit", "node lost", "task frozen", "task killed", "drain", "scancel"]
LIMIT_SECONDS = 800


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    with SlurmCluster(NUM_NODES, kill_wait_seconds=10) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def campaign(cluster: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """All runs, at their ends."""
    folder = tmp_path_factory.mktemp("slurm")
    return run_campaign(cluster, NAMES, folder / "runs", folder / "prepared", limit_seconds=LIMIT_SECONDS)


def test_an_undisturbed_run_ends_in_one_start(campaign: dict[str, Case]) -> None:
    case = campaign["finish"]
    assert (case.state, case.fields["ExitCode"], case.fields["Restarts"]) == ("COMPLETED", "0:0", "0"), case.describe()
    assert ledger(case.directory)["state"] == "done"
    assert {record["decision"] for record in records(case.directory, "gate")} == {"promote"}
    assert {record["stage"] for record in records(case.directory, "step")} == {"pretrain", "anneal"}


@pytest.mark.parametrize(
    ("name", "end"),
    [("time limit", ExitCode.STOPPED), ("task killed", ExitCode.PEER_LOST), ("task frozen", ExitCode.HANG)],
    ids=lambda value: str(value),
)
def test_a_run_requeues_itself_and_ends_as_if_nothing_had_happened(
    name: str, end: ExitCode, campaign: dict[str, Case]
) -> None:
    case = campaign[name]
    assert case.state == "COMPLETED", case.describe()
    assert int(case.fields["Restarts"]) >= 1
    first, *_, last = jobs.attempts(case.directory, "end")
    assert (first["exit_code"], last["exit_code"]) == (end, ExitCode.DONE)
    assert first["decision"].startswith("requeue: ")
    assert differences(case, campaign["finish"]) == []


def test_the_node_of_a_frozen_rank_is_named_and_left_out(campaign: dict[str, Case]) -> None:
    case = campaign["task frozen"]
    frozen = case.nodes[1]
    first, *_, last = jobs.attempts(case.directory, "end")
    assert (first["blamed"], last["blamed"]) == ([frozen], []), case.describe()
    assert frozen not in jobs.attempts(case.directory, "start")[-1]["allocated"]
    assert case.fields["ExcNodeList"] == frozen
    bad = json.loads((case.directory / "slurm" / "bad_nodes.json").read_text())
    assert bad[frozen].startswith("HANG in start ")


def test_the_time_limit_costs_no_step(campaign: dict[str, Case]) -> None:
    done = [step["step"] for step in records(campaign["time limit"].directory, "step")]
    assert done == list(range(1, STEPS + 1))


@pytest.mark.parametrize("name", ["daemon killed", "node lost"])
def test_a_run_that_lost_a_node_ends_on_others(name: str, campaign: dict[str, Case]) -> None:
    case = campaign[name]
    assert case.state == "COMPLETED", case.describe()
    assert int(case.fields["Restarts"]) >= 1
    assert case.nodes[1] not in jobs.attempts(case.directory, "start")[-1]["nodes"]
    assert differences(case, campaign["finish"]) == []


def test_a_draining_node_lets_its_run_end_and_takes_no_other(cluster: SlurmCluster, campaign: dict[str, Case]) -> None:
    case = campaign["drain"]
    assert (case.state, case.fields["Restarts"]) == ("COMPLETED", "0"), case.describe()
    assert differences(case, campaign["finish"]) == []
    assert cluster.node_states()[case.nodes[1]].rstrip("*") == "drained"


def test_a_cancelled_run_saves_ends_and_is_not_requeued(campaign: dict[str, Case]) -> None:
    case = campaign["scancel"]
    assert (case.state, case.fields["Restarts"]) == ("CANCELLED", "0"), case.describe()
    (end,) = jobs.attempts(case.directory, "end")
    assert end["decision"].startswith("left to Slurm")
    assert last_checkpoint(case.directory).name == f"step-{end['step']:08d}"


def test_a_committed_checkpoint_is_measured_by_a_job_of_its_own(
    cluster: SlurmCluster, campaign: dict[str, Case], tmp_path: Path
) -> None:
    run, tasks = campaign["finish"].directory, ["--nodes=2", "--ntasks=2", "--ntasks-per-node=1"]
    words = ["-m", "eval.run", f"checkpoint={run}", "suite=quick", f"output={tmp_path / 'found.json'}"]
    environment = [f"{name}={value}" for name, value in cluster.environment.items()]
    command = ["env", *environment, "srun", *tasks, "--kill-on-bad-exit=1", sys.executable, *words]
    finished = run_to_end(command, folder=tmp_path)
    assert finished.exit_code == 0, finished.explain()
    found = json.loads((tmp_path / "found.json").read_text())["metrics"]
    of_run = json.loads((run / "eval" / "anneal" / "quick.json").read_text())["metrics"]
    assert found["bits_per_byte"] == pytest.approx(of_run["bits_per_byte"], rel=1e-4)


@pytest.mark.usefixtures("campaign")
def test_no_process_is_left(cluster: SlurmCluster) -> None:
    deadline = time.monotonic() + 5
    while (left := cluster.processes_left()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []
