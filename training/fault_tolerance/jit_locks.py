"""Locks of torch's extension builder: one that a killed process left makes every later start wait for ever.

(torch 2.13, torch/utils/cpp_extension.py: a file `lock` beside the sources, whose holder nobody records;
pytorch#189245.) So a run builds in its own directory, and whoever holds the run's lease may remove what is left there:
nobody else builds in it.
"""

import os
from pathlib import Path

_VARIABLE = "TORCH_EXTENSIONS_DIR"


def use_private_extensions(run_directory: Path) -> None:
    """Let this process build extensions in the run directory, unless the environment names a place."""
    os.environ.setdefault(_VARIABLE, str(_private(run_directory)))


def clear_locks(run_directory: Path) -> list[Path]:
    """Remove the locks that an earlier start of the run left, and return them; only with the run's lease."""
    locks = sorted(_private(run_directory).glob("**/lock"))
    for lock in locks:
        lock.unlink(missing_ok=True)
    return locks


def _private(run_directory: Path) -> Path:
    return run_directory / "torch_extensions"
