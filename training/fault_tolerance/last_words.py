"""What a failing rank leaves behind: logs/rank-NNNNN.error, and exit.json from the first one that knows why.

`launch.submit` prints the first of them last, where a person looks.
"""

import contextlib
import json
import os
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path

from training.errors import AutarkyError, ExitCode, PeerLost, SilentCorruption
from training.exit_report import EARLIER_EXIT, RANK_EXIT
from training.plain_files import read_json

_PEER_PHRASES = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Timed out waiting",
    "Socket closed",
    "connectFullMesh",
    "remote process exited",
)


def as_autarky_error(error: BaseException) -> BaseException:
    """Return PeerLost for what a collective raises when another process has gone, else the error itself.

    Gloo reports a dead peer as a plain RuntimeError; only its text tells (torch 2.13, gloo/transport/tcp/pair.cc).
    """
    if isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in _PEER_PHRASES):
        return PeerLost(f"another process of the job is gone: {str(error).splitlines()[0]}")
    return error


@contextlib.contextmanager
def earlier_hang(run_directory: Path) -> Iterator[tuple[int, str] | None]:
    """Give (step, words) if the attempt before ended with a hang, else None; forgotten once the block is done."""
    path = run_directory / EARLIER_EXIT
    try:
        left = read_json(path)
        hang = (int(left["step"]), str(left["error"])) if left["exit_code"] == ExitCode.HANG else None
    except (OSError, ValueError, KeyError, TypeError):
        hang = None  # not there, or half of one
    yield hang
    path.unlink(missing_ok=True)


def leave(error: BaseException, *, run_directory: Path | None, rank: int) -> tuple[ExitCode, str]:
    """Write down why this rank ends; return its exit code and the text for stderr."""
    known = isinstance(error, AutarkyError)
    code = error.exit_code if isinstance(error, AutarkyError) else ExitCode.FAILED
    text = f"{type(error).__name__}: {error}" if known else "".join(traceback.format_exception(error)).rstrip()
    if run_directory is not None and run_directory.is_dir():
        try:
            logs = run_directory / "logs"
            logs.mkdir(exist_ok=True)
            (logs / f"rank-{rank:05d}.error").write_text(text + "\n")
            if not isinstance(error, PeerLost):
                claim_exit(run_directory, {"exit_code": int(code), "error": text, "rank": rank, **_at_fault(error)})
        except OSError as unwritable:  # the code and the words count more than where they stand
            text += f"\n(this could not be written to {run_directory}: {unwritable})"
    return code, text


def _at_fault(error: BaseException) -> dict[str, object]:
    """Return which ranks on which hosts an error blames, if it blames any: whoever reports is not at fault itself."""
    if not isinstance(error, SilentCorruption):
        return {}
    return {"blamed": [{"rank": rank, "host": host} for rank, host in error.blamed.items()]}


def claim_exit(run_directory: Path, content: Mapping[str, object]) -> None:
    """Write exit.json, what the run ended with, unless another rank was first."""
    try:
        descriptor = os.open(run_directory / RANK_EXIT, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return
    with os.fdopen(descriptor, "w") as file:
        json.dump(content, file)
