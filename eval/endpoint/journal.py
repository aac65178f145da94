"""Everything sent to an endpoint and answered by it: an append-only file of JSON lines, each on disk before it counts.

    {"event": "sent", "attempt": 7, "key": …, …}        before a byte leaves this machine
    {"event": "answered", "attempt": 7, "key": …, …}    before the answer is used
    {"event": "failed", "attempt": 7, …}                there will be no answer to this attempt

The file is cache, record and bill at once. An attempt that has neither an answer nor a failure was under way when the
process was killed: the provider may have billed it although its answer is lost, so it is counted.
"""

import fcntl
import json
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from training.durable_files import fsync
from training.errors import DataError, RunInUse, StorageError
from training.plain_files import parse_json, read_text, typed

_LARGEST_BYTES = 2**33


@dataclass(frozen=True, kw_only=True, slots=True)
class Sent:
    """An attempt begins."""

    attempt: int
    key: str
    task: str
    time: float
    """Seconds since 1970."""
    url: str
    body: Mapping[str, Any]
    try_number: int
    most_input_tokens: int
    max_output_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered:
    """The server's answer."""

    attempt: int
    key: str
    task: str
    time: float
    """When it was complete, in seconds since 1970."""
    seconds: float
    response: Mapping[str, Any]
    """Its JSON object."""

    @property
    def tokens(self) -> tuple[int, int] | None:
        """Tokens in and out that the server says it counted; None if it does not say."""
        usage = self.response.get("usage")
        if not isinstance(usage, Mapping):
            return None
        counted = usage.get("prompt_tokens"), usage.get("completion_tokens", 0)
        if all(isinstance(count, int) and not isinstance(count, bool) and count >= 0 for count in counted):
            return counted  # pyright: ignore[reportReturnType]  # two whole numbers, as was just checked
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Failed:
    """An attempt that had no answer."""

    attempt: int
    time: float
    reason: str
    may_be_billed: bool
    """Whether the server may have done the work all the same."""


_KINDS = {"sent": Sent, "answered": Answered, "failed": Failed}


class Journal:
    """The file, open for one process at a time; or read only, by any number.

    Args:
        path: the file; made if it is not there.
        read_only: nothing is written, not even to take a torn last line away.

    Raises:
        DataError: a line in it is none of a journal.
        RunInUse: another process has it open for writing.
        StorageError: it cannot be opened or made.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self.answers: dict[str, Answered] = {}
        """Key -> answer."""
        self.uncounted: list[Sent] = []
        """What was sent for answers whose tokens the server did not count."""
        self._open_attempts: dict[int, Sent] = {}
        self.torn_bytes = 0
        """Of a last line that a kill left unfinished; it was dropped."""
        self._next_attempt = 1
        self._lock = threading.Lock()
        self._descriptor: int | None = None
        if not read_only:
            self._open()
        try:
            self._size = self._read()
            if self._descriptor is not None and self.torn_bytes:
                os.ftruncate(self._descriptor, self._size)
                os.fsync(self._descriptor)
        except BaseException:
            self.close()
            raise

    @property
    def possibly_billed(self) -> list[Sent]:
        """Attempts without an answer that the provider may have billed; each in addition to the one that was kept."""
        return list(self._open_attempts.values())

    def write_sent(self, key: str, *, task: str, url: str, body: Mapping[str, Any], **numbers: int) -> int:
        """Return the number of an attempt that may now be sent."""
        with self._lock:
            attempt, self._next_attempt = self._next_attempt, self._next_attempt + 1
            self._append(
                "sent", Sent(attempt=attempt, key=key, task=task, time=time.time(), url=url, body=body, **numbers)
            )
            return attempt

    def write_answered(self, attempt: int, response: Mapping[str, Any], *, seconds: float) -> Answered:
        """Return an answer that is on disk."""
        with self._lock:
            sent = self._open_attempts[attempt]
            answered = Answered(
                attempt=attempt, key=sent.key, task=sent.task, time=time.time(), seconds=seconds, response=response
            )
            self._append("answered", answered)
            return answered

    def write_failed(self, attempt: int, reason: str, *, may_be_billed: bool) -> None:
        """Write down that there will be no answer to an attempt."""
        with self._lock:
            self._append(
                "failed", Failed(attempt=attempt, time=time.time(), reason=reason, may_be_billed=may_be_billed)
            )

    def close(self) -> None:
        """Let another process have the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _open(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            self._descriptor = os.open(self.path, flags, 0o644)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fsync(self.path.parent)
        except BlockingIOError as error:
            self.close()
            raise RunInUse(
                f"{self.path} is being written by another process: both would pay for the same answers\n"
                "  -> wait until it has ended, or give this one a journal of its own"
            ) from error
        except OSError as error:
            self.close()
            raise self._storage_error(error) from error

    def _read(self) -> int:
        """Take in all whole lines and return their bytes."""
        try:
            text = read_text(self.path, largest_bytes=_LARGEST_BYTES)
        except FileNotFoundError:
            return 0  # read only, and nothing was ever asked
        except (OSError, ValueError) as error:
            raise self._damage(0, error) from error
        whole = text.rfind("\n") + 1
        self.torn_bytes = len(text.encode()) - len(text[:whole].encode())
        for number, line in enumerate(text[:whole].split("\n")[:-1], start=1):
            try:
                values = parse_json(line, strict=True)
                self._take(typed(_KINDS[values.pop("event")], values))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise self._damage(number, error) from error
        return len(text[:whole].encode())

    def _take(self, record: Sent | Answered | Failed) -> None:
        if isinstance(record, Sent):
            self._open_attempts[record.attempt] = record
            self._next_attempt = max(self._next_attempt, record.attempt + 1)
        elif isinstance(record, Answered):
            if record.key in self.answers:
                raise ValueError(f"{record.key} is answered a second time")
            sent = self._open_attempts.pop(record.attempt)
            self.answers[record.key] = record
            if record.tokens is None:
                self.uncounted.append(sent)
        elif not record.may_be_billed:
            del self._open_attempts[record.attempt]

    def _append(self, event: str, record: Sent | Answered | Failed) -> None:
        assert self._descriptor is not None, "a journal that is read only or closed"
        line = (json.dumps({"event": event, **asdict(record)}, allow_nan=False) + "\n").encode()
        try:
            written = os.write(self._descriptor, line)
            if written < len(line):
                raise OSError(f"only {written} of {len(line)} bytes could be written")
            os.fsync(self._descriptor)
        except OSError as error:
            # Whatever there is of the line is torn; the next start drops it, and nothing may come after it.
            self.close()
            raise self._storage_error(error) from error
        self._size += len(line)
        self._take(record)

    def _storage_error(self, error: OSError) -> StorageError:
        return StorageError(
            f"{self.path} cannot be written: {error}\n"
            "  -> free space or mend the storage, then start again: what is in it is not asked again"
        )

    def _damage(self, line: int, error: Exception) -> DataError:
        where = f"line {line} of {self.path}" if line else str(self.path)
        return DataError(
            f"{where} is none of a journal ({type(error).__name__}: {error})\n"
            "  -> restore the file from a copy; without it, every answer would be paid for again"
        )
