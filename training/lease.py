"""Who may write into a run directory: one job at a time, and never one that was replaced.

`RUN_DIR/leases/000007.json` is the seventh start's claim; its number is the fencing token. Taking a lease is making the
next number's file with `link`, which only one of many can do. A job looks at the newest number twice in a save: after
it made its work directory and before the rename that commits. The one that takes over does the reverse: first its
lease, then it removes foreign work directories (`training/checkpoint/catalog.py`, `remove_torsos`). Whatever the order
in time, either the old job sees the new number, or its work directory is gone when it renames. So a process that slept
through a requeue commits nothing. (Kleppmann, "How to do distributed locking", 2016, fencing tokens.)
"""

import json
import os
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from training.durable_files import fsync, new_file, write_durably
from training.errors import RunInUse, StorageError
from training.plain_files import read_json, typed
from training.process_identity import host_name, start_time, this_machine

_FOLDER = "leases"
_HEARTBEAT_SECONDS = 5.0
_SILENT_SECONDS = 6 * _HEARTBEAT_SECONDS
"""A holder on another machine counts as gone after so long without a heartbeat, measured by the watcher's own clock."""
_PATIENCE_SECONDS = 10.0
"""A job that is being killed may take a moment; so long a new start waits for it before it is refused."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """The process that holds a lease (rank 0 of a job), told so exactly that its death can be seen."""

    number: int
    host: str
    machine: str
    """Boot id and pid namespace: where both are the same, a process id means the same process."""
    pid: int
    start_time: str
    """Field 22 of /proc/PID/stat; a process id may be used again, the pair may not."""
    slurm_job: str
    slurm_restart_count: int
    released: bool

    def describe(self) -> str:
        """Return who it is, for people."""
        slurm = f", Slurm job {self.slurm_job}" if self.slurm_job else ""
        return f"process {self.pid} on {self.host}{slurm} (start {self.number} of the run)"


class Lease:
    """The right to write into a run directory; see `take`."""

    def __init__(self, folder: Path, holder: Holder) -> None:
        self._folder = folder
        self._holder = holder
        self.number = holder.number
        """Fencing number: grows with every start of the run directory."""
        self._ended = threading.Event()
        threading.Thread(target=self._beat, name="lease", daemon=True).start()

    @classmethod
    def take(cls, run_directory: Path, *, patience_seconds: float = _PATIENCE_SECONDS) -> Self:
        """Return the lease of a run directory, once nobody else holds it.

        Raises:
            RunInUse: another job holds it, or took it at the same moment; nothing was changed.
            StorageError: the folder cannot be written.
        """
        folder = run_directory / _FOLDER
        try:
            folder.mkdir(exist_ok=True)
            newest = _newest(folder)
            if newest is not None:
                _wait_for_end(folder, newest, patience_seconds)
            holder = _myself((newest or 0) + 1)
            _claim(folder, holder)
            for number in _numbers(folder):
                if number < holder.number - 1:
                    _path(folder, number).unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"{folder} cannot be written: {error}\n  -> free space or mend the storage") from error
        return cls(folder, holder)

    def check(self) -> None:
        """Return if this is still the newest lease.

        Raises:
            RunInUse: another start has taken the run directory over.
        """
        newest = _newest(self._folder)
        if newest != self.number:
            raise RunInUse(
                f"start {self.number} of {self._folder.parent} was replaced by start {newest}: it commits nothing\n"
                "  -> end this job; the newer one goes on"
            )

    def release(self) -> None:
        """Let others take the run directory at once; nothing if they already have."""
        self._ended.set()
        if _newest(self._folder) == self.number:
            content = {**asdict(self._holder), "released": True}
            write_durably(_path(self._folder, self.number), json.dumps(content))

    def _beat(self) -> None:
        while not self._ended.wait(_HEARTBEAT_SECONDS):
            try:
                os.utime(_path(self._folder, self.number))
            except FileNotFoundError:
                return  # replaced long ago: `check` says so
            except OSError:
                continue  # storage that comes back is no reason to stop beating


def newest_holder(run_directory: Path) -> Holder | None:
    """Return who holds, or last held, a run directory; None if nobody ever did."""
    folder = run_directory / _FOLDER
    newest = _newest(folder)
    return None if newest is None else _read(folder, newest)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sight:
    """A holder, as seen from here and now."""

    holder: Holder
    lives: bool | None
    """None on another machine, where only its heartbeat tells."""
    silent_seconds: float
    """Since its last heartbeat, by the clock of the storage and ours; it beats every 5 s."""

    @property
    def is_gone(self) -> bool:
        """Return whether it has ended, or has been silent for so long that another start may take over."""
        return self.lives is False or (self.lives is None and self.silent_seconds > _SILENT_SECONDS)


def look(run_directory: Path) -> Sight | None:
    """Return who holds, or last held, a run directory and whether that process lives; None if nobody ever did."""
    folder = run_directory / _FOLDER
    newest = _newest(folder)
    holder = None if newest is None else _read(folder, newest)
    if newest is None or holder is None:
        return None
    silent_seconds = max(0.0, time.time() - _heartbeat(folder, newest) / 1e9)
    return Sight(holder=holder, lives=_is_alive(holder), silent_seconds=silent_seconds)


def wait_until_free(run_directory: Path) -> None:
    """Return when nobody holds a run directory, without taking it.

    Raises:
        RunInUse: another job holds it.
    """
    folder = run_directory / _FOLDER
    newest = _newest(folder)
    if newest is not None:
        _wait_for_end(folder, newest, _PATIENCE_SECONDS)


def _wait_for_end(folder: Path, number: int, patience_seconds: float) -> None:
    """Return when the holder of a lease is gone.

    Raises:
        RunInUse: it lives.
    """
    begun = time.monotonic()
    beat, beat_seen = _heartbeat(folder, number), begun
    while (holder := _read(folder, number)) is not None:
        alive, now = _is_alive(holder), time.monotonic()
        if alive is False:
            return
        if alive is None:  # on another machine: does its heart beat?
            if _heartbeat(folder, number) == beat:
                if now - beat_seen > _SILENT_SECONDS:
                    return
            elif now - begun > patience_seconds:
                alive = True
            else:
                beat, beat_seen = _heartbeat(folder, number), now
        if alive and now - begun > patience_seconds:
            raise RunInUse(
                f"{folder.parent} is in use by {holder.describe()}\n"
                "  -> let it end, or end it, then start again with resume=auto; another run.id starts another run"
            )
        time.sleep(0.1)


def _is_alive(holder: Holder) -> bool | None:
    """Return whether a holder lives; None where only its heartbeat can tell."""
    me = _myself(0)
    if holder.released:
        return False
    if holder.slurm_job and holder.slurm_job == me.slurm_job and holder.slurm_restart_count < me.slurm_restart_count:
        return False  # Slurm starts a job again only after it has ended the one before
    if holder.machine == me.machine:
        return start_time(holder.pid) == holder.start_time
    return None


def _claim(folder: Path, holder: Holder) -> None:
    descriptor, temporary = new_file(folder, prefix=".lease.")
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(json.dumps(asdict(holder)))
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, _path(folder, holder.number))
        fsync(folder)
    except FileExistsError:
        raise _lost(folder) from None
    finally:
        os.unlink(temporary)
    if _newest(folder) != holder.number:
        raise _lost(folder)


def _lost(folder: Path) -> RunInUse:
    return RunInUse(
        f"another job took {folder.parent} at this moment\n  -> let it go on; another run.id starts another run"
    )


def _myself(number: int) -> Holder:
    return Holder(
        number=number,
        host=host_name(),
        machine=this_machine(),
        pid=os.getpid(),
        start_time=start_time(os.getpid()),
        slurm_job=os.environ.get("SLURM_JOB_ID", ""),
        slurm_restart_count=int(os.environ.get("SLURM_RESTART_COUNT", "0")),
        released=False,
    )


def _read(folder: Path, number: int) -> Holder | None:
    """Return a lease's holder, None if the file is gone or nothing that we wrote."""
    try:
        return typed(Holder, read_json(_path(folder, number)))
    except (FileNotFoundError, ValueError):
        return None


def _heartbeat(folder: Path, number: int) -> int:
    try:
        return _path(folder, number).stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _newest(folder: Path) -> int | None:
    return max(_numbers(folder), default=None)


def _numbers(folder: Path) -> list[int]:
    return [int(path.stem) for path in folder.glob("*.json") if path.stem.isdecimal()]


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.json"
