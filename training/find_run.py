"""Which run a start is about: one directory, one config and one lease, decided by rank 0 once for all ranks."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from training.config.arguments import Arguments
from training.config.benchmark_checks import check_prepared
from training.config.load import compose, load_frozen, with_resume
from training.config.run_directory import check_not_done, has_checkpoints, resolve
from training.config.schema import Resume, ResumeConfig, RunConfig
from training.engine import process_group
from training.engine.process_group import ProcessGroup
from training.errors import ConfigError, DataError, RunInUse
from training.exit_report import put_away
from training.fault_tolerance.jit_locks import clear_locks, use_private_extensions
from training.lease import Lease


def find_run(arguments: Arguments, processes: ProcessGroup) -> tuple[Path, RunConfig, Lease | None]:
    """Return the run directory and its config on every rank, and on rank 0 its lease; rank 0 decides, once for all.

    Raises:
        ConfigError: on every rank, with rank 0's words.
        RunInUse, DataError: likewise.
    """
    lease: Lease | None = None
    answer: dict[str, Any] = {}
    if processes.rank == 0:
        try:
            directory, resume, until = _choose_run(arguments.positional, processes.world_size)
            lease = Lease.take(directory)
            put_away(directory)  # before the others know it, so that no rank's new last words are taken for old
            clear_locks(directory)
            answer = {"directory": str(directory), "mode": resume.mode, "allow": resume.allow, "until": until}
        except ConfigError as error:
            answer = {"key": error.key, "given": str(error.given), "reason": error.reason, "remedy": error.remedy}
        except RunInUse as error:
            answer = {"in_use": str(error)}
        except DataError as error:
            answer = {"data": str(error)}
    told = json.loads(processes.broadcast_text(json.dumps(answer)))
    if "remedy" in told:
        raise ConfigError(**told)
    if "in_use" in told:
        raise RunInUse(told["in_use"])
    if "data" in told:
        raise DataError(told["data"])
    directory = Path(told["directory"])
    resume = ResumeConfig(mode=Resume(told["mode"]), allow=told["allow"])
    use_private_extensions(directory)
    config = load_frozen(directory)
    return directory, replace(config, resume=resume, run=replace(config.run, until=told["until"])), lease


def is_run_directory(path: Path) -> bool:
    """Return whether a path is that of a run directory, with its config frozen inside."""
    return (path / "config.yaml").is_file()


def _choose_run(words: list[str], world_size: int) -> tuple[Path, ResumeConfig, str | None]:
    """Return the run directory that the arguments name or ask for (config frozen inside), how to resume, run.until."""
    if is_run_directory(Path(words[0])):
        directory = Path(words[0]).resolve()
        config = _continued(directory, words[1:])
        _check_world_size(config, world_size)
    else:
        config = compose(words, world=process_group.launched_world())
        _check_world_size(config, world_size)
        directory = resolve(config, words)
    check_prepared(config)
    return directory, config.resume, config.run.until


def _check_world_size(config: RunConfig, world_size: int) -> None:
    """Raise ConfigError unless the launcher started as many processes as the config wants."""
    if config.world_size != world_size:
        raise ConfigError(
            "cluster",
            f"{config.cluster.num_nodes} nodes × {config.cluster.processes_per_node} processes",
            f"the launcher started {world_size} process{'es' if world_size > 1 else ''}, not {config.world_size}",
            f"start {config.world_size} (deepspeed --num_accelerators, torchrun --nproc_per_node), or give overrides, "
            "no run directory, and leave cluster.num_nodes and cluster.processes_per_node out: then the launcher's "
            f"numbers are taken; with run.id={config.run.id or 'NAME'} resume=auto an earlier run goes on with them",
        )


def _continued(directory: Path, words: list[str]) -> RunConfig:
    """Return a run directory's config; the only overrides it takes are resume's, since all else is frozen."""
    config = with_resume(load_frozen(directory), words)
    if config.resume.mode is Resume.never and has_checkpoints(config, directory):
        raise ConfigError(
            "resume",
            "never",
            f"{directory} holds checkpoints and would start over at step 0",
            "add resume=auto to continue it",
        )
    check_not_done(config, directory)
    return config
