"""The tasks of a Slurm step find each other."""

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.errors import ConfigError
from training.rank_environment import complete
from training.slurm_rendezvous import first_node, rendezvous_port

TASK = {
    "SLURM_JOB_ID": "17",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_STEP_NODELIST": "localhost",
}


def test_a_task_of_a_step_takes_its_place_from_the_step_not_from_the_larger_job() -> None:
    environment = dict(TASK) | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "23456"}
    environment |= complete(environment)
    assert {key: environment[key] for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")} == {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
    }
    assert (environment["MASTER_ADDR"], environment["MASTER_PORT"]) == ("10.0.0.1", "23456")


def test_without_an_address_the_first_nodes_is_taken_and_a_port_that_changes_with_the_restart() -> None:
    ports = set()
    for restart in range(3):
        environment = dict(TASK) | {"SLURM_RESTART_COUNT": str(restart)}
        environment |= complete(environment)
        assert environment["MASTER_ADDR"] in ("127.0.0.1", "::1")
        ports.add(environment["MASTER_PORT"])
    assert len(ports) == 3


def test_a_batch_script_is_no_rank_although_slurm_sets_procid_there() -> None:
    environment = {key: value for key, value in TASK.items() if "STEP" not in key}
    environment |= complete(environment)
    assert "RANK" not in environment


def test_uneven_nodes_are_refused_with_the_remedy() -> None:
    with pytest.raises(ConfigError, match="equally many on every node"):
        complete(dict(TASK) | {"MASTER_ADDR": "10.0.0.1", "SLURM_STEP_TASKS_PER_NODE": "2,1"})


def test_a_node_that_nobody_knows_is_refused_with_the_remedy() -> None:
    with pytest.raises(ConfigError, match="export MASTER_ADDR"):
        complete(dict(TASK) | {"SLURM_STEP_NODELIST": "no-such-node.invalid"})


@pytest.mark.parametrize(
    ("node_list", "first"),
    [
        ("node7", "node7"),
        ("node[003-007,9],other", "node003"),
        ("a-b-[12,14]", "a-b-12"),
        ("gpu1,gpu[2-3]", "gpu1"),
        ("rack[1-2]-eth", "rack1-eth"),
    ],
)
def test_the_first_node_of_slurms_short_form(node_list: str, first: str) -> None:
    assert first_node(node_list) == first


@given(st.integers(1, 2**31), st.integers(0, 10**6))
def test_a_port_is_below_those_that_linux_hands_out(job: int, start: int) -> None:
    port = rendezvous_port(str(job), start=start)
    assert 20_000 <= port < 30_000
    assert rendezvous_port(str(job), start=start + 1) != port
    assert rendezvous_port(str(job), start=start, taken=lambda taken: taken == port) != port


def test_no_free_port_is_an_error() -> None:
    with pytest.raises(ConfigError, match="master_port"):
        rendezvous_port("1", start=0, taken=lambda _port: True)


def test_it_needs_no_torch() -> None:
    code = "import sys, training.rank_environment; sys.exit('torch' in sys.modules)"
    assert subprocess.run([__import__("sys").executable, "-c", code], check=False).returncode == 0
