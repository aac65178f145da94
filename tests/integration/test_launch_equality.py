"""Every way to start the ranks gives the same bits: two ranks, one or two nodes, 20 steps of two training stages.

A way is an entry of WAYS. The nodes are this machine's: ssh servers on loopback addresses (tests/launchers/nodes.py),
and those of a Slurm (tests/slurm_cluster).
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration.reading import ledger, numbers_by_step, records
from tests.integration.running import LONGEST_RUN_SECONDS, Job, only_run
from tests.integration.test_launchers import BIN, MODULE, SHORT, free_port
from tests.launchers.nodes import Nodes, running_nodes
from tests.launchers.nodes import why_not as why_no_hosts
from tests.slurm_cluster.cluster import SlurmCluster, wait_until
from tests.slurm_cluster.cluster import why_not as why_no_slurm

STEPS = 20
RUN = [*SHORT, "stages.pretrain.tokens=6144", "stages.anneal.tokens=4096", "checkpoint.every_steps=100"]
"""12 steps under ZeRO-3, then 8 as a pipeline over ZeRO-3."""
ONE_PROCESS = ["parallel@stages.pretrain.parallel=single", "parallel@stages.anneal.parallel=single"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where one run is started."""

    request: pytest.FixtureRequest
    folder: Path
    port: int
    """Free at the moment, for the rendezvous."""

    @property
    def nodes(self) -> Nodes:
        """Hosts that ssh reaches; they run until all tests here are done."""
        return self.request.getfixturevalue("nodes")

    @property
    def slurm(self) -> SlurmCluster:
        """A cluster that runs until all tests here are done."""
        return self.request.getfixturevalue("slurm")

    @property
    def hostfile(self) -> Path:
        return self.nodes.hostfile(self.folder, slots=1)


Commands = list[list[str]]
"""Command lines that are started together, one per node that needs its own."""


def deepspeed(place: Place, *options: str) -> list[str]:
    return [str(BIN / "deepspeed"), f"--master_port={place.port}", *options, "--module", "training.train"]


def deepspeed_local(place: Place) -> Commands:
    return [deepspeed(place, "--num_accelerators=2")]


def deepspeed_over_ssh(place: Place) -> Commands:
    """As a person would by hand: the environment through DeepSpeed's file, ssh's options through pdsh's variable."""
    variables = place.folder / "remote_environment"
    variables.write_text("DS_ACCELERATOR=cpu\nOMP_NUM_THREADS=1\n")
    given = [f"DS_ENV_FILE={variables}", f"PDSH_SSH_ARGS_APPEND=-F {place.nodes.ssh_config}"]
    first = place.nodes.addresses[0]
    options = [f"--hostfile={place.hostfile}", "--launcher=pdsh", "--no_ssh_check", f"--master_addr={first}"]
    return [["env", *given, *deepspeed(place, *options)]]


def deepspeed_without_ssh(place: Place) -> Commands:
    options = [f"--hostfile={place.hostfile}", "--no_ssh", f"--master_addr={place.nodes.addresses[0]}"]
    return [deepspeed(place, *options, f"--node_rank={node}") for node in range(2)]


def submitted(place: Place, launcher: str) -> Commands:
    chosen = [f"cluster.hostfile.launcher={launcher}", "cluster.hostfile.interface=lo"]
    return [[sys.executable, "-m", "launch.submit", *place.nodes.overrides(place.folder, slots=1), *chosen]]


def torchrun(_place: Place) -> Commands:
    # Wrong for one of the two ranks: the environment counts, not the option.
    return [[str(BIN / "torchrun"), "--standalone", "--nproc_per_node=2", *MODULE, "--local-rank=0"]]


def torchrun_two_nodes(place: Place) -> Commands:
    meeting = ["--master_addr=127.0.0.1", f"--master_port={place.port}"]
    common = [str(BIN / "torchrun"), "--nnodes=2", "--nproc_per_node=1", *meeting]
    return [[*common, f"--node_rank={node}", *MODULE] for node in range(2)]


def accelerate(place: Place, num_machines: int) -> Commands:
    """By torchrun's way; `--cpu --num_processes=2` starts a single process without MPI (accelerate 1.15)."""
    options = ["--use_deepspeed", "--num_processes=2", "--mixed_precision=no", "--dynamo_backend=no"]
    options += [f"--num_machines={num_machines}", f"--main_process_port={place.port}"]
    if num_machines == 1:
        return [[str(BIN / "accelerate"), "launch", *options, *MODULE]]
    options += ["--main_process_ip=127.0.0.1", "--deepspeed_multinode_launcher=standard"]
    return [
        [str(BIN / "accelerate"), "launch", *options, f"--machine_rank={node}", *MODULE] for node in range(num_machines)
    ]


def in_slurm(place: Place, *words: str) -> list[str]:
    return ["env", *(f"{name}={value}" for name, value in place.slurm.environment.items()), *words]


def srun_direct(place: Place) -> Commands:
    """As a person would within an allocation: no launcher, no variable but Slurm's own."""
    tasks = ["--nodes=2", "--ntasks=2", "--ntasks-per-node=1"]
    return [in_slurm(place, "salloc", *tasks, "srun", *tasks, "--kill-on-bad-exit=1", sys.executable, *MODULE)]


def submitted_to_slurm(place: Place) -> Commands:
    size = [
        "cluster.num_nodes=2",
        "cluster.processes_per_node=1",
        "cluster.slurm.exclusive=false",
        "cluster.preflight.free_bytes=0",
    ]
    return [in_slurm(place, sys.executable, "-m", "launch.submit", "cluster=slurm", *size)]


WAYS: dict[str, Callable[[Place], Commands]] = {
    "deepspeed": deepspeed_local,
    "deepspeed --hostfile (pdsh)": deepspeed_over_ssh,
    "deepspeed --hostfile --no_ssh": deepspeed_without_ssh,
    "launch.submit cluster=hostfile (pdsh)": lambda place: submitted(place, "pdsh"),
    "launch.submit cluster=hostfile (openmpi)": lambda place: submitted(place, "openmpi"),
    "torchrun": torchrun,
    "torchrun, 2 nodes": torchrun_two_nodes,
    "accelerate": lambda place: accelerate(place, 1),
    "accelerate, 2 machines": lambda place: accelerate(place, 2),
    "srun": srun_direct,
    "launch.submit cluster=slurm (sbatch)": submitted_to_slurm,
}
THROUGH_SLURM = {"srun", "launch.submit cluster=slurm (sbatch)"}
OVER_SSH = {way for way in WAYS if "hostfile" in way}


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    if (reason := why_no_hosts()) is not None:
        pytest.skip(reason)
    with running_nodes(tmp_path_factory.mktemp("nodes")) as nodes:
        yield nodes


@pytest.fixture(scope="module")
def slurm() -> Iterator[SlurmCluster]:
    if (reason := why_no_slurm()) is not None:
        pytest.skip(reason)
    with SlurmCluster(2) as cluster:
        yield cluster


def numbers_of(
    commands: Sequence[list[str]],
    folder: Path,
    overrides: list[str],
    *,
    settle: Callable[[], object] = lambda: None,
) -> dict[int, tuple[Any, ...]]:
    """What the steps of the run computed that the commands do together, or leave a scheduler to do until it settles."""
    with ExitStack() as stack:
        words = [*overrides, f"run.root={folder / 'runs'}"]
        jobs = [stack.enter_context(Job([*command, *words], folder=folder)) for command in commands]
        for job in jobs:
            finished = job.wait(limit_seconds=LONGEST_RUN_SECONDS)
            assert finished.exit_code == 0, finished.explain()
        settle()
        for job in jobs:
            assert job.survivors(within_seconds=30) == []
    run = only_run(folder / "runs")
    assert ledger(run)["state"] == "done"
    return numbers_by_step(records(run, "step"))


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, prepared_root: Path) -> dict[int, tuple[Any, ...]]:
    submit = [sys.executable, "-m", "launch.submit"]
    overrides = [*RUN, f"data.prepared_root={prepared_root}"]
    numbers = numbers_of([submit], tmp_path_factory.mktemp("submitted"), overrides)
    assert list(numbers) == list(range(1, STEPS + 1))
    return numbers


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_start_the_ranks_gives_the_same_bits(
    way: str,
    expected: dict[int, tuple[Any, ...]],
    tmp_path: Path,
    prepared_root: Path,
    request: pytest.FixtureRequest,
) -> None:
    place = Place(request=request, folder=tmp_path, port=free_port())
    commands, overrides = WAYS[way](place), [*RUN, f"data.prepared_root={prepared_root}"]

    def queue_is_empty() -> None:
        if way in THROUGH_SLURM:
            wait_until(
                lambda: place.slurm.command("squeue", "--noheader") == "",
                "the end of the job",
                limit_seconds=LONGEST_RUN_SECONDS,
            )

    assert numbers_of(commands, tmp_path, overrides, settle=queue_is_empty) == expected
    if way in OVER_SSH:
        assert place.nodes.survivors(within_seconds=30) == []


def test_one_process_without_a_launcher_trains_on_the_same_samples_to_the_same_losses(
    expected: dict[int, tuple[Any, ...]], tmp_path: Path, prepared_root: Path
) -> None:
    command = [sys.executable, *MODULE, "--local_rank", "0"]
    overrides = [*RUN, *ONE_PROCESS, "cluster.processes_per_node=1", f"data.prepared_root={prepared_root}"]
    alone = numbers_of([command], tmp_path, overrides)
    assert alone.keys() == expected.keys()
    for step, numbers in alone.items():
        assert numbers == tuple(pytest.approx(n, rel=1e-5) if isinstance(n, float) else n for n in expected[step])
