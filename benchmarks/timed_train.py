"""One rank of training.train that notes when its phases end: python -m benchmarks.timed_train RUN_DIRECTORY.

The functions that training.train calls are wrapped, nothing is changed. Rank 0 appends to <run directory>/phases.jsonl.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_PHASES = {
    "ensure": "open the prepared data",
    "measured_matmul_rate": "measure the peak rate",
    "_build_engine": "build the engine",
    "evaluate": "evaluate the untrained model",
}
"""Global of training.composition -> phase."""


class _Notes:
    """The phases of this rank, each written once, when it first ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._is_first = os.environ.get("RANK", "0") == "0"
        self._seen: set[str] = set()

    def note(self, phase: str, started: float) -> None:
        """Append a phase that ends now; `started` is a time.time()."""
        if self._is_first and phase not in self._seen:
            self._seen.add(phase)
            with self._path.open("a") as file:
                file.write(json.dumps({"phase": phase, "started": started, "ended": time.time()}) + "\n")

    def around(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, noting its first call."""

        def noted(*args: Any, **kwargs: Any) -> Any:
            started = time.time()
            try:
                return function(*args, **kwargs)
            finally:
                self.note(phase, started)

        return noted


def main() -> None:
    """Run the rank."""
    started = time.time()
    notes = _Notes(Path(sys.argv[1]) / "phases.jsonl")
    from training import composition, train  # the import is what is measured

    notes.note("import", started)
    for name, phase in _PHASES.items():
        setattr(composition, name, notes.around(phase, getattr(composition, name)))
    start = notes.around("join the process group", composition.process_group.start)
    composition.process_group.start = start
    code = train.main(sys.argv[1:])
    os._exit(code)


if __name__ == "__main__":
    main()
