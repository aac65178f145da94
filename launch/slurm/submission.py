"""From a command line to jobs in Slurm's queue: one, a chain of one per training stage, or an array for a sweep."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from launch.leave_plan import leave_plan
from launch.preflight.across import node_words
from launch.preflight.ask import by_srun
from launch.preflight.before_start import gpu_options
from launch.slurm.bad_nodes import read_bad_nodes
from launch.slurm.commands import fields_of_job, shown, slurm
from launch.slurm.script import job_command, options, render, section
from launch.slurm.step import added_environment, rank_command
from training.config.benchmark_checks import check_prepared
from training.config.load import compose, load_frozen
from training.config.run_directory import new_run_id, resolve
from training.config.schema import RunConfig
from training.config.slurm_schema import SlurmChain
from training.durable_files import write_durably
from training.errors import AutarkyError, ConfigError, ExitCode

_FOLDER = "slurm"
_JOB_FILE = Path(_FOLDER) / "job.txt"
"""Numbers of the jobs of the last submission, in the run directory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """One sbatch: a script and where it lies."""

    path: Path
    text: str
    after: bool = False
    """Whether it starts only when the batch before it has ended well."""


def submit(points: Sequence[list[str]]) -> int:
    """Submit one run, or a sweep's runs as one array; print how to watch; return the exit code of this command."""
    configs: list[tuple[RunConfig, list[str]]] = []
    code = ExitCode.DONE
    for overrides in points:
        try:
            config = compose(overrides)
            check_prepared(config)
            configs.append((config, overrides))
        except AutarkyError as error:  # as in any sweep, the other runs go on
            print(f"{' '.join(overrides)}\n{error}" if len(points) > 1 else error, file=sys.stderr)
            code = code or error.exit_code
    if not configs:
        return code
    try:
        _check_alike([config for config, _ in configs])
        if configs[0][0].cluster.dry_run:
            _print_plan(configs)
            return code
        slurm("sbatch", "--version")  # no run directory is made where nothing can be submitted
        directories = [resolve(config, overrides) for config, overrides in configs]
        _send(directories)
    except AutarkyError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return code


def batches(configs: Sequence[RunConfig], directories: Sequence[Path]) -> list[Batch]:
    """Return the scripts of one submission, in the order in which they start."""
    config, first = configs[0], directories[0]
    bad = sorted({node for directory in directories for node in read_bad_nodes(directory)})
    if len(directories) > 1:
        output = f"{first.parent}/slurm-%A_%a.out"
        asked = options(config, output=output, exclude=bad, array_size=len(directories))
        return [Batch(path=first / _FOLDER / "job.sbatch", text=render(asked, job_command(directories)))]
    output = f"{first}/{_FOLDER}/%j.out"
    if section(config).chain is SlurmChain.run:
        asked = options(config, output=output, exclude=bad)
        return [Batch(path=first / _FOLDER / "job.sbatch", text=render(asked, job_command([first])))]
    chain = []
    for name in config.stages:
        asked = options(config, output=output, exclude=bad, job_name=f"{config.run.name}.{name}")
        text = render(asked, job_command([first], until=name))
        chain.append(Batch(path=first / _FOLDER / f"job.{name}.sbatch", text=text, after=bool(chain)))
    return chain


def sbatch_command(batch: Batch, *, after: str) -> list[str]:
    """Return the command that submits a batch; `after` is the number of the job before it in a chain."""
    # A chain that cannot go on is cancelled, not left in the queue for ever.
    dependency = [f"--dependency=afterok:{after}", "--kill-on-invalid-dep=yes"] if batch.after else []
    return ["sbatch", "--parsable", *dependency, str(batch.path)]


def jobs_of(directory: Path) -> list[str]:
    """Return the numbers of the jobs of the last submission of a run."""
    try:
        return [word for word in (directory / _JOB_FILE).read_text().split() if word.isdecimal()]
    except FileNotFoundError:
        return []


def _send(directories: Sequence[Path]) -> None:
    configs = [load_frozen(directory) for directory in directories]
    for directory, config in zip(directories, configs, strict=True):
        _check_not_queued(directory)
        leave_plan(directory, config)
    jobs: list[str] = []
    for batch in batches(configs, directories):
        write_durably(batch.path, batch.text)
        command = sbatch_command(batch, after=jobs[-1] if jobs else "")
        jobs.append(slurm(*command).split(";")[0])  # NUMBER[;CLUSTER]
        print(f"job {jobs[-1]}: {' '.join(command)}", flush=True)
    for directory in directories:
        write_durably(directory / _JOB_FILE, "\n".join(jobs) + "\n")
        print(f"run directory: {directory}")
    output = f"{directories[0].parent}/slurm-*.out" if len(directories) > 1 else f"{directories[0]}/{_FOLDER}/*.out"
    print(f"watch: squeue --jobs={','.join(jobs)}; tail -F {output}")
    print(f"       {Path(sys.executable).name} -m launch.status {directories[0]}")
    print(f"stop:  scancel {' '.join(jobs)}", flush=True)


def _check_not_queued(directory: Path) -> None:
    """Raise ConfigError if a job of an earlier submission of the run waits or runs: it would go on by itself."""
    for job in jobs_of(directory):
        state = fields_of_job(job).get("JobState", "")
        if state in ("PENDING", "RUNNING", "SUSPENDED", "COMPLETING", "CONFIGURING", "REQUEUED"):
            reason = f"job {job} of this run is {state}, and goes on by itself"
            raise ConfigError("run.id", directory.name, reason, f"wait for it, or scancel {job} first")


def _check_alike(configs: Sequence[RunConfig]) -> None:
    first = configs[0].cluster
    for config in configs[1:]:
        if config.cluster != first:
            reason = "all runs of a sweep are tasks of one array job, which has one size and one set of options"
            raise ConfigError("cluster", "several values", reason, "submit once for each value")
    if len(configs) > 1 and section(configs[0]).chain is SlurmChain.stages:
        reason = "a sweep is one array job, not a chain"
        raise ConfigError("cluster.slurm.chain", "stages", reason, "cluster.slurm.chain=run, or submit without -m")


def _print_plan(configs: Sequence[tuple[RunConfig, list[str]]]) -> None:
    """Print everything that would be done: scripts, commands, which rank runs where, the environment."""
    directories = [Path(config.run.root) / (config.run.id or new_run_id(config)) for config, _ in configs]
    named = [
        replace(config, run=replace(config.run, id=directory.name))
        for (config, _), directory in zip(configs, directories, strict=True)
    ]
    for batch in batches(named, directories):
        print(f"# {batch.path}\n{batch.text}\n# submit\n{' '.join(sbatch_command(batch, after='JOB'))}\n")
    config, directory, cluster = named[0], directories[0], named[0].cluster
    nodes = [f"NODE{index}" for index in range(cluster.num_nodes)]
    until = next(iter(config.stages)) if section(config).chain is SlurmChain.stages else config.run.until
    if cluster.preflight.enabled:
        way = by_srun([*nodes, *[f"SPARE{index}" for index in range(section(config).spare_nodes)]], gpu_options(config))
        (check,) = way.command_lines(node_words("FOLDER", count=len(way.nodes), meet="ADDRESS:PORT"))
        print(f"# checks of all nodes, by the job on its first node\n{shown(check)}\n")
    print(
        "# ranks, by the job on its first node\n"
        + shown(rank_command(directory, config, nodes=nodes, restarts=0, until=until))
    )
    print("\n# rank map")
    for index, node in enumerate(nodes):
        first = index * cluster.processes_per_node
        print(f"{node}: ranks {first} to {first + cluster.processes_per_node - 1}")
    if spare := section(config).spare_nodes:
        print(f"spare: {spare}")
    print("\n# environment that is added")
    for name, value in added_environment(
        directory, config, address="address of NODE0", port="a port free there"
    ).items():
        print(f"{name}={value}")
    print("\ndry run: nothing was written, nothing submitted", flush=True)
