"""Start a run's ranks on the hosts of a file through DeepSpeed's runner: `deepspeed --hostfile … --launcher pdsh …`.

The runner (0.19.8) pastes what the remote ranks need to know into a shell command line that every process list shows,
so nothing secret may be in it: neither in the file that DS_ENV_FILE names, nor in our own variables that begin with one
of the runner's prefixes. It also runs its command on the hosts in the folder it is started in, and puts that folder
first on PYTHONPATH: so it is started in the run directory, which all hosts see.
"""

import os
import secrets
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from launch.dry_run import describe
from launch.local import repeatable, training_words
from launch.supervise import Outcome, supervise
from training.config.cluster_checks import PLAIN_VALUE
from training.config.cluster_schema import HostfileConfig, HostfileLauncher
from training.config.hosts import Host, chosen_hosts, to_text
from training.config.schema import RunConfig
from training.config.secret_names import is_secret
from training.durable_files import write_durably
from training.errors import ConfigError
from training.process_identity import LAUNCHER_VARIABLE, launched_now, start_time
from training.slurm_rendezvous import PORTS

_REPOSITORY = Path(__file__).parents[1]
_HOSTS_FILE = "hostfile"
_ENVIRONMENT_FILE = "remote_environment"
_PROGRAMS = {HostfileLauncher.pdsh: ("pdsh", "pdsh"), HostfileLauncher.openmpi: ("mpirun", "openmpi-bin")}
"""Program and Debian package."""
_PASSED_ON = ("NCCL_", "GLOO_", "UCX_", "HF_", "WANDB_", "TORCH_", "CUDA_DEVICE_", "TOKENIZERS_", "LD_LIBRARY_PATH")
"""Beginnings of the variables that ranks on other hosts get too, unless they look secret."""
_RUNNERS_OWN = ("MLFLOW", "PYTHON", "MV2", "UCX", "NCCL")
"""What the runner itself passes on (deepspeed/launcher/runner.py EXPORT_ENVS, and the accelerators' export_envs)."""


def check_startable(config: RunConfig) -> None:
    """Check that the hosts are enough and what starts processes on them is installed.

    Raises:
        ConfigError: they are not, or it is not.
    """
    chosen_hosts(config.cluster)
    hostfile = _section(config)
    program, package = _PROGRAMS[hostfile.launcher]
    if shutil.which(program) is None:
        others = " or ".join(
            f"cluster.hostfile.launcher={name}" for name in HostfileLauncher if name != hostfile.launcher
        )
        reason = f"there is no {program} on this machine's PATH"
        raise ConfigError("cluster.hostfile.launcher", hostfile.launcher, reason, f"install {package}, or {others}")


def dry_run(run_directory: Path, config: RunConfig) -> str:
    """Return what `start` would do, as text; changes nothing."""
    hosts = chosen_hosts(config.cluster)
    remote = remote_environment(run_directory, config, hosts)
    return describe(
        commands=[runner_command(run_directory, config, remote)],
        ranks=[(host.name, slot) for host in hosts for slot in range(host.slots)],
        environment=environment(run_directory, config),
        files={
            run_directory / _HOSTS_FILE: to_text(hosts),
            run_directory / _ENVIRONMENT_FILE: environment_text(remote),
        },
    )


def start(run_directory: Path, config: RunConfig, *, again: bool = False) -> Outcome:
    """Run the ranks of a frozen run directory on the hosts to their end and return how it went; see `local.start`."""
    command, variables = run_module(training_words(run_directory, again=again), run_directory, config)
    return supervise(command, run_directory=run_directory, environment=variables, until=config.run.until)


def run_module(words: Sequence[str], folder: Path, config: RunConfig) -> tuple[list[str], dict[str, str]]:
    """Return command line and environment that run a module as all ranks; its files are written into a folder.

    Args:
        words: the module's name and its arguments.
        folder: one that all hosts see.
        config: the run whose ranks they are.
    """
    hosts = chosen_hosts(config.cluster)
    write_durably(folder / _HOSTS_FILE, to_text(hosts))
    remote = remote_environment(folder, config, hosts) | launched_now()
    write_durably(folder / _ENVIRONMENT_FILE, environment_text(remote))
    tether = [sys.executable, "-m", "launch.tether", str(folder), hosts[0].name, *ssh_options(_section(config))]
    return [*tether, "--", *runner_command(folder, config, remote, words)], environment(folder, config)


def runner_command(
    run_directory: Path, config: RunConfig, remote: Mapping[str, str], words: Sequence[str] = ()
) -> list[str]:
    """Return the command line of DeepSpeed's runner, started in the run directory; it trains unless told otherwise."""
    hostfile = _section(config)
    command = [
        *("env", f"--chdir={run_directory}", sys.executable, "-m", "deepspeed.launcher.runner"),
        f"--hostfile={run_directory / _HOSTS_FILE}",
        f"--launcher={hostfile.launcher}",
        f"--master_addr={remote['MASTER_ADDR']}",
        f"--master_port={remote['MASTER_PORT']}",
        *("--force_multi", "--no_ssh_check", "--no_local_rank", "--log_level=warning"),
    ]
    if hostfile.launcher is HostfileLauncher.pdsh and hostfile.ssh_port is not None:
        command.append(f"--ssh_port={hostfile.ssh_port}")
    if arguments := _launcher_arguments(hostfile):
        command.append(f"--launcher_args={shlex.join(arguments)}")
    return [*command, "--module", *(words or training_words(run_directory))]


def environment(run_directory: Path, config: RunConfig) -> dict[str, str]:
    """Return the environment of the runner: ours without what it would show to everybody, plus what it reads."""
    hostfile = _section(config)
    ours = {
        name: value
        for name, value in os.environ.items()
        if not (name.startswith(_RUNNERS_OWN) and is_secret(name, value))
    }
    ours |= repeatable(config) | {
        "DS_ENV_FILE": str(run_directory / _ENVIRONMENT_FILE),
        "PYTHONPATH": str(_REPOSITORY),
        LAUNCHER_VARIABLE: f"{os.getpid()}:{start_time(os.getpid())}",
        # A wish to stop is for the processes that have a rank: here the tether stands for those it cannot see.
        "RANK": "-1",
    }
    if hostfile.ssh_config is not None:
        ours["PDSH_SSH_ARGS_APPEND"] = f"-F {hostfile.ssh_config}"
    if hostfile.launcher is HostfileLauncher.openmpi and os.geteuid() == 0:
        ours |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return ours


def remote_environment(run_directory: Path, config: RunConfig, hosts: list[Host]) -> dict[str, str]:
    """Return the variables that ranks on all hosts get, the place where they meet among them.

    Raises:
        ConfigError: one that was asked for is not set, or cannot be passed on.
    """
    hostfile = _section(config)
    variables = {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith(_PASSED_ON) and not is_secret(name, value) and PLAIN_VALUE.fullmatch(value)
    }
    for name in hostfile.export:
        value = os.environ.get(name)
        if value is None:
            raise ConfigError("cluster.hostfile.export", name, "is not set here", f"export {name}=…, or leave it out")
        if not PLAIN_VALUE.fullmatch(value):
            reason = "its value would be changed by the shells on the way"
            raise ConfigError("cluster.hostfile.export", name, reason, "set it in the hosts' own shell profiles")
        if is_secret(name, value):
            reason = "has a password in it, which the process list of every node would show"
            raise ConfigError("cluster.hostfile.export", name, reason, "leave it out; keep secrets in files")
        variables[name] = value
    if hostfile.interface is not None:
        variables |= {"GLOO_SOCKET_IFNAME": hostfile.interface, "NCCL_SOCKET_IFNAME": hostfile.interface}
    return (
        variables
        | config.cluster.environment
        | repeatable(config)
        | {
            "TORCH_EXTENSIONS_DIR": str(run_directory / "torch_extensions"),
            "MASTER_ADDR": hostfile.master_addr or hosts[0].name,
            "MASTER_PORT": str(config.cluster.master_port or secrets.choice(PORTS)),
        }
    )


def environment_text(variables: Mapping[str, str]) -> str:
    """Return the content of the file that DS_ENV_FILE names."""
    return "".join(f"{name}={value}\n" for name, value in variables.items())


def ssh_options(hostfile: HostfileConfig) -> list[str]:
    """Return the options with which ssh reaches a host without ever asking anybody anything."""
    options = ["-o", "BatchMode=yes"]
    if hostfile.ssh_config is not None:
        options += ["-F", hostfile.ssh_config]
    if hostfile.ssh_port is not None:
        options += ["-p", str(hostfile.ssh_port)]
    return options


def _launcher_arguments(hostfile: HostfileConfig) -> list[str]:
    if hostfile.launcher is HostfileLauncher.pdsh:
        return hostfile.launcher_args
    arguments = ["--mca", "plm_rsh_args", shlex.join(ssh_options(hostfile))]
    if hostfile.interface is not None:
        arguments += ["--mca", "btl_tcp_if_include", hostfile.interface]
        arguments += ["--mca", "oob_tcp_if_include", hostfile.interface]
    return arguments + hostfile.launcher_args


def _section(config: RunConfig) -> HostfileConfig:
    assert config.cluster.hostfile is not None  # checked with the config
    return config.cluster.hostfile
