"""`python -m launch.check` as a user calls it."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from launch.check import main

REPOSITORY = Path(__file__).parents[3]


def check(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command from a foreign directory; fail if it imports torch or DeepSpeed."""
    code = (
        "import sys; from launch.check import main; code = main(sys.argv[1:]);"
        "heavy = {'torch', 'deepspeed'} & set(sys.modules); assert not heavy, heavy; sys.exit(code)"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": ""},
        timeout=60,
        check=False,
    )


def test_a_possible_run_is_summed_up_without_importing_torch_or_writing_a_file(tmp_path: Path) -> None:
    result = check("experiment=demo", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert "pretrain  64 steps, 131,072 tokens; pipeline 1 × data 2, ZeRO-3, 2 ranks" in result.stdout
    assert "batch 16 = 1 replicas x 4 accumulated x 4 sequences" in result.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "key", "remedy"),
    [
        (["optimzer.lr=1"], "optimzer.lr=1", "did you mean optimizer.lr?"),
        (["experiment=demo", "cluster.processes_per_node=3"], "stages.pretrain.global_batch_sequences=16", "=12 works"),
        (["run.seed=1e9"], "run.seed=1000000000.0", "run.seed=1_000_000_000"),
        (["--lr", "3"], "command line=--lr", "settings are key=value"),
    ],
)
def test_an_impossible_run_ends_with_code_2_and_what_to_do(
    tmp_path: Path, words: list[str], key: str, remedy: str
) -> None:
    result = check(*words, cwd=tmp_path)
    assert result.returncode == 2
    assert key in result.stderr
    assert remedy in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_the_module_runs_as_a_command(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "launch.check", "--local_rank=1", "experiment=demo_single"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "1 x 1 processes on CPU" in result.stdout


def test_a_batch_ramp_is_summed_up(capsys: pytest.CaptureFixture[str]) -> None:
    ramp = "stages.pretrain.batch_ramp=[{until_tokens: 1024, global_batch_sequences: 4}]"
    assert main(["experiment=smoke", ramp]) == 0
    shown = capsys.readouterr().out
    assert "pretrain  11 steps, 4,608 tokens" in shown
    assert "batch 4 steps of 4, then 8 = 2 replicas" in shown


def test_cfg_job_prints_every_resolved_value(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiment=smoke", "--cfg", "job"]) == 0
    fault_tolerance = yaml.safe_load(capsys.readouterr().out)["fault_tolerance"]
    assert fault_tolerance["collective_timeout_seconds"] == 600
    assert fault_tolerance["hang"]["step_seconds"] is None


def test_help_says_how_to_call_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "python -m launch.check" in capsys.readouterr().out
