"""What a launcher starts must be what the config wants. That all launchers start the same run: test_launch_equality."""

import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.running import SMOKE, run_to_end
from training.errors import ExitCode

SHORT = [
    *SMOKE,
    "stages.pretrain.tokens=1536",
    "stages.anneal.tokens=1024",
    "eval.at_start=false",
    "eval.suites.quick.multiple_choice_items=0",
    "eval.suites.quick.prompts=[]",
    "stages.anneal.gate=null",
]
"""Three steps and two, and evaluations of the smallest kind."""
MODULE = ["-m", "training.train"]
BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def deepspeed(*options: str) -> list[str]:
    port = f"--master_port={free_port()}"
    return [str(BIN / "deepspeed"), "--num_accelerators=2", port, *options, "--module", "training.train"]


@pytest.mark.parametrize("launch", [deepspeed, lambda: [sys.executable, *MODULE]], ids=["deepspeed", "python"])
def test_a_wrong_number_of_processes_is_refused_with_the_remedy(launch: Any, tmp_path: Path) -> None:
    overrides = [*SHORT, f"run.root={tmp_path / 'runs'}", "cluster.processes_per_node=4"]
    finished = run_to_end([*launch(), *overrides], folder=tmp_path)
    assert finished.exit_code == ExitCode.BAD_CONFIG, finished.explain()
    assert "--nproc_per_node" in finished.stderr
    assert not (tmp_path / "runs").exists(), "a refused start changed something"
