"""Which rank a process is, from what each launcher sets; the names were seen under the real launchers."""

import pytest

from training.errors import ConfigError
from training.rank_environment import complete

MEETING = {"MASTER_ADDR": "node1", "MASTER_PORT": "29500"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
MVAPICH = {name.replace("OMPI", "MV2"): value for name, value in OPEN_MPI.items()}
PMI = {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
BATCH = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "7"}
STEP = {
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
}
PLACE = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}


@pytest.mark.parametrize("launcher", [OPEN_MPI, MVAPICH, PMI, STEP], ids=["openmpi", "mvapich", "pmi", "srun"])
def test_every_launchers_names_are_known(launcher: dict[str, str]) -> None:
    assert complete(MEETING | launcher) == PLACE


def test_mpirun_in_a_batch_script_is_no_step_of_slurm() -> None:
    assert complete(MEETING | BATCH | OPEN_MPI) == PLACE
    assert complete(MEETING | STEP | OPEN_MPI | {"SLURM_PROCID": "0"}) == PLACE


def test_a_batch_script_alone_has_no_rank() -> None:
    assert complete(BATCH) == {}
    assert complete({"PMI_RANK": "0", "PMI_SIZE": "1"}) == {}
    assert complete({}) == {}


def test_what_a_launcher_has_set_itself_is_left_alone() -> None:
    torchrun = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    assert complete(MEETING | torchrun | STEP | OPEN_MPI) == {}


@pytest.mark.parametrize(
    "launcher", [OPEN_MPI, STEP, {"RANK": "0", "WORLD_SIZE": "2"}], ids=["openmpi", "srun", "RANK"]
)
@pytest.mark.parametrize("missing", ["MASTER_ADDR", "MASTER_PORT"])
def test_ranks_that_cannot_meet_are_told_what_to_do(launcher: dict[str, str], missing: str) -> None:
    given = {name: value for name, value in (MEETING | launcher).items() if name != missing}
    with pytest.raises(ConfigError, match=r"mpirun: -x MASTER_ADDR") as caught:
        complete(given)
    assert caught.value.key == missing


@pytest.mark.parametrize("value", ["", "-1", "one", "1;2", "2(x2),1"])
def test_what_is_no_rank_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match="SLURM_STEP_TASKS_PER_NODE"):
        complete(MEETING | STEP | {"SLURM_STEP_TASKS_PER_NODE": value})
