"""One start of a run inside an allocation: check the nodes, run the ranks, decide what follows and do it."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from launch import attempts
from launch.requeue import BLAMES_A_NODE, Attempt, Limits, Requeue, Stop, decide
from launch.slurm.allocation import Allocation
from launch.slurm.bad_nodes import read_bad_nodes, remember_bad_nodes
from launch.slurm.commands import SlurmError, fields_of_job, slurm_insistently
from launch.slurm.nodes import Places, find_places
from launch.slurm.script import section
from launch.slurm.step import rank_command, rank_environment
from launch.supervise import exit_code, failure_report, first_error
from training.config.load import load_frozen
from training.config.run_directory import checkpoint_folders, is_done
from training.config.schema import RunConfig
from training.errors import ExitCode, StorageError
from training.exit_report import RANK_EXIT, put_away
from training.plain_files import read_json
from training.slurm_rendezvous import slurm_address

_KILLED = 128
"""srun's exit code is 128 + the number of the signal that ended a task; it is negative if srun itself was killed."""


class Wishes(Protocol):
    """What a start needs of launch.slurm.job.Wishes."""

    received: list[int]

    def run_step(self, command: Sequence[str], environment: Mapping[str, str], *, is_ending: Callable[[], bool]) -> int:
        """Run srun to its end, handing signals on; end it if it outlives a rank's end. Return its exit code."""
        ...

    def deafen(self) -> None:
        """Ignore signals from now on."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class End:
    """How a start ended."""

    exit_code: ExitCode
    blamed: tuple[str, ...] = ()
    """Nodes at fault."""


def run_start(directory: Path, until: str | None, wishes: Wishes) -> ExitCode:
    """Run one start of a run to its end and return the exit code of the job.

    Raises:
        ConfigError: there is no such run, or no allocation.
    """
    config, allocation = load_frozen(directory), Allocation.from_environment()
    until = until or config.run.until
    if is_done(directory, until=until):
        print(f"run {directory.name}: nothing is left to do", flush=True)
        return ExitCode.DONE
    try:
        put_away(directory)
        places = find_places(directory, config, allocation, is_leaving=lambda: bool(wishes.received))
        attempts.write_start(
            directory, job=allocation.job, restarts=allocation.restarts, nodes=places.nodes, allocated=allocation.nodes
        )
        end = _run_ranks(directory, config, allocation, until, wishes, places)
    except (StorageError, OSError) as error:
        print(f"the run directory cannot be used: {error}", file=sys.stderr, flush=True)
        end = End(exit_code=ExitCode.STORAGE)
    return _follow(directory, config, allocation, wishes, end)


def node_of_rank(rank: int, nodes: Sequence[str], processes_per_node: int) -> str | None:
    """Return the node that a rank runs on, None if there is no such rank."""
    index = rank // processes_per_node
    return nodes[index] if 0 <= index < len(nodes) else None


def blamed_nodes(report: Any, nodes: Sequence[str], processes_per_node: int) -> tuple[str, ...]:
    """Return the nodes that a rank's exit.json blames: by their hosts' names if those are nodes', else by the ranks.

    A hang is the fault of the rank and host beside it; other ends list under `blamed` whose fault they are.
    """
    if not isinstance(report, dict):
        return ()
    found: list[str] = []
    places = report.get("blamed", [report] if "host" in report else [])
    for place in places if isinstance(places, list) else []:
        if not isinstance(place, dict):
            continue
        host, rank = place.get("host"), place.get("rank")
        node = node_of_rank(rank, nodes, processes_per_node) if isinstance(rank, int) else None
        if isinstance(host, str) and host in nodes:
            found.append(host)
        elif node is not None:
            found.append(node)
    return tuple(dict.fromkeys(found))


def _run_ranks(
    directory: Path,
    config: RunConfig,
    allocation: Allocation,
    until: str | None,
    wishes: Wishes,
    places: Places,
) -> End:
    if wishes.received:
        return End(exit_code=ExitCode.STOPPED)
    nodes = places.nodes
    if not nodes:
        return End(exit_code=ExitCode.PREFLIGHT, blamed=places.blamed)
    environment = rank_environment(directory, config, address=slurm_address(nodes[0]), port=places.port)
    if section(config).container is not None:  # pyxis mounts only what exists
        for folder in (Path(config.data.prepared_root), *checkpoint_folders(config, directory)):
            folder.mkdir(parents=True, exist_ok=True)
    print(f"start {_of(allocation)} of {directory.name} on {', '.join(nodes)}", flush=True)
    command = rank_command(directory, config, nodes=nodes, restarts=allocation.restarts, until=until)
    step_code = wishes.run_step(command, environment, is_ending=lambda: first_error(directory) is not None)
    code = exit_code(directory, step_code, until=until)
    report = _report(directory)
    if report is None and not 0 <= step_code <= _KILLED:
        code = ExitCode.PEER_LOST
    if code is not ExitCode.DONE:
        print(failure_report(directory, code), file=sys.stderr, flush=True)
    blamed = blamed_nodes(report, nodes, config.cluster.processes_per_node) if code in BLAMES_A_NODE else ()
    return End(exit_code=code, blamed=blamed)


def _report(directory: Path) -> Any:
    try:
        return read_json(directory / RANK_EXIT)
    except (OSError, ValueError):
        return None  # a killed rank leaves no file, or half of one


def _follow(directory: Path, config: RunConfig, allocation: Allocation, wishes: Wishes, end: End) -> ExitCode:
    """Requeue this job or let it end, and write down which."""
    slurm = section(config)
    known = attempts.history(directory, job=allocation.job)
    decision = decide(
        [*known, Attempt(exit_code=end.exit_code, step=attempts.last_step(directory), blamed=end.blamed)],
        blamed=end.blamed,
        restarts=allocation.restarts,
        limits=Limits(max_requeues=slurm.max_requeues, no_progress_starts=slurm.no_progress_starts),
    )
    wishes.deafen()
    text, code = decision.reason, decision.exit_code if isinstance(decision, Stop) else end.exit_code
    if isinstance(decision, Requeue):
        remember_bad_nodes(
            directory, {node: f"{end.exit_code.name} in start {_of(allocation)}" for node in decision.exclude}
        )
        state = fields_of_job(allocation.name).get("JobState", "RUNNING")  # no answer: try all the same
        if state == "RUNNING":
            text = f"requeue: {text}"
        else:  # cancelled, preempted, or a node failed: Slurm has decided already
            text, decision = f"left to Slurm, which has the job as {state}: {text}", None
    else:
        text = f"stop: {text}"
    print(f"start {_of(allocation)} ended with {end.exit_code.name}; {text}", flush=True)
    try:
        attempts.write_end(
            directory,
            job=allocation.job,
            restarts=allocation.restarts,
            exit_code=code,
            blamed=end.blamed,
            decision=text,
        )
    except StorageError as error:  # it is in the job's output; the decision stands
        print(error, file=sys.stderr, flush=True)
    if isinstance(decision, Requeue):
        _requeue(directory, slurm.exclude, allocation)
    return code


def _requeue(directory: Path, excluded: Sequence[str], allocation: Allocation) -> None:
    """Put this job back into the queue, under its number; Slurm ends this process soon after.

    In this order: Slurm takes other nodes only for a job that waits. Were this process killed in between, the next
    start would find the bad nodes in the file and do it again.
    """
    bad = list(dict.fromkeys([*excluded, *read_bad_nodes(directory)]))
    try:
        slurm_insistently("scontrol", "requeue", allocation.name)
        if bad:
            slurm_insistently("scontrol", "update", f"JobId={allocation.name}", f"ExcNodeList={','.join(bad)}")
    except SlurmError as error:
        print(f"{error}\n  -> submit again with run.id={directory.name} resume=auto", file=sys.stderr, flush=True)


def _of(allocation: Allocation) -> str:
    return f"{allocation.job}.{allocation.restarts}"
