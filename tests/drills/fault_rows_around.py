"""The rows of the fault matrix in which what is around a run is hurt: disks, clocks, the network, numbers."""

import os
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from tests.drills.bad_servers import broken_server, nobody, tarpit
from tests.drills.clocks import CAN_SHIFT, DAY, Clock, build_shim
from tests.drills.disturbed import BITWISE, Disturbed, Ground, Line, MissedError
from tests.drills.drill_run import LIMIT_SECONDS, WORLD_SIZE, differences_at_end, make_run, overrides_of
from tests.drills.moments import Place
from tests.drills.mounts import can_mount, disk, file_on, fill, make_read_only
from tests.drills.starts import ForkServer
from tests.drills.tracing import failing_calls, slow_calls, strace_works
from tests.integration.reading import contents, last_checkpoint, ledger, numbers_by_step, records
from training.fault_tolerance.injected import VARIABLE
from training.fault_tolerance.poisoned import VARIABLE as POISON

_MANY = 10_000
_FULL_SAYS = "[Errno 28]"
_MEMORY_SAYS = "records wait in memory"
_NO_MOUNTS = "this machine lets nobody make mounts"
_NO_STRACE = "there is no strace, or it may not trace"
_PATIENT = f"checkpoint.max_failed_saves={_MANY}"
"""A storage that is away for longer than usual, in steps as short as these."""
_DISK_BYTES = 64 * 2**20
_LOG_DISK_BYTES = 64 * 2**10
_SLOW_FSYNC_SECONDS = 0.5
_STEP_LIMIT_SECONDS = 3.0
_FILE_BYTES = 2**16
"""That a rank may write into one file; its part of a checkpoint is larger."""


# -- disks ------------------------------------------------------------------------------------------------------------


def disk_full(ground: Ground) -> Iterator[Line]:
    """D1: the disk of the checkpoints is full, and has room again later; a file may not grow."""
    fault, injected = "disk full", "a tmpfs under checkpoints/, filled; freed once a save has failed"
    if not can_mount():
        yield Line(row="D1", fault=fault, injected=injected, not_run=_NO_MOUNTS)
    else:
        run = Disturbed(ground, expected=["save_failed"], overrides=[_PATIENT])
        with disk(run.directory / "checkpoints", size_bytes=_DISK_BYTES) as checkpoints:
            run.start()
            run.reach(Place.training)
            ballast: list[Path] = []
            run.disturb(lambda: ballast.append(fill(checkpoints)))
            said = run.see_incident("save_failed")
            ballast[0].unlink()
            run.go_to_end()
            yield run.line("D1", fault, injected, remarks=_first_line(said))
    run = Disturbed(ground, expected=["save_failed"], overrides=[_PATIENT])
    run.start()
    run.reach(Place.training)
    pid = run.started.pid_of("rank 1")
    before = _limit_files(pid, None)
    run.disturb(lambda: _limit_files(pid, _FILE_BYTES))
    said = run.see_incident("save_failed")
    _limit_files(pid, before)
    run.go_to_end()
    yield run.line(
        "D1", "file too large", "RLIMIT_FSIZE of rank 1, lifted once a save has failed", remarks=_first_line(said)
    )


def _limit_files(pid: int, size: int | None) -> int:
    """Limit the files that a process may write, the soft limit alone; return the limit before."""
    before, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    if size is not None:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, hard))
    return before


def disk_errors(ground: Ground) -> Iterator[Line]:
    """D2: system calls of the living ranks fail until a save has failed: every fsync, or those on the shards alone."""
    for name, error, on_shards in (("fsync", "EIO", False), ("write", "ENOSPC", True), ("close", "EIO", True)):
        of = "the checkpoints' shards" if on_shards else "everything"
        injected = f"strace on the living ranks: {name} of {of} fails, until a save has failed"
        if not strace_works():
            yield Line(row="D2", fault=f"{error} at {name}", injected=injected, not_run=_NO_STRACE)
            continue
        expected = ["save_failed", "prune_failed", "log_unwritable", "heartbeat_file"]
        run = Disturbed(ground, expected=expected, overrides=[_PATIENT])
        shards = [
            run.directory / f"checkpoints/step-{step:08d}.attempt-1.tmp/rank-{rank:05d}.safetensors"
            for step in ground.reference.steps
            for rank in range(WORLD_SIZE)
        ]
        run.start()
        run.reach(Place.training)
        run.disturb(lambda: None)
        with failing_calls(run.started.ranks, name, error=error, files=shards if on_shards else ()):
            run.see(lambda run=run: "INCIDENT save_failed" in run.run.words())
        run.go_to_end()
        failed = [record for record in records(run.directory, "incident") if record["what"] == "save_failed"]
        run.require("metrics.jsonl says so too", bool(failed))
        yield run.line("D2", f"{error} at {name}", injected, remarks=_first_line(failed[0]["message"]))


def disk_slow(ground: Ground) -> Iterator[Line]:
    """D3: every fsync of every process takes longer, from the first to the last."""
    injected = f"strace: every fsync takes {_SLOW_FSYNC_SECONDS} s longer"
    if not strace_works():
        yield Line(row="D3", fault="slow disk", injected=injected, not_run=_NO_STRACE)
        return
    assert ground.reference
    with ForkServer(prefix=slow_calls("fsync", seconds=_SLOW_FSYNC_SECONDS)) as server:
        overrides = ["checkpoint.max_stall_seconds=0.5"]
        run = Disturbed(ground, server=server, expected=["save_late"], save_every_steps=2, overrides=overrides)
        run.start()
        run.disturb(lambda: None)
        run.see_incident("save_late")
        run.times.seen = None  # there is no moment at which it began
        run.go_to_end()
        waited = run.limit_wait()
    late = sum(record["what"] == "save_late" for record in records(run.directory, "incident"))
    equal = "yes; checkpoints that were late are missing"
    yield run.line("D3", "slow disk", injected, remarks=f"{late} saves late; {waited}", equal=equal)


def storage_away(ground: Ground) -> Iterator[Line]:
    """D4: the storage of the checkpoints vanishes, or may only be read, and comes back."""
    expected = ["save_failed", "prune_failed"]
    run = Disturbed(ground, expected=expected, overrides=[_PATIENT])
    run.start()
    run.reach(Place.training)
    folder, away = run.directory / "checkpoints", run.directory / "away"
    run.disturb(lambda: _replace(folder, away))
    said = run.see_incident("save_failed")
    folder.unlink()
    away.rename(folder)
    run.go_to_end()
    injected = "checkpoints/ renamed away, a file in its place; back once a save has failed"
    yield run.line("D4", "storage vanishes and returns", injected, remarks=_first_line(said))
    yield _away_at_the_end_of_a_stage(ground)
    fault, injected = "storage read-only and back", "remount of a tmpfs under checkpoints/, ro, then rw"
    if not can_mount():
        yield Line(row="D4", fault=fault, injected=injected, not_run=_NO_MOUNTS)
        return
    run = Disturbed(ground, expected=expected, overrides=[_PATIENT])
    with disk(run.directory / "checkpoints", size_bytes=_DISK_BYTES) as checkpoints:
        run.start()
        run.reach(Place.training)
        run.disturb_when_it_can(lambda: make_read_only(checkpoints, True))
        said = run.see_incident("save_failed")
        make_read_only(checkpoints, False)
        run.go_to_end()
        yield run.line("D4", fault, injected, remarks=_first_line(said))


def _away_at_the_end_of_a_stage(ground: Ground) -> Line:
    """Take it away where training cannot go on without it, until a pause between tries is longer than a step may be."""
    overrides = [_PATIENT, f"fault_tolerance.hang.step_seconds={_STEP_LIMIT_SECONDS}"]
    run = Disturbed(ground, expected=["save_failed", "prune_failed"], overrides=overrides)
    run.start()
    run.reach(Place.training, count=ground.reference.stage_ends[0] - 2)
    folder, away = run.directory / "checkpoints", run.directory / "away"
    run.disturb(lambda: _replace(folder, away))
    run.see(lambda: "(failure 3 in a row)" in run.run.words())
    time.sleep(_STEP_LIMIT_SECONDS + 2)
    run.times.seen = None  # that of the third try
    folder.unlink()
    away.rename(folder)
    run.go_to_end()
    seconds = f"{_STEP_LIMIT_SECONDS + 2:.0f} s longer than three tries"
    return run.line(
        "D4", "storage away at the end of a stage", f"the same, for {seconds}", remarks="waited for; no hang"
    )


def _replace(folder: Path, away: Path) -> None:
    folder.rename(away)
    folder.write_text("something else lies there")


# -- clocks -----------------------------------------------------------------------------------------------------------


def clock_jumps(ground: Ground) -> Iterator[Line]:
    """T1: the wall clock of all ranks jumps a day ahead, then two days back; then a rank is killed."""
    injected = "LD_PRELOAD shim: +1 day, then -1 day, in training; then kill -9 of rank 1"
    if not CAN_SHIFT:
        yield Line(row="T1", fault="clock jumps", injected=injected, not_run="no C compiler")
        return
    assert ground.reference
    folder = ground.folder("clock")
    clock = Clock(folder / "clock", build_shim(folder))
    with ForkServer(environment=clock.environment) as server:
        run = Disturbed(ground, server=server)
        run.start()
        run.reach(Place.training, count=2)
        clock.shift(DAY)
        run.reach(Place.training, count=4)
        clock.shift(-DAY)
        run.reach(Place.training, count=6)
        run.disturb(lambda: run.started.kill("rank 1"))
        run.see_end(victims=["rank 1"])
        run.go_on()
    dates = [record["time"] for record in records(run.directory, "step")]
    run.require("the clock jumped", max(dates) - min(dates) > DAY)
    yield run.line("T1", "clock jumps", injected, remarks="no false hang; continued from the newest step, not date")


def clocks_differ(ground: Ground) -> Iterator[Line]:
    """T2: rank 1 lives a day ahead when the run directory is chosen, by its date, from overrides."""
    injected = "LD_PRELOAD shim on rank 1: +1 day from the start; overrides, no run directory"
    if not CAN_SHIFT:
        yield Line(row="T2", fault="ranks' clocks differ", injected=injected, not_run="no C compiler")
        return
    reference = ground.reference
    folder = ground.folder("clocks")
    clock = Clock(folder / "clock", build_shim(folder), num_ranks=WORLD_SIZE)
    clock.shift(DAY, rank=1)
    words = [*overrides_of(ground.root, reference.stage_steps), f"run.root={folder / 'runs'}"]
    wrong: list[str] = []
    with ForkServer(environment=clock.environment) as server:
        started = server.start_with(words, world_size=WORLD_SIZE, output=folder / "output")
        left = server.wait(LIMIT_SECONDS)
        started.close()
        if left.processes or left.exit_codes[started.launcher]:
            wrong.append(f"it ended with {left.exit_codes}: {(folder / 'output').read_text()[-2000:]}")
    runs = [path for path in (folder / "runs").iterdir() if path.is_dir()]
    if len(runs) != 1:
        wrong.append(f"the run directories are {runs}")
    differing = [sentence for run in runs for sentence in differences_at_end(run, reference)]
    yield Line(
        row="T2",
        fault="ranks' clocks differ",
        injected=injected,
        equal="NO" if differing else BITWISE,
        remarks=f"{len(runs)} run directory",
        wrong=(*wrong, *differing),
    )


# -- whatever reports -------------------------------------------------------------------------------------------------


def wandb_away(ground: Ground) -> Iterator[Line]:
    """L1: wandb's server refuses, never answers, or only has errors."""
    servers: list[tuple[str, Callable[[], AbstractContextManager[str]]]] = [
        ("unreachable", nobody),
        ("a tarpit", tarpit),
        ("all errors (500)", broken_server),
    ]
    for name, server in servers:
        run = Disturbed(ground, overrides=["reporting.wandb.mode=online"])
        with server() as url:
            run.start({"WANDB_MODE": "online", "WANDB_BASE_URL": url, "WANDB_API_KEY": "a" * 40})
            run.disturb(lambda: None)
            run.go_to_end()
        yield run.line("L1", f"wandb is {name}", "WANDB_BASE_URL, mode online", remarks=run.limit_wait())


def output_gone(ground: Ground) -> Iterator[Line]:
    """L2: nobody reads standard output and error any more; the disk of metrics.jsonl is full for a while."""
    run = Disturbed(ground)
    pipe = run.directory / "output"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    run.start()
    run.reach(Place.training)
    run.disturb(lambda: os.close(reader))
    pipe.unlink()
    pipe.write_text("closed\n")
    run.go_to_end()
    yield run.line(
        "L2", "stdout and stderr closed", "their pipe's reader closes it, training", remarks=run.limit_wait()
    )
    fault, injected = "log disk full", "metrics.jsonl on a tmpfs, filled; freed once that was said"
    if not can_mount():
        yield Line(row="L2", fault=fault, injected=injected, not_run=_NO_MOUNTS)
        return
    run = Disturbed(ground, expected=["log_unwritable"])
    place = ground.folder("log-disk")
    log = run.directory / "metrics.jsonl"
    with disk(place, size_bytes=_LOG_DISK_BYTES), file_on(place, log):
        run.start()
        run.reach(Place.training)
        ballast: list[Path] = []
        run.disturb(lambda: ballast.append(fill(place)))
        run.see(lambda: _MEMORY_SAYS in run.run.words())
        ballast[0].unlink()
        run.go_to_end()
    (incident,) = [record for record in records(run.directory, "incident") if record["what"] == "log_unwritable"]
    run.require(f"the cause is named: {incident['message']}", _FULL_SAYS in incident["message"])
    yield run.line("L2", fault, injected, remarks=f"no record lost; {run.limit_wait()}")


# -- numbers ----------------------------------------------------------------------------------------------------------

_BATCH = 8
_NAN_AT = 5
_SPIKE_AT = 10
_SAVE_EVERY = 3


def not_a_number(ground: Ground) -> Iterator[Line]:
    """N1: NaN on one rank for one step, in both training stages and both kinds."""
    for what, step in (("logits=nan", _NAN_AT), ("gradient=inf", ground.reference.stage_ends[0] + 2)):
        poison = f"{what}:1:{_BATCH * (step - 1) + 2}"
        yield _poisoned(ground, "N1", f"{what.partition('=')[2]} on rank 1", poison, step, [], "non_finite", skips=1)


def spikes(ground: Ground) -> Iterator[Line]:
    """N2: one batch with a huge loss, held back or undone."""
    poison = f"logits=1e4:*:{_BATCH * (_SPIKE_AT - 1) + 3}"
    window = ["fault_tolerance.recovery.window_steps=8", "fault_tolerance.recovery.min_steps=5"]
    for policy, incident, skips in (("skip", "loss_spike", 1), ("rollback", "rollback", 0)):
        overrides = [*window, f"fault_tolerance.recovery.on_loss_spike={policy}"]
        yield _poisoned(ground, "N2", f"loss spike, {policy}", poison, _SPIKE_AT, overrides, incident, skips=skips)


def _poisoned(
    ground: Ground,
    row: str,
    fault: str,
    poison: str,
    step: int,
    overrides: Sequence[str],
    what: str,
    *,
    skips: int,
) -> Line:
    """Run it twice, and once with a kill after the poison and before a checkpoint carries what was decided."""
    killed = {POISON: poison, VARIABLE: f"snapshot_taken:1:{step // _SAVE_EVERY * _SAVE_EVERY + _SAVE_EVERY}"}
    starts = [[{POISON: poison}], [{POISON: poison}], [killed, {POISON: poison}]]
    wrong: list[str] = []
    runs = [_run(ground, overrides, environments, wrong) for environments in starts]
    first = runs[0]
    steps = _steps(first)
    for other, name in zip(runs[1:], ("a second run", "a run killed after it"), strict=True):
        if _steps(other) != steps or _state(other) != _state(first):
            wrong.append(f"{name} is another one: {other}, {first}")
    expected = ground.reference.steps
    if any(steps[before] != expected[before] for before in range(1, step)):
        wrong.append("a step before it is not as in the undisturbed run")
    skipped = [record["step"] for record in records(first, "step") if record["skipped"]]
    if skipped != [step] * skips:
        wrong.append(f"skipped: {skipped}, not {skips} step")
    incidents = [record for record in records(first, "incident") if record["what"] == what]
    if len(incidents) != 1:
        wrong.append(f"{len(incidents)} incidents of {what}")
    poisoned = next(record for record in records(first, "step") if record["step"] == step)
    seen = incidents[0]["time"] - (poisoned["time"] - poisoned["seconds"]) if incidents else None
    return Line(
        row=row,
        fault=fault,
        injected=f"{POISON}={poison}",
        seen_seconds=seen,
        equal="NO" if wrong else "to itself: twice, and killed after it; up to it to the undisturbed run",
        remarks=_first_line(incidents[0]["message"]) if incidents else "",
        wrong=tuple(wrong),
    )


def _run(ground: Ground, overrides: Sequence[str], environments: Sequence[dict[str, str]], wrong: list[str]) -> Path:
    """Return a run at its end, started once per environment."""
    directory = make_run(ground.root, ground.reference.stage_steps, save_every_steps=_SAVE_EVERY, more=overrides)
    code: int | None = None
    for environment in environments:
        started = ground.server.start(
            directory, world_size=WORLD_SIZE, output=directory / "output", environment=environment
        )
        left = ground.server.wait(LIMIT_SECONDS)
        started.close()
        if left.processes:
            raise MissedError(f"{directory} hangs")
        code = left.exit_codes[started.launcher]
        if (VARIABLE in environment) != (code != 0):
            wrong.append(f"{directory.name} ended with {code}: {(directory / 'output').read_text()[-2000:]}")
    return directory


def _steps(run: Path) -> dict[int, tuple[Any, ...]]:
    return numbers_by_step(records(run, "step"))


def _state(run: Path) -> tuple[Any, ...]:
    return contents(last_checkpoint(run)), ledger(run)["state"], ledger(run)["stages"]


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0]
