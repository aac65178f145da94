"""What a job decides, on a real Slurm with ranks that only pretend: which ends requeue, exclude, stop, chain."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.slurm_cluster import jobs
from tests.slurm_cluster.cluster import SlurmCluster, why_not
from tests.slurm_cluster.fake_ranks import end, fake_ranks, seen
from training.errors import ExitCode

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

LIMIT_SECONDS = 180
"""A requeue takes Slurm 6 to 7 s here."""
RUN = [
    "experiment=smoke",
    "cluster=slurm",
    "cluster.num_nodes=2",
    "cluster.processes_per_node=1",
    "cluster.slurm.exclusive=false",
    "cluster.preflight.free_bytes=0",
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    with SlurmCluster(4) as cluster:
        yield cluster


class Submitter:
    """Submits runs whose ranks pretend."""

    def __init__(self, cluster: SlurmCluster, folder: Path) -> None:
        self.cluster = cluster
        self._folder = folder

    def __call__(
        self, *overrides: str, ends: list[dict[str, Any]], broken_nodes: tuple[str, ...] = ()
    ) -> jobs.Submitted:
        environment = fake_ranks(self._folder / "fake", ends, broken_nodes=broken_nodes)
        words = [*RUN, f"run.root={self._folder}/runs", *overrides]
        return jobs.launch_submit(self.cluster, words, environment={**environment, "SEEN": "in the ranks"})


@pytest.fixture
def submit(cluster: SlurmCluster, tmp_path: Path) -> Submitter:
    return Submitter(cluster, tmp_path)


def finished(cluster: SlurmCluster, submitted: jobs.Submitted) -> tuple[str, dict[str, str], Path]:
    assert submitted.exit_code == 0, submitted.stderr
    (job,) = submitted.jobs
    state = jobs.wait_for_end(cluster, job, limit_seconds=LIMIT_SECONDS)
    return state, jobs.fields(cluster, job), submitted.directories[0]


def test_a_blamed_node_is_left_out_of_the_next_start_and_of_the_next_submission(
    cluster: SlurmCluster, submit: Submitter
) -> None:
    blamed_rank = [{"rank": 1, "host": "not a node's name"}]
    report = {"exit_code": ExitCode.SILENT_CORRUPTION, "rank": 0, "error": "x", "blamed": blamed_rank}
    submitted = submit(ends=[end(ExitCode.SILENT_CORRUPTION, step=4, report=report), end(0, step=9)])
    state, fields, run = finished(cluster, submitted)
    assert (state, fields["Restarts"]) == ("COMPLETED", "1"), jobs.output(run)
    first, second = jobs.attempts(run, "start")
    blamed = first["nodes"][1]
    assert blamed not in second["allocated"]
    assert fields["ExcNodeList"] == blamed
    assert list(json.loads((run / "slurm" / "bad_nodes.json").read_text())) == [blamed]
    for name in ("SLURM_STEP_NODELIST", "MASTER_PORT"):
        assert len({place[name] for place in seen(run)}) == 2
    assert {place["MASTER_ADDR"].rpartition(".")[0] for place in seen(run)} == {"127.0.77"}
    assert {place["SEEN"] for place in seen(run)} == {"in the ranks"}


def test_a_spare_node_replaces_one_that_fails_its_check_in_the_same_start(
    cluster: SlurmCluster, submit: Submitter
) -> None:
    state, fields, run = finished(
        cluster, submit("cluster.slurm.spare_nodes=2", ends=[end(0, step=9)], broken_nodes=("node1",))
    )
    assert (state, fields["Restarts"]) == ("COMPLETED", "0"), jobs.output(run)
    (start,) = jobs.attempts(run, "start")
    assert start["allocated"] == ["node1", "node2", "node3", "node4"]
    assert start["nodes"] == ["node2", "node3"]
    assert "preflight: 1 of 4 nodes failed: node1" in jobs.output(run)
    bad = json.loads((run / "slurm" / "bad_nodes.json").read_text())
    assert list(bad) == ["node1"]
    assert "reachable" in bad["node1"]
    assert not list(run.parent.glob(".preflight-*"))


def test_without_a_spare_node_the_job_starts_again_on_others(cluster: SlurmCluster, submit: Submitter) -> None:
    state, fields, run = finished(cluster, submit(ends=[end(0, step=9)], broken_nodes=("node1",)))
    assert (state, fields["Restarts"]) == ("COMPLETED", "1"), jobs.output(run)
    assert jobs.attempts(run, "end")[0]["exit_code"] == ExitCode.PREFLIGHT
    assert jobs.attempts(run, "start")[1]["nodes"] == ["node2", "node3"]


def test_failing_again_and_again_at_one_step_stops_with_the_code_for_it(
    cluster: SlurmCluster, submit: Submitter
) -> None:
    submitted = submit("cluster.slurm.no_progress_starts=2", ends=[end(1, step=4)])
    state, fields, run = finished(cluster, submitted)
    assert (state, fields["ExitCode"], fields["Restarts"]) == ("FAILED", "12:0", "1"), jobs.output(run)
    assert "2 starts in a row failed at step 4" in jobs.output(run)


def test_what_would_fail_again_is_not_started_again(cluster: SlurmCluster, submit: Submitter) -> None:
    report = {"exit_code": ExitCode.GATE_BLOCKED, "rank": 0, "error": "x"}
    state, fields, run = finished(cluster, submit(ends=[end(ExitCode.GATE_BLOCKED, step=9, report=report)]))
    assert (state, fields["ExitCode"], fields["Restarts"]) == ("FAILED", "3:0", "0"), jobs.output(run)
    assert jobs.attempts(run, "end")[0]["decision"].startswith("stop: a gate blocks")


def test_restarts_are_bounded(cluster: SlurmCluster, submit: Submitter) -> None:
    submitted = submit("cluster.slurm.max_requeues=1", ends=[end(4, step=1), end(4, step=2), end(0, step=9)])
    state, fields, run = finished(cluster, submitted)
    assert (state, fields["ExitCode"], fields["Restarts"]) == ("FAILED", "4:0", "1"), jobs.output(run)


def test_training_stages_as_a_chain_of_jobs_in_one_run_directory(cluster: SlurmCluster, submit: Submitter) -> None:
    submitted = submit("cluster.slurm.chain=stages", ends=[end(0, step=9)])
    assert submitted.exit_code == 0, submitted.stderr
    first, second = submitted.jobs
    assert jobs.wait_for_end(cluster, second, limit_seconds=LIMIT_SECONDS) == "COMPLETED"
    assert jobs.state(cluster, first) == "COMPLETED"
    (run,) = submitted.directories
    assert [place["words"][-1] for place in seen(run)] == ["run.until=pretrain", "run.until=anneal"]


def test_a_chain_whose_first_job_fails_is_cancelled(cluster: SlurmCluster, submit: Submitter) -> None:
    submitted = submit("cluster.slurm.chain=stages", ends=[end(ExitCode.DATA, step=1)])
    first, second = submitted.jobs
    assert jobs.wait_for_end(cluster, second, limit_seconds=LIMIT_SECONDS) == "CANCELLED"
    assert jobs.state(cluster, first) == "FAILED"


def test_a_sweep_is_one_array_of_runs_and_each_requeues_for_itself(cluster: SlurmCluster, submit: Submitter) -> None:
    submitted = submit("-m", "run.seed=1,2,3", ends=[end(4, step=3), end(0, step=9)])
    assert submitted.exit_code == 0, submitted.stderr
    (job,) = submitted.jobs
    for task in range(3):
        assert jobs.wait_for_end(cluster, f"{job}_{task}", limit_seconds=LIMIT_SECONDS) == "COMPLETED"
        assert jobs.fields(cluster, f"{job}_{task}")["Restarts"] == "1", "a task requeued another one"
    for run in submitted.directories:
        assert [place["start"] for place in seen(run)] == [0, 1]


def test_a_run_that_waits_in_the_queue_is_not_submitted_twice(cluster: SlurmCluster, submit: Submitter) -> None:
    words = ["run.id=night", "+cluster.slurm.directives.begin=now+1hour"]
    first = submit(*words, ends=[end(0, step=9)])
    assert first.exit_code == 0, first.stderr
    again = jobs.launch_submit(
        cluster, [*RUN, f"run.root={first.directories[0].parent}", "run.id=night", "resume=auto"]
    )
    cluster.command("scancel", first.jobs[0])
    assert again.exit_code == ExitCode.BAD_CONFIG
    assert f"scancel {first.jobs[0]}" in again.stderr


def test_status_shows_the_job_the_step_and_the_last_end(cluster: SlurmCluster, submit: Submitter) -> None:
    _, _, run = finished(cluster, submit(ends=[end(ExitCode.DATA, step=4)]))
    shown = cluster.command(str(jobs.PYTHON), "-m", "launch.status", str(run))
    assert "step 4 of 15" in shown
    assert "JobState FAILED" in shown
    assert "last end: DATA at step 4, stop: the prepared data is missing or damaged" in shown


def test_what_all_nodes_fail_is_no_nodes_fault_and_does_not_go_on_for_ever(
    cluster: SlurmCluster, submit: Submitter
) -> None:
    words = ["cluster.preflight.free_bytes=1e18", "cluster.slurm.no_progress_starts=2"]
    state, fields, run = finished(cluster, submit(*words, ends=[end(0, step=9)]))
    assert (state, fields["ExitCode"], fields["Restarts"]) == ("FAILED", "12:0", "1"), jobs.output(run)
    assert [attempt["nodes"] for attempt in jobs.attempts(run, "start")] == [[], []]
    assert "disk free, run.root" in jobs.output(run)
    assert not (run / "slurm" / "bad_nodes.json").exists()


def test_without_preflight_nodes_are_taken_unseen(cluster: SlurmCluster, submit: Submitter) -> None:
    words = ["cluster.preflight.enabled=false", "cluster.slurm.spare_nodes=1"]
    state, _, run = finished(cluster, submit(*words, ends=[end(0, step=9)], broken_nodes=("node1",)))
    assert state == "COMPLETED", jobs.output(run)
    assert jobs.attempts(run, "start")[0]["nodes"] == ["node1", "node2"]


def test_a_collective_that_is_too_slow_keeps_the_ranks_from_starting(cluster: SlurmCluster, submit: Submitter) -> None:
    """The all-reduce is real, over real ranks on two nodes."""
    words = ["cluster.preflight.collective_bytes=1_000_000", "cluster.preflight.collective_bytes_per_second=1e15"]
    state, fields, run = finished(cluster, submit(*words, "cluster.slurm.max_requeues=0", ends=[end(0, step=9)]))
    assert (state, fields["ExitCode"]) == ("FAILED", "13:0"), jobs.output(run)
    (row,) = [line for line in jobs.output(run).splitlines() if line.startswith("node1  collective  FAIL")]
    assert "GB/s" in row
    assert seen(run) == []
