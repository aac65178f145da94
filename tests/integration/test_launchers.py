"""Every way to start the ranks gives the same bits."""

import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.reading import ledger, numbers_by_step, records
from tests.integration.running import only_run, run_to_end
from training.errors import ExitCode

SHORT = [
    "experiment=smoke",
    "stages.pretrain.tokens=1536",
    "stages.anneal.tokens=1024",
    "eval.at_start=false",
    "eval.suites.quick.multiple_choice_items=0",
    "eval.suites.quick.prompts=[]",
    "stages.anneal.gate=null",
    "reporting.wandb.mode=disabled",
]
"""Three steps and two, and evaluations of the smallest kind."""
ONE_PROCESS = ["parallel@stages.pretrain.parallel=single", "parallel@stages.anneal.parallel=single"]
MODULE = ["-m", "training.train"]
BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def deepspeed(*options: str) -> list[str]:
    port = f"--master_port={free_port()}"
    return [str(BIN / "deepspeed"), "--num_accelerators=2", port, *options, "--module", "training.train"]


def torchrun(num_processes: int = 2) -> list[str]:
    return [str(BIN / "torchrun"), "--standalone", f"--nproc_per_node={num_processes}", *MODULE]


def accelerate() -> list[str]:
    """Two processes by torchrun's way; `--cpu --num_processes=2` starts a single one without MPI (accelerate 1.15)."""
    options = ["--num_processes=2", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
    port = f"--main_process_port={free_port()}"
    return [str(BIN / "accelerate"), "launch", "--use_deepspeed", *options, port, *MODULE]


LAUNCHERS = {
    "deepspeed": lambda: [*deepspeed(), *SHORT],
    "deepspeed --no_local_rank": lambda: [*deepspeed("--no_local_rank"), *SHORT],
    # Wrong for one of the two: the environment counts, not the option.
    "torchrun": lambda: [*torchrun(), *SHORT, "--local-rank=0"],
    "accelerate": lambda: [*accelerate(), *SHORT],
}


def numbers_of(command: list[str], root: Path, prepared_root: Path) -> dict[int, tuple[Any, ...]]:
    overrides = [f"run.root={root / 'runs'}", f"data.prepared_root={prepared_root}"]
    finished = run_to_end([*command, *overrides], folder=root)
    assert finished.exit_code == 0, finished.explain()
    run = only_run(root / "runs")
    assert ledger(run)["state"] == "done"
    return numbers_by_step(records(run, "step"))


@pytest.fixture(scope="module")
def submitted(tmp_path_factory: pytest.TempPathFactory, prepared_root: Path) -> dict[int, tuple[Any, ...]]:
    submit = [sys.executable, "-m", "launch.submit"]
    numbers = numbers_of([*submit, *SHORT], tmp_path_factory.mktemp("submitted"), prepared_root)
    assert list(numbers) == [1, 2, 3, 4, 5]
    return numbers


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_every_launcher_starts_the_same_run(
    launcher: str, submitted: dict[int, tuple[Any, ...]], tmp_path: Path, prepared_root: Path
) -> None:
    assert numbers_of(LAUNCHERS[launcher](), tmp_path, prepared_root) == submitted


def test_one_process_without_a_launcher_trains_on_the_same_samples_to_the_same_losses(
    submitted: dict[int, tuple[Any, ...]], tmp_path: Path, prepared_root: Path
) -> None:
    command = [sys.executable, *MODULE, "--local_rank", "0", *SHORT, *ONE_PROCESS, "cluster.processes_per_node=1"]
    alone = numbers_of(command, tmp_path, prepared_root)
    assert alone.keys() == submitted.keys()
    for step, numbers in alone.items():
        assert numbers == tuple(pytest.approx(n, rel=1e-5) if isinstance(n, float) else n for n in submitted[step])


@pytest.mark.parametrize("launch", [deepspeed, lambda: [sys.executable, *MODULE]], ids=["deepspeed", "python"])
def test_a_wrong_number_of_processes_is_refused_with_the_remedy(launch: Any, tmp_path: Path) -> None:
    overrides = [*SHORT, f"run.root={tmp_path / 'runs'}", "cluster.processes_per_node=4"]
    finished = run_to_end([*launch(), *overrides], folder=tmp_path)
    assert finished.exit_code == ExitCode.BAD_CONFIG, finished.explain()
    assert "--nproc_per_node" in finished.stderr
    assert not (tmp_path / "runs").exists(), "a refused start changed something"
