"""Batch jobs on a real Slurm of several nodes on this machine: each fault ends as the table in docs/slurm.md says.

All runs are submitted at once and share the cluster; each is hurt once, when it has come so far. The run that nobody
hurts is what the others are compared with.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.integration.reading import contents, last_checkpoint, ledger, numbers_by_step, records
from tests.slurm_cluster import jobs
from tests.slurm_cluster.cluster import SlurmCluster, why_not
from training.errors import ExitCode

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

NUM_NODES = 6
"""Three runs of two nodes at a time."""
LIMIT_SECONDS = 400
STEPS = 24
RUN = [
    "experiment=smoke",
    "cluster=slurm",
    "cluster.num_nodes=2",
    "cluster.processes_per_node=1",
    "cluster.slurm.time_limit=01:00:00",
    f"stages.pretrain.tokens={(STEPS - 6) * 512}",
    "eval.at_start=false",
    "eval.suites.quick.multiple_choice_items=0",
    "eval.suites.quick.prompts=[]",
    "reporting.wandb.mode=disabled",
]


def kill_a_task(cluster: SlurmCluster, job: str, _nodes: list[str]) -> None:
    jobs.ranks(job)[1].kill()


def warn_of_the_time_limit(cluster: SlurmCluster, job: str, _nodes: list[str]) -> None:
    """Send what Slurm sends before the limit; the real limit takes minutes: tests/drills/slurm.py."""
    cluster.command("scancel", "--batch", "--signal=USR1", job)


def kill_the_second_nodes_daemon(cluster: SlurmCluster, job: str, nodes: list[str]) -> None:
    """Ranks do not notice it; a frozen one keeps the run from ending before Slurm does, after 16 s."""
    jobs.ranks(job)[0].suspend()
    cluster.kill_daemon(nodes[1])


def power_off_the_second_node(cluster: SlurmCluster, _job: str, nodes: list[str]) -> None:
    cluster.power_off(nodes[1])


def drain_the_second_node(cluster: SlurmCluster, _job: str, nodes: list[str]) -> None:
    cluster.drain(nodes[1])


def cancel(cluster: SlurmCluster, job: str, _nodes: list[str]) -> None:
    cluster.command("scancel", job)


def nothing(_cluster: SlurmCluster, _job: str, _nodes: list[str]) -> None:
    pass


FAULTS: dict[str, Callable[[SlurmCluster, str, list[str]], None]] = {
    "finish": nothing,
    "daemon killed": kill_the_second_nodes_daemon,
    "node lost": power_off_the_second_node,
    "time limit": warn_of_the_time_limit,
    "task killed": kill_a_task,
    "drain": drain_the_second_node,
    "scancel": cancel,
}
"""In the order of the queue: what takes Slurm longest to see comes first."""


@dataclass(kw_only=True, slots=True)
class Case:
    """One run of the campaign."""

    job: str
    directory: Path
    nodes: list[str] = field(default_factory=list)
    """Of its first start."""
    is_hurt: bool = False
    state: str = ""
    fields: dict[str, str] = field(default_factory=dict)


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    with SlurmCluster(NUM_NODES) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def campaign(cluster: SlurmCluster, tmp_path_factory: pytest.TempPathFactory, prepared_root: Path) -> dict[str, Case]:
    """All runs, at their ends."""
    root = tmp_path_factory.mktemp("slurm") / "runs"
    cases: dict[str, Case] = {}
    for name in FAULTS:
        run_id = f"run.id={name.replace(' ', '-')}"
        submitted = jobs.launch_submit(
            cluster, [*RUN, f"run.root={root}", f"data.prepared_root={prepared_root}", run_id]
        )
        assert submitted.exit_code == 0, submitted.stderr
        cases[name] = Case(job=submitted.jobs[0], directory=submitted.directories[0])
    deadline = time.monotonic() + LIMIT_SECONDS
    while not all(case.state for case in cases.values()):
        assert time.monotonic() < deadline, describe(cases)
        for name, case in cases.items():
            look(cluster, case, FAULTS[name])
        time.sleep(0.1)
    return cases


def look(cluster: SlurmCluster, case: Case, fault: Callable[[SlurmCluster, str, list[str]], None]) -> None:
    """Hurt a run if it has come so far, and note its end."""
    if case.state:
        return
    if not case.is_hurt and len(records(case.directory, "step")) >= 6:
        case.nodes = jobs.attempts(case.directory, "start")[0]["nodes"]
        fault(cluster, case.job, case.nodes)
        case.is_hurt = True
    known = jobs.fields(cluster, case.job)
    if known["JobState"] in jobs.ENDED:
        case.fields, case.state = known, known["JobState"]


def describe(cases: dict[str, Case]) -> str:
    return "\n".join(
        f"{name}: {case.state or 'not ended'}\n{jobs.output(case.directory)}" for name, case in cases.items()
    )


def assert_equal_to_the_undisturbed(case: Case, campaign: dict[str, Case]) -> None:
    undisturbed = campaign["finish"].directory
    steps = numbers_by_step(records(case.directory, "step"))
    assert len(steps) == STEPS
    assert steps == numbers_by_step(records(undisturbed, "step"))
    assert contents(last_checkpoint(case.directory)) == contents(last_checkpoint(undisturbed))
    assert ledger(case.directory)["state"] == "done"


def test_an_undisturbed_run_ends_in_one_start(campaign: dict[str, Case]) -> None:
    case = campaign["finish"]
    assert (case.state, case.fields["ExitCode"], case.fields["Restarts"]) == ("COMPLETED", "0:0", "0")
    assert ledger(case.directory)["state"] == "done"
    assert {record["decision"] for record in records(case.directory, "gate")} == {"promote"}


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("time limit", ExitCode.STOPPED),
        ("task killed", ExitCode.PEER_LOST),
    ],
)
def test_a_run_requeues_itself_and_ends_as_if_nothing_had_happened(
    name: str, end: ExitCode, campaign: dict[str, Case]
) -> None:
    case = campaign[name]
    assert (case.state, case.fields["Restarts"]) == ("COMPLETED", "1"), describe({name: case})
    first, last = jobs.attempts(case.directory, "end")
    assert (first["exit_code"], last["exit_code"]) == (end, ExitCode.DONE)
    assert first["decision"].startswith("requeue: ")
    assert_equal_to_the_undisturbed(case, campaign)


def test_the_time_limits_warning_costs_no_step(campaign: dict[str, Case]) -> None:
    done = [step["step"] for step in records(campaign["time limit"].directory, "step")]
    assert done == list(range(1, STEPS + 1))


@pytest.mark.parametrize("name", ["daemon killed", "node lost"])
def test_slurm_requeues_a_run_that_lost_a_node_and_it_ends_on_others(name: str, campaign: dict[str, Case]) -> None:
    case = campaign[name]
    assert case.state == "COMPLETED", describe({name: case})
    assert int(case.fields["Restarts"]) >= 1
    assert case.nodes[1] not in jobs.attempts(case.directory, "start")[-1]["nodes"]
    assert_equal_to_the_undisturbed(case, campaign)


def test_a_draining_node_lets_its_run_end_and_takes_no_other(campaign: dict[str, Case]) -> None:
    case = campaign["drain"]
    assert (case.state, case.fields["Restarts"]) == ("COMPLETED", "0"), describe({"drain": case})
    assert_equal_to_the_undisturbed(case, campaign)


def test_a_cancelled_run_saves_ends_and_is_not_requeued(cluster: SlurmCluster, campaign: dict[str, Case]) -> None:
    case = campaign["scancel"]
    assert (case.state, case.fields["Restarts"]) == ("CANCELLED", "0"), describe({"scancel": case})
    last = jobs.attempts(case.directory, "end")[-1]
    assert last["decision"].startswith("left to Slurm"), last
    assert last_checkpoint(case.directory).name == f"step-{last['step']:08d}"


def test_no_process_is_left(cluster: SlurmCluster, campaign: dict[str, Case]) -> None:
    deadline = time.monotonic() + 5
    while (left := cluster.processes_left()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert [words for words in left if "slurmstepd" not in words] == []
