"""What DeepSpeed's runner is given for the hosts of a file; it starts nothing here."""

import os
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from launch.hostfile import dry_run, environment, remote_environment, run_module, runner_command
from launch.submit import main
from training.config.hosts import chosen_hosts
from training.config.load import compose
from training.config.schema import RunConfig
from training.errors import ConfigError
from training.slurm_rendezvous import PORTS

CANARY = "cAnArY-4711"


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    (tmp_path / "hosts").write_text("node1 slots=2\nnode2 slots=2\n")
    section = f"cluster.hostfile.path={tmp_path / 'hosts'}"
    return compose(["experiment=smoke", "cluster=hostfile", section, f"run.root={tmp_path}/runs"])


def changed(config: RunConfig, **values: object) -> RunConfig:
    assert config.cluster.hostfile is not None
    return replace(config, cluster=replace(config.cluster, hostfile=replace(config.cluster.hostfile, **values)))


def command_of(config: RunConfig, folder: Path) -> list[str]:
    return runner_command(folder, config, remote_environment(folder, config, chosen_hosts(config.cluster)))


def test_deepspeeds_runner_starts_the_frozen_run_on_the_hosts(config: RunConfig, tmp_path: Path) -> None:
    command = command_of(config, tmp_path)
    assert command[:2] == ["env", f"--chdir={tmp_path}"]
    assert command[3:5] == ["-m", "deepspeed.launcher.runner"]
    assert {f"--hostfile={tmp_path / 'hostfile'}", "--launcher=pdsh", "--master_addr=node1"} <= set(command)
    assert command[-3:] == ["--module", "training.train", str(tmp_path)]
    port = next(int(word.partition("=")[2]) for word in command if word.startswith("--master_port="))
    assert port in PORTS


def test_what_runs_on_hosts_is_written_where_they_see_it(config: RunConfig, tmp_path: Path) -> None:
    command, variables = run_module(["training.bandwidth", "x"], tmp_path, config)
    assert (tmp_path / "hostfile").read_text() == "node1 slots=2\nnode2 slots=2\n"
    lines = (tmp_path / "remote_environment").read_text().splitlines()
    assert {"DS_ACCELERATOR=cpu", "OMP_NUM_THREADS=1", "MASTER_ADDR=node1"} <= set(lines)
    assert variables["DS_ENV_FILE"] == str(tmp_path / "remote_environment")
    assert command[1:5] == ["-m", "launch.tether", str(tmp_path), "node1"]
    assert command[-3:] == ["--module", "training.bandwidth", "x"]


def test_ssh_and_interface_reach_the_launchers(config: RunConfig, tmp_path: Path) -> None:
    config = changed(config, ssh_config="/c", ssh_port=2222, interface="eth1", launcher_args=["-t", "5"])
    command, variables = command_of(config, tmp_path), environment(tmp_path, config)
    assert {"--ssh_port=2222", "--launcher_args=-t 5"} <= set(command)
    assert variables["PDSH_SSH_ARGS_APPEND"] == "-F /c"
    remote = remote_environment(tmp_path, config, chosen_hosts(config.cluster))
    assert remote["GLOO_SOCKET_IFNAME"] == remote["NCCL_SOCKET_IFNAME"] == "eth1"
    words = command_of(changed(config, launcher="openmpi"), tmp_path)
    arguments = next(word.partition("=")[2] for word in words if word.startswith("--launcher_args="))
    assert shlex.split(arguments) == [
        *("--mca", "plm_rsh_args", "-o BatchMode=yes -F /c -p 2222"),
        *("--mca", "btl_tcp_if_include", "eth1", "--mca", "oob_tcp_if_include", "eth1", "-t", "5"),
    ]


def test_no_secret_reaches_a_command_line_or_a_file(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSpeed's runner exports what begins with MLFLOW, PYTHON, MV2, UCX and NCCL, on pdsh's and mpirun's argv."""
    for name in (
        "MLFLOW_TRACKING_TOKEN",
        "WANDB_API_KEY",
        "HF_TOKEN",
        "NCCL_SECRET",
        "UCX_AUTH",
        "PYTHON_KEYRING_PASS",
    ):
        monkeypatch.setenv(name, CANARY)
    command, variables = run_module(["training.train", "x"], tmp_path, config)
    exported = [
        value for name, value in variables.items() if name.startswith(("MLFLOW", "PYTHON", "MV2", "UCX", "NCCL"))
    ]
    written = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert CANARY not in " ".join([*command, *exported, *written])
    assert CANARY not in dry_run(tmp_path, config)
    assert variables["WANDB_API_KEY"] == CANARY, "on this machine nothing is taken away"


def test_variables_that_were_asked_for_are_passed_on_or_refused(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_SWITCH", "on")
    monkeypatch.setenv("NCCL_IB_HCA", "^mlx5_0")
    hosts = chosen_hosts(config.cluster)
    remote = remote_environment(tmp_path, changed(config, export=["MY_SWITCH"]), hosts)
    assert (remote["MY_SWITCH"], remote["NCCL_IB_HCA"]) == ("on", "^mlx5_0")
    with pytest.raises(ConfigError, match="is not set here"):
        remote_environment(tmp_path, changed(config, export=["NOT_SET"]), hosts)
    monkeypatch.setenv("MY_SWITCH", "$(reboot)")
    with pytest.raises(ConfigError, match="would be changed by the shells"):
        remote_environment(tmp_path, changed(config, export=["MY_SWITCH"]), hosts)


def test_the_clusters_environment_reaches_every_host_and_wins_over_the_shells(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NCCL_DEBUG", "WARN")
    environment = {"NCCL_DEBUG": "INFO", "UCX_TLS": "rc,self"}
    config = replace(config, cluster=replace(config.cluster, environment=environment))
    remote = remote_environment(tmp_path, config, chosen_hosts(config.cluster))
    assert {name: remote[name] for name in environment} == environment


def test_a_dry_run_prints_commands_ranks_and_environment_and_changes_nothing(
    config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "pdsh").write_text("#!/bin/sh\n")
    (tmp_path / "pdsh").chmod(0o755)
    before = sorted(tmp_path.rglob("*"))
    assert config.cluster.hostfile is not None
    path = f"cluster.hostfile.path={config.cluster.hostfile.path}"
    words = ["experiment=smoke", f"run.root={tmp_path}/runs", "cluster.dry_run=true"]
    assert main([*words, "cluster=hostfile", path]) == 0
    printed = capsys.readouterr().out
    assert "deepspeed.launcher.runner" in printed
    assert "rank     3  node2  local rank 1" in printed
    assert "DS_ENV_FILE=" in printed
    assert "node2 slots=2" in printed
    assert main(words) == 0
    assert "deepspeed.launcher.launch" in capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before


def test_a_launcher_that_is_not_installed_is_refused(
    config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert config.cluster.hostfile is not None
    path = f"cluster.hostfile.path={config.cluster.hostfile.path}"
    assert main(["experiment=smoke", f"run.root={tmp_path}/runs", "cluster=hostfile", path]) == 2
    assert "no pdsh on this machine's PATH" in capsys.readouterr().err
