"""Which of the allocated nodes the ranks run on: those that pass preflight, spare ones in the place of the others.

Only the job knows its nodes, so they are checked there. Who fails is left out from now on, unless all do: what they
have in common (a full disk, a wrong setting) is no node's fault.
"""

import socket
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from launch.preflight.across import bandwidth, run
from launch.preflight.ask import by_srun, run_bounded
from launch.preflight.before_start import gpu_options
from launch.preflight.findings import NodeReport, Status, bad_nodes, table
from launch.slurm.allocation import Allocation
from launch.slurm.bad_nodes import read_bad_nodes, remember_bad_nodes
from launch.slurm.step import module_command, rank_environment
from training.config.schema import RunConfig
from training.slurm_rendezvous import rendezvous_port, slurm_address


@dataclass(frozen=True, kw_only=True, slots=True)
class Places:
    """Where the ranks of one start run."""

    nodes: tuple[str, ...]
    """As many as the run has; none at all if too few are good."""
    port: int = 0
    """Of the first node, where the ranks meet."""
    blamed: tuple[str, ...] = ()
    """Allocated nodes that are left out."""


def find_places(
    directory: Path, config: RunConfig, allocation: Allocation, *, is_leaving: Callable[[], bool]
) -> Places:
    """Return where the ranks run; the nodes that fail their checks are remembered.

    Args:
        directory: of the run.
        config: of the run.
        allocation: what there is.
        is_leaving: whether this job was told to end: a check that is cut short says nothing about a node.

    Raises:
        StorageError: run.root cannot be written.
    """
    known = read_bad_nodes(directory)
    asked = [node for node in allocation.nodes if node not in known]
    port = config.cluster.master_port or _free_port(allocation)
    failed: list[str] = []
    if asked and config.cluster.preflight.enabled:
        # Beside the run, wherever the job was submitted from.
        here = replace(config, run=replace(config.run, root=str(directory.parent)))
        reports = run(here, by_srun(asked, gpu_options(config)), meet=f"{slurm_address(asked[0])}:{port}")
        if is_leaving():
            return Places(nodes=())
        print(table(reports), flush=True)
        failed = bad_nodes(reports)
        if len(failed) == len(asked):
            return Places(nodes=())
        remember_bad_nodes(directory, {report.node: _reason(report, allocation) for report in reports if report.failed})
    nodes = choose(allocation.nodes, bad={*known, *failed}, number=config.cluster.num_nodes)
    if nodes and not _is_fast(directory, config, allocation, nodes, port):
        return Places(nodes=())
    return Places(nodes=nodes, port=port, blamed=tuple(node for node in allocation.nodes if node in {*known, *failed}))


def choose(allocated: Sequence[str], *, bad: Collection[str], number: int) -> tuple[str, ...]:
    """Return the nodes that the ranks run on, the first good ones in Slurm's order; () if too few are good."""
    good = [node for node in allocated if node not in bad]
    return tuple(good[:number]) if len(good) >= number else ()


def _is_fast(directory: Path, config: RunConfig, allocation: Allocation, nodes: Sequence[str], port: int) -> bool:
    """Return whether the collective over all ranks is as fast as it should be, or nobody asked for that."""
    if not config.cluster.preflight.enabled:
        return True
    other = _free_port(allocation, but=port)  # the ranks then find theirs unused
    environment = rank_environment(directory, config, address=slurm_address(nodes[0]), port=other)

    def run_ranks(words: Sequence[str], seconds: float) -> int:
        return (
            0
            if run_bounded(module_command(directory, config, nodes, words), seconds, environment).problem is None
            else 1
        )

    folder = directory / "slurm"
    findings = bandwidth(config, folder, run_ranks)
    if findings:
        print(table([NodeReport(node=nodes[0], findings=findings)]), flush=True)
    return all(finding.status is not Status.fail for finding in findings)


def _reason(report: NodeReport, allocation: Allocation) -> str:
    finding = next(finding for finding in report.findings if finding.status is Status.fail)
    return f"preflight of start {allocation.job}.{allocation.restarts}: {finding.check}: {finding.seen}"


def _free_port(allocation: Allocation, *, but: int | None = None) -> int:
    """Return the port of this start, free on the batch node, which is the first one unless it is known to be bad."""
    return rendezvous_port(allocation.job, start=allocation.restarts, taken=lambda port: port == but or _is_taken(port))


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the rendezvous does: a closed one is free
        try:
            probe.bind(("", port))
        except OSError:
            return True
        return False
