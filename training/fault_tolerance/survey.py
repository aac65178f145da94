"""Rank 0's look at the whole table: heartbeat.json for people and tools, and slow ranks by name."""

import json
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from training.config.watchdog_schema import StragglerConfig
from training.durable_files import write_durably
from training.errors import StorageError
from training.fault_tolerance.blame import Status
from training.fault_tolerance.board import Board
from training.fault_tolerance.heartbeat import Heartbeat, Notice
from training.fault_tolerance.stragglers import Busy, SlowRanks, Straggler

FILE_NAME = "heartbeat.json"
_SHOWN = 64
"""Ranks in the file: of more, those that are furthest behind."""


class Survey(threading.Thread):
    """Reads the table every few seconds until `closing`. A disk or store that hangs holds up nothing but this."""

    def __init__(
        self,
        board: Board,
        heartbeat: Heartbeat,
        config: StragglerConfig,
        run_directory: Path,
        *,
        closing: threading.Event,
        interval_seconds: float,
    ) -> None:
        super().__init__(name="survey", daemon=True)
        self._board = board
        self._heartbeat = heartbeat
        self._slow_ranks = SlowRanks(ratio=config.ratio, slow_windows=config.slow_windows, of_windows=config.of_windows)
        self._config = config
        self._path = run_directory / FILE_NAME
        self._closing = closing
        self._interval_seconds = interval_seconds
        self._window = -1.0

    def run(self) -> None:
        """Look, tell, wait."""
        try:
            while not self._closing.wait(self._interval_seconds):
                table = self._board.table()
                self._find_slow_ranks(table)
                self._write(table)
        except RuntimeError:
            return  # the store is gone: the watchdog knows

    def _write(self, table: Mapping[int, Status]) -> None:
        try:
            write_durably(self._path, json.dumps(overview(table, time_seconds=time.time()), indent=1) + "\n")
        except StorageError as error:
            if not self._closing.is_set():
                self._heartbeat.notices.append(Notice("heartbeat_file", str(error)))

    def _find_slow_ranks(self, table: Mapping[int, Status]) -> None:
        window = latest_common_window(table.values())
        if window is None or window <= self._window:
            return
        self._window = window
        busy = {
            rank: Busy(place=status.place, seconds=seconds)
            for rank, status in table.items()
            for number, seconds in status.windows
            if number == window
        }
        for straggler in self._slow_ranks.add(busy):
            who = self._board.who(straggler.rank)
            self._heartbeat.notices.append(Notice("slow_rank", self._words(straggler, who.host if who else "?")))

    def _words(self, slow: Straggler, host: str) -> str:
        config = self._config
        return (
            f"rank {slow.rank} on {host} is busy {slow.seconds:.3g} s a step, {slow.ratio:.2f} times the median of the "
            f"other replicas of its pipeline stage, {slow.others_seconds:.3g} s; so in {config.slow_windows} of the "
            f"last {config.of_windows} windows of {config.window_steps} steps. All wait for it: look at that node"
        )


def latest_common_window(table: Iterable[Status]) -> float | None:
    """Return the number of the latest window of steps that every rank has told of; None if there is none."""
    told = [{number for number, _ in status.windows} for status in table]
    return max(set.intersection(*told), default=None) if told else None


def overview(table: Mapping[int, Status], *, time_seconds: float) -> dict[str, Any]:
    """Return the content of heartbeat.json: how many ranks are where, and the ranks themselves or the last of them."""
    order = sorted(table, key=lambda rank: (table[rank].step, -table[rank].seconds, rank))
    shown = sorted(order[:_SHOWN])
    return {
        "time": time_seconds,
        "ranks": len(table),
        "sections": dict(Counter(status.section for status in table.values())),
        "first_step": min((status.step for status in table.values()), default=0),
        "last_step": max((status.step for status in table.values()), default=0),
        "table": {
            str(rank): {key: value for key, value in asdict(table[rank]).items() if key != "started"} for rank in shown
        },
    }
