"""Feeds one wandb run from a run directory: where the earlier starts got to, what comes then, until the end.

metrics.jsonl is the queue: a row's `_step` is the number of its line, so whoever feeds goes on at the line after the
last one that arrived. Online the server says which that is; offline, the fragments in RUN_DIR/wandb. A feeder that
was killed, or a server that was away, therefore costs nothing: the next start, or
`python -m training.reporting.send_to_wandb RUN_DIR`, sends the rest, and no row twice.
"""

import fcntl
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Self

import wandb

from training.plain_files import read_json, read_yaml
from training.reporting.item_tables import items_in_run
from training.reporting.metrics import FILE_NAME, MetricsReader
from training.reporting.records import EvalRecord, Record, StageRecord
from training.reporting.wandb_fragments import mend, next_line, retire
from training.reporting.wandb_rows import NAMESPACES, WandbRows, alert_of, config_of

_log = logging.getLogger(__name__)

Mode = Literal["online", "offline"]

_INIT_TIMEOUT_SECONDS = 60.0
_ENDLESS_RETRIES = 1_000_000
"""Of a row: wandb gives up on a server for good after two hours otherwise, and says so to nobody."""
_LONGEST_ALERT_AGE_SECONDS = 3600.0
"""What happened earlier is history when it is sent, nothing to wake up for."""
_MOST_ROWS = 1000
"""Items of a benchmark in a table of one evaluation."""


class WandbFeed:
    """The one feeder of a run directory's wandb run; a context manager, which is the lock that makes it the one.

    Args:
        run_directory: with the frozen config.yaml, whose reporting.wandb says where the run goes.
        mode: instead of the config's.
        trainer_pid: whose processor time and memory wandb samples; None samples nothing.
        finish_timeout_seconds: longest wait of `finish`; 0 waits as long as it takes.

    Raises:
        OSError: config.yaml cannot be read.
        ValueError: it is no config.
    """

    def __init__(
        self,
        run_directory: Path,
        *,
        mode: Mode | None = None,
        trainer_pid: int | None = None,
        finish_timeout_seconds: float = 0.0,
    ) -> None:
        self._directory = run_directory.resolve()
        self._config = read_yaml(self._directory / "config.yaml")
        self._wanted = self._config["reporting"]["wandb"]
        self.mode: Mode = mode or self._wanted["mode"]
        self._trainer_pid = trainer_pid
        self._finish_timeout_seconds = finish_timeout_seconds
        self._lock: int | None = None
        self._run: wandb.Run | None = None
        self.num_rows = 0
        """Rows that were handed to wandb."""
        self.is_done = False
        """Whether the last record so far said that the run is done."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            os.close(self._lock)

    def lock(self) -> bool:
        """Become the one feeder; return whether that worked: no other process is at it.

        Raises:
            OSError: the run directory cannot be written.
        """
        folder = self._directory / "wandb"
        folder.mkdir(exist_ok=True)
        descriptor = os.open(folder / "feeder.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self._lock = descriptor
        return True

    def start(self) -> str | None:
        """Begin or go on with the wandb run; return its address, None offline.

        Raises:
            wandb.Error: the server cannot be used: unreachable, silent, or without a key that it takes.
            OSError: the run directory cannot be written.
            ValueError: environment.json is no JSON.
        """
        mend(self._directory)
        first_line = next_line(self._directory)
        self._run = self._start_run()
        if self.mode == "online":
            first_line = self._run.starting_step
            retire(self._directory)  # their rows are on the server or come from metrics.jsonl now
        self._reader = MetricsReader(self._directory / FILE_NAME)
        self._first_line = first_line
        self._rows = WandbRows()
        self._facts: dict[str, Any] = {}
        return self._run.url

    def feed(self, more: Callable[[], bool]) -> None:
        """Hand over the rest of the log, then what is new whenever `more` returns; it returns False for the last time.

        Raises:
            StorageError: metrics.jsonl cannot be read.
            wandb.Error: wandb's own process has ended.
        """
        goes_on = True
        while goes_on:
            goes_on = more()
            while (new := self._reader.read_new()).records:
                for line, record, written_at in zip(new.line_numbers, new.records, new.times_seconds, strict=True):
                    self._take(line, record, written_at)

    def finish(self) -> None:
        """Deliver what wandb still has.

        Raises:
            TimeoutError: it was not delivered in time.
        """
        assert self._run is not None
        self._run.finish(exit_code=0 if self.is_done else 1)

    def _take(self, line: int, record: Record, written_at: float) -> None:
        assert self._run is not None
        row = self._rows.row(record)
        changes = config_of(record, self._facts)
        self._facts |= changes
        if line < self._first_line:
            return
        self.is_done = isinstance(record, StageRecord) and record.event == "done"
        if changes:
            self._run.config.update(changes, allow_val_change=True)
        row["_timestamp"] = written_at
        try:
            self._run.log(row | _item_tables(record, self._directory), step=line, commit=True)
        except OSError as error:  # where wandb keeps the files of tables until they are sent
            _log.error("the items of %s are not in wandb: %s", record.stage, error)
            self._run.log(row, step=line, commit=True)
        self.num_rows += 1
        self._alert(record, written_at)

    def _alert(self, record: Record, written_at: float) -> None:
        alert = alert_of(record) if self._wanted.get("alerts") and self.mode == "online" else None
        if alert is not None and time.time() - written_at < _LONGEST_ALERT_AGE_SECONDS:
            assert self._run is not None
            self._run.alert(alert.title, alert.text, level=alert.level)

    def _start_run(self) -> wandb.Run:
        run_id = self._directory.name
        run = wandb.init(
            id=run_id,
            name=run_id,
            resume="allow",
            dir=str(self._directory),
            mode=self.mode,
            project=self._wanted["project"],
            entity=self._wanted["entity"],
            group=self._wanted.get("group") or self._config["run"]["name"],
            tags=self._wanted.get("tags"),
            config=self._config | {"environment": _environment(self._directory)},
            settings=wandb.Settings(
                silent=True,
                console="off",
                init_timeout=_INIT_TIMEOUT_SECONDS,
                finish_timeout=self._finish_timeout_seconds,
                finish_timeout_raises=True,
                x_file_stream_retry_max=_ENDLESS_RETRIES,
                x_disable_stats=self._trainer_pid is None,
                x_stats_pid=self._trainer_pid or os.getpid(),
                x_stats_sampling_interval=self._wanted.get("system_every_seconds", 15.0),
                # A git remote may hold a password, an argument anything: what matters of both is in the config.
                disable_git=True,
                disable_code=True,
                x_disable_meta=True,
            ),
        )
        run.define_metric("step")
        run.define_metric("tokens", step_metric="step")
        for namespace in NAMESPACES:
            run.define_metric(f"{namespace}/*", step_metric="step")
        return run


def _environment(run_directory: Path) -> dict[str, Any]:
    """Return what the run directory was made with: commit, versions, machine; {} of a directory without it."""
    try:
        return read_json(run_directory / "environment.json")
    except FileNotFoundError:
        return {}


def _item_tables(record: Record, run_directory: Path) -> dict[str, Any]:
    """Return the tables of items that a record logs: those of an evaluation at the start or a training stage's end."""
    if not isinstance(record, EvalRecord) or record.in_between or not record.report:
        return {}
    found = items_in_run(run_directory, record.report, most_rows=_MOST_ROWS)
    if found.fault is not None:
        _log.error("the items of %s are not in wandb: %s", found.path, found.fault)
    tables = {}
    for table in found.tables:
        if table.num_left_out:
            _log.info("wandb has the first %d items of %s in %s", len(table.rows), table.task, found.path)
        tables[f"eval/{record.suite}/{table.task}/per_item"] = wandb.Table(
            columns=["after", *table.columns],
            data=[[record.stage, *row] for row in table.rows],
            allow_mixed_types=True,  # cells are numbers, texts or nothing, as the items have them
        )
    return tables
