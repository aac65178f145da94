"""Ranks started by DeepSpeed's launcher on this machine."""

import base64
import json
import os
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from launch.local import check_startable, environment, launcher_command
from launch.supervise import Outcome, supervise
from training.config.load import compose
from training.config.schema import RunConfig
from training.errors import ConfigError, ExitCode

SMOKE = compose(["experiment=smoke"])

RANK = """
import json, os, pathlib, sys, time
directory, rank = pathlib.Path(sys.argv[1]), int(os.environ["RANK"])
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT", "OMP_NUM_THREADS", "DS_ACCELERATOR", "TORCH_EXTENSIONS_DIR")
seen = {"argv": sys.argv[1:], "pid": os.getpid(), **{name: os.environ[name] for name in names}}
(directory / f"rank-{rank}.json").write_text(json.dumps(seen))
while len(list(directory.glob("rank-*.json"))) < 2:
    time.sleep(0.05)
BODY
"""


def on_gpus(config: RunConfig, processes: int) -> RunConfig:
    accelerator = replace(config.cluster.accelerator, device="cuda")
    return replace(config, cluster=replace(config.cluster, accelerator=accelerator, processes_per_node=processes))


def start_ranks(body: str, directory: Path, tmp_path: Path) -> Outcome:
    """Run two ranks of a small program in place of training.train."""
    (tmp_path / "rank_program.py").write_text(RANK.replace("BODY", body))
    command = launcher_command(directory, SMOKE)
    assert command[-2:] == ["training.train", str(directory)]
    variables = environment(directory, SMOKE)
    variables["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{variables['PYTHONPATH']}"
    return supervise([*command[:-2], "rank_program", str(directory)], run_directory=directory, environment=variables)


def test_all_ranks_start_with_their_place_and_without_local_rank_arguments(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    (directory / "stages.json").write_text('{"state": "done"}')
    assert start_ranks("", directory, tmp_path).exit_code is ExitCode.DONE
    ranks = [json.loads((directory / f"rank-{rank}.json").read_text()) for rank in range(2)]
    assert [(seen["RANK"], seen["LOCAL_RANK"], seen["WORLD_SIZE"]) for seen in ranks] == [
        ("0", "0", "2"),
        ("1", "1", "2"),
    ]
    assert ranks[0]["MASTER_PORT"] == ranks[1]["MASTER_PORT"]
    for seen in ranks:
        assert seen["argv"] == [str(directory)]
        assert (seen["OMP_NUM_THREADS"], seen["DS_ACCELERATOR"]) == ("1", "cpu")
        assert Path(seen["TORCH_EXTENSIONS_DIR"]).parent == directory


def test_a_rank_that_is_killed_ends_the_run_with_an_error_and_no_process_left(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    begun = time.monotonic()
    outcome = start_ranks("os.kill(os.getpid(), 9) if rank == 1 else time.sleep(60)", directory, tmp_path)
    assert outcome == Outcome(exit_code=ExitCode.FAILED, interrupted=False)
    assert time.monotonic() - begun < 40
    assert capfd.readouterr().err.rstrip().endswith("killed from outside, out of memory, or crashed in native code")
    for rank in range(2):
        pid = json.loads((directory / f"rank-{rank}.json").read_text())["pid"]
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_each_start_has_its_own_port_unless_the_config_names_one(tmp_path: Path) -> None:
    def port(config: RunConfig) -> str:
        return next(word for word in launcher_command(tmp_path, config) if word.startswith("--master_port="))

    named = replace(SMOKE, cluster=replace(SMOKE.cluster, master_port=29511))
    assert port(named) == "--master_port=29511"
    assert port(SMOKE) != port(SMOKE)


def test_visible_devices_of_a_scheduler_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6,7")
    words = launcher_command(tmp_path, on_gpus(SMOKE, 2))
    world = next(word.removeprefix("--world_info=") for word in words if word.startswith("--world_info="))
    assert json.loads(base64.urlsafe_b64decode(world)) == {"localhost": ["4", "6"]}
    with pytest.raises(ConfigError, match="processes_per_node=3 works"):
        check_startable(on_gpus(SMOKE, 4))


def test_a_run_over_several_nodes_is_not_started_from_here() -> None:
    with pytest.raises(ConfigError, match="deepspeed --hostfile"):
        check_startable(replace(SMOKE, cluster=replace(SMOKE.cluster, num_nodes=2)))
