"""The append-only log of a run, metrics.jsonl: writing it, reading it whole, following it while it grows.

Numbers are written as Python's json writes them, so a loss or gradient norm that is not finite is the bare word NaN
or Infinity: JSON has no such number, but a run that went wrong must not lose what it saw.
"""

import errno
import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from training.errors import StorageError
from training.plain_files import parse_json
from training.reporting.records import Record, StepRecord, from_json_object, to_json_object

FILE_NAME = "metrics.jsonl"

_BLOCK_BYTES = 2**20
"""Read at a time, from the end."""
_PART_BYTES = 2**22
"""Read at a time, from the beginning."""

STEPS_PER_SYNC = 50
"""Step records a power cut may cost (a crash of the process alone costs none). All other records are synced at once."""


class MetricsLog:
    """The one writer of metrics.jsonl: every record is one line, written by one system call.

    Opening changes nothing that is there, but a last line without its end (a crash or a full disk in the middle of a
    write) is ended, so that it can never run into the next record; readers skip and count it.

    Raises:
        StorageError: the file cannot be opened or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._steps_since_sync = 0
        try:
            self._open()
        except OSError as error:
            raise storage_error(path, error) from error

    def append(self, record: Record) -> None:
        """Write the record with the present time; on disk on return, for step records within 50 of them."""
        try:
            self.write(to_line(record))
            self._steps_since_sync += 1
            if not isinstance(record, StepRecord) or self._steps_since_sync >= STEPS_PER_SYNC:
                self.sync()
        except OSError as error:
            raise storage_error(self.path, error) from error

    def write(self, line: bytes) -> None:
        """Hand a line of `to_line` to the operating system, which keeps it whatever becomes of this process.

        Raises:
            OSError: it is not in the file, or only a part of it, which readers skip.
        """
        if self._torn:
            line = b"\n" + line
        num_written = os.write(self._file_descriptor, line)
        self._torn = num_written < len(line)
        if self._torn:
            raise OSError(errno.ENOSPC, f"only {num_written} of {len(line)} bytes were written")

    def sync(self) -> None:
        """Wait until all lines are on disk.

        Raises:
            OSError: they are not.
        """
        os.fsync(self._file_descriptor)
        self._steps_since_sync = 0

    def reopen(self) -> None:
        """Open the file anew, by its name: after a failure, since storage that was away may be mounted anew.

        Raises:
            OSError: it cannot be opened; the old one stays open.
        """
        old = self._file_descriptor
        self._open()
        os.close(old)

    def close(self) -> None:
        """Bring everything to disk and close the file."""
        try:
            self.sync()
        except OSError as error:
            raise storage_error(self.path, error) from error
        finally:
            os.close(self._file_descriptor)

    def _open(self) -> None:
        # No link is followed: whoever may write to the run directory must not choose what a run appends to.
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self.path, flags, 0o644)
        size_bytes = os.fstat(descriptor).st_size
        self._torn = size_bytes > 0 and os.pread(descriptor, 1, size_bytes - 1) != b"\n"
        self._file_descriptor = descriptor


@dataclass(frozen=True, kw_only=True, slots=True)
class Metrics:
    """A metrics.jsonl as read: records in the order they were written."""

    records: list[Record]
    times_seconds: list[float]
    """When each record was written, in Unix seconds."""
    line_numbers: list[int]
    """Line of the file that each record stands in, from 0; torn ones count."""
    num_torn_lines: int
    """Lines that hold no record: torn by a crash, or of a kind that this version does not know."""


class MetricsReader:
    """Reads metrics.jsonl from its beginning, a part at a time, again and again while it grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.offset_bytes = 0
        """How far it has read."""
        self._num_lines = 0

    def read_new(self) -> Metrics:
        """Return the next lines, a few megabytes at most; none if nothing was written since the last call.

        A line that has no end yet is left for a later call.

        Raises:
            StorageError: the file cannot be read.
        """
        try:
            with self._path.open("rb") as file:
                file.seek(self.offset_bytes)
                text = file.read(_PART_BYTES)
                while b"\n" not in text and (more := file.read(_PART_BYTES)):
                    text += more
        except OSError as error:
            raise storage_error(self._path, error) from error
        complete = text[: text.rfind(b"\n") + 1]
        lines = complete.split(b"\n")[:-1]
        metrics = _parse(lines, first_number=self._num_lines)
        self.offset_bytes += len(complete)
        self._num_lines += len(lines)
        return metrics


def read_metrics(path: Path) -> Metrics:
    """Return all records of a metrics.jsonl, also of one that is being written.

    Raises:
        StorageError: the file cannot be read.
    """
    try:
        return _parse(path.read_bytes().split(b"\n"))
    except OSError as error:
        raise storage_error(path, error) from error


def read_newest(path: Path, num_bytes: int) -> Metrics:
    """Return the records in the last bytes of a metrics.jsonl, however long it is; the line that is cut is left out.

    Raises:
        StorageError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            begin = max(0, file.seek(0, os.SEEK_END) - num_bytes)
            file.seek(begin)
            lines = file.read().split(b"\n")
    except OSError as error:
        raise storage_error(path, error) from error
    return _parse(lines[1:] if begin else lines)


def last_record(path: Path, kind: str) -> dict[str, Any] | None:
    """Return the JSON object of the last whole record of a kind, None if there is none; however long the log is.

    It is read backwards, so that the size of what is read follows from how far back the record lies.
    """
    return next((record for record in _backwards(path) if record.get("kind") == kind), None)


def last_step(path: Path) -> int:
    """Return the step of the last whole step record, 0 if there is none or it is damaged."""
    record = last_record(path, StepRecord.kind)
    step = record.get("step") if record else 0
    return step if isinstance(step, int) and not isinstance(step, bool) else 0


def last_steps(path: Path, stage: str, steps: range, *, most: int) -> list[StepRecord]:
    """Return the last records of a training stage's steps, each step once, in order, however long the log is.

    Of steps done again the latest counts. It is read backwards, and no further than has to be.

    Args:
        path: a metrics.jsonl; one that is not there has no steps.
        stage: the training stage.
        steps: its steps that count.
        most: how many of them, at most.
    """
    wanted = set(steps[-most:] if most else ())
    found: dict[int, StepRecord] = {}
    for line in _backwards(path):
        if len(found) == len(wanted):
            break
        step = line.get("step")
        if line.get("kind") != StepRecord.kind or step in found:
            continue
        if isinstance(step, int) and step < steps.start:
            break  # of a training stage before; what lies further back was done again
        if line.get("stage") == stage and step in wanted:
            try:
                record = from_json_object(line)
            except ValueError:
                continue  # damaged, as a torn line is
            assert isinstance(record, StepRecord)
            found[step] = record
    return [found[step] for step in sorted(found)]


def _backwards(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of whole lines, the last one first; none if the file is not there."""
    try:
        with path.open("rb") as file:
            place, cut = file.seek(0, os.SEEK_END), b""
            while place:
                begin = max(0, place - _BLOCK_BYTES)
                file.seek(begin)
                lines = (file.read(place - begin) + cut).split(b"\n")
                # Where a block begins a line may be cut in two: the rest of it is at the end of the block before.
                cut = lines.pop(0) if begin else b""
                for line in reversed(lines):
                    if (record := _json_object(line)) is not None:
                        yield record
                place = begin
    except FileNotFoundError:
        return


def _json_object(line: bytes) -> dict[str, Any] | None:
    try:
        record = parse_json(line)
    except ValueError:
        return None  # torn by a kill
    return record if isinstance(record, dict) else None


def latest_steps(records: Iterable[Record]) -> list[StepRecord]:
    """Return one record per step, sorted: of steps done again after a crash or a rollback, the latest attempt's."""
    latest: dict[int, StepRecord] = {}
    for record in records:
        if isinstance(record, StepRecord):
            known = latest.get(record.step)
            if known is None or record.attempt >= known.attempt:
                latest[record.step] = record
    return [latest[step] for step in sorted(latest)]


def _parse(lines: list[bytes], *, first_number: int = 0) -> Metrics:
    metrics = Metrics(records=[], times_seconds=[], line_numbers=[], num_torn_lines=0)
    num_torn_lines = 0
    for number, line in enumerate(lines, start=first_number):
        if not line:
            continue
        try:
            json_object = parse_json(line)
            record, time_seconds = from_json_object(json_object), _time(json_object["time"])
        except (ValueError, KeyError, TypeError):
            num_torn_lines += 1
        else:
            metrics.records.append(record)
            metrics.times_seconds.append(time_seconds)
            metrics.line_numbers.append(number)
    return replace(metrics, num_torn_lines=num_torn_lines)


def _time(value: object) -> float:
    """Return a Unix time of the years 1970 to 9999; other numbers are no dates to Python."""
    if isinstance(value, int | float) and 0 <= value < 253_402_300_800:
        return float(value)
    raise ValueError("it has no time")


def to_line(record: Record) -> bytes:
    """Return the record as a line of metrics.jsonl, with the present time."""
    return json.dumps(to_json_object(record, time_seconds=time.time())).encode() + b"\n"


def storage_error(path: Path, error: OSError) -> StorageError:
    """Return what a failed read or write of the log means, for people."""
    return StorageError(
        f"{path}: {error}\n  -> free space or repair the file system, then start again with resume=auto"
    )
