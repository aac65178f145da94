"""What a failing rank leaves behind: logs/rank-NNNNN.error, and exit.json from the first one that knows why.

`launch.submit` prints the first of them last, where a person looks.
"""

import json
import os
import traceback
from pathlib import Path

from training.errors import AutarkyError, ExitCode, PeerLost

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


def forget(run_directory: Path) -> None:
    """Remove what an earlier attempt left behind; one rank does it at the start."""
    (run_directory / "exit.json").unlink(missing_ok=True)
    for path in (run_directory / "logs").glob("rank-*.error"):
        path.unlink(missing_ok=True)


def leave(error: BaseException, *, run_directory: Path | None, rank: int) -> tuple[ExitCode, str]:
    """Write down why this rank ends; return its exit code and the text for stderr."""
    known = isinstance(error, AutarkyError)
    code = error.exit_code if isinstance(error, AutarkyError) else ExitCode.FAILED
    text = f"{type(error).__name__}: {error}" if known else "".join(traceback.format_exception(error)).rstrip()
    if run_directory is not None and run_directory.is_dir():
        logs = run_directory / "logs"
        logs.mkdir(exist_ok=True)
        (logs / f"rank-{rank:05d}.error").write_text(text + "\n")
        if not isinstance(error, PeerLost):
            _claim(run_directory / "exit.json", {"exit_code": int(code), "error": text, "rank": rank})
    return code, text


def _claim(path: Path, content: dict[str, object]) -> None:
    """Write a file unless another rank was first."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return
    with os.fdopen(descriptor, "w") as file:
        json.dump(content, file)
