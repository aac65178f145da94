"""Runs on a real Slurm, each hurt once when it has come so far, all in the queue of one cluster at the same time."""

import contextlib
import re
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

import psutil

from tests.integration.reading import contents, last_checkpoint, ledger, numbers_by_step, records
from tests.integration.running import SMOKE
from tests.slurm_cluster import jobs
from tests.slurm_cluster.cluster import SlurmCluster

STEPS = 24
_HURT_AFTER_STEPS = 6
_HOUR = "cluster.slurm.time_limit=01:00:00"
_NOT_A_HANG = "fault_tolerance.hang.step_seconds=600"
"""Where a rank is frozen to make its run wait for something else: for Slurm, longer than three of the slowest steps."""
RUN = [
    *SMOKE,
    "cluster=slurm",
    "cluster.num_nodes=2",
    "cluster.processes_per_node=1",
    f"stages.pretrain.tokens={(STEPS - 6) * 512}",
    "eval.at_start=false",
    "eval.suites.quick.multiple_choice_items=0",
    "eval.suites.quick.prompts=[]",
    "cluster.preflight.free_bytes=0",
]


@dataclass(kw_only=True, slots=True)
class Case:
    """One run of a campaign."""

    job: str
    directory: Path
    nodes: list[str] = field(default_factory=list)
    """Of the start that is hurt; the first one is the batch node."""
    hurt_at: float | None = None
    """Unix seconds."""
    seen_at: float | None = None
    """When the job, or Slurm, first took note."""
    then: Callable[[], bool] | None = None
    """What is still to be done to it; returns whether that was done."""
    state: str = ""
    """In which it ended."""
    fields: dict[str, str] = field(default_factory=dict)

    @property
    def again_at(self) -> float | None:
        """Return when the first step of a later start was done; None if none was."""
        steps = records(self.directory, "step")
        hurt = [step["attempt"] for step in steps if self.hurt_at and step["time"] <= self.hurt_at]
        return next((step["time"] for step in steps if hurt and step["attempt"] > hurt[-1]), None)

    def describe(self) -> str:
        """Return all that is known, for the message of a failure."""
        return (
            f"{self.directory.name}: {self.state or 'not ended'} {self.fields}\n{jobs.output(self.directory)[-6000:]}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """What is done to a run."""

    hurt: Callable[[SlurmCluster, Case], Callable[[], bool] | None]
    """Does it; may return what is still to be done, which is then called until it returns True."""
    overrides: Sequence[str] = (_HOUR,)


def _nothing(_cluster: SlurmCluster, _case: Case) -> None:
    pass


def _kill_a_task(_cluster: SlurmCluster, case: Case) -> None:
    jobs.ranks(case.job)[1].kill()


def _freeze_a_task(_cluster: SlurmCluster, case: Case) -> None:
    """Stop a rank as hardware that hangs does: no signal that could be waited for ends it."""
    jobs.ranks(case.job)[1].suspend()


def _kill_what_started_a_task(_cluster: SlurmCluster, case: Case) -> None:
    """Kill slurmstepd: Slurm itself never notices (22.05), the task's own lifeline does."""
    parent = jobs.ranks(case.job)[1].parent()
    assert parent is not None
    assert "slurmstepd" in " ".join(parent.cmdline())
    parent.kill()


def _freeze_until_warned(_cluster: SlurmCluster, case: Case) -> Callable[[], bool]:
    """Let a step last until Slurm's warning of the time limit is there; it comes when Slurm likes, up to 60 s early."""
    rank = jobs.ranks(case.job)[0]
    rank.suspend()

    def warned() -> bool:
        with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError):
            status = Path(f"/proc/{rank.pid}/status").read_text()
            pending = [int(mask, 16) for mask in re.findall(r"^(?:Sig|Shd)Pnd:\s*([0-9a-f]+)", status, re.MULTILINE)]
            if not any(mask >> (signal.SIGUSR1 - 1) & 1 for mask in pending):
                return False
            case.hurt_at = time.time()
            rank.resume()
        return True

    return warned


def _kill_the_second_nodes_daemon(cluster: SlurmCluster, case: Case) -> None:
    """Ranks do not notice it; a frozen one keeps the run from ending before Slurm does."""
    jobs.ranks(case.job)[0].suspend()
    cluster.kill_daemon(case.nodes[1])


def _power_off_the_second_node(cluster: SlurmCluster, case: Case) -> None:
    cluster.power_off(case.nodes[1])


def _power_off_the_batch_node(cluster: SlurmCluster, case: Case) -> None:
    cluster.power_off(case.nodes[0])


def _drain_the_second_node(cluster: SlurmCluster, case: Case) -> None:
    cluster.drain(case.nodes[1])


def _cancel(cluster: SlurmCluster, case: Case) -> None:
    cluster.command("scancel", case.job)


def _preempt(cluster: SlurmCluster, case: Case) -> None:
    """Submit a short job of a partition that comes first, on the very nodes."""
    words = ["--partition=high", "--exclusive", f"--nodelist={','.join(case.nodes)}", "--output=/dev/null"]
    cluster.command("sbatch", *words, "--wrap=sleep 1")


FAULTS = {
    "finish": Fault(hurt=_nothing),
    "daemon killed": Fault(hurt=_kill_the_second_nodes_daemon, overrides=[_HOUR, _NOT_A_HANG]),
    "node lost": Fault(hurt=_power_off_the_second_node),
    "time limit": Fault(
        hurt=_freeze_until_warned,
        overrides=["cluster.slurm.time_limit=00:02:00", "cluster.slurm.signal_seconds=59", _NOT_A_HANG],
    ),
    "task frozen": Fault(hurt=_freeze_a_task, overrides=[_HOUR, "fault_tolerance.hang.step_seconds=30"]),
    "task killed": Fault(hurt=_kill_a_task),
    "drain": Fault(hurt=_drain_the_second_node),
    "scancel": Fault(hurt=_cancel),
    "batch node lost": Fault(hurt=_power_off_the_batch_node),
    "slurmstepd killed": Fault(hurt=_kill_what_started_a_task),
    "preemption": Fault(hurt=_preempt),
}
"""In the order of the queue: what takes Slurm longest to see comes first."""


def run_campaign(
    cluster: SlurmCluster, names: Sequence[str], root: Path, prepared_root: Path, *, limit_seconds: float
) -> dict[str, Case]:
    """Return runs under a root, each hurt by the fault of its name, all at their ends."""
    cases: dict[str, Case] = {}
    partition = ("scontrol", "update", "PartitionName=main")
    cluster.command(*partition, "State=DOWN")  # none starts, and ends, while others are still submitted
    for name in names:
        places = [f"run.root={root}", f"data.prepared_root={prepared_root}", f"run.id={name.replace(' ', '-')}"]
        submitted = jobs.launch_submit(cluster, [*RUN, *places, *FAULTS[name].overrides])
        assert submitted.exit_code == 0, submitted.stderr
        cases[name] = Case(job=submitted.jobs[0], directory=submitted.directories[0])
    cluster.command(*partition, "State=UP")
    deadline, turn = time.monotonic() + limit_seconds, cycle(cases)
    while not all(case.state for case in cases.values()):
        assert time.monotonic() < deadline, "\n".join(case.describe() for case in cases.values() if not case.state)
        for name, case in cases.items():
            if not case.state:
                _hurt(cluster, case, FAULTS[name])
        # One at a time: Slurm takes long to answer, and meanwhile a run that is to be hurt comes to its end.
        asked = cases[next(turn)]
        if not asked.state:
            _ask(cluster, asked)
        time.sleep(0.1)
    return cases


def differences(case: Case, undisturbed: Case) -> list[str]:
    """Return in what a run that has ended is not as the undisturbed one, bit by bit; [] is the aim."""
    found = []
    steps = numbers_by_step(records(case.directory, "step"))
    if len(steps) != STEPS or steps != numbers_by_step(records(undisturbed.directory, "step")):
        found.append("steps")
    if contents(last_checkpoint(case.directory)) != contents(last_checkpoint(undisturbed.directory)):
        found.append("checkpoint")
    if ledger(case.directory).get("state") != "done":
        found.append("ledger")
    return found


def _hurt(cluster: SlurmCluster, case: Case, fault: Fault) -> None:
    """Hurt a run if it has come so far, or do what is still to be done to it."""
    if case.hurt_at is None:
        if len(records(case.directory, "step")) >= _HURT_AFTER_STEPS and len(jobs.ranks(case.job)) == 2:
            case.nodes = jobs.attempts(case.directory, "start")[-1]["nodes"]
            case.hurt_at = time.time()
            case.then = fault.hurt(cluster, case)
    elif case.then is not None and case.then():
        case.then = None


def _ask(cluster: SlurmCluster, case: Case) -> None:
    """Note who took note of what was done to a run, and its end."""
    known = jobs.fields(cluster, case.job)
    if case.hurt_at is not None and case.then is None and case.seen_at is None:
        ends = [end["time"] for end in jobs.attempts(case.directory, "end") if end["time"] >= case.hurt_at]
        if (
            ends
            or known["JobState"] != "RUNNING"
            or int(known["Restarts"]) > len(jobs.attempts(case.directory, "start"))
        ):
            case.seen_at = min([*ends, time.time()])
    if known["JobState"] in jobs.ENDED:
        case.fields, case.state = known, known["JobState"]
