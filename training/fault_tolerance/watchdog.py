"""Notices that this rank makes no progress, finds out with the others who is to blame, and ends the process.

Two threads: one speaks to the store, and may hang with it; the other only looks at what the first and the training
thread have done. Time is the time in which they run: a job that was suspended as a whole (gang scheduling, a debugger)
has not hung, and no wall clock counts. Shortly before a rank's time is up it takes a first look at the table; the first
one to do so decides when time is up, and the others hear the verdict. If the store does not answer then, its host, rank
0, is frozen or out of reach, and everybody decides that alike.
"""

import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

import torch.distributed as dist

from training.config.schema import FaultToleranceConfig, RunConfig
from training.errors import ExitCode, Hang, PeerLost
from training.fault_tolerance.blame import Status, blame
from training.fault_tolerance.board import Board, NoAnswer, within
from training.fault_tolerance.evidence import Evidence, end_neighbours
from training.fault_tolerance.heartbeat import Doing, Heartbeat, Section
from training.fault_tolerance.last_words import claim_exit, leave
from training.fault_tolerance.limits import Limits
from training.fault_tolerance.speaker import Speaker, Suspicion
from training.fault_tolerance.survey import Survey
from training.fault_tolerance.verdict import ADVICE, Verdict, message

_TICK_SECONDS = 0.1
_LONGEST_GAP_SECONDS = 1.0
"""Of the time between two ticks no more than this counts: beyond it this process was not running."""
_BEATS_PER_SECOND = 4000
"""Of all ranks together: what the store is asked to take."""
_SHORTEST_INTERVAL_SECONDS = 0.4
_LOOK_SECONDS = 2.0
_LOOK_INTERVALS = 2.5
"""The first look at the table is so long before the decision; who has not spoken in between is taken for frozen."""
_SURVEY_INTERVALS = 5
_PATIENCE_SECONDS = 1.5
"""Longest wait for the store, the disk or the decision of another rank, once time is up."""
_SPARE_SECONDS = 0.5
"""On top of everything that an end may wait for; then the kernel ends the process."""
_DESCRIBED = 16
"""Ranks to blame whose hosts are looked up; there may be thousands."""


class Watchdog:
    """Watches the training thread of this rank from `start` to `close`."""

    def __init__(self, heartbeat: Heartbeat, store: dist.Store, *, rank: int, world_size: int, device: str) -> None:
        self.heartbeat = heartbeat
        self._rank, self._world_size, self._device = rank, world_size, device
        self._interval_seconds = max(_SHORTEST_INTERVAL_SECONDS, world_size / _BEATS_PER_SECOND)
        self._store = store
        self._limits = Limits(FaultToleranceConfig(), commit_timeout_seconds=math.inf, device=device)
        self._evidence = Evidence(rank)
        self._run_directory: Path | None = None
        self._speaker = Speaker(self._connect(), self._interval_seconds, self._status)
        self._closing = self._speaker.closing
        self._awake_seconds = self._since = 0.0
        self._ending = threading.Event()

    def start(self) -> None:
        """Begin to speak and to watch."""
        self._speaker.start()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def use(self, config: RunConfig, run_directory: Path) -> None:
        """Go by a run's limits from now on, and leave evidence in its directory."""
        self._evidence.keep_in(run_directory)
        self._limits = Limits(
            config.fault_tolerance,
            commit_timeout_seconds=config.checkpoint.commit_timeout_seconds,
            device=self._device,
        )
        self.heartbeat.window_steps = config.fault_tolerance.stragglers.window_steps
        self._run_directory = run_directory

        if self._rank == 0:
            Survey(
                self._connect(),
                self.heartbeat,
                config.fault_tolerance.stragglers,
                run_directory,
                closing=self._closing,
                interval_seconds=_SURVEY_INTERVALS * self._interval_seconds,
            ).start()

    def close(self) -> None:
        """Stop watching: the training thread ends, well or not. If there is a verdict, that ends the process first."""
        if self._ending.is_set() or self._speaker.heard is not None:
            time.sleep(4 * _PATIENCE_SECONDS)  # what fails now fails because others have left
        self._closing.set()

    # -- watching ---------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        speaker, doing = self._speaker, self.heartbeat.doing
        beats, spoke_at, lost_at, last = 0, 0.0, None, time.monotonic()
        suspicion: Suspicion | None = None
        while not self._closing.wait(_TICK_SECONDS):
            self._awake_seconds += min(time.monotonic() - last, _LONGEST_GAP_SECONDS)
            last, now = time.monotonic(), self._awake_seconds
            if self.heartbeat.doing is not doing:
                self._limits.ended(doing.section, now - self._since)
                doing, self._since, suspicion = self.heartbeat.doing, now, None
            if speaker.beats != beats:
                beats, spoke_at = speaker.beats, now
            if speaker.heard is not None:
                self._end(Verdict.from_json(speaker.heard))
            if speaker.lost and doing.section is not Section.end:
                lost_at = now if lost_at is None else lost_at
                if now - lost_at > _PATIENCE_SECONDS:  # the training thread has better words, if it notices
                    self._end_without_store()
            limit = self._limits.of(doing.section)
            left = self._since + limit - now
            if suspicion is None and left < self._look_seconds(limit):
                suspicion = Suspicion(self._connect, doing, attempt=0, look_seconds=self._look_seconds(limit))
            if suspicion is not None and left < 0:
                silent = now - spoke_at > max(_PATIENCE_SECONDS, _LOOK_INTERVALS * self._interval_seconds)
                suspicion = self._judge(suspicion, limit, store_is_silent=silent or speaker.lost)

    def _judge(self, suspicion: Suspicion, limit: float, *, store_is_silent: bool) -> Suspicion:
        """Time is up: decide if that is this rank's part, else return with what is to be waited for."""
        if store_is_silent or suspicion.failed:
            self._end(self._about_store(suspicion.doing, limit))
        if suspicion.board is not None and suspicion.before is not None and suspicion.is_ripe:
            try:
                self._decide(suspicion.board, suspicion.doing, suspicion.before, limit)
            except (NoAnswer, RuntimeError):
                self._end(self._about_store(suspicion.doing, limit))
        elif suspicion.is_stale:  # whoever was first has not decided: it may have gone on, or be frozen by now
            again = suspicion.attempt + 1
            return Suspicion(self._connect, suspicion.doing, attempt=again, look_seconds=self._look_seconds(limit))
        return suspicion

    def _connect(self) -> Board:
        return Board(self._store, rank=self._rank, world_size=self._world_size)

    def _look_seconds(self, limit: float) -> float:
        """Return how long before its limit a rank takes a first look; every rank that lives speaks twice meanwhile."""
        return max(min(_LOOK_SECONDS, limit / 2), _LOOK_INTERVALS * self._interval_seconds)

    def _decide(self, board: Board, doing: Doing, before: Mapping[int, Status], limit: float) -> None:
        """End this process with a verdict, unless the training thread went on in the meantime."""
        table = within(_PATIENCE_SECONDS, board.table)
        if self.heartbeat.doing is not doing:
            return
        silent = [rank for rank in before if rank != self._rank and table[rank].beat == before[rank].beat]
        blamed = blame(table, accuser=self._rank, silent=silent, world_size=self._world_size)
        described = blamed.ranks[:_DESCRIBED]
        people = within(_PATIENCE_SECONDS, lambda: {rank: board.who(rank) for rank in described})
        words = message(blamed, table, people, accuser=self._rank, limit_seconds=limit)
        frozen = tuple(who for who in people.values() if who is not None and blamed.silent)
        first = people.get(blamed.ranks[0]) if blamed.ranks else None
        verdict = Verdict(message=words, frozen=frozen)
        rank = blamed.ranks[0] if blamed.ranks else None
        self._claim(verdict, rank=rank, host=first.host if first else None, step=doing.step)
        counts = within(_PATIENCE_SECONDS, lambda: board.announce(json.dumps(asdict(verdict))))
        self._end(Verdict.from_json(counts))

    def _about_store(self, doing: Doing, limit: float) -> Verdict:
        """Return the verdict where nobody can be asked; every rank comes to it by itself."""
        host = self._speaker.store_host
        whose = "torchrun's agent keeps" if host is None else f"rank 0 on {host.host} (process {host.pid}) keeps"
        verdict = Verdict(
            message=f"rank {self._rank} got no further in section {doing.section} at step {doing.step} within "
            f"{limit:.0f} s, and the job's store, which {whose}, does not answer: frozen, or out of reach\n"
            f"{ADVICE}",
            frozen=() if host is None else (host,),
        )
        rank = None if host is None else 0
        self._claim(verdict, rank=rank, host=host.host if host else None, step=doing.step)
        return verdict

    # -- ending -----------------------------------------------------------------------------------------------------

    def _claim(self, verdict: Verdict, *, rank: int | None, host: str | None, step: int) -> None:
        """Make this hang what the run ended with, unless something else was first."""
        directory, error = self._run_directory, f"{Hang.__name__}: {verdict.message}"
        if directory is not None:
            content = {"exit_code": int(ExitCode.HANG), "error": error, "rank": rank, "host": host, "step": step}
            self._bounded(lambda: claim_exit(directory, content))

    def _end(self, verdict: Verdict) -> NoReturn:
        """Leave evidence, take frozen neighbours along, stay until the others have heard it too, and end."""
        self._ending.set()
        # Whatever becomes of the rest, for example without memory: SIGALRM, which nobody handles, ends the process.
        signal.setitimer(signal.ITIMER_REAL, 2 * _PATIENCE_SECONDS + 2 * self._interval_seconds + _SPARE_SECONDS)
        self._bounded(lambda: self._evidence.write(verdict.message))
        end_neighbours(verdict.frozen)
        self._leave(Hang(verdict.message), linger_seconds=2 * self._interval_seconds)

    def _end_without_store(self) -> NoReturn:
        """End the process: rank 0, and the store with it, is gone, and the training thread has not noticed."""
        lost = PeerLost("the job's store is gone, and rank 0 or the launcher with it")
        self._leave(lost, linger_seconds=0.0)

    def _leave(self, error: Hang | PeerLost, *, linger_seconds: float) -> NoReturn:
        self._bounded(lambda: leave(error, run_directory=self._run_directory, rank=self._rank))
        print(f"[rank {self._rank}] {type(error).__name__}: {error}", file=sys.stderr, flush=True)  # noqa: T201
        time.sleep(linger_seconds)
        os._exit(error.exit_code)

    def _bounded(self, write: Callable[[], object]) -> None:
        """Write something, but do not wait for a disk that hangs: it may be what this is about."""
        try:
            within(_PATIENCE_SECONDS, write)
        except (NoAnswer, OSError) as error:
            print(f"[rank {self._rank}] cannot write: {error!r}", file=sys.stderr, flush=True)  # noqa: T201

    # -- speaking ---------------------------------------------------------------------------------------------------

    def _status(self, beat: int) -> Status:
        heart, doing, log = self.heartbeat, self.heartbeat.doing, self.heartbeat.collectives
        # In a save the training thread waits for the thread that writes, and that one for its peers.
        track = log.other if doing.section is Section.save and not log.training.waits else log.training
        return Status(
            beat=beat,
            section=doing.section,
            step=doing.step,
            seconds=round(self._awake_seconds - self._since, 1),
            operation=track.last,
            waits=track.waits or self._device != "cpu",
            started=dict(log.started),
            place=heart.place,
            windows=[[window.number, window.busy_seconds] for window in heart.windows],
        )
