"""Submitting: refusals leave nothing behind, a sweep goes on after a failing point."""

from pathlib import Path

import pytest

from launch.submit import Job, main, table
from training.config.load import compose
from training.config.run_directory import resolve


def test_a_refused_run_makes_no_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiment=smoke", f"run.root={tmp_path}/runs", "model.num_heads=3"]) == 2
    assert "model.num_kv_heads=2" in capsys.readouterr().err
    assert main(["experiment=smoke", f"run.root={tmp_path}/runs", "cluster.num_nodes=2"]) == 2
    assert "--hostfile" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_refused_point_of_a_sweep_does_not_stop_the_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["experiment=smoke", f"run.root={tmp_path}/runs", "-m", "model.num_kv_heads=3", "optimizer.lr=0,-1,nan"]
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.err.count("-> ") == 3
    assert "0 of 3 runs done" in printed.out
    assert printed.out.count("BAD_CONFIG") == 3
    assert [f"[{n}/3]" in printed.out for n in (1, 2, 3)] == [True] * 3


def test_a_run_that_would_change_what_it_trains_is_refused_with_the_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["experiment=smoke", f"run.root={tmp_path}/runs", "run.id=night"]
    directory = resolve(compose(words), words)
    before = (directory / "config.yaml").read_text()
    assert main([*words, "resume=auto", "stages.pretrain.lr=1e-5"]) == 2
    assert "resume.allow=[stages.pretrain.lr]" in capsys.readouterr().err
    assert main([*words, "resume=auto", "resume.allow=[stages.pretrain.lrr]"]) == 2
    assert "did you mean resume.allow=[stages.pretrain.lr]?" in capsys.readouterr().err
    assert (directory / "config.yaml").read_text() == before


def test_runs_of_a_sweep_cannot_share_a_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"run.root={tmp_path}/runs", "run.id=night", "run.seed=1,2", "-m"]) == 2
    assert "2 runs of a sweep cannot share one run directory" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_several_values_without_m_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiment=smoke", "run.seed=1,2"]) == 2
    assert "put -m before" in capsys.readouterr().err


def test_the_table_of_a_sweep_names_exit_code_directory_and_overrides() -> None:
    jobs = [
        Job(overrides=["run.seed=1"], exit_code=0, directory=Path("/runs/first")),
        Job(overrides=["run.seed=2"], exit_code=3, directory=Path("/runs/second")),
        Job(overrides=["run.seed=x"], exit_code=2),
    ]
    assert table(jobs).splitlines()[1:] == [
        "1 of 3 runs done",
        "DONE                first        run.seed=1",
        "GATE_BLOCKED        second       run.seed=2",
        "BAD_CONFIG          not started  run.seed=x",
    ]
