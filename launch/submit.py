"""Start a run, or one run per point of a sweep.

    python -m launch.submit [group=choice …] [key=value …] [-m key=a,b …] [--cfg job]

Composes and checks the config, makes (or with resume=auto|must finds) the run directory, freezes the config into it
and starts the ranks; with cluster=slurm it submits a job that does (a sweep as one array). Exit codes:
docs/exit_codes.md. The groups, keys and their meanings: conf/README.md.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from launch import hostfile, local
from launch.again import run_with_restarts
from launch.leave_plan import leave_plan
from launch.preflight.before_start import check_nodes
from launch.slurm import submission
from training.config.arguments import parse_arguments
from training.config.benchmark_checks import check_prepared
from training.config.load import compose, load_frozen, to_yaml
from training.config.overrides import expand_sweep
from training.config.run_directory import new_run_id, resolve
from training.config.schema import Launcher, RunConfig
from training.durable_files import refuse_world_writable
from training.errors import AutarkyError, ConfigError, ExitCode

_LAUNCHERS = {Launcher.local: local, Launcher.hostfile: hostfile}


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One started, or refused, run."""

    overrides: list[str]
    exit_code: int
    directory: Path | None = None
    """Its run directory; None if it was refused."""
    interrupted: bool = False
    """True if a signal ended it: the person does not want the next one either."""


def main(argv: Sequence[str]) -> int:
    """Do what a command line asks; return the exit code, for a sweep that of its first failing run."""
    refuse_world_writable()
    try:
        arguments = parse_arguments(argv)
        if arguments.help:
            print(__doc__)
            return ExitCode.DONE
        if arguments.show_config:
            print(to_yaml(compose(arguments.positional)))
            return ExitCode.DONE
        points = expand_sweep(arguments.positional) if arguments.multirun else [arguments.positional]
        if len(points) > 1:
            _refuse_shared_directory(points)
    except AutarkyError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if _go_to_slurm(points):
        return submission.submit(points)
    jobs = run_all(points)
    if arguments.multirun:
        print(table(jobs))
    return next((job.exit_code for job in jobs if job.exit_code), ExitCode.DONE)


def run_all(points: Sequence[list[str]]) -> list[Job]:
    """Run one point after the other and return all outcomes; a failing one does not stop the rest, a signal does."""
    jobs: list[Job] = []
    for index, overrides in enumerate(points, start=1):
        if len(points) > 1:
            print(f"[{index}/{len(points)}] {' '.join(overrides)}", flush=True)
        jobs.append(run_one(overrides))
        if jobs[-1].interrupted:
            break
    return jobs


def run_one(overrides: list[str]) -> Job:
    """Run one command line to its end and return the outcome; errors are printed, not raised."""
    try:
        config = compose(overrides)
        launcher = launcher_of(config)
        launcher.check_startable(config)
        check_prepared(config)
        if config.cluster.dry_run:
            print(launcher.dry_run(Path(config.run.root) / (config.run.id or new_run_id(config)), config))
            return Job(overrides=overrides, exit_code=ExitCode.DONE)
        check_nodes(config)
        directory = resolve(config, overrides)
        print(f"run directory: {directory}", flush=True)
        frozen = load_frozen(directory)
        leave_plan(directory, frozen)
        outcome = run_with_restarts(lambda again: launcher.start(directory, frozen, again=again), directory, frozen)
    except AutarkyError as error:
        print(error, file=sys.stderr)
        return Job(overrides=overrides, exit_code=error.exit_code)
    if outcome.exit_code is ExitCode.DONE:
        print(f"report: {directory / 'report.html'}", flush=True)
    return Job(overrides=overrides, exit_code=outcome.exit_code, directory=directory, interrupted=outcome.interrupted)


def launcher_of(config: RunConfig) -> ModuleType:
    """Return the module that starts runs where the config wants it.

    Raises:
        ConfigError: there is none yet.
    """
    chosen = config.cluster.launcher
    if chosen not in _LAUNCHERS:
        works = " or ".join(f"cluster={name}" for name in _LAUNCHERS)
        raise ConfigError("cluster.launcher", chosen, "launch.submit cannot submit to it yet", works)
    return _LAUNCHERS[chosen]


def table(jobs: Sequence[Job]) -> str:
    """Return one line per run of a sweep: exit code, run directory, overrides."""
    names = [job.directory.name if job.directory else "not started" for job in jobs]
    width = max((len(name) for name in names), default=0)
    rows = [
        f"{ExitCode(job.exit_code).name:<18}  {name:<{width}}  {' '.join(job.overrides)}"
        for job, name in zip(jobs, names, strict=True)
    ]
    done = sum(job.exit_code == 0 for job in jobs)
    return "\n".join(["", f"{done} of {len(jobs)} runs done", *rows])


def _go_to_slurm(points: Sequence[list[str]]) -> bool:
    """Return what the first point says that can be composed; the refused ones are told about where runs start."""
    for overrides in points:
        try:
            return compose(overrides).cluster.launcher is Launcher.slurm
        except AutarkyError:
            continue
    return False


def _refuse_shared_directory(points: Sequence[list[str]]) -> None:
    for override in points[0]:
        if override.startswith("run.id=") and all(override in point for point in points):
            run_id = override.removeprefix("run.id=")
            reason = f"{len(points)} runs of a sweep cannot share one run directory"
            raise ConfigError("run.id", run_id, reason, "leave it out; run.name names them")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
