"""The rows of the fault matrix in which a process is hurt: killed, stopped, told to stop, out of memory."""

import random
import resource
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.drills.campaign import DIED_OF_SIGKILL
from tests.drills.disturbed import BITWISE, Disturbed, Ground, Line, MissedError
from tests.drills.drill_run import Findings
from tests.drills.hang import LIMIT, OVERRIDES, SEEN_AFTER_SECONDS, HangDrill, start_and_stall
from tests.drills.hang import Hang as SeenHang
from tests.drills.memory_limits import kill_by_memory, why_not_kill_by_memory
from tests.drills.moments import Place
from tests.drills.points import run_points
from tests.drills.signals import stop_everywhere
from tests.drills.stops import StopOutcome
from training.errors import ExitCode
from training.fault_tolerance.injected import STALL_VARIABLE, VARIABLE

_SLOW_TURN_SECONDS = 0.1
"""A slow rank stands still so long, then runs so long."""
_STALL_SECONDS = 0.15
_START_SECONDS = 30.0
"""For a start that finds a stale lock."""
_HANG_SEED = 0


def ranks_killed(ground: Ground) -> Iterator[Line]:
    """K1: kill -9 of a rank, in every place of a run."""
    for victim in ("rank 0", "rank 1"):
        for place in (Place.training, Place.save, Place.evaluation):
            yield _killed(ground, "K1", f"{victim} dies", [victim], place)


def launcher_killed(ground: Ground) -> Iterator[Line]:
    """K2: kill -9 of the launcher; its ranks die with it."""
    yield _killed(ground, "K2", "the launcher dies", ["launcher"], Place.training)


def all_killed(ground: Ground) -> Iterator[Line]:
    """K4: kill -9 of the launcher and all ranks."""
    yield _killed(ground, "K4", "all processes die", ["launcher", "rank 0", "rank 1"], Place.training)


def _killed(ground: Ground, row: str, fault: str, victims: Sequence[str], place: Place) -> Line:
    run = Disturbed(ground)
    run.start()
    run.reach(place, delay_seconds=0.05 if place is Place.training else 0.0)
    run.disturb(lambda: [run.started.kill(victim) for victim in victims])
    run.see_end(victims=victims)
    run.go_on()
    gone = run.times.since(run.times.gone) or 0.0
    where = "training" if place is Place.training else place.value
    return run.line(row, fault, f"kill -9, {where}", remarks=f"0 processes left after {gone:.1f} s")


def points_killed(ground: Ground) -> Iterator[Line]:
    """K5: kill -9 at every point of the save protocol on every rank that passes it, in both training stages."""
    rows, outcome = run_points(ground.server, ground.long_reference, ground.root)
    yield Line(
        row="K5",
        fault="death at every point of a save",
        injected=f"{VARIABLE}: {len(rows)} kills, {len({row.point for row in rows})} points × ranks × stages",
        equal=_equal(outcome.findings),
        remarks=", ".join(
            f"{sum(row.commit == kind for row in rows)} times the {kind} commit" for kind in ("old", "new")
        ),
        wrong=tuple(outcome.findings.all()),
    )


# -- hangs ------------------------------------------------------------------------------------------------------------


def ranks_frozen(ground: Ground) -> Iterator[Line]:
    """H1: SIGSTOP of a rank, rank 0 with the job's store too."""
    for victim in (0, 1):
        yield _hung(ground, "H1", f"rank {victim} stands still", "SIGSTOP, training", _freeze(victim, Place.training))


def sections_hung(ground: Ground) -> Iterator[Line]:
    """H2: a rank waits for ever in a section of its own."""
    for victim, section in ((1, "data"), (0, "save"), (1, "evaluation"), (0, "between")):
        injected = f"{STALL_VARIABLE} {section}, rank {victim}"
        yield _hung(ground, "H2", f"hang in {section}", injected, lambda drill, v=victim, s=section: drill.stall(v, s))


def evaluation_hangs(ground: Ground) -> Iterator[Line]:
    """E1: a rank waits for ever in the evaluation between two training stages."""
    end = ground.reference.stage_ends[0]
    injected = f"{STALL_VARIABLE} evaluation, rank 1, after the first stage"
    yield _hung(ground, "E1", "evaluation hangs", injected, lambda drill: drill.stall(1, "evaluation", end))


def _freeze(victim: int, place: Place) -> Callable[[HangDrill], SeenHang | None]:
    return lambda drill: drill.freeze(victim, place)


def _hung(ground: Ground, row: str, fault: str, injected: str, act: Callable[[HangDrill], SeenHang | None]) -> Line:
    drill = HangDrill(ground.server, ground.reference, ground.root, random.Random(_HANG_SEED))
    hang = act(drill)
    if hang is None:
        raise MissedError(f"{fault}: {drill.run.findings.all()}")
    ended_at = time.monotonic()
    started, watch = drill.run.start()
    while not any(record["kind"] == "step" for record in watch.look()) and not drill.run.has_ended():
        time.sleep(0.005)
    again = time.monotonic() - ended_at
    left = drill.run.end(seen=[])
    wrong = [] if hang.is_right else [str(hang)]
    if left is None or left.exit_codes[started.launcher]:
        wrong.append(f"could not go on: {drill.run.words()}")
    else:
        drill.run.finish()
    findings = drill.run.findings
    return Line(
        row=row,
        fault=fault,
        injected=injected,
        seen_seconds=hang.seen_seconds,
        recovered_seconds=hang.gone_seconds + again,
        equal=_equal(findings),
        remarks=f"limit {hang.limit_seconds:.0f} s; blamed: rank {hang.blamed}, in {hang.section}; "
        f"0 processes left {hang.gone_seconds - hang.seen_seconds:.1f} s later",
        wrong=(*wrong, *findings.all()),
    )


def rank_slow(ground: Ground) -> Iterator[Line]:
    """H3: a rank that only runs half of the time, or takes longer, is named, not killed."""
    yield _slow(ground, "SIGSTOP and SIGCONT by turns, half of the time, rank 1", by_turns=True)
    yield _slow(ground, f"{STALL_VARIABLE}: {_STALL_SECONDS} s more in every step, rank 1", by_turns=False)


def _slow(ground: Ground, injected: str, *, by_turns: bool) -> Line:
    run = Disturbed(
        ground,
        reference=ground.slow_reference,
        expected=["slow_rank"],
        overrides=["fault_tolerance.stragglers.window_steps=4"],
    )
    run.start({} if by_turns else {STALL_VARIABLE: f"step:1:*:{_STALL_SECONDS}"})
    run.reach(Place.training, count=1)

    def wait_a_turn() -> None:
        if by_turns:
            run.started.send("rank 1", signal.SIGSTOP)
        time.sleep(_SLOW_TURN_SECONDS)
        if by_turns:
            run.started.send("rank 1", signal.SIGCONT)
            time.sleep(_SLOW_TURN_SECONDS)

    run.disturb(lambda: None)
    said = run.see_incident("slow_rank", keep_on=wait_a_turn)
    run.require(f"rank 1 is named: {said}", said.startswith("rank 1 "))
    run.go_to_end()
    return run.line("H3", "slow rank", injected, remarks=said)


def stale_lock(ground: Ground) -> Iterator[Line]:
    """H4: the lock of a builder of extensions that was killed, where the next start would wait for it for ever."""
    run = Disturbed(ground)
    run.start()
    run.reach(Place.training)
    run.disturb(lambda: run.started.kill("launcher"))
    run.see_end(victims=["launcher"])
    extensions = run.directory / "torch_extensions"
    built = sorted(path.parent for path in extensions.glob("**/build.ninja")) or [extensions / "py311_cpu/an_op"]
    for operation in built:
        operation.mkdir(parents=True, exist_ok=True)
        (operation / "lock").touch()
    run.disturb(lambda: None)
    run.go_on()
    recovered = run.times.since(run.times.recovered) or 0.0
    run.require(f"it trains within {_START_SECONDS} s, not {recovered:.1f} s", recovered < _START_SECONDS)
    run.require("the locks are gone", not list(extensions.glob("**/lock")))
    names = ", ".join(path.name for path in built)
    yield run.line("H4", "stale JIT lock", f"a lock without a holder beside {names}", remarks="cleared at the start")


# -- wishes to stop ---------------------------------------------------------------------------------------------------


def told_to_stop(ground: Ground) -> Iterator[Line]:
    """P1: SIGTERM and SIGUSR1 in every phase, to one rank, two or all, once and twice."""
    outcomes = stop_everywhere(
        ground.server, ground.long_reference, ground.root, count=ground.stops_per_phase, too_short=0, seed=0
    )
    stops = [stop for outcome in outcomes for stop in outcome.stops]
    phases: dict[str, list[bool]] = {}
    for stop in stops:
        phases.setdefault(stop.phase.value, []).append(stop.honoured)
    honoured = ", ".join(f"{name} {sum(all_of)}/{len(all_of)}" for name, all_of in phases.items())
    yield Line(
        row="P1",
        fault="told to stop",
        injected="SIGTERM, SIGUSR1: one rank, two or all; once, twice; every phase",
        seen_seconds=max(stop.seconds for stop in stops),
        equal=_stopped_equal(outcomes),
        remarks=f"honoured: {honoured}; steps lost {sum(stop.steps_lost for stop in stops)}; seen = slowest exit",
        wrong=_stop_findings(outcomes),
    )


def told_too_late(ground: Ground) -> Iterator[Line]:
    """P2: SIGKILL 0.2 s after the wish."""
    outcomes = stop_everywhere(
        ground.server, ground.long_reference, ground.root, count=0, too_short=2 * ground.stops_per_phase, seed=1
    )
    stops = [stop for outcome in outcomes for stop in outcome.stops]
    yield Line(
        row="P2",
        fault="grace too short",
        injected=f"SIGTERM or SIGUSR1, SIGKILL 0.2 s later, {len(stops)} times",
        equal=_stopped_equal(outcomes),
        remarks=f"{sum(stop.honoured for stop in stops)} had saved; the others went on from the last periodic save, "
        f"at most {max(stop.steps_lost for stop in stops)} steps back",
        wrong=_stop_findings(outcomes),
    )


def _stop_findings(outcomes: Sequence[StopOutcome]) -> tuple[str, ...]:
    return tuple(sentence for outcome in outcomes for sentence in outcome.findings.all())


def _stopped_equal(outcomes: Sequence[StopOutcome]) -> str:
    merged = Findings()
    for outcome in outcomes:
        merged.add(outcome.findings)
    return _equal(merged)


def _equal(findings: Findings) -> str:
    return "NO" if findings.differences or findings.lost_steps else BITWISE


# -- between training stages ------------------------------------------------------------------------------------------


def arrows_killed(ground: Ground) -> Iterator[Line]:
    """E1: kill -9 at every arrow between two training stages."""
    end = ground.reference.stage_ends[0]
    run = Disturbed(ground)
    run.start({VARIABLE: f"after_prune:0:{end}"})
    run.reach(Place.training, count=end - 1)
    while not run.started.has_ended("rank 0"):
        time.sleep(0.002)
    run.disturb(lambda: None)
    run.see_end(victims=["rank 0"])
    run.require("rank 0 was killed", run.exit_codes[0] == DIED_OF_SIGKILL)
    run.go_on()
    yield run.line("E1", "death after the save of a stage", f"{VARIABLE} after_prune, before the ledger says trained")
    for fault, section, victim in (
        ("death in evaluation", "evaluation", 0),
        ("evaluation crashes on one rank", "evaluation", 1),
        ("death before the gate's commit", "between", 0),
        ("death at the begin of the next stage", "build", 0),
        ("death at the load of the next stage", "load", 0),
    ):
        yield _killed_in_section(ground, fault, section, victim=victim, step=end)


def _killed_in_section(ground: Ground, fault: str, section: str, *, victim: int, step: int) -> Line:
    """Kill a rank that waits in a section, so that it is killed there and nowhere else."""
    run = Disturbed(ground)
    started, at = start_and_stall(run.run, f"{section}:{victim}:{step}:inf")
    run.attach(started)
    if at is None:
        raise MissedError(f"{section} never came: {run.run.words()}")
    run.disturb(lambda: started.kill(f"rank {victim}"))
    run.see_end(victims=[f"rank {victim}"])
    run.go_on()
    return run.line("E1", fault, f"kill -9 of rank {victim} in {section}")


def evaluation_fails(ground: Ground) -> Iterator[Line]:
    """E1: an evaluation that ends with an error."""
    run = Disturbed(ground)
    in_the_way = run.directory / "eval" / "pretrain"
    in_the_way.parent.mkdir(exist_ok=True)
    in_the_way.write_text("a file where a folder has to be")
    run.start()
    run.reach(Place.evaluation, count=0)
    run.disturb(lambda: None)
    run.see_end(seen_within=60)  # from the begin of the evaluation, so not a time to see a crash
    in_the_way.unlink()
    run.go_on()
    run.times.seen = None
    run.require(f"a cause is named: {run.error}", "eval" in run.error)
    yield run.line("E1", "evaluation fails", "its report cannot be written", remarks=run.error)


# -- memory -----------------------------------------------------------------------------------------------------------


def out_of_memory(ground: Ground) -> Iterator[Line]:
    """M1: one rank gets no more memory; then the kernel kills one for it."""
    # A thread that cannot even begin for want of memory is waited for, for ever: that is seen as a hang of its rank.
    run = Disturbed(ground, expected=["hang"], overrides=OVERRIDES)
    run.start()
    run.reach(Place.training)
    pid = run.started.pid_of("rank 1")
    run.disturb(lambda: _take_memory(pid))
    run.see_end(seen_within=LIMIT + SEEN_AFTER_SECONDS)
    run.go_on()
    is_named = "memory" in run.error.lower() or "to blame: rank 1 " in run.error
    run.require(f"memory, or the rank, is named: {run.error}", is_named)
    yield run.line(
        "M1",
        "out of memory in rank 1",
        "RLIMIT_AS of the living process",
        remarks=run.error.partition("to blame: ")[2] or run.error,
    )
    if reason := why_not_kill_by_memory():
        yield Line(row="M1", fault="OOM kill of rank 1", injected="cgroup memory limit", not_run=reason)
        return
    run = Disturbed(ground)
    run.start()
    run.reach(Place.training)
    run.disturb(lambda: None)
    with kill_by_memory(run.started.pid_of("rank 1")):
        while not run.started.has_ended("rank 1"):
            if time.monotonic() > run.times.at + 60:
                raise MissedError("the kernel killed nobody")
            time.sleep(0.002)
        run.disturb(lambda: None)  # the kill itself, from which a crash is to be seen
        run.see_end(victims=["rank 1"])
    run.require("SIGKILL", run.exit_codes[1] == DIED_OF_SIGKILL)
    run.require("the other says that a peer is lost", run.exit_codes[0] == ExitCode.PEER_LOST)
    run.go_on()
    yield run.line("M1", "OOM kill of rank 1", "cgroup memory limit", remarks="the kernel's SIGKILL, as K1")


def _take_memory(pid: int) -> None:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    size = pages * resource.getpagesize()
    resource.prlimit(pid, resource.RLIMIT_AS, (size, size))
