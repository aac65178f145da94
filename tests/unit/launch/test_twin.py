"""`python -m launch.twin`: what it prints, what it refuses, and that a dry run starts nothing."""

import shlex
from pathlib import Path

import pytest

from launch.twin import main, scale_down
from training.config.load import compose
from training.errors import ExitCode


def test_a_dry_run_prints_each_value_beside_the_original_and_a_command_that_composes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["experiment=llama3_405b", f"run.root={tmp_path / 'runs'}", "run.seed=7"]
    assert main([*words, "--dry-run", "--steps", "30"]) == ExitCode.DONE
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("twin of llama3-405b: ")
    assert " ".join(next(line for line in lines if "parallel.tensor=1" in line).split()) == (
        "parallel.tensor=1 was 8: no engine runs tensor parallelism"
    )
    command = shlex.split(lines[-1])
    assert command[:3] == ["python", "-m", "launch.submit"]
    config = compose(command[3:])
    assert (config.num_steps("pretrain"), config.world_size, config.run.seed) == (30, 4, 7)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["experiment=llama3_8b", "--processes", "0"], "--processes=0: a twin trains with at least one"),
        (["experiment=llama3_8b", "--steps=0"], "--steps=0: a twin trains with at least one"),
        (["experiment=llama3_8b", "model.num_head=3"], "did you mean model.num_heads"),
        (["experiment=llama3_8b", "parallel.pipeline=5"], "parallel.pipeline=5"),
    ],
)
def test_an_impossible_run_is_refused_with_its_reason(
    words: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--dry-run"]) == ExitCode.BAD_CONFIG
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize(("processes", "layout"), [(1, (1, 1, 1)), (2, (2, 1, 1)), (3, (1, 1, 1)), (8, (2, 2, 2))])
def test_axes_take_the_processes_that_there_are(processes: int, layout: tuple[int, int, int]) -> None:
    config = compose(scale_down(["experiment=mai1_500b"], processes=processes, steps=4)[0])
    found = config.layout_of("pretrain")
    assert (found.pipeline, found.sequence, found.expert) == layout
    assert config.world_size == processes


def test_a_choice_of_cluster_and_of_values_by_hand_gives_way_to_this_machine() -> None:
    words = ["experiment=llama3_8b", "cluster=azure_nd_h200_v5", "cluster.num_nodes=32", "optimizer.weight_decay=0.2"]
    words += ["cluster.slurm.partition=gpu", "+cluster.environment.NCCL_DEBUG=WARN"]
    config = compose(scale_down(words, processes=2, steps=4)[0])
    assert (config.cluster.accelerator.device, config.world_size) == ("cpu", 2)
    assert config.optimizer.weight_decay == 0.2
